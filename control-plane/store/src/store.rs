//! Opening a volume; what belongs to the node rather than to a group.
use crate::{
    ballast::Ballast,
    engine::{Batch, Engine, Patience, Written},
    error::StoreError,
    files::{Files, Folder, How},
    group::{GroupShared, GroupStore},
    hwm::HighWater,
    layout::{Fields, META, Meta, VERSION, frame, meta_key, put_bytes, unframe},
    log::LogPosition,
    rocks::Rocks,
    scrub::Scrub,
    snapshot,
    syncer::{Drive, OnFatal, Pump, Syncer},
};
use sealane_types::GroupId;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Instant,
};

/// The database's folder.
const DB_NAME: &str = "db";
const FORMAT: &str = "FORMAT";

/// Who this volume belongs to. Written once, synced, never changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Unique per founding.
    pub cluster_id: String,
    /// As in the certificates.
    pub cluster_name: String,
    /// Allocated by the metadata group.
    pub node_id: u64,
    /// Queue shards of the cluster.
    pub shards: u32,
    /// Voters per group.
    pub replicas: u32,
}

/// How a volume is opened.
#[derive(Clone)]
pub struct Options {
    /// Octets of block cache.
    pub cache: usize,
    /// Octets of all memtables together.
    pub write_buffers: usize,
    /// Octets that are kept back so that a full volume can be opened; 0: none.
    pub ballast: u64,
    /// Called once when storage has failed; the default ends the process.
    pub on_fatal: OnFatal,
    /// Runs a write that has to wait because the database is stalled; the default just runs it. An
    /// async caller moves its other work away first.
    pub on_stall: OnStall,
    /// Who drives the syncer.
    pub drive: Drive,
    /// Monotonic.
    pub clock: fn() -> Instant,
}

/// Runs the closure, which may block for long.
pub type OnStall = Arc<dyn Fn(&mut dyn FnMut()) + Send + Sync>;

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("cache", &self.cache)
            .field("write_buffers", &self.write_buffers)
            .finish()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache: 64 << 20,
            write_buffers: 256 << 20,
            ballast: 0,
            on_fatal: Arc::new(|_| std::process::abort()),
            on_stall: Arc::new(|write| write()),
            drive: Drive::Thread,
            clock: Instant::now,
        }
    }
}

/// The database of one node.
#[derive(Debug)]
pub struct Store {
    pub(crate) core: Arc<Core>,
}

/// Shared by the store and its groups.
pub(crate) struct Core {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) syncer: Syncer,
    pub(crate) hwm: Arc<Mutex<HighWater>>,
    pub(crate) files: Arc<dyn Files>,
    ballast: Option<Ballast>,
    on_stall: OnStall,
    groups: Mutex<BTreeMap<GroupId, Arc<GroupShared>>>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("files", &self.files).finish()
    }
}

impl Core {
    pub(crate) fn get(
        &self,
        family: &'static str,
        key: &[u8],
    ) -> Result<Option<bytes::Bytes>, StoreError> {
        let read = || {
            let value = self.engine.get(family, key)?;
            value.map(|v| unframe(family, key, v)).transpose()
        };
        self.noticed(read())
    }

    /// A volume on which a read finds damage takes part in nothing any more, and does not come back: who
    /// serves the rest of it would answer for what it lost. Others have copies.
    pub(crate) fn noticed<T>(&self, read: Result<T, StoreError>) -> Result<T, StoreError> {
        read.map_err(|e| self.notice(e))
    }

    /// The same for an error on its way.
    pub(crate) fn notice(&self, e: StoreError) -> StoreError {
        if e.is_damage() {
            self.syncer.poison(&e);
        }
        e
    }

