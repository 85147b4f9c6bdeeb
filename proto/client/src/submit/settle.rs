//! From a frame to an outcome that may be told to the SMTP client.
//!
//! 1. Until `deadline - ABORT_WINDOW`: send the Enqueue to the shard's leader; after a lost stream, a
//!    change of leader or a temporary answer send it again, same id, same shard.
//! 2. Then, if an Enqueue may have been proposed: Abort, until the shard answers that the id is void
//!    (transient) or durable.
//! 3. At the deadline: unknown.
//!
//! An Enqueue's "durable" counts only while no Abort was sent, since an Abort removes a message that
//! never was leased. Answers do not say what they answer; so, once aborting, "durable" counts if
//! every frame that this stream owes an answer to has said so.
use super::{Desk, lookup::Registration};
use crate::{
    backoff::Backoff,
    leaders::{Link, View},
};
use bytes::Bytes;
use sealane_mutants::{Mutant::M18, mutant};
use sealane_types::{MessageId, NodeId, TraceContext};
use sealane_wire::v1::{self, submit_outcome::Kind, submit_request::Frame};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// This long before the deadline an unsettled enqueue is aborted.
const ABORT_WINDOW: Duration = Duration::from_secs(5);

/// A message as the relay accepted it.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Its name for life; decides the shard.
    pub id: MessageId,
    /// From and to.
    pub envelope: v1::Envelope,
    /// Who brought it in (INV-2).
    pub entry: v1::EntryRecord,
    /// Of the receiving span.
    pub trace: TraceContext,
    /// Octets of the whole body, trace headers included.
    pub size: u64,
    /// Of the whole body.
    pub sha256: [u8; 32],
    /// The body.
    pub content: Content,
    /// This relay would deliver it at once.
    pub lease: bool,
}

/// Where the body is.
#[derive(Debug, Clone)]
pub enum Content {
    /// At most 1 MiB, travels with the envelope.
    Inline(Bytes),
    /// Sent before, in this many pieces.
    Uploaded {
        /// As counted by [`super::Upload::finish`].
        chunks: u32,
    },
}

/// The shard's state machine has the message, fsynced on a majority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Durable {
    id: MessageId,
    grant: Option<Grant>,
}

impl Durable {
    /// Which message.
    pub fn id(&self) -> MessageId {
        self.id
    }
    /// The lease that came with it, if one was asked for and granted.
    pub fn grant(&self) -> Option<Grant> {
        self.grant
    }
}

/// All recipients are leased to this relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Fences off earlier holders.
    pub epoch: u64,
    /// From `since`.
    pub length: Duration,
    /// Before the lease was made.
    pub since: Instant,
    /// Who gave it.
    pub node: NodeId,
}

/// Why there is no durable message, or none that we know of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The shard cannot take it now and nothing was proposed: try another shard with a new id.
    #[error("not proposed: {0}")]
    NotProposed(String),
    /// Nothing was or ever will be accepted under this id: 451.
    #[error("not accepted: {0}")]
    Transient(String),
    /// The volume of the shard's leader, this node, is nearly full, nothing was proposed: try a shard of
    /// another leader with a new id, or 452.
    #[error("node {0} is out of space")]
    StorageFull(NodeId),
    /// The control plane does not accept this content; names the field.
    #[error("rejected: {0}")]
    Rejected(String),
    /// May be durable or not: nothing may be said to the client.
    #[error("outcome unknown")]
    Unknown,
}

pub(super) async fn submit(
    desk: &Desk,
    submission: Submission,
    deadline: Instant,
) -> Result<Durable, SubmitError> {
    let id = submission.id;
    let uploaded = matches!(submission.content, Content::Uploaded { .. });
    let mut settlement = Settlement {
        id,
        uploaded,
        views: desk.leaders.subscribe(),
        registration: desk.answers.register(id, 0),
        unsettled: 0,
        owed: Vec::new(),
        since: Instant::now(),
        backoff: Backoff::resend(),
    };
    let abort_at = deadline.checked_sub(ABORT_WINDOW).unwrap_or(deadline);
    match settlement.enqueue(submission, abort_at).await {
        Some(outcome) => outcome,
        None => settlement.abort(deadline).await,
    }
}

