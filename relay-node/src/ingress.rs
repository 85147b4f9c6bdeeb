//! Ingress: from a TCP connection to a durable message.
//!
//! ```text
//!  listener ─permit, accept─▶ connection ──bytes──▶ ServerSession (sealane_smtp, no I/O)
//!     └ proxy                   │   who the client is, from those who are trusted to say it
//!                               │   ◀──actions──
//!                               ├ gatekeeper      who may send what to whom   (policy snapshot)
//!                               ├ authenticator   passwords, two at a time
//!                               ├ intake          body: budget, chunks, hash, hops
//!                               └ SubmitClient    durable, or not, or unknown
//! ```
//!
//! Invariants:
//! - memory is asked for before it is used: a permit before accept, budget before read;
//! - 250 after DATA is said only on the queue's word (the type `Durable`);
//! - if nobody knows whether a message is durable, the connection is closed without a reply;
//! - bodies and credentials appear in no log and no span.

mod authenticator;
mod connection;
mod context;
mod gatekeeper;
mod handover;
mod header_scan;
mod intake;
mod listener;
mod proxy;
mod received;
mod stream;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
mod tls;
mod transaction;

pub use context::IngressContext;
pub use handover::Handover;
pub use tls::{PublicTls, public_tls};

use sealane_smtp::server::Listener;
use std::sync::Arc;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Serves all listeners until `stop`; then connections between transactions hear 421, the others
/// finish within the drain timeout.
pub async fn run(
    context: Arc<IngressContext>,
    listeners: Vec<(Listener, TcpListener)>,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let mut accepting = tokio::task::JoinSet::new();
    for (kind, socket) in listeners {
        let serving = listener::serve(
            context.clone(),
            kind,
            socket,
            connections.clone(),
            stop.clone(),
            cut.clone(),
        );
        accepting.spawn(serving);
    }
    while accepting.join_next().await.is_some() {}
    connections.close();
    if timeout(context.drain_timeout, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            sessions = connections.len(),
            "drain timeout: open sessions are cut off"
        );
        cut.cancel();
        connections.wait().await;
    }
}
