//! Outcomes of many messages in one entry: nobody waits for one of them, so they wait for each other.
use crate::raft::{Committed, Group};
use bytes::Bytes;
use sealane_wire::v1::{self, command::Op, command_reply::Result as Answer};
use std::{collections::HashSet, time::Duration};
use tokio::sync::{mpsc, oneshot};

/// The first outcome of an entry waits this long for others.
const LINGER: Duration = Duration::from_millis(4);
/// Messages settled by one entry.
const BATCH: usize = 256;
/// Batches of a shard that are being committed at once.
const PIPELINE: usize = 4;

struct Item {
    op: v1::ResultsOp,
    done: oneshot::Sender<bool>,
}

/// Collects the outcomes of one shard.
#[derive(Debug, Clone)]
pub(crate) struct ResultsBatcher(mpsc::Sender<Item>);

impl ResultsBatcher {
    /// Its task ends with its last handle.
    pub(crate) fn start(group: Group) -> Self {
        let (tx, rx) = mpsc::channel(BATCH * PIPELINE);
        tokio::spawn(run(group, rx));
        Self(tx)
    }

    /// Commits results that cause no report. Whether they took effect; `None` if nobody knows.
    pub(crate) async fn commit(&self, op: v1::ResultsOp) -> Option<bool> {
        let (done, answer) = oneshot::channel();
        self.0.send(Item { op, done }).await.ok()?;
        answer.await.ok()
    }
}

async fn run(group: Group, mut items: mpsc::Receiver<Item>) {
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(PIPELINE));
    let mut batch = Vec::new();
    while items.recv_many(&mut batch, BATCH).await > 0 {
        if batch.len() < BATCH {
            tokio::time::sleep(LINGER).await;
            // What came meanwhile.
            while batch.len() < BATCH {
                match items.try_recv() {
                    Ok(item) => batch.push(item),
                    Err(_) => break,
                }
            }
        }
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let (group, batch) = (group.clone(), std::mem::take(&mut batch));
        tokio::spawn(async move {
            settle(&group, batch).await;
            drop(place);
        });
    }
}

/// Without an answer the askers know nothing: they report again.
async fn settle(group: &Group, batch: Vec<Item>) {
    let (ops, askers): (Vec<_>, Vec<_>) = batch
        .into_iter()
        .map(|i| {
            let key = (i.op.id.clone(), i.op.epoch);
            (i.op, (key, i.done))
        })
        .unzip();
    let op = Op::ResultsBatch(v1::ResultsBatchOp { items: ops });
    match group.propose(op, Bytes::new()).await {
        Ok(Committed { reply, .. }) => {
            let Some(Answer::Counted(counted)) = reply.result else {
                tracing::error!(group = %group.id(), "results answered with something else");
                return;
            };
            let accepted: HashSet<_> = counted
                .accepted
                .into_iter()
                .map(|l| (l.id, l.epoch))
                .collect();
            for (key, done) in askers {
                let _ = done.send(accepted.contains(&key));
            }
        }
        Err(e) => tracing::debug!(group = %group.id(), error = %e, "results not committed"),
    }
}
