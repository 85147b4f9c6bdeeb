//! Everything at random, by seed: kills, pauses, power losses, ill disks, damaged volumes, cut networks, rude and silent
//! peers, changes of membership.

mod claims;
mod members;
mod network;
mod peer;
mod processes;
mod volumes;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::quantities::Quantities;
use super::traffic::Traffic;
use crate::cluster::{Cluster, number};
use crate::ledger::Ledger;
use crate::load::Mail;
use crate::sink::Hole;
use crate::{awake, policy, wait};

const RECOVERY: Duration = Duration::from_secs(120);
const DRAIN: Duration = Duration::from_secs(300);
const DELAYS: &str = "[1s, 1s, 2s, 5s]";

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub time: Duration,
    /// Only these faults; all of them if empty.
    pub only: Vec<String>,
}

/// One fault. In brackets its number in the fault matrix of the design.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// [F1, F2] SIGKILL of one control-plane node, the leader of a shard in half of the cases.
    KillNode,
    /// [F3] SIGKILL of all of them.
    KillAll,
    /// [F4, F5] SIGKILL of a relay node.
    KillRelay,
    /// [F6] SIGSTOP and, seconds later, SIGCONT, of any process.
    Pause,
    /// [F7] SIGTERM and start, of any process.
    Restart,
    /// [F11] of one to three nodes at once.
    PowerLoss,
    /// [F12] The same, and a part of what was not synced had reached the disk, in order or not.
    TornPowerLoss,
    /// [F13] of one or of all: less than the reserve.
    DiskFull,
    /// [F13] of one or of all: not an octet. A node that ends is started again while it is so.
    DiskExhausted,
    /// [F14] of one or of all.
    DiskSlow,
    /// [F15, F20, F22] The node ends, its volume is emptied, it joins as a new one.
    SyncFails,
    /// [F16] in the WAL of a stopped node.
    BitFlip,
    /// [F17, P6, F20, F22]
    Wiped,
    /// [F20, F21] An emptied node loses power again and again while it joins, and so does a leader that sends to it.
    JoinInterrupted,
    /// [F8] A node that leads, or any other one, is cut off from the other nodes.
    CutOff,
    /// [F9] Nobody hears what it says, or it hears nobody.
    CutOneWay,
    /// [F9] Two nodes do not hear each other, and both hear the third.
    CutBridge,
    /// [F9] Cut off and not, second by second.
    Flapping,
    /// [F10] Everything that reaches it or that it sends is late.
    Late,
    /// [F8, F9, F32] The kernel drops all packets of a process, one way or both: no reset, no end of stream.
    PacketsDropped,
    /// [F10] The kernel drops some.
    PacketsLost,
    /// [F10] Every packet to a process is answered with a reset.
    ConnectionsReset,
    /// [F22] A spare takes the places of a node, dead or alive, and another node ends meanwhile.
    Replace,
    /// [F22] A fourth node gets replicas, then another one is removed; nodes end meanwhile.
    GrowAndShrink,
    /// [F26] The peer refuses for the time being, or hangs up, also behind the dot.
    RudePeer,
    /// [F28] One destination takes connections and says nothing.
    BlackHole,
    /// [F19] The clock of one process is wrong for some seconds, by seconds or by years.
    ClockJump,
}

impl Fault {
    const ALL: [Self; 26] = [
        Self::KillNode,
        Self::KillAll,
        Self::KillRelay,
        Self::Pause,
        Self::Restart,
        Self::PowerLoss,
        Self::TornPowerLoss,
        Self::DiskFull,
        Self::DiskExhausted,
        Self::DiskSlow,
        Self::SyncFails,
        Self::BitFlip,
        Self::Wiped,
        Self::JoinInterrupted,
        Self::CutOff,
        Self::CutOneWay,
        Self::CutBridge,
        Self::Flapping,
        Self::Late,
        Self::PacketsDropped,
        Self::PacketsLost,
        Self::ConnectionsReset,
        Self::Replace,
        Self::GrowAndShrink,
        Self::RudePeer,
        Self::BlackHole,
    ];

    /// Only where it is asked for: clocks are wrong by means of a library that every process then has.
    const ON_REQUEST: [Self; 1] = [Self::ClockJump];

    /// Whether what is in the air may be given out again: results may be lost on their way, or come too late. The
    /// peer's own part (mail that it kept and did not answer for) is counted by itself.
    fn may_repeat(self) -> bool {
        !matches!(self, Self::RudePeer | Self::BlackHole | Self::DiskFull)
    }
}

struct Run {
    cluster: Cluster,
    ledger: Arc<Ledger>,
    rng: StdRng,
    quantities: Quantities,
    hole: Hole,
    leaders: BTreeMap<u64, u64>,
}

