//! What the operator sees of the model.
use super::{Group, Model, Phase};
use crate::observed::{
    ClusterFacts, GroupFacts, Observed, PodFacts, RelayFacts, StatefulSetFacts, VolumeFacts,
};

impl Model {
    pub(in super::super) fn is_ready(&self, n: u32) -> bool {
        let Some(id) = self.volumes.get(&n).and_then(|v| v.identity) else {
            return false;
        };
        let full = usize::try_from(self.wanted.copies).unwrap();
        let whole = |g: &Group| self.has_quorum(g) && g.voters.len() >= full;
        let mut held = self
            .groups
            .iter()
            .filter(|g| g.id == 0 || g.voters.contains(&id));
        let current = self.pods.get(&n).is_some_and(|p| p.phase == Phase::Current);
        current && self.works(id) && held.all(whole)
    }

    pub(in super::super) fn observe(&self) -> Observed {
        let answers = self.members.iter().any(|m| self.works(m.id));
        Observed {
            names: self.names.clone(),
            wanted: self.wanted.clone(),
            founded: self.founded,
            cluster_id: self.cluster_id.clone(),
            stateful_set: self.set.as_ref().map(|s| StatefulSetFacts {
                replicas: s.replicas,
                generation: s.generation,
                observed_generation: s.observed,
                update_revision: s.update_revision.clone(),
                image: s.image.clone(),
                storage: s.storage.clone(),
                terminating: false,
            }),
            pods: self
                .pods
                .iter()
                .map(|(n, p)| PodFacts {
                    ordinal: *n,
                    uid: p.uid.clone(),
                    ready: self.is_ready(*n),
                    running: p.phase != Phase::Starting,
                    terminating: p.terminating,
                    revision: Some(format!("rev-{}", p.image)),
                    trouble: None,
                })
                .collect(),
            volumes: self
                .volumes
                .iter()
                .map(|(n, v)| VolumeFacts {
                    ordinal: *n,
                    uid: v.uid.clone(),
                    created_at: v.created_at,
                    storage: v.storage.clone(),
                    terminating: v.terminating,
                })
                .collect(),
            cluster: answers.then(|| self.cluster()),
            relays: Some(RelayFacts {
                image: "v0".to_owned(),
                replicas: 2,
                generation: 1,
                observed_generation: 1,
                total: 2,
                updated: 2,
                ready: 2,
            }),
        }
    }

    fn cluster(&self) -> ClusterFacts {
        let leader = |g: &Group| {
            let quorum = self.has_quorum(g);
            g.voters
                .iter()
                .copied()
                .find(|id| quorum && self.works(*id))
        };
        let mut members = self.members.clone();
        for m in &mut members {
            let shards = || self.groups.iter().filter(|g| g.id > 0);
            let count = |n: usize| u32::try_from(n).unwrap();
            m.shards = count(shards().filter(|g| g.voters.contains(&m.id)).count());
            m.leads = count(shards().filter(|g| leader(g) == Some(m.id)).count());
        }
        ClusterFacts {
            id: "mail.ns-1".to_owned(),
            members,
            groups: self
                .groups
                .iter()
                .map(|g| GroupFacts {
                    group: g.id,
                    leader: leader(g),
                    voters: g.voters.iter().copied().collect(),
                    wanted: self.placement(g).into_iter().collect(),
                    quorum: self.has_quorum(g),
                })
                .collect(),
            settled: self.is_settled(),
        }
    }
}
