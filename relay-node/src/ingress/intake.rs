//! A message body between the peer and the queue.
//!
//! Up to 1 MiB it is kept whole and travels with the envelope. Longer ones leave piece by piece as
//! they fill, and their memory is free when the queue acknowledged them: a connection holds about
//! 3 MiB at most. Memory is paid for from the budget before the peer is read. Who cannot get more
//! within a moment sends off what it has as a shorter piece, so that connections which all hold half
//! a piece never wait for each other.
use super::{handover::Handover, header_scan::HeaderScan, received::Header};
use crate::{
    budget::{BodyBudget, Paid},
    config::SessionLimits,
    metrics::Refusal,
};
use bytes::{Buf, Bytes, BytesMut};
use sealane_client::{Content, Submission, SubmitClient, SubmitError, Upload, UploadError};
use sealane_smtp::{Durable, server::BodyOutcome};
use sealane_types::{CHUNK_SIZE, MessageId, NodeId, Reply, ShardId, TraceContext};
use sealane_wire::v1;
use sha2::{Digest, Sha256};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{Instant, sleep};

/// Octets of the first buffer of a body, and of every further piece's.
const FIRST: usize = 16 << 10;
/// Read when less room is left than this.
const LITTLE: usize = 4 << 10;
/// Most octets that one read may bring.
pub(super) const READ: usize = 64 << 10;
/// A half-full piece is sent off when no more memory is to be had within this.
const IMPATIENCE: Duration = Duration::from_millis(100);
/// A first proposal after this would leave no time to settle it.
const SETTLE: Duration = Duration::from_secs(6);
/// Received fields that a message may bring (RFC 5321 section 6.3: at least 100).
const HOPS: u32 = 100;

/// The body will not be accepted.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) reply: Reply,
    pub(super) why: Refusal,
}

/// How the message ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) id: MessageId,
    pub(super) size: u64,
    pub(super) outcome: BodyOutcome,
    pub(super) why: Option<Refusal>,
}

#[derive(Debug)]
pub(super) struct Intake {
    submit: SubmitClient,
    handover: Handover,
    budget: BodyBudget,
    budget_timeout: Duration,
    enqueue_timeout: Duration,
    trace: TraceContext,
    id: MessageId,
    /// Where the id stands in the first piece.
    id_at: usize,
    buffer: BytesMut,
    paid: Option<Paid>,
    capacity: usize,
    size: u64,
    scan: HeaderScan,
    upload: Option<Upload>,
    digest: Sha256,
    failed: Option<Failed>,
    /// Nodes that had no space for this message.
    full: BTreeSet<NodeId>,
    /// Nothing came from the peer yet.
    fresh: bool,
}

/// An id on a shard with a leader; on any shard if there is none: it is replaced when one comes up.
pub(super) fn choose_id(submit: &SubmitClient) -> MessageId {
    let shard = submit
        .choose_shard()
        .or_else(|| ShardId::new(1))
        .expect("1 is a shard number");
    submit.new_id(shard)
}

fn no_memory() -> Failed {
    Failed {
        reply: Reply::new(
            452,
            (4, 3, 1),
            "Insufficient system storage, try again later",
        ),
        why: Refusal::Resources,
    }
}

fn no_queue() -> Failed {
    Failed {
        reply: Reply::new(451, (4, 3, 0), "Mail queue not available, try again later"),
        why: Refusal::Queue,
    }
}

impl Intake {
    /// `header` is our trace header for `id`. Waits for the first piece of memory.
    pub(super) async fn begin(
        (submit, handover): (SubmitClient, Handover),
        budget: BodyBudget,
        limits: &SessionLimits,
        trace: TraceContext,
        id: MessageId,
        header: &Header,
    ) -> Result<Self, Failed> {
        let paid = budget
            .pay(FIRST, limits.budget_timeout.0)
            .await
            .ok_or_else(no_memory)?;
        let mut buffer = BytesMut::with_capacity(FIRST);
        buffer.extend_from_slice(header.text.as_bytes());
        Ok(Self {
            submit,
            handover,
            budget,
            budget_timeout: limits.budget_timeout.0,
            enqueue_timeout: limits.enqueue_timeout.0,
            trace,
            id,
            id_at: header.id_at,
            size: buffer.len() as u64,
            buffer,
            paid: Some(paid),
            capacity: FIRST,
            scan: HeaderScan::new(),
            upload: None,
            digest: Sha256::new(),
            failed: None,
            full: BTreeSet::new(),
            fresh: true,
        })
    }

    /// How many octets may be read from the peer now; waits for memory.
    pub(super) async fn room(&mut self) -> usize {
        if self.failed.is_some() {
            return READ;
        }
        if self.capacity.saturating_sub(self.buffer.len()) < LITTLE && self.capacity < CHUNK_SIZE {
            self.grow().await;
        }
        let left = self.capacity.saturating_sub(self.buffer.len());
        // A full piece leaves when the next octet comes.
        if left == 0 || self.failed.is_some() {
            READ
        } else {
            left.min(READ)
        }
    }

