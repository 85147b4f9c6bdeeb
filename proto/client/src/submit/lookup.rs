//! Who waits for which answer.
use sealane_types::{MessageId, ShardId};
use sealane_wire::{message_id, v1};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc;

/// Answers that wait for one message's settlement. More are never outstanding: one per stream and frame.
const PENDING: usize = 32;

/// An answer, and the stream it came over.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) generation: u64,
    pub(crate) outcome: v1::SubmitOutcome,
}

/// One message, or one piece of one (pieces are numbered from 0, as on the wire).
type Key = (MessageId, u32);

/// Answers to their askers.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    askers: HashMap<Key, mpsc::Sender<Answer>>,
    waiting: Waiting,
}

/// How many messages and pieces wait for their answer.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    total: usize,
    by_shard: HashMap<ShardId, usize>,
}

impl Waiting {
    /// On all shards.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// On some of them.
    pub(crate) fn on(&self, shards: &[ShardId]) -> usize {
        shards.iter().filter_map(|s| self.by_shard.get(s)).sum()
    }

    /// One more; [`Registration`]s end what they began.
    pub(crate) fn begin(&mut self, shard: ShardId) {
        self.total += 1;
        *self.by_shard.entry(shard).or_default() += 1;
    }

    fn end(&mut self, shard: ShardId) {
        self.total = self.total.saturating_sub(1);
        if let Some(n) = self.by_shard.get_mut(&shard) {
            *n = n.saturating_sub(1);
        }
    }
}

impl Answers {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the registration is dropped, answers about `id` and `seq` go to it.
    pub(crate) fn register(&self, id: MessageId, seq: u32) -> Registration<'_> {
        let (tx, answers) = mpsc::channel(PENDING);
        let mut table = self.lock();
        table.waiting.begin(id.shard());
        table.askers.insert((id, seq), tx);
        Registration {
            table: self,
            key: (id, seq),
            answers,
        }
    }

    /// Looks at how many wait.
    pub(crate) fn waiting<T>(&self, look: impl FnOnce(&Waiting) -> T) -> T {
        look(&self.lock().waiting)
    }

    /// An answer that nobody waits for (any more) is dropped.
    pub(crate) fn deliver(&self, generation: u64, outcome: v1::SubmitOutcome) {
        let Ok(id) = message_id("outcome.id", &outcome.id) else {
            return;
        };
        let table = self.lock();
        if let Some(tx) = table.askers.get(&(id, outcome.seq))
            && tx
                .try_send(Answer {
                    generation,
                    outcome,
                })
                .is_err()
        {
            tracing::warn!(message.id = %id, "more answers than questions");
        }
    }
}

/// A place in the table.
#[derive(Debug)]
pub(crate) struct Registration<'a> {
    table: &'a Answers,
    key: Key,
    pub(crate) answers: mpsc::Receiver<Answer>,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        table.askers.remove(&self.key);
        table.waiting.end(self.key.0.shard());
    }
}
