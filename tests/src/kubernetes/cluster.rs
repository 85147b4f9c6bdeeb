//! The servers of Kubernetes as processes.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use super::api::Api;
use super::assets;
use super::pki::{Pki, Who, kubeconfig};
use crate::process::{Lifetime, Running, Spec};
use crate::{ports, tools, wait};

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Until the API server answers.
const START: Duration = Duration::from_secs(120);

/// Those that the tests need. None looks after machines: there are none.
const CONTROLLERS: [&str; 9] = [
    "deployment-controller",
    "disruption-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "persistentvolumeclaim-protection-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "statefulset-controller",
];

/// The machine that every pod is bound to.
pub(super) const MACHINE: &str = "machine-1";

/// A running Kubernetes. Dropping it kills its processes. Unless the test ends with [`Cluster::pass`], its
/// folder stays and is printed.
#[derive(Debug)]
pub struct Cluster {
    /// Everything of this cluster.
    pub root: PathBuf,
    /// With the identity of an administrator.
    pub api: Api,
    pub(super) server: String,
    pub(super) pki: Pki,
    programs: PathBuf,
    processes: Vec<(String, Running)>,
    folder: Option<TempDir>,
    passed: bool,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts etcd, the API server and the controllers, and waits until they work.
    ///
    /// # Errors
    /// When the programs are not there, or do not come up.
    pub async fn start() -> Result<Self> {
        let programs = assets::folder()?;
        let turn = ONE_AT_A_TIME.lock().await;
        let began = Instant::now();
        let folder = tempfile::Builder::new().prefix("sealane-k8s-").tempdir()?;
        let root = folder.path().to_owned();
        let pki = Pki::make(root.join("pki"))?;
        let server = format!("https://{}", ports::free()?);
        let admin = root.join("admin.kubeconfig");
        kubeconfig(
            &admin,
            &server,
            &pki.ca(),
            "default",
            &Who::Certificate(&pki, "admin"),
        )?;
        let mut cluster = Self {
            api: Api::new(&admin).await?,
            root,
            server,
            pki,
            programs,
            processes: Vec::new(),
            folder: Some(folder),
            passed: false,
            _turn: turn,
        };
        cluster.come_up().await?;
        println!(
            "Kubernetes up after {:.1} s in {}",
            began.elapsed().as_secs_f32(),
            cluster.root.display()
        );
        Ok(cluster)
    }

    async fn come_up(&mut self) -> Result<()> {
        let store = self.etcd()?;
        self.api_server(&store)?;
        let api = self.api.clone();
        let outcome = wait::until("the API server is ready", START, || async {
            api.plain("/readyz").await
        })
        .await;
        self.all_alive()?;
        outcome?;
        self.controllers()?;
        self.surroundings().await?;
        let outcome = wait::until("the controllers work", START, || async {
            // Made by the service account controller.
            api.get("/api/v1/namespaces/default/serviceaccounts/default")
                .await
        })
        .await;
        self.all_alive()?;
        outcome.map(|_| ())
    }

