//! Which node leads which shard, by the nodes' own claims.
use sealane_types::{NodeId, ShardId};
use sealane_wire::v1;
use std::{
    collections::{BTreeMap, HashMap},
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
}

/// One of so many messages goes to another node than the others.
const APART: usize = 4;

impl View {
    /// The shard whose `turn` it is; for every fourth message the next one that another node leads. When
    /// a leader dies, not everybody waits for the same election.
    pub(crate) fn choose(&self, turn: usize, message: usize) -> Option<ShardId> {
        let count = self.led.len();
        let shard = self.led.get(turn.checked_rem(count)?).copied()?;
        if !message.is_multiple_of(APART) {
            return Some(shard);
        }
        let node = |s: ShardId| self.leaders.get(&s).map(|l| l.link.node);
        let others = (1..count).filter_map(|k| self.led.get(turn.wrapping_add(k) % count).copied());
        let mut elsewhere = others.filter(|s| node(*s) != node(shard));
        elsewhere.next().or(Some(shard))
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
        self.view.send_replace(Arc::new(View { leaders, led }));
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
        assert_eq!(leaders.view().choose(3, 1), None);
        claim(1, &[1, 2]);
        let chosen = |turn, message| leaders.view().choose(turn, message);
        assert_eq!(chosen(0, 1), Some(shard(1)));
        // Nobody else leads.
        assert_eq!(chosen(0, 4), Some(shard(1)));
        claim(2, &[3]);
        assert_eq!([1, 2, 3].map(|m| chosen(0, m)), [Some(shard(1)); 3]);
        assert_eq!(chosen(0, 4), Some(shard(3)));
        assert_eq!(chosen(2, 8), Some(shard(1)));
        assert_eq!(chosen(4, 1), Some(shard(2)));
    }
}
