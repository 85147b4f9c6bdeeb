//! A control-plane node in the simulation: the whole node of the product, on a simulated volume.
use crate::{disk::Disk, note, plan::Plan};
use control_plane::{config::ControlPlaneConfig, node};
use sealane_runtime::identity::{Identity, IdentityConfig};
use sealane_store::{Drive, Next, Options, Pump, Store};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What is known of a node from outside of its process.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Its name.
    pub(crate) name: String,
    /// Its volume.
    pub(crate) disk: Disk,
    identity: Identity,
    config: ControlPlaneConfig,
    /// Storage failed: the process must die now.
    dying: Arc<AtomicBool>,
    /// It refused to start, or ended.
    ended: Arc<Mutex<Option<String>>>,
}

/// The name of the nth node.
pub(crate) fn name(n: usize) -> String {
    format!("control-{}", n + 1)
}

/// Where relays and peers find it.
pub(crate) fn address(n: usize) -> String {
    format!("{}:7000", name(n))
}

impl Host {
    /// The nth node of a plan.
    pub(crate) fn new(
        plan: &Plan,
        n: usize,
        disk: Disk,
        (identity, files): (Identity, IdentityConfig),
    ) -> anyhow::Result<Self> {
        let peers = (0..plan.nodes).filter(|p| *p != n).map(address);
        let text = format!(
            "{{name: {}, listen: '0.0.0.0:7000', advertise: '{}', dataDir: /nowhere, hostname: mail.sim.example,
              identity: {{certificate: {}, key: {}, ca: {}}},
              cluster: {{bootstrap: {}, peers: [{}], shards: {}, replicas: {}}},
              lease: {}ms,
              raft: {{heartbeat: {}ms, electionMin: {}ms, electionMax: {}ms, keepEntries: {}}}}}",
            name(n),
            address(n),
            files.certificate.display(),
            files.key.display(),
            files.ca.display(),
            n == 0,
            peers
                .map(|p| format!("'{p}'"))
                .collect::<Vec<_>>()
                .join(", "),
            plan.shards,
            plan.replicas,
            plan.lease.as_millis(),
            plan.heartbeat_ms,
            plan.election_min_ms,
            plan.election_max_ms,
            plan.keep_entries,
        );
        let config = sealane_runtime::config::parse(&text, "the simulation's configuration")?;
        Ok(Self {
            name: name(n),
            disk,
            identity,
            config,
            dying: Arc::default(),
            ended: Arc::default(),
        })
    }

    /// Whether its storage told it to die since this was asked last.
    pub(crate) fn take_dying(&self) -> bool {
        self.dying.swap(false, Ordering::Relaxed)
    }

    /// Why it ended by itself, if it did since this was asked last.
    pub(crate) fn take_ended(&self) -> Option<String> {
        self.ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn end(&self, why: String) {
        note!("{} ended: {why}", self.name);
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// The process.
    pub(crate) async fn run(self) {
        note!("{} starts", self.name);
        let (engine, files) = self.disk.power_on();
        let woken = Arc::new(Notify::new());
        let wake = woken.clone();
        let dying = self.dying.clone();
        let name = self.name.clone();
        let options = Options {
            on_fatal: Arc::new(move |e| {
                note!("{name} must die: {e}");
                dying.store(true, Ordering::Relaxed);
            }),
            drive: Drive::Pump(Arc::new(move || wake.notify_one())),
            clock: || tokio::time::Instant::now().into_std(),
            ..Options::default()
        };
        let store = match Store::open_on(Arc::new(engine), Arc::new(files), options) {
            Ok(s) => Arc::new(s),
            Err(e) => return self.end(format!("the volume is refused: {e}")),
        };
        if let Some(pump) = store.pump() {
            tokio::task::spawn_local(sync(pump, self.disk.clone(), woken));
        }
        let node = Box::pin(node::serve_on(
            &self.config,
            self.identity.clone(),
            store,
            CancellationToken::new(),
        ));
        match node.await {
            Ok(()) => self.end("stopped".into()),
            Err(e) => self.end(format!("{e:#}")),
        }
    }
}

/// The syncer's driver: a task where the product has a thread, with the disk's time instead of a disk.
async fn sync(mut pump: Pump, disk: Disk, woken: Arc<Notify>) {
    loop {
        match pump.turn() {
            Next::Rest(pause) => tokio::time::sleep(pause).await,
            Next::Idle => woken.notified().await,
            Next::Sync => {
                let mark = disk.mark();
                let latency = disk.latency();
                tokio::time::sleep(latency.max(Duration::from_micros(1))).await;
                disk.reached(mark);
                pump.sync();
            }
            Next::Closed => return,
        }
    }
}
