//! Changes of membership while nodes end.

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::Value;

use super::{RECOVERY, Run};
use crate::cluster::{Cluster, number};
use crate::wait;

/// Names of control-plane nodes by what they are.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub(super) active: Vec<String>,
    pub(super) spare: Vec<String>,
}

/// State of the newest node of each name.
async fn states(cluster: &Cluster) -> Result<Vec<(String, u64, String)>> {
    let answer = cluster.admin_json(&["node", "list"]).await?;
    let list = answer.get("nodes").and_then(Value::as_array);
    let text = |node: &Value, key: &str| {
        let text = node.get(key).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let mut newest: Vec<(String, u64, String)> = Vec::new();
    for node in list.context("nodes")? {
        if text(node, "kind") != "control-plane" {
            continue;
        }
        let (name, id) = (text(node, "name"), number(node, "id"));
        match newest.iter_mut().find(|(known, ..)| *known == name) {
            Some(older) if older.1 < id => *older = (name, id, text(node, "state")),
            Some(_) => {}
            None => newest.push((name, id, text(node, "state"))),
        }
    }
    Ok(newest)
}

impl Run {
    pub(super) async fn members(&self) -> Result<Members> {
        let mut members = Members::default();
        for (name, _, state) in states(&self.cluster).await? {
            match state.as_str() {
                "active" => members.active.push(name),
                "spare" => members.spare.push(name),
                _ => {}
            }
        }
        Ok(members)
    }

    /// Asks for a change until it is made, while `disturbed` ends and comes back.
    async fn change(
        &mut self,
        args: &[&str],
        disturbed: &str,
        wanted: &[(&str, &str)],
    ) -> Result<()> {
        let mut asked = self.cluster.layout.admin();
        asked.args(args).args(["--no-wait", "-o", "json"]);
        let first = tokio::task::spawn_blocking(move || asked.output());
        self.pause(0..1500).await;
        let pid = self.cluster.pid(disturbed)?;
        self.cluster.kill(disturbed)?;
        self.pause(0..1500).await;
        self.start(disturbed, pid)?;
        // Whether this one was heard or not: the next one says the same.
        let _answered = first.await?;
        let cluster = &self.cluster;
        wait::until(&format!("{args:?}"), RECOVERY, || async {
            let states = states(cluster).await?;
            let is = |(name, state): &(&str, &str)| {
                let mut all = states.iter();
                all.any(|(known, _, now)| known == name && now == state)
            };
            if wanted.iter().all(is) {
                return Ok(());
            }
            let again: Vec<&str> = args.iter().copied().chain(["--no-wait"]).collect();
            let said = cluster.admin_json(&again).await;
            anyhow::bail!("{states:?}, wanted {wanted:?}, the last answer: {said:?}")
        })
        .await
    }

    pub(super) async fn replace(&mut self) -> Result<String> {
        let members = self.members().await?;
        let spare = members.spare.first().context("a spare")?.clone();
        let picked: Vec<String> = members
            .active
            .choose_multiple(&mut self.rng, 2)
            .cloned()
            .collect();
        let [victim, disturbed] = picked.as_slice() else {
            anyhow::bail!("two nodes of {members:?}");
        };
        let dead = self.rng.random_bool(0.5);
        if dead {
            self.cluster.kill(victim)?;
        }
        let args = ["node", "replace", victim.as_str(), "--with", spare.as_str()];
        let wanted = [(spare.as_str(), "active"), (victim.as_str(), "removed")];
        self.change(&args, disturbed, &wanted).await?;
        self.settled().await?;
        self.comes_back_as_a_spare(victim, dead).await?;
        Ok(format!(
            "{spare} for {victim} ({}), {disturbed} ended meanwhile",
            if dead { "dead" } else { "alive" }
        ))
    }

    pub(super) async fn grow_and_shrink(&mut self) -> Result<String> {
        let members = self.members().await?;
        let spare = members.spare.first().context("a spare")?.clone();
        let one = members
            .active
            .choose(&mut self.rng)
            .context("a node")?
            .clone();
        let args = ["node", "add", spare.as_str()];
        self.change(&args, &one, &[(spare.as_str(), "active")])
            .await?;
        self.settled().await?;
        let picked: Vec<String> = {
            let active = self.members().await?.active;
            ensure!(active.len() == 4, "four active nodes: {active:?}");
            active.choose_multiple(&mut self.rng, 2).cloned().collect()
        };
        let [victim, disturbed] = picked.as_slice() else {
            anyhow::bail!("two nodes of {picked:?}");
        };
        let args = ["node", "remove", victim.as_str()];
        self.change(&args, disturbed, &[(victim.as_str(), "removed")])
            .await?;
        self.settled().await?;
        self.comes_back_as_a_spare(victim, false).await?;
        Ok(format!(
            "{spare} added while {one} ended, {victim} removed while {disturbed} ended"
        ))
    }

    /// What was removed says so; with an empty volume it is a new node.
    async fn comes_back_as_a_spare(&mut self, name: &str, dead: bool) -> Result<()> {
        if !dead {
            // It says that it is no member, and is not ready (I10).
            self.says_that_it_is_not_ready(name).await?;
            self.cluster.terminate(name, RECOVERY).await?;
        }
        self.join_anew(name).await?;
        let cluster = &self.cluster;
        wait::until(&format!("{name} is a spare"), RECOVERY, || async {
            let states = states(cluster).await?;
            let is = |(known, _, state): &(String, u64, String)| known == name && state == "spare";
            ensure!(states.iter().any(is), "{states:?}");
            Ok(())
        })
        .await
    }
}
