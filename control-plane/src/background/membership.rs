//! Brings every group's voters to what the node registry asks for: one step at a time, by the group's leader.
//!
//! Reads all, compares, acts; takes no input and keeps no state, so it may die at any step.
use crate::raft::{Group, GroupView, Groups};
use sealane_types::GroupId;
use sealane_wire::v1;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const LOOK: Duration = Duration::from_millis(500);
/// A learner that lacks at most this many entries becomes a voter.
const CAUGHT_UP: u64 = 128;

/// One step towards the wanted membership.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    AddLearner(u64),
    Promote(u64),
}

/// Runs until `stop`.
pub(crate) async fn run(groups: Arc<Groups>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return,
        }
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
            if let Some(step) = next_step(
                &wanted(group.id(), &nodes, groups.replicas()),
                &group.view(),
            ) {
                act(&group, &nodes, step).await;
            }
        }
    }
}

/// The nodes that should vote in a group: the oldest `replicas` nodes. Pure: every node answers the same.
fn wanted(_group: GroupId, nodes: &[v1::NodeRecord], replicas: u32) -> BTreeSet<u64> {
    let mut ids: Vec<u64> = nodes.iter().map(|n| n.id).collect();
    ids.sort_unstable();
    ids.into_iter()
        .take(usize::try_from(replicas).unwrap_or(usize::MAX))
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
    (at > 0 && view.last_log.saturating_sub(at) <= CAUGHT_UP).then_some(Step::Promote(missing))
}

async fn act(group: &Group, nodes: &[v1::NodeRecord], step: Step) {
    let result = match &step {
        Step::AddLearner(id) => match nodes.iter().find(|n| n.id == *id) {
            Some(n) => group.add_learner(n.id, &n.address, &n.name).await,
            None => return,
        },
        Step::Promote(id) => group.promote(*id).await,
    };
    match result {
        Ok(()) => tracing::info!(group = %group.id(), ?step, "membership changed"),
        Err(e) => {
            tracing::debug!(group = %group.id(), ?step, error = %e, "membership step not taken, will retry")
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
            Some(Step::Promote(5))
        );
        assert_eq!(next_step(&wanted, &view(&[1, 5, 9], &[], &[], true)), None);
    }

    #[test]
    fn nothing_is_started_while_a_change_is_under_way() {
        assert_eq!(
            next_step(&BTreeSet::from([1, 5]), &view(&[1], &[], &[], false)),
            None
        );
    }
}
