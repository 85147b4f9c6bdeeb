//! Bodies above 1 MiB, piece by piece.
use super::{Desk, settle::send};
use crate::{backoff::Backoff, leaders::Link};
use bytes::Bytes;
use sealane_types::{CHUNK_SIZE, MessageId, NodeId, TraceContext};
use sealane_wire::v1::{self, submit_outcome::Kind, submit_request::Frame};
use std::sync::Arc;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Pieces that wait for their acknowledgement while the next is collected.
const PIPELINE: usize = 2;

/// Why a piece is not durable. The message is not accepted in any of these cases.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UploadError {
    /// The first piece could not be proposed: try another shard with a new id.
    #[error("not proposed: {0}")]
    NotProposed(String),
    /// Not in time: 451.
    #[error("not stored in time: {0}")]
    Transient(String),
    /// The volume of the shard's leader, this node, is nearly full. A first piece may go to a shard of another
    /// leader with a new id; else 452.
    #[error("node {0} is out of space")]
    StorageFull(NodeId),
    /// The control plane does not accept it; names the field.
    #[error("rejected: {0}")]
    Rejected(String),
}

/// A body on its way, in order. Dropping it gives it up.
#[derive(Debug)]
pub struct Upload {
    desk: Arc<Desk>,
    id: MessageId,
    trace: TraceContext,
    next: u32,
    pieces: JoinSet<Result<(), UploadError>>,
}

impl Upload {
    pub(super) fn new(desk: Arc<Desk>, id: MessageId, trace: TraceContext) -> Self {
        Self {
            desk,
            id,
            trace,
            next: 0,
            pieces: JoinSet::new(),
        }
    }

    /// The message that this becomes.
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// Takes the next piece, 1 octet to 1 MiB; `paid` is dropped when the piece is durable. Waits for the
    /// first piece, and afterwards while more than two are unacknowledged. After an error give up.
    ///
    /// # Cancel safety
    /// Not cancel safe.
    pub async fn push<P: Send + 'static>(
        &mut self,
        data: Bytes,
        paid: P,
        deadline: Instant,
    ) -> Result<(), UploadError> {
        if data.is_empty() || data.len() > CHUNK_SIZE {
            return Err(UploadError::Rejected(
                "chunk.data: needs 1 octet to 1 MiB".into(),
            ));
        }
        let seq = self.next;
        self.next = seq
            .checked_add(1)
            .ok_or_else(|| UploadError::Rejected("too many pieces".into()))?;
        let (desk, id, trace) = (self.desk.clone(), self.id, self.trace.clone());
        self.pieces.spawn(async move {
            let stored = store(&desk, id, seq, data, trace, deadline).await;
            drop(paid);
            stored
        });
        let room = if seq == 0 { 0 } else { PIPELINE };
        self.settle(room).await
    }

    /// Waits for all pieces and counts them.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn finish(&mut self) -> Result<u32, UploadError> {
        self.settle(0).await?;
        Ok(self.next)
    }

    async fn settle(&mut self, room: usize) -> Result<(), UploadError> {
        while self.pieces.len() > room {
            match self.pieces.join_next().await {
                Some(Ok(stored)) => stored?,
                Some(Err(e)) => return Err(UploadError::Transient(e.to_string())),
                None => break,
            }
        }
        Ok(())
    }
}

/// Sends one piece until it is durable: idempotent by id and number.
async fn store(
    desk: &Desk,
    id: MessageId,
    seq: u32,
    data: Bytes,
    trace: TraceContext,
    deadline: Instant,
) -> Result<(), UploadError> {
    let mut views = desk.leaders.subscribe();
    let mut registration = desk.answers.register(id, seq);
    let mut backoff = Backoff::resend();
    let mut clean = true;
    let mut reason = "no leader".to_owned();
    let chunk = v1::Chunk {
        id: Bytes::copy_from_slice(id.as_bytes()),
        seq,
        data,
        trace: Some(trace.into()),
    };
    while Instant::now() < deadline {
        let link: Option<Link> = views
            .borrow_and_update()
            .leaders
            .get(&id.shard())
            .map(|l| l.link.clone());
        let Some(link) = link else {
            if seq == 0 && clean {
                return Err(UploadError::NotProposed(reason));
            }
            tokio::select! {
                _ = views.changed() => {}
                () = sleep_until(deadline) => {}
            }
            continue;
        };
        if !send(&link, Frame::Chunk(chunk.clone()), deadline).await {
            sleep_until((Instant::now() + backoff.pause()).min(deadline)).await;
            continue;
        }
        let answer = loop {
            tokio::select! {
                biased;
                Some(a) = registration.answers.recv() => {
                    if a.generation == link.generation || a.outcome.kind() == Kind::ChunkDurable {
                        break Some(a.outcome);
                    }
                }
                () = link.broken.cancelled() => break None,
                _ = views.changed() => {
                    let now = views.borrow().leaders.get(&id.shard()).map(|l| l.link.generation);
                    if now.is_some_and(|g| g != link.generation) { break None; }
                }
                () = sleep_until(deadline) => break None,
            }
        };
        let Some(answer) = answer else {
            clean = false;
            continue;
        };
        match answer.kind() {
            Kind::ChunkDurable | Kind::Durable => return Ok(()),
            Kind::Rejected => return Err(UploadError::Rejected(answer.detail)),
            Kind::Aborted => return Err(UploadError::Transient("aborted".into())),
            Kind::StorageFull => return Err(UploadError::StorageFull(link.node)),
            kind @ (Kind::NotLeader | Kind::Unavailable) => {
                let why = if answer.detail.is_empty() {
                    kind.as_str_name().to_owned()
                } else {
                    answer.detail
                };
                if seq == 0 && clean {
                    return Err(UploadError::NotProposed(why));
                }
                reason = why;
            }
            Kind::Unknown | Kind::Unspecified => {
                clean = false;
                reason = answer.detail;
            }
        }
        sleep_until((Instant::now() + backoff.pause()).min(deadline)).await;
    }
    Err(UploadError::Transient(reason))
}
