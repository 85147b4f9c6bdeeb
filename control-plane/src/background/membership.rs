//! The rebalancer: brings every group's members to the placement, one step at a time, by the group's leader.
//!
//! ```text
//!  add learner ─► caught up ─► vote, in the place of one that is not wanted ─► (learner that is not wanted) out
//!                              the leader itself is not wanted: it hands over first
//! ```
//!
//! Reads all, compares, acts; takes no input and keeps no state, so it may die at any step. A node
//! moves one replica at a time among the groups that it leads, so that a growth does not copy
//! everything at once. Groups with too few voters do not wait for their turn.
use crate::{
    raft::{Group, GroupView, Groups},
    registry::{Registry, Wanted},
};
use sealane_types::GroupId;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const LOOK: Duration = Duration::from_millis(500);
/// The same, while something changes.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A learner that lacks at most this many entries becomes a voter.
const CAUGHT_UP: u64 = 128;
/// A change that takes longer (a quorum is gone) is left alone: what it left behind is finished later.
const CHANGE: Duration = Duration::from_secs(10);
/// An heir that does not lead after this time may be down: the next one is asked.
const HEIR: Duration = Duration::from_secs(1);

/// One step towards the wanted membership.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// A change of voters was begun by somebody who died.
    Finish,
    AddLearner(u64),
    /// A caught-up learner votes from now on, in the place of a voter that is not wanted, if there is one.
    Promote {
        node: u64,
        instead_of: Option<u64>,
    },
    RemoveVoter(u64),
    RemoveLearner(u64),
}

/// What a leader has to do about one group.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Task {
    Nothing,
    /// A learner is being brought up to date.
    Copying,
    /// This leader is not wanted: one of these, which are, leads from now on.
    HandOver(Vec<u64>),
    Take(Step),
}

