//! The local cap on attempts to one destination.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One gate per destination that is being worked on. The control plane limits the cluster; this
/// limits the node, so that a burst of leases does not become a burst of connections.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    open: Mutex<HashMap<String, Gate>>,
}

#[derive(Debug)]
struct Gate {
    limit: u32,
    permits: Weak<Semaphore>,
}

impl Gates {
    /// Waits for a place; it is given back when the permit is dropped. Waiters are served in order.
    ///
    /// # Cancel safety
    /// A cancelled wait gives up its place.
    pub(crate) async fn enter(&self, destination: &str, limit: u32) -> OwnedSemaphorePermit {
        let permits = self.gate(destination, limit.max(1));
        permits
            .acquire_owned()
            .await
            .expect("a gate is never closed")
    }

    /// A changed limit opens a new gate; those inside the old one finish.
    fn gate(&self, destination: &str, limit: u32) -> Arc<Semaphore> {
        let mut open = self.open.lock().expect("no panic while held");
        open.retain(|_, gate| gate.permits.strong_count() > 0);
        if let Some(gate) = open.get(destination)
            && gate.limit == limit
            && let Some(permits) = gate.permits.upgrade()
        {
            return permits;
        }
        let permits = Arc::new(Semaphore::new(limit as usize));
        open.insert(
            destination.to_owned(),
            Gate {
                limit,
                permits: Arc::downgrade(&permits),
            },
        );
        permits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn a_destination_has_so_many_places_and_no_more() {
        let gates = Gates::default();
        let first = gates.enter("a.example", 2).await;
        let _second = gates.enter("a.example", 2).await;
        assert!(gates.enter("a.example", 2).now_or_never().is_none());
        assert!(gates.enter("b.example", 2).now_or_never().is_some());
        drop(first);
        assert!(gates.enter("a.example", 2).now_or_never().is_some());
    }
}
