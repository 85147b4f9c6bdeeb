//! All objects of a RelayCluster, as they are to be. Secrets are not among them: their contents are no business of pure code.
//!
//! The same input gives the same objects, to the octet: what is applied twice changes nothing. Nothing in the control plane's
//! pod template depends on how many nodes there are, on their ordinals, or on whether the cluster is founded: any of that
//! would restart every node when one is added.
mod config;
mod control;
mod disruption;
mod issuing;
mod monitoring;
mod network;
mod pod;
mod relay;
mod scaling;
mod services;
#[cfg(test)]
mod tests;

pub use relay::selector as relay_selector;

use crate::{
    ValidCluster,
    names::{self, Names},
    plan::Plan,
};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{ConfigMap, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
};
use kube::{
    Resource,
    core::{ApiResource, DynamicObject, GroupVersionKind, TypeMeta},
};
use sealane_crd::{GROUP, VERSION};
use serde::Serialize;
use std::collections::BTreeMap;

/// Which optional APIs the server has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Apis {
    /// `monitoring.coreos.com/v1` PodMonitor.
    pub pod_monitor: bool,
    /// `cert-manager.io/v1` Certificate.
    pub cert_manager: bool,
}

/// What the objects are made of.
#[derive(Debug, Clone)]
pub struct BuildInput<'a> {
    /// Checked.
    pub cluster: &'a ValidCluster,
    /// `spec.replicas` of the StatefulSet.
    pub control_replicas: u32,
    /// The control plane's nodes are configured for ordinals below this.
    pub ordinals: u32,
    /// Size in the StatefulSet's volume template.
    pub storage: &'a str,
    /// Image of relay nodes; that of the control plane is the spec's.
    pub relay_image: &'a str,
    /// The Raft cluster exists.
    pub founded: bool,
    /// Optional APIs.
    pub apis: Apis,
}

impl Plan {
    /// What [`build`] takes.
    pub fn build_input<'a>(&'a self, cluster: &'a ValidCluster, apis: Apis) -> BuildInput<'a> {
        BuildInput {
            cluster,
            control_replicas: self.control_replicas,
            ordinals: self.ordinals,
            storage: &self.storage,
            relay_image: &self.relay_image,
            founded: self.founded,
            apis,
        }
    }
}

/// Everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Children {
    /// Of the control plane and of relay nodes; neither may call the API.
    pub service_accounts: Vec<ServiceAccount>,
    /// Configurations.
    pub config_maps: Vec<ConfigMap>,
    /// Headless, client, SMTP.
    pub services: Vec<Service>,
    /// Default deny, and what is allowed.
    pub network_policies: Vec<NetworkPolicy>,
    /// One for each part.
    pub disruption_budgets: Vec<PodDisruptionBudget>,
    /// The control plane.
    pub stateful_set: StatefulSet,
    /// Relay nodes.
    pub deployment: Deployment,
    /// If it is asked for.
    pub autoscaler: Option<HorizontalPodAutoscaler>,
    /// PodMonitors and cert-manager's Certificates.
    pub others: Vec<DynamicObject>,
}

/// Builds everything.
pub fn build(i: &BuildInput<'_>) -> Children {
    Children {
        service_accounts: [names::CONTROL, names::RELAY]
            .map(|part| pod::service_account(i.cluster, part))
            .into(),
        config_maps: vec![config::control_map(i), config::relay_map(i)],
        services: services::all(i.cluster),
        network_policies: network::all(i.cluster),
        disruption_budgets: disruption::all(i.cluster),
        stateful_set: control::stateful_set(i),
        deployment: relay::deployment(i),
        autoscaler: scaling::autoscaler(i.cluster),
        others: issuing::certificates(i)
            .into_iter()
            .chain(monitoring::pod_monitor(i))
            .collect(),
    }
}

