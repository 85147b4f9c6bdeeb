//! One Deliver stream per control-plane node, for ever.
use super::{
    LeasedWork,
    desk::{Desk, Link},
};
use crate::{backoff::Backoff, members::Members};
use sealane_types::NodeId;
use sealane_wire::v1::{self, deliver_event, deliver_request, queue_client::QueueClient};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

/// Frames on their way to one node. When full, reports wait in the table and are sent again.
const FRAMES: usize = 1024;
/// From the call to the hello.
const HELLO: Duration = Duration::from_secs(5);
/// A second way to a node that is reached already is tried again after this.
const REDUNDANT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub(super) struct Supervisor {
    pub(super) relay: String,
    pub(super) members: Members,
    pub(super) desk: Arc<Desk>,
    pub(super) credits: u32,
    pub(super) leases: mpsc::Sender<LeasedWork>,
}

impl Supervisor {
    pub(super) async fn run(self) {
        let mut members = self.members.subscribe();
        let mut known: BTreeSet<String> = BTreeSet::new();
        let mut links = JoinSet::new();
        loop {
            let now = members.borrow_and_update().clone();
            for address in now.iter() {
                if known.insert(address.clone()) {
                    links.spawn(self.clone().follow(address.clone()));
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

    /// Returns the address when it is no member's any more.
    async fn follow(self, address: String) -> String {
        let mut backoff = Backoff::connect();
        loop {
            let pause = match self.converse(&address, &mut backoff).await {
                Ok(true) => backoff.pause(),
                Ok(false) => REDUNDANT,
                Err(e) => {
                    tracing::debug!(%address, error = %format!("{e:#}"), "no delivery stream");
                    backoff.pause()
                }
            };
            if !self.members.addresses().contains(&address) {
                return address;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// False: another stream to this node is alive.
    async fn converse(&self, address: &str, backoff: &mut Backoff) -> anyhow::Result<bool> {
        use deliver_event::Frame;
        let mut client = QueueClient::new(self.members.dial(address)?);
        let (frames, queued) = mpsc::channel(FRAMES);
        let hello = deliver_request::Frame::Hello(v1::DeliverHello {
            relay: self.relay.clone(),
        });
        frames
            .send(v1::DeliverRequest {
                frame: Some(hello),
                ..v1::DeliverRequest::default()
            })
            .await?;
        let opened = client.clone();
        let opening = async {
            let mut events = client
                .deliver(ReceiverStream::new(queued))
                .await?
                .into_inner();
            let first = events.message().await?;
            anyhow::Ok((events, first))
        };
        let (mut events, first) = timeout(HELLO, opening).await??;
        let Some(v1::DeliverEvent {
            frame: Some(Frame::Hello(hello)),
        }) = first
        else {
            anyhow::bail!("no hello");
        };
        self.members.learn(&hello);
        let node = NodeId(hello.node_id);
        let Some(generation) = self.desk.join(Link {
            node,
            generation: 0,
            frames,
            client: opened,
            credit: 0,
            said: Instant::now(),
        }) else {
            return Ok(false);
        };
        let _left = Joined {
            desk: &self.desk,
            node,
            generation,
        };
        self.desk.grant(node, generation, self.credits);
        backoff.reset();
        tracing::info!(%address, %node, "delivery stream open");
        loop {
            match events.message().await {
                Ok(Some(v1::DeliverEvent { frame: Some(frame) })) => match frame {
                    Frame::Hello(_) => {}
                    Frame::Lease(lease) => {
                        let arrived = Instant::now();
                        let since = self.desk.leased(&lease, node, generation, arrived);
                        if let Some(received) = since
                            && self
                                .leases
                                .send(LeasedWork { lease, received })
                                .await
                                .is_err()
                        {
                            return Ok(true);
                        }
                    }
                    Frame::Ack(ack) => self.desk.acknowledged(&ack),
                    Frame::Renewed(ack) => self.desk.renewed(&ack),
                },
                Ok(Some(_)) => {}
                Ok(None) => {
                    tracing::info!(%address, %node, "delivery stream ended");
                    return Ok(true);
                }
                Err(e) => {
                    tracing::info!(%address, %node, error = %e, "delivery stream lost");
                    return Ok(true);
                }
            }
        }
    }
}

/// A stream's end is noted, whatever ends it.
struct Joined<'a> {
    desk: &'a Desk,
    node: NodeId,
    generation: u64,
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        self.desk.leave(self.node, self.generation);
    }
}
