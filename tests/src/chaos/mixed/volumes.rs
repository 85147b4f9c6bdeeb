//! Volumes: power losses, full and slow disks, damage, new ones.

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::seq::SliceRandom;

use super::{RECOVERY, Run};
use crate::powerloss::PowerLoss;
use crate::wait;

/// Free octets of a disk that is full: less than the default reserve.
const FULL: u64 = 200_000_000;

impl Run {
    pub(super) async fn lose_power(&mut self, torn: bool) -> Result<String> {
        let how = match (torn, self.rng.random_bool(0.5)) {
            (false, _) => PowerLoss::Clean,
            (true, true) => PowerLoss::Torn(self.rng.random()),
            (true, false) => PowerLoss::Reordered(self.rng.random()),
        };
        let active = self.members().await?.active;
        let mut names = self.cluster.disk_names();
        names.shuffle(&mut self.rng);
        names.truncate(self.rng.random_range(1..=3));
        let before = self.cluster.disk_statistics()?;
        self.cluster.lose_power(&names, how)?;
        let after = self.cluster.disk_statistics()?;
        ensure!(
            after.power_losses == before.power_losses + names.len() as u64,
            "no power loss"
        );
        let gone = active.iter().filter(|name| names.contains(name)).count();
        let mut silent = String::new();
        if gone * 2 > active.len() {
            silent = format!(", {}", self.nobody_is_answered(1000).await?);
        } else {
            self.pause(0..2000).await;
        }
        for name in &names {
            self.cluster.start(name)?;
        }
        Ok(format!(
            "{how:?} of {}, {} octets and {} names gone{silent}",
            names.join(", "),
            after.discarded - before.discarded,
            after.discarded_names - before.discarded_names,
        ))
    }

    async fn noticed_to_be_full(&self, names: &[String], from: &[u64]) -> Result<()> {
        wait::until("the disk is noticed to be full", RECOVERY, || async {
            for (name, from) in names.iter().zip(from) {
                let new = self.cluster.log_since(name, *from);
                ensure!(new.contains("crossed the reserve"), "{name}");
            }
            Ok(())
        })
        .await
    }

    fn log_lengths(&self, names: &[String]) -> Vec<u64> {
        names
            .iter()
            .map(|name| self.cluster.log_length(name))
            .collect()
    }

    pub(super) async fn disk_full(&mut self) -> Result<String> {
        let names = self.some()?;
        let from = self.log_lengths(&names);
        for name in &names {
            self.cluster.disk(name)?.tell(&format!("space {FULL}"))?;
        }
        self.noticed_to_be_full(&names, &from).await?;
        self.pause(1000..5000).await;
        for name in &names {
            self.cluster.disk(name)?.tell("space unlimited")?;
        }
        Ok(names.join(", "))
    }

    /// A node without an octet ends; started again on the full disk it has its ballast to go on with.
    pub(super) async fn disk_exhausted(&mut self) -> Result<String> {
        // A spare writes so little that it may go on for minutes.
        let mut names = self.members().await?.active;
        if self.rng.random_bool(0.5) {
            names.shuffle(&mut self.rng);
            names.truncate(1);
        }
        for name in &names {
            self.cluster.has_ballast(name, RECOVERY).await?;
        }
        let from = self.log_lengths(&names);
        let before = self.cluster.disk_statistics()?.no_space;
        for name in &names {
            self.cluster.disk(name)?.tell("space 0")?;
        }
        for (name, from) in names.iter().zip(&from) {
            self.cluster.ended(name, *from, RECOVERY).await?;
        }
        let refused = self.cluster.disk_statistics()?.no_space - before;
        ensure!(refused > 0, "the disk was never asked for space");
        let from = self.log_lengths(&names);
        for name in &names {
            self.cluster.start(name)?;
        }
        for (name, from) in names.iter().zip(&from) {
            self.cluster
                .ready(name, RECOVERY)
                .await
                .context("ready on a full disk")?;
            let new = self.cluster.log_since(name, *from);
            ensure!(new.contains("the ballast is deleted"), "{name} had space");
        }
        self.pause(1000..3000).await;
        for name in &names {
            self.cluster.disk(name)?.tell("space unlimited")?;
        }
        for name in &names {
            self.cluster.has_ballast(name, RECOVERY).await?;
        }
        Ok(format!(
            "{}, {refused} writes found no space; ended, started and ready again while full",
            names.join(", ")
        ))
    }

