//! The wire and disk vocabulary of Sealane: code generated from `proto/sealane/v1/*.proto` and its
//! conversions to and from [`sealane_types`].
//!
//! `bytes` fields are [`bytes::Bytes`]: decoding a frame does not copy bodies.
#![forbid(unsafe_code)]

/// Package `sealane.v1`, generated.
#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::unwrap_used,
    clippy::large_futures
)]
pub mod v1 {
    tonic::include_proto!("sealane.v1");
}

mod convert;
pub use convert::FieldError;
pub use convert::message_id;

/// The encoded `FileDescriptorSet` of package `sealane.v1`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
