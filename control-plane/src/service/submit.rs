//! `Queue.Submit`: messages from relays into the log.
//!
//! Frames are read one after another; each is paid for from the node's in-flight budget before the
//! next is read, so that HTTP/2 flow control reaches the relay. Proposals run concurrently, each
//! answers once.
use crate::{
    background::{dispatch::Dispatch, leadership::LeaderClaims},
    metrics::Metrics,
    policy_view::PolicyView,
    raft::{Committed, Groups, ProposeError},
    service::queue::hello,
};
use bytes::Bytes;
use sealane_mutants::{
    Mutant::{M1, M16, M17},
    mutant,
};
use sealane_runtime::telemetry;
use sealane_types::{CHUNK_SIZE, MessageId};
use sealane_wire::{
    FieldError, message_id,
    v1::{self, command::Op, command_reply::Result as Answer, submit_outcome::Kind},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};
use tracing::{Instrument, field, info_span};

/// Octets per permit of the in-flight budget.
const UNIT: usize = 1024;
/// A proposal without result for this long has an unknown outcome.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(25);
/// Replies that wait for a slow relay.
const REPLIES: usize = 1024;

/// Everything a Submit stream needs; one per node.
#[derive(Debug)]
pub(crate) struct SubmitDesk {
    pub(crate) groups: Arc<Groups>,
    pub(crate) policy: PolicyView,
    pub(crate) claims: LeaderClaims,
    pub(crate) metrics: Arc<Metrics>,
    dispatch: Dispatch,
    lease: Duration,
    budget: Arc<Semaphore>,
    /// Set by the disk watchdog: new mail is refused.
    pub(crate) disk_full: Arc<AtomicBool>,
    /// Set on shutdown: new mail is refused, proposals under way finish.
    pub(crate) closing: Arc<AtomicBool>,
}

/// What new mail has to pass.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Octets of bodies on their way through the node.
    pub(crate) in_flight: usize,
    /// Set by the disk watchdog.
    pub(crate) disk_full: Arc<AtomicBool>,
    /// Set on shutdown.
    pub(crate) closing: Arc<AtomicBool>,
}

impl SubmitDesk {
    pub(crate) fn new(
        groups: Arc<Groups>,
        policy: PolicyView,
        claims: LeaderClaims,
        metrics: Arc<Metrics>,
        (dispatch, lease): (Dispatch, Duration),
        admission: Admission,
    ) -> Arc<Self> {
        let budget = Arc::new(Semaphore::new(
            (admission.in_flight / UNIT).min(Semaphore::MAX_PERMITS),
        ));
        Arc::new(Self {
            groups,
            policy,
            claims,
            metrics,
            dispatch,
            lease,
            budget,
            disk_full: admission.disk_full,
            closing: admission.closing,
        })
    }

    /// Serves one stream until the relay ends it.
    pub(crate) fn serve(
        self: Arc<Self>,
        relay: String,
        mut frames: Streaming<v1::SubmitRequest>,
    ) -> mpsc::Receiver<Result<v1::SubmitReply, Status>> {
        use v1::{submit_reply::Frame as Reply, submit_request::Frame};
        let (tx, rx) = mpsc::channel(REPLIES);
        let relay: Arc<str> = relay.into();
        tokio::spawn(async move {
            let reply = |frame| Ok(v1::SubmitReply { frame: Some(frame) });
            let mut nodes = self.groups.follow_registry();
            let mut told = nodes.borrow_and_update().revision;
            let first = hello(&self.groups);
            if tx.send(reply(Reply::Hello(first))).await.is_err() {
                return;
            }
            let mut claims = self.claims.subscribe();
            claims.mark_changed();
            let tasks = TaskTracker::new();
            let removed = self.groups.until_removed();
            tokio::pin!(removed);
            loop {
                tokio::select! {
                    () = &mut removed => break,
                    changed = claims.changed() => {
                        if changed.is_err() { break; }
                        let leading = claims.borrow_and_update().as_ref().clone();
                        if tx.send(reply(Reply::Leading(leading))).await.is_err() { break; }
                    }
                    changed = nodes.changed() => {
                        if changed.is_err() { break; }
                        let revision = nodes.borrow_and_update().revision;
                        if std::mem::replace(&mut told, revision) == revision { continue; }
                        let again = hello(&self.groups);
                        if tx.send(reply(Reply::Hello(again))).await.is_err() { break; }
                    }
                    frame = frames.message() => {
                        let Ok(Some(v1::SubmitRequest { frame: Some(frame) })) = frame else { break };
                        let size = match &frame {
                            Frame::Chunk(c) => c.data.len(),
                            Frame::Enqueue(e) => e.body.len(),
                            _ => 0,
                        };
                        let Some(permit) = self.pay(size).await else { break };
                        let (desk, tx, relay) = (self.clone(), tx.clone(), relay.clone());
                        tasks.spawn(async move {
                            let outcome = match frame {
                                Frame::Hello(_) => return,
                                Frame::Enqueue(e) => desk.enqueue(&relay, e).await,
                                Frame::Chunk(c) => desk.chunk(c).await,
                                Frame::Abort(a) => desk.abort(a).await,
                            };
                            drop(permit);
                            let frame = Reply::Outcome(outcome);
                            // The relay is gone: it asks again with the same id.
                            let _ = tx.send(Ok(v1::SubmitReply { frame: Some(frame) })).await;
                        });
                    }
                }
            }
            tasks.close();
            tasks.wait().await;
        });
        rx
    }

