//! The nodes, the placement and the whereabouts of the groups, as this node's copy of the metadata group has them.
use sealane_state::queries;
use sealane_store::GroupStore;
use sealane_types::GroupId;
use sealane_wire::v1::{self, node_record::State};
use std::collections::{BTreeMap, BTreeSet};

/// One revision. Read as a whole, so that placement and nodes fit together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registry {
    /// Log index of the last change of nodes or placement.
    pub(crate) revision: u64,
    /// Every node that was ever given an id.
    pub(crate) nodes: BTreeMap<u64, v1::NodeRecord>,
    /// Voters wanted in each group, the preferred leader first.
    pub(crate) placement: BTreeMap<GroupId, Vec<u64>>,
    /// What the leader of each group said last.
    pub(crate) reports: BTreeMap<GroupId, v1::GroupReport>,
}

/// Who is to be a member of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) voters: BTreeSet<u64>,
    pub(crate) learners: BTreeSet<u64>,
}

impl Registry {
    /// Reads the metadata group's state.
    pub(crate) fn read(meta: &GroupStore) -> Result<Self, sealane_state::TableError> {
        let reader = meta.reader();
        let placement = queries::placement(&reader)?;
        let nodes = queries::nodes(&reader)?;
        Ok(Self {
            revision: placement.revision,
            nodes: nodes.into_iter().map(|n| (n.id, n)).collect(),
            placement: placement
                .groups
                .into_iter()
                .map(|g| (GroupId(g.group), g.nodes))
                .collect(),
            reports: queries::group_reports(&reader)?,
        })
    }

    pub(crate) fn state(&self, node: u64) -> State {
        self.nodes
            .get(&node)
            .map_or(State::Unspecified, v1::NodeRecord::state)
    }

    /// Whether nothing this node says about Raft counts any more: it may hold an old copy of its volume.
    pub(crate) fn refused(&self, node: u64) -> bool {
        matches!(self.state(node), State::Lost | State::Removed)
    }

    /// The placement of a group; learners of the metadata group are all who read its state.
    pub(crate) fn wanted(&self, group: GroupId) -> Wanted {
        let placed = self.placement.get(&group).into_iter().flatten();
        let voters: BTreeSet<u64> = placed.copied().collect();
        let reads = |n: &&v1::NodeRecord| {
            matches!(n.state(), State::Spare | State::Active | State::Leaving)
                && !voters.contains(&n.id)
        };
        let learners = if group == GroupId::META {
            self.nodes.values().filter(reads).map(|n| n.id).collect()
        } else {
            BTreeSet::new()
        };
        Wanted { voters, learners }
    }

    /// Who leads a group when all are well.
    pub(crate) fn preferred(&self, group: GroupId) -> Option<u64> {
        self.placement.get(&group)?.first().copied()
    }

