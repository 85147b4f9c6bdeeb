//! SMTP server and client sessions without I/O (RFC 5321, RFC 3207, RFC 4954).
//!
//! ```text
//!  driver: bytes, TLS, clocks ── Event ──► ServerSession / ClientSession ── Action ──► driver
//! ```
//!
//! The sessions decide, the driver acts. They never see plaintext mail: before TLS the server
//! answers 530 to everything but EHLO, NOOP, STARTTLS and QUIT, and the client says no more than
//! EHLO, STARTTLS and QUIT. There is no switch for that.
#![forbid(unsafe_code)]

pub mod client;
mod durable;
pub mod proxy;
pub mod server;
mod syntax;

pub use durable::Durable;
pub use syntax::MailParameters;
