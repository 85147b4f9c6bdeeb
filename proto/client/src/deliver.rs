//! Leases out of the queue, outcomes into it.
mod desk;
mod link;

use crate::{members::Members, submit::SubmitClient};
use bytes::Bytes;
use desk::Desk;
use futures_util::{StreamExt, stream::BoxStream};
use sealane_types::{MessageId, NodeId, TraceContext};
use sealane_wire::v1;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Mutex, mpsc},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Streams to this many nodes fill the lease channel without waiting; a node beyond its credits
/// waits, and its acknowledgements with it.
const NODES: u32 = 16;
/// Waiting for the answer to a renewal.
const RENEW: Duration = Duration::from_secs(5);
/// From the call to the first piece of a body.
const FETCH: Duration = Duration::from_secs(10);
/// A piece of a body is at most 1 MiB.
const MAX_PIECE: usize = 4 << 20;

/// Pieces of a body, in order.
pub type BodyStream = BoxStream<'static, Result<Bytes, FetchError>>;

/// A body cannot be had now; the text is for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("body not available: {0}")]
pub struct FetchError(pub String);

/// A lease as it came.
#[derive(Debug, Clone)]
pub struct LeasedWork {
    /// As on the wire.
    pub lease: v1::Lease,
    /// The lease's length counts from here, by this process's monotonic clock: from when its leader proposed it,
    /// or before.
    pub received: Instant,
}

/// The answer to a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// It holds this long from the moment before the question.
    Renewed(Duration),
    /// It is someone else's, or nobody's.
    Lost,
    /// No answer; it runs out at its time unless a later renewal succeeds.
    Unknown,
}

/// A Deliver stream to every member. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeliverClient {
    desk: Arc<Desk>,
    leases: Arc<Mutex<mpsc::Receiver<LeasedWork>>>,
    /// For leases that come another way.
    own: mpsc::Sender<LeasedWork>,
}

impl DeliverClient {
    /// Keeps a stream to every member until `stop`, which it outlives by nothing: stop it after the
    /// last report. `credits` is the number of leases that each node may have given out to us at once; a
    /// credit goes back when the lease's outcome is acknowledged, given back or out of time.
    pub fn start(
        relay: &str,
        members: Members,
        submit: SubmitClient,
        credits: u32,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let capacity = usize::try_from(credits.max(1).saturating_mul(NODES))
            .unwrap_or(usize::MAX)
            .min(65_536);
        let (tx, rx) = mpsc::channel(capacity);
        let desk = Arc::new(Desk::new(submit));
        let supervisor = link::Supervisor {
            relay: relay.to_owned(),
            members,
            desk: desk.clone(),
            credits,
            leases: tx.clone(),
        };
        let keeper = desk.clone();
        tasks.spawn(async move {
            let work = async { tokio::join!(supervisor.run(), keeper.keep_reporting()) };
            stop.run_until_cancelled(work).await;
        });
        Self {
            desk,
            leases: Arc::new(Mutex::new(rx)),
            own: tx,
        }
    }

    /// The next lease of any node. `None` when the client is stopped.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn lease(&self) -> Option<LeasedWork> {
        self.leases.lock().await.recv().await
    }

    /// A lease that came with the outcome of an enqueue: it is handed out by [`Self::lease`] and
    /// settled like the others. What cannot be taken is given back.
    pub fn granted(&self, lease: v1::Lease, node: NodeId, since: Instant) {
        if self.desk.granted(&lease, node, since).is_none() {
            return;
        }
        let reference = v1::LeaseRef {
            id: lease.id.clone(),
            epoch: lease.epoch,
            until_ms: 0,
        };
        let work = LeasedWork {
            lease,
            received: since,
        };
        if self.desk.is_paused() || self.own.try_send(work).is_err() {
            self.desk.give_back(vec![reference]);
        }
    }

    /// No new leases from now on: credits are not given back any more, and streams that open later get
    /// none. Leases on their way may still come out of [`Self::lease`].
    pub fn pause(&self) {
        self.desk.pause();
    }

    /// Whether [`Self::pause`] was called.
    pub fn is_paused(&self) -> bool {
        self.desk.is_paused()
    }

    /// Hands over outcomes. They are sent, and sent again after a lost stream, a change of leader or a
    /// silence, until acknowledged or the lease is over by far. Never waits for the control plane.
    pub fn report(&self, report: v1::Report) {
        self.desk.report(report);
    }

    /// Outcomes that wait for their acknowledgement.
    pub fn unacknowledged(&self) -> usize {
        self.desk.unacknowledged()
    }

    /// Waits until every report is acknowledged (or given up).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn settled(&self) {
        self.desk.settled().await;
    }

    /// Leases that will not be worked on: due again at once. Best effort, leases run out by themselves.
    pub fn give_back(&self, leases: Vec<v1::LeaseRef>) {
        self.desk.give_back(leases);
    }

    /// Asks for more time.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn renew(&self, id: MessageId, epoch: u64) -> Renewal {
        let Some(answer) = self.desk.renew(id, epoch) else {
            return Renewal::Unknown;
        };
        match tokio::time::timeout(RENEW, answer).await {
            Ok(Ok(0)) => Renewal::Lost,
            Ok(Ok(ms)) => Renewal::Renewed(Duration::from_millis(ms)),
            _ => {
                self.desk.forget_renewal(id, epoch);
                Renewal::Unknown
            }
        }
    }

    /// The body of a leased message, in pieces of at most 1 MiB, read as they are asked for.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn fetch_body(
        &self,
        id: MessageId,
        epoch: u64,
        trace: TraceContext,
    ) -> Result<BodyStream, FetchError> {
        let mut client = self
            .desk
            .client(id, epoch)
            .ok_or_else(|| FetchError("no stream to the shard's leader".into()))?
            .max_decoding_message_size(MAX_PIECE);
        let request = v1::FetchBodyRequest {
            id: Bytes::copy_from_slice(id.as_bytes()),
            epoch,
            trace: Some(trace.into()),
        };
        let reply = tokio::time::timeout(FETCH, client.fetch_body(request))
            .await
            .map_err(|_| FetchError("no answer".into()))?
            .map_err(|e| FetchError(e.to_string()))?;
        Ok(reply
            .into_inner()
            .map(|p| p.map(|p| p.data).map_err(|e| FetchError(e.to_string())))
            .boxed())
    }
}
