//! A backup under load, restored into a fresh cluster: every waiting message is there with its attempts,
//! next retry and expiry. A damaged backup is refused before anything is written.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sealane_tests::cluster::{Cluster, number};
use sealane_tests::layout::Layout;
use sealane_tests::ledger::{Ledger, Offer, Outcome};
use sealane_tests::load::{self, Kind, Load};
use sealane_tests::policy::SERVED;
use sealane_tests::sink::{Act, Rule, Sink, SinkConfig, Stage};
use sealane_tests::{tools, wait};
use serde_json::Value;

const MIB: usize = 1 << 20;
const FROM: &str = "backup@client.example";

/// A sink that outlives clusters: the policy that is restored names it.
async fn sink(folder: &Path) -> Result<Sink> {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let sink = Sink::start(SinkConfig::at(anywhere, folder.join("sink"))).await?;
    let rule = |stage, containing: &str, act| Rule {
        stage,
        containing: containing.to_owned(),
        act,
        times: None,
    };
    let busy = Act::Reply("450 4.2.1 mailbox busy".to_owned());
    sink.script().add(rule(Stage::Rcpt, "deferred", busy));
    let long = Act::Delay(Duration::from_secs(600));
    sink.script().add(rule(Stage::Dot, "stuck", long));
    Ok(sink)
}

async fn offer(cluster: &Cluster, ledger: &Ledger, to: &[&str], size: usize) -> Result<()> {
    let token = load::token();
    let to: Vec<String> = to.iter().map(|local| format!("{local}@{SERVED}")).collect();
    let content = load::content(&token, FROM, &to, size);
    ledger.offer(Offer::of(&token, FROM, &to, &content));
    let target = cluster.targets(Kind::Mx)[0];
    let mut client = load::connect(target, "", "")
        .await?
        .patience(Duration::from_secs(60));
    let reply = client.transaction(FROM, &to, &content).await?;
    ensure!(reply.code == 250, "{reply}");
    ledger.outcome(&token, Outcome::Accepted);
    client.quit().await;
    Ok(())
}

/// Deliverable to one and not to another, deferred, large, held, leased.
const PARKED: usize = SMALL + HALF + LARGE + STUCK;
const SMALL: usize = 24;
const HALF: usize = 5;
const LARGE: usize = 4;
const STUCK: usize = 2;

/// Waiting messages of [`FROM`], as `queue list` says it.
async fn waiting(cluster: &Cluster) -> Result<Vec<Value>> {
    let list = cluster
        .admin_json(&["queue", "list", "--limit", "1000"])
        .await?;
    let all = list
        .get("messages")
        .and_then(Value::as_array)
        .context("messages")?;
    let ours = |m: &&Value| m.get("reversePath").and_then(Value::as_str) == Some(FROM);
    Ok(all.iter().filter(ours).cloned().collect())
}

/// The same as `queue show` says it, by id.
async fn listing(cluster: &Cluster) -> Result<BTreeMap<String, Value>> {
    let mut out = BTreeMap::new();
    for m in waiting(cluster).await? {
        let id = m.get("id").and_then(Value::as_str).context("id")?;
        // It may have been delivered meanwhile.
        if let Ok(shown) = cluster.admin_json(&["queue", "show", id]).await {
            out.insert(id.to_owned(), shown);
        }
    }
    Ok(out)
}

/// What a backup keeps of a message: all but where its body is and who holds its lease under which epoch.
fn kept(shown: &Value) -> Value {
    let mut shown = shown.clone();
    let recipients = shown
        .pointer_mut("/message/recipients")
        .and_then(Value::as_array_mut);
    for r in recipients
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        r.remove("leaseHolder");
        r.remove("epoch");
    }
    shown
}

/// Of a message as it is listed, or shown.
fn recipients(m: &Value) -> impl Iterator<Item = &Value> {
    let all = m
        .pointer("/message/recipients")
        .or_else(|| m.get("recipients"));
    all.and_then(Value::as_array).into_iter().flatten()
}

fn is(recipient: &Value, state: &str) -> bool {
    recipient.get("state").and_then(Value::as_str) == Some(state)
}

fn to(shown: &Value, local: &str) -> bool {
    recipients(shown).any(|r| {
        let mailbox = r.get("mailbox").and_then(Value::as_str).unwrap_or_default();
        mailbox.starts_with(local)
    })
}

