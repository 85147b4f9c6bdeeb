#![forbid(unsafe_code)]
//! The harness that proves Sealane from outside.
//!
//! Nothing here links the product: a [`cluster::Cluster`] starts the real binaries, the
//! [`load`] generator speaks SMTP over its own few hundred lines, the [`sink`] receives what is
//! delivered and keeps the raw octets, and the [`ledger`] joins only those two. The same parts make
//! the local cluster of `make run` ([`dev`]).
//!
//! ```text
//!  load ── SMTP+TLS ──▶ relay-node-N ── gRPC ──▶ control-plane-N
//!   │                        └───── SMTP+TLS ──────▶ sink ──▶ one file per message
//!   └── offers, 250s ──▶ ledger ◀── tokens, SHA-256 ─────────┘
//! ```
//!
//! Entry points: [`cluster::Cluster::builder`], [`sink::Sink::start`], [`load::run`],
//! [`ledger::Ledger::judge`].

pub mod awake;
pub mod capture;
pub mod chaos;
pub mod clocks;
pub mod cluster;
pub mod collector;
pub mod dev;
pub mod kubernetes;
pub mod layout;
pub mod ledger;
pub mod links;
pub mod load;
pub mod membership;
pub mod mutants;
pub mod policy;
pub mod ports;
pub mod postfix;
pub mod powerloss;
pub mod probe;
pub mod process;
pub mod sink;
pub mod smtp;
pub mod tls;
pub mod tools;
pub mod wait;
