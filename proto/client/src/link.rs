//! The streams to one control-plane node.
use crate::control::Inner;
use bytes::Bytes;
use sealane_policy::PolicySnapshot;
use sealane_runtime::{grpc, identity::Identity};
use sealane_wire::v1::{self, policy_client::PolicyClient, queue_client::QueueClient};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

/// Frames that wait for a slow node; senders wait when it is full.
const FRAMES: usize = 256;
const MAX_MESSAGE: usize = 8 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);

type Key = (Bytes, u64);

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) address: String,
    identity: Identity,
    submit: Mutex<Option<mpsc::Sender<v1::SubmitRequest>>>,
    deliver: Mutex<Option<mpsc::Sender<v1::DeliverRequest>>>,
    /// At most one frame per message id is unanswered.
    outcomes: Mutex<HashMap<Bytes, oneshot::Sender<v1::SubmitOutcome>>>,
    acks: Mutex<HashMap<Key, oneshot::Sender<bool>>>,
    renewals: Mutex<HashMap<Key, oneshot::Sender<u64>>>,
}

impl Link {
    pub(crate) fn new(address: String, identity: Identity) -> Self {
        Self {
            address,
            identity,
            submit: Mutex::default(),
            deliver: Mutex::default(),
            outcomes: Mutex::default(),
            acks: Mutex::default(),
            renewals: Mutex::default(),
        }
    }

