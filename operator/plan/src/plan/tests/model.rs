//! A small cluster: a StatefulSet controller, kubelets, volumes, and a control plane that moves its copies. Nothing happens
//! but by a call, so a test decides what is late. It keeps the rules of the product (`control-plane/state/src/nodes.rs`).
mod seen;

use crate::{
    Names,
    observed::{MemberFacts, MemberState, Wanted},
};
use sealane_crd::OnScaleDown;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone)]
pub(super) struct Set {
    pub(super) replicas: u32,
    pub(super) image: String,
    pub(super) storage: String,
    generation: i64,
    observed: i64,
    update_revision: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No process yet.
    Starting,
    /// A process that has not caught up.
    Running,
    /// One that has.
    Current,
}

#[derive(Debug, Clone)]
pub(super) struct Pod {
    pub(super) uid: String,
    pub(super) image: String,
    pub(super) phase: Phase,
    pub(super) terminating: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub(super) uid: String,
    created_at: u64,
    storage: String,
    terminating: bool,
    /// Written once, by the node that starts on it.
    pub(super) identity: Option<u64>,
}

#[derive(Debug, Clone)]
pub(super) struct Group {
    id: u32,
    voters: BTreeSet<u64>,
}

#[derive(Debug, Clone)]
pub(super) struct Model {
    now: u64,
    uids: u64,
    pub(super) names: Names,
    pub(super) wanted: Wanted,
    pub(super) founded: bool,
    pub(super) cluster_id: Option<String>,
    pub(super) set: Option<Set>,
    pub(super) pods: BTreeMap<u32, Pod>,
    pub(super) volumes: BTreeMap<u32, Volume>,
    pub(super) members: Vec<MemberFacts>,
    pub(super) groups: Vec<Group>,
}

/// Images of this name never start.
pub(super) const BAD: &str = "bad";

impl Model {
    pub(super) fn new(replicas: u32, copies: u32) -> Self {
        Self {
            now: 1000,
            uids: 0,
            names: Names::new("ns", "mail"),
            wanted: Wanted {
                replicas: replicas.max(copies),
                copies,
                image: "v1".to_owned(),
                storage: "10Gi".to_owned(),
                on_scale_down: OnScaleDown::Delete,
                paused: false,
            },
            founded: false,
            cluster_id: None,
            set: None,
            pods: BTreeMap::new(),
            volumes: BTreeMap::new(),
            members: Vec::new(),
            groups: (0..5)
                .map(|id| Group {
                    id,
                    voters: BTreeSet::new(),
                })
                .collect(),
        }
    }

    pub(super) fn tick(&mut self) {
        self.now += 1;
    }

    fn uid(&mut self) -> String {
        self.uids += 1;
        format!("u{}", self.uids)
    }

    // ---- Kubernetes

    /// Server-side apply of the StatefulSet.
    pub(super) fn apply_set(&mut self, replicas: u32, storage: &str) {
        let image = self.wanted.image.clone();
        match &mut self.set {
            None => {
                self.set = Some(Set {
                    replicas,
                    image,
                    storage: storage.to_owned(),
                    generation: 1,
                    observed: 0,
                    update_revision: None,
                });
            }
            Some(s) => {
                assert_eq!(s.storage, storage, "a volume template cannot be changed");
                if s.replicas != replicas || s.image != image {
                    s.replicas = replicas;
                    s.image = image;
                    s.generation += 1;
                }
            }
        }
    }

    /// `kubectl scale statefulset`, which nobody should do.
    pub(super) fn scale_set(&mut self, replicas: u32) {
        if let Some(s) = &mut self.set {
            s.replicas = replicas;
            s.generation += 1;
        }
    }

    /// The StatefulSet controller looks: pods that are missing, pods that are too many.
    pub(super) fn controller(&mut self) {
        let Some(mut s) = self.set.clone() else {
            return;
        };
        s.observed = s.generation;
        s.update_revision = Some(format!("rev-{}", s.image));
        for n in 0..s.replicas {
            if !self.volumes.contains_key(&n) {
                let volume = Volume {
                    uid: self.uid(),
                    created_at: self.now,
                    storage: s.storage.clone(),
                    terminating: false,
                    identity: None,
                };
                self.volumes.insert(n, volume);
            }
            if !self.pods.contains_key(&n) {
                let pod = Pod {
                    uid: self.uid(),
                    image: s.image.clone(),
                    phase: Phase::Starting,
                    terminating: false,
                };
                self.pods.insert(n, pod);
            }
        }
        for (_, p) in self.pods.range_mut(s.replicas..) {
            p.terminating = true;
        }
        self.set = Some(s);
    }

