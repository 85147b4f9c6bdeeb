//! Even assignment of shards to nodes at the least cost.
//!
//! ```text
//!  source ──units──► shard ──1, cost──► node ──floor, −REWARD──► sink
//!                                            ──1, 0 ───────────►
//! ```
//!
//! The reward fills every node up to its floor before any gets one more; among those fillings the
//! cheapest is found. Paths of least cost one after another (Bellman-Ford with a queue): at most
//! 255 shards × 7 replicas of them over some thousand edges, and only when the nodes change.
use std::collections::VecDeque;

/// Worth more than all costs together.
const REWARD: i64 = 1 << 32;
const SOURCE: usize = 0;
const SINK: usize = 1;

#[derive(Debug)]
struct Edge {
    to: usize,
    room: usize,
    cost: i64,
}

#[derive(Debug)]
pub(super) struct Flow {
    shards: usize,
    /// Every second one is the way back of the one before it.
    edges: Vec<Edge>,
    /// Edges that leave a vertex.
    from: Vec<Vec<usize>>,
}

impl Flow {
    /// `units` nodes for each of `shards`.
    pub(super) fn new(shards: usize, nodes: usize, units: usize) -> Self {
        let mut flow = Self {
            shards,
            edges: Vec::new(),
            from: vec![Vec::new(); 2 + shards + nodes],
        };
        for shard in 0..shards {
            flow.edge(SOURCE, flow.shard(shard), units, 0);
        }
        let floor = (shards * units).checked_div(nodes).unwrap_or(0);
        for node in 0..nodes {
            flow.edge(flow.node(node), SINK, floor, -REWARD);
            flow.edge(flow.node(node), SINK, 1, 0);
        }
        flow
    }

    fn shard(&self, n: usize) -> usize {
        2 + n
    }
    fn node(&self, n: usize) -> usize {
        2 + self.shards + n
    }

    fn edge(&mut self, a: usize, b: usize, room: usize, cost: i64) {
        for (at, to, room, cost) in [(a, b, room, cost), (b, a, 0, -cost)] {
            if let Some(out) = self.from.get_mut(at) {
                out.push(self.edges.len());
            }
            self.edges.push(Edge { to, room, cost });
        }
    }

    /// The shard may have a replica on this node.
    pub(super) fn allow(&mut self, shard: usize, node: usize, cost: i64) {
        self.edge(self.shard(shard), self.node(node), 1, cost);
    }

    /// The nodes of each shard, ascending.
    pub(super) fn solve(mut self) -> Vec<Vec<usize>> {
        while self.push_one() {}
        (0..self.shards).map(|s| self.chosen(s)).collect()
    }

    fn chosen(&self, shard: usize) -> Vec<usize> {
        let out = self.from.get(self.shard(shard)).into_iter().flatten();
        let used = out
            .filter(|e| *e % 2 == 0)
            .filter_map(|e| self.edges.get(*e));
        let mut nodes: Vec<usize> = used
            .filter(|e| e.room == 0)
            .filter_map(|e| e.to.checked_sub(2 + self.shards))
            .collect();
        nodes.sort_unstable();
        nodes
    }

    /// Sends one unit along a cheapest path; false if there is no path.
    fn push_one(&mut self) -> bool {
        let mut best = vec![(i64::MAX, usize::MAX); self.from.len()];
        let mut waiting = vec![false; self.from.len()];
        let mut queue = VecDeque::from([SOURCE]);
        best[SOURCE] = (0, usize::MAX);
        while let Some(at) = queue.pop_front() {
            waiting[at] = false;
            let so_far = best[at].0;
            for &number in &self.from[at] {
                let e = &self.edges[number];
                if e.room > 0 && so_far + e.cost < best[e.to].0 {
                    best[e.to] = (so_far + e.cost, number);
                    if !std::mem::replace(&mut waiting[e.to], true) {
                        queue.push_back(e.to);
                    }
                }
            }
        }
        if best[SINK].0 == i64::MAX {
            return false;
        }
        let mut at = SINK;
        while at != SOURCE {
            let number = best[at].1;
            let back = number ^ 1;
            self.edges[number].room -= 1;
            self.edges[back].room += 1;
            at = self.edges[back].to;
        }
        true
    }
}