    /// Writes a batch of about so many octets to WAL buffer and memtable, unsynced. A failure is final.
    ///
    /// Usually this takes microseconds and happens on the caller's thread. While the database is
    /// stalled (flushes do not keep up) nothing was written at first: the batch is made again, and
    /// the write waits where [`Options::on_stall`] lets it.
    pub(crate) fn write(
        &self,
        octets: usize,
        fill: impl Fn(&mut dyn Batch) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.syncer.check()?;
        let filled = || {
            let mut batch = self.engine.batch(octets);
            fill(batch.as_mut())?;
            Ok::<_, StoreError>(batch)
        };
        let written = match filled()?.write(Patience::None) {
            Ok(Written::Stalled) => {
                let mut again = Some(filled()?);
                let mut written = Ok(Written::Done);
                (self.on_stall)(&mut || {
                    if let Some(batch) = again.take() {
                        written = batch.write(Patience::Wait);
                    }
                });
                written
            }
            other => other,
        };
        self.or_poison(written.map(drop))
    }

    /// The same for a caller that may block.
    pub(crate) fn write_once(
        &self,
        fill: impl FnOnce(&mut dyn Batch) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.syncer.check()?;
        let mut batch = self.engine.batch(0);
        fill(batch.as_mut())?;
        self.or_poison(batch.write(Patience::Wait).map(drop))
    }

    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.syncer.check()?;
        self.or_poison(self.engine.flush())
    }

    fn or_poison(&self, result: Result<(), StoreError>) -> Result<(), StoreError> {
        if let Err(e) = &result {
            self.syncer.poison(e);
        }
        result
    }
}