    fn etcd(&mut self) -> Result<String> {
        let (clients, peers) = (
            format!("http://{}", ports::free()?),
            format!("http://{}", ports::free()?),
        );
        let args = [
            format!("--data-dir={}", self.root.join("etcd").display()),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=default={peers}"),
            // It goes with the test.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        self.spawn("etcd", args.into())?;
        Ok(clients)
    }

    fn api_server(&mut self, store: &str) -> Result<()> {
        let port = self.server.rsplit(':').next().context("port")?;
        let pki = &self.pki;
        let args = [
            format!("--etcd-servers={store}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", pki.certificate("server").display()),
            format!("--tls-private-key-file={}", pki.key("server").display()),
            format!("--client-ca-file={}", pki.ca().display()),
            format!(
                "--service-account-key-file={}",
                pki.certificate("tokens").display()
            ),
            format!(
                "--service-account-signing-key-file={}",
                pki.key("tokens").display()
            ),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--service-cluster-ip-range=10.0.0.0/16".to_owned(),
            // Its own address is of the loopback, which may not stand in a Service's endpoints.
            "--endpoint-reconciler-type=none".to_owned(),
            "--allow-privileged=false".to_owned(),
        ];
        self.spawn("kube-apiserver", args.into())
    }

    fn controllers(&mut self) -> Result<()> {
        let args = [
            format!("--kubeconfig={}", self.kubeconfig().display()),
            format!("--controllers={}", CONTROLLERS.join(",")),
            format!("--root-ca-file={}", self.pki.ca().display()),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
            "--kube-api-qps=200".to_owned(),
            "--kube-api-burst=400".to_owned(),
        ];
        self.spawn("kube-controller-manager", args.into())
    }

    /// What a cluster has beside servers: a machine, and a class of volumes that may grow.
    async fn surroundings(&self) -> Result<()> {
        let machine =
            json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": MACHINE } });
        self.api.post("/api/v1/nodes", &machine).await?;
        let class = json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": "standard",
                "annotations": { "storageclass.kubernetes.io/is-default-class": "true" },
            },
            "provisioner": "test.sealane.io/folder",
            "allowVolumeExpansion": true,
            "volumeBindingMode": "Immediate",
        });
        self.api
            .post("/apis/storage.k8s.io/v1/storageclasses", &class)
            .await?;
        Ok(())
    }

    fn spawn(&mut self, program: &str, args: Vec<String>) -> Result<()> {
        let spec = Spec {
            name: program.to_owned(),
            program: self.programs.join(program),
            args,
            namespace: None,
            environment: vec![("GOMAXPROCS".to_owned(), "2".to_owned())],
            folder: self.root.join("run"),
            log: self.root.join(format!("{program}.log")),
        };
        let child = spec.spawn(Lifetime::WithParent)?;
        self.processes
            .push((program.to_owned(), Running::new(child)));
        Ok(())
    }

    /// Fails if a server ended by itself.
    ///
    /// # Errors
    /// Names it and shows the end of its log.
    pub fn all_alive(&mut self) -> Result<()> {
        for (name, running) in &mut self.processes {
            if let Some(status) = running.try_wait()? {
                let log =
                    fs::read_to_string(self.root.join(format!("{name}.log"))).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines
                    .get(lines.len().saturating_sub(15)..)
                    .unwrap_or(&lines);
                bail!("{name} ended by itself with {status}:\n{}", tail.join("\n"));
            }
        }
        Ok(())
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("admin.kubeconfig")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command
            .env("KUBECONFIG", self.kubeconfig())
            // Nobody's own settings, plugins and caches.
            .env("HOME", self.root.join("home"))
            .env("HELM_CACHE_HOME", self.root.join("home/helm-cache"))
            .env("HELM_CONFIG_HOME", self.root.join("home/helm-config"))
            .env("HELM_DATA_HOME", self.root.join("home/helm-data"));
        command
    }

    /// Runs kubectl as the administrator and gives what it prints.
    ///
    /// # Errors
    /// When it ends with a failure; the error carries what it said.
    pub async fn kubectl<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        let mut command = self.command("kubectl");
        command.args(args);
        run(command).await
    }

    /// Runs helm as the administrator and gives what it prints.
    ///
    /// # Errors
    /// When it ends with a failure; the error carries what it said.
    pub async fn helm<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        let mut command = self.command("helm");
        command.args(args);
        run(command).await
    }

    /// Applies objects as a user would, and gives what kubectl says.
    ///
    /// # Errors
    /// When one is refused: with the API server's words.
    pub async fn apply(&self, objects: &[Value]) -> Result<String> {
        self.apply_with(objects, &[]).await
    }

    /// The same with further arguments, `--dry-run=server` for example.
    ///
    /// # Errors
    /// When one is refused: with the API server's words.
    pub async fn apply_with(&self, objects: &[Value], more: &[&str]) -> Result<String> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        let file = self.write("applied.json", &list.to_string())?;
        let file = file.display().to_string();
        let mut args = vec![
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            file.as_str(),
        ];
        args.extend(more);
        self.kubectl(&args).await
    }

    /// Makes a namespace in which only restricted pods are let in.
    ///
    /// # Errors
    /// When it exists.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": name, "labels": { "pod-security.kubernetes.io/enforce": "restricted" } },
        });
        self.api.post("/api/v1/namespaces", &namespace).await?;
        Ok(())
    }

    /// Writes a file into this cluster's folder and gives its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = self.root.join("files");
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{number}-{name}"));
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// The test reached its end: the folder goes.
    ///
    /// # Errors
    /// When a server ended meanwhile.
    pub fn pass(mut self) -> Result<()> {
        self.all_alive()?;
        ensure!(!self.processes.is_empty(), "nothing ran");
        self.passed = true;
        Ok(())
    }
}

async fn run(mut command: Command) -> Result<String> {
    let output = tokio::task::spawn_blocking(move || tools::run(&mut command)).await??;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Clients before servers.
        while let Some((_, running)) = self.processes.pop() {
            drop(running);
        }
        let keep = !self.passed || std::env::var_os("SEALANE_KEEP").is_some();
        if keep && let Some(folder) = self.folder.take() {
            println!("logs stay in {}", show(&folder.keep()));
        }
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}
