//! From a destination to the addresses to dial, in order.
//!
//! A static route of the policy, an address literal, or the MX records of the domain (RFC 5321
//! section 5.1) with the implicit MX and the null MX (RFC 7505). Bounded: at most
//! [`MAX_EXCHANGES`] exchanges and [`MAX_ADDRESSES`] addresses, one deadline over everything.
//! Resolved once per attempt: what was checked is what is dialled.

mod address_guard;
mod dns;
mod exchange;
mod hop;
mod resolver;
#[cfg(test)]
pub(crate) mod testing;

pub use address_guard::AddressGuard;
pub use hop::{Hop, HopSource, StaticRoute};
pub use resolver::{Resolver, ResolverOptions};

/// Most MX records that are looked at, best preference first.
pub const MAX_EXCHANGES: usize = 10;
/// Most addresses of one destination that are dialled.
pub const MAX_ADDRESSES: usize = 20;

/// Why there is nothing to dial.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// RFC 7505: the domain takes no mail. 5.1.10.
    #[error("the domain accepts no mail (null MX)")]
    NullMx,
    /// The domain does not exist. 5.1.2.
    #[error("the domain does not exist")]
    NoDomain,
    /// The domain exists, but neither exchanges nor addresses lead anywhere. 5.4.4.
    #[error("{0}")]
    NoRoute(&'static str),
    /// The best exchange is this very relay. 5.4.6.
    #[error("the mail exchange of the domain is this relay")]
    Loop,
    /// SERVFAIL, timeout, refused, malformed: 4.4.3. The text goes to the log only.
    #[error("DNS lookup failed: {0}")]
    Temporary(String),
}

impl ResolveError {
    /// Enhanced status; class 5 is permanent.
    pub fn status(&self) -> (u8, u16, u16) {
        match self {
            Self::NullMx => (5, 1, 10),
            Self::NoDomain => (5, 1, 2),
            Self::NoRoute(_) => (5, 4, 4),
            Self::Loop => (5, 4, 6),
            Self::Temporary(_) => (4, 4, 3),
        }
    }
}