    /// A kubelet, and the process of the pod, get on.
    pub(super) fn progress(&mut self, n: u32) {
        let Some(p) = self.pods.get_mut(&n) else {
            return;
        };
        if p.terminating {
            self.pods.remove(&n);
            if self.volumes.get(&n).is_some_and(|v| v.terminating) {
                self.volumes.remove(&n);
            }
            return;
        }
        match p.phase {
            Phase::Starting if p.image.starts_with(BAD) => {}
            Phase::Starting => {
                p.phase = Phase::Running;
                self.join(n);
            }
            Phase::Running => {
                self.join(n);
                if let Some(p) = self.pods.get_mut(&n) {
                    p.phase = Phase::Current;
                }
            }
            Phase::Current => self.join(n),
        }
    }

    pub(super) fn crash(&mut self, n: u32) {
        if let Some(p) = self.pods.get_mut(&n) {
            p.phase = Phase::Starting;
        }
    }

    pub(super) fn delete_pod(&mut self, n: u32) {
        if let Some(p) = self.pods.get_mut(&n) {
            p.terminating = true;
        }
    }

    /// One that is in use goes with its pod.
    pub(super) fn delete_volume(&mut self, n: u32) {
        if self.pods.contains_key(&n) {
            self.volumes.get_mut(&n).unwrap().terminating = true;
        } else {
            self.volumes.remove(&n);
        }
    }

    pub(super) fn grow_volume(&mut self, n: u32, storage: &str) {
        self.volumes.get_mut(&n).unwrap().storage = storage.to_owned();
    }

    // ---- the control plane

    fn runs(&self, n: u32) -> bool {
        self.pods
            .get(&n)
            .is_some_and(|p| !p.terminating && p.phase != Phase::Starting)
    }

    fn member(&self, id: u64) -> Option<&MemberFacts> {
        self.members.iter().find(|m| m.id == id)
    }

    /// Its process runs on its volume, and Raft speaks with it.
    pub(super) fn works(&self, id: u64) -> bool {
        let Some(m) = self.member(id) else {
            return false;
        };
        let n = self.names.ordinal(&m.name).unwrap();
        let own = self.volumes.get(&n).is_some_and(|v| v.identity == Some(id));
        own && m.state.is_listened_to() && self.runs(n)
    }

    fn majority(&self, voters: &BTreeSet<u64>, without: Option<u64>) -> bool {
        let works = voters
            .iter()
            .filter(|id| Some(**id) != without && self.works(**id));
        works.count() * 2 > voters.len()
    }

    pub(super) fn has_quorum(&self, group: &Group) -> bool {
        self.majority(&group.voters, None)
    }

    /// Groups that have a quorum now and would have none without the process of this pod.
    pub(super) fn depends_on(&self, n: u32) -> Vec<u32> {
        let id = self.volumes.get(&n).and_then(|v| v.identity);
        let groups = self.groups.iter().filter(|g| self.has_quorum(g));
        groups
            .filter(|g| !self.majority(&g.voters, id))
            .map(|g| g.id)
            .collect()
    }

    fn active(&self) -> Vec<u64> {
        let all = self
            .members
            .iter()
            .filter(|m| m.state == MemberState::Active);
        all.map(|m| m.id).collect()
    }

    fn placement(&self, group: &Group) -> BTreeSet<u64> {
        let active = self.active();
        let copies = usize::try_from(self.wanted.copies)
            .unwrap()
            .min(active.len());
        if group.id == 0 {
            let stay = group.voters.iter().filter(|v| active.contains(v)).copied();
            let mut all: BTreeSet<u64> = stay.take(copies).collect();
            let more: Vec<u64> = active
                .iter()
                .copied()
                .filter(|a| !all.contains(a))
                .collect();
            all.extend(more.into_iter().take(copies - all.len()));
            return all;
        }
        let first = usize::try_from(group.id).unwrap();
        (0..copies)
            .map(|k| active[(first + k) % active.len()])
            .collect()
    }