/// Runs faults for the time of the plan, then heals, drains and counts.
///
/// # Errors
/// When a fault takes no effect, a process does not come back, or something is claimed that is not true. Lost
/// mail is in the verdict.
pub async fn run(plan: &Plan) -> Result<Quantities> {
    println!("SEED={} {plan:?}", plan.seed);
    let named = |fault: &Fault| plan.only.contains(&format!("{fault:?}"));
    let usual = |fault: &Fault| plan.only.is_empty() || named(fault);
    let mut faults: Vec<Fault> = Fault::ALL.into_iter().filter(usual).collect();
    faults.extend(Fault::ON_REQUEST.iter().filter(|fault| named(fault)));
    let clocks = faults.contains(&Fault::ClockJump);
    ensure!(!faults.is_empty(), "no such fault: {:?}", plan.only);
    let mut cluster = Cluster::builder()
        .control_planes(4)
        .founders(3)
        .delays(DELAYS)
        .settings(|settings| settings.clocks = clocks)
        .disks()
        .links()
        .namespaces()
        .start()
        .await?;
    Mail::stand(cluster.sink.script());
    let anywhere = SocketAddr::new(cluster.sink.address().ip(), 0);
    let hole = Hole::start(anywhere, cluster.sink.address()).await?;
    let mut policy = policy::demo(cluster.sink.address(), DELAYS);
    policy.push_str(&policy::hole(hole.address(), DELAYS));
    cluster.apply_policy(&policy).await?;
    cluster.start("control-plane-4")?;
    let traffic = Traffic::for_long(&cluster).await?;
    let mut run = Run {
        cluster,
        ledger: Arc::clone(&traffic.ledger),
        rng: StdRng::seed_from_u64(plan.seed),
        quantities: Quantities::default(),
        hole,
        leaders: BTreeMap::new(),
    };
    let outcome = run.all(&faults, plan.time).await;
    if let Err(error) = &outcome {
        println!("the run ends here: {error:#}");
        run.heal();
    }
    run.cluster.sink.script().clear();
    run.hole.open();
    run.quantities.said_by_logs = claims::said_by_logs(&run.cluster);
    let quantities = traffic
        .end(run.cluster, run.quantities, DRAIN, outcome.is_err())
        .await?;
    outcome?;
    Ok(quantities)
}

impl Run {
    async fn all(&mut self, faults: &[Fault], time: Duration) -> Result<()> {
        let began = Instant::now();
        self.recovered().await.context("before the first fault")?;
        // Every fault comes once before any comes twice.
        let mut next: Vec<Fault> = Vec::new();
        while began.elapsed() < time {
            let Some(fault) = next.pop() else {
                self.overheard().await.context("nothing in clear")?;
                next = faults.to_vec();
                next.shuffle(&mut self.rng);
                continue;
            };
            Box::pin(self.one(fault, began))
                .await
                .with_context(|| format!("{fault:?} after {:.0?}", began.elapsed()))?;
        }
        Ok(())
    }

    /// After a fault that did not end as it should: what can be made well, so that mail that is missing is
    /// lost and not only late.
    fn heal(&mut self) {
        if let Some(links) = &self.cluster.links {
            links.heal();
        }
        for name in self.cluster.layout.names() {
            if let Some(namespaces) = &self.cluster.namespaces {
                let _healed = namespaces.heal(&name);
            }
            if let Ok(disk) = self.cluster.disk(&name) {
                let _healed = (disk.tell("space unlimited"), disk.tell("slow 0"));
            }
            let _runs = self.cluster.signal(&name, Signal::SIGCONT);
            let _forgotten = self.cluster.has_ended(&name);
            let _started = self.cluster.start(&name);
        }
    }

    async fn one(&mut self, fault: Fault, began: Instant) -> Result<()> {
        let since = Instant::now();
        let what = Box::pin(self.fault(fault)).await?;
        self.recovered().await.with_context(|| what.clone())?;
        let took = awake::since(since);
        let gap = self.ledger.longest_gap(since, Instant::now());
        let verdict = self.ledger.judge(self.cluster.sink.store())?;
        let duplicates = self.quantities.note(&format!("{fault:?}"), &verdict, gap);
        self.quantities.may_repeat += usize::from(fault.may_repeat());
        println!(
            "{:4.0} s {fault:?}: {what}; {:.1} s, longest gap {:.1} s, {duplicates} delivered twice, {} accepted so far",
            began.elapsed().as_secs_f32(),
            took.as_secs_f32(),
            gap.as_secs_f32(),
            self.ledger.accepted(),
        );
        ensure!(verdict.damaged.is_empty(), "damaged: {:?}", verdict.damaged);
        ensure!(
            verdict.phantoms.is_empty(),
            "phantoms: {:?}",
            verdict.phantoms
        );
        self.count_leaders().await
    }

