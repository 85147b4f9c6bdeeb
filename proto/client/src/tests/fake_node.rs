//! A control-plane node that tells what it hears and says what it is told.
use bytes::Bytes;
use sealane_types::MessageId;
use sealane_wire::v1::{
    self, deliver_event, deliver_request,
    policy_server::{Policy, PolicyServer},
    queue_server::{Queue, QueueServer},
    submit_outcome::Kind,
    submit_reply, submit_request,
};
use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{broadcast, mpsc, watch},
};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream, WatchStream},
};
use tonic::{Request, Response, Status, Streaming};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Heard {
    Enqueue(MessageId),
    Chunk(MessageId, u32),
    Abort(MessageId),
    Credit(u32),
    Report(MessageId, u64, Vec<u32>),
    Renew(MessageId, u64),
    GiveBack,
}

#[derive(Debug)]
pub(super) struct FakeNode {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    heard: tokio::sync::Mutex<mpsc::Receiver<Heard>>,
}

#[derive(Debug)]
struct Shared {
    node: u64,
    heard: mpsc::Sender<Heard>,
    leading: watch::Sender<v1::Leading>,
    broken: broadcast::Sender<()>,
    submit: Mutex<Option<mpsc::Sender<Result<v1::SubmitReply, Status>>>>,
    deliver: Mutex<Option<mpsc::Sender<Result<v1::DeliverEvent, Status>>>>,
    shares: Mutex<v1::ShareReply>,
    policy: watch::Sender<v1::PolicySet>,
    shown: AtomicU64,
}

fn raw(id: MessageId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

fn id(raw: &[u8]) -> MessageId {
    MessageId::from_slice(raw).unwrap()
}

impl FakeNode {
    pub(super) async fn start(node: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tx, rx) = mpsc::channel(256);
        let shared = Arc::new(Shared {
            node,
            heard: tx,
            leading: watch::Sender::default(),
            broken: broadcast::Sender::new(4),
            submit: Mutex::default(),
            deliver: Mutex::default(),
            shares: Mutex::default(),
            policy: watch::Sender::default(),
            shown: AtomicU64::new(0),
        });
        let server = tonic::transport::Server::builder()
            .add_service(QueueServer::new(Service(shared.clone())))
            .add_service(PolicyServer::new(Service(shared.clone())));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self {
            address,
            shared,
            heard: tokio::sync::Mutex::new(rx),
        }
    }

    pub(super) fn lead(&self, claims: &[(u32, u64)]) {
        let claims = claims
            .iter()
            .map(|(shard, term)| v1::LeaderClaim {
                shard: *shard,
                term: *term,
            })
            .collect();
        self.shared.leading.send_replace(v1::Leading { claims });
    }

    /// Every question for shares is answered so.
    pub(super) fn deals(&self, reply: v1::ShareReply) {
        *self.shared.shares.lock().unwrap() = reply;
    }

    /// Its policy from now on: a set without documents.
    pub(super) fn has_policy(&self, revision: u64) {
        let set = v1::PolicySet {
            revision,
            ..Default::default()
        };
        self.shared.policy.send_replace(set);
    }

    /// All streams end; this node leads nothing any more as far as Submit goes.
    pub(super) fn break_streams(&self) {
        let _ = self.shared.broken.send(());
        *self.shared.submit.lock().unwrap() = None;
        *self.shared.deliver.lock().unwrap() = None;
    }

    pub(super) async fn hear(&self) -> Heard {
        let heard = async { self.heard.lock().await.recv().await };
        tokio::time::timeout(Duration::from_secs(15), heard)
            .await
            .expect("silence")
            .unwrap()
    }

    pub(super) fn answer(&self, id: MessageId, kind: Kind, seq: u32) {
        let outcome = v1::SubmitOutcome {
            id: raw(id),
            kind: kind.into(),
            seq,
            ..Default::default()
        };
        let reply = v1::SubmitReply {
            frame: Some(submit_reply::Frame::Outcome(outcome)),
        };
        self.shared
            .submit
            .lock()
            .unwrap()
            .as_ref()
            .unwrap()
            .try_send(Ok(reply))
            .unwrap();
    }

    fn event(&self, frame: deliver_event::Frame) {
        let event = v1::DeliverEvent { frame: Some(frame) };
        self.shared
            .deliver
            .lock()
            .unwrap()
            .as_ref()
            .unwrap()
            .try_send(Ok(event))
            .unwrap();
    }

    /// What the client's clock showed last, by its frames.
    pub(super) fn shown(&self) -> u64 {
        self.shared.shown.load(Ordering::Relaxed)
    }

    pub(super) fn lease(&self, id: MessageId, epoch: u64, recipients: &[u32]) {
        self.lease_since(id, epoch, recipients, 0);
    }

    pub(super) fn lease_since(&self, id: MessageId, epoch: u64, recipients: &[u32], since_ms: u64) {
        let recipients = recipients
            .iter()
            .map(|n| v1::LeasedRecipient {
                recipient: *n,
                ..Default::default()
            })
            .collect();
        let lease = v1::Lease {
            id: raw(id),
            epoch,
            lease_ms: 60_000,
            recipients,
            since_ms,
            ..Default::default()
        };
        self.event(deliver_event::Frame::Lease(lease));
    }

    pub(super) fn acknowledge(&self, id: MessageId, epoch: u64) {
        self.event(deliver_event::Frame::Ack(v1::ReportAck {
            id: raw(id),
            epoch,
            accepted: true,
        }));
    }

    pub(super) fn renewed(&self, id: MessageId, epoch: u64, lease_ms: u64) {
        self.renewed_since(id, epoch, lease_ms, 0);
    }

    pub(super) fn renewed_since(&self, id: MessageId, epoch: u64, lease_ms: u64, since_ms: u64) {
        self.event(deliver_event::Frame::Renewed(v1::RenewAck {
            id: raw(id),
            epoch,
            lease_ms,
            since_ms,
        }));
    }
}

