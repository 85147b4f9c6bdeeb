//! Everything at random, by seed: kills, pauses, power losses, ill disks, damaged volumes, a rude peer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::quantities::Quantities;
use super::traffic::Traffic;
use crate::cluster::Cluster;
use crate::ledger::Ledger;
use crate::links::Weather;
use crate::powerloss::PowerLoss;
use crate::sink::{Act, Counts, Rule, Stage};
use crate::wait;

const RECOVERY: Duration = Duration::from_secs(90);
const DRAIN: Duration = Duration::from_secs(180);

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub time: Duration,
}

/// One fault. In brackets its number in the fault matrix of the design.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// [F1, F2] SIGKILL of one control-plane node.
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
    /// [F13] of one or of all.
    DiskFull,
    /// [F14] of one or of all.
    DiskSlow,
    /// [F15, F20, F22] The node ends, its volume is emptied, it joins as a new one.
    SyncFails,
    /// [F16] in the WAL of a stopped node.
    BitFlip,
    /// [F17, P6, F20, F22]
    Wiped,
    /// [F8] A node that leads, or any other one, is cut off from the other nodes.
    CutOff,
    /// [F9] Nobody hears what it says, or it hears nobody.
    CutOneWay,
    /// [F10] Everything that reaches it or that it sends is late.
    Late,
    /// [F26] The peer refuses for the time being, or hangs up, also behind the dot.
    RudePeer,
}

const ALL: [Fault; 16] = [
    Fault::KillNode,
    Fault::KillAll,
    Fault::KillRelay,
    Fault::Pause,
    Fault::Restart,
    Fault::PowerLoss,
    Fault::TornPowerLoss,
    Fault::DiskFull,
    Fault::DiskSlow,
    Fault::SyncFails,
    Fault::BitFlip,
    Fault::Wiped,
    Fault::CutOff,
    Fault::CutOneWay,
    Fault::Late,
    Fault::RudePeer,
];

struct Run {
    cluster: Cluster,
    ledger: Arc<Ledger>,
    rng: StdRng,
    quantities: Quantities,
}

/// Runs faults for the time of the plan, then heals, drains and counts.
///
/// # Errors
/// When a fault takes no effect or a process does not come back. Lost mail is in the verdict.
pub async fn run(plan: &Plan) -> Result<Quantities> {
    println!("SEED={} {plan:?}", plan.seed);
    let cluster = Cluster::builder().disks().links().start().await?;
    let traffic = Traffic::start(&cluster).await?;
    let began = traffic.began;
    let mut run = Run {
        cluster,
        ledger: Arc::clone(&traffic.ledger),
        rng: StdRng::seed_from_u64(plan.seed),
        quantities: Quantities::default(),
    };
    // Every fault comes once before any comes twice.
    let mut next: Vec<Fault> = Vec::new();
    while began.elapsed() < plan.time {
        let fault = match next.pop() {
            Some(fault) => fault,
            None => {
                next = ALL.to_vec();
                next.shuffle(&mut run.rng);
                continue;
            }
        };
        let since = Instant::now();
        let what = Box::pin(run.fault(fault))
            .await
            .with_context(|| format!("{fault:?} after {:.0?}", began.elapsed()))?;
        run.quantities.took_effect(&format!("{fault:?}"));
        run.recovered()
            .await
            .with_context(|| format!("{fault:?}: {what}"))?;
        println!(
            "{:4.0} s {fault:?}: {what}; {:.1} s, {} accepted so far",
            began.elapsed().as_secs_f32(),
            since.elapsed().as_secs_f32(),
            run.ledger.accepted()
        );
    }
    run.cluster.sink.script().clear();
    traffic.end(run.cluster, run.quantities, DRAIN).await
}

impl Run {
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

    /// Starts a process again and proves that it is another one.
    fn start(&mut self, name: &str, before: u32) -> Result<()> {
        self.cluster.start(name)?;
        ensure!(
            self.cluster.pid(name)? != before,
            "{name} is the same process"
        );
        Ok(())
    }

    async fn kill(&mut self, names: &[String]) -> Result<String> {
        let mut pids = Vec::new();
        for name in names {
            pids.push(self.cluster.pid(name)?);
            self.cluster.kill(name)?;
        }
        self.pause(0..2000).await;
        for (name, pid) in names.iter().zip(pids) {
            self.start(name, pid)?;
        }
        Ok(names.join(", "))
    }