    async fn fault(&mut self, fault: Fault) -> Result<String> {
        match fault {
            Fault::KillNode => self.kill_node().await,
            Fault::KillAll => self.kill_all().await,
            Fault::KillRelay => {
                let name = self.relay()?;
                self.kill(&[name]).await
            }
            Fault::Pause => self.pause_one().await,
            Fault::Restart => self.restart().await,
            Fault::PowerLoss | Fault::TornPowerLoss => {
                self.lose_power(fault == Fault::TornPowerLoss).await
            }
            Fault::DiskFull => self.disk_full().await,
            Fault::DiskExhausted => self.disk_exhausted().await,
            Fault::DiskSlow => self.disk_slow().await,
            Fault::SyncFails => self.sync_fails().await,
            Fault::BitFlip => self.bit_flip().await,
            Fault::Wiped => {
                let name = self.node()?;
                self.cluster.kill(&name)?;
                self.join_anew(&name).await?;
                Ok(name)
            }
            Fault::JoinInterrupted => self.join_interrupted().await,
            Fault::CutOff | Fault::CutOneWay | Fault::Late => self.links(fault).await,
            Fault::CutBridge => self.bridge().await,
            Fault::Flapping => self.flapping().await,
            Fault::PacketsDropped | Fault::PacketsLost | Fault::ConnectionsReset => {
                self.packets(fault).await
            }
            Fault::Replace => self.replace().await,
            Fault::GrowAndShrink => self.grow_and_shrink().await,
            Fault::RudePeer => self.rude_peer().await,
            Fault::BlackHole => self.black_hole().await,
            Fault::ClockJump => self.clock_jumps().await,
        }
    }

    fn node(&mut self) -> Result<String> {
        let names = self.cluster.disk_names();
        names.choose(&mut self.rng).cloned().context("a node")
    }

    fn relay(&mut self) -> Result<String> {
        let relays = &self.cluster.layout.relays;
        let relay = relays.choose(&mut self.rng).context("a relay node")?;
        Ok(relay.name.clone())
    }

    fn anyone(&mut self) -> Result<String> {
        let names = self.cluster.layout.names();
        names.choose(&mut self.rng).cloned().context("a process")
    }

    /// The node that leads a shard, or any node.
    async fn leader_or_any(&mut self) -> Result<String> {
        if self.rng.random_bool(0.5) {
            let shards = u64::from(self.cluster.layout.settings.shards);
            let shard = self.rng.random_range(1..=shards);
            return Ok(self.cluster.leader_and_follower(shard).await?.0);
        }
        self.node()
    }

    /// One node, or all of them.
    fn some(&mut self) -> Result<Vec<String>> {
        if self.rng.random_bool(0.5) {
            return Ok(vec![self.node()?]);
        }
        Ok(self.cluster.disk_names())
    }

    async fn pause(&mut self, milliseconds: std::ops::Range<u64>) {
        let time = self.rng.random_range(milliseconds);
        tokio::time::sleep(Duration::from_millis(time)).await;
    }

    /// Every process is ready, every group has all its copies again, and mail is accepted. A second volume
    /// that goes before the first is replaced everywhere would be the loss of a majority.
    async fn recovered(&mut self) -> Result<()> {
        for name in self.cluster.layout.names() {
            self.cluster.ready(&name, RECOVERY).await?;
        }
        self.settled().await?;
        let now = Instant::now();
        wait::until("mail accepted", RECOVERY, || async {
            let accepted = self.ledger.accepted_since(now);
            ensure!(accepted >= 20, "{accepted}");
            Ok(())
        })
        .await
    }

    async fn settled(&mut self) -> Result<()> {
        let outcome = wait::until("every replica in its place", RECOVERY, || async {
            let nodes = self.cluster.admin_json(&["node", "list"]).await?;
            let settled = nodes.get("settled").and_then(Value::as_bool);
            ensure!(settled == Some(true), "{nodes}");
            Ok(())
        })
        .await;
        self.cluster.all_alive()?;
        outcome
    }

    /// Compares who leads each group with the last look.
    async fn count_leaders(&mut self) -> Result<()> {
        let status = self.cluster.admin_json(&["cluster", "status"]).await?;
        let groups = status.get("groups").and_then(Value::as_array);
        for group in groups.context("groups")? {
            let (id, leader) = (number(group, "group"), number(group, "leader"));
            let before = self.leaders.insert(id, leader);
            let changed = before.is_some_and(|before| before != leader);
            self.quantities.leader_changes += usize::from(changed);
        }
        Ok(())
    }
}