struct Service(Arc<Shared>);

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Shared {
    fn hello(&self) -> v1::ServerHello {
        v1::ServerHello {
            node_id: self.node,
            shards: 8,
            ..Default::default()
        }
    }
}

#[tonic::async_trait]
impl Policy for Service {
    type WatchStream = Out<v1::PolicySet>;

    async fn watch(
        &self,
        _: Request<v1::PolicyWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let sets = WatchStream::new(self.0.policy.subscribe());
        let sets = tokio_stream::StreamExt::map(sets, Ok);
        Ok(Response::new(Box::pin(sets)))
    }

    async fn get(
        &self,
        _: Request<v1::PolicyGetRequest>,
    ) -> Result<Response<v1::PolicySet>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn apply(
        &self,
        _: Request<v1::PolicyApplyRequest>,
    ) -> Result<Response<v1::PolicyApplyReply>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}

#[tonic::async_trait]
impl Queue for Service {
    type SubmitStream = Out<v1::SubmitReply>;
    type DeliverStream = Out<v1::DeliverEvent>;
    type FetchBodyStream = Out<v1::BodyPiece>;

    async fn submit(
        &self,
        r: Request<Streaming<v1::SubmitRequest>>,
    ) -> Result<Response<Self::SubmitStream>, Status> {
        use submit_request::Frame;
        let shared = self.0.clone();
        let mut frames = r.into_inner();
        let (tx, rx) = mpsc::channel(64);
        *shared.submit.lock().unwrap() = Some(tx.clone());
        let reply = |frame| Ok(v1::SubmitReply { frame: Some(frame) });
        tx.send(reply(submit_reply::Frame::Hello(shared.hello())))
            .await
            .unwrap();
        let mut broken = shared.broken.subscribe();
        let mut leading = shared.leading.subscribe();
        leading.mark_changed();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = broken.recv() => {
                        shared.leading.send_replace(v1::Leading::default());
                        let _ = tx.send(Err(Status::unavailable("broken"))).await;
                        return;
                    }
                    _ = leading.changed() => {
                        let now = leading.borrow_and_update().clone();
                        let _ = tx.send(reply(submit_reply::Frame::Leading(now))).await;
                    }
                    frame = frames.message() => {
                        let Ok(Some(v1::SubmitRequest { frame: Some(frame) })) = frame else { return };
                        let heard = match frame {
                            Frame::Hello(_) => continue,
                            Frame::Enqueue(e) => Heard::Enqueue(id(&e.id)),
                            Frame::Chunk(c) => Heard::Chunk(id(&c.id), c.seq),
                            Frame::Abort(a) => Heard::Abort(id(&a.id)),
                        };
                        shared.heard.send(heard).await.unwrap();
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn deliver(
        &self,
        r: Request<Streaming<v1::DeliverRequest>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        use deliver_request::Frame;
        let shared = self.0.clone();
        let mut frames = r.into_inner();
        let (tx, rx) = mpsc::channel(64);
        *shared.deliver.lock().unwrap() = Some(tx.clone());
        tx.send(Ok(v1::DeliverEvent {
            frame: Some(deliver_event::Frame::Hello(shared.hello())),
        }))
        .await
        .unwrap();
        let mut broken = shared.broken.subscribe();
        tokio::spawn(async move {
            loop {
                let frame = tokio::select! {
                    _ = broken.recv() => {
                        let _ = tx.send(Err(Status::unavailable("broken"))).await;
                        return;
                    }
                    frame = frames.message() => frame,
                };
                let Ok(Some(v1::DeliverRequest {
                    frame: Some(frame),
                    sent_ms,
                })) = frame
                else {
                    return;
                };
                shared.shown.fetch_max(sent_ms, Ordering::Relaxed);
                let heard = match frame {
                    Frame::Hello(_) => continue,
                    Frame::Credit(c) => Heard::Credit(c.leases),
                    Frame::Report(r) => Heard::Report(
                        id(&r.id),
                        r.epoch,
                        r.recipients.iter().map(|x| x.recipient).collect(),
                    ),
                    Frame::Renew(r) => Heard::Renew(id(&r.leases[0].id), r.leases[0].epoch),
                    Frame::GiveBack(_) => Heard::GiveBack,
                };
                shared.heard.send(heard).await.unwrap();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn fetch_body(
        &self,
        _: Request<v1::FetchBodyRequest>,
    ) -> Result<Response<Self::FetchBodyStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn deal_shares(
        &self,
        _: Request<v1::ShareRequest>,
    ) -> Result<Response<v1::ShareReply>, Status> {
        Ok(Response::new(self.0.shares.lock().unwrap().clone()))
    }
}
