//! What there is, as far as the plan for the control plane needs it.
//!
//! Read from the API server itself, not from a cache that may be late, and the control plane's own word in the same pass.
//! Every list may be in any order. An error while reading ends the pass: nothing here means "could not be read", except
//! [`Observed::cluster`].
use crate::Names;
use sealane_crd::OnScaleDown;

/// Everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// Names of the cluster's objects.
    pub names: Names,
    /// What is wanted.
    pub wanted: Wanted,
    /// `status.founded`: once true, always true.
    pub founded: bool,
    /// `status.clusterId`.
    pub cluster_id: Option<String>,
    /// The control plane's StatefulSet.
    pub stateful_set: Option<StatefulSetFacts>,
    /// The control plane's pods, by the StatefulSet's selector; those that are ending are among them.
    pub pods: Vec<PodFacts>,
    /// The control plane's PersistentVolumeClaims, those too that no pod has any more.
    pub volumes: Vec<VolumeFacts>,
    /// What the control plane says. `None`: no node answers.
    pub cluster: Option<ClusterFacts>,
    /// The relay nodes' Deployment.
    pub relays: Option<RelayFacts>,
}

/// Of the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// `spec.controlPlane.replicas`.
    pub replicas: u32,
    /// `spec.controlPlane.copies`.
    pub copies: u32,
    /// `spec.image`.
    pub image: String,
    /// `spec.controlPlane.storage.size`.
    pub storage: String,
    /// `spec.controlPlane.onScaleDown`.
    pub on_scale_down: OnScaleDown,
    /// `spec.paused`.
    pub paused: bool,
}

/// The StatefulSet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatefulSetFacts {
    /// `spec.replicas`.
    pub replicas: u32,
    /// `metadata.generation`.
    pub generation: i64,
    /// `status.observedGeneration`, 0 if absent: until it is `generation`, the rest of the status is of an older spec.
    pub observed_generation: i64,
    /// `status.updateRevision`.
    pub update_revision: Option<String>,
    /// Image of the container in its template.
    pub image: String,
    /// `spec.volumeClaimTemplates[data]…storage`. It cannot be changed.
    pub storage: String,
    /// It has a deletion timestamp.
    pub terminating: bool,
}

/// A pod of the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// N of NAME-control-N.
    pub ordinal: u32,
    /// `metadata.uid`: a pod that is to be deleted is this one, not its successor.
    pub uid: String,
    /// Condition Ready is True.
    pub ready: bool,
    /// Its container is running, ready or not. False for a pod that waits for a node, an image or after a crash.
    pub running: bool,
    /// It has a deletion timestamp.
    pub terminating: bool,
    /// Label `controller-revision-hash`.
    pub revision: Option<String>,
    /// Why it does not run, for people: reason and message of the container's waiting state or of PodScheduled.
    pub trouble: Option<String>,
}

/// A PersistentVolumeClaim data-NAME-control-N.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFacts {
    /// N.
    pub ordinal: u32,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.creationTimestamp`, seconds since 1970.
    pub created_at: u64,
    /// `spec.resources.requests.storage`.
    pub storage: String,
    /// It has a deletion timestamp.
    pub terminating: bool,
}

/// What the control plane says: `ListNodes` of the newest registry revision, and for each group the word of its leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterFacts {
    /// `ClusterStatusReply.cluster_id`.
    pub id: String,
    /// Control-plane nodes, with all tombstones. Several may have one name.
    pub members: Vec<MemberFacts>,
    /// All groups, the metadata group (0) among them.
    pub groups: Vec<GroupFacts>,
    /// `ListNodesReply.settled`: every group is where it is to be, nobody is leaving.
    pub settled: bool,
}

/// A node in the control plane's registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberFacts {
    /// Never used again.
    pub id: u64,
    /// That of its pod.
    pub name: String,
    /// What the registry says.
    pub state: MemberState,
    /// When it joined (`NodeInfo.connected_since_ms`), in seconds since 1970, by a node's clock.
    pub joined_at: u64,
    /// Queue shards with a copy on it.
    pub shards: u32,
    /// Queue shards that it leads.
    pub leads: u32,
}

/// State of a member (`docs/operations.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MemberState {
    /// It joined, and holds no mail.
    Spare,
    /// Replicas are placed on it.
    Active,
    /// It works until everything has moved.
    Leaving,
    /// Declared lost; its places wait.
    Lost,
    /// No member for good.
    Removed,
    /// A word that this version does not know: nothing is done to it.
    Unknown,
}

impl MemberState {
    /// Of `NodeInfo.state`, such as `leaving (3 replicas left)`.
    pub fn parse(s: &str) -> Self {
        match s.split(' ').next().unwrap_or_default() {
            "spare" => Self::Spare,
            "active" => Self::Active,
            "leaving" => Self::Leaving,
            "lost" => Self::Lost,
            "removed" => Self::Removed,
            _ => Self::Unknown,
        }
    }

    /// Its process counts: Raft speaks with it.
    pub fn is_listened_to(self) -> bool {
        matches!(self, Self::Spare | Self::Active | Self::Leaving)
    }
}

/// One Raft group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupFacts {
    /// 0: metadata.
    pub group: u32,
    /// Node id; `None`: none known.
    pub leader: Option<u64>,
    /// Node ids.
    pub voters: Vec<u64>,
    /// Voters by the placement.
    pub wanted: Vec<u64>,
    /// Its leader itself says that a quorum answers it.
    pub quorum: bool,
}

/// The relay nodes' Deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayFacts {
    /// Image of the container in its template.
    pub image: String,
    /// `spec.replicas`.
    pub replicas: u32,
    /// `metadata.generation`.
    pub generation: i64,
    /// `status.observedGeneration`, 0 if absent.
    pub observed_generation: i64,
    /// `status.replicas`.
    pub total: u32,
    /// `status.updatedReplicas`.
    pub updated: u32,
    /// `status.readyReplicas`.
    pub ready: u32,
}

impl StatefulSetFacts {
    /// Its status is about its spec.
    pub fn is_current(&self) -> bool {
        !self.terminating && self.observed_generation >= self.generation
    }
}

impl RelayFacts {
    /// All pods are of the newest template and ready.
    pub fn is_complete(&self) -> bool {
        self.observed_generation >= self.generation
            && self.updated == self.replicas
            && self.total == self.replicas
            && self.ready == self.replicas
    }
}