/// Runs until `stop`.
pub(crate) async fn run(groups: Arc<Groups>, stop: CancellationToken) {
    loop {
        let pause = if look(&groups).await {
            LOOK_AGAIN
        } else {
            LOOK
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Whether something is under way.
async fn look(groups: &Groups) -> bool {
    let registry = groups.registry();
    for group in groups.iter() {
        let known = registry
            .reports
            .get(&group.id())
            .map(|r| r.membership_index);
        group.may_elect(group.view().membership >= known);
    }
    if registry.placement.is_empty() || registry.refused(groups.node_id()) {
        return false;
    }
    let (mut busy, mut moving) = (false, false);
    for group in groups.iter().filter(Group::is_leader) {
        let (wanted, view) = (registry.wanted(group.id()), group.view());
        let task = next(groups.node_id(), &wanted, &view);
        // The metadata group is small, and a group that lacks voters is in danger: they do not wait.
        let waits = group.id() != GroupId::META && view.voters.len() >= wanted.voters.len();
        if task == Task::Nothing || (waits && moving) {
            continue;
        }
        moving |= waits;
        busy |= match task {
            Task::Take(step) => act(&group, &registry, step).await,
            Task::HandOver(heirs) => hand_over(&group, &heirs).await,
            _ => true,
        };
    }
    busy
}

/// The next step of a group led by `me`. Pure.
fn next(me: u64, wanted: &Wanted, view: &GroupView) -> Task {
    if wanted.voters.is_empty() {
        return Task::Nothing;
    }
    if !view.uniform {
        return Task::Take(Step::Finish);
    }
    let matched = |n: &u64| view.matched.get(n).copied().unwrap_or(0);
    let caught_up = |n: &u64| {
        let at = matched(n);
        at > 0 && view.last_log.saturating_sub(at) <= CAUGHT_UP
    };
    let heirs = || -> Vec<u64> {
        let others = wanted.voters.intersection(&view.voters);
        others
            .copied()
            .filter(|n| *n != me && caught_up(n))
            .collect()
    };
    let missing = || wanted.voters.difference(&view.voters).copied();
    let learner = |n: &u64| view.learners.contains(n);
    if let Some(node) = missing().find(|n| learner(n) && caught_up(n)) {
        let unwanted = || view.voters.difference(&wanted.voters).copied();
        let instead_of = unwanted().find(|n| *n != me);
        if instead_of.is_none() && unwanted().next().is_some() && !heirs().is_empty() {
            return Task::HandOver(heirs());
        }
        return Task::Take(Step::Promote { node, instead_of });
    }
    if missing().any(|n| learner(&n) && matched(&n) > 0) {
        return Task::Copying;
    }
    let new = missing().chain(wanted.learners.iter().copied());
    if let Some(node) = new
        .into_iter()
        .find(|n| !learner(n) && !view.voters.contains(n))
    {
        return Task::Take(Step::AddLearner(node));
    }
    if missing().next().is_none()
        && let Some(node) = view
            .voters
            .difference(&wanted.voters)
            .copied()
            .find(|n| *n != me)
    {
        return Task::Take(Step::RemoveVoter(node));
    }
    if !wanted.voters.contains(&me) && missing().next().is_none() {
        return match heirs() {
            none if none.is_empty() => Task::Copying,
            heirs => Task::HandOver(heirs),
        };
    }
    let stays = |n: &u64| wanted.learners.contains(n) || wanted.voters.contains(n);
    match view.learners.iter().find(|n| !stays(n)) {
        Some(node) => Task::Take(Step::RemoveLearner(*node)),
        None => Task::Nothing,
    }
}

/// Whether the step was taken.
async fn act(group: &Group, registry: &Registry, step: Step) -> bool {
    let change = async {
        match &step {
            Step::Finish => group.finish_change().await,
            Step::AddLearner(id) => match registry.nodes.get(id) {
                Some(n) => group.add_learner(n.id, &n.address, &n.name).await,
                None => Ok(()),
            },
            Step::Promote { node, instead_of } => group.promote(*node, *instead_of).await,
            Step::RemoveVoter(node) => group.remove_voter(*node).await,
            Step::RemoveLearner(node) => group.remove_learner(*node).await,
        }
    };
    match tokio::time::timeout(CHANGE, change).await {
        Ok(Ok(())) => {
            tracing::info!(group = %group.id(), ?step, "membership changed");
            true
        }
        Ok(Err(e)) => {
            tracing::debug!(group = %group.id(), ?step, error = %e, "membership step not taken, will retry");
            false
        }
        Err(_) => {
            tracing::warn!(group = %group.id(), ?step, "membership step without an end, will retry");
            false
        }
    }
}

/// Whether somebody else leads now. One that died a moment ago has everything too: it is not the only one asked.
async fn hand_over(group: &Group, heirs: &[u64]) -> bool {
    for heir in heirs {
        group.transfer_to(*heir).await;
        let until = tokio::time::Instant::now() + HEIR;
        while group.is_leader() && tokio::time::Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN / 2).await;
        }
        if !group.is_leader() {
            tracing::info!(group = %group.id(), to = heir, "leadership handed over");
            return true;
        }
        tracing::debug!(group = %group.id(), to = heir, "does not take over");
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn view(voters: &[u64], learners: &[u64], matched: &[(u64, u64)]) -> GroupView {
        GroupView {
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
            matched: matched.iter().copied().collect(),
            last_log: 1000,
            uniform: true,
            ..GroupView::default()
        }
    }

    fn wanted(voters: &[u64], learners: &[u64]) -> Wanted {
        Wanted {
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
        }
    }

    fn promote(node: u64, instead_of: Option<u64>) -> Task {
        Task::Take(Step::Promote { node, instead_of })
    }

    #[test]
    fn a_new_node_is_learner_first_and_voter_once_caught_up() {
        let want = wanted(&[1, 5, 9], &[]);
        assert_eq!(
            next(1, &want, &view(&[1], &[], &[])),
            Task::Take(Step::AddLearner(5))
        );
        assert_eq!(
            next(1, &want, &view(&[1], &[5], &[(5, 100)])),
            Task::Copying
        );
        assert_eq!(
            next(1, &want, &view(&[1], &[5], &[(5, 990)])),
            promote(5, None)
        );
        assert_eq!(next(1, &want, &view(&[1, 5, 9], &[], &[])), Task::Nothing);
    }

    #[test]
    fn a_learner_that_does_not_answer_keeps_nobody_waiting() {
        let want = wanted(&[1, 5, 9], &[]);
        assert_eq!(
            next(1, &want, &view(&[1], &[5], &[])),
            Task::Take(Step::AddLearner(9))
        );
        assert_eq!(
            next(1, &want, &view(&[1], &[5, 9], &[(9, 1000)])),
            promote(9, None)
        );
        assert_eq!(
            next(1, &want, &view(&[1, 9], &[5], &[(9, 1000)])),
            Task::Nothing
        );
    }

    #[test]
    fn a_new_volume_takes_the_place_of_the_lost_one() {
        let want = wanted(&[1, 4, 120], &[]);
        let before = [1, 3, 4];
        assert_eq!(
            next(1, &want, &view(&before, &[], &[])),
            Task::Take(Step::AddLearner(120))
        );
        assert_eq!(
            next(1, &want, &view(&before, &[120], &[(120, 1000)])),
            promote(120, Some(3))
        );
    }

    #[test]
    fn a_leader_that_is_not_wanted_hands_over_before_it_is_removed() {
        let want = wanted(&[2, 3, 4], &[]);
        let now = view(&[1, 2, 3], &[4], &[(2, 500), (3, 1000), (4, 1000)]);
        assert_eq!(
            next(1, &want, &now),
            Task::HandOver(vec![3]),
            "to one that has everything"
        );
        assert_eq!(
            next(3, &want, &view(&[1, 2, 3], &[4], &[(4, 1000)])),
            promote(4, Some(1))
        );
    }

    #[test]
    fn the_only_replica_moves_by_being_two_for_a_moment() {
        let want = wanted(&[2], &[]);
        let caught = [(2, 1000)];
        assert_eq!(next(1, &want, &view(&[1], &[2], &caught)), promote(2, None));
        assert_eq!(
            next(1, &want, &view(&[1, 2], &[], &caught)),
            Task::HandOver(vec![2])
        );
        assert_eq!(
            next(2, &want, &view(&[1, 2], &[], &[])),
            Task::Take(Step::RemoveVoter(1))
        );
    }

    #[test]
    fn what_a_dead_leader_began_is_finished() {
        let mut half = view(&[1, 2, 3, 4], &[], &[]);
        half.uniform = false;
        assert_eq!(
            next(1, &wanted(&[1, 2, 3], &[]), &half),
            Task::Take(Step::Finish)
        );
    }

    #[test]
    fn nodes_that_only_read_are_learners_and_removed_ones_go() {
        let want = wanted(&[1, 2, 3], &[4]);
        let now = view(&[1, 2, 3], &[], &[]);
        assert_eq!(next(1, &want, &now), Task::Take(Step::AddLearner(4)));
        let now = view(&[1, 2, 3], &[4, 5], &[(4, 1000), (5, 1000)]);
        assert_eq!(next(1, &want, &now), Task::Take(Step::RemoveLearner(5)));
        assert_eq!(next(1, &want, &view(&[1, 2, 3], &[4], &[])), Task::Nothing);
        assert_eq!(
            next(1, &Wanted::default(), &now),
            Task::Nothing,
            "no placement is known yet"
        );
        assert_eq!(want.learners, BTreeSet::from([4]));
    }
}
