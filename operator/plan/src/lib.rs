//! What the operator decides. Pure: no clock, no randomness, no API server; the same input gives the same output.
//!
//! ```text
//!   RelayCluster ──► validate::validate ──► ValidCluster
//!                                              │
//!   Observed ────────► plan::plan ──► Plan ────┤   one step at most
//!   certs::CertFacts ► certs::decide ─► what to issue, which CAs to trust
//!   RelayPolicies ───► policy::merge ─► documents, or who is to blame
//!                                              ▼
//!                                     build::build ──► Children, to be applied
//!                                     conditions::*  ──► status
//! ```
//!
//! # A pass
//!
//! 1. [`validate`](validate::validate); if refused: condition Degraded=True/Invalid and nothing else.
//! 2. Observe; [`plan::plan`].
//! 3. [`certs::decide`]; carry its actions out in their order.
//! 4. [`build::build`] with [`Plan::build_input`](plan::Plan::build_input); apply all children.
//! 5. Act: [`Step`](plan::Step). `CreateControlPlane`, `RaiseReplicas` and `LowerReplicas` are done by applying the
//!    StatefulSet of step 4 and nothing else.
//! 6. [`conditions`], status.
//!
//! # Invariants
//!
//! - At most one step in a pass, and none while the one before it is under way.
//! - No ready member is taken away when a group would be left without a majority of members that are ready. Groups with a
//!   single copy are the exception: there the spec says that a restart is a pause.
//! - The StatefulSet only loses its highest ordinal, and only when the member of that name is `removed` or never joined.
//! - A volume is deleted only when every member that ever had its name is `removed`, and at least one is.
#![forbid(unsafe_code)]

pub mod build;
pub mod certs;
pub mod conditions;
pub mod names;
pub mod observed;
pub mod plan;
pub mod policy;
pub mod quantity;
pub mod validate;

pub use names::Names;
pub use observed::Observed;
pub use plan::{Plan, Step, plan};
pub use validate::{SpecError, ValidCluster, validate};
