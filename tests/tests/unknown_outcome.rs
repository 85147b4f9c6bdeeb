//! An enqueue whose outcome is unknown: leaders die between commit and reply, many times. 451 is never
//! said for a message that is delivered later, 250 never for one that is not. Nobody offers a message
//! twice here, so that every arrival has one answer. `SEED=n` repeats a run's choice of faults.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sealane_tests::cluster::{Cluster, http_get, number};
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, AT_THE_DOT, Load};
use sealane_tests::wait;

/// Messages under way at any time, so that every kill finds some between commit and reply.
const CONNECTIONS: usize = 60;
/// Deliveries that one relay node may have in the air (its default credits).
const IN_FLIGHT: usize = 100;
/// Processes killed with -9 at least.
const KILLS: usize = 16;
/// Faults are made for this long at most.
const LONGEST: Duration = Duration::from_secs(90);
/// From the final dot to silence; the shortest that a relay node may be given.
const ENQUEUE_TIMEOUT: &str = "8s";

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The leader of some shard, started again at once.
    Kill,
    /// It is stopped, believed dead, and comes back with what it had in its hands.
    Pause,
    /// Two of three, for long enough that relay nodes give up and withdraw.
    KillTwo,
    /// Two of three stand still beyond every deadline: nobody can say what became of the message.
    PauseTwo,
    /// The leader stands still, so that answers pile up behind commits, and dies before it can send them.
    PauseAndKill,
}

const ROUND: [Fault; 8] = [
    Fault::Kill,
    Fault::PauseAndKill,
    Fault::KillTwo,
    Fault::Kill,
    Fault::Pause,
    Fault::PauseAndKill,
    Fault::PauseTwo,
    Fault::Kill,
];

struct Faults {
    rng: StdRng,
    kills: usize,
    pauses: usize,
    /// What each control-plane node counted until it was killed, and what it counts now.
    repeated: BTreeMap<String, (u64, u64)>,
}

