//! The server session.
mod auth;
mod data;
mod session;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;

pub use session::{
    Action, AuthOutcome, BodyOutcome, Event, Listener, Phase, Secret, ServerConfig, ServerSession,
    Verdict,
};
