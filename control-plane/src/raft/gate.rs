//! Proposals of one group enter the log in batches: while one batch is on its way to a majority, the
//! next one gathers.
//!
//! What a batch costs (an append, its syncs, a frame to each peer, an apply) hardly depends on how many
//! proposals it has. Nothing waits when nothing is under way, so a quiet group answers as fast as ever.
use super::types::{Proposal, TypeConfig};
use openraft::type_config::alias::WriteResponderOf;
use std::{future::Future, time::Duration};
use tokio::sync::{mpsc, oneshot};

/// The next batch goes after this long though the one before is not committed: a slow follower or a
/// lost quorum makes batches later, never stuck.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);
/// Proposals that gather; who comes later waits before the gate.
const GATHER: usize = 1024;

pub(super) type Responder = WriteResponderOf<TypeConfig>;

struct Waiting {
    proposal: Proposal,
    responder: Responder,
    /// Closed when the proposal is committed, refused or given up.
    settled: oneshot::Receiver<()>,
}

/// Held by a proposer until its proposal is committed.
#[derive(Debug)]
pub(super) struct UnderWay(
    #[allow(dead_code, reason = "its drop is the signal")] oneshot::Sender<()>,
);

/// The entrance to one group's log.
#[derive(Clone)]
pub(super) struct Gate(mpsc::Sender<Waiting>);

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gate")
    }
}

impl Gate {
    /// `propose` puts one proposal into the log of the group's present instance. A batch waits for the one
    /// before for at most `patience`.
    pub(super) fn new<F>(
        patience: Duration,
        propose: impl Fn(Proposal, Responder) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (tx, rx) = mpsc::channel(GATHER);
        tokio::spawn(run(rx, patience, propose));
        Self(tx)
    }

    /// Queues a proposal. `None` if the group is stopped.
    pub(super) async fn enter(&self, proposal: Proposal, responder: Responder) -> Option<UnderWay> {
        let (under_way, settled) = oneshot::channel();
        let waiting = Waiting {
            proposal,
            responder,
            settled,
        };
        self.0.send(waiting).await.ok()?;
        Some(UnderWay(under_way))
    }
}

async fn run<F: Future<Output = ()>>(
    mut gathered: mpsc::Receiver<Waiting>,
    patience: Duration,
    propose: impl Fn(Proposal, Responder) -> F,
) {
    let mut batch = Vec::new();
    while gathered.recv_many(&mut batch, GATHER).await > 0 {
        let mut last = None;
        for w in batch.drain(..) {
            propose(w.proposal, w.responder).await;
            last = Some(w.settled);
        }
        if let Some(settled) = last {
            let _ = tokio::time::timeout(patience, settled).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::sync::{Arc, Mutex};

    type Written = Arc<Mutex<Vec<Bytes>>>;

    fn gate(patience: Duration) -> (Gate, Written) {
        let written = Written::default();
        let log = written.clone();
        let gate = Gate::new(patience, move |proposal, _| {
            log.lock().expect("not poisoned").push(proposal.header);
            std::future::ready(())
        });
        (gate, written)
    }

    async fn enter(gate: &Gate, header: &'static str) -> UnderWay {
        let proposal = Proposal {
            header: header.into(),
            body: Bytes::new(),
        };
        let (responder, _answer) = Responder::complete_only();
        let under_way = gate.enter(proposal, responder).await;
        under_way.expect("the gate is open")
    }

    async fn until(written: &Written, headers: &[&str]) {
        while *written.lock().expect("not poisoned") != headers {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_comes_while_a_batch_is_under_way_goes_together_after_it() {
        let (gate, written) = gate(Duration::from_secs(3600));
        let first = enter(&gate, "a").await;
        until(&written, &["a"]).await;
        let _later = [enter(&gate, "b").await, enter(&gate, "c").await];
        tokio::task::yield_now().await;
        assert_eq!(*written.lock().expect("not poisoned"), ["a"]);
        drop(first);
        until(&written, &["a", "b", "c"]).await;
    }

    #[tokio::test]
    async fn a_batch_that_is_never_committed_makes_the_next_one_late_not_stuck() {
        let (gate, written) = gate(Duration::from_millis(1));
        let _first = enter(&gate, "a").await;
        let _second = enter(&gate, "b").await;
        until(&written, &["a", "b"]).await;
    }
}
