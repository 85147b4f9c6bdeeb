//! The control plane: remembers and decides.
//!
//! ```text
//!  relay-node ── gRPC ──► service/*  ── propose ──► raft/* ──► sealane-store (RocksDB)
//!                         background/* (dispatch, membership, leadership, compaction)
//! ```
//!
//! - [`node`] is the composition root: every task and channel is made there.
//! - `raft` is the only user of openraft, `sealane-store` the only user of RocksDB.
//! - `sealane-state` decides what an entry does, `sealane-scheduler` what is attempted next.
//!
//! It is not an SMTP server: it never speaks to a mail peer.
#![forbid(unsafe_code)]

pub mod access;
mod background;
mod bootstrap;
pub mod config;
mod metrics;
pub mod node;
mod policy_view;
pub mod raft;
pub(crate) mod registry;
mod service;
