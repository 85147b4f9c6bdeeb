//! `RelayCluster.status`.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is. Written by the operator only.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayClusterStatus {
    /// Generation of the spec that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Relay nodes that there are.
    #[serde(default)]
    pub replicas: u32,
    /// Relay nodes that take mail.
    #[serde(default)]
    pub ready_replicas: u32,
    /// Label selector of the relay nodes' pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// Available, Progressing, Degraded, QuorumHealthy, CertificatesReady, PolicySynced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The Raft cluster exists. Once true it stays true: no node founds another one.
    #[serde(default)]
    pub founded: bool,
    /// Which Raft cluster it is; the first one that answered. Another one is never taken for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Control-plane nodes: ready / wanted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub members_ready: String,
    /// Control-plane nodes, as the control plane sees them. Those that were removed are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub members: Vec<MemberStatus>,
    /// How many queue shards each control-plane node leads.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub leaders: BTreeMap<String, u32>,
    /// The queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueStatus>,
    /// Revision of the policy that is live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_revision: Option<u64>,
    /// What is in motion, or what is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Image that all pods run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// When certificates end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<CertificateTimes>,
}

/// A control-plane node.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Name; that of its pod.
    pub name: String,
    /// Raft node id. It is on the volume and never used again.
    pub id: u64,
    /// spare, active, leaving (with how many copies are left), lost.
    pub state: String,
    /// Its pod is ready: all its copies are current.
    pub ready: bool,
    /// Queue shards with a copy on it.
    pub shards: u32,
    /// Queue shards that it leads.
    pub leads: u32,
}

/// The queue.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueStatus {
    /// Messages that wait.
    pub waiting: u64,
    /// Age of the oldest one, in seconds.
    #[serde(default)]
    pub oldest_age_seconds: u64,
}

/// When certificates end.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateTimes {
    /// The CA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_not_after: Option<Time>,
    /// The workload certificate that ends first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_not_after: Option<Time>,
    /// The public certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_not_after: Option<Time>,
}
