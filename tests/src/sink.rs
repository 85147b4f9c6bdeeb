//! The mail sink: an SMTP server that takes mail over STARTTLS only and keeps the raw octets.
//!
//! Not a mail server: it knows no user, relays nothing and trusts nobody. It is the far end of the
//! tests, so it is strict about what it is there to judge: mail commands in clear and bare CR or LF
//! are counted, never repaired.

mod hole;
mod script;
mod session;
mod store;
mod traffic;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

pub use hole::Hole;
pub use script::{Act, Rule, Script, Stage};
pub use session::SinkTls;
pub(crate) use store::now_ms;
pub use store::{Envelope, Received, Store};
pub use traffic::{Traffic, most_within};

/// Most connections served at once; others wait in the backlog.
const CONNECTIONS: usize = 2000;

/// What a sink saw, in numbers.
#[derive(Debug, Default)]
pub struct Counts {
    pub connections: AtomicU64,
    pub messages: AtomicU64,
    /// MAIL, RCPT, DATA or AUTH before TLS.
    pub clear_commands: AtomicU64,
    /// Messages that held a CR or LF outside CRLF.
    pub bare_line_ends: AtomicU64,
    /// Octets that came behind STARTTLS before the handshake.
    pub injected: AtomicU64,
    /// Times that the script did something else than accept.
    pub scripted: AtomicU64,
}

impl Counts {
    #[must_use]
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::SeqCst)
    }

    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

/// What every session of a sink shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) hostname: String,
    pub(crate) store: Store,
    pub(crate) script: Script,
    pub(crate) tls: SinkTls,
    pub(crate) counts: Counts,
    pub(crate) traffic: Traffic,
    /// Print a line for every message.
    pub(crate) verbose: bool,
}

/// How to start a sink.
#[derive(Debug)]
pub struct SinkConfig {
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Messages go to `folder/messages`, envelopes to `folder/envelopes`.
    pub folder: PathBuf,
    pub hostname: String,
    pub verbose: bool,
}

impl SinkConfig {
    #[must_use]
    pub fn at(listen: SocketAddr, folder: PathBuf) -> Self {
        Self {
            listen,
            folder,
            hostname: "sink.example".to_owned(),
            verbose: false,
        }
    }
}

/// A running sink. Dropping it closes its listener and its sessions.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Sink {
    /// Opens the listener and serves until dropped.
    ///
    /// # Errors
    /// When the address is taken or the folder cannot be made.
    pub async fn start(config: SinkConfig) -> Result<Self> {
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("mail sink on {}", config.listen))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            tls: SinkTls::new(&config.hostname)?,
            store: Store::open(config.folder)?,
            hostname: config.hostname,
            script: Script::default(),
            counts: Counts::default(),
            traffic: Traffic::default(),
            verbose: config.verbose,
        });
        let task = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            task,
        })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    #[must_use]
    pub fn script(&self) -> &Script {
        &self.shared.script
    }

    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// When connections and messages began and ended.
    #[must_use]
    pub fn traffic(&self) -> &Traffic {
        &self.shared.traffic
    }

    /// Serves until the process ends.
    ///
    /// # Errors
    /// When the accept loop panicked.
    pub async fn forever(mut self) -> Result<()> {
        (&mut self.task).await.context("sink ended")
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut sessions = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, peer)) = accepted else { continue };
                Counts::add(&shared.counts.connections);
                let connection = shared.traffic.opened();
                let shared = Arc::clone(&shared);
                sessions.spawn(async move {
                    let _broken = session::run(stream, peer, &shared, connection).await;
                    shared.traffic.closed(connection);
                    drop(permit);
                });
            }
            Some(_) = sessions.join_next() => {}
        }
    }
}
