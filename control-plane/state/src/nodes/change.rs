//! What an operator does to nodes.
use super::{ACTIVE_LIMIT, Registry, allocated, holders};
use crate::{
    apply::{Step, refused},
    meta::audit,
    queries,
    records::get,
    tables::{Table, TableError, WriteTables},
};
use sealane_types::GroupId;
use sealane_wire::v1::{
    self, change_node_op::Action, command_reply::Result as Answer, node_record::State,
};
use std::collections::BTreeMap;

/// Asked twice, it changes once: whoever forwards it may have lost the first answer.
pub(crate) fn change<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: &v1::ChangeNodeOp,
) -> Result<Answer, TableError> {
    let Some(cluster) = get::<v1::ClusterRecord>(s.tables, Table::Cluster, b"")? else {
        return Ok(refused("cluster", "not founded yet"));
    };
    let mut r = Registry::read(s, cluster)?;
    let Some(node) = r.find(&o.node) else {
        return Ok(refused("node", format!("there is no {:?}", o.node)));
    };
    let reports = queries::group_reports(s.tables)?;
    let decided = match o.action() {
        Action::Add => add(&mut r, &node),
        Action::Remove => remove(&mut r, &node),
        Action::Replace => match outvoted(&r, &reports, &node) {
            Some(group) => Err(refused(
                "node",
                format!(
                    "group {group} would have no majority left: wait until the nodes that were lost before are replaced"
                ),
            )),
            None => replace(&mut r, &node, &o.with),
        },
        Action::Unspecified => Err(refused("action", "ADD, REMOVE or REPLACE")),
    };
    let holder = match decided {
        Ok(holder) => holder,
        Err(refusal) => return Ok(refusal),
    };
    let answer = Answer::Node(allocated(&r.cluster, holder));
    if r.changed.is_empty() {
        return Ok(answer);
    }
    let action = match o.action() {
        Action::Add => "node.add",
        Action::Remove => "node.remove",
        _ => "node.replace",
    };
    let with = if holder == node.id {
        String::new()
    } else {
        format!(" with node {holder}")
    };
    let detail = format!("node {} ({}){with}", node.id, node.name);
    r.write(s);
    audit(s, &o.actor, action, &detail);
    Ok(answer)
}

/// A group that would have no quorum of nodes that are listened to if `node` were lost too.
pub(super) fn outvoted(
    r: &Registry,
    reports: &BTreeMap<GroupId, v1::GroupReport>,
    node: &v1::NodeRecord,
) -> Option<GroupId> {
    let deaf = |id: &&u64| {
        let other = r.nodes.iter().find(|n| n.id == **id);
        **id == node.id || other.is_none_or(|n| matches!(n.state(), State::Lost | State::Removed))
    };
    let active = node.state() == State::Active;
    let mut voted = reports
        .iter()
        .filter(|(_, report)| active && report.voters.contains(&node.id));
    let lost = voted.find(|(_, report)| {
        let lost = report.voters.iter().filter(deaf).count();
        (report.voters.len() - lost) * 2 <= report.voters.len()
    });
    lost.map(|(group, _)| *group)
}

fn add(r: &mut Registry, node: &v1::NodeRecord) -> Result<u64, Answer> {
    match node.state() {
        State::Active => {}
        State::Spare | State::Leaving if holders(&r.nodes).len() >= ACTIVE_LIMIT => {
            return Err(refused(
                "node",
                format!("{ACTIVE_LIMIT} nodes hold replicas: no more"),
            ));
        }
        State::Spare | State::Leaving => r.set(node.id, State::Active),
        _ => return Err(gone(node)),
    }
    Ok(node.id)
}

fn gone(node: &v1::NodeRecord) -> Answer {
    let what = if node.state() == State::Lost {
        "was declared lost"
    } else {
        "was removed"
    };
    refused(
        "node",
        format!(
            "node {} ({}) {what}: wipe its volume and start it, and it joins under a new id",
            node.id, node.name
        ),
    )
}

fn remove(r: &mut Registry, node: &v1::NodeRecord) -> Result<u64, Answer> {
    let left = |r: &Registry| r.count(State::Active);
    match node.state() {
        State::Leaving | State::Removed => {}
        State::Spare => r.set(node.id, State::Removed),
        State::Active if left(r) <= r.replicas() => {
            return Err(refused(
                "node",
                format!(
                    "{} active nodes would be left for {} copies of everything: add one first",
                    left(r).saturating_sub(1),
                    r.replicas()
                ),
            ));
        }
        State::Lost if left(r) < r.replicas() => {
            return Err(refused(
                "node",
                format!(
                    "{} active nodes are left for {} copies of everything: its places need another node",
                    left(r),
                    r.replicas()
                ),
            ));
        }
        // Nobody listens to it any more, so nothing has to be waited for.
        State::Lost => r.set(node.id, State::Removed),
        State::Active | State::Unspecified => r.set(node.id, State::Leaving),
    }
    Ok(node.id)
}

fn replace(r: &mut Registry, node: &v1::NodeRecord, with: &str) -> Result<u64, Answer> {
    if node.state() == State::Removed {
        // Asked again?
        let heir = r.newest(|n| n.replaces == node.id && n.state() == State::Active);
        let same = heir.filter(|h| with.is_empty() || h.name == with || h.id.to_string() == with);
        return same.map(|h| h.id).ok_or_else(|| gone(node));
    }
    if !matches!(node.state(), State::Active | State::Lost) {
        return Err(refused(
            "node",
            format!("node {} ({}) has no places", node.id, node.name),
        ));
    }
    let heir = if with.is_empty() {
        r.oldest(|n| n.state() == State::Spare)
    } else {
        let Some(heir) = r.find(with) else {
            return Err(refused("with", format!("there is no {with:?}")));
        };
        if heir.state() != State::Spare {
            return Err(refused(
                "with",
                format!("node {} ({}) is no spare", heir.id, heir.name),
            ));
        }
        Some(heir)
    };
    match heir {
        Some(heir) => {
            r.take_places(node.id, heir.id);
            Ok(heir.id)
        }
        None => {
            if node.state() == State::Active {
                r.set(node.id, State::Lost);
            }
            Ok(node.id)
        }
    }
}
