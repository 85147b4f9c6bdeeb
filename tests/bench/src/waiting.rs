//! A crowd of messages that have to wait: what it costs those that need not.
//!
//! 1. The crowd: to 1,000 destinations that defer everything, one of them a black hole; nine of ten
//!    messages from one sender.
//! 2. Once the compactions that this left behind are done, a second, empty cluster beside it, and the base load
//!    on each of them in turn, from another sender to another destination: measured is that the crowd is there,
//!    not that it came. In turn, since the machine's speed changes within minutes; what the crowd's cluster
//!    takes of the processors while it has nothing to do is measured by itself.
//! 3. All control-plane nodes killed with -9 and started: how long until the first 250.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use data_encoding::BASE64;
use rustls::ClientConfig;
use sealane_tests::load::Kind;
use sealane_tests::{policy, process};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::cases::Case;
use crate::load::{self, Connection};
use crate::measure;
use crate::report;
use crate::run::{Bed, runtime};
use crate::sink::WAITING;

/// Destinations of the crowd; number 0 is the black hole.
const DESTINATIONS: usize = 1000;
/// Connections that bring the crowd; one of ten belongs to the small sender.
const CONNECTIONS: usize = 100;
/// Octets of a waiting message.
const SIZE: usize = 1024;
const SENDERS: [&str; 2] = ["small", "bulk"];
/// Without progress for this long the run has failed.
const STUCK: Duration = Duration::from_secs(120);
/// How often it is looked whether the nodes are at rest, and octets that all of them together write meanwhile then.
const LOOK: Duration = Duration::from_secs(5);
const IDLE: u64 = 2 << 20;
const RESTART: Duration = Duration::from_secs(300);
/// How long the idle cluster's processors are watched.
const WATCH: Duration = Duration::from_secs(10);
/// Pairs of measurements; which cluster of a pair is first changes.
const PAIRS: usize = 3;

/// What the crowd cost.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    pub(crate) waiting: usize,
    /// The crowd's own acceptance, while its first attempts were made and deferred.
    pub(crate) filled_per_second: f64,
    pub(crate) empty: Vec<report::Figures>,
    pub(crate) crowded: Vec<report::Figures>,
    /// Crowded to empty, the median of each.
    pub(crate) accepted_ratio: f64,
    pub(crate) delivered_ratio: f64,
    /// Processors that the crowd's cluster takes with nothing to do; 1.0 is one of them.
    pub(crate) idle_processors: f64,
    /// Resident octets with all of them waiting, by process.
    pub(crate) memory: BTreeMap<String, u64>,
    /// From the start of killed processes to the first 250, and to all nodes ready; seconds.
    pub(crate) restart_to_first_250: f64,
    pub(crate) restart_to_ready: f64,
}

/// Runs it with `count` waiting messages and `probe` messages of base load before and after.
///
/// # Errors
/// When mail is lost or nothing moves.
pub(crate) fn run(count: usize, probe: usize) -> Result<Figures> {
    let mut bed = Bed::start(3, 8, false)?;
    // Accepts connections into its backlog and never says a word.
    let hole = TcpListener::bind(("127.0.0.1", 0))?;
    let documents = documents(bed.sink.address, hole.local_addr()?);
    bed.main.block_on(bed.cluster.apply_policy(&documents))?;
    let began = Instant::now();
    bed.main.block_on(fill(&bed, count))?;
    let filled = began.elapsed();
    eprintln!("   {count} accepted in {:.0} s", filled.as_secs_f64());
    bed.main.block_on(attempted(&bed, count))?;
    bed.main.block_on(rest(&bed))?;
    let idle_processors = bed.main.block_on(idle(&bed))?;
    let case = Case {
        messages: probe,
        ..Case::base()
    };
    let (empty, crowded) = in_turn(&bed, &case)?;
    let mut memory = BTreeMap::new();
    for name in bed.cluster.layout.names() {
        memory.insert(name.clone(), process::resident(bed.cluster.pid(&name)?)?);
    }
    let waiting = bed.main.block_on(waiting(&bed))?;
    ensure!(
        waiting as usize == count,
        "{waiting} messages wait, {count} were accepted for deferring destinations"
    );
    let (first, ready) = restart(&mut bed)?;
    bed.cluster.pass()?;
    Ok(Figures {
        waiting: count,
        filled_per_second: count as f64 / filled.as_secs_f64(),
        accepted_ratio: ratio(&crowded, &empty, |f| f.accepted_per_second),
        delivered_ratio: ratio(&crowded, &empty, |f| f.delivered_per_second),
        idle_processors,
        empty,
        crowded,
        memory,
        restart_to_first_250: first.as_secs_f64(),
        restart_to_ready: ready.as_secs_f64(),
    })
}

