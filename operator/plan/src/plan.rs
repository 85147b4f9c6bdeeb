//! The next step of the control plane, or what is waited for.
//!
//! No state is kept between passes: the same observation gives the same plan, so the operator may die between any two
//! steps, and in the middle of one. A step that was begun is seen as "something is in motion" until it is over.
mod steps;
#[cfg(test)]
mod tests;
mod view;

use crate::observed::{Observed, RelayFacts, StatefulSetFacts};
use sealane_crd::reason;
use std::fmt;
use view::View;

/// One thing to do. Names are of pods and members, which have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make the StatefulSet, with so many pods: for the first time, again over volumes that were kept, or around pods that
    /// run. Done by applying it.
    CreateControlPlane {
        /// `spec.replicas`.
        replicas: u32,
    },
    /// One pod more. It joins as a spare. Done by applying the StatefulSet.
    RaiseReplicas {
        /// `spec.replicas`.
        replicas: u32,
    },
    /// `ChangeNode` ADD: replicas move to it; or a removal is taken back.
    AddMember {
        /// The member.
        name: String,
    },
    /// `ChangeNode` REMOVE: replicas move away from it, then it is removed for good.
    RemoveMember {
        /// The member.
        name: String,
    },
    /// The pod with the highest ordinal goes; its member is removed. Done by applying the StatefulSet.
    LowerReplicas {
        /// `spec.replicas`.
        replicas: u32,
    },
    /// Delete the PersistentVolumeClaim of a removed member.
    DeleteVolume {
        /// The PersistentVolumeClaim.
        name: String,
        /// Precondition.
        uid: String,
    },
    /// Delete the pod, which comes back by the newest template. Kubernetes gives it its grace period, in which it hands its
    /// leaderships over.
    RestartPod {
        /// The pod.
        name: String,
        /// Precondition.
        uid: String,
    },
    /// Delete the StatefulSet with propagation policy Orphan: it cannot change its volume template, and is made again around
    /// its pods in the next pass.
    RecreateStatefulSet,
}

impl Step {
    /// For Events: one word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::CreateControlPlane { .. } => "CreateControlPlane",
            Self::RaiseReplicas { .. } => "RaiseReplicas",
            Self::AddMember { .. } => "AddMember",
            Self::RemoveMember { .. } => "RemoveMember",
            Self::LowerReplicas { .. } => "LowerReplicas",
            Self::DeleteVolume { .. } => "DeleteVolume",
            Self::RestartPod { .. } => "RestartPod",
            Self::RecreateStatefulSet => "RecreateStatefulSet",
        }
    }

    /// It is done by applying the StatefulSet that is built from this plan; there is nothing else to do.
    pub fn is_applied(&self) -> bool {
        matches!(
            self,
            Self::CreateControlPlane { .. }
                | Self::RaiseReplicas { .. }
                | Self::LowerReplicas { .. }
        )
    }
}

/// For `status.step` and Events.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateControlPlane { replicas } => {
                write!(f, "making the control plane with {replicas} nodes")
            }
            Self::RaiseReplicas { replicas } => {
                write!(f, "starting another control-plane node, {replicas} in all")
            }
            Self::AddMember { name } => write!(f, "adding {name}: copies move to it"),
            Self::RemoveMember { name } => write!(f, "removing {name}: its copies move to others"),
            Self::LowerReplicas { replicas } => write!(
                f,
                "stopping a control-plane node that is removed, {replicas} stay"
            ),
            Self::DeleteVolume { name, .. } => {
                write!(f, "deleting the volume {name} of a removed member")
            }
            Self::RestartPod { name, .. } => {
                write!(f, "restarting {name} with the newest template")
            }
            Self::RecreateStatefulSet => {
                f.write_str("making the StatefulSet again around its pods, for larger volumes")
            }
        }
    }
}

/// A PersistentVolumeClaim whose request is to be patched. It disturbs nobody and may be refused (the StorageClass must allow
/// it), so it is no step: do all of them in every pass, say in an Event what was refused, and go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeGrowth {
    /// The PersistentVolumeClaim.
    pub name: String,
    /// `spec.resources.requests.storage`.
    pub storage: String,
}

/// Why nothing is done though something is to be done or under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// One of [`sealane_crd::reason`], for condition Progressing.
    pub reason: &'static str,
    /// What is waited for.
    pub message: String,
}

/// Something that only a person can mend, for condition Degraded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// One of [`sealane_crd::reason`].
    pub reason: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

