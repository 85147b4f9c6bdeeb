//! A relay as a user would make it: the chart's values, Secrets, policy; and the admin's way in.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use data_encoding::BASE64;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use super::manifests::{condition, text};
use super::{Cluster, Kubelet, assets};
use crate::ledger::Ledger;
use crate::load::{self, Kind, Load, Target};
use crate::policy::{PASSWORD, SERVED, SUBMITTER};
use crate::sink::{Sink, SinkConfig};
use crate::{ports, tls, tools, wait};

/// Namespace of everything.
pub const NAMESPACE: &str = "mail";
/// The release and the RelayCluster.
pub const NAME: &str = "mail";
/// Its name in greetings.
pub const HOSTNAME: &str = "mx.mail.example";
/// Secret with the public certificate.
pub const CERTIFICATE: &str = "mx-tls";
/// Secret with password verifiers.
pub const SUBMITTERS: &str = "submitters";
/// Path of the RelayCluster.
pub const PATH: &str = "/apis/sealane.io/v1alpha1/namespaces/mail/relayclusters/mail";
/// Path of RelayPolicies.
pub const POLICIES: &str = "/apis/sealane.io/v1alpha1/namespaces/mail/relaypolicies";

/// Secrets with the identities of all workloads.
pub const IDENTITIES: [&str; 3] = [
    "mail-control-identity",
    "mail-relay-identity",
    "mail-operator-identity",
];

/// Control-plane nodes for which addresses are set aside.
const NODES: u32 = 7;

/// A Secret.
#[must_use]
pub fn secret(name: &str, kind: &str, data: &[(&str, &str)]) -> Value {
    let data: serde_json::Map<String, Value> = data
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(BASE64.encode(value.as_bytes()))))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "type": kind,
        "data": data,
    })
}

/// A value of a Secret, decoded; empty if it is not there.
///
/// # Errors
/// When there is no such Secret, or it holds something else than base64.
pub async fn secret_value(cluster: &Cluster, secret: &str, key: &str) -> Result<String> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets/{secret}");
    let object = cluster.api.get(&path).await?;
    let data = object.pointer("/data").and_then(|d| d.get(key));
    let found = data.and_then(Value::as_str).unwrap_or_default();
    let octets = BASE64.decode(found.as_bytes())?;
    Ok(String::from_utf8_lossy(&octets).into_owned())
}

/// The base64 of the first certificate of a PEM text, however its lines are broken.
#[must_use]
pub fn pem_body(pem: &str) -> String {
    let inside = pem
        .lines()
        .skip_while(|l| !l.starts_with("-----BEGIN"))
        .skip(1);
    inside.take_while(|l| !l.starts_with("-----END")).collect()
}

/// A fresh public certificate, in its Secret.
///
/// # Errors
/// When it cannot be made.
pub fn certificate() -> Result<Value> {
    let (certificate, key) = tls::self_signed_pem(&[HOSTNAME.to_owned()])?;
    let data = [("tls.crt", certificate.as_str()), ("tls.key", key.as_str())];
    Ok(secret(CERTIFICATE, "kubernetes.io/tls", &data))
}

/// Valid since so long, to the second.
pub(super) fn live(params: &mut CertificateParams, since: Duration, life: Duration) {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    let today = now.date();
    let midnight = rcgen::date_time_ymd(
        today.year().into(),
        today.month().unsigned_abs(),
        today.day().unsigned_abs(),
    );
    let [hours, minutes, seconds] =
        [now.hour(), now.minute(), now.second()].map(|n| u64::from(n.unsigned_abs()));
    let of_today = Duration::from_secs(hours * 3600 + minutes * 60 + seconds);
    params.not_before = midnight + of_today - since;
    params.not_after = params.not_before + life;
}

/// Life of [`authority`].
const LIFE: Duration = Duration::from_secs(90 * 3600);

/// The Secret of a CA as an earlier RelayCluster of that name would have left it, which is to be replaced (after two thirds of its
/// life) when `due` is over.
///
/// # Errors
/// When it cannot be made.
pub fn authority(due: Duration) -> Result<Value> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Sealane CA {NAME}.{NAMESPACE}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    live(&mut params, LIFE * 2 / 3 - due, LIFE);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?.pem();
    let data = [
        ("tls.crt", certificate.as_str()),
        ("tls.key", &key.serialize_pem()),
        ("ca.crt", certificate.as_str()),
    ];
    let mut secret = secret(&format!("{NAME}-ca"), "kubernetes.io/tls", &data);
    secret["metadata"]["labels"] = json!({ "sealane.io/cluster": NAME, "sealane.io/keep": "true" });
    Ok(secret)
}

