//! Start-up shared by Sealane's processes: configuration, identity, gRPC, telemetry, probes, shutdown.
//!
//! Not a framework: each module is one thing that every binary needs to do in the same way.
#![forbid(unsafe_code)]

pub mod blocking;
pub mod clock;
pub mod config;
pub mod grpc;
pub mod http;
pub mod identity;
pub mod pem;
pub mod process;
pub mod reload;
pub mod shutdown;
pub mod telemetry;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod testing;
pub mod world;

/// Exit codes of sysexits.h that the binaries use.
pub mod exit_code {
    /// EX_USAGE: the configuration is wrong.
    pub const CONFIG: u8 = 64;
}
