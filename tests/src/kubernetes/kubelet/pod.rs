//! A pod that is bound to this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::container::{Container, Probe, now};
use super::{Setting, log_folder, path, status};
use crate::kubernetes::addresses::{Directory, Name};
use crate::kubernetes::manifests::{items, text};
use crate::process::Spec;

/// Where libraries write; it is told to them by a variable, as its path is no longer than others'.
const SCRATCH: &str = "/tmp";

/// It was deleted.
#[derive(Debug)]
struct Stopping {
    since: Instant,
    told: bool,
}

/// A pod and its processes.
#[derive(Debug)]
pub(super) struct LocalPod {
    pub(super) name: Name,
    folder: PathBuf,
    /// Paths in the containers, and where they are.
    mounts: Vec<(String, PathBuf)>,
    /// Container ports.
    ports: Vec<u16>,
    pub(super) containers: Vec<Container>,
    /// Versions of the objects that volumes are made of.
    versions: BTreeMap<String, String>,
    pub(super) laid_at: Option<Instant>,
    again: bool,
    stopping: Option<Stopping>,
    pub(super) began: String,
    pub(super) ready_since: String,
    /// The status that was written last.
    said: Value,
}

impl LocalPod {
    pub(super) fn new(setting: &Setting, pod: &Value) -> Result<Self> {
        ensure!(
            items(pod, "/spec/initContainers").next().is_none(),
            "init containers are not known here"
        );
        let name = super::name(pod);
        let folder = setting.root.join("pods").join(text(pod, "/metadata/uid"));
        fs::create_dir_all(&folder)?;
        fs::create_dir_all(log_folder(&setting.root))?;
        let mut mounts = Vec::new();
        let mut ports = Vec::new();
        for container in items(pod, "/spec/containers") {
            for mount in items(container, "/volumeMounts") {
                ensure!(
                    mount.get("subPath").is_none(),
                    "subPath is not known here: {mount}"
                );
                let place = folder.join("volumes").join(text(mount, "/name"));
                mounts.push((text(mount, "/mountPath").to_owned(), place));
            }
            ports.extend(
                items(container, "/ports").filter_map(|p| super::number(p, "/containerPort")),
            );
        }
        let mut local = Self {
            name,
            folder,
            mounts,
            ports,
            containers: Vec::new(),
            versions: BTreeMap::new(),
            laid_at: None,
            again: !matches!(text(pod, "/spec/restartPolicy"), "Never" | "OnFailure"),
            stopping: None,
            began: now(),
            ready_since: now(),
            said: Value::Null,
        };
        for container in items(pod, "/spec/containers") {
            let made = local.container(setting, pod, container)?;
            local.containers.push(made);
        }
        Ok(local)
    }

    fn container(&self, setting: &Setting, pod: &Value, container: &Value) -> Result<Container> {
        let name = text(container, "/name");
        let command = container.pointer("/command/0").and_then(Value::as_str);
        let command = command.context("no command: what an image would start is not known here")?;
        let program = Path::new(command).file_name().context("command")?;
        let program = setting.binaries.join(program);
        ensure!(program.is_file(), "{} is not built", program.display());
        let mut environment: Vec<(String, String)> = Vec::new();
        for variable in items(container, "/env") {
            let key = text(variable, "/name").to_owned();
            let value = match variable.pointer("/valueFrom") {
                None => self.expand(setting, text(variable, "/value"), &environment)?,
                Some(from) => match text(from, "/fieldRef/fieldPath") {
                    "metadata.name" => self.name.1.clone(),
                    "metadata.namespace" => self.name.0.clone(),
                    "metadata.uid" => text(pod, "/metadata/uid").to_owned(),
                    "spec.nodeName" => text(pod, "/spec/nodeName").to_owned(),
                    _ => bail!("a variable from where it is not known here: {variable}"),
                },
            };
            environment.push((key, value));
        }
        let args = items(container, "/args").filter_map(Value::as_str);
        let args = args
            .map(|arg| self.expand(setting, arg, &environment))
            .collect::<Result<Vec<_>>>()?;
        if let Some((_, place)) = self.mounts.iter().find(|(path, _)| path == SCRATCH) {
            environment.push(("TMPDIR".to_owned(), place.display().to_string()));
        }
        environment.push((
            "KUBECONFIG".to_owned(),
            self.kubeconfig().display().to_string(),
        ));
        let spec = Spec {
            name: format!("{}/{name}", self.name.1),
            program,
            args,
            namespace: None,
            environment,
            folder: self.folder.clone(),
            log: log_folder(&setting.root)
                .join(format!("{}.{}.{name}.log", self.name.0, self.name.1)),
        };
        let probe = self.probe_of(setting, container)?;
        Ok(Container::new(
            name.to_owned(),
            text(container, "/image").to_owned(),
            spec,
            probe,
        ))
    }

