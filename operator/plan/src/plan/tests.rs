//! Rules one by one, any observation at all, and a model cluster in which everything goes wrong.
#![allow(clippy::unwrap_used, reason = "tests")]
mod anything;
mod model;
mod rules;
mod simulation;
