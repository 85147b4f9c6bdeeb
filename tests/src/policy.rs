//! The demo policy: what `make run` and the tests apply to a fresh cluster.

use std::net::SocketAddr;

/// The domain that the MX listeners take mail for.
pub const SERVED: &str = "served.example";
/// The user of the submission listeners.
pub const SUBMITTER: &str = "demo";
/// Its password.
pub const PASSWORD: &str = "demo-secret";

/// Served domain, submitter, and everything routed to `next_hop` over TLS; retries after `delays`
/// (YAML list).
#[must_use]
pub fn demo(next_hop: SocketAddr, delays: &str) -> String {
    let (host, port) = (next_hop.ip(), next_hop.port());
    format!(
        "# Mail that others send to us: any recipient of this domain.
kind: Domain
name: {SERVED}
recipients: any
---
# Who may submit mail, and as whom.
kind: Submitter
name: {SUBMITTER}
password: {PASSWORD}
senders: [\"*\"]
---
# Where all mail goes, and how: never without TLS.
kind: Destination
name: \"*\"
route: {{ host: {host}, port: {port} }}
tls: {{ level: encrypt }}
retry: {{ delays: {delays}, lifetime: 5d, tlsLifetime: 24h }}
limits: {{ connections: 20, messagesPerConnection: 100 }}
"
    )
}

/// The domain that [`hole`] routes.
pub const HOLE: &str = "hole.example";

/// A document more: mail to [`HOLE`] goes to another next hop.
#[must_use]
pub fn hole(next_hop: SocketAddr, delays: &str) -> String {
    let (host, port) = (next_hop.ip(), next_hop.port());
    format!(
        "---
kind: Destination
name: {HOLE}
route: {{ host: {host}, port: {port} }}
tls: {{ level: encrypt }}
retry: {{ delays: {delays}, lifetime: 5d, tlsLifetime: 24h }}
limits: {{ connections: 20, messagesPerConnection: 100 }}
"
    )
}
