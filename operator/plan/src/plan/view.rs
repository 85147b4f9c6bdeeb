//! The observation, arranged for the rules.
use super::{Quorum, Trouble};
use crate::observed::{
    GroupFacts, MemberFacts, MemberState, Observed, PodFacts, StatefulSetFacts, VolumeFacts,
};
use sealane_crd::{OnScaleDown, reason};
use std::collections::BTreeMap;

/// By ordinal. Of several pods with one ordinal, which cannot be, the last one counts.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) o: &'a Observed,
    pub(super) pods: BTreeMap<u32, &'a PodFacts>,
    pub(super) volumes: BTreeMap<u32, &'a VolumeFacts>,
    /// All that ever had the name of that pod, oldest first.
    members: BTreeMap<u32, Vec<&'a MemberFacts>>,
    /// Names that are of no pod of this control plane.
    strangers: Vec<&'a MemberFacts>,
}

impl<'a> View<'a> {
    pub(super) fn new(o: &'a Observed) -> Self {
        let mut members: BTreeMap<u32, Vec<&MemberFacts>> = BTreeMap::new();
        let mut strangers = Vec::new();
        for m in o.cluster.iter().flat_map(|c| &c.members) {
            match o.names.ordinal(&m.name) {
                Some(n) => members.entry(n).or_default().push(m),
                None => strangers.push(m),
            }
        }
        for all in members.values_mut() {
            all.sort_by_key(|m| m.id);
        }
        strangers.sort_by_key(|m| m.id);
        Self {
            o,
            pods: o.pods.iter().map(|p| (p.ordinal, p)).collect(),
            volumes: o.volumes.iter().map(|v| (v.ordinal, v)).collect(),
            members,
            strangers,
        }
    }

