//! Delivery: from a lease to a report.
//!
//! ```text
//!  control plane ──lease──▶ run ──▶ Courier::deliver ──report──▶ control plane
//!                                     │ resolve   which addresses (crate::resolve)
//!                                     │ place     this relay's share of the destination [places.rs]
//!                                     │ decide    what TLS must prove (sealane_tls_policy)
//!                                     │ connect   TCP, STARTTLS, handshake, judge  [connect.rs]
//!                                     │ converse  MAIL RCPT DATA, final dot        [converse.rs]
//!                                     ▼ report    one outcome per recipient        [report.rs]
//! ```
//!
//! Invariants:
//! - a server without TLS hears EHLO, STARTTLS and QUIT, nothing else; there is no retry without TLS;
//! - the final dot is sent only while the lease holds by the monotonic clock;
//! - every recipient of a lease gets exactly one outcome, or the lease is lost and nothing is said;
//! - memory is bounded by the credits: one piece of content per attempt.

mod account;
mod connect;
mod connection;
mod control;
mod converse;
mod courier;
mod driver;
mod facts;
mod lease;
mod lease_clock;
mod line_ends;
mod metrics;
mod options;
mod places;
mod pool;
mod queue_control;
mod report;
mod run;
mod shares;
#[cfg(test)]
mod tests;

pub use control::{Body, BodyError, ControlPlane, Renewal};
pub use courier::Courier;
pub use lease::{Lease, LeaseKey, LeasedRecipient};
pub use lease_clock::LeaseClock;
pub use metrics::{ConnectionKind, DeliveryMetrics, OutcomeKind};
pub use options::DeliveryOptions;
pub use queue_control::QueueControl;
pub use report::{RecipientOutcome, Report};
pub use run::{DeliveryContext, run};
