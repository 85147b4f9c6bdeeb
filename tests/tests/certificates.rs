//! While mail flows every certificate of a cluster is replaced, its authority too, as Kubernetes does it: the
//! files are links into a folder that is swapped as a whole. Nobody is restarted, no session and no call fails.
#![forbid(unsafe_code)]

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use sealane_tests::cluster::{Cluster, http_get};
use sealane_tests::layout::{Layout, public};
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Load};
use sealane_tests::{tls, tools, wait};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_secs(60);
/// Two looks at the files.
const LOOKS: Duration = Duration::from_secs(11);

/// What a process says when a connection inside of the cluster is refused or lost.
const TROUBLE: [&str; 6] = [
    "gRPC connection refused",
    "gRPC handshake too slow",
    "gRPC peer",
    "stream lost",
    "stream ended",
    "no policy stream",
];

/// The folder of the certificates, as a volume of Kubernetes: what is read leads through `..data`.
struct Volume {
    root: PathBuf,
    version: u32,
}

impl Volume {
    /// Takes over a folder of ordinary files.
    fn of(root: &Path) -> Result<Self> {
        let mut volume = Self {
            root: root.to_owned(),
            version: 0,
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().context("name")?;
            files.push((name, fs::read(entry.path())?));
        }
        volume.swap(&files)?;
        for (name, _) in &files {
            let link = root.join("link");
            symlink(Path::new("..data").join(name), &link)?;
            fs::rename(link, root.join(name))?;
        }
        Ok(volume)
    }

    /// Replaces some files; all others stay. Whoever opens one sees all of this or nothing of it.
    fn swap(&mut self, files: &[(String, Vec<u8>)]) -> Result<()> {
        self.version += 1;
        let name = format!("..{}", self.version);
        let folder = self.root.join(&name);
        fs::create_dir(&folder)?;
        let data = self.root.join("..data");
        if data.exists() {
            for entry in fs::read_dir(&data)? {
                let entry = entry?;
                fs::copy(entry.path(), folder.join(entry.file_name()))?;
            }
        }
        for (file, octets) in files {
            fs::write(folder.join(file), octets)?;
        }
        let link = self.root.join("..data_tmp");
        symlink(name, &link)?;
        fs::rename(link, data)?;
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.root.join(name)).with_context(|| name.to_owned())
    }
}

/// A second authority of the same cluster, with a certificate for everybody.
struct Successor {
    folder: PathBuf,
    /// Stems of all certificates.
    names: Vec<String>,
}

impl Successor {
    fn of(layout: &Layout) -> Result<Self> {
        let folder = layout.root.join("successor");
        let pki = |args: &[&str]| {
            let mut command = Command::new(layout.sealane());
            command.arg("pki").args(args).arg("--dir").arg(&folder);
            tools::run(&mut command)
        };
        pki(&["init", "--cluster", &layout.cluster])?;
        let mut names = vec!["admin".to_owned()];
        pki(&["issue", "--role", "admin", "--name", "admin"])?;
        for node in &layout.control_planes {
            pki(&[
                "issue", "--role", "control", "--days", "30", "--name", &node.name,
            ])?;
            names.push(node.name.clone());
        }
        for relay in &layout.relays {
            pki(&[
                "issue",
                "--role",
                "relay",
                "--days",
                "30",
                "--name",
                &relay.name,
            ])?;
            names.push(relay.name.clone());
            let name = public(&relay.name);
            let host = format!("{}.{}.example", relay.name, layout.cluster);
            pki(&[
                "issue", "--public", "--days", "30", "--name", &name, "--dns", &host,
            ])?;
            names.push(name);
        }
        Ok(Self { folder, names })
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.folder.join(name)).with_context(|| name.to_owned())
    }

    fn leaves(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let files = self
            .names
            .iter()
            .flat_map(|name| [format!("{name}.crt"), format!("{name}.key")]);
        files
            .map(|file| Ok((file.clone(), self.read(&file)?)))
            .collect()
    }
}

/// A figure about certificates of one kind, as a process shows it.
async fn figure(layout: &Layout, name: &str, what: &str, kind: &str) -> Result<f64> {
    let address = layout.metrics(name).context("metrics")?;
    let text = http_get(address, "/metrics").await?;
    let begin = format!("sealane_certificate_{what}{{certificate=\"{kind}\"}} ");
    let mut values = text.lines().filter_map(|line| line.strip_prefix(&begin));
    let value = values.next().with_context(|| format!("{name}: {begin}"))?;
    Ok(value.trim().parse()?)
}

