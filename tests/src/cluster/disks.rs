//! Volumes that can lose power, and nodes that end by themselves because of it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::Cluster;
use crate::powerloss::{Disk, PowerLoss, Statistics};
use crate::{tools, wait};

impl Cluster {
    /// The volume of a control-plane node.
    ///
    /// # Errors
    /// When the cluster was built without disks.
    pub fn disk(&self, name: &str) -> Result<&Disk> {
        self.disks
            .get(name)
            .with_context(|| format!("{name} has no disk of its own"))
    }

    /// Names of the control-plane nodes that have a disk.
    #[must_use]
    pub fn disk_names(&self) -> Vec<String> {
        self.disks.keys().cloned().collect()
    }

    /// Power loss of these nodes at once: they are killed, and what they did not sync is gone.
    ///
    /// # Errors
    /// When one of them does not run.
    pub fn lose_power(&mut self, names: &[String], how: PowerLoss) -> Result<()> {
        // First all signals: between two nodes there is no time for an answer.
        for name in names {
            ensure!(
                self.running_mut(name)?.try_wait()?.is_none(),
                "{name} had ended by itself: {}",
                self.tail(name)
            );
            self.signal(name, Signal::SIGKILL)?;
        }
        for name in names {
            drop(self.processes.remove(name));
        }
        for name in names {
            self.disk(name)?.lose_power(how)?;
        }
        Ok(())
    }

    fn running_mut(&mut self, name: &str) -> Result<&mut crate::process::Running> {
        self.processes
            .get_mut(name)
            .with_context(|| format!("{name} does not run"))
    }

    /// What all disks counted together.
    ///
    /// # Errors
    /// When one does not answer.
    pub fn disk_statistics(&self) -> Result<Statistics> {
        let mut all = Statistics::default();
        for disk in self.disks.values() {
            all.add(&disk.statistics()?);
        }
        Ok(all)
    }

    /// Waits until a process has ended by itself; gives what it logged from octet `from` of its log on.
    ///
    /// # Errors
    /// When it still runs after `limit`, or ended with success.
    pub async fn ended(&mut self, name: &str, from: u64, limit: Duration) -> Result<String> {
        let status = {
            let running = std::cell::RefCell::new(self.running_mut(name)?);
            wait::until(&format!("{name} ended"), limit, || async {
                running.borrow_mut().try_wait()?.context("it runs")
            })
            .await?
        };
        self.processes.remove(name);
        let said = self.log_since(name, from);
        ensure!(!status.success(), "{name} ended with success: {said}");
        Ok(said)
    }

    /// Whether a process has ended by itself; it is forgotten then, and can be started again.
    ///
    /// # Errors
    /// When it was not started.
    pub fn has_ended(&mut self, name: &str) -> Result<bool> {
        let ended = self.running_mut(name)?.try_wait()?.is_some();
        if ended {
            self.processes.remove(name);
        }
        Ok(ended)
    }

    /// Reaps a process that was sent SIGKILL.
    ///
    /// # Errors
    /// When it was not started.
    pub fn kill_again(&mut self, name: &str) -> Result<()> {
        self.running_mut(name)?.kill_and_reap();
        self.processes.remove(name);
        Ok(())
    }

    /// Waits until a node keeps space back for a start on a full volume.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn has_ballast(&self, name: &str, limit: Duration) -> Result<()> {
        let file = self.layout.data(name).join("BALLAST");
        wait::until(&format!("{name} has its ballast"), limit, || async {
            ensure!(fs::metadata(&file)?.len() > 0, "it is empty");
            Ok(())
        })
        .await
    }

    /// Copies a node's volume as it is; the node should not run.
    ///
    /// # Errors
    /// When copying fails.
    pub fn copy_volume(&self, name: &str, to: &Path) -> Result<()> {
        fs::create_dir_all(to)?;
        let from = self.layout.data(name).join(".");
        tools::run(Command::new("cp").arg("-a").arg(from).arg(to)).map(|_| ())
    }

    /// Replaces what is on a node's volume by a copy, durably.
    ///
    /// # Errors
    /// When copying fails.
    pub fn put_volume(&self, name: &str, from: &Path) -> Result<()> {
        self.empty_volume(name)?;
        let to = self.layout.data(name);
        tools::run(Command::new("cp").arg("-a").arg(from.join(".")).arg(to))?;
        self.disk(name)?.tell("sync").map(|_| ())
    }

    /// Deletes everything on a node's volume, durably.
    ///
    /// # Errors
    /// When deleting fails.
    pub fn empty_volume(&self, name: &str) -> Result<()> {
        for entry in fs::read_dir(self.layout.data(name))? {
            let path = entry?.path();
            if path.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        self.disk(name)?.tell("sync").map(|_| ())
    }

    /// Volumes end with their disks: those of a test that failed are copied beside its logs.
    pub(super) fn keep_damaged_volumes(&self) {
        if self.passed && std::env::var_os("SEALANE_KEEP").is_none() {
            return;
        }
        for name in self.disks.keys() {
            let to = self.layout.root.join("volumes").join(name);
            if let Err(error) = self.copy_volume(name, &to) {
                println!("the volume of {name} is not kept: {error:#}");
            }
        }
    }
}
