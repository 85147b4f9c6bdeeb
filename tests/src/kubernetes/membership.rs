//! Watches the control plane's members while others change them, and notices what must never be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::mail::Admin;
use super::manifests::{items, text};
use crate::cluster::number;

/// Between looks.
const LOOK: Duration = Duration::from_millis(700);

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    /// Every id that there ever was, and its name.
    ids: BTreeMap<u64, String>,
    /// Names that were removed, with their ids.
    removed: BTreeSet<u64>,
    /// (name, state) in the order in which they were seen first.
    story: Vec<(String, String)>,
    wrong: BTreeSet<String>,
    looks: usize,
}

impl Seen {
    fn look(&mut self, list: &Value, copies: usize) {
        self.looks += 1;
        let mut active = 0;
        let mut leaving = Vec::new();
        for node in items(list, "/nodes").filter(|n| text(n, "/kind") == "control-plane") {
            let (id, name) = (number(node, "id"), text(node, "/name").to_owned());
            let state = text(node, "/state")
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned();
            let known = self.ids.entry(id).or_insert_with(|| name.clone());
            if *known != name {
                self.wrong
                    .insert(format!("the id {id} was {known}, and is {name}"));
            }
            match state.as_str() {
                "active" => active += 1,
                "leaving" => leaving.push(name.clone()),
                "removed" => {
                    self.removed.insert(id);
                }
                "lost" => {
                    self.wrong
                        .insert(format!("{name} ({id}) was declared lost"));
                }
                _ => {}
            }
            if state != "removed" && self.removed.contains(&id) {
                self.wrong
                    .insert(format!("{name} ({id}) was removed, and is {state} again"));
            }
            let chapter = (name, state);
            if !self.story.contains(&chapter) {
                self.story.push(chapter);
            }
        }
        if leaving.len() > 1 {
            self.wrong
                .insert(format!("{leaving:?} are leaving at the same time"));
        }
        if active + leaving.len() < copies {
            self.wrong
                .insert(format!("{active} active members for {copies} copies"));
        }
    }
}

/// Looks until it is dropped.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    /// Begins to look at a cluster that has `copies` of everything.
    #[must_use]
    pub fn start(admin: Admin, copies: usize) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                // Nobody answers while leaders change: that is no finding.
                if let Ok(list) = admin.json(&["node", "list"]).await {
                    lock(&shared).look(&list, copies);
                }
                sleep(LOOK).await;
            }
        });
        Self { seen, task }
    }

    /// Nothing was seen that must never be, and every chapter of `expected` came, in that order.
    ///
    /// # Errors
    /// Says what was seen.
    pub fn judge(&self, expected: &[(&str, &str)]) -> Result<()> {
        let seen = lock(&self.seen);
        ensure!(seen.looks > 10, "vacuous: looked {} times", seen.looks);
        ensure!(
            seen.wrong.is_empty(),
            "{:?}\nstory: {:?}",
            seen.wrong,
            seen.story
        );
        let mut rest = seen.story.iter();
        for (name, state) in expected {
            ensure!(
                rest.any(|(n, s)| n == name && s == state),
                "{name} was never {state}, or not in this order: {:?}",
                seen.story
            );
        }
        println!(
            "{} looks, {} ids, story: {:?}",
            seen.looks,
            seen.ids.len(),
            seen.story
        );
        Ok(())
    }

    /// Every id that was ever seen, by name, oldest first.
    #[must_use]
    pub fn ids(&self) -> BTreeMap<String, Vec<u64>> {
        let mut all: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (id, name) in &lock(&self.seen).ids {
            all.entry(name.clone()).or_default().push(*id);
        }
        all
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    fn list(nodes: &[(&str, u64, &str)]) -> Value {
        let nodes: Vec<Value> = nodes
            .iter()
            .map(|(name, id, state)| json!({ "kind": "control-plane", "name": name, "id": id, "state": state }))
            .collect();
        json!({ "nodes": nodes })
    }

    #[test]
    fn ids_that_change_hands_and_two_that_leave_are_wrong() {
        let mut seen = Seen::default();
        let three = [("a", 1, "active"), ("b", 2, "active"), ("c", 3, "active")];
        seen.look(&list(&three), 3);
        seen.look(
            &list(&[
                ("a", 1, "active"),
                ("b", 2, "leaving (2 replicas left)"),
                ("c", 3, "active"),
            ]),
            3,
        );
        assert!(seen.wrong.is_empty(), "{:?}", seen.wrong);
        seen.look(
            &list(&[
                ("a", 1, "leaving (1)"),
                ("b", 2, "leaving (2)"),
                ("c", 3, "active"),
            ]),
            3,
        );
        assert_eq!(seen.wrong.len(), 1, "{:?}", seen.wrong);
        seen.look(
            &list(&[("x", 1, "active"), ("b", 2, "removed"), ("c", 3, "active")]),
            3,
        );
        assert_eq!(seen.wrong.len(), 3, "{:?}", seen.wrong);
        seen.look(
            &list(&[("b", 2, "active"), ("c", 3, "active"), ("d", 4, "active")]),
            3,
        );
        assert_eq!(seen.wrong.len(), 4, "{:?}", seen.wrong);
        assert!(seen.story.contains(&("b".to_owned(), "leaving".to_owned())));
    }
}
