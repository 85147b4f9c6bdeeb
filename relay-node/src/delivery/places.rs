//! Places at destinations: this relay's part of what the cluster may have open.
//!
//! An attempt first takes its [`Turn`], then a connection: one that waits idle, or a new one, for
//! which it takes a [`Place`]. A place belongs to its connection, idle or not, and comes back when the
//! connection is closed. Where a rate is limited, a new connection or a message spends a token.
//!
//! A warm connection takes its next message without a question to anybody: shares are renewed by a
//! task of their own (`shares.rs`).
use super::DeliveryMetrics;
use sealane_client::Dealt;
use sealane_policy::Limits;
use sealane_shares::{Grant, Kind, Need, PerKind, Share};
use sealane_wire::v1;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

/// All destinations of this relay. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    zero: Instant,
    table: Mutex<HashMap<Arc<str>, Entry>>,
    /// Something is missing, or something can be given back.
    ask: Notify,
    metrics: DeliveryMetrics,
}

#[derive(Debug, Default)]
struct Entry {
    share: Share,
    /// Attempts that wait for their turn, in order; some of them may be gone.
    queue: VecDeque<oneshot::Sender<Turn>>,
    /// Attempts that wait for a token.
    wanted: PerKind,
    /// Of the whole cluster.
    limit: u32,
    /// A place came back, or an answer came.
    changed: Arc<Notify>,
}

/// What was asked of the dealer; its answer goes to [`Places::answered`].
#[derive(Debug, Default)]
pub(crate) struct Question(Vec<(Arc<str>, Need)>);

impl Question {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// For the wire.
    pub(crate) fn needs(&self) -> Vec<v1::ShareNeed> {
        let of = |(name, need): &(Arc<str>, Need)| v1::ShareNeed::of(name, *need);
        self.0.iter().map(of).collect()
    }
}

impl Places {
    pub(crate) fn new(metrics: DeliveryMetrics) -> Self {
        Self(Arc::new(Inner {
            zero: Instant::now(),
            table: Mutex::default(),
            ask: Notify::new(),
            metrics,
        }))
    }

    /// Waits for a turn; it is given back when it is dropped. Who waits is served in order.
    ///
    /// # Cancel safety
    /// A cancelled wait gives up its turn.
    pub(crate) async fn enter(&self, destination: &str, limits: &Limits) -> Turn {
        match self.begin(destination, limits) {
            Ok(turn) => turn,
            Err(turn) => turn.await.expect("who waits stays in the table"),
        }
    }

    fn begin(&self, destination: &str, limits: &Limits) -> Result<Turn, oneshot::Receiver<Turn>> {
        let now = self.0.now_ms();
        let mut table = self.0.lock();
        let (name, entry) = match table.get_key_value(destination) {
            Some((name, _)) => {
                let name = Arc::clone(name);
                (name, table.get_mut(destination))
            }
            None => {
                let name: Arc<str> = destination.into();
                table.insert(Arc::clone(&name), Entry::default());
                let entry = table.get_mut(&name);
                (name, entry)
            }
        };
        let entry = entry.expect("it was found or inserted");
        entry.limit = limits.connections;
        entry.queue.retain(|waiter| !waiter.is_closed());
        if entry.queue.is_empty() && entry.share.begin(now) {
            return Ok(Turn {
                inner: Some(Arc::clone(&self.0)),
                destination: name,
            });
        }
        let (tx, rx) = oneshot::channel();
        let first = entry.queue.is_empty();
        entry.queue.push_back(tx);
        let missing = entry.share.allowed(now) < entry.limit;
        drop(table);
        self.0.metrics.waited_for_place();
        if first && missing {
            self.0.ask.notify_one();
        }
        Err(rx)
    }

    // ---- the keeper of shares

    /// Until a question should not wait for its time.
    pub(crate) async fn asked(&self) {
        self.0.ask.notified().await;
    }

    /// Everything that is held or missing.
    pub(crate) fn question(&self) -> Question {
        let now = self.0.now_ms();
        let mut table = self.0.lock();
        let needs = table.iter_mut().map(|(name, entry)| {
            entry.queue.retain(|waiter| !waiter.is_closed());
            let waiting = u32::try_from(entry.queue.len()).unwrap_or(u32::MAX);
            let need = entry.share.need(waiting, entry.wanted, now);
            (Arc::clone(name), need)
        });
        Question(needs.collect())
    }

    /// The shares from now on. True if something is still missing: ask again soon.
    pub(crate) fn answered(&self, question: &Question, dealt: &Dealt) -> bool {
        let now = self.0.now_ms();
        let asked = millis(dealt.asked.saturating_duration_since(self.0.zero));
        let valid = millis(dealt.valid);
        let mut undone = Vec::new();
        let (mut wanting, mut again, mut held) = (false, false, 0u32);
        let mut table = self.0.lock();
        for ((name, need), share) in question.0.iter().zip(&dealt.shares) {
            let Some(entry) = table.get_mut(name) else {
                continue;
            };
            entry.share.granted(asked, valid, *need, Grant::from(share));
            self.0.serve(name, entry, now, &mut undone);
            entry.changed.notify_waiters();
            let allowed = entry.share.allowed(now);
            held = held.saturating_add(allowed);
            let for_tokens = entry.wanted != PerKind::default();
            wanting |= for_tokens || !entry.queue.is_empty() && allowed < entry.limit;
            again |= entry.share.holds_less_than_told(now);
            if entry.share.is_gone() && entry.queue.is_empty() && !for_tokens {
                table.remove(name);
            }
        }
        drop(table);
        self.0.metrics.places(held);
        if again {
            self.0.ask.notify_one();
        }
        wanting
    }

