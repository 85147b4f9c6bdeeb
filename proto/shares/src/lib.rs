//! Limits of destinations that hold for the whole cluster: who may open how many connections, and
//! begin how many, now.
//!
//! ```text
//!   Share (relay) ──── Need: holds, needs, open ───▶ Dealer (the node that leads group 0)
//!   places, tokens ◀── Grant: places, tokens ─────   one table per destination
//! ```
//!
//! Pure: time is an argument, in milliseconds of any monotonic clock; the two ends never compare clocks.
//!
//! **Places** (connections) are held. A holder has what its last answer said, for [`VALID_MS`] from
//! before it asked. The dealer counts for it the larger of what the holder said it holds and what it
//! was answered, until the holder says less or was silent for the dealer's `hold_ms`, which is longer.
//! A place goes to another holder only after it was counted out for the first one.
//!
//! **Tokens** (messages and connections per minute) are spent: a [`Bucket`] at the dealer makes them,
//! a holder has [`TOKENS_VALID_MS`] to use one.
//!
//! A new dealer knows nothing of its predecessor's answers. For `hold_ms` it confirms what holders
//! say they have and gives nothing; its buckets begin empty.
//!
//! Invariants, at every moment and whatever is lost, late or dead: the places that holders have do not
//! exceed the limit in sum; the tokens used within a time do not exceed rate × (time + 3 s) + 1 in sum.
//! And whoever has need gets its turn, though there be fewer places than holders.
#![forbid(unsafe_code)]

mod bucket;
mod dealer;
mod share;
mod split;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
mod tokens;

pub use bucket::Bucket;
pub use dealer::{Ask, Dealer, Limit, Timing};
pub use share::Share;
pub use tokens::Tokens;

/// A holder has its places for this long, counted from before it asked.
pub const VALID_MS: u64 = 3_000;
/// A token not used by then is gone.
pub const TOKENS_VALID_MS: u64 = 2_000;
/// Shares are renewed, and dealt again, this often.
pub const RENEW_MS: u64 = 1_000;

/// What a holder says about one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Need {
    /// Places that it has or uses: it stays within these until it hears the answer.
    pub holds: u32,
    /// Connections that it would use now: attempts under way, and those that wait.
    pub needs: u32,
    /// Connections that are open, used or not.
    pub open: u32,
    /// Tokens that it would spend now.
    pub tokens: PerKind,
}

/// What a holder is answered. `places` replaces what it had, tokens come on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grant {
    /// Connections that may be open.
    pub places: u32,
    /// Tokens to spend.
    pub tokens: PerKind,
}

/// A number for each thing that has a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerKind {
    /// New connections.
    pub connections: u32,
    /// Messages that begin at the destination.
    pub messages: u32,
    /// Messages that are handed to relays: at the rate of those that begin, so that what cannot begin
    /// yet waits in the queue and not in a relay.
    pub leases: u32,
}

/// What a relay spends tokens for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A new connection.
    Connection,
    /// A message.
    Message,
}

impl PerKind {
    /// The number of a kind.
    pub fn of(&mut self, kind: Kind) -> &mut u32 {
        match kind {
            Kind::Connection => &mut self.connections,
            Kind::Message => &mut self.messages,
        }
    }
}
