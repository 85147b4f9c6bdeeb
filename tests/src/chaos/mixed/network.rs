//! The network between processes: pieces held in user space, packets dropped by the kernel.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::{Fault, Run};
use crate::cluster::Loss;
use crate::links::{Links, Weather};

impl Run {
    fn weather(&self) -> Result<&Links> {
        self.cluster.links.as_ref().context("links")
    }

    pub(super) async fn links(&mut self, fault: Fault) -> Result<String> {
        let name = self.leader_or_any().await?;
        let late = Weather::Late(Duration::from_millis(self.rng.random_range(50..400)));
        let (out, into) = match fault {
            Fault::CutOff => (Some(Weather::Cut), Some(Weather::Cut)),
            Fault::CutOneWay if self.rng.random_bool(0.5) => (Some(Weather::Cut), None),
            Fault::CutOneWay => (None, Some(Weather::Cut)),
            _ => (Some(late), Some(late)),
        };
        // Relay nodes may be on its side of the cut or not.
        let mut others = self.cluster.disk_names();
        if self.rng.random_bool(0.5) {
            others = self.cluster.layout.names();
        }
        let active = self.members().await?.active;
        let links = self.weather()?;
        let before = links.touched();
        for other in others.iter().filter(|other| **other != name) {
            if let Some(weather) = out {
                links.set(&name, other, weather);
            }
            if let Some(weather) = into {
                links.set(other, &name, weather);
            }
        }
        let time = Duration::from_millis(self.rng.random_range(3000..12_000));
        tokio::time::sleep(time).await;
        let mut claim = "";
        if fault == Fault::CutOff && active.contains(&name) {
            self.says_that_it_is_not_ready(&name).await?;
            claim = ", it says that it is not ready";
        }
        let links = self.weather()?;
        let touched = links.touched() - before;
        links.heal();
        ensure!(touched > 0, "the network was not touched");
        Ok(format!(
            "{name}, out {out:?}, in {into:?}, {time:.1?}, {touched} pieces held or late{claim}"
        ))
    }

    pub(super) async fn bridge(&mut self) -> Result<String> {
        let active = self.members().await?.active;
        let pair: Vec<String> = active.choose_multiple(&mut self.rng, 2).cloned().collect();
        let [one, other] = pair.as_slice() else {
            anyhow::bail!("two nodes of {active:?}");
        };
        let time = Duration::from_millis(self.rng.random_range(3000..12_000));
        let links = self.weather()?;
        let before = links.touched();
        links.set(one, other, Weather::Cut);
        links.set(other, one, Weather::Cut);
        tokio::time::sleep(time).await;
        let touched = links.touched() - before;
        links.heal();
        ensure!(touched > 0, "the network was not touched");
        Ok(format!(
            "{one} and {other}, {time:.1?}, {touched} pieces held"
        ))
    }

    pub(super) async fn flapping(&mut self) -> Result<String> {
        let name = self.leader_or_any().await?;
        let times = self.rng.random_range(3..7);
        let others = self.cluster.disk_names();
        let before = self.weather()?.touched();
        for _ in 0..times {
            let links = self.weather()?;
            for other in others.iter().filter(|other| **other != name) {
                links.set(&name, other, Weather::Cut);
                links.set(other, &name, Weather::Cut);
            }
            self.pause(700..1300).await;
            self.weather()?.heal();
            self.pause(700..1300).await;
        }
        let touched = self.weather()?.touched() - before;
        ensure!(touched > 0, "the network was not touched");
        Ok(format!("{name}, {times} times, {touched} pieces held"))
    }

    pub(super) async fn packets(&mut self, fault: Fault) -> Result<String> {
        let name = if self.rng.random_bool(0.6) {
            self.leader_or_any().await?
        } else {
            self.relay()?
        };
        let (loss, time) = match fault {
            Fault::PacketsDropped => {
                let all = [Loss::In, Loss::Out, Loss::Both];
                let loss = *all.choose(&mut self.rng).context("a loss")?;
                (loss, self.rng.random_range(2000..15_000))
            }
            Fault::PacketsLost => {
                let percent = self.rng.random_range(5..25);
                (Loss::Percent(percent), self.rng.random_range(4000..12_000))
            }
            _ => (Loss::Reset, self.rng.random_range(200..3000)),
        };
        let namespaces = self.cluster.namespaces.as_ref().context("namespaces")?;
        namespaces.lose(&name, loss)?;
        tokio::time::sleep(Duration::from_millis(time)).await;
        let lost = namespaces.heal(&name)?;
        ensure!(lost > 0, "{loss:?} of {name} lost no packet");
        self.quantities.packets += lost;
        Ok(format!("{name}, {loss:?}, {time} ms, {lost} packets"))
    }
}
