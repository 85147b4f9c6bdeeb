//! `spec.controlPlane`.
use crate::schema;
use k8s_openapi::{
    api::core::v1::{ResourceRequirements, Toleration},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The control plane.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.copies <= self.replicas")
    .message("copies: each copy needs a node of its own, so there must be at least as many replicas as copies; with fewer nodes no mail would be taken"))]
#[serde(rename_all = "camelCase")]
pub struct ControlPlane {
    /// How many nodes: 1, 3, 5 or 7. Nodes are added and removed one at a time; the queue moves before one goes. With 1 the loss of its volume loses mail.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 7))]
    #[x_kube(validation = Rule::new("self in [1, 3, 5, 7]")
        .message("replicas: must be 1, 3, 5 or 7: an even number of nodes survives no more failures than one less"))]
    pub replicas: u32,
    /// Queue shards, the unit that is spread over the nodes. Fixed when the cluster is founded.
    #[serde(default = "eight")]
    #[schemars(range(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("shards: is fixed when the cluster is founded: a message never moves between shards. For another number found another RelayCluster and restore a backup into it"))]
    pub shards: u32,
    /// Copies of everything: 1, 3 or 5. Of 3, one may be lost without a pause. Fixed when the cluster is founded.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 5))]
    #[x_kube(
        validation = Rule::new("self in [1, 3, 5]")
            .message("copies: must be 1, 3 or 5: an even number of copies survives no more failures than one less"),
        validation = Rule::new("self == oldSelf")
            .message("copies: is fixed when the cluster is founded. For another number found another RelayCluster and restore a backup into it")
    )]
    pub copies: u32,
    /// The volume of each node.
    #[serde(default)]
    pub storage: Storage,
    /// What becomes of the volume of a node that was removed. Its queue is on the other nodes by then.
    #[serde(default)]
    pub on_scale_down: OnScaleDown,
    /// Resources of each pod.
    #[serde(default = "resources")]
    pub resources: ResourceRequirements,
    /// Nodes of Kubernetes must have these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods bear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tolerations: Vec<Toleration>,
    /// PriorityClass of the pods. Give it one that is evicted last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// More of the configuration of control-plane, as in docs/configuration.md: lease, diskReserve, scrub, raft and so on. What the operator sets itself is refused here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::free_object")]
    pub config: BTreeMap<String, Value>,
}

/// The volume of each node.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
        .message("storage.storageClassName: volumes cannot change their class. Back up, found another RelayCluster with the new class, restore")
        .field_path(".storageClassName")
)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Size of each volume, such as 10Gi. It may grow, if the storage class allows expansion; it never shrinks.
    #[serde(default = "size")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(
        validation = Rule::new("isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))")
            .message("storage.size: write it as 10Gi or 500G"),
        validation = Rule::new("!isQuantity(self) || !isQuantity(oldSelf) || quantity(self).compareTo(quantity(oldSelf)) >= 0")
            .message("storage.size: volumes cannot shrink. Back up, found another RelayCluster with smaller volumes, restore")
    )]
    pub size: String,
    /// StorageClass; absent: the default one. It should be local or replicated block storage that honours fsync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// Delete: the volume goes once the control plane says that the node is removed for good; its identity is never valid again. Retain: it stays, and must be deleted by hand before the number of nodes is raised again.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnScaleDown {
    /// Once the member is removed.
    #[default]
    Delete,
    /// Never.
    Retain,
}

fn three() -> u32 {
    3
}
fn eight() -> u32 {
    8
}
fn size() -> String {
    "10Gi".to_owned()
}
fn resources() -> ResourceRequirements {
    let amounts = |pairs: &[(&str, &str)]| {
        let amount = |(name, n): &(&str, &str)| ((*name).to_owned(), Quantity((*n).to_owned()));
        Some(pairs.iter().map(amount).collect())
    };
    ResourceRequirements {
        claims: None,
        requests: amounts(&[("cpu", "250m"), ("memory", "1Gi")]),
        limits: amounts(&[("memory", "2Gi")]),
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            size: size(),
            storage_class_name: None,
        }
    }
}

impl Default for ControlPlane {
    fn default() -> Self {
        Self {
            replicas: three(),
            shards: eight(),
            copies: three(),
            storage: Storage::default(),
            on_scale_down: OnScaleDown::Delete,
            resources: resources(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            priority_class_name: None,
            config: BTreeMap::new(),
        }
    }
}