    async fn pay(&self, octets: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(octets / UNIT + 1).ok()?;
        self.budget.clone().acquire_many_owned(units).await.ok()
    }

    async fn enqueue(&self, relay: &str, mut e: v1::Enqueue) -> v1::SubmitOutcome {
        // As it is known here: by this name it is preferred for the first attempt.
        if let Some(entry) = &mut e.entry {
            relay.clone_into(&mut entry.relay);
        }
        let span = info_span!(
            "queue.enqueue",
            message.id = field::Empty,
            message.size = e.size,
            shard = field::Empty,
            outcome = field::Empty
        );
        if let Some(trace) = e.trace.clone() {
            telemetry::set_parent(&span, &trace.into());
        }
        async {
            let started = Instant::now();
            let raw = e.id.clone();
            let wanted = e.lease && e.chunks == 0;
            let outcome = match self.enqueue_op(e) {
                Ok((id, mut op, body)) => {
                    let span = tracing::Span::current();
                    span.record("message.id", field::display(id));
                    span.record("shard", id.shard().get());
                    let reserved = wanted && self.reserve(id, relay, &mut op);
                    let outcome = self.propose(id, Op::Enqueue(op), body).await;
                    if reserved && (outcome.kind() != Kind::Durable || outcome.lease_epoch == 0) {
                        let certain = outcome.kind() != Kind::Unknown;
                        self.dispatch.unreserve(id, relay, certain);
                    }
                    outcome
                }
                Err(error) => outcome(raw, Kind::Rejected, error.to_string()),
            };
            tracing::Span::current().record("outcome", outcome.kind().as_str_name());
            self.metrics.enqueue(outcome.kind(), started.elapsed());
            outcome
        }
        .instrument(span)
        .await
    }

    /// Asks for a place at the message's destination, and if there is one puts the lease into the enqueue.
    fn reserve(&self, id: MessageId, relay: &str, op: &mut v1::EnqueueOp) -> bool {
        let recipients = op.envelope.as_ref().map_or(&[][..], |e| &e.recipients);
        let domain = |r: &v1::Recipient| {
            r.mailbox
                .rsplit_once('@')
                .map(|(_, d)| d.to_ascii_lowercase())
        };
        let Some(destination) = recipients.first().and_then(domain) else {
            return false;
        };
        if recipients
            .iter()
            .skip(1)
            .any(|r| domain(r).as_ref() != Some(&destination))
        {
            return false;
        }
        let reserved = self.dispatch.reserve(id, &destination, relay);
        if reserved {
            let lease = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
            relay.clone_into(&mut op.holder);
            op.lease_until_ms = self.groups.clock().wall_ms().saturating_add(lease);
        }
        reserved
    }

    fn enqueue_op(&self, e: v1::Enqueue) -> Result<(MessageId, v1::EnqueueOp, Bytes), FieldError> {
        let id = message_id("enqueue.id", &e.id)?;
        let envelope = e
            .envelope
            .ok_or_else(|| FieldError::new("enqueue.envelope", "missing"))?;
        envelope.validate()?;
        if e.entry.is_none() {
            return Err(FieldError::new(
                "enqueue.entry",
                "missing: every message has an entry record",
            ));
        }
        if e.sha256.len() != 32 {
            return Err(FieldError::new("enqueue.sha256", "needs 32 octets"));
        }
        if e.body.len() > CHUNK_SIZE {
            return Err(FieldError::new(
                "enqueue.body",
                "above 1 MiB: send it in chunks",
            ));
        }
        let lifetime = lifetime_ms(&self.policy, &envelope);
        let op = v1::EnqueueOp {
            id: e.id,
            envelope: Some(envelope),
            entry: e.entry,
            trace: e.trace,
            size: e.size,
            sha256: e.sha256,
            chunks: e.chunks,
            expires_at_ms: self.groups.clock().wall_ms().saturating_add(lifetime),
            holder: String::new(),
            lease_until_ms: 0,
        };
        Ok((id, op, e.body))
    }

