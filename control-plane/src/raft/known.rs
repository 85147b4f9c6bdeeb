//! What this node knows of the cluster, and of its own part in it.
use super::Groups;
use crate::registry::Registry;
use sealane_types::GroupId;
use std::sync::Arc;
use tokio::sync::watch;

impl Groups {
    /// Nodes, placement, whereabouts: the revision that this node has.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        self.registry.borrow().clone()
    }
    /// Follows it.
    pub(crate) fn follow_registry(&self) -> watch::Receiver<Arc<Registry>> {
        self.registry.subscribe()
    }
    /// Reads the metadata group's state again, and wakes those who follow.
    pub(crate) fn refresh_registry(&self) {
        match Registry::read(self.meta().store()) {
            Ok(new) => drop(self.registry.send_replace(Arc::new(new))),
            Err(e) => {
                tracing::error!(error = %e, "node registry unreadable: the previous one stays")
            }
        }
    }

    /// Another node said that this one was removed. For good.
    pub(crate) fn expel(&self) {
        self.expelled.send_replace(true);
    }
    /// Whether this node is no member any more, by its own copy of the registry or by another node's word.
    pub(crate) fn removed(&self) -> bool {
        *self.expelled.borrow() || self.registry.borrow().refused(self.config.node_id)
    }
    /// Completes when [`Self::removed`] becomes true.
    pub(crate) async fn until_removed(&self) {
        let (mut expelled, mut registry) = (self.expelled.subscribe(), self.follow_registry());
        while !self.removed() {
            let changed = tokio::select! {
                c = expelled.changed() => c,
                c = registry.changed() => c,
            };
            if changed.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Whether this node's state of a group is one to answer from: it votes there, by its own log and by
    /// the last word of the group's leader. What was moved away leaves an old state behind.
    pub(crate) fn holds(&self, id: GroupId) -> bool {
        let Some(group) = self.group(id) else {
            return false;
        };
        let (me, registry) = (self.config.node_id, self.registry());
        let reported = registry.reports.get(&id);
        group.view().voters.contains(&me)
            && (group.is_leader() || reported.is_none_or(|r| r.voters.contains(&me)))
    }
}
