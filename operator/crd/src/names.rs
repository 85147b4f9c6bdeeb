//! Names that several types use.
use k8s_openapi::api::core::v1::LocalObjectReference;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A Secret of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretName {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

impl From<&SecretName> for LocalObjectReference {
    fn from(s: &SecretName) -> Self {
        Self {
            name: s.name.clone(),
        }
    }
}

/// One key of a Secret of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key within it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Types of conditions.
pub mod condition {
    /// RelayCluster: mail is taken and delivered.
    pub const AVAILABLE: &str = "Available";
    /// RelayCluster: the operator is changing something, or waits to.
    pub const PROGRESSING: &str = "Progressing";
    /// RelayCluster: something is wrong that needs a person.
    pub const DEGRADED: &str = "Degraded";
    /// RelayCluster: every group of the control plane has a leader and all its voters answer.
    pub const QUORUM_HEALTHY: &str = "QuorumHealthy";
    /// RelayCluster: all certificates are there and valid for long enough.
    pub const CERTIFICATES_READY: &str = "CertificatesReady";
    /// RelayCluster: the control plane has the policy that the RelayPolicies say.
    pub const POLICY_SYNCED: &str = "PolicySynced";
    /// RelayPolicy: every document is valid.
    pub const VALID: &str = "Valid";
    /// RelayPolicy: another one says something about the same name.
    pub const CONFLICT: &str = "Conflict";
    /// RelayPolicy: it is live.
    pub const SYNCED: &str = "Synced";
}

/// Reasons of conditions. A closed set: alerts and scripts may rely on them.
pub mod reason {
    /// As it is to be.
    pub const READY: &str = "Ready";
    /// Nothing is to be done.
    pub const SETTLED: &str = "Settled";
    /// `spec.paused`.
    pub const PAUSED: &str = "Paused";
    /// The spec is refused; nothing was changed.
    pub const INVALID: &str = "Invalid";
    /// A Secret or another object that the spec names is not there.
    pub const MISSING: &str = "Missing";
    /// The first nodes are starting; the Raft cluster does not exist yet.
    pub const FOUNDING: &str = "Founding";
    /// A step is under way.
    pub const STEPPING: &str = "Stepping";
    /// A step waits until it is safe.
    pub const WAITING: &str = "Waiting";
    /// Pods of relay nodes are being replaced.
    pub const ROLLING: &str = "Rolling";
    /// No control-plane node answers.
    pub const UNREACHABLE: &str = "Unreachable";
    /// A group has no leader or no quorum.
    pub const NO_QUORUM: &str = "NoQuorum";
    /// Some members do not answer; every group has a quorum.
    pub const MEMBER_DOWN: &str = "MemberDown";
    /// No relay node is ready.
    pub const NO_RELAYS: &str = "NoRelays";
    /// A member was declared lost, or its volume is of a removed one.
    pub const MEMBER_LOST: &str = "MemberLost";
    /// The control plane that answers is not the one that was there before.
    pub const OTHER_CLUSTER: &str = "OtherCluster";
    /// A volume is in the way.
    pub const VOLUME_IN_THE_WAY: &str = "VolumeInTheWay";
    /// Certificates are being issued for the first time.
    pub const ISSUING: &str = "Issuing";
    /// A certificate is being replaced.
    pub const ROTATING: &str = "Rotating";
    /// A certificate ends soon or has ended.
    pub const EXPIRING: &str = "Expiring";
    /// No RelayPolicy names this cluster; the policy is managed with `sealane policy`.
    pub const NOT_MANAGED: &str = "NotManaged";
    /// Two RelayPolicies say something about the same name.
    pub const CONFLICT: &str = "Conflict";
    /// No other RelayPolicy says anything about the same names.
    pub const NO_CONFLICT: &str = "NoConflict";
    /// Every document is valid.
    pub const VALID: &str = "Valid";
    /// Live.
    pub const APPLIED: &str = "Applied";
    /// Not live yet.
    pub const PENDING: &str = "Pending";
    /// Another RelayPolicy of the cluster is refused, so nothing of any is applied.
    pub const OTHERS_REFUSED: &str = "OthersRefused";
    /// The cluster that the policy names does not exist.
    pub const NO_CLUSTER: &str = "NoCluster";
}
