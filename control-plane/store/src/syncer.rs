//! The one that syncs: group commit over all groups of the node.
//!
//! What it decides is the same whoever drives it: when to wait for company ([`Pace`]), what a sync covers,
//! and that callbacks run after it, in order ([`Shared::finish`]). In the product a thread drives it; where
//! there are no threads ([`Drive::Pump`]: simulation) the owner of the store does, with a [`Pump`].
use crate::{
    engine::Engine,
    error::StoreError,
    hwm::HighWater,
    log::{LogPosition, VoteRecord},
};
use prometheus_client::{
    metrics::{
        counter::Counter,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use sealane_mutants::{
    Mutant::{M2, M3, M13},
    mutant,
};
use sealane_types::GroupId;
use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// After a sync that covered a crowd, the next one waits for another crowd this long: on a busy node
/// most of a sync's cost is that it happens at all. A node with little to do never waits.
const LINGER: Duration = Duration::from_micros(3500);
const CROWD: usize = 2;

/// Runs once, on the syncer thread, after the sync that covers the write (or with the error).
pub type Flushed = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// What a queued write made durable, for the high-water mark.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wrote {
    Log(LogPosition),
    Vote(VoteRecord),
    Nothing,
}

struct Item {
    group: GroupId,
    wrote: Wrote,
    done: Flushed,
}

#[derive(Default)]
struct Queue {
    items: Vec<Item>,
    /// Taken by a [`Pump`] that waits for the disk.
    in_flight: Vec<Item>,
    closed: bool,
    poisoned: Option<String>,
}

/// Called once when storage has failed; by default the process dies.
pub(crate) type OnFatal = Arc<dyn Fn(&StoreError) + Send + Sync>;

/// Who makes the syncer go on.
#[derive(Clone, Default)]
pub enum Drive {
    /// A thread of its own.
    #[default]
    Thread,
    /// The owner of the store, by [`crate::Store::pump`]; called when there is something to do.
    Pump(Arc<dyn Fn() + Send + Sync>),
}

impl std::fmt::Debug for Drive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Thread => "Thread",
            Self::Pump(_) => "Pump",
        })
    }
}

pub(crate) struct Syncer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    drive: Drive,
    pub(crate) metrics: SyncMetrics,
}

struct Shared {
    engine: Arc<dyn Engine>,
    hwm: Arc<Mutex<HighWater>>,
    queue: Mutex<Queue>,
    wake: Condvar,
    on_fatal: OnFatal,
    metrics: SyncMetrics,
}

/// When the next sync waits for company.
#[derive(Debug, Default)]
struct Pace {
    busy: bool,
}

impl Pace {
    fn rest(&self) -> Option<Duration> {
        self.busy.then_some(LINGER)
    }
    fn covers(&mut self, items: usize) {
        self.busy = items >= CROWD;
    }
}

impl std::fmt::Debug for Syncer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Syncer")
    }
}

/// Counters of the syncer.
#[derive(Debug, Clone)]
pub(crate) struct SyncMetrics {
    seconds: Histogram,
    syncs: Counter,
    writes: Counter,
}

impl SyncMetrics {
    fn new() -> Self {
        Self {
            seconds: Histogram::new(exponential_buckets(0.0001, 2.0, 18)),
            syncs: Counter::default(),
            writes: Counter::default(),
        }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("sealane_store");
        r.register(
            "sync_seconds",
            "Duration of one WAL sync",
            self.seconds.clone(),
        );
        r.register("syncs", "WAL syncs", self.syncs.clone());
        r.register(
            "synced_writes",
            "Appends and votes made durable: divided by syncs, the group commit factor",
            self.writes.clone(),
        );
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic while held")
    }

    /// P4: after a failure nothing is synced again, whatever the next sync would say.
    fn sync(&self, items: &[Item]) -> Result<(), StoreError> {
        if let Some(why) = &self.lock().poisoned {
            return Err(StoreError::Poisoned(why.clone()));
        }
        let started = Instant::now();
        let result = match self.engine.flush() {
            Err(_) if mutant(M13) => self.engine.flush(),
            result => result,
        };
        match &result {
            Ok(()) => {
                self.metrics
                    .seconds
                    .observe(started.elapsed().as_secs_f64());
                self.metrics.syncs.inc();
                self.metrics.writes.inc_by(items.len() as u64);
                self.hwm
                    .lock()
                    .expect("no panic while held")
                    .note(items.iter().map(|i| (i.group, i.wrote)));
            }
            Err(e) => self.poison(e),
        }
        result
    }

    /// P1: only now, and in the order of their writes.
    fn finish(items: Vec<Item>, result: &Result<(), StoreError>) {
        for item in items {
            (item.done)(result.clone());
        }
    }

    fn poison(&self, e: &StoreError) {
        let first = {
            let mut q = self.lock();
            let first = q.poisoned.is_none();
            q.poisoned.get_or_insert_with(|| e.to_string());
            first
        };
        if first {
            tracing::error!(error = %e, "storage failed: this process takes no more writes");
            (self.on_fatal)(e);
        }
    }

    /// With nothing to sync the high-water mark gets what it lacks.
    fn note_rest(&self) {
        if self.lock().items.is_empty() {
            self.hwm.lock().expect("no panic while held").rest();
        }
    }

