//! One connected trace from the SMTP session to the delivery attempt, across processes; and mail
//! that does not care whether anybody collects it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sealane_tests::cluster::Cluster;
use sealane_tests::collector::{Collector, Span, tree};
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Kind, Load};
use tokio::net::TcpListener;

/// The spans that one message must have, in the order of its life.
const LIFE: [&str; 5] = [
    "smtp.receive",
    "queue.enqueue",
    "raft.commit",
    "queue.apply",
    "delivery.attempt",
];

fn has_all(spans: &[Span]) -> bool {
    LIFE.iter()
        .all(|name| spans.iter().any(|span| span.name == *name))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_is_one_connected_trace_across_processes() -> Result<()> {
    let collector = Collector::start().await?;
    let endpoint = collector.endpoint();
    let cluster = Cluster::builder()
        .settings(|s| s.otlp = Some(endpoint))
        .start()
        .await?;
    let ledger = Arc::new(Ledger::default());
    load::run(
        Load::new(cluster.targets(Kind::Submission), 1).messages(1),
        &ledger,
    )
    .await;
    ledger
        .settle(cluster.sink.store(), Duration::from_secs(20))
        .await?
        .holds()?;

    let spans = collector
        .trace_with(Duration::from_secs(30), has_all)
        .await?;
    println!("{}", tree(&spans));
    let roots = spans
        .iter()
        .filter(|span| !spans.iter().any(|other| other.id == span.parent))
        .count();
    ensure!(
        roots == 1,
        "{roots} roots: not one connected tree\n{}",
        tree(&spans)
    );
    let services: BTreeSet<&str> = spans.iter().map(|span| span.service.as_str()).collect();
    let instances: BTreeSet<&str> = spans.iter().map(|span| span.instance.as_str()).collect();
    ensure!(
        services.len() >= 2 && instances.len() >= 2,
        "services {services:?} instances {instances:?}"
    );
    let attempt = spans.iter().find(|span| span.name == "delivery.attempt");
    let facts = attempt
        .map(|span| format!("{:?}", span.attributes))
        .unwrap_or_default();
    ensure!(
        facts.contains("TLSv1.3"),
        "the attempt names no TLS version: {facts}"
    );
    ensure!(
        facts.contains("250"),
        "the attempt names no remote reply: {facts}"
    );
    let text = format!("{spans:?}");
    ensure!(
        !text.contains("quick brown fox") && !text.contains("demo-secret"),
        "content or credentials in a trace"
    );
    cluster.pass()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_does_not_slow_mail() -> Result<()> {
    // Accepts connections into its backlog and reads nothing, ever.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", silent.local_addr()?);
    let mut took = Vec::new();
    for otlp in [None, Some(endpoint), Some("http://127.0.0.1:9".to_owned())] {
        let shown = format!("{otlp:?}");
        let cluster = Cluster::builder()
            .settings(|s| s.otlp = otlp)
            .start()
            .await?;
        let ledger = Arc::new(Ledger::default());
        load::run(Load::new(cluster.all_targets(), 4).messages(20), &ledger).await;
        let began = Instant::now();
        load::run(Load::new(cluster.all_targets(), 8).messages(300), &ledger).await;
        let verdict = ledger
            .settle(cluster.sink.store(), Duration::from_secs(30))
            .await?;
        println!(
            "collector {shown}: {:.1} s {verdict}",
            began.elapsed().as_secs_f32()
        );
        verdict.holds()?;
        ensure!(
            verdict.temporary + verdict.unknown + verdict.broken == 0,
            "{verdict}"
        );
        took.push(began.elapsed());
        cluster.pass()?;
    }
    let slowest = took[1].max(took[2]);
    ensure!(
        slowest <= took[0] * 2 + Duration::from_secs(3),
        "without {:?}, with {slowest:?}",
        took[0]
    );
    Ok(())
}