/// The CLI, to its end.
async fn cli(layout: &Layout, args: &[&str]) -> Result<Output> {
    let mut command = layout.admin();
    command.args(args).stdin(Stdio::null());
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

/// The CLI has to fail and to say this.
async fn refused(layout: &Layout, args: &[&str], saying: &str) -> Result<()> {
    let output = cli(layout, args).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{args:?} was not refused: {said}");
    ensure!(
        said.contains(saying),
        "{args:?} does not say {saying:?}: {said}"
    );
    Ok(())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// Copies of a backup with one octet flipped, or cut.
fn damage(backup: &Path) -> Result<Vec<PathBuf>> {
    let whole = fs::read(backup)?;
    let n = whole.len();
    let mut copies = Vec::new();
    for at in [
        0,
        9,
        13,
        40,
        n / 7,
        n / 3,
        n / 2,
        n * 3 / 4,
        n - 60,
        n - 20,
        n - 1,
    ] {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        copies.push((format!("flipped-{at}"), flipped));
    }
    for length in [0, 11, n / 2, n - 1] {
        copies.push((format!("cut-{length}"), whole[..length].to_vec()));
    }
    copies
        .into_iter()
        .map(|(name, octets)| {
            let path = backup.with_extension(name);
            fs::write(&path, octets)?;
            Ok(path)
        })
        .collect()
}

async fn untouched(cluster: &Cluster) -> Result<()> {
    let status = cluster.admin_json(&["cluster", "status"]).await?;
    ensure!(
        number(&status, "policyRevision") == 0,
        "a policy appeared: {status}"
    );
    let list = cluster.admin_json(&["queue", "list"]).await?;
    ensure!(
        number(&list, "totalWaiting") == 0,
        "messages appeared: {list}"
    );
    Ok(())
}

/// Deferred, half delivered, large, held and leased mail; gives what is parked for good.
async fn park(cluster: &Cluster, ledger: &Ledger) -> Result<BTreeMap<String, Value>> {
    for n in 0..SMALL {
        offer(cluster, ledger, &[&format!("deferred{n}")], 2000 + n * 50).await?;
    }
    for n in 0..HALF {
        let (ok, not) = (format!("fine{n}"), format!("deferred-too{n}"));
        offer(cluster, ledger, &[&ok, &not], 3000).await?;
    }
    for n in 0..LARGE {
        offer(
            cluster,
            ledger,
            &[&format!("deferred-large{n}")],
            3 * MIB + n * 1000,
        )
        .await?;
    }
    for _ in 0..STUCK {
        offer(cluster, ledger, &["stuck"], 1500).await?;
    }
    wait::until("everything parked", Duration::from_secs(60), || async {
        let now = waiting(cluster).await?;
        ensure!(now.len() == PARKED, "{} wait", now.len());
        for m in &now {
            let due = |r: &Value| is(r, "deferred") && number(r, "attempts") == 3;
            let settled = recipients(m).all(|r| due(r) || is(r, "delivered"));
            let leased = to(m, "stuck") && recipients(m).all(|r| is(r, "leased"));
            ensure!(settled || leased, "{m}");
        }
        Ok(())
    })
    .await?;
    let all = listing(cluster).await?;
    let held = all
        .iter()
        .filter(|(_, m)| !to(m, "stuck"))
        .map(|(id, _)| id.as_str())
        .take(3);
    let held: Vec<&str> = held.collect();
    change(cluster, &["hold", "--reason", "a look"], &held).await?;
    listing(cluster).await
}

async fn change(cluster: &Cluster, what: &[&str], ids: &[&str]) -> Result<()> {
    let args = [&["queue"], what, ids].concat();
    let done = cluster.admin_json(&args).await?;
    let changed = done
        .get("changed")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    ensure!(changed == ids.len(), "{done}");
    Ok(())
}

fn compare(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) -> Result<usize> {
    let mut compared = 0;
    for (id, shown) in before {
        if to(shown, "stuck") {
            continue;
        }
        let restored = after.get(id).with_context(|| format!("{id} is missing"))?;
        ensure!(kept(shown) == kept(restored), "was {shown}\nis  {restored}");
        compared += 1;
    }
    Ok(compared)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_is_restored_whole_and_a_damaged_one_not_at_all() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sink = sink(folder.path()).await?;
    let ledger = Arc::new(Ledger::default());
    let first = folder.path().join("first.sealane");
    let second = folder.path().join("second.sealane");

    let mut source = Cluster::builder()
        .relays(1)
        .next_hop(sink.address())
        .delays("[1s, 1s, 1h]")
        .start()
        .await?;
    let parked = park(&source, &ledger).await?;
    let flow = Arc::new(Ledger::default());
    let load = load::start(Load::new(source.all_targets(), 8), &flow);
    flowing(&flow, 50).await?;

    let began = Instant::now();
    let args = ["backup", "create", "--to", text(&first)];
    let made = source.admin_json(&args).await?;
    let took = began.elapsed();
    let accepted = flow.accepted_since(began);
    println!("backup: {made}\n{accepted} accepted in the {took:.1?} that it took");
    ensure!(accepted > 0, "no mail flowed while the backup was made");
    let stands = compare(&parked, &listing(&source).await?)?;
    ensure!(stands == PARKED - STUCK, "{stands} stand still");
    refused(&source.layout, &args, "exists").await?;

    // Again, and the leader of a shard dies meanwhile.
    let layout = source.layout.clone();
    let (leader, _) = source.leader_and_follower(5).await?;
    let again = second.clone();
    let making =
        tokio::spawn(
            async move { cli(&layout, &["backup", "create", "--to", text(&again)]).await },
        );
    tokio::time::sleep(Duration::from_millis(120)).await;
    source.kill(&leader)?;
    source.start(&leader)?;
    let made = making.await??;
    ensure!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    refused_to_viewers(&source).await?;

    for file in [&first, &second] {
        let found = source
            .admin_json(&["backup", "inspect", text(file)])
            .await?;
        println!("inspect: {found}");
        ensure!(number(&found, "messages") >= PARKED as u64, "{found}");
        ensure!(number(&found, "policyRevision") == 1, "{found}");
        let groups = found
            .get("groups")
            .and_then(Value::as_array)
            .context("groups")?;
        let sum = |key: &str| groups.iter().map(|g| number(g, key)).sum::<u64>();
        ensure!(groups.len() == 8 && sum("held") == 3, "{found}");
        ensure!(
            sum("leasedRecipients") >= 2 && sum("bodyOctets") >= 12 * MIB as u64,
            "{found}"
        );
    }
    refused(
        &source.layout,
        &["restore", text(&first), "--yes"],
        "the one that the backup was made of",
    )
    .await?;
    load.stop().await;
    let verdict = flow.settle(sink.store(), Duration::from_secs(60)).await?;
    println!("flow: {verdict}");
    ensure!(
        verdict.lost.is_empty() && verdict.accepted > 100,
        "{verdict}"
    );
    source.pass()?;

    // Everything is gone; a cluster is founded anew.
    let mut target = Cluster::builder().relays(1).bare().start().await?;
    let damaged = damage(&first)?;
    for copy in &damaged {
        let restore = ["restore", text(copy), "--yes"];
        refused(&target.layout, &["backup", "inspect", text(copy)], "").await?;
        refused(&target.layout, &restore, "").await?;
    }
    untouched(&target).await?;
    println!("damaged copies refused: {}", damaged.len());
    refused(&target.layout, &["restore", text(&first)], "--yes").await?;
    untouched(&target).await?;

    sink.script().clear();
    let kills = restore_interrupted(&target, &first).await?;
    println!("restore: killed {kills} times, then done");
    let again = target
        .admin_json(&["restore", text(&first), "--yes"])
        .await?;
    ensure!(
        again.get("restoredBefore") == Some(&Value::Bool(true)),
        "{again}"
    );
    refused(
        &target.layout,
        &["restore", text(&second), "--yes"],
        "another backup",
    )
    .await?;
    target
        .ready("relay-node-1", Duration::from_secs(30))
        .await?;
    let there = listing(&target).await?;
    let compared = compare(&parked, &there)?;
    ensure!(compared == PARKED - STUCK, "compared {compared}");
    println!("{compared} messages are as they were; {} wait", there.len());

    // All of it leaves, octet by octet as it came.
    let still = there
        .iter()
        .filter(|(_, m)| !to(m, "stuck"))
        .map(|(id, _)| id.as_str());
    let still: Vec<&str> = still.collect();
    change(&target, &["hold", "--reason", "all together"], &still).await?;
    change(&target, &["release"], &still).await?;
    wait::until("everything delivered", Duration::from_secs(60), || async {
        let list = target.admin_json(&["queue", "list"]).await?;
        ensure!(number(&list, "totalWaiting") == 0, "{list}");
        Ok(())
    })
    .await?;
    let verdict = ledger.settle(sink.store(), Duration::from_secs(10)).await?;
    println!("parked: {verdict}");
    // Phantoms: the other load's messages came to the same sink.
    ensure!(
        verdict.lost.is_empty() && verdict.damaged.is_empty(),
        "{verdict}"
    );
    ensure!(
        verdict.delivered == PARKED && verdict.accepted == PARKED,
        "{verdict}"
    );
    ensure!(
        verdict.duplicates <= 2,
        "only what was leased may come twice: {verdict}"
    );
    target.pass()
}

async fn flowing(ledger: &Ledger, more: usize) -> Result<()> {
    wait::until("mail flows", Duration::from_secs(30), || async {
        ensure!(ledger.accepted() >= more, "{} accepted", ledger.accepted());
        Ok(())
    })
    .await
}

/// Bodies are for admins.
async fn refused_to_viewers(cluster: &Cluster) -> Result<()> {
    cluster.layout.issue("viewer", "looker")?;
    let to = cluster.layout.root.join("looked.sealane");
    let mut command: Command = cluster.layout.cli_as("looker");
    command.args(["backup", "create", "--to", text(&to)]);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(
        !output.status.success() && !to.exists(),
        "a viewer made a backup"
    );
    Ok(())
}

/// Kills the restore later and later until it comes to its end; gives how often it was killed half-way.
async fn restore_interrupted(target: &Cluster, backup: &Path) -> Result<usize> {
    let mut half_way = 0;
    for round in 0..60 {
        let mut command = target.layout.admin();
        command.args(["restore", text(backup), "--yes"]);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let deadline = Instant::now() + Duration::from_millis(150 + round * 60);
        let mut status = None;
        while status.is_none() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
            status = child.try_wait()?;
        }
        if status.is_none() && half_way < 3 {
            child.kill()?;
            child.wait()?;
            let list = target.admin_json(&["queue", "list"]).await?;
            half_way += usize::from(number(&list, "totalWaiting") > 0);
            continue;
        }
        let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        ensure!(half_way > 0, "it was never killed half-way");
        return Ok(half_way);
    }
    bail!("never came to its end")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_restored_may_be_held_and_only_a_fresh_cluster_takes_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sink = sink(folder.path()).await?;
    let ledger = Ledger::default();
    let backup = folder.path().join("small.sealane");
    let source = Cluster::builder()
        .control_planes(1)
        .relays(1)
        .settings(|s| s.shards = 2)
        .next_hop(sink.address())
        .start()
        .await?;
    for n in 0..6 {
        offer(&source, &ledger, &[&format!("deferred{n}")], 2000).await?;
    }
    source
        .admin_json(&["backup", "create", "--to", text(&backup)])
        .await?;
    let parked = listing(&source).await?;
    ensure!(parked.len() == 6, "{parked:?}");
    source.pass()?;

    let used = Cluster::builder()
        .control_planes(1)
        .relays(0)
        .settings(|s| s.shards = 2)
        .start()
        .await?;
    refused(&used.layout, &["restore", text(&backup), "--yes"], "in use").await?;
    used.pass()?;
    let small = Cluster::builder()
        .control_planes(1)
        .relays(0)
        .settings(|s| s.shards = 1)
        .bare()
        .start()
        .await?;
    refused(
        &small.layout,
        &["restore", text(&backup), "--yes"],
        "cluster.shards: 2",
    )
    .await?;
    untouched(&small).await?;
    small.pass()?;

    // More shards than the backup has are fine.
    let mut target = Cluster::builder()
        .control_planes(1)
        .relays(1)
        .settings(|s| s.shards = 3)
        .bare()
        .start()
        .await?;
    sink.script().clear();
    let restore = ["restore", text(&backup), "--hold", "look first", "--yes"];
    let done = target.admin_json(&restore).await?;
    ensure!(number(&done, "messages") == 6, "{done}");
    target
        .ready("relay-node-1", Duration::from_secs(30))
        .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let there = listing(&target).await?;
    ensure!(there.keys().eq(parked.keys()), "{there:?}");
    for (id, shown) in &there {
        ensure!(
            shown.get("hold").and_then(Value::as_str) == Some("look first"),
            "{shown}"
        );
        ensure!(recipients(shown).all(|r| is(r, "held")), "{shown}");
        let before = parked.get(id).context("an id")?;
        let expiry = |v: &Value| v.get("expiresAt").cloned();
        ensure!(expiry(before) == expiry(shown), "{before} {shown}");
    }
    ensure!(sink.store().count()? == 0, "held mail left");
    let ids: Vec<&str> = there.keys().map(String::as_str).collect();
    change(&target, &["release"], &ids).await?;
    let verdict = ledger.settle(sink.store(), Duration::from_secs(30)).await?;
    verdict.holds()?;
    ensure!(
        verdict.delivered == 6 && verdict.duplicates == 0,
        "{verdict}"
    );
    tools::run(target.layout.admin().args(["backup", "--help"]))?;
    target.pass()
}