/// The settlement of one id.
struct Settlement<'a> {
    id: MessageId,
    uploaded: bool,
    views: watch::Receiver<Arc<View>>,
    registration: Registration<'a>,
    /// Enqueues that were sent and not answered with "nothing was proposed".
    unsettled: u32,
    /// Streams (by generation) that still owe answers to Enqueues, and how many.
    owed: Vec<(u64, u32)>,
    /// Before the first frame.
    since: Instant,
    backoff: Backoff,
}

/// What ended a wait.
enum Wake {
    Answer(Kind, v1::SubmitOutcome),
    /// The stream is gone, or another node leads now.
    Elsewhere,
    Deadline,
}

impl Settlement<'_> {
    /// `None`: time is up and an Enqueue may have been proposed.
    async fn enqueue(
        &mut self,
        submission: Submission,
        until: Instant,
    ) -> Option<Result<Durable, SubmitError>> {
        let mut reason = "no leader".to_owned();
        let frame = enqueue_frame(submission);
        loop {
            let Some(link) = self.leader() else {
                if self.unsettled == 0 && !self.uploaded {
                    return Some(Err(SubmitError::NotProposed(reason)));
                }
                if !self.wait_for_view(until).await {
                    break;
                }
                continue;
            };
            if !send(&link, frame.clone(), until).await {
                if Instant::now() >= until {
                    break;
                }
                // The stream broke before the frame went out; its claims go with it.
                self.pause(until).await;
                continue;
            }
            self.unsettled += 1;
            self.owe(link.generation);
            match self.answer(&link, until, false).await {
                Wake::Answer(Kind::Durable, outcome) => {
                    return Some(Ok(self.durable(link.node, &outcome)));
                }
                Wake::Answer(Kind::Aborted, _) => {
                    return Some(Err(SubmitError::Transient("aborted".into())));
                }
                Wake::Answer(Kind::Rejected, outcome) => {
                    return Some(Err(SubmitError::Rejected(outcome.detail)));
                }
                Wake::Answer(
                    kind @ (Kind::NotLeader | Kind::Unavailable | Kind::StorageFull),
                    v1::SubmitOutcome { detail, .. },
                ) => {
                    self.unsettled -= 1;
                    if self.unsettled == 0 && kind == Kind::StorageFull {
                        return Some(Err(SubmitError::StorageFull(link.node)));
                    }
                    if self.unsettled == 0 && !self.uploaded {
                        let why = if detail.is_empty() {
                            kind.as_str_name().to_owned()
                        } else {
                            detail
                        };
                        return Some(Err(SubmitError::NotProposed(why)));
                    }
                    reason = detail;
                    self.pause(until).await;
                }
                Wake::Answer(..) => self.pause(until).await,
                Wake::Elsewhere if mutant(M18) && !self.uploaded => {
                    return Some(Err(SubmitError::NotProposed("the stream broke".into())));
                }
                Wake::Elsewhere => {}
                Wake::Deadline => break,
            }
            if Instant::now() >= until {
                break;
            }
        }
        (self.unsettled == 0).then_some(Err(SubmitError::Transient(reason)))
    }

    async fn abort(&mut self, deadline: Instant) -> Result<Durable, SubmitError> {
        self.backoff.reset();
        while Instant::now() < deadline {
            let Some(link) = self.leader() else {
                self.wait_for_view(deadline).await;
                continue;
            };
            let frame = Frame::Abort(v1::Abort {
                id: Bytes::copy_from_slice(self.id.as_bytes()),
            });
            if !send(&link, frame, deadline).await {
                self.pause(deadline).await;
                continue;
            }
            // The Abort, and the Enqueues that this stream has not answered yet.
            let mut owed = 1 + self
                .owed
                .iter()
                .find(|(g, _)| *g == link.generation)
                .map_or(0, |(_, n)| *n);
            let mut durable = true;
            while owed > 0 {
                match self.answer(&link, deadline, true).await {
                    Wake::Answer(Kind::Aborted, _) => {
                        return Err(SubmitError::Transient(
                            "no outcome in time; withdrawn".into(),
                        ));
                    }
                    Wake::Answer(kind, _) => {
                        owed -= 1;
                        durable &= kind == Kind::Durable;
                    }
                    Wake::Elsewhere => {
                        durable = false;
                        break;
                    }
                    Wake::Deadline => return Err(SubmitError::Unknown),
                }
            }
            if durable {
                // What lease there may be was given to somebody who wanted the message withdrawn.
                return Ok(Durable {
                    id: self.id,
                    grant: None,
                });
            }
            self.pause(deadline).await;
        }
        Err(SubmitError::Unknown)
    }

    fn durable(&self, node: NodeId, outcome: &v1::SubmitOutcome) -> Durable {
        let grant = (outcome.lease_epoch > 0).then(|| Grant {
            epoch: outcome.lease_epoch,
            length: Duration::from_millis(outcome.lease_ms),
            since: self.since,
            node,
        });
        Durable { id: self.id, grant }
    }

    fn leader(&mut self) -> Option<Link> {
        let view = self.views.borrow_and_update();
        view.leaders.get(&self.id.shard()).map(|l| l.link.clone())
    }

    fn owe(&mut self, generation: u64) {
        match self.owed.iter_mut().find(|(g, _)| *g == generation) {
            Some((_, n)) => *n += 1,
            None => self.owed.push((generation, 1)),
        }
    }

    /// The next answer that counts: of `link`, or a final word from anywhere.
    async fn answer(&mut self, link: &Link, until: Instant, aborting: bool) -> Wake {
        loop {
            tokio::select! {
                biased;
                Some(a) = self.registration.answers.recv() => {
                    let kind = a.outcome.kind();
                    let owes = self.owed.iter_mut().find(|(g, n)| *g == a.generation && *n > 0);
                    let enqueue_owed = owes.map(|(_, n)| *n -= 1).is_some();
                    if kind == Kind::ChunkDurable {
                        continue;
                    }
                    let final_word = kind == Kind::Aborted || (kind == Kind::Durable && enqueue_owed && !aborting);
                    if a.generation == link.generation || final_word {
                        return Wake::Answer(kind, a.outcome);
                    }
                }
                () = link.broken.cancelled() => {
                    self.owed.retain(|(g, _)| *g != link.generation);
                    return Wake::Elsewhere;
                }
                _ = self.views.changed() => {
                    let now = self.views.borrow().leaders.get(&self.id.shard()).map(|l| l.link.generation);
                    if now.is_some_and(|g| g != link.generation) {
                        return Wake::Elsewhere;
                    }
                }
                () = sleep_until(until) => return Wake::Deadline,
            }
        }
    }

    /// False at `until`.
    async fn wait_for_view(&mut self, until: Instant) -> bool {
        tokio::select! {
            _ = self.views.changed() => true,
            () = sleep_until(until) => false,
        }
    }

    async fn pause(&mut self, until: Instant) {
        let pause = Instant::now() + self.backoff.pause();
        sleep_until(pause.min(until)).await;
    }
}