/// How the groups are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Quorum {
    /// Every group has a leader with a quorum, and all its voters are ready.
    Healthy,
    /// Every group has a quorum, but not all voters are ready: mail flows, and the next failure may stop some of it.
    Reduced(String),
    /// Some group has no leader or no quorum: its mail waits.
    Lost(String),
    /// There is no cluster yet, or nobody answers.
    Unknown {
        /// FOUNDING or UNREACHABLE of [`sealane_crd::reason`].
        reason: &'static str,
        /// For people.
        message: String,
    },
}

impl Quorum {
    /// Mail is taken, as far as the control plane goes.
    pub fn takes_mail(&self) -> bool {
        matches!(self, Self::Healthy | Self::Reduced(_))
    }
}

/// What to do in this pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// At most one.
    pub step: Option<Step>,
    /// Volumes that are smaller than they are to be.
    pub grow: Vec<VolumeGrowth>,
    /// Without a step: what is waited for. `None` too: everything is as it is to be.
    pub waiting: Option<Waiting>,
    /// For people.
    pub troubles: Vec<Trouble>,
    /// State of the groups.
    pub quorum: Quorum,
    /// For `status.founded`.
    pub founded: bool,
    /// For `status.clusterId`.
    pub cluster_id: Option<String>,
    /// `spec.replicas` of the StatefulSet to apply.
    pub control_replicas: u32,
    /// Configurations and identities are needed for the ordinals below this.
    pub ordinals: u32,
    /// Size in the StatefulSet's volume template to apply.
    pub storage: String,
    /// Image of relay nodes to apply: the control plane is upgraded first.
    pub relay_image: String,
    /// All control-plane pods are of the newest template and ready.
    pub control_current: bool,
}

impl Plan {
    /// Its objects are applied. If that changed the StatefulSet, the plan is about one that was: nothing is settled before
    /// the next pass has looked at its pods.
    pub fn after_applying(
        &mut self,
        before: Option<&StatefulSetFacts>,
        after: Option<&StatefulSetFacts>,
    ) {
        let generation = |set: Option<&StatefulSetFacts>| set.map(|s| s.generation);
        if self.step.is_none() && self.waiting.is_none() && generation(before) != generation(after)
        {
            self.waiting = Next::wait(reason::STEPPING, steps::BEHIND).waiting;
        }
    }
}

/// Decides.
pub fn plan(o: &Observed) -> Plan {
    let view = View::new(o);
    let next = steps::next(&view);
    let replicas_now = o.stateful_set.as_ref().map_or(0, |s| s.replicas);
    let control_replicas = match &next.step {
        Some(
            Step::CreateControlPlane { replicas }
            | Step::RaiseReplicas { replicas }
            | Step::LowerReplicas { replicas },
        ) => *replicas,
        _ => replicas_now,
    };
    let storage = o
        .stateful_set
        .as_ref()
        .map_or_else(|| o.wanted.storage.clone(), |s| s.storage.clone());
    let control_current = view.control_current();
    Plan {
        grow: steps::grow(&view),
        quorum: view.quorum(),
        troubles: view.troubles(next.trouble),
        founded: o.founded || o.cluster.is_some(),
        cluster_id: o
            .cluster_id
            .clone()
            .or_else(|| o.cluster.as_ref().map(|c| c.id.clone())),
        control_replicas,
        ordinals: control_replicas.max(replicas_now).max(o.wanted.replicas),
        storage,
        relay_image: relay_image(o.relays.as_ref(), &o.wanted.image, control_current),
        control_current,
        step: next.step,
        waiting: next.waiting,
    }
}

/// Relay nodes follow once the whole control plane runs the new image: a newer control plane understands older relay nodes.
fn relay_image(relays: Option<&RelayFacts>, wanted: &str, control_current: bool) -> String {
    match relays {
        Some(r) if !control_current => r.image.clone(),
        _ => wanted.to_owned(),
    }
}

/// What [`steps::next`] says.
#[derive(Debug, Default)]
struct Next {
    step: Option<Step>,
    waiting: Option<Waiting>,
    trouble: Option<Trouble>,
}

impl Next {
    fn step(step: Step) -> Self {
        Self {
            step: Some(step),
            ..Self::default()
        }
    }
    fn wait(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            waiting: Some(Waiting {
                reason,
                message: message.into(),
            }),
            ..Self::default()
        }
    }
    /// A person is needed.
    fn stuck(reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            trouble: Some(Trouble {
                reason,
                message: message.clone(),
            }),
            ..Self::wait(reason::WAITING, message)
        }
    }
}
