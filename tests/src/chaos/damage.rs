//! One node's volume is damaged while the node is stopped, or an old copy of it is put back.
//!
//! Mail waits in the queue the whole time: what the damage takes would be missing at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::quantities::Quantities;
use crate::cluster::{Cluster, number};
use crate::ledger::Ledger;
use crate::load::{self, Load};
use crate::sink::{Act, Rule, Stage};
use crate::wait;

const LONG: Duration = Duration::from_secs(90);
/// Damage that nobody reads at the start is found when it is read; how long that may take.
const UNREAD: Duration = Duration::from_secs(40);

/// What happens to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    WalMiddle,
    /// The last synced record, after an orderly stop.
    WalTail,
    /// The last synced record, after SIGKILL.
    WalTailAfterKill,
    /// A table of messages.
    Table,
    /// The table with the votes.
    Vote,
    Blob,
    Manifest,
    /// All of the high-water mark.
    HighWater,
    /// A sync fails once, in a running node.
    FailedSync,
    /// An old copy of the whole volume is put back.
    OldImage,
    /// An old copy of the database is put back; the high-water mark stays.
    OldDatabase,
}

/// What the product has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Demand {
    /// The node ends at its start and says what to do.
    Refuse,
    /// At the latest when somebody reads what is damaged.
    RefuseWhenRead,
    /// Refuse if the record was a promise; go on without it if not.
    Either,
}

impl Damage {
    pub const ALL: [Self; 11] = [
        Self::WalMiddle,
        Self::WalTail,
        Self::WalTailAfterKill,
        Self::Table,
        Self::Vote,
        Self::Blob,
        Self::Manifest,
        Self::HighWater,
        Self::FailedSync,
        Self::OldDatabase,
        Self::OldImage,
    ];

    fn demand(self) -> Demand {
        match self {
            Self::Table | Self::Blob => Demand::RefuseWhenRead,
            Self::WalTail | Self::WalTailAfterKill => Demand::Either,
            _ => Demand::Refuse,
        }
    }
}

/// Four nodes, one of them a spare: whoever is damaged is replaced by the spare, and is the spare after that.
///
/// # Errors
/// When a damaged node votes, does not say what to do, or cannot be replaced.
pub async fn run(damages: &[Damage]) -> Result<Quantities> {
    let mut cluster = Cluster::builder()
        .control_planes(4)
        .founders(3)
        .disks()
        .start()
        .await?;
    cluster.start("control-plane-4")?;
    state(&cluster, "control-plane-4", "spare").await?;
    let began = Instant::now();
    let ledger = Arc::new(Ledger::default());
    let mut quantities = Quantities::default();
    let mut members = vec!["control-plane-1", "control-plane-2", "control-plane-3"];
    let mut spare = "control-plane-4";
    let mut failures = Vec::new();
    for damage in damages {
        hold(&cluster);
        mail(&cluster, &ledger).await;
        let victim = members.remove(0);
        let outcome = Box::pin(one(&mut cluster, &ledger, victim, *damage)).await;
        match outcome {
            Ok(said) => println!("{damage:?} on {victim}: {said}"),
            Err(error) => {
                println!("{damage:?} on {victim}: FAILED: {error:#}");
                failures.push(format!("{damage:?}: {error:#}"));
                let _ended = cluster.kill(victim);
            }
        }
        quantities.took_effect(&format!("{damage:?}"));
        if cluster.pid(victim).is_ok() {
            members.push(victim);
            continue;
        }
        heal(&mut cluster, victim, spare)
            .await
            .with_context(|| format!("healing after {damage:?}"))?;
        members.push(spare);
        spare = victim;
    }
    cluster.sink.script().clear();
    quantities.verdict = ledger.settle(cluster.sink.store(), LONG).await?;
    quantities.disks = cluster.disk_statistics()?;
    quantities.seconds = began.elapsed().as_secs_f32();
    quantities.explained = quantities.verdict.unknown + 100 * damages.len();
    println!("{quantities}");
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    if quantities.hold().is_ok() {
        cluster.pass()?;
    }
    Ok(quantities)
}

/// From now on nothing is delivered.
pub(super) fn hold(cluster: &Cluster) {
    cluster.sink.script().clear();
    cluster.sink.script().add(Rule {
        stage: Stage::Mail,
        containing: String::new(),
        act: Act::Reply("451 4.3.0 not now".to_owned()),
        times: None,
    });
}

async fn mail(cluster: &Cluster, ledger: &Arc<Ledger>) {
    load::run(Load::new(cluster.all_targets(), 10).messages(100), ledger).await;
    let large = Load::new(cluster.all_targets(), 2)
        .size((50 << 10)..=(300 << 10))
        .messages(10);
    load::run(large, ledger).await;
}

