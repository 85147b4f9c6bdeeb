//! Certificate authorities and identities' files for tests.
use crate::identity::{CONTROL_SERVER_NAME, IdentityConfig};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use std::path::PathBuf;
use tempfile::TempDir;

/// A certificate authority.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority like any other");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_after = rcgen::date_time_ymd(2090, 1, 1);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::from_ca_cert_pem(&pem, key).unwrap();
        Self { pem, issuer }
    }

    /// For `spiffe://c/…`, until the beginning of a year.
    pub(crate) fn issue(&self, workload: &str, until: i32) -> Issued {
        let mut params = CertificateParams::new(vec![CONTROL_SERVER_NAME.to_owned()]).unwrap();
        let uri = workload.try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued {
            certificate,
            key: key.serialize_pem(),
        }
    }
}

/// The files of one identity.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new(issued: &Issued, ca: &str) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write(issued, ca);
        files
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, issued: &Issued, ca: &str) {
        std::fs::write(self.at("tls.crt"), &issued.certificate).unwrap();
        std::fs::write(self.at("tls.key"), &issued.key).unwrap();
        std::fs::write(self.at("ca.crt"), ca).unwrap();
    }

    pub(crate) fn config(&self) -> IdentityConfig {
        IdentityConfig {
            certificate: self.at("tls.crt"),
            key: self.at("tls.key"),
            ca: self.at("ca.crt"),
        }
    }
}
