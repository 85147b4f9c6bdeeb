#![forbid(unsafe_code)]

pub mod resolve;
pub mod tls;
