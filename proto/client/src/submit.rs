//! Enqueue with exactly two outcomes, and the honest third.
use crate::{control::ControlPlane, link::NoAnswer};
use bytes::Bytes;
use sealane_types::MessageId;
use sealane_wire::v1::{self, submit_outcome::Kind, submit_request::Frame};
use std::time::Duration;
use tokio::time::Instant;

/// The last part of the deadline is kept for the abort.
const ABORT: Duration = Duration::from_secs(6);
/// One proposal is waited for at most this long before it is asked again.
const TRY: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(50);

/// A message on its way into the queue.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Names shard and message.
    pub id: MessageId,
    /// Checked envelope.
    pub envelope: v1::Envelope,
    /// Who brought it.
    pub entry: v1::EntryRecord,
    /// To be continued by every attempt.
    pub trace: v1::TraceContext,
    /// Octets.
    pub size: u64,
    /// Digest of all of them.
    pub sha256: [u8; 32],
    /// All of them if `chunks` is 0.
    pub body: Bytes,
    /// Pieces sent before with [`ControlPlane::push_chunk`].
    pub chunks: u32,
}

/// Why a message is not known to be durable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// It certainly is not and never will be: 451 is true.
    #[error("not accepted: {0}")]
    Transient(String),
    /// The same, because the volumes are full: 452.
    #[error("not accepted: queue storage is full")]
    StorageFull,
    /// The same, and trying again would not help.
    #[error("refused: {0}")]
    Rejected(String),
    /// Nobody knows. Say nothing to the client.
    #[error("outcome unknown")]
    Unknown,
}

impl ControlPlane {
    /// Makes a message durable, or makes sure that it never will be.
    ///
    /// # Cancel safety
    /// A dropped call leaves the outcome unknown.
    pub async fn submit(&self, s: Submission, deadline: Instant) -> Result<(), SubmitError> {
        let id = Bytes::copy_from_slice(s.id.as_bytes());
        let frame = Frame::Enqueue(v1::Enqueue {
            id: id.clone(),
            envelope: Some(s.envelope),
            entry: Some(s.entry),
            trace: Some(s.trace),
            size: s.size,
            sha256: s.sha256.to_vec().into(),
            body: s.body,
            chunks: s.chunks,
        });
        self.settle(s.id, frame, Kind::Durable, deadline, s.chunks > 0).await
    }

    /// Makes one piece of a large body durable.
    pub async fn push_chunk(
        &self,
        id: MessageId,
        seq: u32,
        data: Bytes,
        trace: v1::TraceContext,
        deadline: Instant,
    ) -> Result<(), SubmitError> {
        let frame =
            Frame::Chunk(v1::Chunk { id: Bytes::copy_from_slice(id.as_bytes()), seq, data, trace: Some(trace) });
        self.settle(id, frame, Kind::ChunkDurable, deadline, true).await
    }

    /// Forgets a message that was begun; best effort, the queue forgets it by itself later.
    pub async fn abandon(&self, id: MessageId) {
        let _ = self.abort(id, Instant::now() + Duration::from_secs(2)).await;
    }

    async fn settle(
        &self,
        id: MessageId,
        frame: Frame,
        wanted: Kind,
        deadline: Instant,
        mut sent: bool,
    ) -> Result<(), SubmitError> {
        let raw = Bytes::copy_from_slice(id.as_bytes());
        let last_try = deadline.checked_sub(ABORT).unwrap_or(deadline);
        let mut reason = String::from("no leader for the queue shard");
        while Instant::now() < last_try {
            let Some(link) = self.leader(id.shard().get()) else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let limit = TRY.min(last_try.saturating_duration_since(Instant::now()));
            match link.ask(raw.clone(), frame.clone(), limit).await {
                Ok(o) => match o.kind() {
                    k if k == wanted => return Ok(()),
                    // A late answer to a repetition.
                    Kind::Durable => return Ok(()),
                    Kind::Aborted => return Err(SubmitError::Transient("aborted".into())),
                    Kind::Rejected if !sent => return Err(SubmitError::Rejected(o.detail)),
                    Kind::Rejected => {
                        reason = o.detail;
                        break;
                    }
                    Kind::StorageFull if !sent => return Err(SubmitError::StorageFull),
                    Kind::Unknown => {
                        sent = true;
                        reason = o.detail;
                    }
                    _ => reason = o.detail,
                },
                Err(NoAnswer::NotSent) => {}
                Err(NoAnswer::Unknown) => {
                    sent = true;
                    reason = "the control plane did not answer".into();
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        if !sent {
            return Err(SubmitError::Transient(reason));
        }
        match self.abort(id, deadline).await {
            Some(Kind::Aborted) => Err(SubmitError::Transient(reason)),
            Some(Kind::Durable) if wanted == Kind::Durable => Ok(()),
            _ => Err(SubmitError::Unknown),
        }
    }

    async fn abort(&self, id: MessageId, deadline: Instant) -> Option<Kind> {
        let raw = Bytes::copy_from_slice(id.as_bytes());
        while Instant::now() < deadline {
            if let Some(link) = self.leader(id.shard().get()) {
                let limit = deadline.saturating_duration_since(Instant::now());
                let frame = Frame::Abort(v1::Abort { id: raw.clone() });
                if let Ok(o) = link.ask(raw.clone(), frame, limit).await
                    && matches!(o.kind(), Kind::Aborted | Kind::Durable)
                {
                    return Some(o.kind());
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }
}
