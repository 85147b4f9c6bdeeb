//! One run of a case on a fresh system.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sealane_tests::cluster::{Cluster, number};
use sealane_tests::load::Kind;
use sealane_tests::policy;
use sealane_tests::postfix::Postfix;
use sealane_tests::wait;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use crate::cases::Case;
use crate::load;
use crate::measure::{self, Syncs, Usage};
use crate::profile::Profile;
use crate::report::Figures;
use crate::sink::Sink;
use crate::times::Times;

/// Without a delivery for this long the run has failed.
const STUCK: Duration = Duration::from_secs(60);
/// A fresh system is at work after this.
const SETTLED: Duration = Duration::from_secs(60);
/// Retries of mail that the sink defers at first.
const DELAYS: &str = "[2s]";

/// A runtime whose threads are named, so that their CPU can be told apart.
pub(crate) fn runtime(name: &'static str, threads: usize) -> Result<Runtime> {
    Ok(Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()?)
}

/// What the system under test used, by process.
trait Meter {
    async fn read(&self) -> Result<Reading>;
}

#[derive(Debug, Default, Clone)]
struct Reading {
    processes: BTreeMap<String, Usage>,
    syncs: BTreeMap<String, Syncs>,
}

struct SealaneMeter {
    pids: BTreeMap<String, u32>,
    metrics: Vec<(String, SocketAddr)>,
}

impl Meter for SealaneMeter {
    async fn read(&self) -> Result<Reading> {
        let mut out = Reading::default();
        for (name, pid) in &self.pids {
            out.processes.insert(name.clone(), measure::usage(*pid)?);
        }
        for (name, address) in &self.metrics {
            out.syncs
                .insert(name.clone(), measure::syncs(*address).await?);
        }
        Ok(out)
    }
}

struct PostfixMeter(u32);

impl Meter for PostfixMeter {
    async fn read(&self) -> Result<Reading> {
        let processes = BTreeMap::from([("postfix".to_owned(), measure::tree(self.0)?)]);
        Ok(Reading {
            processes,
            syncs: BTreeMap::new(),
        })
    }
}

/// A running Sealane with its sink.
pub(crate) struct Bed {
    pub(crate) main: Runtime,
    pub(crate) sink: Sink,
    pub(crate) cluster: Cluster,
    /// Kept for the sink's sake.
    _sinks: Runtime,
}

