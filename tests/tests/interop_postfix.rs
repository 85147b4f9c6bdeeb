//! Show 2: Debian's Postfix relays into the MX listener and receives from the cluster, over TLS.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealane_tests::cluster::Cluster;
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Kind, Load, Target};
use sealane_tests::policy::{PASSWORD, SUBMITTER};
use sealane_tests::postfix::Postfix;
use sealane_tests::sink::{Sink, SinkConfig};
use sealane_tests::{ledger, wait};

/// The anchor: the same checks hold for Postfix alone, without anything of ours in between.
#[tokio::test(flavor = "multi_thread")]
async fn postfix_alone_passes_the_same_checks() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let sink = Sink::start(SinkConfig::at(anywhere, folder.path().join("sink"))).await?;
    let postfix = Postfix::start(&folder.path().join("postfix"), sink.address(), "")?;
    let target = Target {
        address: postfix.address,
        kind: Kind::Mx,
    };
    let ledger = Arc::new(Ledger::default());
    let mut load = Load::new(vec![target], 4).messages(40);
    load.domain = "remote.example".to_owned();
    load::run(load, &ledger).await;
    let verdict = ledger.settle(sink.store(), Duration::from_secs(30)).await?;
    println!("{verdict}");
    verdict.holds().with_context(|| postfix.log())?;
    ensure!(
        verdict.accepted == 40 && verdict.duplicates == 0,
        "{verdict}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn postfix_relays_in_and_receives_over_tls() -> Result<()> {
    let cluster = Cluster::builder().relays(1).start().await?;
    let mx = cluster.layout.relays[0].mx;
    let postfix = Postfix::start(&cluster.layout.root.join("postfix"), mx, "")?;
    let (host, port) = (postfix.address.ip(), postfix.address.port());
    cluster
        .apply_policy(&format!(
            "kind: Destination\nname: postfix.example\nroute: {{ host: {host}, port: {port} }}\ntls: {{ level: encrypt }}\n"
        ))
        .await?;

    // Postfix to the cluster.
    let mut tokens = Vec::new();
    for number in 0..5 {
        let token = load::token();
        let message = format!(
            "From: a@postfix.example\nTo: you@served.example\nSubject: {number}\nX-Ledger: {token}\n\n.\n..\nline {number}\n"
        );
        postfix.inject("a@postfix.example", "you@served.example", &message)?;
        tokens.push(token);
    }
    let outcome = wait::until(
        "mail of Postfix in the sink",
        Duration::from_secs(30),
        || async {
            let all = cluster.sink.store().list()?;
            let there: Vec<String> = all
                .iter()
                .filter_map(|one| ledger::token(&one.octets().ok()?))
                .collect();
            ensure!(
                tokens.iter().all(|token| there.contains(token)),
                "{} of {}",
                there.len(),
                tokens.len()
            );
            ensure!(
                all.iter().all(|one| one
                    .octets()
                    .is_ok_and(|o| String::from_utf8_lossy(&o).contains("\r\n.\r\n..\r\nline "))),
                "body"
            );
            Ok(all.len())
        },
    )
    .await;
    let arrived = outcome.with_context(|| postfix.log())?;
    ensure!(
        postfix
            .log()
            .contains("Untrusted TLS connection established to")
            || postfix.log().contains("TLS connection established to"),
        "{}",
        postfix.log()
    );

    // The cluster to Postfix.
    let token = load::token();
    // Complete headers: Postfix adds those that are missing where it delivers.
    let content = format!(
        "From: demo@served.example\r\nDate: Mon, 23 Nov 2026 10:00:00 +0000\r\nMessage-ID: <{token}@served.example>\r\n\
         Subject: to Postfix\r\nX-Ledger: {token}\r\n\r\n.\r\n..\r\nthe end\r\n"
    );
    let mut client =
        load::connect(cluster.targets(Kind::Submission)[0], SUBMITTER, PASSWORD).await?;
    let to = vec!["inbox@postfix.example".to_owned()];
    let reply = client
        .transaction("demo@served.example", &to, content.as_bytes())
        .await?;
    ensure!(reply.code == 250, "{reply}");
    let outcome = wait::until(
        "our mail in Postfix's mailbox",
        Duration::from_secs(30),
        || async {
            postfix
                .inbox()
                .into_iter()
                .find(|text| text.contains(&token))
                .context("not there")
        },
    )
    .await;
    let text = outcome.with_context(|| postfix.log())?;
    ensure!(
        text.ends_with(&content.replace("\r\n", "\n")),
        "changed:\n{text}"
    );
    ensure!(text.contains("using TLSv1.3"), "not over TLS:\n{text}");
    client.quit().await;
    println!("Postfix -> cluster {arrived} messages, cluster -> Postfix 1");
    cluster.pass()
}
