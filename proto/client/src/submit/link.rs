//! One Submit stream per control-plane node, for ever.
use super::Desk;
use crate::{backoff::Backoff, leaders::Link, members::Members};
use sealane_types::NodeId;
use sealane_wire::v1::{self, queue_client::QueueClient, submit_reply, submit_request};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Frames on their way to one node. When full, submissions wait: the node's flow control reaches the
/// SMTP peers.
const FRAMES: usize = 256;
/// From the call to the hello.
const HELLO: Duration = Duration::from_secs(5);
/// A second way to a node that is reached already is tried again after this.
const REDUNDANT: Duration = Duration::from_secs(10);

/// Starts and ends the streams as members come and go.
#[derive(Debug)]
pub(super) struct Supervisor {
    relay: String,
    members: Members,
    desk: Arc<Desk>,
    generations: Arc<AtomicU64>,
}

impl Supervisor {
    pub(super) fn new(relay: String, members: Members, desk: Arc<Desk>) -> Self {
        Self {
            relay,
            members,
            desk,
            generations: Arc::default(),
        }
    }

    pub(super) async fn run(self) {
        let mut members = self.members.subscribe();
        let mut known: BTreeSet<String> = BTreeSet::new();
        let mut links = JoinSet::new();
        loop {
            let now = members.borrow_and_update().clone();
            for address in now.iter() {
                if known.insert(address.clone()) {
                    let link = Runner {
                        relay: self.relay.clone(),
                        address: address.clone(),
                        members: self.members.clone(),
                        desk: self.desk.clone(),
                        generations: self.generations.clone(),
                    };
                    links.spawn(link.run());
                }
            }
            tokio::select! {
                changed = members.changed() => if changed.is_err() { return },
                Some(ended) = links.join_next() => {
                    if let Ok(address) = ended {
                        known.remove(&address);
                    }
                }
            }
        }
    }
}

struct Runner {
    relay: String,
    address: String,
    members: Members,
    desk: Arc<Desk>,
    generations: Arc<AtomicU64>,
}

impl Runner {
    /// Returns its address when that is no member's any more.
    async fn run(self) -> String {
        let mut backoff = Backoff::connect();
        loop {
            let pause = match self.converse(&mut backoff).await {
                Ok(End::Redundant) => REDUNDANT,
                Ok(End::Closed) => backoff.pause(),
                Err(e) => {
                    tracing::debug!(address = %self.address, error = %format!("{e:#}"), "no submit stream");
                    backoff.pause()
                }
            };
            if !self.members.addresses().contains(&self.address) {
                return self.address;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// What the node's clock shows, sent after `asked`.
    fn shows(&self, hello: &v1::ServerHello, asked: u64) {
        let clock = &self.desk.clock;
        if hello.now_ms > 0 {
            clock.heard(hello.node_id, hello.now_ms, (asked, clock.steady_ms()));
        }
    }

    async fn converse(&self, backoff: &mut Backoff) -> anyhow::Result<End> {
        use submit_reply::Frame;
        let mut client = QueueClient::new(self.members.dial(&self.address)?);
        let (frames, queued) = mpsc::channel(FRAMES);
        let hello = submit_request::Frame::Hello(v1::SubmitHello {
            relay: self.relay.clone(),
        });
        frames
            .send(v1::SubmitRequest { frame: Some(hello) })
            .await?;
        let asked = self.desk.clock.steady_ms();
        let opening = async {
            let mut replies = client
                .submit(ReceiverStream::new(queued))
                .await?
                .into_inner();
            let first = replies.message().await?;
            anyhow::Ok((replies, first))
        };
        let (mut replies, first) = timeout(HELLO, opening).await??;
        let Some(v1::SubmitReply {
            frame: Some(Frame::Hello(hello)),
        }) = first
        else {
            anyhow::bail!("no hello");
        };
        self.members.learn(&hello);
        self.shows(&hello, asked);
        let link = Link {
            node: NodeId(hello.node_id),
            generation: self.generations.fetch_add(1, Ordering::Relaxed),
            frames,
            broken: CancellationToken::new(),
        };
        if !self.desk.leaders.join(&link) {
            return Ok(End::Redundant);
        }
        let _left = Joined {
            desk: &self.desk,
            link: &link,
        };
        backoff.reset();
        tracing::info!(address = %self.address, node = %link.node, "submit stream open");
        loop {
            match replies.message().await {
                Ok(Some(v1::SubmitReply { frame: Some(frame) })) => match frame {
                    Frame::Hello(hello) => {
                        self.members.learn(&hello);
                        self.shows(&hello, self.desk.clock.steady_ms());
                    }
                    Frame::Leading(leading) => self.desk.leaders.claim(&link, &leading),
                    Frame::Outcome(outcome) => self.desk.answers.deliver(link.generation, outcome),
                },
                Ok(Some(_)) => {}
                Ok(None) => {
                    tracing::info!(address = %self.address, node = %link.node, "submit stream ended");
                    return Ok(End::Closed);
                }
                Err(e) => {
                    tracing::info!(address = %self.address, node = %link.node, error = %e, "submit stream lost");
                    return Ok(End::Closed);
                }
            }
        }
    }
}

/// Claims end with the stream, whatever ends it.
struct Joined<'a> {
    desk: &'a Desk,
    link: &'a Link,
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        self.desk.leaders.leave(self.link);
        self.link.broken.cancel();
    }
}

enum End {
    Closed,
    Redundant,
}
