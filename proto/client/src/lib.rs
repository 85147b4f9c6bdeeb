//! A relay node's side of the control plane: enqueue, leases, policy.
//!
//! ```text
//!  ControlPlane ── one Link per control-plane node ── Submit, Deliver, Watch streams (reconnecting)
//!       │                     │ Leading frames
//!       └ leaders: shard → (term, link) ◄┘
//! ```
//!
//! The rule of two outcomes lives in [`ControlPlane::submit`]: it answers "durable", or "certainly
//! not accepted", or admits that nobody knows.
#![forbid(unsafe_code)]

mod control;
mod link;
mod submit;

pub use control::ControlPlane;
pub use submit::{Submission, SubmitError};
