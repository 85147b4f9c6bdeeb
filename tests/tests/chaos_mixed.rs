//! A slice of `make chaos`: random faults on processes, disks, links and the peer, under load.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::Result;
use sealane_tests::chaos::mixed::{self, Plan};

#[tokio::test(flavor = "multi_thread")]
async fn random_faults_of_disks_and_links_lose_nothing() -> Result<()> {
    let plan = Plan {
        seed: rand::random_range(0..1_000_000),
        time: Duration::from_secs(40),
        only: Vec::new(),
    };
    Box::pin(mixed::run(&plan)).await?.hold()
}
