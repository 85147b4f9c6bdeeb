//! When this node says that it is ready.
use crate::raft::Groups;
use sealane_types::GroupId;
use sealane_wire::v1::node_record::State;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Replicas of this node that could take over now. One that came back late or was stopped is of no use to
/// a quorum before it has what the others have: who restarts nodes one after the other waits for it.
#[derive(Debug, Default)]
struct Current(BTreeSet<GroupId>);

impl Current {
    /// A replica that is current may be so many entries behind, at most.
    const LOST: u64 = 20_000;
    /// One that is not becomes so when it is so many entries behind, at most.
    const CAUGHT_UP: u64 = 500;

    fn note(&mut self, id: GroupId, behind: Option<u64>) -> bool {
        let allowed = if self.0.contains(&id) {
            Self::LOST
        } else {
            Self::CAUGHT_UP
        };
        let current = behind.is_some_and(|n| n <= allowed);
        if current {
            self.0.insert(id);
        } else {
            self.0.remove(&id);
        }
        current
    }
}

/// Ready: the metadata group has a leader that speaks to this node and counts it, and so does every group that is
/// placed here, with all its replicas, and this node's replica is current. A group on its way to this node is ready as
/// long as it is whole where it is.
fn is_ready(groups: &Groups, current: &mut Current) -> bool {
    let (me, registry) = (groups.node_id(), groups.registry());
    let full = |voters: usize| voters >= usize::try_from(groups.replicas()).unwrap_or(usize::MAX);
    if groups.removed() || registry.state(me) == State::Unspecified {
        return false;
    }
    groups.iter().all(|g| {
        let v = g.view();
        let meta = g.id() == GroupId::META;
        let member = v.voters.contains(&me) || v.learners.contains(&me);
        if member && (meta || v.voters.contains(&me)) && !registry.left_out(g.id(), me) {
            return current.note(g.id(), v.behind)
                && v.leader.is_some()
                && (v.heard || v.leader == Some(me))
                && full(v.voters.len())
                && (v.leader != Some(me) || g.leading().is_some());
        }
        let placed = registry.placement.get(&g.id());
        let placed = placed.is_some_and(|p| p.contains(&me));
        let elsewhere = registry.reports.get(&g.id());
        !meta && (!placed || elsewhere.is_some_and(|r| full(r.voters.len())))
    })
}

/// Keeps `ready` and the gRPC health service true until `stop`.
pub(crate) async fn keep(
    groups: Arc<Groups>,
    ready: watch::Sender<bool>,
    health: tonic_health::server::HealthReporter,
    stop: CancellationToken,
) {
    let mut current = Current::default();
    loop {
        let now = is_ready(&groups, &mut current);
        if ready.send_if_modified(|r| std::mem::replace(r, now) != now) {
            tracing::info!(ready = now, "readiness changed");
            let status = if now {
                tonic_health::ServingStatus::Serving
            } else {
                tonic_health::ServingStatus::NotServing
            };
            health.set_service_status("", status).await;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
            () = stop.cancelled() => break,
        }
    }
    ready.send_replace(false);
    health
        .set_service_status("", tonic_health::ServingStatus::NotServing)
        .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_current_once_it_has_caught_up_and_until_it_is_lost() {
        let mut current = Current::default();
        let mut note = |behind| current.note(GroupId(1), behind);
        assert!(!note(None));
        assert!(!note(Some(Current::LOST)));
        assert!(note(Some(Current::CAUGHT_UP)));
        assert!(note(Some(Current::LOST)));
        assert!(!note(Some(Current::LOST + 1)));
        assert!(!note(Some(Current::LOST)));
    }
}
