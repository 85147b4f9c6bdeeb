//! Workload identity: who a process is, by certificate.
use crate::config::ConfigError;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde::Deserialize;
use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The name that every control-plane certificate carries and every gRPC client verifies.
pub const CONTROL_SERVER_NAME: &str = "control.sealane.internal";

/// What a workload may do is decided by its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A relay node.
    Relay,
    /// A control-plane node.
    Control,
    /// The Kubernetes operator.
    Operator,
    /// A person or tool that changes things.
    Admin,
    /// A person or tool that looks.
    Viewer,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 5] = [
        Role::Relay,
        Role::Control,
        Role::Operator,
        Role::Admin,
        Role::Viewer,
    ];
    /// As in the certificate.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Relay => "relay",
            Role::Control => "control",
            Role::Operator => "operator",
            Role::Admin => "admin",
            Role::Viewer => "viewer",
        }
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|r| r.as_str() == s)
            .ok_or_else(|| format!("unknown role {s:?}"))
    }
}

/// `spiffe://<cluster>/<role>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadId {
    /// Trust domain.
    pub cluster: String,
    /// What it may do.
    pub role: Role,
    /// Which one.
    pub name: String,
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/{}/{}",
            self.cluster,
            self.role.as_str(),
            self.name
        )
    }
}

impl FromStr for WorkloadId {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let rest = s.strip_prefix("spiffe://").ok_or("not a spiffe:// URI")?;
        let mut parts = rest.split('/');
        let (Some(cluster), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("not spiffe://<cluster>/<role>/<name>".into());
        };
        if cluster.is_empty() || name.is_empty() {
            return Err("empty cluster or name".into());
        }
        Ok(Self {
            cluster: cluster.to_owned(),
            role: role.parse()?,
            name: name.to_owned(),
        })
    }
}

/// Where the PEM files are.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityConfig {
    /// Certificate chain, end entity first.
    pub certificate: PathBuf,
    /// PKCS #8 key.
    pub key: PathBuf,
    /// The cluster's CA certificates.
    pub ca: PathBuf,
}

impl IdentityConfig {
    /// The files exist and fit together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, path) in [
            ("identity.certificate", &self.certificate),
            ("identity.key", &self.key),
            ("identity.ca", &self.ca),
        ] {
            std::fs::File::open(path)
                .map_err(|e| ConfigError::field(field, format!("{}: {e}", path.display())))?;
        }
        Identity::load(self)
            .map(drop)
            .map_err(|e| ConfigError::field("identity.certificate", format!("{e:#}")))
    }
}

/// A loaded identity.
#[derive(Clone)]
pub struct Identity {
    workload: WorkloadId,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.workload)
    }
}

/// Certificates of a PEM file, at least one.
pub fn certificates(path: &std::path::Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certs = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    anyhow::ensure!(!certs.is_empty(), "{}: no certificate", path.display());
    Ok(certs)
}

/// The private key of a PEM file.
pub fn private_key(path: &std::path::Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))
}

/// The TLS implementation, the same everywhere.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Identity {
    /// Reads and checks the files.
    pub fn load(config: &IdentityConfig) -> anyhow::Result<Self> {
        let chain = certificates(&config.certificate)?;
        let workload = peer_identity(&chain)?;
        let mut roots = RootCertStore::empty();
        for ca in certificates(&config.ca)? {
            roots.add(ca)?;
        }
        let roots = Arc::new(roots);
        let versions = [&rustls::version::TLS13];
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build()?;
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), private_key(&config.key)?)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&versions)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, private_key(&config.key)?)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            workload,
            server: Arc::new(server),
            client: Arc::new(client),
        })
    }

    /// Who this process is.
    pub fn workload(&self) -> &WorkloadId {
        &self.workload
    }
    /// TLS 1.3, client certificate required, HTTP/2.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }
    /// TLS 1.3 with our certificate, HTTP/2.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }
}

/// The workload named in the URI SAN of an end-entity certificate.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> anyhow::Result<WorkloadId> {
    let leaf = chain
        .first()
        .ok_or_else(|| anyhow::anyhow!("no certificate"))?;
    let (_, cert) =
        X509Certificate::from_der(leaf).map_err(|e| anyhow::anyhow!("certificate: {e}"))?;
    let san = cert
        .subject_alternative_name()?
        .ok_or_else(|| anyhow::anyhow!("certificate without names"))?;
    san.value
        .general_names
        .iter()
        .find_map(|n| match n {
            GeneralName::URI(u) => u.parse().ok(),
            _ => None,
        })
        .ok_or_else(|| anyhow::anyhow!("certificate without a spiffe:// workload name"))
}
