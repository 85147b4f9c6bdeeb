#![forbid(unsafe_code)]

pub mod delivery;
pub mod resolve;
pub mod tls;
