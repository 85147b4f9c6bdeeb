//! What a finished handshake says about itself.
use rustls::CommonState;
use sealane_types::TlsFacts;
use sha2::{Digest, Sha256};

/// Facts of an established session, of either side. `server_name` and `verification` are the
/// caller's to fill in.
pub fn tls_facts(session: &CommonState) -> TlsFacts {
    let version = match session.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3".to_owned(),
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2".to_owned(),
        other => other.map(|v| format!("{v:?}")).unwrap_or_default(),
    };
    let cipher = session
        .negotiated_cipher_suite()
        .map(|suite| iana_name(&format!("{:?}", suite.suite())))
        .unwrap_or_default();
    let group = session
        .negotiated_key_exchange_group()
        .map(|g| format!("{:?}", g.name()))
        .unwrap_or_default();
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    TlsFacts {
        version,
        cipher,
        group,
        server_name: String::new(),
        verification: "none".to_owned(),
        peer_certificate_sha256: certificate
            .map(|c| Sha256::digest(c).to_vec())
            .unwrap_or_default(),
    }
}

/// rustls writes `TLS13_AES_256_GCM_SHA384`, IANA registers `TLS_AES_256_GCM_SHA384`.
fn iana_name(rustls_name: &str) -> String {
    rustls_name.replacen("TLS13_", "TLS_", 1)
}
