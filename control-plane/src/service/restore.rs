//! One shard's part of a restore: every frame is an entry of the shard's log, and answered once that is
//! fsynced on a majority and applied.
//!
//! One frame after the other: what the state machine says of its order is then never a race. The frames
//! that wait are bounded by HTTP/2 flow control.
use super::backup::{BackupRpc, elsewhere, other_leader, refusal};
use crate::raft::{Group, Groups, ProposeError};
use bytes::Bytes;
use sealane_types::{CHUNK_SIZE, ShardId};
use sealane_wire::{
    message_id,
    v1::{
        self, command::Op, command_reply::Result as Answer, restore_frame::Frame,
        restore_op::Step as Do, restore_reply::Frame as Reply,
    },
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, time::timeout};
use tonic::{Status, Streaming};

/// The next frame comes within this.
const NEXT: Duration = Duration::from_secs(60);
/// An entry without result for this long has an unknown outcome: it is sent again.
const COMMIT: Duration = Duration::from_secs(25);
/// Replies that wait for a slow reader.
const REPLIES: usize = 32;
/// Fates of one entry.
const FATES: usize = 10_000;

type Replies = mpsc::Sender<Result<v1::RestoreReply, Status>>;

/// Answers a stream until it ends.
pub(super) async fn serve(
    service: &BackupRpc,
    mut frames: Streaming<v1::RestoreFrame>,
) -> Result<mpsc::Receiver<Result<v1::RestoreReply, Status>>, Status> {
    let Some(Frame::Hello(hello)) = next(&mut frames).await? else {
        return Err(Status::invalid_argument("frame: the first must be a hello"));
    };
    let shard = ShardId::new(hello.shard)
        .ok_or_else(|| Status::invalid_argument("hello.shard: needs 1 to 255"))?;
    let open = hello
        .open
        .ok_or_else(|| Status::invalid_argument("hello.open: missing"))?;
    let (tx, rx) = mpsc::channel(REPLIES);
    let Some(group) = service.local(shard.get())? else {
        let _ = say(&tx, Reply::Elsewhere(elsewhere(None, None))).await;
        return Ok(rx);
    };
    let restore = Restore {
        groups: service.groups.clone(),
        group,
        backup: hello.backup,
        disk_full: service.disk_full.clone(),
        closing: service.closing.clone(),
    };
    tokio::spawn(async move {
        if let Err(status) = restore.run(open, frames, &tx).await {
            let _ = tx.send(Err(status)).await;
        }
    });
    Ok(rx)
}

async fn next(frames: &mut Streaming<v1::RestoreFrame>) -> Result<Option<Frame>, Status> {
    let frame = timeout(NEXT, frames.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no frame came"))??;
    Ok(frame.and_then(|f| f.frame))
}

/// False if the reader is gone.
async fn say(tx: &Replies, reply: Reply) -> bool {
    tx.send(Ok(v1::RestoreReply { frame: Some(reply) }))
        .await
        .is_ok()
}

struct Restore {
    groups: Arc<Groups>,
    group: Group,
    backup: Bytes,
    disk_full: Arc<AtomicBool>,
    closing: Arc<AtomicBool>,
}

impl Restore {
    async fn run(
        &self,
        open: v1::RestoreOpen,
        mut frames: Streaming<v1::RestoreFrame>,
        tx: &Replies,
    ) -> Result<(), Status> {
        let mut entry = Some((self.step(Do::Open(open)), Bytes::new()));
        while let Some((op, body)) = entry.take() {
            let reply = self.commit(op, body).await?;
            let ended = matches!(reply, Reply::Elsewhere(_));
            if !say(tx, reply).await || ended {
                return Ok(());
            }
            entry = next(&mut frames)
                .await?
                .map(|f| self.entry(f))
                .transpose()?;
        }
        Ok(())
    }

    fn step(&self, step: Do) -> Op {
        Op::Restore(v1::RestoreOp {
            backup: self.backup.clone(),
            step: Some(step),
        })
    }

    /// What a frame is in the log.
    fn entry(&self, frame: Frame) -> Result<(Op, Bytes), Status> {
        let too_large = |field: &str| {
            Status::invalid_argument(format!("{field}: needs at most {CHUNK_SIZE} octets"))
        };
        Ok(match frame {
            Frame::Hello(_) => return Err(Status::invalid_argument("frame: a second hello")),
            Frame::Chunk(c) => {
                message_id("chunk.id", &c.id)
                    .map_err(|e| Status::invalid_argument(e.to_string()))?;
                let length = u32::try_from(c.data.len()).unwrap_or(u32::MAX);
                if c.data.len() > CHUNK_SIZE {
                    return Err(too_large("chunk.data"));
                }
                let op = v1::BodyChunkOp {
                    id: c.id,
                    seq: c.seq,
                    length,
                };
                (Op::Chunk(op), c.data)
            }
            Frame::Message(m) => {
                if m.body.len() > CHUNK_SIZE {
                    return Err(too_large("message.body"));
                }
                let message = m
                    .message
                    .ok_or_else(|| Status::invalid_argument("message.message: missing"))?;
                (self.step(Do::Message(message)), m.body)
            }
            Frame::Fates(f) => {
                if f.aborted.len() + f.finished.len() > FATES {
                    return Err(Status::invalid_argument(format!("fates: at most {FATES}")));
                }
                (self.step(Do::Fates(f)), Bytes::new())
            }
            Frame::Close(c) => (self.step(Do::Close(c)), Bytes::new()),
        })
    }

    async fn commit(&self, op: Op, body: Bytes) -> Result<Reply, Status> {
        if self.closing.load(Ordering::Relaxed) {
            return Err(Status::unavailable("shutting down"));
        }
        if self.disk_full.load(Ordering::Relaxed) {
            return Err(Status::resource_exhausted("the volume is nearly full"));
        }
        let redirect = |leader| Ok(Reply::Elsewhere(elsewhere(Some(&self.group), leader)));
        if self.group.leading().is_none() {
            return redirect(other_leader(&self.groups, &self.group));
        }
        match timeout(COMMIT, self.group.propose(op, body)).await {
            Ok(Ok(committed)) => match committed.reply.result {
                Some(Answer::Restore(record)) => Ok(Reply::Record(*record)),
                // Aborted: its relay withdrew it in this cluster; the message then is passed over.
                Some(Answer::Chunk(_) | Answer::Aborted(_)) => Ok(Reply::Chunk(v1::ChunkStored {})),
                Some(Answer::Refused(r)) => Err(refusal(&r)),
                _ => Err(Status::internal("unexpected answer of the state machine")),
            },
            Ok(Err(ProposeError::NotLeader { leader })) => redirect(leader),
            Ok(Err(e)) => Err(Status::unavailable(e.to_string())),
            Err(_) => Err(Status::unavailable("no commit within the deadline")),
        }
    }
}
