//! Whole sessions over sockets, with a queue that is only said to be durable.
mod proxy;

use super::{Handover, IngressContext, public_tls, run};
use crate::{
    config::{Listeners, PublicCertificate, RelayNodeConfig, SessionLimits},
    kept::KeptBodies,
    metrics::IngressMetrics,
};
use prometheus_client::registry::Registry;
use sealane_client::{DeliverClient, Members, SubmitClient};
use sealane_policy::{PolicySnapshot, hash_password};
use sealane_smtp::server::Listener;
use sealane_types::MessageId;
use sealane_wire::v1::{
    self,
    document::Kind as Document,
    queue_server::{Queue, QueueServer},
    submit_outcome::Kind,
    submit_reply::Frame as Reply,
    submit_request::Frame,
};
use sha2::{Digest, Sha256};
use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(20);

/// Messages that were called durable, bodies put together.
type Kept = Arc<Mutex<Vec<(v1::Enqueue, Vec<u8>)>>>;

/// A node that leads some shards and keeps what it is given.
struct Keeper {
    kept: Kept,
    verdict: Kind,
    node: u64,
    leads: RangeInclusive<u32>,
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Queue for Keeper {
    type SubmitStream = Out<v1::SubmitReply>;
    type DeliverStream = Out<v1::DeliverEvent>;
    type FetchBodyStream = Out<v1::BodyPiece>;

    async fn submit(
        &self,
        r: Request<Streaming<v1::SubmitRequest>>,
    ) -> Result<Response<Self::SubmitStream>, Status> {
        let mut frames = r.into_inner();
        let (kept, verdict) = (self.kept.clone(), self.verdict);
        // What comes for another node's shards is not answered as if it were ours.
        let ours = self.leads.clone();
        let (tx, rx) = mpsc::channel(64);
        let reply = |frame| Ok(v1::SubmitReply { frame: Some(frame) });
        let claims = self
            .leads
            .clone()
            .map(|shard| v1::LeaderClaim { shard, term: 1 })
            .collect();
        tx.send(reply(Reply::Hello(v1::ServerHello {
            node_id: self.node,
            ..Default::default()
        })))
        .await
        .unwrap();
        tx.send(reply(Reply::Leading(v1::Leading { claims })))
            .await
            .unwrap();
        tokio::spawn(async move {
            let mut pieces: Vec<(bytes::Bytes, u32, bytes::Bytes)> = Vec::new();
            while let Ok(Some(v1::SubmitRequest { frame: Some(frame) })) = frames.message().await {
                let (id, seq, kind) = match frame {
                    Frame::Hello(_) => continue,
                    Frame::Abort(a) => (a.id, 0, Kind::Aborted),
                    Frame::Chunk(c) => {
                        pieces.push((c.id.clone(), c.seq, c.data));
                        let kind = match verdict {
                            Kind::StorageFull => verdict,
                            _ => Kind::ChunkDurable,
                        };
                        (c.id, c.seq, kind)
                    }
                    Frame::Enqueue(e) => {
                        let id = e.id.clone();
                        let shard = MessageId::from_slice(&id).unwrap().shard();
                        assert!(ours.contains(&shard.get()));
                        let mut body = e.body.to_vec();
                        let mut own: Vec<_> =
                            pieces.iter().filter(|(i, ..)| *i == id).cloned().collect();
                        own.sort_by_key(|(_, seq, _)| *seq);
                        assert_eq!(own.len(), e.chunks as usize);
                        own.iter()
                            .for_each(|(_, _, data)| body.extend_from_slice(data));
                        assert_eq!(Sha256::digest(&body).to_vec(), e.sha256);
                        assert_eq!(body.len() as u64, e.size);
                        if verdict == Kind::Durable {
                            kept.lock().unwrap().push((e, body));
                        }
                        (id, 0, verdict)
                    }
                };
                let outcome = v1::SubmitOutcome {
                    id,
                    kind: kind.into(),
                    seq,
                    ..Default::default()
                };
                if tx.send(reply(Reply::Outcome(outcome))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
    async fn deliver(
        &self,
        _: Request<Streaming<v1::DeliverRequest>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        Err(Status::unimplemented("not here"))
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
        Err(Status::unimplemented("not here"))
    }
}

/// A relay node without delivery.
struct Relay {
    mx: SocketAddr,
    submissions: SocketAddr,
    kept: Kept,
    client: TlsConnector,
    registry: Registry,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
    _files: tempfile::TempDir,
}

fn policy() -> PolicySnapshot {
    let domain = v1::DomainDocument {
        name: "served.example".into(),
        ..Default::default()
    };
    let submitter = v1::SubmitterDocument {
        name: "alice".into(),
        password_verifier: hash_password("secret", &[1; 16]).unwrap(),
        senders: vec!["alice@own.example".into()],
    };
    let documents = vec![
        v1::Document {
            kind: Some(Document::Domain(domain)),
        },
        v1::Document {
            kind: Some(Document::Submitter(submitter)),
        },
    ];
    PolicySnapshot::from_wire(&v1::PolicySet {
        revision: 1,
        documents,
    })
    .unwrap()
}

impl Relay {
    async fn start(verdict: Kind) -> Self {
        Self::with(vec![(verdict, 1..=8)]).await
    }

    /// With one node for each of these verdicts, which leads these shards.
    async fn with(nodes: Vec<(Kind, RangeInclusive<u32>)>) -> Self {
        Self::listening(nodes, Listeners::default()).await
    }

    /// With these listeners, but for their addresses.
    async fn listening(nodes: Vec<(Kind, RangeInclusive<u32>)>, listeners: Listeners) -> Self {
        let kept = Kept::default();
        let mut control_plane = Vec::new();
        let streams = nodes.len();
        for ((verdict, leads), node) in nodes.into_iter().zip(1..) {
            let queue = TcpListener::bind("127.0.0.1:0").await.unwrap();
            control_plane.push(queue.local_addr().unwrap().to_string());
            let keeper = QueueServer::new(Keeper {
                kept: kept.clone(),
                verdict,
                node,
                leads,
            });
            let server = tonic::transport::Server::builder().add_service(keeper);
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(queue)));
        }

        let files = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["relay.example".into()]).unwrap();
        let certificate = PublicCertificate {
            certificate: files.path().join("cert.pem"),
            key: files.path().join("key.pem"),
        };
        std::fs::write(&certificate.certificate, made.cert.pem()).unwrap();
        std::fs::write(&certificate.key, made.signing_key.serialize_pem()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client =
            rustls::ClientConfig::builder_with_provider(sealane_runtime::identity::provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();

        let config = RelayNodeConfig {
            name: "relay-1".into(),
            hostname: "relay.example".into(),
            listeners,
            certificate,
            identity: sealane_runtime::identity::IdentityConfig {
                certificate: Default::default(),
                key: Default::default(),
                ca: Default::default(),
            },
            control_plane: control_plane.clone(),
            body_budget: sealane_runtime::config::ByteSize(8 << 20),
            max_message_size: sealane_runtime::config::ByteSize(12 << 20),
            connections: 10,
            connections_per_address: 3,
            sessions: SessionLimits {
                early_timeout: sealane_runtime::config::ConfigSpan(Duration::from_secs(4)),
                enqueue_timeout: sealane_runtime::config::ConfigSpan(Duration::from_secs(8)),
                ..SessionLimits::default()
            },
            delivery: Default::default(),
            resolver: Default::default(),
            allow_private_destinations: false,
            telemetry: Default::default(),
            metrics_listen: None,
            drain_timeout: sealane_runtime::config::ConfigSpan(Duration::from_secs(5)),
        };
        let dial = |a: &str| {
            Ok(tonic::transport::Endpoint::from_shared(format!("http://{a}"))?.connect_lazy())
        };
        let members = Members::new(control_plane, Arc::new(dial));
        let (tasks, never) = (TaskTracker::new(), CancellationToken::new());
        let submit = SubmitClient::start("relay-1", members.clone(), &tasks, never.clone());
        let handover = Handover {
            deliver: DeliverClient::start("relay-1", members, submit.clone(), 1, &tasks, never),
            kept: KeptBodies::new(1 << 20),
        };
        submit.led_shard(Instant::now() + PATIENCE).await.unwrap();
        let mut changes = submit.changes();
        let all = async {
            while submit.leading_nodes() < streams {
                changes.changed().await;
            }
        };
        timeout(PATIENCE, all).await.unwrap();
        let (tx, policy) = watch::channel(Some(Arc::new(policy())));
        std::mem::forget(tx);
        let mut registry = Registry::default();
        let metrics = IngressMetrics::register(&mut registry);
        let tls = public_tls(&config.certificate, Default::default()).unwrap();
        let context = IngressContext::new(&config, tls, submit, policy, handover, metrics);
        let context = Arc::new(context.unwrap());
        let mx = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let submissions = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mx_address, submissions_address) =
            (mx.local_addr().unwrap(), submissions.local_addr().unwrap());
        let stop = CancellationToken::new();
        let listeners = vec![(Listener::Mx, mx), (Listener::Submissions, submissions)];
        let ended = tokio::spawn(run(context, listeners, stop.clone()));
        Self {
            mx: mx_address,
            submissions: submissions_address,
            kept,
            client: TlsConnector::from(Arc::new(client)),
            registry,
            stop,
            ended,
            _files: files,
        }
    }

    /// The figure that this line of the metrics ends with; 0 if it is not there.
    fn figure(&self, line: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let mut values = text.lines().filter_map(|l| l.strip_prefix(line));
        values.next().map_or(0, |v| v.trim().parse().unwrap())
    }

    async fn encrypt(&self, tcp: TcpStream) -> Client<impl AsyncRead + AsyncWrite + Unpin + use<>> {
        let name = rustls::pki_types::ServerName::try_from("relay.example").unwrap();
        Client(BufReader::new(
            self.client.connect(name, tcp).await.unwrap(),
        ))
    }

    /// Greeted, encrypted, introduced.
    async fn mx(&self) -> Client<impl AsyncRead + AsyncWrite + Unpin + use<>> {
        let mut plain = Client(BufReader::new(TcpStream::connect(self.mx).await.unwrap()));
        assert_eq!(plain.reply().await.0, 220);
        assert_eq!(plain.say("EHLO client.example").await, 250);
        assert_eq!(plain.say("MAIL FROM:<a@b.example>").await, 530);
        assert_eq!(plain.say("STARTTLS").await, 220);
        let mut client = self.encrypt(plain.0.into_inner()).await;
        assert_eq!(client.say("EHLO client.example").await, 250);
        client
    }
}

struct Client<S>(BufReader<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    async fn reply(&mut self) -> (u16, String) {
        loop {
            let mut line = String::new();
            let n = timeout(Duration::from_secs(40), self.0.read_line(&mut line))
                .await
                .unwrap()
                .unwrap();
            if n == 0 {
                return (0, String::new());
            }
            if line.as_bytes()[3] == b' ' {
                return (line[..3].parse().unwrap(), line);
            }
        }
    }
    async fn say(&mut self, line: &str) -> u16 {
        self.send(format!("{line}\r\n").as_bytes()).await;
        self.reply().await.0
    }
    async fn send(&mut self, octets: &[u8]) {
        let _ = self.0.write_all(octets).await;
        let _ = self.0.flush().await;
    }
    /// Envelope and body; the code of the last reply.
    async fn mail(&mut self, from: &str, to: &str, body: &[u8]) -> (u16, String) {
        self.send(format!("MAIL FROM:<{from}>\r\nRCPT TO:<{to}>\r\nDATA\r\n").as_bytes())
            .await;
        for expected in [250, 250, 354] {
            let (code, text) = self.reply().await;
            if code != expected {
                return (code, text);
            }
        }
        self.send(body).await;
        self.send(b".\r\n").await;
        self.reply().await
    }
}

fn body(octets: usize) -> Vec<u8> {
    b"Subject: x\r\n\r\n"
        .iter()
        .copied()
        .chain(
            b"0123456789abcdef\r\n"
                .iter()
                .copied()
                .cycle()
                .take(octets / 18 * 18),
        )
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_for_a_served_domain_is_kept_behind_our_trace_header() {
    let relay = Relay::start(Kind::Durable).await;
    let mut client = relay.mx().await;
    for size in [0, 3_000, (1 << 20) - 400, (1 << 20) + 7, 9 << 20] {
        let body = body(size);
        let (code, text) = client
            .mail("x@client.example", "bob@served.example", &body)
            .await;
        assert_eq!(code, 250, "{text}");
        let (enqueue, stored) = relay.kept.lock().unwrap().pop().unwrap();
        let id = sealane_types::MessageId::from_slice(&enqueue.id)
            .unwrap()
            .to_string();
        assert!(text.contains(&id), "{text} {id}");
        assert!(stored.ends_with(&body), "{size}");
        let header = String::from_utf8(stored[..stored.len() - body.len()].to_vec()).unwrap();
        assert!(header.starts_with("Received: from client.example ([127.0.0.1])\r\n\tby relay.example with ESMTPS\r\n\ttls TLS_"));
        assert!(
            header.contains(&format!(
                "\r\n\tid {id}\r\n\tfor <bob@served.example>;\r\n\t"
            )),
            "{header}"
        );
        let entry = enqueue.entry.unwrap();
        assert_eq!(
            (entry.listener.as_str(), entry.rule.as_str()),
            ("mx", "Domain/served.example")
        );
        assert_eq!(entry.tls.unwrap().version, "TLSv1.3");
    }
    assert_eq!(client.say("QUIT").await, 221);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_relaying_no_loops_no_giants() {
    let relay = Relay::start(Kind::Durable).await;
    let mut client = relay.mx().await;
    assert_eq!(client.say("MAIL FROM:<x@client.example>").await, 250);
    client.send(b"RCPT TO:<bob@elsewhere.example>\r\n").await;
    let (code, text) = client.reply().await;
    assert!(code == 550 && text.contains("5.7.1"), "{text}");
    assert_eq!(client.say("RSET").await, 250);
    let hops = |n| [b"Received: x\r\n".repeat(n), b"\r\nbody\r\n".to_vec()].concat();
    let (code, text) = client
        .mail("x@client.example", "bob@served.example", &hops(100))
        .await;
    assert!(code == 250, "{text}");
    let looping = hops(101);
    let (code, text) = client
        .mail("x@client.example", "bob@served.example", &looping)
        .await;
    assert!(code == 554 && text.contains("5.4.6"), "{text}");
    // It would continue our own Received header.
    let (code, text) = client
        .mail(
            "x@client.example",
            "bob@served.example",
            b"\t(by evil.example)\r\n",
        )
        .await;
    assert!(code == 554 && text.contains("5.6.0"), "{text}");
    let (code, text) = client
        .mail("x@client.example", "bob@served.example", &body(13 << 20))
        .await;
    assert!(code == 552, "{text}");
    assert_eq!(
        client
            .mail("x@client.example", "bob@served.example", &body(100))
            .await
            .0,
        250
    );
    assert_eq!(relay.kept.lock().unwrap().len(), 2);
}

/// Octets without a line do not keep a connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_dripping_client_is_421() {
    let relay = Relay::start(Kind::Durable).await;
    let mut client = Client(BufReader::new(TcpStream::connect(relay.mx).await.unwrap()));
    assert_eq!(client.reply().await.0, 220);
    let drip = async {
        loop {
            client.send(b"N").await;
            if let Ok(reply) = timeout(Duration::from_millis(200), client.reply()).await {
                return reply.0;
            }
        }
    };
    assert_eq!(timeout(Duration::from_secs(30), drip).await.unwrap(), 421);
}

#[tokio::test(flavor = "multi_thread")]
async fn submitters_authenticate_and_send_as_themselves() {
    let relay = Relay::start(Kind::Durable).await;
    let tcp = TcpStream::connect(relay.submissions).await.unwrap();
    let mut client = relay.encrypt(tcp).await;
    assert_eq!(client.reply().await.0, 220);
    assert_eq!(client.say("EHLO client.example").await, 250);
    assert_eq!(client.say("MAIL FROM:<alice@own.example>").await, 530);
    let plain = |password: &str| {
        format!(
            "AUTH PLAIN {}",
            data_encoding::BASE64.encode(format!("\0alice\0{password}").as_bytes())
        )
    };
    assert_eq!(client.say(&plain("wrong")).await, 535);
    assert_eq!(client.say(&plain("secret")).await, 235);
    assert_eq!(client.say("MAIL FROM:<bob@own.example>").await, 550);
    let (code, text) = client
        .mail("alice@own.example", "x@elsewhere.example", &body(100))
        .await;
    assert_eq!(code, 250, "{text}");
    let (enqueue, stored) = relay.kept.lock().unwrap().pop().unwrap();
    let entry = enqueue.entry.unwrap();
    assert_eq!(
        (entry.submitter.as_str(), entry.rule.as_str()),
        ("alice", "Submitter/alice")
    );
    assert!(String::from_utf8_lossy(&stored).contains("with ESMTPSA\r\n\ttls "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_cannot_take_it_is_451_in_time() {
    let relay = Relay::start(Kind::Unavailable).await;
    let mut client = relay.mx().await;
    let started = Instant::now();
    let (code, text) = client
        .mail("x@client.example", "bob@served.example", &body(100))
        .await;
    assert!(code == 451 && text.contains("4.3.0"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_to_a_leader_that_has_space_before_452_is_said() {
    let relay = Relay::with(vec![(Kind::StorageFull, 1..=7), (Kind::Durable, 8..=8)]).await;
    let mut client = relay.mx().await;
    for octets in [100, 3 << 20] {
        for _ in 0..6 {
            let (code, text) = client
                .mail("x@client.example", "bob@served.example", &body(octets))
                .await;
            assert_eq!(code, 250, "{text}");
        }
    }
    let kept = relay.kept.lock().unwrap();
    assert_eq!(kept.len(), 12);
    for (enqueue, body) in kept.iter() {
        let id = MessageId::from_slice(&enqueue.id).unwrap().to_string();
        // Our header names the id under which it was accepted.
        assert!(String::from_utf8_lossy(&body[..1000.min(body.len())]).contains(&id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_every_leader_is_out_of_space_it_is_452_at_once() {
    let relay = Relay::with(vec![(Kind::StorageFull, 1..=4), (Kind::StorageFull, 5..=8)]).await;
    let mut client = relay.mx().await;
    for octets in [100, 3 << 20] {
        let started = Instant::now();
        let (code, text) = client
            .mail("x@client.example", "bob@served.example", &body(octets))
            .await;
        assert!(code == 452 && text.contains("4.3.1"), "{text}");
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_hears_421_when_the_node_drains() {
    let relay = Relay::start(Kind::Durable).await;
    let mut idle = relay.mx().await;
    let mut busy = relay.mx().await;
    assert_eq!(busy.say("MAIL FROM:<x@client.example>").await, 250);
    relay.stop.cancel();
    assert_eq!(idle.reply().await.0, 421);
    assert_eq!(busy.say("RCPT TO:<bob@served.example>").await, 250);
    assert_eq!(busy.say("DATA").await, 354);
    busy.send(b"x\r\n.\r\n").await;
    assert_eq!(busy.reply().await.0, 250);
    assert_eq!(busy.reply().await.0, 421);
    timeout(PATIENCE, relay.ended).await.unwrap().unwrap();
}
