//! Which node leads which shard, by the nodes' own claims.
use crate::submit::Waiting;
use sealane_types::{NodeId, ShardId};
use sealane_wire::v1;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// A living Submit stream to one node.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) node: NodeId,
    /// Differs between any two streams of this process.
    pub(crate) generation: u64,
    pub(crate) frames: mpsc::Sender<v1::SubmitRequest>,
    /// Cancelled when the stream broke: what was sent over it and not answered is unknown.
    pub(crate) broken: CancellationToken,
}

/// Who leads, at one moment.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) leaders: HashMap<ShardId, Leader>,
    /// Shards with a leader, ascending.
    pub(crate) led: Vec<ShardId>,
    /// The same, by the node that leads them.
    by_node: Vec<Vec<ShardId>>,
}

/// One of so many messages goes to another node than the others.
const APART: usize = 4;
/// Of what is on its way, at least one message, and one in so many, is with other nodes than the one that has most.
const ELSEWHERE: usize = 8;
/// A node that leads several shards takes so many messages at a time through its first one before another of
/// its shards gets any.
const FULL: usize = 256;
/// So many rounds of turns a node has the same first shard: in the long run all shards get the same.
const ROUNDS: usize = 32;

impl View {
    /// The shard for the next message: on the node whose `turn` it is, but for every fourth message, which
    /// goes to the next node. When a leader dies, not everybody waits for the same election. And when it only
    /// falls silent, not everybody may gather there either: a client that is answered by another node comes back
    /// with its next message, and would soon wait with the rest. So a node that has nearly all that is on its way is
    /// passed over.
    ///
    /// While few messages are on their way (`waiting`) they share one shard of the node: what comes
    /// together shares its appends, its replication and its syncs.
    pub(crate) fn choose(&self, turn: usize, message: usize, waiting: &Waiting) -> Option<ShardId> {
        let nodes = self.by_node.len();
        let apart = usize::from(message.is_multiple_of(APART));
        let of = |at: usize| self.by_node.get(at.checked_rem(nodes)?);
        let total = waiting.total();
        let crowded = |led: &[ShardId]| {
            let elsewhere = total.saturating_sub(waiting.on(led));
            elsewhere * ELSEWHERE < total
        };
        let at = turn.wrapping_add(apart);
        let mut led = of(at)?;
        if crowded(led) {
            led = of(at.wrapping_add(1))?;
        }
        let first = turn / nodes / ROUNDS;
        let shard = first.wrapping_add(total / FULL);
        led.get(shard.checked_rem(led.len())?).copied()
    }

    /// How many nodes lead.
    pub(crate) fn nodes(&self) -> usize {
        self.by_node.len()
    }

