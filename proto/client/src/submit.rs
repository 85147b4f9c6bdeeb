//! Mail into the queue.
mod link;
mod lookup;
mod settle;
mod upload;

pub use settle::{Content, Durable, Grant, Submission, SubmitError};
pub use upload::{Upload, UploadError};

use crate::{
    leaders::{Leaders, View},
    members::Members,
};
use lookup::Answers;
pub(crate) use lookup::Waiting;
use rand::Rng;
use sealane_runtime::clock::Clock;
use sealane_types::{MessageId, NodeId, ShardId, TraceContext};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

fn fresh_id(shard: ShardId, now_ms: u64) -> MessageId {
    let mut random = [0; 9];
    rand::rng().fill(&mut random);
    MessageId::new(shard, now_ms, random)
}

/// What nodes say of the time is gone by for this long: they say it when a stream opens.
const CLOCKS: Duration = Duration::from_secs(7 * 24 * 3600);

/// Enqueues on whichever node leads a shard. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SubmitClient(Arc<Desk>);

#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) leaders: Leaders,
    pub(crate) answers: Answers,
    /// Shards chosen so far.
    chosen: AtomicUsize,
    pub(crate) clock: Clock,
}

/// Milliseconds for which a node is chosen before it is the next one's turn.
/// Several times what a commit takes, or else all shards are at work at once all the same.
const TURN_MS: u64 = 300;

impl SubmitClient {
    /// Keeps a stream to every member until `stop`.
    pub fn start(
        relay: &str,
        members: Members,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let desk = Arc::new(Desk {
            leaders: Leaders::default(),
            answers: Answers::default(),
            chosen: AtomicUsize::new(0),
            clock: Clock::new(CLOCKS),
        });
        let supervisor = link::Supervisor::new(relay.to_owned(), members, desk.clone());
        tasks.spawn(async move { stop.run_until_cancelled(supervisor.run()).await });
        Self(desk)
    }

    /// A fresh id on `shard`, of this moment. The shard remembers what became of an id for as long as the id is
    /// young: so it is of the time that the nodes' clocks show, if ours is far from it.
    pub fn new_id(&self, shard: ShardId) -> MessageId {
        fresh_id(shard, self.0.clock.wall_ms())
    }

    /// A shard that has a leader. The nodes take turns by the clock, so that all relays are at the same one:
    /// see [`View::choose`].
    pub fn choose_shard(&self) -> Option<ShardId> {
        let turn = usize::try_from(self.0.clock.wall_ms() / TURN_MS).unwrap_or(0);
        let message = self.0.chosen.fetch_add(1, Ordering::Relaxed);
        let view = self.0.leaders.view();
        self.0
            .answers
            .waiting(|waiting| view.choose(turn, message, waiting))
    }

    /// Waits until any shard has a leader; `None` at the deadline.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn led_shard(&self, deadline: Instant) -> Option<ShardId> {
        let mut views = self.0.leaders.subscribe();
        let led = views.wait_for(|v| !v.led.is_empty());
        tokio::time::timeout_at(deadline, led).await.ok()?.ok()?;
        self.choose_shard()
    }

    /// A shard whose leader is known and none of these.
    pub fn shard_besides(&self, nodes: &BTreeSet<NodeId>) -> Option<ShardId> {
        let message = self.0.chosen.fetch_add(1, Ordering::Relaxed);
        self.0.leaders.view().besides(nodes, message)
    }

    /// How many nodes lead some shard now.
    pub fn leading_nodes(&self) -> usize {
        self.0.leaders.view().nodes()
    }

    /// How many shards have a leader now.
    pub fn led_shards(&self) -> usize {
        self.0.leaders.view().led.len()
    }

    /// Completes when the leaders changed since the receiver was made or last completed.
    pub fn changes(&self) -> LeaderChanges {
        LeaderChanges(self.0.leaders.subscribe())
    }

    /// The node that leads `shard`, if one is known.
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.0
            .leaders
            .view()
            .leaders
            .get(&shard)
            .map(|l| l.link.node)
    }

    /// Enqueues one message and settles its outcome before `deadline`.
    ///
    /// # Cancel safety
    /// Not cancel safe: after a cancellation the outcome is unknown.
    pub async fn submit(
        &self,
        submission: Submission,
        deadline: Instant,
    ) -> Result<Durable, SubmitError> {
        settle::submit(&self.0, submission, deadline).await
    }

    /// Starts a body that is too long for one entry. Its pieces become part of a message only by
    /// [`Self::submit`] with [`Content::Uploaded`]; otherwise the control plane forgets them.
    pub fn begin_upload(&self, id: MessageId, trace: TraceContext) -> Upload {
        Upload::new(self.0.clone(), id, trace)
    }
}

/// Follows leadership.
#[derive(Debug)]
pub struct LeaderChanges(watch::Receiver<Arc<View>>);

impl LeaderChanges {
    /// False when the client is gone.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}
