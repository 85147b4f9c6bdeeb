//! A kubelet, scheduler and provisioner of volumes in one, for pods whose containers are our own binaries.
//!
//! Every pass reads all pods, claims and Services, compares with what runs here, and acts: nothing is kept that the API
//! server does not know, but for the processes themselves. As a kubelet does, it sends SIGTERM when a pod is deleted
//! (after its `preStop` sleep), SIGKILL when the grace period is over, and only then lets the pod go.

mod claims;
mod container;
mod pod;
mod status;
mod volumes;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::addresses::{Directory, Name, ReadyPod, Service};
use super::api::Api;
use super::cluster::{Cluster, MACHINE};
use super::manifests::{items, text};
use crate::tools;
use pod::LocalPod;

/// Between passes.
const PAUSE: Duration = Duration::from_millis(150);

/// Which pods are run. The others stay pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    Everything,
    /// Those of the operator.
    Operator,
}

/// What every part of the kubelet needs.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) api: Api,
    /// Folder of the test's Kubernetes.
    pub(super) root: PathBuf,
    /// Folder of our binaries.
    pub(super) binaries: PathBuf,
    pub(super) directory: Directory,
    /// URL of the API server.
    pub(super) server: String,
    /// The API server's CA.
    pub(super) ca: PathBuf,
}

#[derive(Debug, Default)]
struct State {
    /// By uid.
    pods: BTreeMap<String, LocalPod>,
    /// Folders of volumes, by the uid of their claim.
    volumes: BTreeMap<String, PathBuf>,
    /// The last failure of a pass, so that it is printed once.
    failure: String,
}

/// A running kubelet. Dropping it kills every process that it started.
#[derive(Debug)]
pub struct Kubelet {
    setting: Arc<Setting>,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Kubelet {
    /// Begins to make pods run.
    ///
    /// # Errors
    /// When our binaries are not built.
    pub fn start(cluster: &Cluster, scope: Scope) -> Result<Self> {
        let setting = Arc::new(Setting {
            api: cluster.api.clone(),
            root: cluster.root.clone(),
            binaries: tools::folder()?,
            directory: Directory::default(),
            server: cluster.server.clone(),
            ca: cluster.pki.ca(),
        });
        let state = Arc::new(Mutex::new(State::default()));
        let task = tokio::spawn(run(Arc::clone(&setting), Arc::clone(&state), scope));
        Ok(Self {
            setting,
            state,
            task,
        })
    }

    /// Where pods and Services are.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.setting.directory
    }

    /// SIGKILL to the processes of a pod; they are started again, as after any crash. False: none runs.
    pub async fn kill(&self, namespace: &str, pod: &str) -> bool {
        let mut state = self.state.lock().await;
        let named = |p: &&mut LocalPod| p.name.0 == namespace && p.name.1 == pod;
        state
            .pods
            .values_mut()
            .find(named)
            .is_some_and(LocalPod::kill)
    }

    /// Names of the pods of a namespace that have a process here.
    pub async fn running(&self, namespace: &str) -> Vec<String> {
        let state = self.state.lock().await;
        let here = state
            .pods
            .values()
            .filter(|p| p.name.0 == namespace && p.runs());
        here.map(|p| p.name.1.clone()).collect()
    }

    /// Kills every process and makes no pod run any more.
    pub async fn stop(&self) {
        self.task.abort();
        self.state.lock().await.pods.clear();
    }

    /// What the processes of all pods of that name said, restarts included.
    #[must_use]
    pub fn log(&self, namespace: &str, pod: &str) -> String {
        let folder = log_folder(&self.setting.root);
        let prefix = format!("{namespace}.{pod}.");
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        files
            .filter(|f| f.file_name().to_string_lossy().starts_with(&prefix))
            .filter_map(|f| std::fs::read_to_string(f.path()).ok())
            .collect()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        // With the task go the last owners of the processes, which are killed when they are dropped.
        self.task.abort();
    }
}

pub(super) fn log_folder(root: &Path) -> PathBuf {
    root.join("log")
}

async fn run(setting: Arc<Setting>, state: Arc<Mutex<State>>, scope: Scope) {
    loop {
        {
            let mut state = state.lock().await;
            let failure = match pass(&setting, &mut state, scope).await {
                Ok(()) => String::new(),
                Err(error) => format!("{error:#}"),
            };
            if !failure.is_empty() && failure != state.failure {
                println!("kubelet: {failure}");
            }
            state.failure = failure;
        }
        sleep(PAUSE).await;
    }
}

