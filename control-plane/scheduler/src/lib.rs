//! What to attempt next, where, how fast: an index of the open recipients of all shards that a node leads.
//!
//! Pure: time and jitter are arguments. It holds no truth: everything in it can be rebuilt from the
//! state machine, and a wrong guess costs a lease that is not granted.
//!
//! ```text
//!  upsert ─► waiting (one timer per item) ─ due ─► ready: destination ─► sender ─► FIFO
//!                                                   │ next(): destinations in turn, senders in turn
//!                                                   ▼
//!  reserve (with the enqueue) ──────────────────► leased ─ remove, or its end
//! ```
//!
//! - **Fair:** destinations take turns, one item each; within a destination its senders take turns. So
//!   a message waits for at most one item of every other destination, and of every other sender to
//!   its own: how much mail the others have does not matter.
//! - **Limited:** places per destination are never exceeded, and where a destination has a rate, a message
//!   begins only for a token that was given to this index ([`Scheduler::tokens`]). A destination that may not
//!   go on leaves the turn and comes back by the event that lets it, not by being asked again and again.
//! - **Cheap:** every step costs O(log n). What is not due costs memory only, about 150 octets.
#![forbid(unsafe_code)]

mod backoff;
mod destination;
mod names;
mod retry;
mod scheduler;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;

pub use backoff::Outcome;
pub use destination::{Limit, Limits};
pub use retry::retry_at;
pub use scheduler::{Assignment, Busy, ExpiredLease, NewItem, Scheduler, Short, WorkItem};
