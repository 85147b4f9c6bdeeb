//! A pass over one RelayCluster: read everything, decide, act once, say how it stands.
use crate::{
    act, apply, certificates, cleanup,
    context::Context,
    controller,
    failure::Failure,
    metrics::Outcome,
    observe, policies,
    status::{self, Seen},
};
use kube::{Api, Resource, ResourceExt, runtime::controller::Action};
use sealane_crd::{RelayCluster, RelayClusterStatus, condition, reason};
use sealane_plan::{
    Plan, SpecError, build,
    certs::{CertPlan, CertState},
    conditions::{self, PolicyState, Wanted},
    plan,
    plan::Quorum,
    validate,
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};
use tracing::Instrument;

/// A pass that takes longer is cut off and made again.
const LONGEST: Duration = Duration::from_secs(120);
/// To the next pass while something is in motion.
const SOON: Duration = Duration::from_secs(3);
/// To the next one at the latest: Secrets that are only named, and the control plane, are not watched.
const LATEST: Duration = Duration::from_secs(60);
/// Reason of the Event about a spec that is refused.
const SPEC_REFUSED: &str = "SpecRefused";
/// Reason of the Event about a pass that failed.
const PASS_FAILED: &str = "PassFailed";

/// What is called for a cluster that something changed about.
pub(crate) async fn pass(
    cluster: Arc<RelayCluster>,
    context: Arc<Context>,
) -> Result<Action, Failure> {
    let begun = Instant::now();
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let span = tracing::info_span!(target: "sealane_operator", "pass", %namespace, %name);
    let made = timeout(
        LONGEST,
        Box::pin(whole(&cluster, &context)).instrument(span),
    )
    .await;
    match made.unwrap_or(Err(Failure::TooLong(LONGEST))) {
        Ok((outcome, action)) => {
            context.metrics.pass(outcome, begun.elapsed());
            context
                .backoff
                .succeeded(&controller::key(&*cluster, "RelayCluster"));
            context.events.relented(&*cluster, PASS_FAILED);
            Ok(action)
        }
        Err(failure) => {
            context.metrics.pass(Outcome::Failed, begun.elapsed());
            if failure.is_refusal() {
                say_failure(&context, &cluster, &failure).await;
            }
            Err(failure)
        }
    }
}

async fn whole(cluster: &RelayCluster, context: &Context) -> Result<(Outcome, Action), Failure> {
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let api: Api<RelayCluster> = Api::namespaced(context.client.clone(), &namespace);
    let fresh = api.get_opt(&name).await;
    let Some(fresh) = fresh.map_err(Failure::api("read the RelayCluster"))? else {
        return Ok((Outcome::Settled, Action::await_change()));
    };
    if fresh.meta().deletion_timestamp.is_some() {
        return cleanup::leave(context, &api, &fresh).await;
    }
    let fresh = cleanup::enter(&api, fresh).await?;
    match validate(&fresh) {
        Ok(valid) => {
            context.events.relented(&fresh, SPEC_REFUSED);
            Box::pin(work(context, &fresh, &valid)).await
        }
        Err(errors) => refuse(context, &fresh, &errors).await,
    }
}

/// Nothing is changed.
async fn refuse(
    context: &Context,
    cluster: &RelayCluster,
    errors: &[SpecError],
) -> Result<(Outcome, Action), Failure> {
    let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
    context
        .events
        .refused(cluster, "Validate", SPEC_REFUSED, all.join("; "))
        .await;
    write_conditions(context, cluster, &conditions::refused(errors)).await?;
    Ok((Outcome::Refused, Action::requeue(LATEST)))
}