    async fn grow(&mut self) {
        let target = (self.capacity * 2).min(CHUNK_SIZE);
        if let Some(more) = self.budget.pay(target - self.capacity, IMPATIENCE).await {
            match &mut self.paid {
                Some(paid) => paid.merge(more),
                None => self.paid = Some(more),
            }
            self.capacity = target;
            // Exactly what is paid.
            let mut bigger = BytesMut::with_capacity(target.max(self.buffer.len()));
            bigger.extend_from_slice(&self.buffer);
            self.buffer = bigger;
        } else if let Err(e) = self.flush().await {
            self.fail(e);
        }
    }

    /// The next octets of the message.
    pub(super) async fn append(&mut self, mut octets: Bytes) {
        if self.failed.is_some() {
            return;
        }
        if self.fresh && matches!(octets.first(), Some(b' ' | b'\t')) {
            // It would continue our own header.
            return self.fail(Failed {
                reply: Reply::new(554, (5, 6, 0), "Message begins with white space"),
                why: Refusal::Content,
            });
        }
        self.fresh &= octets.is_empty();
        self.scan.feed(&octets);
        self.size = self.size.saturating_add(octets.len() as u64);
        while !octets.is_empty() {
            if self.buffer.len() >= CHUNK_SIZE
                && let Err(e) = self.flush().await
            {
                return self.fail(e);
            }
            let n = octets.len().min(CHUNK_SIZE - self.buffer.len());
            self.buffer.extend_from_slice(&octets[..n]);
            octets.advance(n);
        }
    }

    fn fail(&mut self, why: Failed) {
        self.failed = Some(why);
        self.buffer = BytesMut::new();
        self.paid = None;
        self.upload = None;
    }

    /// Sends off what is in the buffer and starts another.
    async fn flush(&mut self) -> Result<(), Failed> {
        self.send_piece(Instant::now() + self.enqueue_timeout)
            .await?;
        self.paid = Some(
            self.budget
                .pay(FIRST, self.budget_timeout)
                .await
                .ok_or_else(no_memory)?,
        );
        self.capacity = FIRST;
        self.buffer = BytesMut::with_capacity(FIRST);
        Ok(())
    }

    async fn send_piece(&mut self, deadline: Instant) -> Result<(), Failed> {
        let piece = std::mem::take(&mut self.buffer).freeze();
        let paid = self.paid.take();
        if piece.is_empty() {
            return Ok(());
        }
        if let Some(upload) = &mut self.upload {
            self.digest.update(&piece);
            return upload
                .push(piece, paid, deadline)
                .await
                .map_err(|e| upload_failed(self.id, &e));
        }
        // The first piece decides the shard: until it is durable the id may change.
        let mut piece = piece;
        let mut pause = Duration::from_millis(20);
        loop {
            let mut upload = self.submit.begin_upload(self.id, self.trace.clone());
            match upload.push(piece.clone(), (), deadline).await {
                Ok(()) => {
                    self.digest.update(&piece);
                    self.upload = Some(upload);
                    return Ok(());
                }
                Err(UploadError::NotProposed(_)) => {
                    if !self.move_on(deadline, &mut pause).await {
                        return Err(no_queue());
                    }
                    piece = rename(&piece, self.id_at, self.id);
                }
                Err(UploadError::StorageFull(node)) => {
                    if !self.step_aside(node, deadline) {
                        return Err(no_memory());
                    }
                    piece = rename(&piece, self.id_at, self.id);
                }
                Err(e) => return Err(upload_failed(self.id, &e)),
            }
        }
    }

    /// Takes another shard and id after a proposal that was none; false when there is no time left.
    async fn move_on(&mut self, deadline: Instant, pause: &mut Duration) -> bool {
        sleep(*pause).await;
        *pause = (*pause * 2).min(Duration::from_millis(500));
        let until = deadline.checked_sub(SETTLE).unwrap_or(deadline);
        if Instant::now() >= until {
            return false;
        }
        let Some(shard) = self.submit.led_shard(until).await else {
            return false;
        };
        tracing::debug!(from = %self.id, shard = %shard, "shard without leader: another one is taken");
        self.id = self.submit.new_id(shard);
        true
    }

    /// Takes a shard of another leader and another id after `node` had no space, which is certain: nothing was
    /// proposed. False if every leader said so, or there is no time left.
    fn step_aside(&mut self, node: NodeId, deadline: Instant) -> bool {
        self.full.insert(node);
        let until = deadline.checked_sub(SETTLE).unwrap_or(deadline);
        if Instant::now() >= until {
            return false;
        }
        let Some(shard) = self.submit.shard_besides(&self.full) else {
            return false;
        };
        tracing::debug!(from = %self.id, %node, shard = %shard, "node without space: another shard is taken");
        self.id = self.submit.new_id(shard);
        true
    }