    /// A node with an empty volume founds the cluster, or joins it.
    fn join(&mut self, n: u32) {
        if self.volumes.get(&n).is_none_or(|v| v.identity.is_some()) {
            return;
        }
        if self.members.is_empty() {
            let configured = self.set.as_ref().map_or(0, |s| s.replicas);
            let strangers = (0..configured).filter(|n| self.runs(*n)).count();
            if n == 0 && !self.founded && strangers * 2 > usize::try_from(configured).unwrap() {
                let id = self.allocate(0, MemberState::Active);
                for g in &mut self.groups {
                    g.voters = BTreeSet::from([id]);
                }
            }
            return;
        }
        if !self.has_quorum(&self.groups[0]) {
            return;
        }
        let name = self.names.control_pod(n);
        let known = self
            .members
            .iter()
            .any(|m| m.name == name && m.state != MemberState::Removed);
        assert!(!known, "{name} lost its volume: nobody may do that here");
        let few = self.active().len() < usize::try_from(self.wanted.copies).unwrap();
        self.allocate(
            n,
            if few {
                MemberState::Active
            } else {
                MemberState::Spare
            },
        );
    }

    fn allocate(&mut self, n: u32, state: MemberState) -> u64 {
        let id = self.members.iter().map(|m| m.id).max().unwrap_or(0) + 1;
        self.members.push(MemberFacts {
            id,
            name: self.names.control_pod(n),
            state,
            joined_at: self.now,
            shards: 0,
            leads: 0,
        });
        self.volumes.get_mut(&n).unwrap().identity = Some(id);
        id
    }

    /// Each group takes one step to where it is to be, if majorities before and after it can agree.
    pub(super) fn moves(&mut self) {
        for at in 0..self.groups.len() {
            let g = self.groups[at].clone();
            let to = self.placement(&g);
            if to == g.voters || !self.has_quorum(&g) {
                continue;
            }
            let more = to.difference(&g.voters).copied().find(|id| self.works(*id));
            let less = g.voters.difference(&to).next().copied();
            let mut next = g.voters.clone();
            next.extend(more);
            if let Some(less) = less.filter(|_| next.len() > to.len()) {
                next.remove(&less);
            }
            if self.majority(&next, None) {
                self.groups[at].voters = next;
            }
        }
        if self.groups.iter().any(|g| !self.has_quorum(g)) {
            return;
        }
        let held: BTreeSet<u64> = self.groups.iter().flat_map(|g| g.voters.clone()).collect();
        for m in &mut self.members {
            if m.state == MemberState::Leaving && !held.contains(&m.id) {
                m.state = MemberState::Removed;
            }
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        let leaving = self.members.iter().any(|m| m.state == MemberState::Leaving);
        !leaving && self.groups.iter().all(|g| g.voters == self.placement(g))
    }

    fn find(&mut self, name: &str) -> Option<&mut MemberFacts> {
        let mut all = self.members.iter_mut().rev();
        all.find(|m| m.name == name && m.state != MemberState::Removed)
    }

    /// `ChangeNode`; false: nobody answers.
    pub(super) fn add_member(&mut self, name: &str) -> bool {
        if !self.has_quorum(&self.groups[0]) {
            return false;
        }
        let m = self.find(name).expect("a member that was never there");
        m.state = MemberState::Active;
        true
    }

    /// `ChangeNode`; false: nobody answers.
    pub(super) fn remove_member(&mut self, name: &str) -> bool {
        if !self.has_quorum(&self.groups[0]) {
            return false;
        }
        let (active, copies) = (
            self.active().len(),
            usize::try_from(self.wanted.copies).unwrap(),
        );
        let Some(m) = self.find(name) else {
            return true;
        };
        m.state = match m.state {
            MemberState::Spare => MemberState::Removed,
            MemberState::Active => {
                assert!(active > copies, "the product would refuse to remove {name}");
                MemberState::Leaving
            }
            other => other,
        };
        true
    }
}
