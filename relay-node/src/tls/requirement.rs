//! What the policy of a route asks of a certificate, ready to be checked.
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// The check that a route demands.
#[derive(Debug, Clone)]
pub enum CertificateRequirement {
    /// Any certificate; its WebPKI result is recorded.
    Any,
    /// Valid for one of the names under these roots.
    Secure {
        /// At least one.
        names: Vec<ServerName<'static>>,
        /// `None`: the WebPKI roots.
        roots: Option<Arc<RootCertStore>>,
    },
    /// SHA-256 of the SubjectPublicKeyInfo is one of these.
    Fingerprint {
        /// At least one.
        pins: Vec<[u8; 32]>,
    },
}

/// A policy that cannot be applied; names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequirementError {
    /// A name is neither a host name nor an address.
    #[error("tls.names: not a host name: {0}")]
    Name(String),
    /// The roots are no certificates.
    #[error("tls.roots: {0}")]
    Roots(String),
    /// A pin has not 32 octets, or there is none.
    #[error("tls.pins: needs SHA-256 values of 32 octets")]
    Pins,
}

impl CertificateRequirement {
    /// `secure`. Without names the host itself; `roots_pem` empty: WebPKI.
    pub fn secure(names: &[String], roots_pem: &str, host: &str) -> Result<Self, RequirementError> {
        let default = [host.to_owned()];
        let names = if names.is_empty() { &default } else { names };
        let names = names
            .iter()
            .map(|n| super::server_name(n).ok_or_else(|| RequirementError::Name(n.clone())))
            .collect::<Result<_, _>>()?;
        let roots = if roots_pem.trim().is_empty() {
            None
        } else {
            Some(Arc::new(read_roots(roots_pem)?))
        };
        Ok(Self::Secure { names, roots })
    }

    /// `fingerprint`.
    pub fn fingerprint<P: AsRef<[u8]>>(pins: &[P]) -> Result<Self, RequirementError> {
        let pins: Vec<[u8; 32]> = pins
            .iter()
            .map(|p| p.as_ref().try_into().map_err(|_| RequirementError::Pins))
            .collect::<Result<_, _>>()?;
        if pins.is_empty() {
            Err(RequirementError::Pins)
        } else {
            Ok(Self::Fingerprint { pins })
        }
    }

    /// Tells requirements apart: a connection made under one is not reused under another.
    pub fn key(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        match self {
            Self::Any => hash.update(b"any"),
            Self::Secure { names, roots } => {
                hash.update(b"secure");
                for name in names {
                    hash.update(name.to_str().as_bytes());
                    hash.update([0]);
                }
                for root in roots.iter().flat_map(|r| &r.roots) {
                    hash.update(&root.subject_public_key_info);
                }
            }
            Self::Fingerprint { pins } => {
                hash.update(b"fingerprint");
                pins.iter().for_each(|p| hash.update(p));
            }
        }
        hash.finalize().into()
    }
}

fn read_roots(pem: &str) -> Result<RootCertStore, RequirementError> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| RequirementError::Roots(e.to_string()))?;
        store
            .add(certificate)
            .map_err(|e| RequirementError::Roots(e.to_string()))?;
    }
    if store.is_empty() {
        Err(RequirementError::Roots("no certificate in it".into()))
    } else {
        Ok(store)
    }
}
