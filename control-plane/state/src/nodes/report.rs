//! What the groups' leaders say, and what follows from it.
use super::Registry;
use crate::{
    apply::{Effect, Step, refused},
    meta::audit,
    queries,
    records::{get, put},
    tables::{Table, TableError, WriteTables},
};
use sealane_types::GroupId;
use sealane_wire::v1::{self, command_reply::Result as Answer, node_record::State};

/// What a group's leader says of its members. A node that leaves is removed by the report after which
/// no group, as reported by a leader that knew of its leaving, names it: the metadata group among its
/// voters, a shard at all.
pub(crate) fn report<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::GroupReportOp,
) -> Result<Answer, TableError> {
    let Some(cluster) = get::<v1::ClusterRecord>(s.tables, Table::Cluster, b"")? else {
        return Ok(refused("cluster", "not founded yet"));
    };
    let Some(new) = o.report.filter(|_| o.group <= cluster.shards) else {
        return Ok(refused("report", "missing, or of no group"));
    };
    let key = o.group.to_be_bytes();
    let order = |r: &v1::GroupReport| (r.term, r.membership_index, r.revision, r.everywhere);
    let old = get::<v1::GroupReport>(s.tables, Table::Placement, &key)?;
    let effective = |n| {
        Ok(Answer::Counted(v1::Counted {
            effective: n,
            accepted: Vec::new(),
        }))
    };
    if old.is_some_and(|old| order(&old) >= order(&new)) {
        return effective(0);
    }
    put(s.tables, Table::Placement, &key, &new);
    s.effects.push(Effect::Nodes);
    let reports = queries::group_reports(s.tables)?;
    let mut r = Registry::read(s, cluster)?;
    let leaving = r.nodes.iter().filter(|n| n.state() == State::Leaving);
    let out: Vec<v1::NodeRecord> = leaving
        .filter(|n| {
            (0..=r.cluster.shards).all(|g| {
                reports.get(&GroupId(g)).is_some_and(|report| {
                    let named = report.voters.contains(&n.id)
                        || (g != 0 && report.learners.contains(&n.id));
                    report.revision >= n.changed_at && !named
                })
            })
        })
        .cloned()
        .collect();
    if !out.is_empty() {
        for n in &out {
            r.set(n.id, State::Removed);
        }
        r.write(s);
        for n in out {
            audit(
                s,
                "cluster",
                "node.removed",
                &format!("node {} ({})", n.id, n.name),
            );
        }
    }
    effective(1)
}

/// Whether a node may empty its replica of a shard: nothing is placed there, the shard's leader does not
/// name it, and every member knows that, so that none of them will ask for this node's vote.
pub(crate) fn forget_replica<T: WriteTables>(
    s: &Step<'_, T>,
    o: &v1::ForgetReplicaOp,
) -> Result<Answer, TableError> {
    let placement = queries::placement(s.tables)?;
    let placed = placement
        .groups
        .iter()
        .any(|g| g.group == o.group && g.nodes.contains(&o.node));
    let reports = queries::group_reports(s.tables)?;
    let report = reports.get(&GroupId(o.group));
    let out = report.is_some_and(|r| {
        r.everywhere && !r.voters.contains(&o.node) && !r.learners.contains(&o.node)
    });
    let yes = GroupId(o.group) != GroupId::META && out && !placed;
    Ok(Answer::Counted(v1::Counted {
        effective: u32::from(yes),
        accepted: Vec::new(),
    }))
}