    /// After the final dot: durable, refused, or unknown.
    pub(super) async fn finish(mut self, envelope: v1::Envelope, entry: v1::EntryRecord) -> Ended {
        let (outcome, why) = match self.settle(envelope, entry).await {
            Ok(outcome) => (outcome, None),
            Err(f) => (BodyOutcome::Reply(f.reply), Some(f.why)),
        };
        Ended {
            id: self.id,
            size: self.size,
            outcome,
            why,
        }
    }

    async fn settle(
        &mut self,
        envelope: v1::Envelope,
        entry: v1::EntryRecord,
    ) -> Result<BodyOutcome, Failed> {
        if self.scan.received() > HOPS {
            let reply = Reply::new(554, (5, 4, 6), "Too many hops");
            return Err(Failed {
                reply,
                why: Refusal::Content,
            });
        }
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        let deadline = Instant::now() + self.enqueue_timeout;
        let mut submission = Submission {
            id: self.id,
            envelope,
            entry,
            trace: self.trace.clone(),
            size: self.size,
            sha256: [0; 32],
            content: Content::Uploaded { chunks: 0 },
            lease: false,
        };
        if self.upload.is_some() {
            self.send_piece(deadline).await?;
            let chunks = match &mut self.upload {
                Some(upload) => upload
                    .finish()
                    .await
                    .map_err(|e| upload_failed(self.id, &e))?,
                None => 0,
            };
            submission.content = Content::Uploaded { chunks };
            submission.sha256 = self.digest.clone().finalize().into();
            return self.outcome(self.submit.submit(submission, deadline).await);
        }
        let mut body = std::mem::take(&mut self.buffer).freeze();
        let _paid = self.paid.take();
        submission.lease = self.handover.wanted(&submission.envelope);
        let mut pause = Duration::from_millis(20);
        loop {
            submission.id = self.id;
            submission.sha256 = Sha256::digest(&body).into();
            submission.content = Content::Inline(body.clone());
            match self.submit.submit(submission.clone(), deadline).await {
                Err(SubmitError::NotProposed(_)) => {
                    if !self.move_on(deadline, &mut pause).await {
                        return Err(no_queue());
                    }
                    body = rename(&body, self.id_at, self.id);
                }
                Err(SubmitError::StorageFull(node)) => {
                    if !self.step_aside(node, deadline) {
                        return Err(no_memory());
                    }
                    body = rename(&body, self.id_at, self.id);
                }
                settled => {
                    if let Ok(durable) = &settled {
                        self.handover.accepted(&submission, durable, body);
                    }
                    return self.outcome(settled);
                }
            }
        }
    }

    fn outcome(
        &self,
        settled: Result<sealane_client::Durable, SubmitError>,
    ) -> Result<BodyOutcome, Failed> {
        match settled {
            Ok(durable) => Ok(BodyOutcome::Durable(Durable::acknowledged(durable.id()))),
            Err(SubmitError::Unknown) => Ok(BodyOutcome::Unknown),
            Err(SubmitError::StorageFull(_)) => Err(no_memory()),
            Err(e @ SubmitError::Rejected(_)) => {
                // Our mistake, not the client's: it keeps the message.
                tracing::error!(message.id = %self.id, error = %e, "the queue rejects a message");
                Err(no_queue())
            }
            Err(e @ (SubmitError::NotProposed(_) | SubmitError::Transient(_))) => {
                tracing::debug!(message.id = %self.id, error = %e, "not enqueued");
                Err(no_queue())
            }
        }
    }
}

/// The same octets with another id in our header.
fn rename(body: &Bytes, at: usize, id: MessageId) -> Bytes {
    let mut octets = BytesMut::from(&body[..]);
    let id = id.to_string();
    if let Some(place) = octets.get_mut(at..at + id.len()) {
        place.copy_from_slice(id.as_bytes());
    }
    octets.freeze()
}

fn upload_failed(id: MessageId, e: &UploadError) -> Failed {
    match e {
        UploadError::StorageFull(_) => no_memory(),
        UploadError::Rejected(_) => {
            tracing::error!(message.id = %id, error = %e, "the queue rejects a piece of a message");
            no_queue()
        }
        UploadError::NotProposed(_) | UploadError::Transient(_) => no_queue(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_id_is_written_over_the_old_one() {
        let id = |n| MessageId::new(ShardId::new(n).expect("in range"), 5, [9; 9]);
        let text = format!("id {};\r\nbody", id(1));
        let renamed = rename(&Bytes::from(text), 3, id(2));
        assert_eq!(renamed, format!("id {};\r\nbody", id(2)));
    }
}
