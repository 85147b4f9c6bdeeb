//! Group 0: which nodes there are, and where the replicas are to be.
//!
//! ```text
//!            join, fewer than `replicas` active ─────────────────┐
//!            join under the name of an active node, or for a LOST one
//!                                                                ▼
//!  join ──► SPARE ──add──► ACTIVE ──remove──► LEAVING ──no report names it──► REMOVED
//!                            │  ▲───────add──────┘                               ▲
//!                            ├──replace, a spare is there: it takes the places ──┤
//!                            └──replace, none there──► LOST ──the next joins─────┘
//! ```
//!
//! REMOVED is a tombstone: an id is never valid again. Every change writes the placement in the same
//! entry, so that no node sees a registry without it.
mod change;
mod report;

pub(crate) use change::change;
pub(crate) use report::{forget_replica, report};

use crate::{
    apply::{Effect, Step, refused},
    meta::audit,
    placement::{Placement, place},
    queries,
    records::{get, put},
    tables::{Table, TableError, WriteTables},
};
use sealane_mutants::{Mutant::M12, mutant};
use sealane_wire::v1::{self, command_reply::Result as Answer, node_record::State};
use std::collections::{BTreeMap, BTreeSet};

/// Most nodes ever registered.
const NODE_LIMIT: usize = 10_000;
/// Most nodes that replicas are placed on.
const ACTIVE_LIMIT: usize = 64;

pub(crate) fn allocated(c: &v1::ClusterRecord, node_id: u64) -> v1::NodeAllocated {
    v1::NodeAllocated {
        node_id,
        cluster_id: c.cluster_id.clone(),
        shards: c.shards,
        replicas: c.replicas,
    }
}

/// Gives states to records that were written before there were any: the newest id of the `replicas`
/// names that joined first was a member, older ids of a name had been replaced.
pub(crate) fn name_states(nodes: &mut [v1::NodeRecord], replicas: u32) {
    if nodes.iter().all(|n| n.state() != State::Unspecified) {
        return;
    }
    let mut names: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for n in nodes.iter() {
        let ids = names.entry(n.name.clone()).or_insert((n.id, n.id));
        *ids = (ids.0.min(n.id), ids.1.max(n.id));
    }
    let mut ids: Vec<(u64, u64)> = names.into_values().collect();
    ids.sort_unstable();
    let newest: Vec<u64> = ids.into_iter().map(|(_, newest)| newest).collect();
    let members = usize::try_from(replicas).unwrap_or(usize::MAX);
    for n in nodes.iter_mut().filter(|n| n.state() == State::Unspecified) {
        let state = match newest.iter().position(|id| *id == n.id) {
            Some(at) if at < members => State::Active,
            Some(_) => State::Spare,
            None => State::Removed,
        };
        n.set_state(state);
    }
}

/// Nodes that have places, oldest first.
pub(crate) fn holders(nodes: &[v1::NodeRecord]) -> Vec<u64> {
    let holds = |n: &&v1::NodeRecord| matches!(n.state(), State::Active | State::Lost);
    nodes.iter().filter(holds).map(|n| n.id).collect()
}

pub(crate) fn placement_record(revision: u64, placement: Placement) -> v1::PlacementRecord {
    let groups = placement
        .into_iter()
        .map(|(group, nodes)| v1::GroupPlacement { group, nodes })
        .collect();
    v1::PlacementRecord { revision, groups }
}

/// The registry while an entry changes it.
struct Registry {
    cluster: v1::ClusterRecord,
    /// Oldest first.
    nodes: Vec<v1::NodeRecord>,
    /// Ids whose record is to be written.
    changed: BTreeSet<u64>,
    placement: Placement,
    at: u64,
}

impl Registry {
    fn read<T: WriteTables>(
        s: &Step<'_, T>,
        cluster: v1::ClusterRecord,
    ) -> Result<Self, TableError> {
        let placement = queries::placement(s.tables)?;
        Ok(Self {
            cluster,
            nodes: queries::nodes(s.tables)?,
            changed: BTreeSet::new(),
            placement: placement
                .groups
                .into_iter()
                .map(|g| (g.group, g.nodes))
                .collect(),
            at: s.index,
        })
    }

    fn newest(&self, is: impl Fn(&v1::NodeRecord) -> bool) -> Option<v1::NodeRecord> {
        self.nodes.iter().rev().find(|n| is(n)).cloned()
    }
    fn oldest(&self, is: impl Fn(&v1::NodeRecord) -> bool) -> Option<v1::NodeRecord> {
        self.nodes.iter().find(|n| is(n)).cloned()
    }
    fn count(&self, state: State) -> usize {
        self.nodes.iter().filter(|n| n.state() == state).count()
    }
    fn replicas(&self) -> usize {
        usize::try_from(self.cluster.replicas).unwrap_or(usize::MAX)
    }

    /// The node of that name that is still one; else the last that was; else the one of that id.
    fn find(&self, name: &str) -> Option<v1::NodeRecord> {
        let named = |n: &v1::NodeRecord| n.name == name;
        self.newest(|n| named(n) && n.state() != State::Removed)
            .or_else(|| self.newest(named))
            .or_else(|| {
                let id = name.parse().ok()?;
                self.newest(|n| n.id == id)
            })
    }

    fn set(&mut self, id: u64, state: State) {
        let at = self.at;
        if let Some(n) = self.nodes.iter_mut().find(|n| n.id == id) {
            n.set_state(state);
            n.changed_at = at;
            self.changed.insert(id);
        }
    }

