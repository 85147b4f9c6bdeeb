//! TLS of mail connections to other servers.
//!
//! One client configuration serves every destination: it takes any certificate, but insists on
//! TLS 1.2 or better and on the peer's signature over the handshake. What the certificate is worth
//! is found out afterwards, before the first MAIL command, by [`CertificateEvidence`] — the same way
//! for a full and for a resumed handshake — and judged by `sealane_tls_policy`.

mod connector;
mod evidence;
mod facts;
mod requirement;

pub use connector::{TlsConnector, server_name};
pub use evidence::{CertificateEvidence, CertificateVerifiers};
pub use facts::tls_facts;
pub use requirement::{CertificateRequirement, RequirementError};
