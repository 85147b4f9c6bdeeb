//! Certificates of the API server and its clients, and the key of service accounts' tokens.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// Files in one folder.
#[derive(Debug, Clone)]
pub(super) struct Pki {
    folder: PathBuf,
}

impl Pki {
    pub(super) fn make(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "kubernetes");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let pki = Self { folder };
        fs::write(pki.ca(), ca.pem())?;

        let names = ["127.0.0.1", "localhost", "kubernetes.default.svc"].map(str::to_owned);
        let mut server = CertificateParams::new(names)?;
        server
            .distinguished_name
            .push(DnType::CommonName, "kube-apiserver");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        pki.issue("server", server, &ca)?;

        // The group whose members may do everything.
        let mut admin = CertificateParams::default();
        admin.distinguished_name.push(DnType::CommonName, "admin");
        admin
            .distinguished_name
            .push(DnType::OrganizationName, "system:masters");
        admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        pki.issue("admin", admin, &ca)?;

        let tokens = KeyPair::generate()?;
        fs::write(pki.key("tokens"), tokens.serialize_pem())?;
        fs::write(pki.certificate("tokens"), tokens.public_key_pem())?;
        Ok(pki)
    }

    fn issue(
        &self,
        name: &str,
        mut params: CertificateParams,
        ca: &CertifiedIssuer<'_, KeyPair>,
    ) -> Result<()> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, ca)?;
        fs::write(self.certificate(name), certificate.pem())?;
        fs::write(self.key(name), key.serialize_pem())?;
        Ok(())
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// `tokens`: the public key of service accounts' tokens.
    pub(super) fn certificate(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.crt"))
    }

    pub(super) fn key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }
}

/// Who a kubeconfig is.
#[derive(Debug)]
pub(super) enum Who<'a> {
    /// By a certificate of the folder.
    Certificate(&'a Pki, &'a str),
    /// By a token.
    Token(&'a str),
}

/// Writes a kubeconfig.
pub(super) fn kubeconfig(
    file: &Path,
    server: &str,
    ca: &Path,
    namespace: &str,
    who: &Who<'_>,
) -> Result<()> {
    let user = match who {
        Who::Certificate(pki, name) => serde_json::json!({
            "client-certificate": pki.certificate(name),
            "client-key": pki.key(name),
        }),
        Who::Token(token) => serde_json::json!({ "token": token }),
    };
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "test", "cluster": { "server": server, "certificate-authority": ca } }],
        "users": [{ "name": "test", "user": user }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test", "namespace": namespace } }],
        "current-context": "test",
    });
    // JSON is YAML.
    fs::write(file, config.to_string())?;
    Ok(())
}
