//! What `.run` knows about its processes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::env_file;
use crate::layout::Layout;
use crate::process::{Lifetime, ProcessId, Spec};

/// The name of the sink's process.
pub(super) const SINK: &str = "sink";

const STATE: &str = "state.json";
const LOCK: &str = "lock";

/// The content of `state.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) layout: Layout,
    pub(super) sink: SocketAddr,
    /// Where mail goes: the sink, or what `--destination` said.
    pub(super) destination: SocketAddr,
    /// Which process has which name; absent: it does not run.
    pub(super) processes: BTreeMap<String, ProcessId>,
    /// The foreground `run` that watches them.
    pub(super) supervisor: Option<ProcessId>,
}

/// A folder that this command has for itself until dropped.
#[derive(Debug)]
pub(super) struct RunFolder {
    pub(super) path: PathBuf,
    _lock: File,
}

impl RunFolder {
    /// Takes the lock, waiting for another command to end. Makes the folder if `make`.
    pub(super) fn open(path: &Path, make: bool) -> Result<Self> {
        if make {
            fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
        } else if !path.join(STATE).exists() {
            bail!("no cluster in {}: `make run` starts one", path.display());
        }
        let path = path
            .canonicalize()
            .with_context(|| format!("opening {}", path.display()))?;
        let lock = File::create(path.join(LOCK))?;
        lock.lock()
            .with_context(|| format!("locking {}", path.display()))?;
        Ok(Self { path, _lock: lock })
    }

    /// The state without the processes that are gone.
    pub(super) fn load(&self) -> Result<Option<State>> {
        let mut state = self.recorded()?;
        if let Some(state) = &mut state {
            state.forget_dead();
        }
        Ok(state)
    }

    /// The state as it was written.
    pub(super) fn recorded(&self) -> Result<Option<State>> {
        let file = self.path.join(STATE);
        if !file.exists() {
            return Ok(None);
        }
        let text = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let state = serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged; remove it", file.display()))?;
        Ok(Some(state))
    }

    /// The state of a cluster that must be there.
    pub(super) fn state(&self) -> Result<State> {
        self.load()?.with_context(|| {
            format!(
                "no cluster in {}: `make run` starts one",
                self.path.display()
            )
        })
    }

    /// Writes `state.json` and `cluster.env`, each by rename: a reader sees a whole file.
    pub(super) fn save(&self, state: &State) -> Result<()> {
        self.replace(STATE, &serde_json::to_vec_pretty(state)?)?;
        self.replace(env_file::NAME, env_file::text(state).as_bytes())
    }

    fn replace(&self, name: &str, octets: &[u8]) -> Result<()> {
        let draft = self.path.join(format!("{name}.new"));
        fs::write(&draft, octets)?;
        fs::rename(&draft, self.path.join(name)).with_context(|| format!("writing {name}"))
    }

    /// Removes what an earlier run left; refuses a folder that no run made.
    pub(super) fn clear(&self) -> Result<()> {
        let known = [STATE, LOCK, env_file::NAME];
        let names: Vec<String> = fs::read_dir(&self.path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        let foreign = !names.iter().any(|name| name == STATE)
            && names.iter().any(|name| !known.contains(&&**name));
        if foreign {
            bail!(
                "{} is not a folder of an earlier run; give another with --dir",
                self.path.display()
            );
        }
        for name in names.iter().filter(|name| *name != LOCK && *name != STATE) {
            let path = self.path.join(name);
            if path.is_dir() {
                fs::remove_dir_all(&path)?
            } else {
                fs::remove_file(&path)?
            }
        }
        if self.path.join(STATE).exists() {
            fs::remove_file(self.path.join(STATE))?;
        }
        Ok(())
    }
}

impl State {
    /// All process names, in starting order.
    pub(super) fn names(&self) -> Vec<String> {
        std::iter::once(SINK.to_owned())
            .chain(self.layout.names())
            .collect()
    }

    pub(super) fn sink_folder(&self) -> PathBuf {
        self.layout.root.join("sink")
    }

    /// What a process keeps on disk.
    pub(super) fn data(&self, name: &str) -> PathBuf {
        if name == SINK {
            self.sink_folder()
        } else {
            self.layout.data(name)
        }
    }

    pub(super) fn spec(&self, name: &str) -> Result<Spec> {
        if name != SINK {
            return self.layout.spec(name).with_context(|| {
                format!("processes of this cluster: {}", self.names().join(", "))
            });
        }
        let folder = self.sink_folder();
        let args = [
            "sink",
            "--listen",
            &self.sink.to_string(),
            "--folder",
            &folder.display().to_string(),
        ];
        Ok(Spec {
            namespace: None,
            environment: Vec::new(),
            name: SINK.to_owned(),
            program: self.layout.binaries.join("sealane-dev"),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            log: self.layout.log(SINK),
            folder,
        })
    }

    /// Starts a process and remembers it. The child is to be reaped by whoever lives longer.
    pub(super) fn spawn(&mut self, name: &str) -> Result<std::process::Child> {
        let child = self.spec(name)?.spawn(Lifetime::Detached)?;
        let id = ProcessId::of(child.id()).with_context(|| format!("{name} ended at once"))?;
        self.processes.insert(name.to_owned(), id);
        Ok(child)
    }

    /// Drops processes that are gone from the record; gives their names.
    pub(super) fn forget_dead(&mut self) -> Vec<String> {
        let dead: Vec<String> = self
            .processes
            .iter()
            .filter(|(_, id)| !id.is_alive())
            .map(|(name, _)| name.clone())
            .collect();
        for name in &dead {
            self.processes.remove(name);
        }
        if self.supervisor.is_some_and(|id| !id.is_alive()) {
            self.supervisor = None;
        }
        dead
    }

    /// The last lines that a process said.
    pub(super) fn tail(&self, name: &str) -> String {
        let text = fs::read(self.layout.log(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines
            .get(lines.len().saturating_sub(10)..)
            .unwrap_or_default()
            .join("\n")
    }
}
