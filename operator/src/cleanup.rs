//! The finalizer: a RelayCluster that is deleted goes in order. Relay nodes first, while there is a control plane that takes
//! back what they hold; then the rest, by its owner references. Volumes and the CA stay (docs/kubernetes.md).
use crate::{
    apply::gone, context::Context, events::CONTROLLER, failure::Failure, metrics::Outcome, observe,
    policies,
};
use k8s_openapi::{
    api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler, core::v1::Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
    runtime::controller::Action,
};
use sealane_crd::{FINALIZER, RelayCluster, condition};
use sealane_plan::{Names, names};
use serde_json::json;
use std::time::Duration;

/// Between two looks at relay nodes that finish what they began.
const LOOK: Duration = Duration::from_secs(2);
/// Beside their grace period, which is `drainSeconds` and this.
const BESIDES_DRAINING: i64 = 60;

/// Sees to it that the finalizer is there, and answers with the resource that has it.
pub(crate) async fn enter(
    api: &Api<RelayCluster>,
    cluster: RelayCluster,
) -> Result<RelayCluster, Failure> {
    if cluster.finalizers().iter().any(|f| f == FINALIZER) {
        return Ok(cluster);
    }
    let mut finalizers = cluster.finalizers().to_vec();
    finalizers.push(FINALIZER.to_owned());
    write(api, &cluster, &finalizers).await
}

/// Only over the version that was read: others have finalizers too.
async fn write(
    api: &Api<RelayCluster>,
    cluster: &RelayCluster,
    finalizers: &[String],
) -> Result<RelayCluster, Failure> {
    let patch = json!({ "metadata": {
        "resourceVersion": cluster.resource_version(),
        "finalizers": finalizers,
    } });
    let ours = PatchParams {
        field_manager: Some(CONTROLLER.to_owned()),
        ..PatchParams::default()
    };
    let written = api
        .patch(&cluster.name_any(), &ours, &Patch::Merge(&patch))
        .await;
    written.map_err(Failure::api("write the finalizer"))
}

/// A pass over a RelayCluster that is being deleted.
pub(crate) async fn leave(
    context: &Context,
    api: &Api<RelayCluster>,
    cluster: &RelayCluster,
) -> Result<(Outcome, Action), Failure> {
    if !cluster.finalizers().iter().any(|f| f == FINALIZER) {
        return Ok((Outcome::Settled, Action::await_change()));
    }
    let namespace = cluster.namespace().unwrap_or_default();
    let names = Names::new(&namespace, &cluster.name_any());
    let left = drain(context, &names).await?;
    if left > 0 && !is_late(cluster) {
        let note = format!("{left} relay nodes finish their sessions and deliveries first");
        context
            .events
            .waits(cluster, "Delete", "Draining", note)
            .await;
        return Ok((Outcome::Moving, Action::requeue(LOOK)));
    }
    for p in policies::of_cluster(context, &namespace, &cluster.name_any()).await? {
        policies::abandon(context, &p).await?;
    }
    let kept = format!(
        "the volumes of the control plane and the Secret {} stay: a RelayCluster of the same name takes them over with the queue. Delete them if the queue is not needed",
        names.ca()
    );
    context.events.did(cluster, "Delete", "Deleted", kept).await;
    let others: Vec<String> = cluster
        .finalizers()
        .iter()
        .filter(|f| *f != FINALIZER)
        .cloned()
        .collect();
    match write(api, cluster, &others).await {
        Ok(_) => {}
        Err(Failure::Api {
            cause: kube::Error::Api(s),
            ..
        }) if s.is_not_found() => {}
        Err(e) => return Err(e),
    }
    context.events.forget(cluster);
    let all = [
        condition::AVAILABLE,
        condition::PROGRESSING,
        condition::DEGRADED,
        condition::QUORUM_HEALTHY,
        condition::CERTIFICATES_READY,
        condition::POLICY_SYNCED,
    ];
    context.metrics.forget(&namespace, names.cluster(), &all);
    Ok((Outcome::Settled, Action::await_change()))
}

/// Takes the relay nodes away; answers how many are still there.
async fn drain(context: &Context, names: &Names) -> Result<usize, Failure> {
    let relay = names.relay();
    let scalers: Api<HorizontalPodAutoscaler> =
        Api::namespaced(context.client.clone(), names.namespace());
    gone(scalers.delete(&relay, &DeleteParams::background()).await).map_err(Failure::api(
        format!("delete HorizontalPodAutoscaler {relay}"),
    ))?;
    let deployments: Api<Deployment> = Api::namespaced(context.client.clone(), names.namespace());
    gone(
        deployments
            .delete(&relay, &DeleteParams::background())
            .await,
    )
    .map_err(Failure::api(format!("delete Deployment {relay}")))?;
    let pods: Vec<Pod> =
        observe::list(context, names, names::RELAY, "list pods of relay nodes").await?;
    Ok(pods.len())
}

/// They had more than their time: a machine that is gone, most likely.
fn is_late(cluster: &RelayCluster) -> bool {
    let Some(since) = &cluster.meta().deletion_timestamp else {
        return false;
    };
    let drain = i64::from(cluster.spec.relay.drain_seconds);
    Timestamp::now().as_second() - since.0.as_second() > drain + BESIDES_DRAINING
}
