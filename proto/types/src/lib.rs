//! The domain vocabulary of Sealane: ids, addresses, replies, TLS facts.
//!
//! Pure: no tokio, no socket, no clock, no randomness, no protobuf. A value of these types is valid;
//! text from outside is parsed once, here.
#![forbid(unsafe_code)]

mod address;
mod ids;
mod reply;
mod tls;

pub use address::{AddressError, DomainName, Mailbox, ReversePath};
pub use ids::{GroupId, IdError, MessageId, NodeId, ShardId};
pub use reply::{EnhancedStatus, Reply, sanitize};
pub use tls::{TlsFacts, TraceContext};

/// Most recipients of one message that any part accepts.
pub const MAX_RECIPIENTS: usize = 10_000;
/// Bodies above this travel and replicate in chunks of at most this many octets.
pub const CHUNK_SIZE: usize = 1 << 20;