    fn add(&mut self, node: v1::NodeRecord) {
        self.changed.insert(node.id);
        self.nodes.push(node);
        self.nodes.sort_by_key(|n| n.id);
    }

    /// `old` is gone for good; `new` stands wherever it stood.
    fn take_places(&mut self, old: u64, new: u64) {
        self.set(old, State::Removed);
        self.set(new, State::Active);
        if let Some(n) = self.nodes.iter_mut().find(|n| n.id == new) {
            n.replaces = old;
        }
        for id in self
            .placement
            .values_mut()
            .flatten()
            .filter(|id| **id == old)
        {
            *id = new;
        }
    }

    /// Places anew and writes everything. Records without a state get theirs once and for all.
    fn write<T: WriteTables>(self, s: &mut Step<'_, T>) {
        let (shards, replicas) = (self.cluster.shards, self.cluster.replicas);
        let placement = place(&holders(&self.nodes), shards, replicas, &self.placement);
        for n in &self.nodes {
            if self.changed.contains(&n.id) || n.changed_at == 0 {
                put(s.tables, Table::Node, &n.id.to_be_bytes(), n);
            }
        }
        put(
            s.tables,
            Table::Placement,
            b"",
            &placement_record(self.at, placement),
        );
        s.effects.push(Effect::Nodes);
    }
}

/// The founder.
pub(crate) fn found<T: WriteTables>(
    s: &mut Step<'_, T>,
    cluster: &v1::ClusterRecord,
    first: v1::NodeRecord,
) -> Result<(), TableError> {
    let mut r = Registry::read(s, cluster.clone())?;
    let id = first.id;
    r.add(first);
    r.set(id, State::Active);
    r.write(s);
    Ok(())
}

/// A new id is the log index of its allocation: never given twice. The same volume gets the same id.
pub(crate) fn allocate<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::AllocateNodeOp,
) -> Result<Answer, TableError> {
    let Some(cluster) = get::<v1::ClusterRecord>(s.tables, Table::Cluster, b"")? else {
        return Ok(refused("cluster", "not founded yet"));
    };
    if o.incarnation.len() != 16 {
        return Ok(refused("incarnation", "needs 16 octets"));
    }
    let mut r = Registry::read(s, cluster)?;
    if let Some(known) = r.newest(|n| n.incarnation == o.incarnation) {
        return Ok(match known.state() {
            State::Removed | State::Lost => refused(
                "incarnation",
                format!(
                    "node {} was removed: wipe its volume to join anew",
                    known.id
                ),
            ),
            _ => Answer::Node(allocated(&r.cluster, known.id)),
        });
    }
    if r.nodes.iter().any(|n| n.id == s.index) {
        // The founder chose its own id; the next attempt has another index.
        return Ok(refused(
            "node",
            "this log index is a node id already: propose again",
        ));
    }
    if r.nodes.len() >= NODE_LIMIT {
        return Ok(refused(
            "node",
            format!("{NODE_LIMIT} ids were given: no more"),
        ));
    }
    let id = if mutant(M12) {
        let ordinal = o.name.rsplit('-').next();
        ordinal.and_then(|n| n.parse().ok()).unwrap_or(s.index)
    } else {
        s.index
    };
    let node = v1::NodeRecord {
        id,
        name: o.name,
        address: o.address,
        incarnation: o.incarnation,
        joined_at_ms: s.now,
        ..Default::default()
    };
    // Who joins under a known name has lost that name's volume, and nobody listens to the old one any more.
    let before = r.newest(|n| n.name == node.name && n.state() != State::Removed);
    if let Some(before) = before {
        let reports = queries::group_reports(s.tables)?;
        if let Some(group) = change::outvoted(&r, &reports, &before) {
            return Ok(refused(
                "name",
                format!(
                    "group {group} would have no majority left without the volume that {} lost: this node \
                     joins once the nodes that were lost before are replaced",
                    before.name
                ),
            ));
        }
    }
    let role = join(&mut r, node.clone());
    audit(
        s,
        &node.name,
        "join",
        &format!("node {} at {}, {role}", node.id, node.address),
    );
    let answer = Answer::Node(allocated(&r.cluster, node.id));
    r.write(s);
    Ok(answer)
}

/// Decides what a new node is; says so.
fn join(r: &mut Registry, node: v1::NodeRecord) -> String {
    let id = node.id;
    // Who joins under a known name has lost that name's volume.
    let before = r.newest(|n| n.name == node.name && n.state() != State::Removed);
    let lost = r.oldest(|n| n.state() == State::Lost);
    let founding = r.count(State::Active) + r.count(State::Lost) < r.replicas();
    r.add(node);
    match (before, lost) {
        (Some(old), _) if matches!(old.state(), State::Active | State::Lost) => {
            r.take_places(old.id, id);
            format!("in the places of {}", old.id)
        }
        (Some(old), None) if !founding => {
            r.set(old.id, State::Removed);
            r.set(id, State::Spare);
            format!("spare instead of {}", old.id)
        }
        (old, Some(lost)) => {
            if let Some(old) = old {
                r.set(old.id, State::Removed);
            }
            r.take_places(lost.id, id);
            format!("in the places of {} ({})", lost.id, lost.name)
        }
        (old, None) => {
            if let Some(old) = old {
                r.set(old.id, State::Removed);
            }
            r.set(
                id,
                if founding {
                    State::Active
                } else {
                    State::Spare
                },
            );
            if founding { "active" } else { "spare" }.to_owned()
        }
    }
}
