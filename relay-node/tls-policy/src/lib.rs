//! The outbound TLS decision: what a hop must prove before it may see a message.
//!
//! ```text
//!  HopFacts ──decide──▶ HopRequirement ──(connect, STARTTLS)──▶ SessionFacts ──judge──▶ Judgement
//!  (DNS, STS,           row, checks,                            what TLS showed         deliver at a level,
//!   route, tags)        codes on failure                                                or codes of failure
//! ```
//!
//! Pure: no socket, no DNS, no clock. The relay gathers the facts and acts on the answer; this crate
//! says which row of the table applies and why. There is no level below "encrypted": no input
//! leads to a delivery without TLS.
//!
//! Entry points: [`decide`] and [`judge`].
//!
//! Invariants, proven over all 6720 inputs in `tests/decision_table.rs`:
//! - total: every input has exactly one row;
//! - a published policy that enforces (usable TLSA, enforced MTA-STS) is checked on every delivery,
//!   except under a route with its own check (D19) and `TLS-Required: No` (D18);
//! - REQUIRETLS (RFC 8689) never delivers without at least one certificate check.
#![forbid(unsafe_code)]

mod decide;
mod facts;
mod judge;
mod requirement;

pub use decide::decide;
pub use facts::{HopFacts, HostSecurity, MxSecurity, PinnedRoute, PolicyLevel, StsPolicy, Tlsa};
pub use judge::{Judgement, Level, SessionFacts, TlsSession, judge};
pub use requirement::{Checks, HopRequirement, OnFailure, Row, Status};