    /// Destinations with more connections open than may be, and how many more: idle ones are to go.
    pub(crate) fn excess(&self) -> Vec<(Arc<str>, u32)> {
        let now = self.0.now_ms();
        let table = self.0.lock();
        let all = table
            .iter()
            .map(|(name, entry)| (Arc::clone(name), entry.share.excess(now)));
        all.filter(|(_, excess)| *excess > 0).collect()
    }

    /// More connections are open there than may be: one that is done with its message is to go.
    pub(crate) fn exceeds(&self, destination: &str) -> bool {
        let now = self.0.now_ms();
        let table = self.0.lock();
        let entry = table.get(destination);
        entry.is_some_and(|e| e.share.excess(now) > 0)
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Entry>> {
        self.table.lock().expect("no panic while held")
    }

    fn now_ms(&self) -> u64 {
        millis(self.zero.elapsed())
    }

    /// Gives turns to those who wait. A turn whose attempt is gone is undone by the caller, outside the lock.
    fn serve(
        self: &Arc<Self>,
        name: &Arc<str>,
        entry: &mut Entry,
        now: u64,
        undone: &mut Vec<Turn>,
    ) {
        while let Some(waiter) = entry.queue.pop_front() {
            if waiter.is_closed() {
                continue;
            }
            if !entry.share.begin(now) {
                entry.queue.push_front(waiter);
                return;
            }
            let turn = Turn {
                inner: Some(Arc::clone(self)),
                destination: Arc::clone(name),
            };
            if let Err(turn) = waiter.send(turn) {
                undone.push(turn);
            }
        }
    }

    fn end(self: &Arc<Self>, name: &Arc<str>) {
        let now = self.now_ms();
        let mut undone = Vec::new();
        if let Some(entry) = self.lock().get_mut(name) {
            entry.share.end();
            self.serve(name, entry, now, &mut undone);
        }
        drop(undone);
    }

    fn close(&self, name: &str) {
        let now = self.now_ms();
        let mut less = false;
        if let Some(entry) = self.lock().get_mut(name) {
            entry.share.close();
            less = entry.share.holds_less_than_told(now);
            entry.changed.notify_waiters();
        }
        if less {
            self.ask.notify_one();
        }
    }
}

/// An attempt's turn at a destination.
#[derive(Debug)]
pub(crate) struct Turn {
    inner: Option<Arc<Inner>>,
    destination: Arc<str>,
}

/// The place of one open connection.
#[derive(Debug)]
pub(crate) struct Place {
    inner: Arc<Inner>,
    destination: Arc<str>,
}

impl Turn {
    fn inner(&self) -> &Arc<Inner> {
        self.inner.as_ref().expect("there until it is dropped")
    }

    pub(crate) fn destination(&self) -> &str {
        &self.destination
    }

    /// Notified when [`Self::open`] or [`Self::spend`] may have another answer.
    pub(crate) fn changed(&self) -> Arc<Notify> {
        let mut table = self.inner().lock();
        let entry = table.entry(Arc::clone(&self.destination)).or_default();
        Arc::clone(&entry.changed)
    }

    /// A place for a connection, if there is one; else an idle one has to go first.
    pub(crate) fn open(&self) -> Option<Place> {
        let now = self.inner().now_ms();
        let mut table = self.inner().lock();
        let entry = table.get_mut(&self.destination)?;
        entry.share.open(now).then(|| Place {
            inner: Arc::clone(self.inner()),
            destination: Arc::clone(&self.destination),
        })
    }

    /// Spends a token.
    pub(crate) fn spend(&self, kind: Kind) -> bool {
        let now = self.inner().now_ms();
        let mut table = self.inner().lock();
        let entry = table.get_mut(&self.destination);
        entry.is_some_and(|e| e.share.spend(kind, now))
    }

    /// Until it is dropped, a token is asked for.
    pub(crate) fn wants_token(&self, kind: Kind) -> WantsToken<'_> {
        let mut table = self.inner().lock();
        if let Some(entry) = table.get_mut(&self.destination) {
            *entry.wanted.of(kind) += 1;
        }
        drop(table);
        self.inner().ask.notify_one();
        WantsToken(self, kind)
    }
}

/// See [`Turn::wants_token`].
#[derive(Debug)]
pub(crate) struct WantsToken<'a>(&'a Turn, Kind);

impl Drop for WantsToken<'_> {
    fn drop(&mut self) {
        let Self(turn, kind) = *self;
        if let Some(entry) = turn.inner().lock().get_mut(&turn.destination) {
            let wanted = entry.wanted.of(kind);
            *wanted = wanted.saturating_sub(1);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            inner.end(&self.destination);
        }
    }
}

impl Place {
    pub(crate) fn is_at(&self, destination: &str) -> bool {
        &*self.destination == destination
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inner.close(&self.destination);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
