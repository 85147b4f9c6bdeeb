//! RelayPolicies: all of a cluster together become its policy. What they mean together is decided by sealane-plan.
mod routes;

pub(crate) use routes::Routes;

use crate::{
    context::Context,
    control_client::{CallError, ControlPlane},
    failure::Failure,
    status,
};
use k8s_openapi::{
    api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp,
};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{controller::Action, watcher::Event},
};
use sealane_crd::{RelayCluster, RelayPolicy, RelayPolicyStatus};
use sealane_plan::{
    conditions::{self, PolicyState},
    policy::{self, Merged, PolicyInput, Verifiers},
};
use sealane_wire::v1;
use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

/// Policies without a cluster are looked at again after this.
const ORPHAN: Duration = Duration::from_secs(300);

/// What people write, as a number that changes with it.
pub(crate) fn changed(policy: &RelayPolicy) -> Option<u64> {
    let meta = policy.meta();
    let mut hasher = DefaultHasher::new();
    meta.generation.hash(&mut hasher);
    meta.deletion_timestamp.is_some().hash(&mut hasher);
    Some(hasher.finish())
}

/// A deletion tells how the object was last, which is nothing new to [`changed`]: it is marked as what it is.
pub(crate) fn marked(event: Event<RelayPolicy>) -> Event<RelayPolicy> {
    match event {
        Event::Delete(mut policy) => {
            let since = &mut policy.meta_mut().deletion_timestamp;
            since.get_or_insert_with(|| Time(Timestamp::now()));
            Event::Delete(policy)
        }
        other => other,
    }
}

/// The policies of a cluster, in no order; those that are going are left out.
pub(crate) async fn of_cluster(
    context: &Context,
    namespace: &str,
    cluster: &str,
) -> Result<Vec<RelayPolicy>, Failure> {
    let api: Api<RelayPolicy> = Api::namespaced(context.client.clone(), namespace);
    let all = api
        .list(&Default::default())
        .await
        .map_err(Failure::api("list RelayPolicies"))?;
    let ours = |p: &RelayPolicy| {
        p.spec.cluster_ref.name == cluster && p.meta().deletion_timestamp.is_none()
    };
    Ok(all.items.into_iter().filter(ours).collect())
}

/// Brings the merged policy to the control plane if it is not live there, and says in each RelayPolicy how it stands.
/// `control`: `None` if no node answers, or if nothing may be changed; then `why_not` says so.
pub(crate) async fn sync(
    context: &Context,
    cluster: &RelayCluster,
    control: Option<&ControlPlane>,
    why_not: &str,
) -> Result<PolicyState, Failure> {
    let namespace = cluster.namespace().unwrap_or_default();
    let policies = of_cluster(context, &namespace, &cluster.name_any()).await?;
    if policies.is_empty() {
        return Ok(PolicyState::NotManaged);
    }
    let inputs: Vec<PolicyInput> = policies
        .iter()
        .map(|p| PolicyInput {
            name: p.name_any(),
            spec: p.spec.clone(),
        })
        .collect();
    let verifiers = verifiers(context, &namespace, &inputs).await?;
    let merged = policy::merge(&inputs, &verifiers);
    let state = match control {
        _ if merged.documents.is_none() => PolicyState::Refused(merged),
        None => PolicyState::Pending {
            merged,
            why: why_not.to_owned(),
        },
        Some(control) => bring(context, cluster, control, merged).await,
    };
    say(context, cluster, &policies, &state).await?;
    Ok(state)
}

/// Values of the Secrets that documents name. One that is not text counts as absent.
async fn verifiers(
    context: &Context,
    namespace: &str,
    inputs: &[PolicyInput],
) -> Result<Verifiers, Failure> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let mut found = Verifiers::new();
    let mut last: Option<(String, Option<Secret>)> = None;
    // In the order of the Secrets' names: each is read once.
    for (name, key) in policy::wanted_secrets(inputs) {
        if last.as_ref().is_none_or(|(read, _)| *read != name) {
            let secret = api.get_opt(&name).await;
            let secret = secret.map_err(Failure::api(format!("read Secret {name}")))?;
            last = Some((name.clone(), secret));
        }
        let secret = last.as_ref().and_then(|(_, s)| s.as_ref());
        let value = secret.and_then(|s| s.data.as_ref()?.get(&key));
        let text = value.and_then(|v| String::from_utf8(v.0.clone()).ok());
        found.insert((name, key), text);
    }
    Ok(found)
}

