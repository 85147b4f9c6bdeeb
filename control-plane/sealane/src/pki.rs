//! `sealane pki`: a small CA for clusters outside of Kubernetes.
use anyhow::{Context, bail};
use clap::Subcommand;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use sealane_runtime::identity::{CONTROL_SERVER_NAME, Role, WorkloadId};
use std::{
    fs::OpenOptions,
    io::Write,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

#[derive(Subcommand, Debug)]
pub(crate) enum PkiCommand {
    /// Make the cluster's CA: ca.crt, ca.key and the cluster's name.
    ///
    /// Example: sealane pki init --dir pki --cluster demo
    Init {
        /// Folder of the CA.
        #[arg(long)]
        dir: PathBuf,
        /// Trust domain of all identities: spiffe://CLUSTER/...
        #[arg(long)]
        cluster: String,
    },
    /// Issue an identity: NAME.crt and NAME.key.
    ///
    /// Examples:
    ///   sealane pki issue --dir pki --role control --name control-plane-1
    ///   sealane pki issue --dir pki --role admin --name alice
    ///   sealane pki issue --dir pki --public --name mx --dns mx.example.org
    #[command(verbatim_doc_comment)]
    Issue {
        /// Folder of the CA.
        #[arg(long)]
        dir: PathBuf,
        /// What it may do: relay, control, operator, admin or viewer.
        #[arg(long, required_unless_present = "public", conflicts_with = "public")]
        role: Option<Role>,
        /// Which one.
        #[arg(long)]
        name: String,
        /// A server certificate for SMTP listeners instead of a workload identity.
        #[arg(long)]
        public: bool,
        /// Further DNS names.
        #[arg(long)]
        dns: Vec<String>,
        /// IP addresses.
        #[arg(long)]
        ip: Vec<IpAddr>,
        /// Where to write; default: the CA's folder.
        #[arg(long)]
        out: Option<PathBuf>,
        /// Days of validity.
        #[arg(long, default_value_t = 365)]
        days: u16,
        /// Overwrite existing files.
        #[arg(long)]
        force: bool,
    },
}

/// Keys are readable by their owner only; nothing is overwritten by accident.
fn write(path: &Path, text: &str, mode: u32, force: bool) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).mode(mode);
    if force {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    let mut file = options
        .open(path)
        .with_context(|| format!("{} (exists? --force overwrites)", path.display()))?;
    file.write_all(text.as_bytes())
        .with_context(|| path.display().to_string())
}

fn validity(params: &mut CertificateParams, days: u16) {
    let now = jiff::Timestamp::now()
        .to_zoned(jiff::tz::TimeZone::UTC)
        .date();
    let end = now.saturating_add(jiff::Span::new().days(i64::from(days)));
    let at = |d: jiff::civil::Date| {
        rcgen::date_time_ymd(
            d.year().into(),
            d.month().unsigned_abs(),
            d.day().unsigned_abs(),
        )
    };
    params.not_before = at(now.saturating_sub(jiff::Span::new().days(1)));
    params.not_after = at(end);
}

pub(crate) fn run(command: PkiCommand) -> anyhow::Result<()> {
    match command {
        PkiCommand::Init { dir, cluster } => init(&dir, &cluster),
        PkiCommand::Issue {
            dir,
            role,
            name,
            public: _,
            dns,
            ip,
            out,
            days,
            force,
        } => {
            let out = out.unwrap_or_else(|| dir.clone());
            issue(&dir, role, &name, dns, &ip, &out, days, force)
        }
    }
}

fn init(dir: &Path, cluster: &str) -> anyhow::Result<()> {
    let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if cluster.is_empty() || !cluster.chars().all(ok) {
        bail!("--cluster {cluster:?}: use lower-case letters, digits, hyphens and dots");
    }
    std::fs::create_dir_all(dir)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Sealane CA {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, 3650);
    let cert = params.self_signed(&key)?;
    write(&dir.join("ca.key"), &key.serialize_pem(), 0o600, false)?;
    write(&dir.join("ca.crt"), &cert.pem(), 0o644, false)?;
    write(&dir.join("cluster"), cluster, 0o644, false)?;
    println!("CA of cluster {cluster} in {}", dir.display());
    Ok(())
}

#[allow(clippy::too_many_arguments, reason = "the flags of one command")]
fn issue(
    dir: &Path,
    role: Option<Role>,
    name: &str,
    dns: Vec<String>,
    ip: &[IpAddr],
    out: &Path,
    days: u16,
    force: bool,
) -> anyhow::Result<()> {
    let read = |f: &str| {
        std::fs::read_to_string(dir.join(f))
            .with_context(|| format!("{}: run `sealane pki init` first", dir.join(f).display()))
    };
    let cluster = read("cluster")?;
    let ca_key = KeyPair::from_pem(&read("ca.key")?)?;
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt")?, ca_key)?;
    let mut names = dns;
    if role == Some(Role::Control) {
        names.push(CONTROL_SERVER_NAME.to_owned());
    }
    if role.is_none() && names.is_empty() && ip.is_empty() {
        bail!("a public certificate needs --dns or --ip");
    }
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params
        .subject_alt_names
        .extend(ip.iter().map(|i| SanType::IpAddress(*i)));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    if let Some(role) = role {
        let id = WorkloadId {
            cluster: cluster.trim().to_owned(),
            role,
            name: name.to_owned(),
        }
        .to_string();
        params
            .subject_alt_names
            .push(SanType::URI(id.as_str().try_into()?));
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, days);
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer)?;
    std::fs::create_dir_all(out)?;
    write(
        &out.join(format!("{name}.key")),
        &key.serialize_pem(),
        0o600,
        force,
    )?;
    write(&out.join(format!("{name}.crt")), &cert.pem(), 0o644, force)?;
    println!("{}", out.join(format!("{name}.crt")).display());
    Ok(())
}
