//! Identities of the simulated processes.
use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use sealane_runtime::identity::{CONTROL_SERVER_NAME, Identity, IdentityConfig, Role, WorkloadId};
use std::path::Path;

/// The cluster's name in its certificates.
pub(crate) const CLUSTER: &str = "sim";

/// A certificate authority in a folder.
pub(crate) struct Pki<'a> {
    dir: &'a Path,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Pki<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pki")
    }
}

impl<'a> Pki<'a> {
    /// A new one.
    pub(crate) fn new(dir: &'a Path) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "simulated CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let cert = params.self_signed(&key)?;
        std::fs::write(dir.join("ca.crt"), cert.pem())?;
        let issuer = Issuer::from_ca_cert_pem(&cert.pem(), key)?;
        Ok(Self { dir, issuer })
    }

    /// An identity, and where its files are.
    pub(crate) fn issue(
        &self,
        role: Role,
        name: &str,
    ) -> anyhow::Result<(Identity, IdentityConfig)> {
        let mut params = CertificateParams::new(vec![CONTROL_SERVER_NAME.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let id = WorkloadId {
            cluster: CLUSTER.to_owned(),
            role,
            name: name.to_owned(),
        };
        params
            .subject_alt_names
            .push(SanType::URI(id.to_string().as_str().try_into()?));
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        let config = IdentityConfig {
            certificate: self.dir.join(format!("{name}.crt")),
            key: self.dir.join(format!("{name}.key")),
            ca: self.dir.join("ca.crt"),
        };
        std::fs::write(&config.certificate, cert.pem())?;
        std::fs::write(&config.key, key.serialize_pem())?;
        let identity = Identity::load(&config).with_context(|| name.to_owned())?;
        Ok((identity, config))
    }
}
