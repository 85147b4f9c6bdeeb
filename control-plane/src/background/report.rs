//! Tells the metadata group who the members of each group are: by the group's leader, once committed.
//!
//! Nodes that do not hold a group know it from there, and a node that leaves is removed by it.
use crate::{
    raft::{Group, Groups},
    registry::Registry,
    service::cluster::Proposer,
};
use sealane_types::GroupId;
use sealane_wire::v1::{self, command::Op};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const LOOK: Duration = Duration::from_millis(250);
/// A report that is not committed by then is made again from what is true by then.
const DEADLINE: Duration = Duration::from_secs(3);

/// Runs until `stop`.
pub(crate) async fn run(groups: Arc<Groups>, proposer: Proposer, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return,
        }
        let registry = groups.registry();
        for group in groups.iter().filter(|g| g.leading().is_some()) {
            let Some(report) = news(groups.node_id(), &group, &registry) else {
                continue;
            };
            let op = Op::GroupReport(v1::GroupReportOp {
                group: group.id().0,
                report: Some(report),
            });
            let proposal = proposer.propose(GroupId::META, op);
            match tokio::time::timeout(DEADLINE, proposal).await {
                Ok(Ok(_)) => {}
                Ok(Err(s)) => {
                    tracing::debug!(group = %group.id(), error = s.message(), "members not reported, will retry");
                }
                Err(_) => {
                    tracing::debug!(group = %group.id(), "members not reported in time, will retry");
                }
            }
        }
    }
}

/// What the metadata group does not know yet of a group that this node leads.
fn news(me: u64, group: &Group, registry: &Registry) -> Option<v1::GroupReport> {
    let view = group.view();
    let membership_index = view.membership.filter(|_| view.uniform && view.committed)?;
    let mut others = view
        .voters
        .iter()
        .chain(&view.learners)
        .filter(|n| **n != me);
    let everywhere = others.all(|n| {
        view.matched
            .get(n)
            .is_some_and(|at| *at >= membership_index)
    });
    let known = registry.reports.get(&group.id());
    let order = (view.term, membership_index, registry.revision, everywhere);
    if known.is_some_and(|k| (k.term, k.membership_index, k.revision, k.everywhere) >= order) {
        return None;
    }
    Some(v1::GroupReport {
        term: view.term,
        leader: me,
        membership_index,
        voters: view.voters.into_iter().collect(),
        learners: view.learners.into_iter().collect(),
        revision: registry.revision,
        everywhere,
    })
}