    /// A shard that none of these nodes leads.
    pub(crate) fn besides(&self, nodes: &BTreeSet<NodeId>, message: usize) -> Option<ShardId> {
        let able = |s: &&ShardId| {
            let leader = self.leaders.get(s);
            leader.is_some_and(|l| !nodes.contains(&l.link.node))
        };
        let able: Vec<ShardId> = self.led.iter().filter(able).copied().collect();
        able.get(message.checked_rem(able.len())?).copied()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Leader {
    pub(crate) term: u64,
    pub(crate) link: Link,
}

/// The claims of all nodes; the highest term wins a shard.
#[derive(Debug)]
pub(crate) struct Leaders {
    claims: Mutex<BTreeMap<NodeId, Claims>>,
    view: watch::Sender<Arc<View>>,
}

#[derive(Debug)]
struct Claims {
    link: Link,
    shards: Vec<(ShardId, u64)>,
}

impl Default for Leaders {
    fn default() -> Self {
        Self {
            claims: Mutex::default(),
            view: watch::Sender::new(Arc::default()),
        }
    }
}

impl Leaders {
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }
    /// False if another stream to the same node is alive: one is enough.
    pub(crate) fn join(&self, link: &Link) -> bool {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if claims.contains_key(&link.node) {
            return false;
        }
        claims.insert(
            link.node,
            Claims {
                link: link.clone(),
                shards: Vec::new(),
            },
        );
        true
    }
    /// Replaces what this node claimed before.
    pub(crate) fn claim(&self, link: &Link, leading: &v1::Leading) {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(c) = claims
            .get_mut(&link.node)
            .filter(|c| c.link.generation == link.generation)
        {
            c.shards = leading
                .claims
                .iter()
                .filter_map(|c| Some((ShardId::new(c.shard)?, c.term)))
                .collect();
        }
        self.publish(&claims);
    }
    /// The stream is gone, its claims with it.
    pub(crate) fn leave(&self, link: &Link) {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if claims
            .get(&link.node)
            .is_some_and(|c| c.link.generation == link.generation)
        {
            claims.remove(&link.node);
        }
        self.publish(&claims);
    }

    fn publish(&self, claims: &BTreeMap<NodeId, Claims>) {
        let mut leaders: HashMap<ShardId, Leader> = HashMap::new();
        for c in claims.values() {
            for (shard, term) in &c.shards {
                if leaders.get(shard).is_none_or(|l| l.term < *term) {
                    leaders.insert(
                        *shard,
                        Leader {
                            term: *term,
                            link: c.link.clone(),
                        },
                    );
                }
            }
        }
        let mut led: Vec<ShardId> = leaders.keys().copied().collect();
        led.sort_unstable();
        let mut by_node: BTreeMap<NodeId, Vec<ShardId>> = BTreeMap::new();
        for shard in &led {
            if let Some(leader) = leaders.get(shard) {
                by_node.entry(leader.link.node).or_default().push(*shard);
            }
        }
        self.view.send_replace(Arc::new(View {
            leaders,
            led,
            by_node: by_node.into_values().collect(),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fourth_message_goes_to_another_node() {
        let leaders = Leaders::default();
        let (frames, _open) = mpsc::channel(1);
        let shard = |n| ShardId::new(n).expect("in range");
        let link = |node| Link {
            node: NodeId(node),
            generation: node,
            frames: frames.clone(),
            broken: CancellationToken::new(),
        };
        let claim = |node: u64, shards: &[u32]| {
            let claims = shards
                .iter()
                .map(|s| v1::LeaderClaim { shard: *s, term: 1 });
            assert!(leaders.join(&link(node)));
            leaders.claim(
                &link(node),
                &v1::Leading {
                    claims: claims.collect(),
                },
            );
        };
        let chosen = |turn, message| leaders.view().choose(turn, message, &Waiting::default());
        assert_eq!(chosen(3, 1), None);
        claim(1, &[1, 2]);
        assert_eq!(chosen(0, 1), Some(shard(1)));
        // Nobody else leads.
        assert_eq!(chosen(0, 4), Some(shard(1)));
        claim(2, &[3]);
        assert_eq!([1, 2, 3].map(|m| chosen(0, m)), [Some(shard(1)); 3]);
        assert_eq!(chosen(0, 4), Some(shard(3)));
        assert_eq!(chosen(1, 8), Some(shard(1)));
        assert_eq!(chosen(1, 1), Some(shard(3)));
        let besides = |nodes: &[u64], message| {
            let nodes = nodes.iter().copied().map(NodeId).collect();
            leaders.view().besides(&nodes, message)
        };
        assert_eq!(besides(&[1], 5), Some(shard(3)));
        assert_eq!(
            [0, 1].map(|m| besides(&[2], m)),
            [Some(shard(1)), Some(shard(2))]
        );
        assert_eq!(besides(&[1, 2], 0), None);
    }

    #[test]
    fn a_crowd_spreads_over_the_shards_of_a_node() {
        let leaders = Leaders::default();
        let (frames, _open) = mpsc::channel(1);
        let link = Link {
            node: NodeId(1),
            generation: 1,
            frames,
            broken: CancellationToken::new(),
        };
        assert!(leaders.join(&link));
        let claims = [1, 2].map(|shard| v1::LeaderClaim { shard, term: 1 });
        leaders.claim(
            &link,
            &v1::Leading {
                claims: claims.into(),
            },
        );
        let first = ShardId::new(1).expect("in range");
        let chosen = [0, FULL - 1, FULL, 2 * FULL]
            .map(|w| leaders.view().choose(0, 1, &waiting(&[(first, w)])));
        assert_eq!(chosen.map(|s| s.map_or(0, ShardId::get)), [1, 1, 2, 1]);
        let later = [ROUNDS - 1, ROUNDS, 2 * ROUNDS]
            .map(|t| leaders.view().choose(t, 1, &Waiting::default()));
        assert_eq!(later.map(|s| s.map_or(0, ShardId::get)), [1, 2, 1]);
    }

    fn waiting(on: &[(ShardId, usize)]) -> Waiting {
        let mut waiting = Waiting::default();
        for (shard, n) in on {
            (0..*n).for_each(|_| waiting.begin(*shard));
        }
        waiting
    }

    #[test]
    fn not_everybody_gathers_at_a_node_that_fell_silent() {
        let leaders = Leaders::default();
        let (frames, _open) = mpsc::channel(1);
        for node in 1..=3 {
            let link = Link {
                node: NodeId(node),
                generation: node,
                frames: frames.clone(),
                broken: CancellationToken::new(),
            };
            assert!(leaders.join(&link));
            let shard = u32::try_from(node).expect("small");
            let claims = vec![v1::LeaderClaim { shard, term: 1 }];
            leaders.claim(&link, &v1::Leading { claims });
        }
        // A hundred clients; those whom node 2 has get no answer, the others one at once.
        let view = leaders.view();
        let silent = ShardId::new(2).expect("in range");
        let mut stuck = 0;
        for message in 0..10_000 {
            let shard = view.choose(message / 50, message, &waiting(&[(silent, stuck)]));
            if stuck < 100 && shard == Some(silent) {
                stuck += 1;
            }
        }
        assert_eq!(stuck, 1);
        let others = waiting(&[(silent, 80), (ShardId::new(1).expect("in range"), 20)]);
        assert_eq!(view.choose(1, 1, &others), Some(silent));
        let others = waiting(&[(silent, 90), (ShardId::new(1).expect("in range"), 10)]);
        assert_eq!(view.choose(1, 1, &others), ShardId::new(3));
        // The fourth message of another node's turn neither.
        assert_eq!(view.choose(0, 4, &others), ShardId::new(3));
    }
}