/// Waits until the figures of everybody who has such certificates are at least that.
async fn everybody(layout: &Layout, what: &str, kind: &str, least: f64) -> Result<()> {
    for name in layout.names() {
        if kind == "public" && !layout.relays.iter().any(|relay| relay.name == name) {
            continue;
        }
        wait::until(&format!("{name}: {kind} {what}"), PATIENCE, || async {
            let now = figure(layout, &name, what, kind).await?;
            ensure!(now >= least, "{now} of {least}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// The certificate that a listener with TLS from the first octet shows now.
async fn shown(address: SocketAddr) -> Result<CertificateDer<'static>> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from("relay.example")?;
    let connecting = TlsConnector::from(tls::blind_client()?).connect(name, tcp);
    let stream = tokio::time::timeout(PATIENCE, connecting).await??;
    let chain = stream.get_ref().1.peer_certificates();
    let first = chain.and_then(<[_]>::first).context("no certificate")?;
    Ok(first.clone().into_owned())
}

fn certificate(pem: &[u8]) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem).map_err(|e| anyhow::anyhow!("{e}"))
}

fn half(octets: Vec<u8>) -> Vec<u8> {
    octets.get(..octets.len() / 2).unwrap_or_default().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_certificate_is_replaced_while_mail_flows() -> Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    let layout = cluster.layout.clone();
    let mut volume = Volume::of(&layout.root.join("pki"))?;
    let successor = Successor::of(&layout)?;
    let (old_ca, new_ca) = (volume.read("ca.crt")?, successor.read("ca.crt")?);
    let old_admin = layout.root.join("old-admin");
    fs::create_dir(&old_admin)?;
    for file in ["admin.crt", "admin.key"] {
        fs::write(old_admin.join(file), volume.read(file)?)?;
    }
    let both = [old_ca.clone(), new_ca.clone()].concat();
    let relay = layout.relays.first().context("a relay")?.clone();
    let public_file = format!("{}.crt", public(&relay.name));
    let before = shown(relay.submissions).await?;
    ensure!(before == certificate(&volume.read(&public_file)?)?, "shown");

    // Processes that start look for each other in vain for a moment.
    let names = layout.names();
    let starts: Vec<u64> = names.iter().map(|name| cluster.log_length(name)).collect();
    let ledger = Arc::new(Ledger::default());
    let mut load = Load::new(cluster.all_targets(), 6).pause(Duration::from_millis(50));
    // New sessions all the time.
    load.per_connection = 3;
    let load = load::start(load, &ledger);

    // Everybody understands both, then everybody shows the new, then nobody understands the old.
    volume.swap(&[("ca.crt".to_owned(), both)])?;
    everybody(&layout, "reloads_total", "identity", 1.0).await?;
    volume.swap(&successor.leaves()?)?;
    everybody(&layout, "reloads_total", "identity", 2.0).await?;
    everybody(&layout, "reloads_total", "public", 1.0).await?;
    volume.swap(&[("ca.crt".to_owned(), new_ca.clone())])?;
    everybody(&layout, "reloads_total", "identity", 3.0).await?;
    let after = shown(relay.submissions).await?;
    ensure!(
        after == certificate(&successor.read(&public_file)?)?,
        "not the new one"
    );

    // Files that are no good: everybody goes on with what there is, and says so.
    let good: Vec<(String, Vec<u8>)> = ["ca.crt".to_owned(), public_file.clone()]
        .into_iter()
        .map(|file| Ok((file.clone(), volume.read(&file)?)))
        .collect::<Result<_>>()?;
    let bad: Vec<(String, Vec<u8>)> = good
        .iter()
        .map(|(file, octets)| (file.clone(), half(octets.clone())))
        .collect();
    volume.swap(&bad)?;
    everybody(&layout, "reload_failures_total", "identity", 2.0).await?;
    ensure!(figure(&layout, &relay.name, "reload_failures_total", "public").await? >= 1.0);
    ensure!(
        shown(relay.submissions).await? == after,
        "a bad file is shown"
    );
    volume.swap(&good)?;
    tokio::time::sleep(LOOKS).await;

    load.stop().await;
    let verdict = ledger.settle(cluster.sink.store(), PATIENCE).await?;
    println!("{verdict}");
    verdict.holds()?;
    let failed = verdict.temporary + verdict.permanent + verdict.unknown + verdict.broken;
    ensure!(failed == 0, "sessions failed: {verdict}");
    ensure!(verdict.duplicates == 0, "{verdict}");
    for (name, start) in names.iter().zip(starts) {
        let log = cluster.log_since(name, start);
        let trouble = log.lines().find(|l| TROUBLE.iter().any(|t| l.contains(t)));
        ensure!(trouble.is_none(), "{name}: {trouble:?}");
        let said = log.matches("cannot be used: the old ones stay").count();
        let files = if *name == relay.name { 2 } else { 1 };
        ensure!(said == files, "{name} complained {said} times, not {files}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        for kind in ["identity", "ca"] {
            let days = (figure(&layout, name, "not_after_seconds", kind).await? - now) / 86_400.0;
            let expected = if kind == "ca" { 3650.0 } else { 30.0 };
            ensure!((days - expected).abs() < 2.0, "{name}: {kind} {days}");
        }
    }

    // Who comes with the old authority is a stranger now; whoever starts finds the others.
    let status = ["cluster", "status"];
    cluster.admin_json(&status).await?;
    let stranger = Command::new(layout.sealane())
        .args(status)
        .env("SEALANE_CONTROL", layout.control_addresses())
        .env("SEALANE_CERT", old_admin.join("admin.crt"))
        .env("SEALANE_KEY", old_admin.join("admin.key"))
        .env("SEALANE_CA", layout.ca())
        .output()?;
    ensure!(!stranger.status.success(), "the old authority still counts");
    let control = layout
        .control_planes
        .first()
        .context("a node")?
        .name
        .clone();
    for name in [control, relay.name.clone()] {
        cluster.terminate(&name, Duration::from_secs(30)).await?;
        cluster.start(&name)?;
        cluster.ready(&name, Duration::from_secs(30)).await?;
    }
    cluster.pass()
}
