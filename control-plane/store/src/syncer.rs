//! The one thread that syncs: group commit over all groups of the node.
use crate::{
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
use rocksdb::DB;
use sealane_types::GroupId;
use std::{
    sync::{Arc, Condvar, Mutex},
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
    closed: bool,
    poisoned: Option<String>,
}

/// Called once when storage has failed; by default the process dies.
pub(crate) type OnFatal = Arc<dyn Fn(&StoreError) + Send + Sync>;

pub(crate) struct Syncer {
    queue: Arc<(Mutex<Queue>, Condvar)>,
    thread: Mutex<Option<JoinHandle<()>>>,
    on_fatal: OnFatal,
    pub(crate) metrics: SyncMetrics,
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

impl Syncer {
    pub(crate) fn start(
        db: Arc<DB>,
        hwm: Arc<Mutex<HighWater>>,
        on_fatal: OnFatal,
    ) -> Result<Self, StoreError> {
        let queue = Arc::new((Mutex::new(Queue::default()), Condvar::new()));
        let metrics = SyncMetrics::new();
        let thread = {
            let (queue, on_fatal, metrics) = (queue.clone(), on_fatal.clone(), metrics.clone());
            std::thread::Builder::new()
                .name("syncer".into())
                .spawn(move || run(&db, &queue, &hwm, &on_fatal, &metrics))?
        };
        Ok(Self {
            queue,
            thread: Mutex::new(Some(thread)),
            on_fatal,
            metrics,
        })
    }

    /// Queues a callback for a write that is in the WAL buffer already.
    pub(crate) fn submit(&self, group: GroupId, wrote: Wrote, done: Flushed) {
        let (lock, wake) = &*self.queue;
        let mut q = lock.lock().expect("no panic while held");
        if let Some(why) = &q.poisoned {
            let e = StoreError::Poisoned(why.clone());
            drop(q);
            done(Err(e));
        } else if q.closed {
            drop(q);
            done(Err(StoreError::Poisoned("store is shut down".into())));
        } else {
            q.items.push(Item { group, wrote, done });
            wake.notify_one();
        }
    }

    /// Fails if an earlier write failed.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match &self.queue.0.lock().expect("no panic while held").poisoned {
            Some(why) => Err(StoreError::Poisoned(why.clone())),
            None => Ok(()),
        }
    }

    /// Latches the failure of a write outside of the syncer.
    pub(crate) fn poison(&self, e: &StoreError) {
        poison(&self.queue.0, e, &self.on_fatal);
    }

    pub(crate) fn shutdown(&self) {
        self.queue.0.lock().expect("no panic while held").closed = true;
        self.queue.1.notify_one();
        if let Some(t) = self.thread.lock().expect("no panic while held").take() {
            let _ = t.join();
        }
    }
}

fn poison(queue: &Mutex<Queue>, e: &StoreError, on_fatal: &OnFatal) {
    let first = {
        let mut q = queue.lock().expect("no panic while held");
        let first = q.poisoned.is_none();
        q.poisoned.get_or_insert_with(|| e.to_string());
        first
    };
    if first {
        tracing::error!(error = %e, "storage failed: this process takes no more writes");
        on_fatal(e);
    }
}

fn run(
    db: &DB,
    queue: &(Mutex<Queue>, Condvar),
    hwm: &Mutex<HighWater>,
    on_fatal: &OnFatal,
    metrics: &SyncMetrics,
) {
    let (lock, wake) = queue;
    let mut busy = false;
    loop {
        if busy {
            std::thread::sleep(LINGER);
        }
        if lock.lock().expect("no panic while held").items.is_empty() {
            hwm.lock().expect("no panic while held").rest();
        }
        let (items, closed) = {
            let mut q = lock.lock().expect("no panic while held");
            while q.items.is_empty() && !q.closed {
                q = wake.wait(q).expect("no panic while held");
            }
            (std::mem::take(&mut q.items), q.closed)
        };
        if items.is_empty() && closed {
            return;
        }
        busy = items.len() >= CROWD;
        let poisoned = lock.lock().expect("no panic while held").poisoned.clone();
        let started = Instant::now();
        // P4: after a failure nothing is synced again, whatever the next sync would say.
        let result = match poisoned {
            Some(why) => Err(StoreError::Poisoned(why)),
            None => db.flush_wal(true).map_err(StoreError::from),
        };
        match &result {
            Ok(()) => {
                metrics.seconds.observe(started.elapsed().as_secs_f64());
                metrics.syncs.inc();
                metrics.writes.inc_by(items.len() as u64);
                hwm.lock()
                    .expect("no panic while held")
                    .note(items.iter().map(|i| (i.group, i.wrote)));
            }
            Err(e) => poison(lock, e, on_fatal),
        }
        for item in items {
            (item.done)(result.clone());
        }
    }
}
