//! Power losses of one, of two and of all control-plane nodes at once, under load.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::quantities::Quantities;
use super::traffic::Traffic;
use crate::cluster::Cluster;
use crate::ledger::Ledger;
use crate::powerloss::PowerLoss;
use crate::sink::{Act, Rule, Stage};
use crate::wait;

/// How long nodes may take to be ready again.
const RECOVERY: Duration = Duration::from_secs(90);
/// How long the queue may take to be empty at the end.
const DRAIN: Duration = Duration::from_secs(180);

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Power losses of each number of nodes.
    pub rounds: usize,
    /// Numbers of nodes that lose power together.
    pub together: Vec<usize>,
    /// Syncs of all disks do nothing: the run has to lose mail.
    pub lie: bool,
    pub seed: u64,
}

/// Runs the plan on a cluster of three nodes.
///
/// # Errors
/// When a node does not come back, or the harness fails. Lost mail is in the verdict.
pub async fn run(plan: &Plan) -> Result<Quantities> {
    println!("SEED={} {plan:?}", plan.seed);
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let mut cluster = Cluster::builder().disks().start().await?;
    let traffic = Traffic::start(&cluster).await?;
    let mut quantities = Quantities::default();
    for &together in &plan.together {
        for round in 0..plan.rounds {
            let how = match round % 3 {
                0 => PowerLoss::Clean,
                1 => PowerLoss::Torn(rng.random()),
                _ => PowerLoss::Reordered(rng.random()),
            };
            Box::pin(one(
                &mut cluster,
                &traffic.ledger,
                &mut rng,
                (together, how, plan.lie),
                &mut quantities,
            ))
            .await
            .with_context(|| format!("{together} nodes, round {round}, {how:?}"))?;
        }
    }
    for name in cluster.layout.names() {
        cluster.ready(&name, RECOVERY).await?;
    }
    let limit = if plan.lie { DRAIN / 6 } else { DRAIN };
    let quantities = traffic.end(cluster, quantities, limit, false).await?;
    ensure!(
        quantities.disks.discarded > 0,
        "no power loss took anything: {quantities}"
    );
    Ok(quantities)
}

async fn one(
    cluster: &mut Cluster,
    ledger: &Ledger,
    rng: &mut StdRng,
    (together, how, lie): (usize, PowerLoss, bool),
    quantities: &mut Quantities,
) -> Result<()> {
    // In two of three rounds nothing is delivered before the power goes: what got 250 is in the queue only.
    let hold = lie || rng.random_range(0..3) < 2;
    if lie {
        for name in cluster.disk_names() {
            cluster.disk(&name)?.tell("lie on")?;
        }
    }
    if hold {
        cluster.sink.script().add(Rule {
            stage: Stage::Mail,
            containing: String::new(),
            act: Act::Reply("451 4.3.0 not now".to_owned()),
            times: None,
        });
    }
    let start = Instant::now();
    tokio::time::sleep(Duration::from_millis(rng.random_range(200..1000))).await;
    wait::until("mail accepted", RECOVERY, || async {
        let accepted = ledger.accepted_since(start);
        ensure!(accepted >= 15, "{accepted}");
        Ok(())
    })
    .await?;
    let mut names = cluster.disk_names();
    names.shuffle(rng);
    names.truncate(together);
    let before = cluster.disk_statistics()?;
    let waiting = ledger
        .accepted()
        .saturating_sub(cluster.sink.store().count()?);
    cluster.lose_power(&names, how)?;
    let after = cluster.disk_statistics()?;
    let fault = Instant::now();
    tokio::time::sleep(Duration::from_millis(rng.random_range(0..800))).await;
    cluster.sink.script().clear();
    for name in &names {
        cluster.start(name)?;
    }
    for name in cluster.disk_names() {
        cluster.ready(&name, RECOVERY).await?;
    }
    quantities.may_repeat += 1;
    quantities.took_effect(&format!("power loss of {together}"));
    quantities.at_stake += waiting;
    println!(
        "{together} of 3, {how:?}: {waiting} messages at stake, {} octets and {} names gone, ready after {:.1} s, {} accepted so far",
        after.discarded - before.discarded,
        after.discarded_names - before.discarded_names,
        fault.elapsed().as_secs_f32(),
        ledger.accepted(),
    );
    Ok(())
}