    /// Where relays find leaders.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let may_lead = |n: &&v1::NodeRecord| matches!(n.state(), State::Active | State::Leaving);
        self.nodes
            .values()
            .filter(may_lead)
            .map(|n| n.address.clone())
            .collect()
    }

    /// Whether every group is where it is to be, as its leader says.
    pub(crate) fn settled(&self) -> bool {
        let is = |(group, placed): (&GroupId, &Vec<u64>)| {
            self.reports.get(group).is_some_and(|r| {
                r.revision >= self.revision
                    && r.voters.len() == placed.len()
                    && placed.iter().all(|n| r.voters.contains(n))
            })
        };
        let leaving = self.nodes.values().any(|n| n.state() == State::Leaving);
        !leaving && self.placement.iter().all(is)
    }

    /// Whether the last word about a group is that this node has no part in it: no membership that
    /// counts can need it.
    pub(crate) fn left_out(&self, group: GroupId, node: u64) -> bool {
        let placed = self
            .placement
            .get(&group)
            .is_some_and(|p| p.contains(&node));
        let reported = self
            .reports
            .get(&group)
            .is_some_and(|r| !r.voters.contains(&node) && !r.learners.contains(&node));
        reported && !placed
    }

    /// Queue shards with a replica on this node, and led by it, as reported.
    pub(crate) fn actual(&self, node: u64) -> (usize, usize) {
        let shards = || self.reports.iter().filter(|(g, _)| **g != GroupId::META);
        (
            shards().filter(|(_, r)| r.voters.contains(&node)).count(),
            shards().filter(|(_, r)| r.leader == node).count(),
        )
    }

    /// The same, as they are to be.
    pub(crate) fn planned(&self, node: u64) -> (usize, usize) {
        let shards = || self.placement.iter().filter(|(g, _)| **g != GroupId::META);
        (
            shards().filter(|(_, p)| p.contains(&node)).count(),
            shards().filter(|(_, p)| p.first() == Some(&node)).count(),
        )
    }

    /// For people.
    pub(crate) fn standing(&self, node: u64) -> String {
        match self.state(node) {
            State::Active => "active".to_owned(),
            State::Spare => "spare".to_owned(),
            State::Leaving => format!("leaving ({} replicas left)", self.actual(node).0),
            State::Lost => "lost".to_owned(),
            State::Removed => "removed".to_owned(),
            State::Unspecified => "unknown".to_owned(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn registry(nodes: &[(u64, State)], placement: &[(u32, &[u64])]) -> Registry {
        let record = |(id, state): &(u64, State)| {
            let mut n = v1::NodeRecord {
                id: *id,
                name: format!("n{id}"),
                address: format!("a{id}:1"),
                ..Default::default()
            };
            n.set_state(*state);
            (*id, n)
        };
        Registry {
            revision: 7,
            nodes: nodes.iter().map(record).collect(),
            placement: placement
                .iter()
                .map(|(g, p)| (GroupId(*g), p.to_vec()))
                .collect(),
            reports: BTreeMap::new(),
        }
    }

    fn report(revision: u64, voters: &[u64], leader: u64) -> v1::GroupReport {
        v1::GroupReport {
            revision,
            leader,
            voters: voters.to_vec(),
            ..Default::default()
        }
    }

    const FOUR: [(u64, State); 5] = [
        (1, State::Active),
        (2, State::Active),
        (3, State::Leaving),
        (4, State::Spare),
        (5, State::Removed),
    ];

    #[test]
    fn all_who_read_the_metadata_group_are_its_learners() {
        let r = registry(&FOUR, &[(0, &[1, 2]), (1, &[2, 1])]);
        let meta = r.wanted(GroupId::META);
        assert_eq!(meta.voters, BTreeSet::from([1, 2]));
        assert_eq!(meta.learners, BTreeSet::from([3, 4]));
        assert_eq!(r.wanted(GroupId(1)).learners, BTreeSet::new());
        assert_eq!(r.preferred(GroupId(1)), Some(2));
    }

    #[test]
    fn relays_are_told_of_who_may_lead() {
        let r = registry(&FOUR, &[]);
        assert_eq!(r.addresses(), ["a1:1", "a2:1", "a3:1"]);
    }

    #[test]
    fn settled_means_that_every_leader_said_so_about_this_revision() {
        let mut r = registry(&FOUR[..2], &[(0, &[1, 2]), (1, &[2, 1])]);
        assert!(!r.settled());
        r.reports.insert(GroupId(0), report(7, &[1, 2], 1));
        r.reports.insert(GroupId(1), report(6, &[1, 2], 2));
        assert!(!r.settled(), "of an older revision");
        r.reports.insert(GroupId(1), report(7, &[1, 2], 2));
        assert!(r.settled());
        assert_eq!((r.actual(2), r.planned(2)), ((1, 1), (1, 1)));
    }

    #[test]
    fn a_node_is_left_out_once_a_leader_says_so() {
        let mut r = registry(&FOUR, &[(1, &[1, 2])]);
        assert!(!r.left_out(GroupId(1), 3), "nothing was said");
        r.reports.insert(GroupId(1), report(7, &[1, 2, 3], 1));
        assert!(!r.left_out(GroupId(1), 3));
        assert_eq!(r.standing(3), "leaving (1 replicas left)");
        r.reports.insert(GroupId(1), report(7, &[1, 2], 1));
        assert!(r.left_out(GroupId(1), 3));
        assert!(!r.left_out(GroupId(1), 2));
        assert!(r.refused(5) && !r.refused(3));
    }
}
