//! The one disruptive step of a pass, and volumes that grow. Each is repeated harmlessly: a deletion names the object that was
//! seen, not its successor, and a change of a member is decided once by the control plane.
use crate::{
    apply::gone, context::Context, control_client::CallError, failure::Failure, observe::Seen,
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Pod},
    },
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
};
use sealane_crd::{RelayCluster, reason};
use sealane_plan::{
    Step,
    plan::{Plan, VolumeGrowth, Waiting},
};
use sealane_wire::v1::change_node_request::Action;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::fmt::Debug;

/// Reason of the Event when the control plane does not take a step.
const STEP_REFUSED: &str = "StepRefused";
/// Reason of the Event when a volume cannot grow.
const GROWTH_REFUSED: &str = "VolumeGrowthRefused";

/// Takes the step of `plan`. If the control plane refuses it, the plan says from then on that it waits.
pub(crate) async fn act(
    context: &Context,
    cluster: &RelayCluster,
    seen: &Seen,
    plan: &mut Plan,
) -> Result<(), Failure> {
    let Some(step) = plan.step.clone() else {
        return Ok(());
    };
    if let Err(why) = take(context, cluster, seen, &step).await? {
        let message = format!("{step}: {why}");
        context
            .events
            .refused(cluster, step.reason(), STEP_REFUSED, message.clone())
            .await;
        plan.step = None;
        plan.waiting = Some(Waiting {
            reason: reason::WAITING,
            message,
        });
        return Ok(());
    }
    context.events.relented(cluster, STEP_REFUSED);
    context.metrics.step(step.reason());
    context
        .events
        .did(cluster, step.reason(), step.reason(), step.to_string())
        .await;
    Ok(())
}

/// The outer result is the API server's, the inner one the control plane's.
async fn take(
    context: &Context,
    cluster: &RelayCluster,
    seen: &Seen,
    step: &Step,
) -> Result<Result<(), CallError>, Failure> {
    match step {
        Step::AddMember { name } => Ok(change(context, seen, Action::Add, name).await),
        Step::RemoveMember { name } => Ok(change(context, seen, Action::Remove, name).await),
        Step::RestartPod { name, uid } => {
            delete::<Pod>(context, cluster, name, Some(uid.clone()), None)
                .await
                .map(Ok)
        }
        Step::DeleteVolume { name, uid } => {
            delete::<PersistentVolumeClaim>(context, cluster, name, Some(uid.clone()), None)
                .await
                .map(Ok)
        }
        Step::RecreateStatefulSet => {
            let Some(set) = &seen.stateful_set else {
                return Ok(Ok(()));
            };
            let around = Some(PropagationPolicy::Orphan);
            delete::<StatefulSet>(context, cluster, &set.name_any(), set.uid(), around)
                .await
                .map(Ok)
        }
        // Done by applying the StatefulSet.
        Step::CreateControlPlane { .. }
        | Step::RaiseReplicas { .. }
        | Step::LowerReplicas { .. } => Ok(Ok(())),
    }
}

async fn change(
    context: &Context,
    seen: &Seen,
    action: Action,
    name: &str,
) -> Result<(), CallError> {
    let Some(control) = &seen.control else {
        return Err(CallError::Nobody("it did not a moment ago".to_owned()));
    };
    let changed = control.change_node(action, name).await;
    if changed.is_err() {
        context.metrics.control_plane_error("Admin/ChangeNode");
    }
    changed.map(drop)
}

async fn delete<K>(
    context: &Context,
    cluster: &RelayCluster,
    name: &str,
    uid: Option<String>,
    propagation_policy: Option<PropagationPolicy>,
) -> Result<(), Failure>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let namespace = cluster.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(context.client.clone(), &namespace);
    let this_one = DeleteParams {
        propagation_policy,
        preconditions: Some(Preconditions {
            uid,
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let deleted = api.delete(name, &this_one).await;
    gone(deleted).map_err(Failure::api(format!("delete {} {name}", K::kind(&()))))
}

/// Asks for larger volumes. What the StorageClass does not allow is said, and the pass goes on.
pub(crate) async fn grow(context: &Context, cluster: &RelayCluster, all: &[VolumeGrowth]) {
    let namespace = cluster.namespace().unwrap_or_default();
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace);
    let mut refused = Vec::new();
    for g in all {
        let patch = json!({ "spec": { "resources": { "requests": { "storage": g.storage } } } });
        match api
            .patch(&g.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
        {
            Ok(_) => {
                let note = format!("the volume {} was asked to grow to {}", g.name, g.storage);
                context
                    .events
                    .did(cluster, "GrowVolume", "VolumeGrows", note)
                    .await;
            }
            Err(kube::Error::Api(s)) if s.is_not_found() => {}
            Err(e) => {
                refused.push(Failure::api(format!("grow the volume {}", g.name))(e).to_string())
            }
        }
    }
    if refused.is_empty() {
        context.events.relented(cluster, GROWTH_REFUSED);
    } else {
        let note = format!(
            "{}; does the StorageClass allow expansion?",
            refused.join("; ")
        );
        context
            .events
            .refused(cluster, "GrowVolume", GROWTH_REFUSED, note)
            .await;
    }
}