    async fn fault(&mut self, fault: Fault) -> Result<String> {
        match fault {
            Fault::KillNode => {
                let name = self.node()?;
                self.kill(&[name]).await
            }
            Fault::KillAll => {
                let names = self.cluster.disk_names();
                self.kill(&names).await
            }
            Fault::KillRelay => {
                let name = self.relay()?;
                self.kill(&[name]).await
            }
            Fault::Pause => {
                let name = self.anyone()?;
                self.cluster.signal(&name, Signal::SIGSTOP)?;
                self.pause(1000..12_000).await;
                self.cluster.signal(&name, Signal::SIGCONT)?;
                Ok(name)
            }
            Fault::Restart => {
                let name = self.anyone()?;
                let pid = self.cluster.pid(&name)?;
                self.cluster.terminate(&name, RECOVERY).await?;
                self.start(&name, pid)?;
                Ok(name)
            }
            Fault::PowerLoss => self.lose_power(PowerLoss::Clean).await,
            Fault::TornPowerLoss => {
                let seed = self.rng.random();
                let how = if self.rng.random_bool(0.5) {
                    PowerLoss::Torn(seed)
                } else {
                    PowerLoss::Reordered(seed)
                };
                self.lose_power(how).await
            }
            Fault::DiskFull => self.disk_full().await,
            Fault::DiskSlow => self.disk_slow().await,
            Fault::SyncFails => {
                let name = self.node()?;
                let before = self.cluster.disk(&name)?.statistics()?.failed_syncs;
                let from = self.cluster.log(&name).len();
                self.cluster.disk(&name)?.tell("eio sync 1")?;
                self.cluster.ended(&name, from, RECOVERY).await?;
                let after = self.cluster.disk(&name)?.statistics()?.failed_syncs;
                ensure!(after == before + 1, "{after} syncs failed");
                self.join_anew(&name).await?;
                Ok(name)
            }
            Fault::BitFlip => {
                let name = self.node()?;
                self.cluster.kill(&name)?;
                let log = super::damage::largest_log(&self.cluster, &name)?;
                self.cluster.disk(&name)?.tell(&log)?;
                let from = self.cluster.log(&name).len();
                self.cluster.start(&name)?;
                self.cluster.ended(&name, from, RECOVERY).await?;
                self.join_anew(&name).await?;
                Ok(format!("{name}, {log}"))
            }
            Fault::Wiped => {
                let name = self.node()?;
                self.cluster.kill(&name)?;
                self.join_anew(&name).await?;
                Ok(name)
            }
            Fault::CutOff | Fault::CutOneWay | Fault::Late => self.network(fault).await,
            Fault::RudePeer => self.rude_peer().await,
        }
    }

    async fn lose_power(&mut self, how: PowerLoss) -> Result<String> {
        let mut names = self.cluster.disk_names();
        names.shuffle(&mut self.rng);
        names.truncate(self.rng.random_range(1..=3));
        let before = self.cluster.disk_statistics()?;
        self.cluster.lose_power(&names, how)?;
        let after = self.cluster.disk_statistics()?;
        ensure!(after.power_losses > before.power_losses, "no power loss");
        self.pause(0..2000).await;
        for name in &names {
            self.cluster.start(name)?;
        }
        Ok(format!(
            "{how:?} of {}, {} octets gone",
            names.join(", "),
            after.discarded - before.discarded
        ))
    }

    async fn disk_full(&mut self) -> Result<String> {
        let names = self.some()?;
        let from: Vec<usize> = names.iter().map(|n| self.cluster.log(n).len()).collect();
        for name in &names {
            self.cluster.disk(name)?.tell("space 200000000")?;
        }
        wait::until("the disk is noticed to be full", RECOVERY, || async {
            for (name, from) in names.iter().zip(&from) {
                let log = self.cluster.log(name);
                let new = log.get(*from..).unwrap_or_default();
                ensure!(new.contains("crossed the reserve"), "{name}");
            }
            Ok(())
        })
        .await?;
        self.pause(1000..5000).await;
        for name in &names {
            self.cluster.disk(name)?.tell("space unlimited")?;
        }
        Ok(names.join(", "))
    }

    async fn disk_slow(&mut self) -> Result<String> {
        let names = self.some()?;
        let time = self.rng.random_range(200..3000);
        let before = self.cluster.disk_statistics()?.syncs;
        for name in &names {
            self.cluster.disk(name)?.tell(&format!("slow {time}"))?;
        }
        self.pause(4000..10_000).await;
        let after = self.cluster.disk_statistics()?.syncs;
        for name in &names {
            self.cluster.disk(name)?.tell("slow 0")?;
        }
        ensure!(after > before, "nothing was synced meanwhile");
        Ok(format!("{} by {time} ms", names.join(", ")))
    }