/// Damages the volume and holds the node to what is demanded; gives what it said.
async fn one(
    cluster: &mut Cluster,
    ledger: &Arc<Ledger>,
    victim: &str,
    damage: Damage,
) -> Result<String> {
    let scratch = tempfile::tempdir()?;
    let stop = Duration::from_secs(30);
    match damage {
        Damage::OldImage | Damage::OldDatabase => {
            cluster.terminate(victim, stop).await?;
            cluster.copy_volume(victim, scratch.path())?;
            cluster.start(victim)?;
            cluster.ready(victim, LONG).await?;
            // It has to have promised something that the copy does not hold.
            let mark = cluster.layout.data(victim).join("high-water");
            let began = fs::read(&mark)?;
            wait::until("the node has synced something new", LONG, || async {
                mail(cluster, ledger).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                ensure!(
                    fs::read(&mark)? != began,
                    "its high-water mark is as it was"
                );
                Ok(())
            })
            .await?;
            cluster.kill(victim)?;
        }
        Damage::Table | Damage::Vote | Damage::Blob => {
            // What the WAL holds becomes tables and blob files at the next start.
            cluster.terminate(victim, stop).await?;
            cluster.start(victim)?;
            cluster.ready(victim, LONG).await?;
            cluster.terminate(victim, stop).await?;
        }
        Damage::WalTailAfterKill | Damage::WalMiddle => {
            tokio::time::sleep(Duration::from_secs(2)).await;
            cluster.kill(victim)?;
        }
        Damage::FailedSync => {
            cluster.disk(victim)?.tell("eio sync 1")?;
            let from = cluster.log_length(victim);
            mail(cluster, ledger).await;
            cluster.ended(victim, from, LONG).await?;
        }
        Damage::WalTail | Damage::Manifest | Damage::HighWater => {
            cluster.terminate(victim, stop).await?;
        }
    }
    let what = harm(cluster, victim, damage, scratch.path())?;
    let from = cluster.log_length(victim);
    cluster.start(victim)?;
    let said = match damage.demand() {
        Demand::Either => match cluster.ended(victim, from, Duration::from_secs(8)).await {
            Ok(said) => said,
            Err(_) => {
                cluster.ready(victim, LONG).await?;
                return Ok(format!("{what}; no promise is missing, it goes on"));
            }
        },
        Demand::Refuse => cluster.ended(victim, from, Duration::from_secs(20)).await?,
        _ => match cluster.ended(victim, from, UNREAD / 2).await {
            Ok(said) => said,
            Err(_) => {
                // What this node leads is delivered: it reads the bodies.
                cluster.sink.script().clear();
                cluster
                    .ended(victim, from, UNREAD)
                    .await
                    .context("damage was never noticed")?
            }
        },
    };
    instructs(&said)?;
    // Started again it refuses again, and says the same.
    let from = cluster.log_length(victim);
    cluster.start(victim)?;
    let again = cluster.ended(victim, from, Duration::from_secs(20)).await?;
    instructs(&again).context("the second time")?;
    let line = said
        .lines()
        .rfind(|line| line.contains("sealane node replace"))
        .unwrap_or_default();
    Ok(format!("{what}; it said: {line}"))
}

/// Whether a node that refuses says what to do.
fn instructs(said: &str) -> Result<()> {
    ensure!(
        said.contains("sealane node replace"),
        "it does not say what to do: {said}"
    );
    Ok(())
}

