//! TLS as SMTP clients see it.
use crate::config::PublicCertificate;
use rustls::{ServerConfig, version};
use sealane_runtime::identity;
use std::sync::Arc;

/// TLS 1.2 and 1.3, no client certificate, no 0-RTT. A client that offers ALPN must offer one of ours
/// (cross-protocol attacks); most offer none.
pub fn server_tls(files: &PublicCertificate) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = identity::certificates(&files.certificate)?;
    let key = identity::private_key(&files.key)?;
    let mut config = ServerConfig::builder_with_provider(identity::provider())
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"smtp".to_vec(), b"esmtp".to_vec()];
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    Ok(Arc::new(config))
}
