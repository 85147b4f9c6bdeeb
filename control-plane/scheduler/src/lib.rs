//! What to attempt next, where, how fast: an index of one shard's open recipients.
//!
//! Pure: time is an argument. It holds no truth: everything in it can be rebuilt from the state
//! machine, and a wrong guess costs a lease that is not granted.
//!
//! ```text
//!  upsert ─► waiting (by due time) ─ due ─► ready (by destination, FIFO) ─ next() ─► leased (by end)
//! ```
//!
//! Every step costs O(log n); [`Scheduler::next`] looks only at destinations that have something due.
#![forbid(unsafe_code)]

mod retry;
mod scheduler;

pub use retry::retry_at;
pub use scheduler::{Assignment, ExpiredLease, Scheduler, WorkItem};