/// Compares with what is live, and applies what differs.
async fn bring(
    context: &Context,
    cluster: &RelayCluster,
    control: &ControlPlane,
    merged: Merged,
) -> PolicyState {
    let wanted = merged.documents.clone().unwrap_or_default();
    let pending = |merged, e: &CallError| PolicyState::Pending {
        merged,
        why: e.to_string(),
    };
    let live = match control.policy().await {
        Ok(live) => live,
        Err(e) => {
            context.metrics.control_plane_error("Policy/Get");
            return pending(merged, &e);
        }
    };
    let Some(change) = policy::difference(&live.documents, &wanted) else {
        return PolicyState::Live {
            merged,
            revision: live.revision,
        };
    };
    let (changed, removed) = (change.documents.len(), change.remove.len());
    let request = v1::PolicyApplyRequest {
        documents: change.documents,
        expected_revision: live.revision,
        dry_run: false,
        remove: change.remove,
    };
    match control.apply_policy(request).await {
        Ok(reply) => {
            context.metrics.policy_applied();
            let note = format!(
                "policy revision {}: {changed} documents written, {removed} removed",
                reply.revision
            );
            context
                .events
                .did(cluster, "ApplyPolicy", "PolicyApplied", note)
                .await;
            PolicyState::Live {
                merged,
                revision: reply.revision,
            }
        }
        Err(e) => {
            context.metrics.control_plane_error("Policy/Apply");
            pending(merged, &e)
        }
    }
}

/// Events of refusals, and the status of every policy.
async fn say(
    context: &Context,
    cluster: &RelayCluster,
    policies: &[RelayPolicy],
    state: &PolicyState,
) -> Result<(), Failure> {
    let merged = match state {
        PolicyState::NotManaged => return Ok(()),
        PolicyState::Refused(m)
        | PolicyState::Live { merged: m, .. }
        | PolicyState::Pending { merged: m, .. } => m,
    };
    match merged.refusal() {
        Some(why) => {
            let note = format!("nothing is applied, what is live stays: {why}");
            context
                .events
                .refused(cluster, "ApplyPolicy", "PolicyRefused", note)
                .await;
        }
        None => context.events.relented(cluster, "PolicyRefused"),
    }
    for verdict in &merged.verdicts {
        let Some(p) = policies.iter().find(|p| p.name_any() == verdict.name) else {
            continue;
        };
        let faults: Vec<String> = [verdict.invalid(), verdict.conflict()]
            .into_iter()
            .flatten()
            .collect();
        if faults.is_empty() {
            context.events.relented(p, "PolicyRefused");
        } else {
            let note = faults.join("; ");
            context
                .events
                .refused(p, "ApplyPolicy", "PolicyRefused", note)
                .await;
        }
        let old = p.status.clone().unwrap_or_default();
        let new = RelayPolicyStatus {
            observed_generation: p.meta().generation,
            conditions: status::conditions(
                p,
                &old.conditions,
                &conditions::policy_conditions(verdict, state),
            ),
            revision: match state {
                PolicyState::Live { revision, .. } => Some(*revision),
                // What it was stays live.
                _ => old.revision,
            },
            documents: verdict.documents,
        };
        status::write(context, p, &old, &new).await?;
    }
    Ok(())
}

/// Says in a policy that its cluster does not exist, if that is so.
pub(crate) async fn orphan(
    policy: Arc<RelayPolicy>,
    context: Arc<Context>,
) -> Result<Action, Failure> {
    let namespace = policy.namespace().unwrap_or_default();
    let cluster = &policy.spec.cluster_ref.name;
    let api: Api<RelayCluster> = Api::namespaced(context.client.clone(), &namespace);
    let found = api.get_metadata_opt(cluster).await;
    let found = found.map_err(Failure::api(format!("read RelayCluster {cluster}")))?;
    if found.is_none_or(|c| c.metadata.deletion_timestamp.is_some()) {
        abandon(&context, &policy).await?;
    }
    context
        .backoff
        .succeeded(&crate::controller::key(&*policy, "RelayPolicy"));
    Ok(Action::requeue(ORPHAN))
}

/// The cluster of this policy is gone, or was never there.
pub(crate) async fn abandon(context: &Context, policy: &RelayPolicy) -> Result<(), Failure> {
    let old = policy.status.clone().unwrap_or_default();
    let wanted = conditions::orphaned(&policy.spec.cluster_ref.name);
    let new = RelayPolicyStatus {
        observed_generation: policy.meta().generation,
        conditions: status::conditions(policy, &old.conditions, &wanted),
        revision: None,
        documents: u32::try_from(policy.spec.documents.len()).unwrap_or(u32::MAX),
    };
    status::write(context, policy, &old, &new).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_deletion_is_a_change_though_the_object_is_as_it_was() {
        let policy: RelayPolicy = serde_json::from_value(json!({
            "apiVersion": "sealane.io/v1alpha1", "kind": "RelayPolicy",
            "metadata": {"name": "p", "namespace": "ns", "generation": 1},
            "spec": {"clusterRef": {"name": "c"}}
        }))
        .unwrap();
        let after = |event| match marked(event) {
            Event::Apply(p) | Event::Delete(p) => changed(&p),
            _ => None,
        };
        let before = changed(&policy);
        assert_eq!(after(Event::Apply(policy.clone())), before);
        assert_ne!(after(Event::Delete(policy)), before);
    }
}
