//! Ports for processes that are killed and started again on the same address.
//!
//! They lie below the kernel's ephemeral range, so that no outgoing connection takes the port of a
//! process while it is down.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Mutex;

use anyhow::{Result, bail};
use rand::Rng;

const LOWEST: u16 = 18_000;
const HIGHEST: u16 = 31_900;

static TAKEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());

/// A loopback address that nobody listens on and that this process did not hand out before.
///
/// # Errors
/// When a thousand random ports were all taken.
pub fn free() -> Result<SocketAddr> {
    let mut taken = TAKEN
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    for _ in 0..1000 {
        let port = rand::rng().random_range(LOWEST..HIGHEST);
        if !taken.contains(&port) && is_free(port) {
            taken.push(port);
            return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        }
    }
    bail!("no free port between {LOWEST} and {HIGHEST}")
}

/// Whether a listener could be opened on this loopback port now.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
