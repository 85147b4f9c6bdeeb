//! The client session: one connection to a next hop, any number of transactions.
mod replies;
mod session;
mod stuffing;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests;

pub use session::{
    Action, Awaited, ClientConfig, ClientSession, Failure, RecipientOutcome, Transaction,
};
pub use stuffing::DotStuffer;
