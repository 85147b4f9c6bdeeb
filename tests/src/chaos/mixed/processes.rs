//! Processes that end, stop, or are told to.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::{RECOVERY, Run};
use crate::clocks;

impl Run {
    /// Starts a process again and proves that it is another one.
    pub(super) fn start(&mut self, name: &str, before: u32) -> Result<()> {
        self.cluster.start(name)?;
        ensure!(
            self.cluster.pid(name)? != before,
            "{name} is the same process"
        );
        Ok(())
    }

    pub(super) async fn kill(&mut self, names: &[String]) -> Result<String> {
        let mut pids = Vec::new();
        for name in names {
            pids.push(self.cluster.pid(name)?);
            self.cluster.kill(name)?;
        }
        self.pause(0..2000).await;
        for (name, pid) in names.iter().zip(pids) {
            self.start(name, pid)?;
        }
        Ok(names.join(", "))
    }

    pub(super) async fn kill_node(&mut self) -> Result<String> {
        let name = self.leader_or_any().await?;
        self.kill(&[name]).await
    }

    pub(super) async fn kill_all(&mut self) -> Result<String> {
        let names = self.cluster.disk_names();
        let mut pids = Vec::new();
        for name in &names {
            pids.push(self.cluster.pid(name)?);
            self.cluster.signal(name, Signal::SIGKILL)?;
        }
        for name in &names {
            self.cluster.kill_again(name)?;
        }
        let silent = self.nobody_is_answered(1500).await?;
        for (name, pid) in names.iter().zip(pids) {
            self.start(name, pid)?;
        }
        Ok(format!("{}, {silent}", names.join(", ")))
    }

    pub(super) async fn pause_one(&mut self) -> Result<String> {
        let name = self.anyone()?;
        self.cluster.signal(&name, Signal::SIGSTOP)?;
        let time = Duration::from_millis(self.rng.random_range(1000..20_000));
        tokio::time::sleep(time).await;
        self.cluster.signal(&name, Signal::SIGCONT)?;
        Ok(format!("{name}, {time:.1?}"))
    }

    pub(super) async fn restart(&mut self) -> Result<String> {
        let name = self.anyone()?;
        let pid = self.cluster.pid(&name)?;
        self.cluster.terminate(&name, RECOVERY).await?;
        self.start(&name, pid)?;
        Ok(name)
    }

    pub(super) async fn clock_jumps(&mut self) -> Result<String> {
        const HOUR: i64 = 3600;
        let name = if self.rng.random_bool(0.6) {
            self.leader_or_any().await?
        } else {
            self.anyone()?
        };
        let jumps = [20, -20, 300, -300, HOUR, -HOUR, 10 * 365 * 24 * HOUR];
        let jump = *jumps.choose(&mut self.rng).context("a jump")?;
        let file = self.cluster.layout.clock(&name);
        let before = clocks::told(&file)?;
        clocks::set(&file, jump)?;
        self.pause(2000..12_000).await;
        clocks::set(&file, 0)?;
        let told = clocks::told(&file)? - before;
        ensure!(told > 0, "{name} never asked for the time");
        Ok(format!("{name}, {jump} s, told so {told} times"))
    }
}