impl Bed {
    /// Two relays and so many control-plane nodes on empty volumes, one sink for all mail.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start(nodes: usize, shards: u32, hold: bool) -> Result<Self> {
        Self::start_beside(false, nodes, shards, hold)
    }

    /// The same, while another one runs in this process or not.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start_beside(
        another: bool,
        nodes: usize,
        shards: u32,
        hold: bool,
    ) -> Result<Self> {
        let main = runtime("main", 1)?;
        let sinks = runtime("sink", 1)?;
        let sink = sinks.block_on(Sink::start(Arc::new(Times::new(0)), hold))?;
        let builder = Cluster::builder()
            .control_planes(nodes)
            .relays(2)
            .beside(another)
            .delays(DELAYS)
            .next_hop(sink.address)
            .settings(|s| {
                s.shards = shards;
                "60s".clone_into(&mut s.lease);
            });
        let cluster = main.block_on(builder.start())?;
        let bed = Self {
            main,
            sink,
            cluster,
            _sinks: sinks,
        };
        bed.main.block_on(bed.settle(nodes, hold))?;
        Ok(bed)
    }

    /// Measured is a system at work, not one that starts: leaders are spread, the limits of the
    /// destination are dealt, every relay has delivered.
    async fn settle(&self, nodes: usize, hold: bool) -> Result<()> {
        wait::until("leaders spread over the nodes", SETTLED, || async {
            let status = self.cluster.admin_json(&["cluster", "status"]).await?;
            let groups = status.get("groups").and_then(Value::as_array);
            let mut led: BTreeMap<u64, usize> = BTreeMap::new();
            for group in groups.into_iter().flatten() {
                if number(group, "group") > 0 {
                    *led.entry(number(group, "leader")).or_default() += 1;
                }
            }
            let (most, least) = (led.values().max(), led.values().min());
            let spread = led.len() >= nodes.min(led.values().sum())
                && most.zip(least).is_some_and(|(m, l)| m - l <= 1);
            ensure!(spread, "shards led by node: {led:?}");
            Ok(())
        })
        .await?;
        if hold {
            // A first message would wait like the others, and be counted with them.
            return Ok(());
        }
        for target in self.targets(Kind::Mx) {
            let times = Arc::new(Times::new(1));
            self.sink.record(Arc::clone(&times));
            wait::until("a first message delivered", SETTLED, || async {
                if times.accepted_count() == 0 {
                    load::offer_one(target, policy::SERVED).await?;
                    times.accepted(0);
                }
                ensure!(times.delivered_count() == 1, "not yet");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Of every process, by name.
    ///
    /// # Errors
    /// When one has ended.
    pub(crate) fn pids(&self) -> Result<BTreeMap<String, u32>> {
        let names = self.cluster.layout.names();
        let pids = names
            .into_iter()
            .map(|name| Ok((name.clone(), self.cluster.pid(&name)?)));
        pids.collect()
    }

    /// Runs a case's load, from the first connection to the last delivery.
    ///
    /// # Errors
    /// When mail is lost or nothing moves.
    pub(crate) fn measure(&self, case: &Case) -> Result<Figures> {
        let pids = self.pids()?;
        let metrics = self.cluster.layout.control_planes.iter();
        let meter = SealaneMeter {
            pids,
            metrics: metrics.map(|n| (n.name.clone(), n.metrics)).collect(),
        };
        let work = Work::new(case, &self.sink, self.targets(Kind::Mx));
        work.measure(&self.main, &meter)
    }

    pub(crate) fn targets(&self, kind: Kind) -> Vec<SocketAddr> {
        let targets = self.cluster.targets(kind);
        targets.iter().map(|t| t.address).collect()
    }
}

/// Sealane: two relays and the case's control plane.
///
/// # Errors
/// When it does not start, or mail is lost.
pub(crate) fn sealane(case: &Case) -> Result<Figures> {
    let bed = Bed::start(case.nodes, case.shards, case.hold)?;
    let figures = bed.measure(case)?;
    bed.cluster.pass()?;
    Ok(figures)
}

/// The same once more with a profiler beside it, which costs: its figures are of no use.
///
/// # Errors
/// When there is no profiler, or mail is lost.
pub(crate) fn profiled(case: &Case, folder: &Path) -> Result<Vec<PathBuf>> {
    let bed = Bed::start(case.nodes, case.shards, case.hold)?;
    let profile = Profile::start(folder, &bed.pids()?)?;
    bed.measure(case)?;
    profile.finish()
}

/// Postfix, alone on the machine: TLS required both ways, its own durable queue, connections reused.
///
/// # Errors
/// When it does not start, or mail is lost.
pub(crate) fn postfix(case: &Case) -> Result<Figures> {
    let main = runtime("main", 1)?;
    let sinks = runtime("sink", 1)?;
    let sink = sinks.block_on(Sink::start(Arc::new(Times::new(0)), case.hold))?;
    let folder = tempfile::Builder::new().prefix("sealane-").tempdir()?;
    let extra = "smtp_tls_connection_reuse = yes\nsmtp_connection_cache_on_demand = yes\nsmtp_tls_loglevel = 0\nsmtpd_tls_loglevel = 0\n\
                 smtpd_client_connection_count_limit = 0\nmessage_size_limit = 104857600\nmailbox_size_limit = 0\ndefault_process_limit = 150\n";
    let postfix = Postfix::start(&folder.path().join("postfix"), sink.address, extra)?;
    let meter = PostfixMeter(postfix.master()?);
    let work = Work::new(case, &sink, vec![postfix.address]);
    work.measure(&main, &meter).with_context(|| {
        let log = postfix.log();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        tail.join("\n")
    })
}

struct Work<'a> {
    case: &'a Case,
    times: Arc<Times>,
    sink: &'a Sink,
    targets: Vec<SocketAddr>,
}

impl<'a> Work<'a> {
    fn new(case: &'a Case, sink: &'a Sink, targets: Vec<SocketAddr>) -> Self {
        let times = Arc::new(Times::new(case.messages));
        sink.record(Arc::clone(&times));
        Self {
            case,
            times,
            sink,
            targets,
        }
    }

    fn measure(self, main: &Runtime, meter: &impl Meter) -> Result<Figures> {
        let loads = runtime("load", 1)?;
        let (before, own_before) = (main.block_on(meter.read())?, measure::threads()?);
        self.times.begin();
        let (case, targets) = (self.case.clone(), self.targets.clone());
        let table = Arc::clone(&self.times);
        loads.block_on(async move { load::run(&case, targets, policy::SERVED, table).await })?;
        self.sink.open();
        main.block_on(self.delivered())?;
        let (after, own_after) = (main.block_on(meter.read())?, measure::threads()?);
        Ok(self.figures(&before, &after, &own_before, &own_after))
    }

    async fn delivered(&self) -> Result<()> {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let now = self.times.delivered_count();
            if now >= self.case.messages {
                return Ok(());
            }
            if now > last {
                (last, since) = (now, Instant::now());
            }
            if since.elapsed() > STUCK {
                bail!(
                    "{} of {} delivered, then nothing for {STUCK:?}",
                    now,
                    self.case.messages
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn figures(
        &self,
        before: &Reading,
        after: &Reading,
        own_before: &BTreeMap<String, f64>,
        own_after: &BTreeMap<String, f64>,
    ) -> Figures {
        let used = |name: &String, now: &Usage| {
            now.since(before.processes.get(name).copied().unwrap_or_default())
        };
        let processes: BTreeMap<String, Usage> = after
            .processes
            .iter()
            .map(|(n, u)| (n.clone(), used(n, u)))
            .collect();
        let syncs: BTreeMap<String, Syncs> = after
            .syncs
            .iter()
            .map(|(n, s)| {
                let b = before.syncs.get(n).copied().unwrap_or_default();
                let d = Syncs {
                    syncs: s.syncs - b.syncs,
                    writes: s.writes - b.writes,
                };
                (n.clone(), d)
            })
            .collect();
        let own = own_after
            .iter()
            .map(|(n, s)| (n.clone(), s - own_before.get(n).copied().unwrap_or(0.0)))
            .collect();
        Figures::new(
            self.case,
            &self.times,
            processes,
            syncs,
            own,
            self.sink.connections(),
        )
    }
}