/// False if the stream broke, or `until` came, before the frame was taken.
pub(super) async fn send(link: &Link, frame: Frame, until: Instant) -> bool {
    let request = v1::SubmitRequest { frame: Some(frame) };
    // Most often there is room.
    let request = match link.frames.try_send(request) {
        Ok(()) => return true,
        Err(tokio::sync::mpsc::error::TrySendError::Closed(_)) => return false,
        Err(tokio::sync::mpsc::error::TrySendError::Full(r)) => r,
    };
    tokio::select! {
        permit = link.frames.reserve() => permit.map(|p| p.send(request)).is_ok(),
        () = link.broken.cancelled() => false,
        () = sleep_until(until) => false,
    }
}

fn enqueue_frame(s: Submission) -> Frame {
    let (body, chunks) = match s.content {
        Content::Inline(body) => (body, 0),
        Content::Uploaded { chunks } => (Bytes::new(), chunks),
    };
    Frame::Enqueue(v1::Enqueue {
        id: Bytes::copy_from_slice(s.id.as_bytes()),
        envelope: Some(s.envelope),
        entry: Some(s.entry),
        trace: Some(s.trace.into()),
        size: s.size,
        sha256: Bytes::copy_from_slice(&s.sha256),
        body,
        chunks,
        lease: s.lease,
    })
}
