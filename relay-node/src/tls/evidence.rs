//! What a peer's certificate proves.
use super::CertificateRequirement;
use rustls::{
    CertificateError, Error, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sealane_tls_policy::Checks;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Checks certificate chains after the handshake.
#[derive(Debug, Clone)]
pub struct CertificateVerifiers {
    provider: Arc<CryptoProvider>,
    webpki: Arc<WebPkiServerVerifier>,
}

/// The result for one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateEvidence {
    /// The checks that pass.
    pub passed: Checks,
    /// For `TlsFacts.verification`: "webpki", "secure:<name>", "pinned", "failed:<why>".
    pub verification: String,
}

impl CertificateVerifiers {
    /// WebPKI with `roots`.
    pub fn new(provider: Arc<CryptoProvider>, roots: RootCertStore) -> Self {
        let webpki =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .expect("the root store is not empty and there are no revocation lists");
        Self { provider, webpki }
    }

    /// Examines the chain a peer sent, its own certificate first.
    pub fn examine(
        &self,
        chain: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        requirement: &CertificateRequirement,
        now: UnixTime,
    ) -> CertificateEvidence {
        let Some((own, intermediates)) = chain.split_first() else {
            return CertificateEvidence::failed("no certificate");
        };
        match requirement {
            CertificateRequirement::Any => {
                match self
                    .webpki
                    .verify_server_cert(own, intermediates, server_name, &[], now)
                {
                    Ok(_) => CertificateEvidence {
                        passed: Checks {
                            webpki: true,
                            ..Checks::default()
                        },
                        verification: "webpki".to_owned(),
                    },
                    Err(error) => CertificateEvidence::failed(reason(&error)),
                }
            }
            CertificateRequirement::Secure { names, roots } => {
                let verifier = match roots {
                    None => Arc::clone(&self.webpki),
                    Some(roots) => {
                        let builder = WebPkiServerVerifier::builder_with_provider(
                            Arc::clone(roots),
                            Arc::clone(&self.provider),
                        );
                        match builder.build() {
                            Ok(verifier) => verifier,
                            Err(_) => return CertificateEvidence::failed("no usable root"),
                        }
                    }
                };
                let mut why = "no name";
                for name in names {
                    match verifier.verify_server_cert(own, intermediates, name, &[], now) {
                        Ok(_) => {
                            return CertificateEvidence {
                                passed: Checks {
                                    secure: true,
                                    ..Checks::default()
                                },
                                verification: format!("secure:{}", name.to_str()),
                            };
                        }
                        Err(error) => why = reason(&error),
                    }
                }
                CertificateEvidence::failed(why)
            }
            CertificateRequirement::Fingerprint { pins } => match spki_sha256(own) {
                Some(found) if pins.contains(&found) => CertificateEvidence {
                    passed: Checks {
                        fingerprint: true,
                        ..Checks::default()
                    },
                    verification: "pinned".to_owned(),
                },
                Some(_) => CertificateEvidence::failed("public key is not pinned"),
                None => CertificateEvidence::failed("malformed certificate"),
            },
        }
    }
}

impl CertificateEvidence {
    fn failed(why: &str) -> Self {
        Self {
            passed: Checks::default(),
            verification: format!("failed:{why}"),
        }
    }
}

/// SHA-256 of the SubjectPublicKeyInfo of a certificate.
fn spki_sha256(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(Sha256::digest(parsed.tbs_certificate.subject_pki.raw).into())
}

/// A word for a failed check; a closed set, safe for labels and replies.
fn reason(error: &Error) -> &'static str {
    match error {
        Error::InvalidCertificate(certificate) => {
            match certificate {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "not valid yet"
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => "name mismatch",
                CertificateError::UnknownIssuer => "unknown issuer",
                CertificateError::BadSignature => "bad signature",
                CertificateError::Revoked => "revoked",
                CertificateError::BadEncoding => "malformed certificate",
                CertificateError::InvalidPurpose
                | CertificateError::InvalidPurposeContext { .. } => "wrong purpose",
                _ => "invalid certificate",
            }
        }
        _ => "invalid certificate",
    }
}