impl Store {
    /// Opens or creates the volume at `dir`; finishes what a crash interrupted; refuses a volume that forgot.
    pub fn open(dir: &Path, mut options: Options) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir)?;
        let ballast = Ballast::before_start(dir, options.ballast)?;
        let files = Arc::new(Folder(dir.to_owned()));
        check_format(files.as_ref())?;
        check_damaged(dir)?;
        options.on_fatal = marking(dir, options.on_fatal);
        let database = files.names()?.iter().any(|n| n == DB_NAME);
        let hwm = HighWater::open(files.as_ref(), options.clock, database)?;
        let (engine, shortened) = Rocks::open(&files.path().join(DB_NAME), &options)?;
        hwm.sync_regularly(files.as_ref(), options.on_fatal.clone())?;
        let opened = Self::assemble(Arc::new(engine), files, hwm, Some(ballast), options);
        if let Some(why) = shortened {
            // Opening it again would find a sound, shorter WAL: what is missing is written down now.
            if let Err(e) = &opened {
                mark_damaged(dir, e)?;
            }
            tracing::warn!(
                damage = %why,
                "the WAL ended in damage: what was never synced is gone, as after a power loss"
            );
        }
        opened
    }

    /// The same on another database and other files: see [`crate::engine`].
    pub fn open_on(
        engine: Arc<dyn Engine>,
        files: Arc<dyn Files>,
        options: Options,
    ) -> Result<Self, StoreError> {
        check_format(files.as_ref())?;
        let hwm = HighWater::open(files.as_ref(), options.clock, false)?;
        Self::assemble(engine, files, hwm, None, options)
    }

    fn assemble(
        engine: Arc<dyn Engine>,
        files: Arc<dyn Files>,
        hwm: HighWater,
        ballast: Option<Ballast>,
        options: Options,
    ) -> Result<Self, StoreError> {
        let hwm = Arc::new(Mutex::new(hwm));
        let syncer = Syncer::start(engine.clone(), hwm.clone(), options.on_fatal, options.drive)?;
        let core = Arc::new(Core {
            engine,
            syncer,
            hwm,
            files,
            ballast,
            on_stall: options.on_stall,
            groups: Mutex::default(),
        });
        let store = Self { core };
        store.recover()?;
        Ok(store)
    }

    /// Checks every group against the high-water mark and finishes interrupted snapshot installs.
    fn recover(&self) -> Result<(), StoreError> {
        let groups = match self.identity()? {
            Some(i) => (0..=i.shards).map(GroupId).collect(),
            None => Vec::new(),
        };
        let marked: Vec<GroupId> = self
            .core
            .hwm
            .lock()
            .expect("no panic while held")
            .marks
            .keys()
            .copied()
            .collect();
        if groups.is_empty() && !marked.is_empty() {
            return Err(StoreError::Lost {
                group: 0,
                what: "its identity".into(),
            });
        }
        for id in groups {
            let group = self.group(id);
            snapshot::recover(&group)?;
            let state = group.log_state()?;
            let vote = group.read_vote()?;
            self.core.hwm.lock().expect("no panic while held").check(
                id,
                vote,
                state.last.or(state.purged),
            )?;
        }
        snapshot::remove_orphans(self.core.files.as_ref())
    }

    /// Refuses a volume whose log is behind what a peer got from this node as durable: an old copy of
    /// the whole volume holds an old high-water mark too.
    ///
    /// # Errors
    /// [`StoreError::Lost`].
    pub fn check_against(&self, group: GroupId, durable: LogPosition) -> Result<(), StoreError> {
        let group_store = self.group(group);
        let state = group_store.log_state()?;
        // A snapshot that was installed takes the log's place before the log is told that it is purged.
        let last = state.last.or(state.purged).max(group_store.applied()?.last);
        // A replica that was no member's any more was emptied: what was said before is over.
        if last.max(group_store.emptied()?) < Some(durable) {
            return Err(StoreError::Lost {
                group: group.0,
                what: format!("log entries (has {last:?}, a peer was given {durable:?})"),
            });
        }
        Ok(())
    }

    /// The volume's identity, once it has one.
    pub fn identity(&self) -> Result<Option<NodeIdentity>, StoreError> {
        let Some(bytes) = self
            .core
            .get(META, &meta_key(GroupId::META, Meta::Identity))?
        else {
            return Ok(None);
        };
        let mut f = Fields::new(META, bytes);
        let text = |b: bytes::Bytes| String::from_utf8_lossy(&b).into_owned();
        Ok(Some(NodeIdentity {
            node_id: f.u64()?,
            shards: f.u32()?,
            replicas: f.u32()?,
            cluster_id: text(f.bytes()?),
            cluster_name: text(f.bytes()?),
        }))
    }

    /// Gives the volume its identity, synced. It never changes.
    pub fn set_identity(&self, i: &NodeIdentity) -> Result<(), StoreError> {
        if let Some(old) = self.identity()? {
            return if old == *i {
                Ok(())
            } else {
                Err(StoreError::Io("the volume has an identity already".into()))
            };
        }
        let mut out = Vec::new();
        out.extend_from_slice(&i.node_id.to_be_bytes());
        out.extend_from_slice(&i.shards.to_be_bytes());
        out.extend_from_slice(&i.replicas.to_be_bytes());
        put_bytes(&mut out, i.cluster_id.as_bytes());
        put_bytes(&mut out, i.cluster_name.as_bytes());
        self.put_meta(Meta::Identity, &out)
    }

    /// 16 octets that name this volume; `fresh` if it has none yet. Synced before it returns.
    pub fn incarnation(&self, fresh: [u8; 16]) -> Result<[u8; 16], StoreError> {
        if let Some(b) = self
            .core
            .get(META, &meta_key(GroupId::META, Meta::Incarnation))?
        {
            return b.as_ref().try_into().map_err(|_| StoreError::Corrupt {
                family: META,
                key: "incarnation".into(),
                reason: "needs 16 octets".into(),
            });
        }
        self.put_meta(Meta::Incarnation, &fresh)?;
        Ok(fresh)
    }

    fn put_meta(&self, field: Meta, payload: &[u8]) -> Result<(), StoreError> {
        self.core.write(0, |batch| {
            let key = meta_key(GroupId::META, field);
            batch.put(META, &key, &frame(&[payload]));
            Ok(())
        })?;
        self.core.sync()
    }

    /// The storage of one group. Handles of one group share their state.
    pub fn group(&self, id: GroupId) -> GroupStore {
        let mut groups = self.core.groups.lock().expect("no panic while held");
        let shared = groups
            .entry(id)
            .or_insert_with(|| Arc::new(GroupShared::new(id)))
            .clone();
        GroupStore {
            core: self.core.clone(),
            shared,
        }
    }

    /// Octets free on the volume.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.core.files.free_bytes()?)
    }

    /// A pass over everything that is stored.
    pub fn scrub(&self) -> Scrub {
        Scrub::new(self.core.clone())
    }

    /// Makes the ballast again where so many octets stay free beside it.
    pub fn keep_ballast(&self, wanted: u64) -> Result<(), StoreError> {
        let ballast = self.core.ballast.as_ref();
        ballast.map_or(Ok(()), |ballast| ballast.keep(wanted))
    }

    /// Drives the syncer; `None` if it has a thread.
    pub fn pump(&self) -> Option<Pump> {
        self.core.syncer.pump()
    }

    /// Registers the Prometheus metrics of the store.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.core.syncer.metrics.register(registry);
    }

    /// Syncs, writes the high-water mark, stops the syncer.
    pub fn shutdown(&self) {
        self.core.syncer.shutdown();
        if self.core.sync().is_ok()
            && let Err(e) = self
                .core
                .hwm
                .lock()
                .expect("no panic while held")
                .write(true)
        {
            tracing::warn!(error = %e, "high-water mark not written at shutdown");
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.core.syncer.shutdown();
    }
}

