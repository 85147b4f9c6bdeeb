//! Bodies that this node accepted and may deliver itself: kept in memory for a while, so that the
//! queue does not have to send them back.
use crate::budget::{BodyBudget, Paid};
use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;
use sealane_types::MessageId;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::time::Instant;

/// A body that was not asked for by then waits for a retry, or is delivered by another node.
const FOR: Duration = Duration::from_secs(30);

/// The newest bodies, as many as the budget holds. Nothing depends on one being here.
#[derive(Debug, Clone)]
pub(crate) struct KeptBodies {
    budget: BodyBudget,
    bodies: Arc<Mutex<Bodies>>,
}

#[derive(Debug, Default)]
struct Bodies {
    by_id: HashMap<MessageId, (Bytes, Paid)>,
    /// In the order in which they came; some of them may be gone.
    order: VecDeque<(Instant, MessageId)>,
}

impl KeptBodies {
    pub(crate) fn new(octets: u64) -> Self {
        Self {
            budget: BodyBudget::new(octets, Gauge::default()),
            bodies: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Bodies> {
        self.bodies.lock().expect("no panic while held")
    }

    /// Keeps a body; the oldest make room.
    pub(crate) fn keep(&self, id: MessageId, body: Bytes) {
        let mut bodies = self.lock();
        let paid = loop {
            if let Some(paid) = self.budget.try_pay(body.len()) {
                break paid;
            }
            let Some((_, oldest)) = bodies.order.pop_front() else {
                return;
            };
            bodies.by_id.remove(&oldest);
        };
        bodies.order.push_back((Instant::now(), id));
        bodies.by_id.insert(id, (body, paid));
    }

    /// A body, if it still is here.
    pub(crate) fn get(&self, id: MessageId) -> Option<Bytes> {
        self.lock().by_id.get(&id).map(|(body, _)| body.clone())
    }

    /// It will not be asked for any more.
    pub(crate) fn forget(&self, id: MessageId) {
        let mut bodies = self.lock();
        bodies.by_id.remove(&id);
        // Mail leaves about as it came: most of the time the front is what just went.
        while let Some((_, first)) = bodies.order.front() {
            if bodies.by_id.contains_key(first) {
                break;
            }
            bodies.order.pop_front();
        }
    }

    /// Drops what is old.
    pub(crate) fn sweep(&self) {
        self.drop_older(FOR);
    }

    fn drop_older(&self, age: Duration) {
        let mut bodies = self.lock();
        while let Some((since, id)) = bodies.order.front().copied() {
            if since.elapsed() < age && bodies.by_id.contains_key(&id) {
                break;
            }
            bodies.order.pop_front();
            bodies.by_id.remove(&id);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use sealane_types::ShardId;

    fn id(n: u64) -> MessageId {
        MessageId::new(ShardId::new(1).unwrap(), n, [0; 9])
    }

    #[test]
    fn the_newest_stay_while_there_is_room_and_time() {
        let kept = KeptBodies::new(8 << 10);
        let body = Bytes::from(vec![7; 3 << 10]);
        for n in 0..4 {
            kept.keep(id(n), body.clone());
        }
        assert!(kept.get(id(1)).is_none());
        assert_eq!(kept.get(id(2)), Some(body.clone()));
        kept.forget(id(2));
        assert!(kept.get(id(2)).is_none());
        assert!(kept.get(id(3)).is_some());
        kept.sweep();
        assert!(kept.get(id(3)).is_some());
        kept.drop_older(Duration::ZERO);
        assert!(kept.get(id(3)).is_none());
        assert_eq!(kept.lock().order.len(), 0);
        // All memory came back.
        kept.keep(id(9), Bytes::from(vec![7; 8 << 10]));
        assert!(kept.get(id(9)).is_some());
    }
}
