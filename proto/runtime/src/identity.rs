//! Workload identity: who a process is, by certificate.
use crate::{
    config::ConfigError,
    pem::{self, PemFile},
    reload::{CertificateFigures, Certified, Live, Look},
    world,
};
use anyhow::Context;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime},
    server::WebPkiClientVerifier,
};
use serde::Deserialize;
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The name that every control-plane certificate carries and every gRPC client verifies.
pub const CONTROL_SERVER_NAME: &str = "control.sealane.internal";

/// gRPC metadata in which a relay says which one it is of several with the same certificate.
pub const INSTANCE_KEY: &str = "sealane-instance";

/// Octets of an instance's name at most: a name of Kubernetes has half of them.
const INSTANCE_LENGTH: usize = 128;

/// The name of an identity's files in figures and in the log.
const IDENTITY: &str = "identity";

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

/// The form of an instance's name: letters, digits, ".", "_" and "-", the first one a letter or a digit.
pub fn check_instance(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() {
        return Err("must not be empty".into());
    }
    if name.len() > INSTANCE_LENGTH {
        return Err(format!("is longer than {INSTANCE_LENGTH} characters"));
    }
    if !name.chars().all(plain) || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(
            "may only have letters, digits, dots, hyphens and underscores, the first one a letter or a digit".into(),
        );
    }
    Ok(())
}

impl WorkloadId {
    /// One of several with the same certificate: `<name>/<instance>`, which no certificate can name. The one that
    /// is called like the certificate is the workload itself.
    pub fn of_instance(&self, instance: &str) -> Result<Self, String> {
        check_instance(instance)?;
        let mut known = self.clone();
        if instance != self.name {
            known.name = format!("{}/{instance}", self.name);
        }
        Ok(known)
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

/// Certificates of a PEM file, at least one.
pub fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    PemFile::read(path)?.certificates()
}

/// The private key of a PEM file.
pub fn private_key(path: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    PemFile::read(path)?.private_key()
}

/// The TLS implementation, the same everywhere.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// What the files of an identity say, as a whole.
struct Material {
    workload: WorkloadId,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    /// Of our certificate, and of the first CA to end.
    ends: [i64; 2],
}

impl Certified for Material {
    fn ends(&self) -> Vec<(&'static str, i64)> {
        vec![(IDENTITY, self.ends[0]), ("ca", self.ends[1])]
    }
}

impl Material {
    /// Certificate, key and CA bundle, in this order. What replaces `old` has to be of the same workload, and to be
    /// valid by its own bundle: a node that nobody would speak to stays with what it has.
    fn judge(files: &[PemFile], old: Option<&Material>) -> anyhow::Result<Self> {
        let [certificate, key, ca] = files else {
            anyhow::bail!("an identity is of three files");
        };
        let chain = certificate.certificates()?;
        let workload = peer_identity(&chain)?;
        let mut roots = RootCertStore::empty();
        let mut ca_ends = i64::MAX;
        for ca in ca.certificates()? {
            ca_ends = ca_ends.min(pem::validity(&ca)?.1);
            roots.add(ca)?;
        }
        let roots = Arc::new(roots);
        let versions = [&rustls::version::TLS13];
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build()?;
        let (end_entity, intermediates) = chain
            .split_first()
            .context("certificate: the chain is empty")?;
        let ends = [pem::validity(end_entity)?.1, ca_ends];
        if let Some(old) = old {
            anyhow::ensure!(
                workload == old.workload,
                "the certificate is of {workload}, but this process is {}: to change that, restart it",
                old.workload
            );
            let now = UnixTime::since_unix_epoch(Duration::from_millis(world::now_ms()));
            verifier
                .verify_client_cert(end_entity, intermediates, now)
                .context("the certificate is not valid by the CA certificates beside it")?;
        }
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.private_key()?)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&versions)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key.private_key()?)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session proves nothing anew: every connection is with certificates that are valid now.
        server.send_tls13_tickets = 0;
        client.resumption = Resumption::disabled();
        Ok(Self {
            workload,
            server: Arc::new(server),
            client: Arc::new(client),
            ends,
        })
    }
}

/// A loaded identity. All clones change together when its files do, if somebody [keeps](Self::keep) it.
#[derive(Clone)]
pub struct Identity {
    workload: WorkloadId,
    live: Arc<Live<Material>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.workload)
    }
}

impl Identity {
    /// Reads and checks the files.
    pub fn load(config: &IdentityConfig) -> anyhow::Result<Self> {
        let files = vec![
            config.certificate.clone(),
            config.key.clone(),
            config.ca.clone(),
        ];
        let figures = CertificateFigures::default();
        let live = Live::load(IDENTITY, files, figures, Material::judge)?;
        Ok(Self {
            workload: live.current().workload.clone(),
            live,
        })
    }

    /// Who this process is: the same for as long as it runs.
    pub fn workload(&self) -> &WorkloadId {
        &self.workload
    }
    /// TLS 1.3, client certificate required, HTTP/2. Of now: ask anew for every connection.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.live.current().server.clone()
    }
    /// TLS 1.3 with our certificate, HTTP/2. Of now: ask anew for every connection.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.live.current().client.clone()
    }
    /// When its certificates end, and how looking at its files went.
    pub fn figures(&self) -> &CertificateFigures {
        self.live.figures()
    }
    /// Looks at its files once, and takes them into use if they changed and are good. Blocks.
    pub fn look(&self) -> Look {
        self.live.look()
    }
    /// Looks at its files for ever.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn keep(self) {
        self.live.keep().await;
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
