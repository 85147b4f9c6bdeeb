//! Gives the space of replicas that were moved away back.
//!
//! Safe once nobody can need what is deleted: the group's leader reported a membership without this
//! node that every member's log holds, so no member would count this node's vote; the transport refuses
//! votes of a node that is left out, so no former member can collect it either; and the vote itself
//! is kept. The replica stops before the metadata group is asked the last time: from that entry on
//! this node can only be added as an empty one, so no leader sees its log go backwards.
use crate::{raft::Groups, service::cluster::Proposer};
use sealane_types::GroupId;
use sealane_wire::v1::{self, command::Op, command_reply::Result as Answer};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const LOOK: Duration = Duration::from_secs(2);
/// The answer of the metadata group; without one the replica stays for now.
const DEADLINE: Duration = Duration::from_secs(5);

/// Runs until `stop`.
pub(crate) async fn run(groups: Arc<Groups>, proposer: Proposer, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return,
        }
        for group in groups.iter().filter(|g| g.id() != GroupId::META) {
            if stop.is_cancelled() || !superfluous(&groups, group.id()) {
                continue;
            }
            let may = may(&groups, &proposer, group.id());
            match groups.forget(group.id(), may).await {
                Ok(true) => {
                    tracing::info!(group = %group.id(), "a replica that was moved away is deleted");
                }
                Ok(false) => {}
                Err(e) => {
                    tracing::error!(
                        group = %group.id(),
                        error = %format!("{e:#}"),
                        "a replica that was moved away is not deleted"
                    );
                }
            }
        }
    }
}

/// Something is stored here of a group that this node is left out of, by its own log too.
fn superfluous(groups: &Groups, id: GroupId) -> bool {
    let (me, registry) = (groups.node_id(), groups.registry());
    let Some(view) = groups.group(id).map(|g| g.view()) else {
        return false;
    };
    let known = registry.reports.get(&id).filter(|r| r.everywhere);
    let newer = known.is_none_or(|r| view.membership > Some(r.membership_index));
    let stored = view.last_log > 0 || view.applied > 0;
    stored && !newer && registry.left_out(id, me)
}

/// The replica has stopped: what it heard until then counts, and the metadata group's word.
async fn may(groups: &Groups, proposer: &Proposer, id: GroupId) -> bool {
    if !superfluous(groups, id) {
        return false;
    }
    let op = Op::ForgetReplica(v1::ForgetReplicaOp {
        group: id.0,
        node: groups.node_id(),
    });
    let asked = tokio::time::timeout(DEADLINE, proposer.propose(GroupId::META, op)).await;
    let Ok(Ok(committed)) = asked else {
        return false;
    };
    matches!(committed.reply.result, Some(Answer::Counted(c)) if c.effective > 0)
}
