//! The client side of the handshake.
use super::{CertificateEvidence, CertificateRequirement, CertificateVerifiers, tls_facts};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature,
        verify_tls13_signature,
    },
    pki_types::{CertificateDer, DnsName, ServerName, UnixTime},
};
use sealane_types::TlsFacts;
use std::{io, net::IpAddr, sync::Arc};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;

/// Makes TLS connections to mail servers; sessions are resumed where the peer allows it.
#[derive(Clone)]
pub struct TlsConnector {
    config: Arc<ClientConfig>,
    verifiers: CertificateVerifiers,
}

impl std::fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsConnector").finish_non_exhaustive()
    }
}

impl TlsConnector {
    /// With the WebPKI roots that Mozilla trusts.
    pub fn webpki() -> Self {
        Self::with_roots(RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        })
    }

    /// With other roots in the place of the WebPKI ones; at least one.
    pub fn with_roots(roots: RootCertStore) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = SignatureOnly {
            algorithms: provider.signature_verification_algorithms,
        };
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the provider supports TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Self {
            config: Arc::new(config),
            verifiers: CertificateVerifiers::new(provider, roots),
        }
    }

    /// The provider in use.
    pub fn provider(&self) -> &Arc<CryptoProvider> {
        self.config.crypto_provider()
    }

    /// Handshake with `host` (SNI unless it is an address), then the examination of its certificate.
    /// The caller sets the deadline and judges the evidence.
    ///
    /// # Cancel safety
    /// The connection is lost.
    pub async fn connect<S>(
        &self,
        stream: S,
        host: &str,
        requirement: &CertificateRequirement,
    ) -> io::Result<(TlsStream<S>, TlsFacts, CertificateEvidence)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = server_name(host)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a host name"))?;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.config));
        let stream = connector.connect(name.clone(), stream).await?;
        let (_, session) = stream.get_ref();
        let chain = session.peer_certificates().unwrap_or_default();
        let evidence = self
            .verifiers
            .examine(chain, &name, requirement, UnixTime::now());
        let mut facts = tls_facts(session);
        if matches!(name, ServerName::DnsName(_)) {
            facts.server_name = host.to_owned();
        }
        facts.verification.clone_from(&evidence.verification);
        Ok((stream, facts, evidence))
    }
}

/// A host name or address as rustls wants it. Names that are no DNS names give `None`.
pub fn server_name(host: &str) -> Option<ServerName<'static>> {
    match host.parse::<IpAddr>() {
        Ok(ip) => Some(ServerName::IpAddress(ip.into())),
        Err(_) => DnsName::try_from(host.trim_end_matches('.').to_owned())
            .ok()
            .map(ServerName::DnsName),
    }
}

/// Takes any certificate whose key signed this handshake. Its worth is examined afterwards.
#[derive(Debug)]
struct SignatureOnly {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for SignatureOnly {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
