//! A slice of `make chaos`: random faults on processes, disks, links and the peer, under load.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealane_tests::chaos::mixed::{self, Plan};
use sealane_tests::cluster::{Cluster, http_ok};
use sealane_tests::links::Weather;
use sealane_tests::wait;

#[tokio::test(flavor = "multi_thread")]
async fn random_faults_of_disks_and_links_lose_nothing() -> Result<()> {
    let plan = Plan {
        seed: rand::random_range(0..1_000_000),
        time: Duration::from_secs(40),
        only: Vec::new(),
    };
    Box::pin(mixed::run(&plan)).await?.hold()
}

/// With pre-votes a follower knows its last leader for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_hears_nobody_does_not_say_that_it_is_ready() -> Result<()> {
    const LONG: Duration = Duration::from_secs(60);
    // With one shard and three nodes one of them leads nothing.
    let mut cluster = Cluster::builder()
        .relays(1)
        .settings(|settings| settings.shards = 1)
        .links()
        .start()
        .await?;
    let names: Vec<String> = {
        let nodes = cluster.layout.control_planes.iter();
        nodes.map(|node| node.name.clone()).collect()
    };
    let leaders = [
        cluster.leader_and_follower(0).await?.0,
        cluster.leader_and_follower(1).await?.0,
    ];
    let follower = names
        .iter()
        .find(|name| !leaders.contains(name))
        .context("a node that leads nothing")?
        .clone();
    let metrics = cluster.layout.metrics(&follower).context("metrics")?;
    cluster.ready(&follower, LONG).await?;
    let links = cluster.links.as_ref().context("links")?;
    for other in names.iter().filter(|name| **name != follower) {
        links.set(&follower, other, Weather::Cut);
        links.set(other, &follower, Weather::Cut);
    }
    wait::until("it says that it is not ready", LONG, || async {
        let said = http_ok(metrics, "/readyz").await.err();
        let said = said.context("it says that it is")?.to_string();
        ensure!(said.contains(" 503 "), "{said}");
        Ok(())
    })
    .await?;
    cluster.links.as_ref().context("links")?.heal();
    cluster.ready(&follower, LONG).await?;
    cluster.pass()
}