fn harm(cluster: &Cluster, victim: &str, damage: Damage, copy: &Path) -> Result<String> {
    let db = cluster.layout.data(victim).join("db");
    let (file, offset) = match damage {
        Damage::WalMiddle => largest(&db, "log", "")?.at(|size| size / 2),
        Damage::WalTail | Damage::WalTailAfterKill => {
            largest(&db, "log", "")?.at(|size| size.saturating_sub(12))
        }
        Damage::Table => largest(&db, "sst", "namesm")?.at(|_| 40),
        Damage::Vote => largest(&db, "sst", "nameraft_meta")?.at(|_| 20),
        Damage::Blob => {
            // Everywhere, so that it does not matter which body is read.
            let mut count = 0;
            for file in files(&db)? {
                if file.path.extension().is_none_or(|one| one != "blob") {
                    continue;
                }
                let name = file.path.strip_prefix(cluster.layout.data(victim))?;
                for at in (100..file.size.saturating_sub(100)).step_by(8 << 10) {
                    let line = format!("flip {} {at} 3", name.display());
                    cluster.disk(victim)?.tell(&line)?;
                    count += 1;
                }
            }
            ensure!(count > 0, "no blob file");
            return Ok(format!("{count} octets of blob files"));
        }
        Damage::Manifest => {
            let found = files(&db)?.into_iter().find(|file| {
                let name = file.path.file_name().unwrap_or_default();
                name.to_string_lossy().starts_with("MANIFEST")
            });
            found.context("MANIFEST")?.at(|size| size / 2)
        }
        Damage::FailedSync => {
            let counted = cluster.disk(victim)?.statistics()?;
            ensure!(counted.failed_syncs == 1, "{counted:?}");
            return Ok("one sync failed, and the node ended".to_owned());
        }
        Damage::HighWater => {
            let length = fs::metadata(cluster.layout.data(victim).join("high-water"))?.len();
            let slots = [20, 32_788, 65_556].into_iter().filter(|at| *at < length);
            for at in slots {
                cluster
                    .disk(victim)?
                    .tell(&format!("flip high-water {at} 3"))?;
            }
            return Ok("high-water, all slots".to_owned());
        }
        Damage::OldImage => {
            cluster.put_volume(victim, copy)?;
            return Ok("the whole old volume is back".to_owned());
        }
        Damage::OldDatabase => {
            let mark = cluster.layout.data(victim).join("high-water");
            let kept = fs::read(&mark)?;
            cluster.put_volume(victim, copy)?;
            fs::write(&mark, kept)?;
            return Ok("the old database is back".to_owned());
        }
    };
    let data = cluster.layout.data(victim);
    let path = file.strip_prefix(&data)?.display().to_string();
    cluster
        .disk(victim)?
        .tell(&format!("flip {path} {offset} 3"))?;
    Ok(format!("{path} at {offset}"))
}

/// The command that flips a bit in the middle of a stopped node's WAL.
pub(super) fn largest_log(cluster: &Cluster, name: &str) -> Result<String> {
    let data = cluster.layout.data(name);
    let (file, offset) = largest(&data.join("db"), "log", "")?.at(|size| size / 2);
    Ok(format!(
        "flip {} {offset} 3",
        file.strip_prefix(&data)?.display()
    ))
}

struct Found {
    path: PathBuf,
    size: u64,
}

impl Found {
    fn at(self, place: impl FnOnce(u64) -> u64) -> (PathBuf, u64) {
        let offset = place(self.size);
        (self.path, offset)
    }
}

fn files(folder: &Path) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        all.push(Found {
            path: entry.path(),
            size: entry.metadata()?.len(),
        });
    }
    Ok(all)
}

/// The largest file with this ending that contains `text`.
fn largest(folder: &Path, ending: &str, text: &str) -> Result<Found> {
    let mut all = files(folder)?;
    all.retain(|file| file.path.extension().is_some_and(|one| one == ending));
    all.sort_by_key(|file| std::cmp::Reverse(file.size));
    for file in all {
        let octets = fs::read(&file.path)?;
        let found = text.is_empty()
            || octets
                .windows(text.len())
                .any(|part| part == text.as_bytes());
        if found && file.size > 100 {
            return Ok(file);
        }
    }
    bail!("no {ending} file with {text:?} in {}", folder.display())
}

/// The spare takes the places of the damaged node, which joins again with an empty volume.
async fn heal(cluster: &mut Cluster, victim: &str, spare: &str) -> Result<()> {
    let args = ["node", "replace", victim, "--with", spare];
    cluster.admin_json(&args).await?;
    state(cluster, spare, "active").await?;
    cluster.empty_volume(victim)?;
    cluster.start(victim)?;
    state(cluster, victim, "spare").await?;
    cluster.ready(victim, LONG).await?;
    cluster.ready(spare, LONG).await
}

/// Waits until the newest node of this name is in this state.
async fn state(cluster: &Cluster, name: &str, wanted: &str) -> Result<()> {
    wait::until(&format!("{name} {wanted}"), LONG, || async {
        let answer = cluster.admin_json(&["node", "list"]).await?;
        let list = answer.get("nodes").and_then(Value::as_array);
        let text = |node: &Value, key: &str| {
            let text = node.get(key).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let newest = list
            .context("nodes")?
            .iter()
            .filter(|node| text(node, "name") == name)
            .max_by_key(|node| number(node, "id"))
            .with_context(|| format!("{name} is not known"))?;
        let now = text(newest, "state");
        ensure!(now == wanted, "{name} is {now}");
        Ok(())
    })
    .await
}