    pub(crate) fn start(self: &Arc<Self>, inner: &Arc<Inner>) {
        for kind in [Kind::Submit, Kind::Deliver, Kind::Policy] {
            let (link, inner) = (self.clone(), inner.clone());
            tokio::spawn(async move {
                let stop = inner.stop.clone();
                tokio::select! {
                    () = link.keep(kind, inner) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }

    pub(crate) fn queue(&self) -> Result<QueueClient<Channel>, Status> {
        let channel = grpc::channel(&self.address, &self.identity).map_err(|e| Status::internal(e.to_string()))?;
        Ok(QueueClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
    }

    /// Reconnects for ever.
    async fn keep(&self, kind: Kind, inner: Arc<Inner>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let started = tokio::time::Instant::now();
            let result = match kind {
                Kind::Submit => self.run_submit(&inner).await,
                Kind::Deliver => self.run_deliver(&inner).await,
                Kind::Policy => self.run_policy(&inner).await,
            };
            match kind {
                Kind::Submit => {
                    *self.submit.lock().expect("no panic while held") = None;
                    // Dropped senders tell the waiting: unknown.
                    self.outcomes.lock().expect("no panic while held").clear();
                    inner.claims(&self.address, &[]);
                }
                Kind::Deliver => {
                    *self.deliver.lock().expect("no panic while held") = None;
                    self.acks.lock().expect("no panic while held").clear();
                    self.renewals.lock().expect("no panic while held").clear();
                }
                Kind::Policy => {}
            }
            if let Err(s) = result {
                tracing::debug!(node = %self.address, ?kind, reason = %s, "stream lost");
            }
            pause = if started.elapsed() > LAST_PAUSE { FIRST_PAUSE } else { (pause * 2).min(LAST_PAUSE) };
            tokio::time::sleep(pause).await;
        }
    }

    // ---- submit

    async fn run_submit(&self, inner: &Arc<Inner>) -> Result<(), Status> {
        use v1::{submit_reply::Frame as Reply, submit_request::Frame};
        let (tx, rx) = mpsc::channel(FRAMES);
        let hello = Frame::Hello(v1::SubmitHello { relay: inner.relay.clone() });
        let _ = tx.send(v1::SubmitRequest { frame: Some(hello) }).await;
        let mut replies = self.queue()?.submit(ReceiverStream::new(rx)).await?.into_inner();
        *self.submit.lock().expect("no panic while held") = Some(tx);
        while let Some(reply) = replies.message().await? {
            match reply.frame {
                Some(Reply::Hello(h)) => inner.add(&h.control_addresses),
                Some(Reply::Leading(l)) => inner.claims(&self.address, &l.claims),
                Some(Reply::Outcome(o)) => {
                    if let Some(waiting) = self.outcomes.lock().expect("no panic while held").remove(&o.id) {
                        let _ = waiting.send(o);
                    }
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Sends a frame about `id` and waits for its answer; `None`: the stream broke or nobody answered, outcome unknown
    /// (`Some(false)` in the second place: it was not even sent).
    pub(crate) async fn ask(
        &self,
        id: Bytes,
        frame: v1::submit_request::Frame,
        limit: Duration,
    ) -> Result<v1::SubmitOutcome, NoAnswer> {
        let Some(stream) = self.submit.lock().expect("no panic while held").clone() else { return Err(NoAnswer::NotSent) };
        let (tx, rx) = oneshot::channel();
        self.outcomes.lock().expect("no panic while held").insert(id.clone(), tx);
        let send = stream.send(v1::SubmitRequest { frame: Some(frame) });
        match tokio::time::timeout(limit, send).await {
            Ok(Ok(())) => {}
            _ => {
                self.outcomes.lock().expect("no panic while held").remove(&id);
                return Err(NoAnswer::NotSent);
            }
        }
        match tokio::time::timeout(limit, rx).await {
            Ok(Ok(o)) => Ok(o),
            _ => {
                self.outcomes.lock().expect("no panic while held").remove(&id);
                Err(NoAnswer::Unknown)
            }
        }
    }

    // ---- deliver

    async fn run_deliver(&self, inner: &Arc<Inner>) -> Result<(), Status> {
        use v1::{deliver_event::Frame as Event, deliver_request::Frame};
        let (tx, rx) = mpsc::channel(FRAMES);
        for frame in [
            Frame::Hello(v1::DeliverHello { relay: inner.relay.clone() }),
            Frame::Credit(v1::Credit { leases: inner.credits }),
        ] {
            let _ = tx.send(v1::DeliverRequest { frame: Some(frame) }).await;
        }
        let mut events = self.queue()?.deliver(ReceiverStream::new(rx)).await?.into_inner();
        *self.deliver.lock().expect("no panic while held") = Some(tx);
        while let Some(event) = events.message().await? {
            match event.frame {
                Some(Event::Lease(l)) => {
                    if inner.leases.send(l).await.is_err() {
                        return Ok(());
                    }
                }
                Some(Event::Ack(a)) => {
                    if let Some(w) = self.acks.lock().expect("no panic while held").remove(&(a.id, a.epoch)) {
                        let _ = w.send(a.accepted);
                    }
                }
                Some(Event::Renewed(r)) => {
                    if let Some(w) = self.renewals.lock().expect("no panic while held").remove(&(r.id, r.epoch)) {
                        let _ = w.send(r.lease_ms);
                    }
                }
                Some(Event::Hello(_)) | None => {}
            }
        }
        Ok(())
    }

    pub(crate) async fn send_deliver(&self, frame: v1::deliver_request::Frame) -> bool {
        let stream = self.deliver.lock().expect("no panic while held").clone();
        match stream {
            Some(s) => s.send(v1::DeliverRequest { frame: Some(frame) }).await.is_ok(),
            None => false,
        }
    }

    pub(crate) async fn report(&self, report: v1::Report, limit: Duration) -> Option<bool> {
        let (tx, rx) = oneshot::channel();
        self.acks.lock().expect("no panic while held").insert((report.id.clone(), report.epoch), tx);
        if !self.send_deliver(v1::deliver_request::Frame::Report(report)).await {
            return None;
        }
        tokio::time::timeout(limit, rx).await.ok()?.ok()
    }

    pub(crate) async fn renew(&self, lease: v1::LeaseRef, limit: Duration) -> Option<u64> {
        let (tx, rx) = oneshot::channel();
        self.renewals.lock().expect("no panic while held").insert((lease.id.clone(), lease.epoch), tx);
        if !self.send_deliver(v1::deliver_request::Frame::Renew(v1::Renew { leases: vec![lease] })).await {
            return None;
        }
        tokio::time::timeout(limit, rx).await.ok()?.ok()
    }

    // ---- policy

    async fn run_policy(&self, inner: &Arc<Inner>) -> Result<(), Status> {
        let channel = grpc::channel(&self.address, &self.identity).map_err(|e| Status::internal(e.to_string()))?;
        let mut client = PolicyClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let request = v1::PolicyWatchRequest { watcher: inner.relay.clone() };
        let mut sets = client.watch(request).await?.into_inner();
        while let Some(set) = sets.message().await? {
            match PolicySnapshot::from_wire(&set) {
                Ok(new) => {
                    inner.policy.send_if_modified(|old| {
                        // A node that lags never takes a newer policy away.
                        let newer = old.as_ref().is_none_or(|o| o.revision() < new.revision());
                        if newer {
                            *old = Some(Arc::new(new));
                        }
                        newer
                    });
                }
                Err(e) => tracing::error!(error = %e, "policy refused: the previous one stays in force"),
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Submit,
    Deliver,
    Policy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    NotSent,
    Unknown,
}
