//! The relay node: accepts mail over TLS, hands it to the replicated queue, delivers it over TLS.
//! Keeps nothing.
//!
//! ```text
//!  SMTP client ─▶ ingress ─▶ SubmitClient ─▶ control plane ─▶ DeliverClient ─▶ delivery ─▶ next hop
//!                    ▲                            │                               │
//!                    └────────── policy ──────────┴───────────── policy ──────────┤
//!                                                                  resolve, tls ◀─┘
//! ```
//!
//! [`node`] is the composition root; [`config`] is the file that it is given.
#![forbid(unsafe_code)]

mod budget;
pub mod config;
pub mod delivery;
pub mod ingress;
mod kept;
pub mod metrics;
pub mod networks;
pub mod node;
pub mod resolve;
pub mod tls;
