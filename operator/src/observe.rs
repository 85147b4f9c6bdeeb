//! Dereference: reads everything that a pass is about. From the API server itself, in this pass, and not from a cache: a pod
//! that was deleted a moment ago must not be seen as running.
mod facts;

use crate::{
    certificates::{self, Secrets},
    context::Context,
    control_client::{self, Answers, ControlPlane},
    failure::Failure,
};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DynamicObject, ListParams},
};
use sealane_crd::RelayCluster;
use sealane_plan::{
    Names, Observed, ValidCluster, names,
    observed::{RelayFacts, StatefulSetFacts, Wanted},
};
use serde::de::DeserializeOwned;

/// Annotation of a RelayCluster: addresses of its control plane, host:port, comma-separated. Followed only with
/// `--allow-endpoint-override`.
pub(crate) const ENDPOINTS: &str = "sealane.io/control-endpoints";

/// What there is.
#[derive(Debug)]
pub(crate) struct Seen {
    /// For the plan.
    pub(crate) observed: Observed,
    /// The StatefulSet that it is about, for a precondition.
    pub(crate) stateful_set: Option<StatefulSet>,
    pub(crate) secrets: Secrets,
    /// With addresses of the nodes that answered; `None`: nobody can be asked yet, or nobody answered.
    pub(crate) control: Option<ControlPlane>,
    /// What they said.
    pub(crate) answers: Option<Answers>,
}

/// Reads.
pub(crate) async fn observe(
    context: &Context,
    cluster: &RelayCluster,
    valid: &ValidCluster,
) -> Result<Seen, Failure> {
    let names = valid.names();
    let sets: Api<StatefulSet> = Api::namespaced(context.client.clone(), names.namespace());
    let deployments: Api<Deployment> = Api::namespaced(context.client.clone(), names.namespace());
    let stateful_set = sets
        .get_opt(&names.control())
        .await
        .map_err(Failure::api("read the StatefulSet of the control plane"))?;
    let deployment = deployments
        .get_opt(&names.relay())
        .await
        .map_err(Failure::api("read the Deployment of relay nodes"))?;
    let pods: Vec<Pod> = list(
        context,
        names,
        names::CONTROL,
        "list pods of the control plane",
    )
    .await?;
    let volumes: Vec<PersistentVolumeClaim> = list(
        context,
        names,
        names::CONTROL,
        "list volumes of the control plane",
    )
    .await?;
    let secrets = certificates::secrets(context, valid).await?;
    let pods: Vec<_> = pods.iter().filter_map(|p| facts::pod(names, p)).collect();

    let ordinals = pods.iter().map(|p| p.ordinal);
    let addresses = addresses(context, cluster, names, ordinals);
    let (control, answers) = ask(context, names, &secrets, addresses).await;
    let status = cluster.status.clone().unwrap_or_default();
    let observed = Observed {
        names: names.clone(),
        wanted: wanted(valid),
        founded: status.founded,
        cluster_id: status.cluster_id,
        stateful_set: stateful_set.as_ref().map(facts::stateful_set),
        pods,
        volumes: volumes
            .iter()
            .filter_map(|v| facts::volume(names, v))
            .collect(),
        cluster: answers.as_ref().map(facts::cluster),
        relays: deployment.as_ref().map(facts::relays),
    };
    Ok(Seen {
        observed,
        stateful_set,
        secrets,
        control,
        answers,
    })
}

/// What runs the pods, as it is after it was applied.
pub(crate) fn workloads(
    applied: &[DynamicObject],
) -> Result<(Option<StatefulSetFacts>, Option<RelayFacts>), Failure> {
    let set = one::<StatefulSet>(applied)?;
    let relays = one::<Deployment>(applied)?;
    Ok((
        set.as_ref().map(facts::stateful_set),
        relays.as_ref().map(facts::relays),
    ))
}

/// The only object of its kind.
fn one<K>(applied: &[DynamicObject]) -> Result<Option<K>, Failure>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let is = |o: &&DynamicObject| o.types.as_ref().is_some_and(|t| t.kind == K::kind(&()));
    let found = applied.iter().find(is).cloned();
    let parsed = found.map(DynamicObject::try_parse).transpose();
    parsed.map_err(|cause| Failure::Answer {
        kind: K::kind(&()).into_owned(),
        cause,
    })
}

/// All objects of a part, those too that the StatefulSet has forgotten.
pub(crate) async fn list<K>(
    context: &Context,
    names: &Names,
    part: &str,
    doing: &str,
) -> Result<Vec<K>, Failure>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), names.namespace());
    let (cluster, component) = (names::CLUSTER_LABEL, names::LABEL_COMPONENT);
    let chosen =
        ListParams::default().labels(&format!("{cluster}={},{component}={part}", names.cluster()));
    let found = api.list(&chosen).await.map_err(Failure::api(doing))?;
    Ok(found.items)
}

fn wanted(valid: &ValidCluster) -> Wanted {
    let spec = valid.spec();
    let c = &spec.control_plane;
    Wanted {
        replicas: c.replicas,
        copies: c.copies,
        image: spec.image.clone(),
        storage: c.storage.size.clone(),
        on_scale_down: c.on_scale_down,
        paused: spec.paused,
    }
}

/// Where nodes may be: behind the client Service those that are ready, by their pods' names the others too.
fn addresses(
    context: &Context,
    cluster: &RelayCluster,
    names: &Names,
    ordinals: impl Iterator<Item = u32>,
) -> Vec<String> {
    let told = cluster.annotations().get(ENDPOINTS);
    if let Some(told) = told.filter(|_| context.endpoint_override) {
        let each = told.split(',').map(str::trim).filter(|a| !a.is_empty());
        return each.map(str::to_owned).collect();
    }
    let mut all: Vec<String> = ordinals.map(|n| names.control_address(n)).collect();
    if !all.is_empty() {
        all.push(names.control_client_address());
    }
    all
}

async fn ask(
    context: &Context,
    names: &Names,
    secrets: &Secrets,
    addresses: Vec<String>,
) -> (Option<ControlPlane>, Option<Answers>) {
    let Some((certificate, key, ca)) = secrets.operator(names) else {
        return (None, None);
    };
    if addresses.is_empty() {
        return (None, None);
    }
    let identity = match control_client::identity(certificate, key, ca) {
        Ok(i) => i,
        Err(e) => {
            let secret = names.operator_identity();
            tracing::warn!(%secret, error = format!("{e:#}"), "the operator's identity in a cluster cannot be used");
            return (None, None);
        }
    };
    let mut control = ControlPlane::new(identity, addresses);
    let (answers, silent) = control.ask().await;
    for (address, why) in &silent {
        context.metrics.control_plane_error("Admin");
        tracing::debug!(%address, %why, "a control-plane node did not answer");
    }
    if answers.is_none() && !silent.is_empty() {
        let all: Vec<String> = silent
            .iter()
            .map(|(a, why)| format!("{a}: {why}"))
            .collect();
        tracing::info!(
            cluster = names.cluster(),
            namespace = names.namespace(),
            causes = all.join("; "),
            "no control-plane node answers"
        );
    }
    (answers.is_some().then_some(control), answers)
}