    fn probe_of(&self, setting: &Setting, container: &Value) -> Result<Probe> {
        let Some(probe) = container.pointer("/readinessProbe") else {
            return Ok(Probe::None);
        };
        let port = probe
            .pointer("/httpGet/port")
            .or_else(|| probe.pointer("/tcpSocket/port"));
        let port = match port {
            Some(Value::String(name)) => {
                let named = items(container, "/ports").find(|p| text(p, "/name") == name);
                named.and_then(|p| super::number(p, "/containerPort"))
            }
            Some(number) => number.as_u64().and_then(|n| n.try_into().ok()),
            None => None,
        };
        let port = port.with_context(|| format!("a probe that is not known here: {probe}"))?;
        let address = setting.directory.pod(&self.name.0, &self.name.1, port)?;
        Ok(
            match probe.pointer("/httpGet/path").and_then(Value::as_str) {
                Some(path) => Probe::Http(address, path.to_owned()),
                None => Probe::Tcp(address),
            },
        )
    }

    /// `$(VARIABLE)`, names and paths of a value.
    fn expand(
        &self,
        setting: &Setting,
        value: &str,
        environment: &[(String, String)],
    ) -> Result<String> {
        let mut value = value.to_owned();
        for (key, is) in environment {
            value = value.replace(&format!("$({key})"), is);
        }
        self.rewrite(&setting.directory, &value)
    }

    /// Puts addresses and paths of this machine in the place of those of the pod.
    pub(super) fn rewrite(&self, directory: &Directory, value: &str) -> Result<String> {
        let mut value = directory.rewrite(value, &self.name, &self.ports)?;
        for (path, place) in self.mounts.iter().filter(|(path, _)| path != SCRATCH) {
            value = value.replace(&format!("{path}/"), &format!("{}/", place.display()));
        }
        Ok(value)
    }

    pub(super) fn volume(&self, name: &str) -> PathBuf {
        self.folder.join("volumes").join(name)
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// Whether an object is another version than the one that a volume was made of; from now on it is not.
    pub(super) fn has_changed(&mut self, volume: &str, object: &Value) -> bool {
        let version = format!(
            "{} {}",
            text(object, "/metadata/uid"),
            text(object, "/metadata/resourceVersion")
        );
        self.versions.insert(volume.to_owned(), version.clone()) != Some(version)
    }

    pub(super) fn runs(&self) -> bool {
        self.containers.iter().any(|c| c.running.is_some())
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.containers.is_empty() && self.containers.iter().all(|c| c.ready)
    }

    /// A process that ends is started again.
    pub(super) fn starts_again(&self) -> bool {
        self.again && self.stopping.is_none()
    }

    pub(super) fn keep_running(&mut self) -> Result<()> {
        let again = self.again;
        self.containers
            .iter_mut()
            .try_for_each(|c| c.keep_running(again))
    }

    /// SIGKILL; false if nothing runs.
    pub(super) fn kill(&mut self) -> bool {
        let runs = self.runs();
        for container in &self.containers {
            container.signal(Signal::SIGKILL);
        }
        runs
    }

    /// Goes on stopping; true once nothing runs any more.
    pub(super) fn stop(&mut self, pod: &Value, grace: Duration) -> bool {
        let now = Instant::now();
        let stopping = self.stopping.get_or_insert(Stopping {
            since: now,
            told: false,
        });
        let pause = items(pod, "/spec/containers")
            .filter_map(|c| c.pointer("/lifecycle/preStop/sleep/seconds")?.as_u64())
            .max()
            .unwrap_or(0);
        let passed = now.duration_since(stopping.since);
        if !stopping.told && passed >= Duration::from_secs(pause) {
            stopping.told = true;
            for container in &self.containers {
                container.signal(Signal::SIGTERM);
            }
        }
        for container in &mut self.containers {
            if passed >= grace {
                container.signal(Signal::SIGKILL);
            }
            let _looked = container.look();
        }
        !self.runs()
    }

    pub(super) async fn probe(&mut self) {
        let before = self.is_ready();
        for container in &mut self.containers {
            container.ask().await;
        }
        if self.is_ready() != before {
            self.ready_since = now();
        }
    }

    /// Writes the status if it is another one.
    pub(super) async fn say(&mut self, setting: &Setting, pod: &Value) -> Result<()> {
        let status = status::of(self);
        if status == self.said {
            return Ok(());
        }
        let patch = serde_json::json!({ "metadata": { "uid": text(pod, "/metadata/uid") }, "status": status });
        setting
            .api
            .merge(&format!("{}/status", path(pod)), &patch)
            .await?;
        self.said = status;
        Ok(())
    }
}

impl Drop for LocalPod {
    fn drop(&mut self) {
        // Who is killed first closes its files before they go.
        self.containers.clear();
        let _kept_for_nobody = fs::remove_dir_all(&self.folder);
    }
}
