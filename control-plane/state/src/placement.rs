//! Where the replicas of every group are to be: a pure function over the nodes.
//!
//! What holds for every result ([`place`]):
//!
//! 1. No shard has two replicas on one node; each has as many as asked for, or one per node.
//! 2. Numbers of replicas differ by at most one between nodes, and so do numbers of preferred leaders.
//! 3. As few replicas as possible move, and then as few preferred leaders as possible.
//! 4. The same input gives the same result on every node.
//!
//! 1 to 3 together are a flow of least cost from shards to nodes (`flow`), solved exactly: a greedy
//! choice moves replicas twice when the node with room already has one of the shard.
mod flow;

use flow::Flow;
use std::collections::BTreeMap;

/// The voters of each group, by group number, the preferred leader first.
pub type Placement = BTreeMap<u32, Vec<u64>>;

/// Group 0, whose learners are all nodes that do not vote in it.
const META: u32 = 0;

/// Places group 0 and the shards `1..=shards` on `nodes` (in the order they joined), keeping what it can of `previous`.
pub fn place(nodes: &[u64], shards: u32, replicas: u32, previous: &Placement) -> Placement {
    let replicas = usize::try_from(replicas)
        .unwrap_or(usize::MAX)
        .min(nodes.len());
    let mut out = Placement::from([(META, metadata(nodes, replicas, previous.get(&META)))]);
    let kept: Vec<Vec<usize>> = (1..=shards)
        .map(|shard| {
            let old = previous.get(&shard).into_iter().flatten();
            old.filter_map(|id| nodes.iter().position(|n| n == id))
                .collect()
        })
        .collect();
    let sets = spread(nodes.len(), replicas, &kept);
    let leaders = leaders(nodes.len(), &sets, &kept);
    for ((shard, set), leader) in (1..=shards).zip(&sets).zip(leaders) {
        let first = leader.into_iter();
        let rest = set.iter().copied().filter(|n| Some(*n) != leader);
        let ids = first.chain(rest).filter_map(|n| nodes.get(n).copied());
        out.insert(shard, ids.collect());
    }
    out
}

/// Those who vote go on; then who joined first.
fn metadata(nodes: &[u64], replicas: usize, previous: Option<&Vec<u64>>) -> Vec<u64> {
    let old = previous.into_iter().flatten();
    let mut voters: Vec<u64> = old.filter(|id| nodes.contains(id)).copied().collect();
    let more: Vec<u64> = nodes
        .iter()
        .filter(|id| !voters.contains(id))
        .copied()
        .collect();
    voters.extend(more);
    voters.truncate(replicas);
    voters
}

/// Gives every shard `replicas` of `nodes`, evenly, moving as few as possible from `kept`.
fn spread(nodes: usize, replicas: usize, kept: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut flow = Flow::new(kept.len(), nodes, replicas);
    for (shard, old) in kept.iter().enumerate() {
        for node in 0..nodes {
            flow.allow(shard, node, i64::from(!old.contains(&node)));
        }
    }
    flow.solve()
}

/// One of each set, evenly: the old leader if possible, else a replica that is there already.
fn leaders(nodes: usize, sets: &[Vec<usize>], kept: &[Vec<usize>]) -> Vec<Option<usize>> {
    let mut flow = Flow::new(sets.len(), nodes, usize::from(nodes > 0));
    for (shard, set) in sets.iter().enumerate() {
        let old = kept.get(shard).map_or(&[][..], Vec::as_slice);
        for node in set {
            let cost = match old.iter().position(|o| o == node) {
                Some(0) => 0,
                // Changes of leaders count before what is copied first.
                Some(_) => 1_000,
                None => 1_001,
            };
            flow.allow(shard, *node, cost);
        }
    }
    let chosen = flow.solve();
    chosen.into_iter().map(|c| c.first().copied()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests;
