//! The policy as the state machine has it, for services and the dispatcher of this node.
use sealane_policy::PolicySnapshot;
use sealane_store::GroupStore;
use sealane_wire::v1;
use std::sync::Arc;
use tokio::sync::watch;

/// One revision, in both forms.
#[derive(Debug, Clone)]
pub(crate) struct PolicyRevision {
    pub(crate) wire: v1::PolicySet,
    pub(crate) parsed: Arc<PolicySnapshot>,
}

/// Follows the metadata group.
#[derive(Debug, Clone)]
pub(crate) struct PolicyView {
    tx: Arc<watch::Sender<PolicyRevision>>,
    store: GroupStore,
}

impl PolicyView {
    pub(crate) fn new(store: GroupStore) -> anyhow::Result<Self> {
        let first = read(&store)?;
        Ok(Self {
            tx: Arc::new(watch::Sender::new(first)),
            store,
        })
    }

    /// Reads the state machine again and wakes the watchers if the revision changed.
    pub(crate) fn refresh(&self) {
        match read(&self.store) {
            Ok(new) => {
                self.tx.send_if_modified(|old| {
                    let changed = old.wire.revision != new.wire.revision;
                    if changed {
                        *old = new;
                    }
                    changed
                });
            }
            Err(e) => {
                tracing::error!(error = %format!("{e:#}"), "stored policy unreadable: the previous one stays in force")
            }
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<PolicyRevision> {
        self.tx.subscribe()
    }

    pub(crate) fn current(&self) -> PolicyRevision {
        self.tx.borrow().clone()
    }
}

fn read(store: &GroupStore) -> anyhow::Result<PolicyRevision> {
    let wire = sealane_state::queries::policy_set(&store.reader())?;
    let parsed = Arc::new(PolicySnapshot::from_wire(&wire)?);
    Ok(PolicyRevision { wire, parsed })
}