    /// The thread.
    fn run(&self) {
        let mut pace = Pace::default();
        loop {
            if let Some(rest) = pace.rest() {
                std::thread::sleep(rest);
            }
            self.note_rest();
            let (items, closed) = {
                let mut q = self.lock();
                while q.items.is_empty() && !q.closed {
                    q = self.wake.wait(q).expect("no panic while held");
                }
                (std::mem::take(&mut q.items), q.closed)
            };
            if items.is_empty() && closed {
                return;
            }
            pace.covers(items.len());
            let result = self.sync(&items);
            Self::finish(items, &result);
        }
    }

    /// Without a thread: all that waits, now.
    fn run_dry(&self) {
        loop {
            let items = {
                let mut q = self.lock();
                let mut items = std::mem::take(&mut q.in_flight);
                items.append(&mut q.items);
                items
            };
            if items.is_empty() {
                return;
            }
            let result = self.sync(&items);
            Self::finish(items, &result);
        }
    }
}

/// What P1 and P2 forbid; see `sealane_mutants`.
fn before_the_sync(done: Flushed) -> Flushed {
    done(Ok(()));
    Box::new(|_| ())
}

impl Syncer {
    pub(crate) fn start(
        engine: Arc<dyn Engine>,
        hwm: Arc<Mutex<HighWater>>,
        on_fatal: OnFatal,
        drive: Drive,
    ) -> Result<Self, StoreError> {
        let metrics = SyncMetrics::new();
        let shared = Arc::new(Shared {
            engine,
            hwm,
            queue: Mutex::default(),
            wake: Condvar::new(),
            on_fatal,
            metrics: metrics.clone(),
        });
        let thread = match drive {
            Drive::Pump(_) => None,
            Drive::Thread => {
                let shared = shared.clone();
                let named = std::thread::Builder::new().name("syncer".into());
                Some(named.spawn(move || shared.run())?)
            }
        };
        Ok(Self {
            shared,
            thread: Mutex::new(thread),
            drive,
            metrics,
        })
    }

    fn wake(&self) {
        match &self.drive {
            Drive::Thread => self.shared.wake.notify_one(),
            Drive::Pump(wake) => wake(),
        }
    }

    /// Queues a callback for a write that is in the WAL buffer already.
    pub(crate) fn submit(&self, group: GroupId, wrote: Wrote, done: Flushed) {
        let done = match wrote {
            Wrote::Log(_) if mutant(M2) => before_the_sync(done),
            Wrote::Vote(_) if mutant(M3) => before_the_sync(done),
            _ => done,
        };
        let mut q = self.shared.lock();
        if let Some(why) = &q.poisoned {
            let e = StoreError::Poisoned(why.clone());
            drop(q);
            done(Err(e));
        } else if q.closed {
            drop(q);
            done(Err(StoreError::Poisoned("store is shut down".into())));
        } else {
            q.items.push(Item { group, wrote, done });
            drop(q);
            self.wake();
        }
    }

    /// Waits until all that is queued now is synced.
    pub(crate) fn drain(&self, group: GroupId) -> Result<(), StoreError> {
        let (tx, rx) = mpsc::channel();
        self.submit(group, Wrote::Nothing, Box::new(move |r| drop(tx.send(r))));
        if let Drive::Pump(_) = self.drive {
            self.shared.run_dry();
        }
        rx.recv()
            .map_err(|_| StoreError::Poisoned("syncer stopped".into()))?
    }

    /// Fails if an earlier write failed.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match &self.shared.lock().poisoned {
            Some(why) => Err(StoreError::Poisoned(why.clone())),
            None => Ok(()),
        }
    }

    /// Latches the failure of a write outside of the syncer.
    pub(crate) fn poison(&self, e: &StoreError) {
        self.shared.poison(e);
    }

    /// `None` if a thread drives it.
    pub(crate) fn pump(&self) -> Option<Pump> {
        matches!(self.drive, Drive::Pump(_)).then(|| Pump {
            shared: self.shared.clone(),
            pace: Pace::default(),
        })
    }

    pub(crate) fn shutdown(&self) {
        self.shared.lock().closed = true;
        self.wake();
        if let Drive::Pump(_) = self.drive {
            self.shared.run_dry();
        }
        if let Some(t) = self.thread.lock().expect("no panic while held").take() {
            let _ = t.join();
        }
    }
}

/// What a [`Pump`] is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Call again after this long.
    Rest(Duration),
    /// Call again when woken.
    Idle,
    /// What is in the log now is to be synced: call [`Pump::sync`] when the disk has had its time.
    Sync,
    /// The store is shut down.
    Closed,
}

/// Drives the syncer of a store that was opened with [`Drive::Pump`].
pub struct Pump {
    shared: Arc<Shared>,
    pace: Pace,
}

impl std::fmt::Debug for Pump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pump")
    }
}

impl Pump {
    /// What is next.
    pub fn turn(&mut self) -> Next {
        if let Some(rest) = self.pace.rest() {
            self.pace = Pace::default();
            return Next::Rest(rest);
        }
        self.shared.note_rest();
        let mut q = self.shared.lock();
        if q.items.is_empty() {
            return if q.closed { Next::Closed } else { Next::Idle };
        }
        q.in_flight = std::mem::take(&mut q.items);
        self.pace.covers(q.in_flight.len());
        Next::Sync
    }

    /// Syncs, and runs the callbacks of what [`Next::Sync`] took.
    pub fn sync(&mut self) {
        let items = std::mem::take(&mut self.shared.lock().in_flight);
        if items.is_empty() {
            return;
        }
        let result = self.shared.sync(&items);
        Shared::finish(items, &result);
    }
}
