//! `RelayCluster`: what is wanted.
use crate::{
    control_plane::ControlPlane,
    names::SecretName,
    relay::Relay,
    settings::{Certificates, Monitoring, NetworkPolicySettings, PullPolicy, Telemetry},
    status::RelayClusterStatus,
};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// What is wanted.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "sealane.io",
    version = "v1alpha1",
    kind = "RelayCluster",
    plural = "relayclusters",
    namespaced,
    doc = "A mail relay: relay nodes that accept and deliver mail, and a control plane that keeps it. Mail that was accepted is synced on a majority of the control plane's volumes. The operator takes one disruptive step at a time, and none that could take a majority away.",
    derive = "PartialEq",
    status = "RelayClusterStatus",
    shortname = "slc",
    category = "sealane",
    scale(
        spec_replicas_path = ".spec.relay.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Relays",
        type_ = "integer",
        json_path = ".status.replicas",
        description = "relay nodes that there are"
    ),
    printcolumn(
        name = "Ready",
        type_ = "integer",
        json_path = ".status.readyReplicas",
        description = "relay nodes that take mail"
    ),
    printcolumn(
        name = "Members",
        type_ = "string",
        json_path = ".status.membersReady",
        description = "control-plane nodes: ready / wanted"
    ),
    printcolumn(
        name = "Quorum",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"QuorumHealthy\")].status",
        description = "whether every group of the control plane is whole"
    ),
    printcolumn(
        name = "Waiting",
        type_ = "integer",
        json_path = ".status.queue.waiting",
        description = "messages in the queue"
    ),
    printcolumn(
        name = "Policy",
        type_ = "integer",
        json_path = ".status.policyRevision",
        description = "revision of the policy that is live"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Image",
        type_ = "string",
        json_path = ".spec.image",
        description = "image that is wanted",
        priority = 1
    ),
    printcolumn(
        name = "Step",
        type_ = "string",
        json_path = ".status.step",
        description = "what is in motion",
        priority = 1
    ),
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name: at most 40 characters, a-z, 0-9 and '-', beginning with a letter: names of Services, pods and certificates are made of it")
)]
#[x_kube(validation = Rule::new("!has(self.relay.autoscaling) || self.relay.replicas >= 1")
    .message("relay.replicas: 0 switches a HorizontalPodAutoscaler off; remove relay.autoscaling first"))]
#[serde(rename_all = "camelCase")]
pub struct RelayClusterSpec {
    /// Image of relay nodes and of the control plane. A change is rolled out to the control plane first, one node at a time, then to relay nodes, which finish what they began.
    #[schemars(length(min = 1, max = 1024))]
    pub image: String,
    /// When the image is pulled.
    #[serde(default)]
    pub image_pull_policy: PullPolicy,
    /// Secrets with credentials for the image's registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<SecretName>,
    /// The relay nodes: they accept and deliver mail and keep nothing.
    pub relay: Relay,
    /// The control plane: it keeps the queue and the policy.
    #[serde(default)]
    pub control_plane: ControlPlane,
    /// Certificates with which the processes know each other. The one that SMTP clients see is `relay.certificate`.
    #[serde(default)]
    pub certificates: Certificates,
    /// Who may connect to the pods.
    #[serde(default)]
    pub network_policy: NetworkPolicySettings,
    /// How metrics are found.
    #[serde(default)]
    pub monitoring: Monitoring,
    /// Logs and traces of the pods.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// The operator changes nothing while this is true; the cluster runs on. Certificates are not renewed either.
    #[serde(default)]
    pub paused: bool,
}