/// The namespace and what a user brings: certificate and password verifiers.
///
/// # Errors
/// When the API server refuses one.
pub async fn prepare(cluster: &Cluster) -> Result<()> {
    cluster.namespace(NAMESPACE).await?;
    let verifiers = secret(SUBMITTERS, "Opaque", &[(SUBMITTER, &verifier(PASSWORD)?)]);
    cluster.apply(&[certificate()?, verifiers]).await?;
    Ok(())
}

/// What the admin CLI makes of a password, with its line end, as `--from-file` would take it over.
///
/// # Errors
/// When it fails.
fn verifier(password: &str) -> Result<String> {
    let mut child = Command::new(tools::folder()?.join("sealane"))
        .args(["policy", "verifier"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("its standard input")?;
    writeln!(input, "{password}")?;
    drop(input);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Documents as of [`crate::policy::demo`].
#[must_use]
pub fn documents(next_hop: SocketAddr) -> Value {
    json!([
        { "kind": "Domain", "name": SERVED, "recipients": "any" },
        {
            "kind": "Submitter",
            "name": SUBMITTER,
            "passwordVerifierSecretRef": { "name": SUBMITTERS, "key": SUBMITTER },
            "senders": ["*"],
        },
        {
            "kind": "Destination",
            "name": "*",
            "route": { "host": next_hop.ip().to_string(), "port": next_hop.port() },
            "tls": { "level": "encrypt" },
            "retry": { "delays": ["1s", "1s", "2s", "5s"], "lifetime": "5d", "tlsLifetime": "24h" },
            "limits": { "connections": 20, "messagesPerConnection": 100 },
        },
    ])
}

/// A RelayPolicy of the RelayCluster.
#[must_use]
pub fn policy(name: &str, documents: &Value) -> Value {
    json!({
        "apiVersion": "sealane.io/v1alpha1",
        "kind": "RelayPolicy",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": { "clusterRef": { "name": NAME }, "documents": documents },
    })
}

/// Values for the chart: a RelayCluster and, if there is a next hop, its policy.
///
/// # Errors
/// When no port is free.
pub fn values(kubelet: &Kubelet, next_hop: Option<SocketAddr>) -> Result<Value> {
    let directory = kubelet.directory();
    let mut endpoints = Vec::new();
    for ordinal in 0..NODES {
        let address = directory.pod(NAMESPACE, &format!("{NAME}-control-{ordinal}"), 7000)?;
        endpoints.push(address.to_string());
    }
    // What `helm test` listens on stands in a policy, which nobody rewrites.
    let port = ports::free()?.port();
    directory.keep(NAMESPACE, &format!("{NAME}-sealane-test"), port);
    let policies = next_hop.map(|hop| json!([{ "name": "base", "documents": documents(hop) }]));
    Ok(json!({
        "image": { "repository": "sealane", "tag": "one" },
        "operator": {
            "replicas": 1,
            "logFormat": "text",
            // Files follow their Secrets in two seconds here, and are read again every five.
            "extraArgs": ["--allow-endpoint-override", "--secret-propagation=20"],
        },
        "cluster": {
            "enabled": true,
            "name": NAME,
            "annotations": { "sealane.io/control-endpoints": endpoints.join(",") },
            "spec": spec(),
        },
        "policies": policies.unwrap_or_else(|| json!([])),
        "test": { "host": "127.0.0.1", "port": port },
    }))
}

/// `spec` of the RelayCluster: small, and quick to notice things. How many relay nodes is left to `kubectl scale`.
#[must_use]
pub fn spec() -> Value {
    json!({
        "relay": {
            "hostname": HOSTNAME,
            "certificate": { "secretName": CERTIFICATE },
            "drainSeconds": 10,
        },
        "controlPlane": {
            "replicas": 3,
            "copies": 3,
            "shards": 4,
            "storage": { "size": "1Gi" },
            "config": { "lease": "10s" },
        },
        "telemetry": { "logFormat": "text", "logFilter": "info,openraft=error" },
    })
}

/// `helm install`, or `upgrade` if the release is there.
///
/// # Errors
/// When helm refuses.
pub async fn install(cluster: &Cluster, values: &Value) -> Result<String> {
    let file = cluster
        .write("values.json", &values.to_string())?
        .display()
        .to_string();
    let chart = assets::chart()?.display().to_string();
    let args = [
        "upgrade",
        "--install",
        NAME,
        &chart,
        "--namespace",
        NAMESPACE,
        "--values",
        &file,
    ];
    cluster.helm(&args).await
}

/// What mail is delivered to.
///
/// # Errors
/// When it cannot listen.
pub async fn next_hop(cluster: &Cluster) -> Result<Sink> {
    let folder = cluster.root.join("sink");
    Sink::start(SinkConfig::at(([127, 0, 0, 1], 0).into(), folder)).await
}

/// Until every Secret has followed a change of the CA.
const EXCHANGE: Duration = Duration::from_secs(400);
/// Until every process has read its files again, and a while with them.
const READ: Duration = Duration::from_secs(15);
const LIMIT: Duration = Duration::from_secs(120);

/// Mail that flows while certificates are exchanged, and must not notice.
#[derive(Debug)]
pub struct Exchange {
    ledger: Arc<Ledger>,
    load: load::Running,
    pods: Vec<String>,
    began: Instant,
}

impl Exchange {
    /// # Errors
    /// When no port is free.
    pub async fn begin(kubelet: &Kubelet) -> Result<Self> {
        let ledger = Arc::new(Ledger::default());
        let load = Load::new(targets(kubelet)?, 6).pause(Duration::from_millis(50));
        Ok(Self {
            load: load::start(load, &ledger),
            ledger,
            pods: running(kubelet).await,
            began: Instant::now(),
        })
    }

    /// Waits until `old` is trusted nowhere any more and mail goes with what took its place.
    ///
    /// # Errors
    /// When that takes too long, a session failed, a message is lost, or a pod was restarted.
    pub async fn end(
        self,
        cluster: &Cluster,
        kubelet: &Kubelet,
        sink: &Sink,
        old: &str,
    ) -> Result<()> {
        wait::until("the old CA is trusted nowhere", EXCHANGE, || async {
            for name in IDENTITIES {
                let trusted: String = secret_value(cluster, name, "ca.crt")
                    .await?
                    .lines()
                    .collect();
                ensure!(!trusted.contains(&pem_body(old)), "{name} trusts it");
            }
            Ok(())
        })
        .await?;
        let exchanged = Instant::now() + READ;
        wait::until("mail with the new certificates", LIMIT, || async {
            let more = self.ledger.accepted_since(exchanged);
            ensure!(more >= 100, "{more}");
            Ok(())
        })
        .await?;
        until(cluster, "CertificatesReady", "True", LIMIT).await?;
        self.load.stop().await;
        let settled = self.ledger.settle(sink.store(), Duration::from_secs(60));
        let verdict = settled.await?;
        let took = self.began.elapsed().as_secs_f32();
        println!("all certificates replaced in {took:.1} s: {verdict}");
        // The sink has mail of other ledgers too.
        ensure!(
            verdict.lost.is_empty() && verdict.damaged.is_empty(),
            "{verdict}"
        );
        ensure!(
            verdict.temporary + verdict.permanent + verdict.unknown + verdict.broken == 0,
            "a session failed: {verdict}"
        );
        let (before, after) = (self.pods, running(kubelet).await);
        ensure!(
            after == before,
            "a pod was restarted: {before:?}, {after:?}"
        );
        Ok(())
    }
}

async fn running(kubelet: &Kubelet) -> Vec<String> {
    let mut pods = kubelet.running(NAMESPACE).await;
    pods.sort();
    pods
}

/// Waits until a condition of the RelayCluster has that status.
///
/// # Errors
/// When it has not in time; with all its conditions.
pub async fn until(cluster: &Cluster, kind: &str, status: &str, limit: Duration) -> Result<Value> {
    wait::until(&format!("{kind}={status}"), limit, || async {
        let object = cluster.api.get(PATH).await?;
        let current =
            object.pointer("/status/observedGeneration") == object.pointer("/metadata/generation");
        let found = condition(&object, kind);
        let is = found.is_some_and(|(now, ..)| now == status);
        ensure!(
            current && is,
            "{:#}",
            object.pointer("/status").cloned().unwrap_or_default()
        );
        Ok(object)
    })
    .await
}

/// Waits until everything is as the spec wants it, and nothing is in motion.
///
/// # Errors
/// When that takes longer than `limit`.
pub async fn settled(cluster: &Cluster, limit: Duration) -> Result<Value> {
    wait::until("the RelayCluster is settled", limit, || async {
        let object = cluster.api.get(PATH).await?;
        let current =
            object.pointer("/status/observedGeneration") == object.pointer("/metadata/generation");
        let wanted = [
            ("Available", "True"),
            ("QuorumHealthy", "True"),
            ("Progressing", "False"),
            ("Degraded", "False"),
        ];
        let all = wanted
            .iter()
            .all(|(kind, status)| condition(&object, kind).is_some_and(|(now, ..)| now == *status));
        ensure!(
            current && all,
            "{:#}",
            object.pointer("/status").cloned().unwrap_or_default()
        );
        Ok(object)
    })
    .await
}

/// All listeners of the relay's Service.
///
/// # Errors
/// When no port is free.
pub fn targets(kubelet: &Kubelet) -> Result<Vec<Target>> {
    let kinds = [
        (Kind::Mx, 25),
        (Kind::Submission, 587),
        (Kind::Submissions, 465),
    ];
    kinds
        .into_iter()
        .map(|(kind, port)| {
            let address = kubelet
                .directory()
                .service(NAMESPACE, &format!("{NAME}-smtp"), port)?;
            Ok(Target { kind, address })
        })
        .collect()
}

/// The admin CLI, with an identity of the cluster's CA, as docs/kubernetes.md tells an administrator to make one.
#[derive(Debug, Clone)]
pub struct Admin {
    binary: PathBuf,
    folder: PathBuf,
    control: String,
}

impl Admin {
    /// Takes the CA out of its Secret and issues an identity.
    ///
    /// # Errors
    /// When there is no such Secret yet, or `sealane pki` fails.
    pub async fn new(cluster: &Cluster, kubelet: &Kubelet) -> Result<Self> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets/{NAME}-ca");
        let found = cluster.api.get(&path).await?;
        let folder = cluster.root.join("admin");
        fs::create_dir_all(&folder)?;
        for (key, file) in [("tls.crt", "ca.crt"), ("tls.key", "ca.key")] {
            let value = found
                .pointer("/data")
                .and_then(|d| d.get(key))
                .and_then(Value::as_str);
            let octets =
                BASE64.decode(value.with_context(|| format!("{path} {key}"))?.as_bytes())?;
            fs::write(folder.join(file), octets)?;
        }
        fs::write(folder.join("cluster"), format!("{NAME}.{NAMESPACE}"))?;
        let binary = tools::folder()?.join("sealane");
        let mut issue = Command::new(&binary);
        issue
            .args([
                "pki", "issue", "--role", "admin", "--name", "test", "--force", "--dir",
            ])
            .arg(&folder);
        tools::run(&mut issue)?;
        let client =
            kubelet
                .directory()
                .service(NAMESPACE, &format!("{NAME}-control-client"), 7000)?;
        Ok(Self {
            binary,
            folder,
            control: client.to_string(),
        })
    }

    /// Its JSON.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub async fn json(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(&self.binary);
        command
            .args(args)
            .args(["-o", "json"])
            .env("SEALANE_CONTROL", &self.control)
            .env("SEALANE_CERT", self.folder.join("test.crt"))
            .env("SEALANE_KEY", self.folder.join("test.key"))
            .env("SEALANE_CA", self.folder.join("ca.crt"));
        let output = tokio::task::spawn_blocking(move || tools::run(&mut command)).await??;
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// Objects of a list of kinds that carry the RelayCluster's label, without pods and what makes them.
///
/// # Errors
/// When one cannot be read.
pub async fn children(cluster: &Cluster) -> Result<Vec<Value>> {
    const LISTS: [(&str, &str, &str); 10] = [
        ("/api/v1", "v1", "configmaps"),
        ("/api/v1", "v1", "secrets"),
        ("/api/v1", "v1", "serviceaccounts"),
        ("/api/v1", "v1", "services"),
        ("/api/v1", "v1", "persistentvolumeclaims"),
        ("/apis/apps/v1", "apps/v1", "deployments"),
        ("/apis/apps/v1", "apps/v1", "statefulsets"),
        (
            "/apis/autoscaling/v2",
            "autoscaling/v2",
            "horizontalpodautoscalers",
        ),
        (
            "/apis/networking.k8s.io/v1",
            "networking.k8s.io/v1",
            "networkpolicies",
        ),
        ("/apis/policy/v1", "policy/v1", "poddisruptionbudgets"),
    ];
    let mut all = Vec::new();
    for (root, version, kind) in LISTS {
        let path = format!(
            "{root}/namespaces/{NAMESPACE}/{kind}?labelSelector=sealane.io/cluster%3D{NAME}"
        );
        let list = cluster.api.get(&path).await?;
        // Items of a list do not say what they are.
        let name = text(&list, "/kind").trim_end_matches("List").to_owned();
        for item in super::manifests::items(&list, "/items") {
            let mut item = item.clone();
            item["apiVersion"] = json!(version);
            item["kind"] = json!(name);
            all.push(item);
        }
    }
    Ok(all)
}