    async fn chunk(&self, c: v1::Chunk) -> v1::SubmitOutcome {
        let span = info_span!("queue.chunk", seq = c.seq, bytes = c.data.len());
        if let Some(trace) = c.trace.clone() {
            telemetry::set_parent(&span, &trace.into());
        }
        async {
            let seq = c.seq;
            let mut o = match message_id("chunk.id", &c.id) {
                Err(e) => outcome(c.id, Kind::Rejected, e.to_string()),
                Ok(_) if c.data.is_empty() || c.data.len() > CHUNK_SIZE => outcome(
                    c.id,
                    Kind::Rejected,
                    "chunk.data: needs 1 octet to 1 MiB".into(),
                ),
                Ok(id) => {
                    let length = u32::try_from(c.data.len()).unwrap_or(u32::MAX);
                    let op = Op::Chunk(v1::BodyChunkOp {
                        id: c.id,
                        seq,
                        length,
                    });
                    self.propose(id, op, c.data).await
                }
            };
            o.seq = seq;
            o
        }
        .instrument(span)
        .await
    }

    async fn abort(&self, a: v1::Abort) -> v1::SubmitOutcome {
        match message_id("abort.id", &a.id) {
            Ok(id) => {
                self.propose(id, Op::Abort(v1::AbortOp { id: a.id }), Bytes::new())
                    .await
            }
            Err(e) => outcome(a.id, Kind::Rejected, e.to_string()),
        }
    }

    async fn propose(&self, id: MessageId, op: Op, body: Bytes) -> v1::SubmitOutcome {
        let raw = Bytes::copy_from_slice(id.as_bytes());
        let Some(group) = self.groups.group(id.shard().group()) else {
            return outcome(
                raw,
                Kind::Rejected,
                format!("id: shard {} does not exist", id.shard()),
            );
        };
        // An abort settles what was proposed before: it is never refused for our own convenience.
        let adds = !matches!(op, Op::Abort(_));
        if adds && self.closing.load(Ordering::Relaxed) {
            return outcome(raw, Kind::Unavailable, "shutting down".into());
        }
        if adds && self.disk_full.load(Ordering::Relaxed) {
            return outcome(raw, Kind::StorageFull, "the volume is nearly full".into());
        }
        if adds && group.leading().is_none() {
            let mut o = outcome(raw, Kind::NotLeader, String::new());
            o.leader_hint = group.view().leader.unwrap_or(0);
            return o;
        }
        if mutant(M1) && matches!(op, Op::Enqueue(_)) {
            tokio::spawn(async move { group.propose(op, body).await });
            return outcome(raw, Kind::Durable, String::new());
        }
        match tokio::time::timeout(PROPOSE_DEADLINE, group.propose(op, body)).await {
            Ok(Ok(committed)) => {
                if let Some(Answer::Enqueued(e)) = &committed.reply.result
                    && e.duplicate
                {
                    self.metrics.enqueue_repeated();
                }
                answer(raw, committed, self.lease)
            }
            Ok(Err(ProposeError::NotLeader { leader })) => {
                let mut o = outcome(raw, Kind::NotLeader, String::new());
                o.leader_hint = leader.unwrap_or(0);
                o
            }
            Ok(Err(ProposeError::Unavailable(why))) => outcome(raw, Kind::Unavailable, why),
            Ok(Err(ProposeError::Unknown(why))) => outcome(raw, unknown(), why),
            Err(_) => outcome(raw, unknown(), "no commit within the deadline".into()),
        }
    }
}

/// The longest lifetime among the recipients' destinations.
fn lifetime_ms(policy: &PolicyView, envelope: &v1::Envelope) -> u64 {
    let policy = policy.current().parsed;
    envelope
        .recipients
        .iter()
        .map(|r| {
            let domain = r.mailbox.rsplit_once('@').map_or("", |(_, d)| d);
            policy.destination(domain).retry.lifetime_ms
        })
        .max()
        .unwrap_or(0)
}

fn outcome(id: Bytes, kind: Kind, detail: String) -> v1::SubmitOutcome {
    v1::SubmitOutcome {
        id,
        kind: kind.into(),
        detail,
        seq: 0,
        leader_hint: 0,
        lease_epoch: 0,
        lease_ms: 0,
    }
}

/// It may be in a log somewhere, and be committed yet.
fn unknown() -> Kind {
    if mutant(M17) {
        return Kind::Unavailable;
    }
    Kind::Unknown
}

fn answer(id: Bytes, committed: Committed, lease: Duration) -> v1::SubmitOutcome {
    match committed.reply.result {
        Some(Answer::Enqueued(e)) => v1::SubmitOutcome {
            lease_epoch: e.lease_epoch,
            // The relay counts from before it asked for the first time.
            lease_ms: u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
            ..outcome(id, Kind::Durable, String::new())
        },
        Some(Answer::Chunk(_)) => outcome(id, Kind::ChunkDurable, String::new()),
        Some(Answer::Aborted(_)) if mutant(M16) => outcome(id, Kind::Durable, String::new()),
        Some(Answer::Aborted(_)) => outcome(id, Kind::Aborted, String::new()),
        Some(Answer::Refused(r)) => {
            outcome(id, Kind::Rejected, format!("{}: {}", r.field, r.reason))
        }
        _ => outcome(
            id,
            Kind::Rejected,
            "unexpected answer of the state machine".into(),
        ),
    }
}
