//! Show 2, a slice of it: power losses under load lose nothing that got 250, unless the disks lie.
//! All of it: `make chaos PLAN=powerloss`.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use sealane_tests::chaos::power::{self, Plan};

#[tokio::test(flavor = "multi_thread")]
async fn power_loss_of_one_of_two_and_of_all_nodes_loses_nothing() -> Result<()> {
    let plan = Plan {
        rounds: 3,
        together: vec![1, 2, 3],
        lie: false,
        seed: rand::random(),
    };
    let quantities = Box::pin(power::run(&plan)).await?;
    quantities.hold()?;
    ensure!(quantities.disks.power_losses == 18, "{quantities}");
    Ok(())
}

/// The judge is judged: it has to see the losses of disks that lie.
#[tokio::test(flavor = "multi_thread")]
async fn where_syncs_lie_the_same_run_reports_losses() -> Result<()> {
    let plan = Plan {
        rounds: 1,
        together: vec![3],
        lie: true,
        seed: rand::random(),
    };
    let quantities = Box::pin(power::run(&plan)).await?;
    ensure!(quantities.disks.lies > 0, "{quantities}");
    ensure!(
        !quantities.verdict.lost.is_empty(),
        "no loss was seen: {quantities}"
    );
    ensure!(quantities.hold().is_err(), "{quantities}");
    Ok(())
}