/// Its text is the damage that was found.
const DAMAGED: &str = "DAMAGED";

/// Writes down why this volume must not be used again, then does what was to be done. After a failed
/// sync the kernel may show what the disk never got (P4): whoever opens it next cannot know. A full
/// disk is no damage.
fn marking(dir: &Path, then: OnFatal) -> OnFatal {
    let dir = dir.to_owned();
    Arc::new(move |e| {
        if e.is_suspicious()
            && let Err(unwritten) = mark_damaged(&dir, e)
        {
            tracing::warn!(error = %unwritten, "the damage is not written down");
        }
        then(e);
    })
}

fn mark_damaged(dir: &Path, damage: &StoreError) -> std::io::Result<()> {
    let mut file = std::fs::File::create(dir.join(DAMAGED))?;
    std::io::Write::write_all(&mut file, damage.to_string().as_bytes())?;
    file.sync_all()?;
    std::fs::File::open(dir)?.sync_all()
}

/// What was found damaged once is not tried again: the next reader may be one who does not notice.
fn check_damaged(dir: &Path) -> Result<(), StoreError> {
    match std::fs::read(dir.join(DAMAGED)) {
        Ok(found) => {
            let found = String::from_utf8_lossy(&found).into_owned();
            let first = found.split(". Nothing on").next().unwrap_or_default();
            Err(StoreError::Damaged(format!("found earlier: {first}")))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The volume says which format it has before anything of it is read.
fn check_format(files: &dyn Files) -> Result<(), StoreError> {
    let stated = match files.open(FORMAT, How::Read) {
        Ok(file) => {
            let mut version = [0];
            (file.read_at(&mut version, 0)? == 1).then_some(version)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(e.into()),
    };
    let database = files.names()?.iter().any(|n| n == DB_NAME);
    match stated {
        Some([VERSION]) => Ok(()),
        Some([found]) => Err(StoreError::Format {
            found,
            known: VERSION,
        }),
        None if database => Err(StoreError::Format {
            found: 0,
            known: VERSION,
        }),
        // The first start, or another one after it ended before the octet was on the disk. Durable before
        // the database exists: a volume without it would be refused.
        None => {
            let file = files.open(FORMAT, How::Keep)?;
            file.write_at(&[VERSION], 0)?;
            file.sync()?;
            files.sync_names()?;
            Ok(())
        }
    }
}
