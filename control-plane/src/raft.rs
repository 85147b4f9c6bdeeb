//! Consensus: the only code that names openraft.
//!
//! ```text
//!  service/*, background/* ── Group::propose ──► openraft ──► LogStore, StateMachine ──► sealane-store
//!                                                   │
//!                                    Network ── gRPC Raft service ── Transport ──► openraft of the peer
//! ```
//!
//! Entry points: [`Groups`] (all groups of this node) and [`Group::propose`]. On-disk and wire
//! formats are ours (`codec`), never serialized openraft types.

mod changes;
pub(crate) mod codec;
mod gate;
mod groups;
mod instance;
mod known;
mod log_store;
mod network;
mod state_machine;
mod transport;
mod types;

pub use groups::{Committed, Group, GroupView, Groups, GroupsConfig, ProposeError};
pub use state_machine::EffectBatch;
pub use transport::RaftTransport;