    pub(super) async fn disk_slow(&mut self) -> Result<String> {
        let names = self.some()?;
        let time = self.rng.random_range(200..3000);
        let before = self.cluster.disk_statistics()?.syncs;
        for name in &names {
            self.cluster.disk(name)?.tell(&format!("slow {time}"))?;
        }
        self.pause(4000..9000).await;
        for name in &names {
            self.cluster.disk(name)?.tell("slow 0")?;
        }
        let syncs = self.cluster.disk_statistics()?.syncs - before;
        ensure!(syncs > 0, "nothing was synced meanwhile");
        Ok(format!("{}, {time} ms, {syncs} syncs", names.join(", ")))
    }

    pub(super) async fn sync_fails(&mut self) -> Result<String> {
        let name = self.node()?;
        let before = self.cluster.disk(&name)?.statistics()?.failed_syncs;
        let from = self.cluster.log_length(&name);
        self.cluster.disk(&name)?.tell("eio sync 1")?;
        self.cluster.ended(&name, from, RECOVERY).await?;
        let after = self.cluster.disk(&name)?.statistics()?.failed_syncs;
        ensure!(after == before + 1, "{after} syncs failed");
        let said = self.refuses(&name).await?;
        self.join_anew(&name).await?;
        Ok(format!("{name}, {said}"))
    }

    pub(super) async fn bit_flip(&mut self) -> Result<String> {
        let name = self.node()?;
        self.cluster.kill(&name)?;
        let flip = super::super::damage::largest_log(&self.cluster, &name)?;
        self.cluster.disk(&name)?.tell(&flip)?;
        let said = self.refuses(&name).await?;
        self.join_anew(&name).await?;
        Ok(format!("{name}, {flip}, {said}"))
    }

    /// Started on its volume, the node ends and says what to do.
    async fn refuses(&mut self, name: &str) -> Result<&'static str> {
        let from = self.cluster.log_length(name);
        self.cluster.start(name)?;
        let said = self.cluster.ended(name, from, RECOVERY).await?;
        ensure!(
            said.contains("sealane node replace"),
            "it does not say what to do: {said}"
        );
        Ok("it refused the volume")
    }

    /// The volume is emptied and the node joins as a new one: a snapshot of everything, under load.
    pub(super) async fn join_anew(&mut self, name: &str) -> Result<()> {
        self.cluster.empty_volume(name)?;
        let from = self.cluster.log_length(name);
        self.cluster.start(name)?;
        self.joined(name, from).await
    }

    async fn joined(&self, name: &str, from: u64) -> Result<()> {
        wait::until(&format!("{name} joined"), RECOVERY, || async {
            let new = self.cluster.log_since(name, from);
            ensure!(new.contains("joined the cluster"), "{new}");
            Ok(())
        })
        .await
    }

    pub(super) async fn join_interrupted(&mut self) -> Result<String> {
        let active = self.members().await?.active;
        let name = active.first().context("an active node")?.clone();
        let from = self.cluster.log_length(&name);
        self.cluster.kill(&name)?;
        self.cluster.empty_volume(&name)?;
        self.cluster.start(&name)?;
        let times = self.rng.random_range(2..5);
        let mut gone = 0;
        for _ in 0..times {
            self.pause(50..3000).await;
            let how = if self.rng.random_bool(0.5) {
                PowerLoss::Reordered(self.rng.random())
            } else {
                PowerLoss::Clean
            };
            let before = self.cluster.disk_statistics()?.discarded;
            self.cluster.lose_power(std::slice::from_ref(&name), how)?;
            gone += self.cluster.disk_statistics()?.discarded - before;
            self.cluster.start(&name)?;
        }
        // And whoever sends to it.
        self.pause(0..1500).await;
        let other = active.get(1).context("another one")?.clone();
        let pid = self.cluster.pid(&other)?;
        self.cluster.kill(&other)?;
        self.pause(0..1000).await;
        self.start(&other, pid)?;
        self.joined(&name, from).await?;
        let new = self.cluster.log_since(&name, from);
        let finished = new
            .matches("finishing an interrupted snapshot install")
            .count();
        Ok(format!(
            "{name}, power lost {times} times while it joined ({gone} octets gone, {finished} installs finished at a \
             start), {other} killed"
        ))
    }
}
