//! Brings every group's voters to what the node registry asks for: one step at a time, by the group's leader.
//!
//! Reads all, compares, acts; takes no input and keeps no state, so it may die at any step.
use crate::raft::{Group, GroupView, Groups};
use sealane_types::GroupId;
use sealane_wire::v1;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

const LOOK: Duration = Duration::from_millis(500);
/// The same, while something changes.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A learner that lacks at most this many entries becomes a voter.
const CAUGHT_UP: u64 = 128;

/// One step towards the wanted membership.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    AddLearner(u64),
    /// A caught-up learner votes from now on, in the place of a voter that is not wanted, if there is one.
    Promote {
        node: u64,
        instead_of: Option<u64>,
    },
}

/// Runs until `stop`.
pub(crate) async fn run(groups: Arc<Groups>, stop: CancellationToken) {
    let mut pause = LOOK;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        pause = LOOK;
        let nodes = match tokio::task::block_in_place(|| {
            sealane_state::queries::nodes(&groups.meta().store().reader())
        }) {
            Ok(n) => n,
            Err(e) => {
                tracing::error!(error = %e, "node registry unreadable");
                continue;
            }
        };
        for group in groups.iter().filter(Group::is_leader) {
            let wanted = wanted(group.id(), &nodes, groups.replicas());
            if let Some(step) = next_step(&wanted, &group.view())
                && act(&group, &nodes, step).await
            {
                pause = LOOK_AGAIN;
            }
        }
    }
}

/// The nodes that should vote in a group: those of the `replicas` names that joined first. Who joins
/// under a known name has lost that name's volume, and takes the place of the id that died with it.
/// Pure: every node answers the same.
fn wanted(_group: GroupId, nodes: &[v1::NodeRecord], replicas: u32) -> BTreeSet<u64> {
    // Oldest and newest id of each name.
    let mut names: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for n in nodes {
        let ids = names.entry(&n.name).or_insert((n.id, n.id));
        *ids = (ids.0.min(n.id), ids.1.max(n.id));
    }
    let mut ids: Vec<(u64, u64)> = names.into_values().collect();
    ids.sort_unstable();
    ids.into_iter()
        .take(usize::try_from(replicas).unwrap_or(usize::MAX))
        .map(|(_, newest)| newest)
        .collect()
}

/// The next step, if none is under way.
fn next_step(wanted: &BTreeSet<u64>, view: &GroupView) -> Option<Step> {
    if !view.uniform {
        return None;
    }
    let missing = wanted.difference(&view.voters).copied().next()?;
    if !view.learners.contains(&missing) {
        return Some(Step::AddLearner(missing));
    }
    let at = view.matched.get(&missing).copied().unwrap_or(0);
    (at > 0 && view.last_log.saturating_sub(at) <= CAUGHT_UP).then(|| Step::Promote {
        node: missing,
        instead_of: view.voters.difference(wanted).copied().next(),
    })
}

/// Whether the step was taken.
async fn act(group: &Group, nodes: &[v1::NodeRecord], step: Step) -> bool {
    let result = match &step {
        Step::AddLearner(id) => match nodes.iter().find(|n| n.id == *id) {
            Some(n) => group.add_learner(n.id, &n.address, &n.name).await,
            None => return false,
        },
        Step::Promote { node, instead_of } => group.promote(*node, *instead_of).await,
    };
    match result {
        Ok(()) => {
            tracing::info!(group = %group.id(), ?step, "membership changed");
            true
        }
        Err(e) => {
            tracing::debug!(group = %group.id(), ?step, error = %e, "membership step not taken, will retry");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(voters: &[u64], learners: &[u64], matched: &[(u64, u64)], uniform: bool) -> GroupView {
        GroupView {
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
            matched: matched.iter().copied().collect(),
            last_log: 1000,
            uniform,
            ..GroupView::default()
        }
    }

    #[test]
    fn a_new_node_is_learner_first_and_voter_once_caught_up() {
        let wanted = BTreeSet::from([1, 5, 9]);
        assert_eq!(
            next_step(&wanted, &view(&[1], &[], &[], true)),
            Some(Step::AddLearner(5))
        );
        assert_eq!(next_step(&wanted, &view(&[1], &[5], &[], true)), None);
        assert_eq!(
            next_step(&wanted, &view(&[1], &[5], &[(5, 100)], true)),
            None
        );
        assert_eq!(
            next_step(&wanted, &view(&[1], &[5], &[(5, 990)], true)),
            Some(Step::Promote {
                node: 5,
                instead_of: None
            })
        );
        assert_eq!(next_step(&wanted, &view(&[1, 5, 9], &[], &[], true)), None);
    }

    #[test]
    fn a_new_volume_takes_the_place_of_the_lost_one() {
        let node = |id, name: &str| v1::NodeRecord {
            id,
            name: name.to_owned(),
            ..v1::NodeRecord::default()
        };
        let mut nodes = vec![node(1, "a"), node(3, "b"), node(4, "c"), node(90, "d")];
        let group = GroupId(1);
        assert_eq!(wanted(group, &nodes, 3), BTreeSet::from([1, 3, 4]));
        nodes.push(node(120, "b"));
        let now = wanted(group, &nodes, 3);
        assert_eq!(now, BTreeSet::from([1, 4, 120]));
        let before = [1, 3, 4];
        assert_eq!(
            next_step(&now, &view(&before, &[], &[], true)),
            Some(Step::AddLearner(120))
        );
        assert_eq!(
            next_step(&now, &view(&before, &[120], &[(120, 1000)], true)),
            Some(Step::Promote {
                node: 120,
                instead_of: Some(3)
            })
        );
    }

    #[test]
    fn nothing_is_started_while_a_change_is_under_way() {
        assert_eq!(
            next_step(&BTreeSet::from([1, 5]), &view(&[1], &[], &[], false)),
            None
        );
    }
}
