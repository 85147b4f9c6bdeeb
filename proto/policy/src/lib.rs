//! Policy documents: YAML at the edge, protobuf on the wire, one validation for both.
//!
//! Pure. Entry points: [`parse_yaml`] (CLI), [`Document::from_wire`] (server), [`PolicySnapshot`]
//! (relay and control plane). Plaintext has no spelling: `tls.level` has no `none` and no `may`.
#![forbid(unsafe_code)]

mod document;
mod password;
mod snapshot;
mod yaml;

pub use document::{Document, FieldError, document_key};
pub use password::{hash_password, verify_password};
pub use snapshot::{Destination, Limits, PolicySnapshot, RetrySchedule};
pub use yaml::{PolicyError, parse_yaml, readable, to_yaml};
