//! Show 6: large mail passes, and many large mails at once do not grow the relay node.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sealane_tests::cluster::Cluster;
use sealane_tests::ledger::{Ledger, Offer, Outcome};
use sealane_tests::load::{self, Kind, Load, Target};
use sealane_tests::process;
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_50_mib_passes() -> Result<()> {
    let cluster = Cluster::builder().relays(1).start().await?;
    let ledger = Arc::new(Ledger::default());
    let began = Instant::now();
    let load = Load::new(cluster.targets(Kind::Submissions), 1)
        .messages(1)
        .size(50 * MIB..=50 * MIB)
        .once();
    load::run(load, &ledger).await;
    let accepted = began.elapsed();
    let verdict = ledger
        .settle(cluster.sink.store(), Duration::from_secs(90))
        .await?;
    println!(
        "{verdict}; accepted after {accepted:.1?}, delivered after {:.1?}",
        began.elapsed()
    );
    verdict.holds()?;
    ensure!(
        verdict.delivered == 1 && verdict.duplicates == 0,
        "{verdict}"
    );
    cluster.pass()
}

const CONNECTIONS: usize = 200;
const BUDGET: usize = 64 * MIB;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_connections_of_10_mib_stay_within_three_budgets() -> Result<()> {
    let cluster = Cluster::builder()
        .relays(1)
        .settings(|s| s.body_budget = "64MiB".to_owned())
        .start()
        .await?;
    let ledger = Arc::new(Ledger::default());
    // The relay is warm: what it needs without large mail is not growth.
    load::run(
        Load::new(cluster.targets(Kind::Mx), 20).messages(100),
        &ledger,
    )
    .await;
    let pid = cluster.pid("relay-node-1")?;
    let before = process::resident(pid)?;

    // One body for all, so that this process stays small; each message has its own token in front.
    let body = Arc::new(body(10 * MIB));
    let target = cluster.targets(Kind::Mx)[0];
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for _ in 0..CONNECTIONS {
        tasks.spawn(one(target, Arc::clone(&body), Arc::clone(&ledger)));
    }
    let mut peak = before;
    let mut failures = Vec::new();
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                None => break,
                Some(outcome) => failures.extend(outcome?.err().map(|error| format!("{error:#}"))),
            },
            () = tokio::time::sleep(Duration::from_millis(200)) => peak = peak.max(process::resident(pid)?),
        }
    }
    let sent = began.elapsed();
    let verdict = ledger
        .settle(cluster.sink.store(), Duration::from_secs(180))
        .await?;
    peak = peak.max(process::peak_resident(pid)?);
    let grown = (peak - before) / MIB as u64;
    println!(
        "{verdict}\n{CONNECTIONS} x 10 MiB in {sent:.1?}, all delivered after {:.1?}; relay {} MiB before, grown by {grown} MiB of {} allowed; \
         not finished: {} {:?}",
        began.elapsed(),
        before / MIB as u64,
        3 * BUDGET / MIB,
        failures.len(),
        failures.first()
    );
    verdict.holds()?;
    ensure!(
        verdict.accepted > 100 + CONNECTIONS / 2,
        "too few were accepted to prove anything: {verdict}"
    );
    ensure!(
        grown < (3 * BUDGET / MIB) as u64,
        "the relay grew by {grown} MiB"
    );
    cluster.pass()
}

/// Lines that need no dot-stuffing.
fn body(octets: usize) -> Vec<u8> {
    let line = format!("{}\r\n", "large mail ".repeat(89));
    let mut body = line.repeat(octets / line.len() + 1).into_bytes();
    body.truncate(octets / line.len() * line.len());
    body
}

async fn one(target: Target, body: Arc<Vec<u8>>, ledger: Arc<Ledger>) -> Result<()> {
    let token = load::token();
    let to = vec!["big@served.example".to_owned()];
    let head = format!("Subject: big\r\nX-Ledger: {token}\r\n\r\n");
    let digest = Sha256::new()
        .chain_update(&head)
        .chain_update(body.as_slice())
        .finalize();
    ledger.offer(Offer {
        failing: Vec::new(),
        token: token.clone(),
        reverse_path: "big@client.example".to_owned(),
        recipients: to,
        octets: head.len() + body.len(),
        sha256: digest.into(),
    });
    let mut client = load::connect(target, "", "")
        .await
        .context("connect")?
        .patience(Duration::from_secs(240));
    client
        .command_expecting("MAIL FROM:<big@client.example>", 250)
        .await?;
    client
        .command_expecting("RCPT TO:<big@served.example>", 250)
        .await?;
    client.command_expecting("DATA", 354).await?;
    client.send(head.as_bytes()).await?;
    for piece in body.chunks(64 * 1024) {
        client.send(piece).await?;
    }
    client.send(b".\r\n").await?;
    let outcome = match client.reply().await {
        Ok(reply) if reply.code == 250 => Outcome::Accepted,
        Ok(reply) if reply.code < 500 => Outcome::Temporary(reply.to_string()),
        Ok(reply) => Outcome::Permanent(reply.to_string()),
        Err(error) => Outcome::Unknown(format!("{error:#}")),
    };
    ledger.outcome(&token, outcome);
    client.quit().await;
    Ok(())
}
