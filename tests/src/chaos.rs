//! Faults on real processes under load, judged by the ledger; what `make chaos` runs.
//!
//! A plan does something to a cluster while mail flows, proves that it took effect, heals, drains, and
//! judges. A run in which a fault took no effect fails like one that lost mail.

pub mod damage;
pub mod mixed;
pub mod power;
mod quantities;
pub mod space;
mod traffic;

pub use quantities::Quantities;