impl Faults {
    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(from..to))
    }

    /// Asks every node how many enqueues it was asked about again.
    async fn count(&mut self, cluster: &Cluster) {
        for node in &cluster.layout.control_planes {
            let Ok(page) = http_get(node.metrics, "/metrics").await else {
                continue;
            };
            let line = page
                .lines()
                .find_map(|line| line.strip_prefix("sealane_enqueues_repeated_total "));
            if let Some(value) = line.and_then(|text| text.trim().parse().ok()) {
                self.repeated.entry(node.name.clone()).or_default().1 = value;
            }
        }
    }

    fn repeated(&self) -> u64 {
        self.repeated
            .values()
            .map(|(before, now)| before + now)
            .sum()
    }

    async fn kill(&mut self, cluster: &mut Cluster, name: &str) -> Result<()> {
        self.kills += 1;
        let counted = self.repeated.entry(name.to_owned()).or_default();
        counted.0 += std::mem::take(&mut counted.1);
        cluster.kill(name)
    }

    async fn make(&mut self, cluster: &mut Cluster, fault: Fault) -> Result<String> {
        self.count(cluster).await;
        let shard = self.rng.random_range(1..=8);
        let (leader, other) = wait::until("a leader", Duration::from_secs(30), || {
            cluster.leader_and_follower(shard)
        })
        .await?;
        match fault {
            Fault::Kill => {
                self.kill(cluster, &leader).await?;
                tokio::time::sleep(self.millis(0, 400)).await;
                cluster.start(&leader)?;
            }
            Fault::Pause => {
                self.pauses += 1;
                cluster.signal(&leader, Signal::SIGSTOP)?;
                tokio::time::sleep(self.millis(1500, 3000)).await;
                cluster.signal(&leader, Signal::SIGCONT)?;
            }
            Fault::PauseAndKill => {
                self.pauses += 1;
                // Followers go on to acknowledge what they hold; the leader never says so.
                cluster.signal(&leader, Signal::SIGSTOP)?;
                tokio::time::sleep(self.millis(5, 150)).await;
                self.kill(cluster, &leader).await?;
                cluster.start(&leader)?;
            }
            Fault::KillTwo => {
                self.kill(cluster, &leader).await?;
                self.kill(cluster, &other).await?;
                tokio::time::sleep(self.millis(3500, 5500)).await;
                cluster.start(&other)?;
                cluster.start(&leader)?;
            }
            Fault::PauseTwo => {
                self.pauses += 2;
                cluster.signal(&leader, Signal::SIGSTOP)?;
                cluster.signal(&other, Signal::SIGSTOP)?;
                tokio::time::sleep(self.millis(9000, 10_000)).await;
                cluster.signal(&other, Signal::SIGCONT)?;
                cluster.signal(&leader, Signal::SIGCONT)?;
            }
        }
        Ok(leader)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_a_lie_when_leaders_die_between_commit_and_reply() -> Result<()> {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    println!("SEED={seed}");
    let mut cluster = Cluster::builder()
        .settings(|s| s.enqueue_timeout = Some(ENQUEUE_TIMEOUT.to_owned()))
        .start()
        .await?;
    let ledger = Arc::new(Ledger::default());
    let load = load::start(
        Load::new(cluster.all_targets(), CONNECTIONS).once(),
        &ledger,
    );
    let mut faults = Faults {
        rng: StdRng::seed_from_u64(seed),
        kills: 0,
        pauses: 0,
        repeated: BTreeMap::new(),
    };
    let began = Instant::now();
    for (round, fault) in ROUND.into_iter().cycle().enumerate() {
        // Mail flows again: what is under way at the fault is in every state.
        let before = Instant::now();
        wait::until("mail accepted", Duration::from_secs(40), || async {
            let count = ledger.accepted_since(before);
            ensure!(count >= 40, "{count} accepted");
            Ok(())
        })
        .await?;
        let leader = faults.make(&mut cluster, fault).await?;
        println!(
            "{round}: {fault:?} {leader}, {:.1} s, {} accepted so far",
            began.elapsed().as_secs_f32(),
            ledger.accepted()
        );
        if faults.kills >= KILLS && round + 1 >= ROUND.len() || began.elapsed() >= LONGEST {
            break;
        }
    }
    let lasted = began.elapsed();
    for name in cluster.layout.names() {
        cluster.ready(&name, Duration::from_secs(60)).await?;
    }
    load.stop().await;
    drained(&cluster).await?;
    faults.count(&cluster).await;

    let verdict = ledger
        .settle(cluster.sink.store(), Duration::from_secs(10))
        .await?;
    let at_the_dot: usize = verdict
        .refusals
        .iter()
        .filter(|(text, _)| text.starts_with(AT_THE_DOT))
        .map(|(_, times)| times)
        .sum();
    println!(
        "kills={} pauses={} in {lasted:.1?}; enqueues durable before their answer was lost: {}; 4xx at the final dot: \
         {at_the_dot}; closed without a reply: {}, of which arrived: {}\n{verdict}",
        faults.kills,
        faults.pauses,
        faults.repeated(),
        verdict.unknown,
        verdict.unanswered_arrivals
    );
    verdict.holds()?;
    ensure!(
        verdict.permanent == 0,
        "a fault of ours became a 5xx: {verdict}"
    );
    ensure!(faults.kills >= 15, "only {} kills", faults.kills);
    let bound = verdict.unknown + (faults.kills + faults.pauses) * IN_FLIGHT;
    ensure!(
        verdict.duplicates <= bound,
        "more than {bound} duplicates: {verdict}"
    );
    // The window was hit: committed, but the answer did not come; and both ends of not knowing were reached.
    ensure!(
        faults.repeated() > 0,
        "no kill fell between commit and reply"
    );
    ensure!(at_the_dot > 0, "nothing was ever withdrawn");
    ensure!(verdict.unknown > 0, "no outcome was ever unknown");
    cluster.pass()
}

/// Nothing waits, nothing is on its way.
async fn drained(cluster: &Cluster) -> Result<()> {
    wait::until("the queue drained", Duration::from_secs(120), || async {
        let list = cluster
            .admin_json(&["queue", "list", "--limit", "3"])
            .await?;
        let waiting = list.get("totalWaiting").context("totalWaiting")?;
        ensure!(number(&list, "totalWaiting") == 0, "{waiting} wait: {list}");
        Ok(())
    })
    .await
}