    /// The volume is emptied and the node joins as a new one: a snapshot of everything, under load.
    async fn join_anew(&mut self, name: &str) -> Result<()> {
        self.cluster.empty_volume(name)?;
        let from = self.cluster.log(name).len();
        self.cluster.start(name)?;
        wait::until(&format!("{name} joined"), RECOVERY, || async {
            let log = self.cluster.log(name);
            let new = log.get(from..).unwrap_or_default();
            ensure!(new.contains("joined the cluster"), "{new}");
            Ok(())
        })
        .await
    }

    async fn network(&mut self, fault: Fault) -> Result<String> {
        let name = if self.rng.random_bool(0.5) {
            self.cluster.leader_and_follower(1).await?.0
        } else {
            self.node()?
        };
        let late = Weather::Late(Duration::from_millis(self.rng.random_range(50..400)));
        let (out, into) = match fault {
            Fault::CutOff => (Some(Weather::Cut), Some(Weather::Cut)),
            Fault::CutOneWay if self.rng.random_bool(0.5) => (Some(Weather::Cut), None),
            Fault::CutOneWay => (None, Some(Weather::Cut)),
            _ => (Some(late), Some(late)),
        };
        // Relay nodes may be on its side of the cut or not.
        let mut others = self.cluster.disk_names();
        if self.rng.random_bool(0.5) {
            others = self.cluster.layout.names();
        }
        let links = self.cluster.links.as_ref().context("links")?;
        let before = links.touched();
        for other in others.iter().filter(|other| **other != name) {
            if let Some(weather) = out {
                links.set(&name, other, weather);
            }
            if let Some(weather) = into {
                links.set(other, &name, weather);
            }
        }
        let time = Duration::from_millis(self.rng.random_range(3000..12_000));
        tokio::time::sleep(time).await;
        let touched = links.touched() - before;
        links.heal();
        ensure!(touched > 0, "the network was not touched");
        Ok(format!(
            "{name}, out {out:?}, in {into:?}, {time:.1?}, {touched} pieces held or late"
        ))
    }

    async fn rude_peer(&mut self) -> Result<String> {
        let acts = [
            (Stage::Greeting, Act::Reply("421 4.3.2 not now".to_owned())),
            (Stage::StartTls, Act::Reply("454 4.7.0 not now".to_owned())),
            (Stage::Mail, Act::Reply("451 4.3.0 not now".to_owned())),
            (Stage::Rcpt, Act::Reply("450 4.2.1 busy".to_owned())),
            (Stage::Data, Act::Drop),
            (Stage::Dot, Act::Reply("452 4.3.1 full".to_owned())),
            (Stage::Dot, Act::Drop),
            (Stage::Dot, Act::KeepAndDrop),
            (Stage::Mail, Act::Delay(Duration::from_secs(3))),
        ];
        let Some((stage, act)) = acts.choose(&mut self.rng).cloned() else {
            bail!("no act");
        };
        let counts = self.cluster.sink.counts();
        let before = Counts::get(&counts.scripted);
        let said = format!("{stage:?} {act:?}");
        self.cluster.sink.script().add(Rule {
            stage,
            containing: String::new(),
            act,
            times: Some(40),
        });
        self.pause(3000..6000).await;
        self.cluster.sink.script().clear();
        let times = Counts::get(&self.cluster.sink.counts().scripted) - before;
        ensure!(times > 0, "{said} never happened");
        Ok(format!("{said}, {times} times"))
    }

    /// Every process is ready, every group has all its copies again, and mail is accepted. A second volume
    /// that goes before the first is replaced everywhere would be the loss of a majority.
    async fn recovered(&mut self) -> Result<()> {
        for name in self.cluster.layout.names() {
            self.cluster.ready(&name, RECOVERY).await?;
        }
        wait::until("every replica in its place", RECOVERY, || async {
            let nodes = self.cluster.admin_json(&["node", "list"]).await?;
            let settled = nodes.get("settled").and_then(serde_json::Value::as_bool);
            ensure!(settled == Some(true), "{nodes}");
            Ok(())
        })
        .await?;
        let now = Instant::now();
        wait::until("mail accepted", RECOVERY, || async {
            let accepted = self.ledger.accepted_since(now);
            ensure!(accepted >= 20, "{accepted}");
            Ok(())
        })
        .await
    }
}
