//! All links together.
use crate::link::Link;
use bytes::Bytes;
use sealane_policy::PolicySnapshot;
use sealane_runtime::identity::Identity;
use sealane_types::ShardId;
use sealane_wire::v1;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Leases that wait for a delivery task.
const LEASES: usize = 4096;

/// Shard → term and address of its leader.
pub(crate) type Leaders = BTreeMap<u32, (u64, String)>;

/// Streams to every control-plane node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) identity: Identity,
    pub(crate) relay: String,
    pub(crate) credits: u32,
    pub(crate) links: Mutex<BTreeMap<String, Arc<Link>>>,
    pub(crate) leaders: watch::Sender<Leaders>,
    pub(crate) leases: mpsc::Sender<v1::Lease>,
    pub(crate) policy: watch::Sender<Option<Arc<PolicySnapshot>>>,
    pub(crate) stop: CancellationToken,
    turn: AtomicUsize,
}

impl ControlPlane {
    /// Connects to `addresses` and to every node they name; runs until `stop`. Leases arrive on the receiver,
    /// `credits` at once from each node.
    pub fn connect(
        addresses: &[String],
        identity: Identity,
        credits: u32,
        stop: CancellationToken,
    ) -> (Self, mpsc::Receiver<v1::Lease>) {
        let (leases, rx) = mpsc::channel(LEASES);
        let inner = Arc::new(Inner {
            relay: identity.workload().name.clone(),
            identity,
            credits,
            links: Mutex::default(),
            leaders: watch::Sender::default(),
            leases,
            policy: watch::Sender::new(None),
            stop,
            turn: AtomicUsize::new(0),
        });
        inner.add(addresses);
        (Self { inner }, rx)
    }

    /// The policy in force; `None` until the first one arrived. The last one stays when the stream is lost.
    pub fn policy(&self) -> watch::Receiver<Option<Arc<PolicySnapshot>>> {
        self.inner.policy.subscribe()
    }

    /// Whether mail could be enqueued now.
    pub fn has_leader(&self) -> bool {
        !self.inner.leaders.borrow().is_empty()
    }

    /// A shard with a leader, in turn; waits for one at most `limit`.
    pub async fn choose_shard(&self, limit: Duration) -> Option<ShardId> {
        let mut leaders = self.inner.leaders.subscribe();
        let found = tokio::time::timeout(limit, leaders.wait_for(|l| !l.is_empty())).await.ok()?.ok()?;
        let n = self.inner.turn.fetch_add(1, Ordering::Relaxed) % found.len();
        found.keys().nth(n).and_then(|s| ShardId::new(*s))
    }

    pub(crate) fn leader(&self, shard: u32) -> Option<Arc<Link>> {
        let address = self.inner.leaders.borrow().get(&shard).map(|(_, a)| a.clone())?;
        self.inner.links.lock().expect("no panic while held").get(&address).cloned()
    }

    /// Grants the node that leads `shard` one lease more: a lease of it is done.
    pub async fn lease_done(&self, shard: u32) {
        if let Some(link) = self.leader(shard) {
            link.send_deliver(v1::deliver_request::Frame::Credit(v1::Credit { leases: 1 })).await;
        }
    }

    /// Reports outcomes until they are committed or refused (`false`: the lease was over), at most for `limit`.
    /// `None`: not known; the lease runs out and the recipients are tried again.
    pub async fn report(&self, shard: u32, report: v1::Report, limit: Duration) -> Option<bool> {
        let deadline = tokio::time::Instant::now() + limit;
        while tokio::time::Instant::now() < deadline {
            if let Some(link) = self.leader(shard)
                && let Some(ack) = link.report(report.clone(), Duration::from_secs(10)).await
            {
                return Some(ack);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        None
    }

    /// Prolongs a lease; the new length, or `None` if it is lost or nobody answered.
    pub async fn renew(&self, shard: u32, lease: v1::LeaseRef) -> Option<Duration> {
        let link = self.leader(shard)?;
        link.renew(lease, Duration::from_secs(10)).await.filter(|ms| *ms > 0).map(Duration::from_millis)
    }

    /// Gives leases back that were not started.
    pub async fn give_back(&self, shard: u32, leases: Vec<v1::LeaseRef>) {
        if let Some(link) = self.leader(shard) {
            link.send_deliver(v1::deliver_request::Frame::GiveBack(v1::Return { leases })).await;
        }
    }

    /// The body of a leased message, in pieces.
    pub async fn fetch_body(&self, shard: u32, id: Bytes, epoch: u64) -> Result<tonic::Streaming<v1::BodyPiece>, tonic::Status> {
        let link = self.leader(shard).ok_or_else(|| tonic::Status::unavailable("no leader"))?;
        let mut client = link.queue()?;
        let request = v1::FetchBodyRequest { id, epoch, trace: None };
        Ok(client.fetch_body(request).await?.into_inner())
    }
}

impl Inner {
    /// Starts a link for every address that has none.
    pub(crate) fn add(self: &Arc<Self>, addresses: &[String]) {
        for address in addresses {
            let mut links = self.links.lock().expect("no panic while held");
            if !links.contains_key(address) {
                let link = Arc::new(Link::new(address.clone(), self.identity.clone()));
                links.insert(address.clone(), link.clone());
                link.start(self);
            }
        }
    }

    /// Replaces the claims of one node.
    pub(crate) fn claims(&self, address: &str, claims: &[v1::LeaderClaim]) {
        self.leaders.send_modify(|leaders| {
            leaders.retain(|shard, (_, a)| a != address || claims.iter().any(|c| c.shard == *shard));
            for c in claims {
                let newer = leaders.get(&c.shard).is_none_or(|(term, _)| c.term >= *term);
                if newer {
                    leaders.insert(c.shard, (c.term, address.to_owned()));
                }
            }
        });
    }
}