async fn pass(setting: &Setting, state: &mut State, scope: Scope) -> Result<()> {
    let api = &setting.api;
    let claims = api.list("/api/v1/persistentvolumeclaims").await?;
    claims::tend(setting, &mut state.volumes, &claims).await?;
    let services = api.list("/api/v1/services").await?;
    let pods = api.list("/api/v1/pods").await?;

    let mut failures = Vec::new();
    let mut there = BTreeSet::new();
    let mut ready = Vec::new();
    for pod in pods.iter().filter(|p| in_scope(p, scope)) {
        let uid = text(pod, "/metadata/uid").to_owned();
        there.insert(uid.clone());
        if let Err(error) = tend(setting, state, pod, &uid).await {
            failures.push(error.context(title(pod)));
        }
        let here = state.pods.get(&uid).is_some_and(LocalPod::is_ready);
        if here && pod.pointer("/metadata/deletionTimestamp").is_none() {
            ready.push(facts(pod));
        }
    }
    // Deleted by force: the API server knows them no more.
    state.pods.retain(|uid, _| there.contains(uid));
    setting
        .directory
        .update(ready, services.iter().map(service).collect());
    match failures.into_iter().next() {
        None => Ok(()),
        Some(first) => Err(first),
    }
}

fn in_scope(pod: &Value, scope: Scope) -> bool {
    scope == Scope::Everything
        || text(pod, "/metadata/labels/app.kubernetes.io~1name") == "sealane-operator"
}

fn title(pod: &Value) -> String {
    format!("pod {}", text(pod, "/metadata/name"))
}

pub(super) fn path(pod: &Value) -> String {
    format!(
        "/api/v1/namespaces/{}/pods/{}",
        text(pod, "/metadata/namespace"),
        text(pod, "/metadata/name")
    )
}

/// One step with one pod.
async fn tend(setting: &Setting, state: &mut State, pod: &Value, uid: &str) -> Result<()> {
    let phase = text(pod, "/status/phase");
    if matches!(phase, "Succeeded" | "Failed") && !state.pods.contains_key(uid) {
        return Ok(());
    }
    let going = pod.pointer("/metadata/deletionTimestamp").is_some();
    if text(pod, "/spec/nodeName").is_empty() {
        // A pod without a machine goes at once when it is deleted.
        return if going || !claims::are_bound(pod, &state.volumes, setting).await? {
            Ok(())
        } else {
            bind(setting, pod).await
        };
    }
    let local = match state.pods.entry(uid.to_owned()) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(_) if going => return setting.api.delete_now(&path(pod), uid).await,
        Entry::Vacant(free) => {
            free.insert(LocalPod::new(setting, pod).context("cannot be run here")?)
        }
    };
    if going {
        let grace = pod
            .pointer("/metadata/deletionGracePeriodSeconds")
            .and_then(Value::as_u64);
        if local.stop(pod, Duration::from_secs(grace.unwrap_or(30))) {
            setting.api.delete_now(&path(pod), uid).await?;
            state.pods.remove(uid);
            return Ok(());
        }
        local.probe().await;
        return local.say(setting, pod).await;
    }
    let laid = volumes::lay(setting, pod, local, &state.volumes).await;
    if local.laid_at.is_some() {
        // What is there stays as it is if its objects cannot be read.
        local.keep_running()?;
    }
    local.probe().await;
    local.say(setting, pod).await?;
    laid
}

async fn bind(setting: &Setting, pod: &Value) -> Result<()> {
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": { "name": text(pod, "/metadata/name") },
        "target": { "apiVersion": "v1", "kind": "Node", "name": MACHINE },
    });
    let path = format!("{}/binding", path(pod));
    setting.api.post(&path, &binding).await.map(|_| ())
}

fn strings(object: Option<&Value>) -> BTreeMap<String, String> {
    let pairs = object.and_then(Value::as_object).into_iter().flatten();
    pairs
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

fn name(object: &Value) -> Name {
    (
        text(object, "/metadata/namespace").to_owned(),
        text(object, "/metadata/name").to_owned(),
    )
}

fn number(object: &Value, path: &str) -> Option<u16> {
    object.pointer(path)?.as_u64()?.try_into().ok()
}

fn facts(pod: &Value) -> ReadyPod {
    let ports = items(pod, "/spec/containers").flat_map(|c| items(c, "/ports"));
    ReadyPod {
        name: name(pod),
        labels: strings(pod.pointer("/metadata/labels")),
        ports: ports
            .filter_map(|p| Some((text(p, "/name").to_owned(), number(p, "/containerPort")?)))
            .collect(),
    }
}

fn service(object: &Value) -> (Name, Service) {
    let ports = items(object, "/spec/ports").filter_map(|port| {
        let number = number(port, "/port")?;
        let target = match port.pointer("/targetPort") {
            Some(Value::String(name)) => name.clone(),
            Some(Value::Number(n)) => n.to_string(),
            _ => number.to_string(),
        };
        Some((number, target))
    });
    let service = Service {
        selector: strings(object.pointer("/spec/selector")),
        ports: ports.collect(),
    };
    (name(object), service)
}
