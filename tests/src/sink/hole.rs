//! A next hop that takes connections and says nothing, until it is opened.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A running one. Dropping it closes its listener and its connections.
#[derive(Debug)]
pub struct Hole {
    address: SocketAddr,
    open: watch::Sender<bool>,
    held: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Hole {
    /// Listens at `at`; leads to `to` whenever it is open.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn start(at: SocketAddr, to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(at)
            .await
            .with_context(|| format!("black hole on {at}"))?;
        let address = listener.local_addr()?;
        let (open, state) = watch::channel(true);
        let held = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&held);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        connections.spawn(pass(stream, to, state.clone(), Arc::clone(&counted)));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self {
            address,
            open,
            held,
            task,
        })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on whoever connects hears nothing.
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    /// Whoever waits is hung up on, and whoever connects is served.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Connections that were held since the start.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }
}

impl Drop for Hole {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    mut stream: TcpStream,
    to: SocketAddr,
    mut state: watch::Receiver<bool>,
    held: Arc<AtomicUsize>,
) {
    if *state.borrow_and_update() {
        if let Ok(mut onward) = TcpStream::connect(to).await {
            let _broken = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
        }
        return;
    }
    held.fetch_add(1, Ordering::SeqCst);
    let _opened = state.wait_for(|open| *open).await;
}