    pub(super) fn set(&self) -> Option<&'a StatefulSetFacts> {
        self.o.stateful_set.as_ref()
    }

    pub(super) fn name(&self, ordinal: u32) -> String {
        self.o.names.control_pod(ordinal)
    }

    /// As the control plane finds a name: the newest that is not removed, else the newest.
    pub(super) fn member(&self, ordinal: u32) -> Option<&'a MemberFacts> {
        let all = self.members.get(&ordinal)?;
        let current = all.iter().rev().find(|m| m.state != MemberState::Removed);
        current.or(all.last()).copied()
    }

    pub(super) fn state(&self, ordinal: u32) -> Option<MemberState> {
        self.member(ordinal).map(|m| m.state)
    }

    /// Members that are not removed, by ordinal; one for each.
    pub(super) fn current(&self) -> impl Iterator<Item = (u32, &'a MemberFacts)> + '_ {
        self.members
            .keys()
            .filter_map(|n| Some((*n, self.member(*n)?)))
            .filter(|(_, m)| m.state != MemberState::Removed)
    }

    /// Every member that ever had this name is removed, and there was one: nothing on its volume is needed, and nothing of it
    /// will ever be valid again.
    pub(super) fn is_gone_for_good(&self, ordinal: u32) -> bool {
        self.members.get(&ordinal).is_some_and(|all| {
            !all.is_empty() && all.iter().all(|m| m.state == MemberState::Removed)
        })
    }

    /// Its pod runs on the volume of a member that was removed: it will never be let in again. A volume that was made after
    /// that member joined is a new one, which is about to join.
    pub(super) fn rests(&self, ordinal: u32) -> bool {
        let (Some(m), Some(x)) = (self.member(ordinal), self.volumes.get(&ordinal)) else {
            return false;
        };
        self.is_gone_for_good(ordinal) && x.created_at <= m.joined_at
    }

    pub(super) fn is_ready(&self, ordinal: u32) -> bool {
        self.pods
            .get(&ordinal)
            .is_some_and(|p| p.ready && !p.terminating)
    }

    /// The node is there, and all its copies are current.
    fn is_up(&self, id: u64) -> bool {
        self.current()
            .any(|(n, m)| m.id == id && m.state.is_listened_to() && self.is_ready(n))
    }

    pub(super) fn active(&self) -> usize {
        let all = self.o.cluster.iter().flat_map(|c| &c.members);
        all.filter(|m| m.state == MemberState::Active).count()
    }

    fn groups(&self) -> &'a [GroupFacts] {
        match &self.o.cluster {
            Some(c) => &c.groups,
            None => &[],
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.o.cluster.as_ref().is_some_and(|c| c.settled)
    }

    /// Which groups would have no majority of ready voters without this node; `None`: with all nodes as they are. A group of a
    /// single copy is no hindrance to a restart of the node that has it: the spec says that nothing is more to be had.
    pub(super) fn endangered(&self, without: Option<u64>) -> Option<String> {
        let groups = self.groups();
        if groups.is_empty() {
            return Some("no group is known".to_owned());
        }
        let bad: Vec<String> = groups
            .iter()
            .filter(|g| !self.survives(g, without))
            .map(|g| g.group.to_string())
            .collect();
        (!bad.is_empty()).then(|| format!("groups {}", bad.join(", ")))
    }

    fn survives(&self, g: &GroupFacts, without: Option<u64>) -> bool {
        if g.leader.is_none() || !g.quorum {
            return false;
        }
        if self.o.wanted.copies == 1 && g.voters.len() == 1 && g.voters.first().copied() == without
        {
            return true;
        }
        let up = g
            .voters
            .iter()
            .filter(|id| Some(**id) != without && self.is_up(**id))
            .count();
        up * 2 > g.voters.len()
    }

    /// Pods with an ordinal below `replicas` that are not ready, but for one. Not those that [rest](Self::rests): they never
    /// will be, and nothing depends on them.
    pub(super) fn not_ready(&self, but: Option<u32>) -> Option<String> {
        let replicas = self.set().map_or(0, |s| s.replicas);
        let bad: Vec<String> = (0..replicas)
            .filter(|n| Some(*n) != but && !self.is_ready(*n) && !self.rests(*n))
            .map(|n| self.describe(n))
            .collect();
        (!bad.is_empty()).then(|| bad.join("; "))
    }

    /// A pod that is not ready, and why if that is known.
    fn describe(&self, ordinal: u32) -> String {
        let name = self.name(ordinal);
        match self.pods.get(&ordinal) {
            None => format!("{name} is not there yet"),
            Some(p) if p.terminating => format!("{name} is ending"),
            Some(p) => match &p.trouble {
                Some(why) => format!("{name} is not ready: {why}"),
                None => format!("{name} is not ready"),
            },
        }
    }

    /// All pods are of the newest template, which has the wanted image, and ready.
    pub(super) fn control_current(&self) -> bool {
        let Some(set) = self.set() else {
            return false;
        };
        let newest = |n: u32| {
            let pod = self.pods.get(&n);
            pod.is_some_and(|p| p.revision.is_some() && p.revision == set.update_revision)
        };
        set.is_current()
            && set.image == self.o.wanted.image
            && (0..set.replicas).all(|n| newest(n) && self.is_ready(n))
    }

    pub(super) fn quorum(&self) -> Quorum {
        if self.o.cluster.is_none() {
            let (reason, message) = if self.o.founded {
                (
                    reason::UNREACHABLE,
                    "no control-plane node answers the operator".to_owned(),
                )
            } else {
                (
                    reason::FOUNDING,
                    "the first nodes found the cluster once a majority of them speaks to each other".to_owned(),
                )
            };
            return Quorum::Unknown { reason, message };
        }
        let without_leader: Vec<String> = self
            .groups()
            .iter()
            .filter(|g| g.leader.is_none() || !g.quorum)
            .map(|g| g.group.to_string())
            .collect();
        if !without_leader.is_empty() || self.groups().is_empty() {
            return Quorum::Lost(format!(
                "groups {} have no leader with a quorum: their mail waits until a majority of their voters is back",
                without_leader.join(", ")
            ));
        }
        let mut down: Vec<u64> = self
            .groups()
            .iter()
            .flat_map(|g| g.voters.iter().copied())
            .filter(|id| !self.is_up(*id))
            .collect();
        down.sort_unstable();
        down.dedup();
        if down.is_empty() {
            return Quorum::Healthy;
        }
        let names: Vec<String> = down.iter().map(|id| self.name_of(*id)).collect();
        Quorum::Reduced(format!(
            "every group has a quorum, but these voters are not ready: {}",
            names.join(", ")
        ))
    }

    fn name_of(&self, id: u64) -> String {
        let mut all = self.o.cluster.iter().flat_map(|c| &c.members);
        all.find(|m| m.id == id)
            .map_or_else(|| format!("node {id}"), |m| m.name.clone())
    }

    /// What only a person can mend; `first` is what the next step stumbled on.
    pub(super) fn troubles(&self, first: Option<Trouble>) -> Vec<Trouble> {
        let mut all: Vec<Trouble> = first.into_iter().collect();
        for (n, m) in self.current() {
            if m.state == MemberState::Lost {
                let (name, volume) = (&m.name, self.o.names.volume(n));
                all.push(Trouble {
                    reason: reason::MEMBER_LOST,
                    message: format!(
                        "{name} (id {}) was declared lost and its places wait: if its volume is really lost, delete the PersistentVolumeClaim {volume} and the pod {name}; it joins with an empty volume and takes the places",
                        m.id
                    ),
                });
            }
        }
        let replicas = self.set().map_or(0, |s| s.replicas);
        let kept = self.o.wanted.on_scale_down == OnScaleDown::Retain;
        let wanted = self.o.wanted.replicas.min(replicas);
        for n in (0..wanted).filter(|n| kept && self.rests(*n)) {
            let (name, volume) = (self.name(n), self.o.names.volume(n));
            all.push(Trouble {
                reason: reason::VOLUME_IN_THE_WAY,
                message: format!(
                    "{name} has the volume of a member that was removed, and is never let in with it again: delete the PersistentVolumeClaim {volume} and the pod {name}; it joins with an empty volume"
                ),
            });
        }
        let foreign = self
            .strangers
            .iter()
            .filter(|m| m.state != MemberState::Removed);
        for m in foreign {
            all.push(Trouble {
                reason: reason::MEMBER_LOST,
                message: format!(
                    "{} (id {}) is a member and none of this RelayCluster's pods: the operator does not know whether it works. Remove it with `sealane node remove {}`",
                    m.name, m.id, m.name
                ),
            });
        }
        all
    }
}
