//! What the other processes use of the control plane: leader-aware, reconnecting gRPC clients.
//!
//! ```text
//!   SubmitClient ──┐                      ┌── control-plane-1
//!   DeliverClient ─┼─ one stream per node ┼── control-plane-2
//!   PolicyWatch  ──┘                      └── control-plane-3
//! ```
//!
//! Entry points: [`SubmitClient`] (mail into the queue), [`DeliverClient`] (leases out of it, outcomes
//! into it), [`PolicyWatch`] (the policy in force), [`ShareClient`] (places at destinations). All share one [`Members`]: the addresses of the
//! control plane, configured at first, then as its nodes report them.
//!
//! Invariants: a message is only ever called durable on the word of its shard's state machine; a
//! refusal as transient means that the message never will be delivered; everything else is unknown,
//! and said to be.
#![forbid(unsafe_code)]

mod backoff;
mod deliver;
mod leaders;
mod members;
mod policy_watch;
mod shares;
mod submit;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;

pub use deliver::{BodyStream, DeliverClient, FetchError, LeasedWork, Renewal};
pub use members::{Caller, Dial, Line, Members, mtls};
pub use policy_watch::PolicyWatch;
pub use shares::{Dealt, ShareClient};
pub use submit::{
    Content, Durable, Grant, LeaderChanges, Submission, SubmitClient, SubmitError, Upload,
    UploadError,
};
