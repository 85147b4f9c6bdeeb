//! Limits of destinations hold for the whole cluster, as the destinations themselves measure them:
//! three nodes lead the shards, two relays deliver, and the node that deals the shares is killed.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sealane_tests::cluster::Cluster;
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Kind, Load};
use sealane_tests::sink::{Act, Rule, Sink, SinkConfig, Stage, most_within};
use sealane_tests::wait;

const NARROW: &str = "narrow.example";
const PACED: &str = "paced.example";
const DIALED: &str = "dialed.example";
const HOLE: &str = "hole.example";

/// Connections at once to [`NARROW`].
const PLACES: usize = 3;
/// To [`PACED`].
const MESSAGES_PER_MINUTE: u64 = 120;
/// To [`DIALED`].
const CONNECTIONS_PER_MINUTE: u64 = 40;

/// docs/limits.md: in any time, what the rate gives for it and for so many seconds more, and one.
const BURST: u64 = 3;
/// From a decision of ours to the sink's note of it, on a machine that has much to do.
const NOTED: u64 = 1;

const PATIENCE: Duration = Duration::from_secs(90);

async fn sink(cluster: &Cluster, name: &str) -> Result<Sink> {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    Sink::start(SinkConfig::at(anywhere, cluster.layout.root.join(name))).await
}

fn destination(name: &str, at: SocketAddr, limits: &str) -> String {
    format!(
        "kind: Destination\nname: {name}\nroute: {{ host: {}, port: {} }}\nlimits: {{ {limits} }}\n",
        at.ip(),
        at.port()
    )
}

/// Every stretch of time has what the rate gives for it, and the burst.
fn within_rate(what: &str, moments: &[Instant], per_minute: u64) -> Result<()> {
    for seconds in [1, 2, 5, 10, 20, 60] {
        let most = per_minute * (seconds + BURST + NOTED) / 60 + 1;
        let found = most_within(moments, Duration::from_secs(seconds));
        println!("{what}: {found} of at most {most} in {seconds} s");
        ensure!(
            found as u64 <= most,
            "{what}: {found} in {seconds} s, {most} are allowed"
        );
    }
    Ok(())
}

struct Flow {
    ledger: Arc<Ledger>,
    running: load::Running,
}

fn flow(cluster: &Cluster, domain: &str, connections: usize, messages: usize) -> Flow {
    let ledger = Arc::new(Ledger::default());
    let mut load = Load::new(cluster.targets(Kind::Submission), connections).messages(messages);
    domain.clone_into(&mut load.domain);
    let running = load::start(load, &ledger);
    Flow { ledger, running }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_across_the_cluster_and_when_the_dealer_dies() -> Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    let narrow = sink(&cluster, "narrow").await?;
    // It takes its time, so that everybody wants more of it.
    narrow.script().add(Rule {
        stage: Stage::Data,
        containing: String::new(),
        act: Act::Delay(Duration::from_millis(40)),
        times: None,
    });
    let paced = sink(&cluster, "paced").await?;
    let dialed = sink(&cluster, "dialed").await?;
    // It takes connections and says nothing.
    let hole = std::net::TcpListener::bind("127.0.0.1:0")?;
    let pace = format!("connections: 6, messagesPerMinute: {MESSAGES_PER_MINUTE}");
    let dials = format!(
        "connections: 6, messagesPerConnection: 2, connectionsPerMinute: {CONNECTIONS_PER_MINUTE}"
    );
    let policy = [
        destination(NARROW, narrow.address(), &format!("connections: {PLACES}")),
        destination(PACED, paced.address(), &pace),
        destination(DIALED, dialed.address(), &dials),
        destination(HOLE, hole.local_addr()?, "connections: 5"),
    ];
    cluster.apply_policy(&policy.join("---\n")).await?;

    let to_hole = flow(&cluster, HOLE, 4, 200);
    let to_narrow = flow(&cluster, NARROW, 8, 500);
    let to_paced = flow(&cluster, PACED, 4, 100);
    let to_dialed = flow(&cluster, DIALED, 4, 60);
    let served = flow(&cluster, sealane_tests::policy::SERVED, 4, 300);

    wait::until("mail at every destination", PATIENCE, || async {
        let (a, b) = (narrow.store().count()?, paced.store().count()?);
        ensure!(a >= 30 && b >= 5, "{a} and {b}");
        Ok(())
    })
    .await?;
    let (dealer, _) = cluster.leader_and_follower(0).await?;
    println!(
        "{dealer} deals and is killed; {} and {} messages arrived",
        narrow.store().count()?,
        paced.store().count()?
    );
    cluster.kill(&dealer)?;

    for flow in [&to_narrow, &to_paced, &to_dialed, &served] {
        wait::until("offers accepted", PATIENCE, || async {
            ensure!(flow.ledger.accepted() > 0);
            Ok(())
        })
        .await?;
    }
    to_hole.running.finish().await;
    for (name, flow, store) in [
        ("served", served, cluster.sink.store()),
        (NARROW, to_narrow, narrow.store()),
        (PACED, to_paced, paced.store()),
        (DIALED, to_dialed, dialed.store()),
    ] {
        flow.running.finish().await;
        let began = Instant::now();
        let verdict = flow.ledger.settle(store, PATIENCE).await?;
        println!(
            "{name}: {verdict}, settled {:.1} s after the last offer",
            began.elapsed().as_secs_f32()
        );
        verdict.holds()?;
    }

    let peak = narrow.traffic().peak();
    println!("{NARROW}: {peak} connections at once, {PLACES} are allowed");
    ensure!(peak <= PLACES, "{peak} connections, {PLACES} are allowed");
    ensure!(peak > 1, "both relays deliver there");
    for (name, sink) in [(PACED, &paced), (DIALED, &dialed)] {
        let peak = sink.traffic().peak();
        ensure!(peak <= 6, "{name}: {peak} connections, 6 are allowed");
    }
    within_rate(
        "connections per minute",
        &dialed.traffic().connections(),
        CONNECTIONS_PER_MINUTE,
    )?;
    within_rate(
        "messages per minute",
        &paced.traffic().messages(),
        MESSAGES_PER_MINUTE,
    )?;
    // Warm connections are not kept for ever.
    wait::until("connections closed", PATIENCE, || async {
        let open = narrow.traffic().open() + paced.traffic().open();
        ensure!(open == 0, "{open} are open");
        Ok(())
    })
    .await?;
    cluster.pass()
}
