//! Attempts without a control plane.
use crate::{
    delivery::{
        Body, BodyError, ControlPlane, Courier, DeliveryMetrics, DeliveryOptions, Lease,
        LeaseClock, LeaseKey, LeasedRecipient, RecipientOutcome, Renewal, Report, places::Places,
        pool::Pool,
    },
    resolve::{Resolver, ResolverOptions},
    tls::TlsConnector,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use sealane_client::Dealt;
use sealane_policy::PolicySnapshot;
use sealane_shares::{Ask, Dealer, Limit, Timing, VALID_MS};
use sealane_types::{DomainName, Mailbox, MessageId, ReversePath, ShardId, TraceContext};
use sealane_wire::v1;
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Gives bodies out of memory, keeps reports.
#[derive(Clone)]
pub(super) struct BenchControl {
    pub(super) body: Arc<dyn Fn() -> Body + Send + Sync>,
    pub(super) reports: Arc<Mutex<Vec<Report>>>,
    pub(super) given_back: Arc<Mutex<Vec<LeaseKey>>>,
    pub(super) renewal: Renewal,
    /// How often a renewal was asked for.
    pub(super) renewals: watch::Sender<u64>,
}

impl std::fmt::Debug for BenchControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BenchControl")
    }
}

impl ControlPlane for BenchControl {
    async fn fetch_body(&self, _: LeaseKey, _: u64, _: TraceContext) -> Result<Body, BodyError> {
        Ok((self.body)())
    }
    async fn renew(&self, _: LeaseKey) -> Renewal {
        self.renewals.send_modify(|n| *n += 1);
        self.renewal
    }
    async fn report(&self, report: Report) {
        self.reports.lock().unwrap().push(report);
    }
    async fn give_back(&self, key: LeaseKey) {
        self.given_back.lock().unwrap().push(key);
    }
}

/// Pieces that are ready at once.
pub(super) fn pieces(pieces: Vec<&'static [u8]>) -> Arc<dyn Fn() -> Body + Send + Sync> {
    Arc::new(move || {
        stream::iter(
            pieces
                .clone()
                .into_iter()
                .map(|p| Ok(Bytes::from_static(p))),
        )
        .boxed()
    })
}

/// `count` pieces of one mebibyte, made when they are asked for; the counter tells how many were.
pub(super) fn mebibytes(count: u64) -> (Arc<dyn Fn() -> Body + Send + Sync>, Arc<AtomicU64>) {
    let made = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&made);
    let piece = Bytes::from(
        b"0123456789012345678901234567890123456789012345678901234567890_\r\n".repeat(1 << 14),
    );
    assert_eq!(piece.len(), 1 << 20);
    let body = move || {
        let (counter, piece) = (Arc::clone(&counter), piece.clone());
        stream::iter(0..count)
            .map(move |_| {
                counter.fetch_add(1, Ordering::SeqCst);
                Ok(piece.clone())
            })
            .boxed()
    };
    (Arc::new(body), made)
}

pub(super) struct Bench {
    pub(super) courier: Courier<BenchControl>,
    pub(super) metrics: DeliveryMetrics,
    pub(super) control: BenchControl,
}

/// What differs between tests.
pub(super) struct Setup {
    pub(super) route: Option<v1::Route>,
    pub(super) tls: v1::TlsRequirement,
    pub(super) messages_per_connection: u32,
    /// Places that the relay is dealt at each destination.
    pub(super) places: u32,
    pub(super) roots: rustls::RootCertStore,
    pub(super) body: Arc<dyn Fn() -> Body + Send + Sync>,
    pub(super) renewal: Renewal,
    pub(super) resolver: ResolverOptions,
    pub(super) options: DeliveryOptions,
}

impl Setup {
    /// Everything to `address`, TLS level encrypt.
    pub(super) fn route_to(address: SocketAddr, roots: &rustls::RootCertStore) -> Self {
        Self {
            route: Some(v1::Route {
                host: address.ip().to_string(),
                port: address.port().into(),
                implicit_tls: false,
            }),
            tls: v1::TlsRequirement::default(),
            messages_per_connection: 100,
            places: 20,
            roots: roots.clone(),
            body: pieces(vec![b"Subject: x\r\n\r\nhello\r\n"]),
            renewal: Renewal::Renewed(Duration::from_secs(60)),
            resolver: ResolverOptions {
                nameservers: vec!["127.0.0.1:1".parse().unwrap()],
                ..ResolverOptions::default()
            },
            options: DeliveryOptions::default(),
        }
    }