impl Children {
    /// All of them, in the order in which they are applied.
    pub fn objects(&self) -> Vec<DynamicObject> {
        let mut all = Vec::new();
        let Self {
            service_accounts,
            config_maps,
            services,
            network_policies,
            disruption_budgets,
            stateful_set,
            deployment,
            autoscaler,
            others,
        } = self;
        all.extend(service_accounts.iter().map(dynamic));
        all.extend(config_maps.iter().map(dynamic));
        all.extend(services.iter().map(dynamic));
        all.extend(network_policies.iter().map(dynamic));
        all.extend(disruption_budgets.iter().map(dynamic));
        all.extend(others.iter().cloned());
        all.push(dynamic(stateful_set));
        all.push(dynamic(deployment));
        all.extend(autoscaler.iter().map(dynamic));
        all
    }
}

/// Kinds of which there may be children; those that are not in [`Children::objects`] any more are to be deleted. The optional
/// APIs come last.
pub fn kinds(apis: Apis) -> Vec<ApiResource> {
    let mut all = vec![
        ApiResource::erase::<ServiceAccount>(&()),
        ApiResource::erase::<ConfigMap>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<NetworkPolicy>(&()),
        ApiResource::erase::<PodDisruptionBudget>(&()),
        ApiResource::erase::<StatefulSet>(&()),
        ApiResource::erase::<Deployment>(&()),
        ApiResource::erase::<HorizontalPodAutoscaler>(&()),
    ];
    if apis.cert_manager {
        all.push(certificate_api());
    }
    if apis.pod_monitor {
        all.push(pod_monitor_api());
    }
    all
}

/// cert-manager's Certificate.
pub fn certificate_api() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("cert-manager.io", "v1", "Certificate"),
        "certificates",
    )
}

/// The Prometheus operator's PodMonitor.
pub fn pod_monitor_api() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("monitoring.coreos.com", "v1", "PodMonitor"),
        "podmonitors",
    )
}

fn dynamic<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> DynamicObject {
    let value = serde_json::to_value(object).expect("objects of the API are JSON");
    let mut read: DynamicObject = serde_json::from_value(value).expect("every object has metadata");
    read.types = Some(TypeMeta {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
    });
    if let Some(fields) = read.data.as_object_mut() {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    read
}

/// Labels of everything of a part.
fn labels(n: &Names, part: &str) -> BTreeMap<String, String> {
    let mut all = selector_labels(n, part);
    for (key, value) in [names::MANAGED_BY, (names::CLUSTER_LABEL, n.cluster())] {
        all.insert(key.to_owned(), value.to_owned());
    }
    all
}

/// Labels by which pods of a part are found. They are in selectors that cannot be changed.
fn selector_labels(n: &Names, part: &str) -> BTreeMap<String, String> {
    [
        (names::LABEL_NAME, names::PRODUCT),
        (names::LABEL_INSTANCE, n.cluster()),
        (names::LABEL_COMPONENT, part),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn selector(n: &Names, part: &str) -> LabelSelector {
    LabelSelector {
        match_labels: Some(selector_labels(n, part)),
        match_expressions: None,
    }
}

fn owner(c: &ValidCluster) -> OwnerReference {
    OwnerReference {
        api_version: format!("{GROUP}/{VERSION}"),
        kind: "RelayCluster".to_owned(),
        name: c.names().cluster().to_owned(),
        uid: c.uid().to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Of an object that goes with the RelayCluster.
fn meta(c: &ValidCluster, name: String, part: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(c.names().namespace().to_owned()),
        labels: Some(labels(c.names(), part)),
        owner_references: Some(vec![owner(c)]),
        ..ObjectMeta::default()
    }
}

/// Of a Secret with certificates. One that is `kept` has no owner: it stays when the RelayCluster goes, so that one of the
/// same name finds its volumes with nodes that trust it.
pub fn secret_meta(c: &ValidCluster, name: String, kept: bool) -> ObjectMeta {
    let mut m = meta(c, name, names::CERTIFICATES);
    if kept {
        m.owner_references = None;
        if let Some(labels) = &mut m.labels {
            labels.insert(names::LABEL_KEEP.to_owned(), "true".to_owned());
        }
    }
    m
}