async fn work(
    context: &Context,
    cluster: &RelayCluster,
    valid: &sealane_plan::ValidCluster,
) -> Result<(Outcome, Action), Failure> {
    let paused = valid.spec().paused;
    let mut seen = observe::observe(context, cluster, valid).await?;
    let mut plan = plan(&seen.observed);
    let secrets = std::mem::take(&mut seen.secrets);
    let certificates =
        certificates::ensure(context, cluster, valid, secrets, plan.ordinals).await?;
    let mut relays = seen.observed.relays.clone();
    if !paused {
        let apis = context.apis().await?;
        let children = build::build(&plan.build_input(valid, apis));
        let applied = apply::apply(context, valid, &children, apis).await?;
        let set;
        (set, relays) = observe::workloads(&applied)?;
        plan.after_applying(seen.observed.stateful_set.as_ref(), set.as_ref());
        act::grow(context, cluster, &plan.grow).await;
        act::act(context, cluster, &seen, &mut plan).await?;
    }
    let control = seen.control.as_ref().filter(|_| !paused);
    let why_not = if paused {
        "spec.paused: nothing is applied until it is false"
    } else {
        "no control-plane node answers"
    };
    let policy = policies::sync(context, cluster, control, why_not).await?;
    say(
        context,
        cluster,
        &Seen {
            valid,
            observed: &seen.observed,
            relays: relays.as_ref(),
            plan: &plan,
            certificates: &certificates,
            answers: seen.answers.as_ref(),
            policy: &policy,
        },
    )
    .await?;
    Ok(next(&plan, &certificates.plan, &policy))
}

/// Status and metrics.
async fn say(context: &Context, cluster: &RelayCluster, seen: &Seen<'_>) -> Result<(), Failure> {
    let mut new = status::of_cluster(cluster, seen);
    // A revision that this pass made is not in what was answered before.
    if let PolicyState::Live { revision, .. } = seen.policy {
        new.policy_revision = new.policy_revision.max(Some(*revision));
    }
    let names = seen.valid.names();
    for c in &new.conditions {
        context
            .metrics
            .condition(names.namespace(), names.cluster(), &c.type_, &c.status);
    }
    let old = cluster.status.clone().unwrap_or_default();
    status::write(context, cluster, &old, &new).await
}

/// How this pass ended, and when the next one comes.
fn next(plan: &Plan, certs: &CertPlan, policy: &PolicyState) -> (Outcome, Action) {
    let waits = plan
        .waiting
        .as_ref()
        .is_some_and(|w| w.reason != reason::PAUSED);
    let missing = matches!(certs.state, CertState::Missing(_));
    let pending = matches!(policy, PolicyState::Pending { .. });
    let paused = plan
        .waiting
        .as_ref()
        .is_some_and(|w| w.reason == reason::PAUSED);
    if paused {
        return (Outcome::Settled, Action::requeue(LATEST));
    }
    if plan.step.is_some() || waits || missing || pending {
        return (Outcome::Moving, Action::requeue(SOON));
    }
    // The control plane tells nobody when it is whole again.
    if plan.quorum != Quorum::Healthy {
        return (Outcome::Settled, Action::requeue(SOON));
    }
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
    let due = Duration::from_secs(certs.look_again.saturating_sub(now));
    (Outcome::Settled, Action::requeue(due.clamp(SOON, LATEST)))
}

/// A failure that only a person can mend: the API server does not take what we apply, or does not let us.
async fn say_failure(context: &Context, cluster: &RelayCluster, failure: &Failure) {
    let note = failure.to_string();
    context
        .events
        .refused(cluster, "Reconcile", PASS_FAILED, note.clone())
        .await;
    let degraded = Wanted {
        type_: condition::DEGRADED,
        status: Some(true),
        reason: reason::INVALID,
        message: note,
    };
    let api: Api<RelayCluster> = Api::namespaced(
        context.client.clone(),
        &cluster.namespace().unwrap_or_default(),
    );
    // Read again: the rest of the status must stay what it is by now.
    let written = match api.get_opt(&cluster.name_any()).await {
        Ok(Some(fresh)) => write_conditions(context, &fresh, &[degraded]).await,
        Ok(None) => Ok(()),
        Err(e) => Err(Failure::api("read the RelayCluster")(e)),
    };
    if let Err(e) = written {
        tracing::warn!(error = %e, "the failure is not in the status");
    }
}

/// Only these; the rest of the status stays.
async fn write_conditions(
    context: &Context,
    cluster: &RelayCluster,
    wanted: &[Wanted],
) -> Result<(), Failure> {
    let old = cluster.status.clone().unwrap_or_default();
    let new = RelayClusterStatus {
        observed_generation: cluster.meta().generation,
        conditions: status::conditions(cluster, &old.conditions, wanted),
        ..old.clone()
    };
    status::write(context, cluster, &old, &new).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