    pub(super) fn build(self) -> Bench {
        let document = v1::DestinationDocument {
            name: "*".into(),
            route: self.route,
            tls: Some(self.tls),
            retry: None,
            limits: Some(v1::Limits {
                connections: 20,
                messages_per_connection: self.messages_per_connection,
                messages_per_minute: None,
                connections_per_minute: None,
            }),
        };
        let documents = vec![v1::Document {
            kind: Some(v1::document::Kind::Destination(document)),
        }];
        let policy = PolicySnapshot::from_wire(&v1::PolicySet {
            revision: 1,
            documents,
        })
        .unwrap();
        let (_, policy) = watch::channel(Some(Arc::new(policy)));
        let control = BenchControl {
            body: self.body,
            reports: Arc::default(),
            given_back: Arc::default(),
            renewal: self.renewal,
            renewals: watch::Sender::new(0),
        };
        let metrics = DeliveryMetrics::default();
        let courier = Courier::new(
            "relay.sealane.example".into(),
            control.clone(),
            policy,
            Arc::new(Resolver::new(self.resolver).unwrap()),
            TlsConnector::with_roots(self.roots),
            self.options,
            metrics.clone(),
        );
        tokio::spawn(deal(
            courier.places.clone(),
            courier.pool.clone(),
            self.places,
        ));
        Bench {
            courier,
            metrics,
            control,
        }
    }
}

/// Answers every question for places at once, as if this were the only relay.
async fn deal(places: Places, pool: Arc<Pool>, connections: u32) {
    let mut dealer = Dealer::new(0, Timing::with_overlap(0));
    let zero = Instant::now();
    for sequence in 1.. {
        let _ = tokio::time::timeout(Duration::from_secs(1), places.asked()).await;
        let question = places.question();
        let needs = question.needs();
        let asks = needs.iter().map(|n| Ask {
            destination: &n.destination,
            need: n.need(),
        });
        let limit = |_: &str| Limit {
            connections,
            connections_per_minute: None,
            messages_per_minute: None,
        };
        let asked = Instant::now();
        let now = 1_000_000 + u64::try_from(zero.elapsed().as_millis()).unwrap();
        let shares = dealer.answer("bench", sequence, asks, now, limit).unwrap();
        let dealt = Dealt {
            asked,
            valid: Duration::from_millis(VALID_MS),
            shares: shares.into_iter().map(Into::into).collect(),
        };
        places.answered(&question, &dealt);
        if !places.excess().is_empty() {
            pool.wake();
        }
    }
}

/// A lease of `mailboxes`, all of `dest.example`.
pub(super) fn lease(mailboxes: &[&str]) -> Lease {
    Lease {
        key: LeaseKey {
            id: MessageId::new(ShardId::new(1).unwrap(), 7, [7; 9]),
            epoch: 42,
        },
        length: Duration::from_secs(60),
        destination: DomainName::parse("dest.example").unwrap(),
        reverse_path: ReversePath::parse("sender@origin.example").unwrap(),
        eight_bit: false,
        recipients: mailboxes
            .iter()
            .zip(0..)
            .map(|(m, number)| LeasedRecipient {
                number,
                mailbox: Mailbox::parse(m).unwrap(),
                attempts: 0,
            })
            .collect(),
        size: 21,
        trace: TraceContext::default(),
    }
}

impl Bench {
    /// One attempt; the outcomes that were reported, empty if none.
    pub(super) async fn deliver(&self, lease: Lease) -> Vec<RecipientOutcome> {
        let clock = LeaseClock::new(Instant::now(), lease.length);
        self.deliver_within(lease, clock).await
    }

    pub(super) async fn deliver_within(
        &self,
        lease: Lease,
        clock: LeaseClock,
    ) -> Vec<RecipientOutcome> {
        self.courier.deliver(lease, clock).await;
        let mut reports = self.control.reports.lock().unwrap();
        reports.drain(..).flat_map(|r| r.recipients).collect()
    }
}