/// The base load on an empty cluster and on the crowd's: the figures of each.
fn in_turn(crowd: &Bed, case: &Case) -> Result<(Vec<report::Figures>, Vec<report::Figures>)> {
    let fresh = Bed::start_beside(true, 3, 8, false)?;
    let (mut empty, mut crowded) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        for turn in 0..2 {
            let on_crowd = (pair + turn) % 2 == 1;
            let (bed, name) = if on_crowd {
                (crowd, "crowded")
            } else {
                (&fresh, "empty")
            };
            let figures = bed.measure(case)?;
            eprintln!("   {name}: {}", figures.line());
            if on_crowd {
                crowded.push(figures);
            } else {
                empty.push(figures);
            }
        }
    }
    fresh.cluster.pass()?;
    Ok((empty, crowded))
}

/// Of one figure.
pub(crate) fn median(figures: &[report::Figures], of: impl Fn(&report::Figures) -> f64) -> f64 {
    let mut all: Vec<f64> = figures.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

fn ratio(
    above: &[report::Figures],
    below: &[report::Figures],
    of: impl Fn(&report::Figures) -> f64,
) -> f64 {
    median(above, &of) / median(below, &of)
}

/// Processors that all its processes take together while nobody asks anything of them.
async fn idle(bed: &Bed) -> Result<f64> {
    let spent = || -> Result<f64> {
        let pids = bed.pids()?;
        pids.values()
            .map(|pid| Ok(measure::usage(*pid)?.cpu_seconds))
            .sum()
    };
    let (began, before) = (Instant::now(), spent()?);
    tokio::time::sleep(WATCH).await;
    let taken = (spent()? - before) / began.elapsed().as_secs_f64();
    eprintln!("   idle: {taken:.2} processors");
    Ok(taken)
}

fn documents(sink: SocketAddr, hole: SocketAddr) -> String {
    let mut text = policy::demo(sink, "[2s]");
    for sender in SENDERS {
        text += &format!(
            "---\nkind: Submitter\nname: {sender}\npassword: {}\nsenders: [\"*\"]\n",
            policy::PASSWORD
        );
    }
    for (name, next) in [
        (format!(".{WAITING}"), sink),
        (format!("d0.{WAITING}"), hole),
    ] {
        text += &format!(
            "---\nkind: Destination\nname: \"{name}\"\nroute: {{ host: {}, port: {} }}\n\
             tls: {{ level: encrypt }}\nretry: {{ delays: [4h], lifetime: 5d, tlsLifetime: 24h }}\n\
             limits: {{ connections: 20, messagesPerConnection: 100 }}\n",
            next.ip(),
            next.port()
        );
    }
    text
}

/// What the connections that bring the crowd share.
struct Crowd {
    targets: Vec<SocketAddr>,
    tls: Arc<ClientConfig>,
    body: Vec<u8>,
    /// Numbers are given out per sender, so that nine of ten messages are the bulk sender's.
    next: [AtomicUsize; 2],
    count: usize,
}

async fn fill(bed: &Bed, count: usize) -> Result<()> {
    let crowd = Arc::new(Crowd {
        targets: bed.targets(Kind::Submission),
        tls: sealane_tests::tls::blind_client()?,
        body: load::body(SIZE),
        next: Default::default(),
        count,
    });
    let loads = runtime("load", 1)?;
    let mut workers = JoinSet::new();
    for number in 0..CONNECTIONS {
        workers.spawn_on(bring(Arc::clone(&crowd), number), loads.handle());
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    loads.shutdown_background();
    Ok(())
}

/// Messages per sender.
fn shares(count: usize) -> [usize; 2] {
    [count / 10, count - count / 10]
}

async fn bring(crowd: Arc<Crowd>, number: usize) -> Result<()> {
    let sender = usize::from(!number.is_multiple_of(10));
    let name = SENDERS[sender];
    let share = crowd.count / 10;
    let most = if sender == 0 {
        share
    } else {
        crowd.count - share
    };
    let target = crowd.targets[number % crowd.targets.len()];
    let mut connection = Connection::open(target, &crowd.tls).await?;
    let login = BASE64.encode(format!("\0{name}\0{}", policy::PASSWORD).as_bytes());
    connection
        .send(format!("AUTH PLAIN {login}\r\n").as_bytes())
        .await?;
    connection.expect(b"235").await?;
    loop {
        let n = crowd.next[sender].fetch_add(1, Relaxed);
        if n >= most {
            connection.quit().await;
            return Ok(());
        }
        let domain = n % DESTINATIONS;
        let envelope = format!(
            "MAIL FROM:<{name}@client.example>\r\nRCPT TO:<m{n}@d{domain}.{WAITING}>\r\nDATA\r\n"
        );
        connection.send(envelope.as_bytes()).await?;
        connection.expect(b"250").await?;
        connection.expect(b"250").await?;
        connection.expect(b"354").await?;
        connection.send(&crowd.body).await?;
        connection.expect(b"250").await?;
    }
}

/// Waits until every message but the black hole's was attempted once.
async fn attempted(bed: &Bed, count: usize) -> Result<()> {
    // Every sender begins with destination 0.
    let holed: usize = shares(count).map(|n| n.div_ceil(DESTINATIONS)).iter().sum();
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let now = bed.sink.deferred();
        if now >= (count - holed) as u64 {
            return Ok(());
        }
        if now > last {
            (last, since) = (now, Instant::now());
        }
        ensure!(
            since.elapsed() < STUCK,
            "{now} of {count} attempted, then nothing for {STUCK:?}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until no node writes more than an idle one does.
async fn rest(bed: &Bed) -> Result<()> {
    let written = || -> Result<u64> {
        let pids = bed.pids()?;
        pids.values()
            .map(|pid| Ok(measure::usage(*pid)?.written))
            .sum()
    };
    let began = Instant::now();
    let mut before = written()?;
    while began.elapsed() < STUCK {
        tokio::time::sleep(LOOK).await;
        let now = written()?;
        if now - before < IDLE {
            break;
        }
        before = now;
    }
    eprintln!("   at rest after {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

async fn waiting(bed: &Bed) -> Result<u64> {
    let status = bed.cluster.admin_json(&["queue", "list"]).await?;
    let total = status.get("totalWaiting").or(status.get("total_waiting"));
    total
        .and_then(serde_json::Value::as_u64)
        .with_context(|| format!("total waiting in {status}"))
}

/// Kills and starts every control-plane node; until the first 250, and until all are ready.
fn restart(bed: &mut Bed) -> Result<(Duration, Duration)> {
    let nodes: Vec<String> = bed
        .cluster
        .layout
        .control_planes
        .iter()
        .map(|n| n.name.clone())
        .collect();
    for name in &nodes {
        bed.cluster.kill(name)?;
    }
    let began = Instant::now();
    for name in &nodes {
        bed.cluster.start(name)?;
    }
    let target = *bed.targets(Kind::Mx).first().context("no relay")?;
    let first = bed.main.block_on(async {
        loop {
            if load::offer_one(target, policy::SERVED).await.is_ok() {
                return anyhow::Ok(began.elapsed());
            }
            ensure!(
                began.elapsed() < RESTART,
                "nothing accepted after {RESTART:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })?;
    for name in &nodes {
        let ready = bed.cluster.ready(name, RESTART);
        bed.main.block_on(ready)?;
    }
    Ok((first, began.elapsed()))
}
