//! Show 5: a capture of all mail ports holds no envelope, no credentials, no content in clear.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use data_encoding::BASE64;
use sealane_tests::capture::{Capture, occurrences};
use sealane_tests::cluster::Cluster;
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Load};
use sealane_tests::policy::{PASSWORD, SUBMITTER};

#[tokio::test(flavor = "multi_thread")]
async fn no_mail_crosses_the_wire_in_clear() -> Result<()> {
    let cluster = Cluster::builder().start().await?;
    let mut ports: Vec<u16> = cluster
        .all_targets()
        .iter()
        .map(|target| target.address.port())
        .collect();
    ports.push(cluster.sink.address().port());
    ports.extend(
        cluster
            .layout
            .control_planes
            .iter()
            .map(|node| node.listen.port()),
    );
    let capture = Capture::start(&cluster.layout.root, &ports).await?;

    let ledger = Arc::new(Ledger::default());
    // First a next hop without TLS, then with: neither may see mail in clear.
    cluster.sink.script().offer_starttls(false);
    load::run(Load::new(cluster.all_targets(), 6).messages(30), &ledger).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.sink.script().clear();
    load::run(Load::new(cluster.all_targets(), 6).messages(60), &ledger).await;
    let verdict = ledger
        .settle(cluster.sink.store(), Duration::from_secs(40))
        .await?;
    verdict.holds()?;

    let octets = capture.stop().await?;
    let auth = BASE64.encode(format!("\0{SUBMITTER}\0{PASSWORD}").as_bytes());
    let secrets = [
        "MAIL FROM",
        "RCPT TO",
        "AUTH PLAIN",
        "\r\nDATA\r\n",
        &auth,
        PASSWORD,
        "X-Ledger",
        "quick brown fox",
        "Received: ",
        "@served.example",
    ];
    let found: Vec<(&str, usize)> = secrets
        .iter()
        .map(|secret| (*secret, occurrences(&octets, secret)))
        .collect();
    let control = occurrences(&octets, "STARTTLS");
    println!(
        "{verdict}\ncaptured {} octets, STARTTLS in clear {control} times, secrets {found:?}",
        octets.len()
    );
    ensure!(
        control > 10,
        "the capture saw no SMTP session: it proves nothing"
    );
    ensure!(
        found.iter().all(|(_, count)| *count == 0),
        "in clear: {found:?}"
    );
    cluster.pass()
}
