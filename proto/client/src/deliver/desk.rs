//! What is held, what was reported, and over which stream to speak.
use crate::{members::Line, submit::SubmitClient};
use bytes::Bytes;
use sealane_types::{MessageId, NodeId};
use sealane_wire::{
    message_id,
    v1::{self, deliver_request::Frame, queue_client::QueueClient},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep},
};

/// A report without acknowledgement is sent again after this.
const SILENCE: Duration = Duration::from_secs(3);
/// How often the table is looked through.
const TICK: Duration = Duration::from_millis(250);
/// Nodes hear at least this often what our clock shows: they count with it when a lease began.
const BEAT: Duration = Duration::from_secs(60);
/// Credits that are worth a frame of their own.
const BUNCH: u32 = 16;
/// A report is still worth sending for this long after its lease ran out: the leader may not have
/// taken the lease back yet.
const GRACE: Duration = Duration::from_secs(30);

/// One lease.
type Key = (MessageId, u64);

/// A living Deliver stream.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) node: NodeId,
    pub(super) generation: u64,
    pub(super) frames: mpsc::Sender<v1::DeliverRequest>,
    pub(super) client: QueueClient<Line>,
    /// Earned and not sent yet.
    pub(super) credit: u32,
    /// When a frame was sent last.
    pub(super) said: Instant,
}

#[derive(Debug)]
struct Tables {
    /// What [`v1::DeliverRequest::sent_ms`] counts from.
    zero: Instant,
    links: BTreeMap<NodeId, Link>,
    generations: u64,
    held: HashMap<Key, Held>,
    renewals: HashMap<Key, Renewing>,
    paused: bool,
}

/// A renewal that waits for its answer.
#[derive(Debug)]
struct Renewing {
    asked: Instant,
    answer: oneshot::Sender<u64>,
}

/// A lease that is not settled.
#[derive(Debug)]
struct Held {
    from: NodeId,
    generation: u64,
    until: Instant,
    destination: String,
    trace: Option<v1::TraceContext>,
    /// Recipients that were not reported yet.
    open: BTreeSet<u32>,
    /// Reported, not sent yet: one report at a time is on its way, since acknowledgements name the lease only.
    queued: Vec<v1::RecipientReport>,
    sent: Option<Sent>,
}

#[derive(Debug)]
struct Sent {
    report: Vec<v1::RecipientReport>,
    at: Instant,
    over: (NodeId, u64),
}

#[derive(Debug)]
pub(super) struct Desk {
    tables: Mutex<Tables>,
    submit: SubmitClient,
    settled: Notify,
}

impl Desk {
    pub(super) fn new(submit: SubmitClient) -> Self {
        Self {
            tables: Mutex::new(Tables {
                zero: Instant::now(),
                links: BTreeMap::new(),
                generations: 0,
                held: HashMap::new(),
                renewals: HashMap::new(),
                paused: false,
            }),
            submit,
            settled: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pause(&self) {
        let mut t = self.lock();
        t.paused = true;
        // Withdraws what was given; leases that come all the same are given back.
        let nodes: Vec<NodeId> = t.links.keys().copied().collect();
        for node in nodes {
            t.send(node, Frame::Credit(v1::Credit { leases: 0 }));
        }
    }

    /// The stream's generation; `None` if another one to this node is alive.
    pub(super) fn join(&self, mut link: Link) -> Option<u64> {
        let mut t = self.lock();
        if t.links.contains_key(&link.node) {
            return None;
        }
        t.generations += 1;
        link.generation = t.generations;
        let generation = link.generation;
        t.links.insert(link.node, link);
        Some(generation)
    }

    pub(super) fn leave(&self, node: NodeId, generation: u64) {
        let mut t = self.lock();
        if t.links
            .get(&node)
            .is_some_and(|l| l.generation == generation)
        {
            t.links.remove(&node);
        }
    }

    pub(super) fn grant(&self, node: NodeId, generation: u64, leases: u32) {
        let mut t = self.lock();
        t.credit(node, generation, leases);
        t.send_credit(node);
    }

    /// When it began; `None` for a lease that we hold already.
    pub(super) fn leased(
        &self,
        lease: &v1::Lease,
        from: NodeId,
        generation: u64,
        received: Instant,
    ) -> Option<Instant> {
        let Ok(id) = message_id("lease.id", &lease.id) else {
            tracing::error!(node = %from, "lease without message id ignored");
            return None;
        };
        let mut t = self.lock();
        let since = t
            .when(lease.since_ms)
            .map_or(received, |at| at.min(received));
        let held = Held {
            from,
            generation,
            until: since + Duration::from_millis(lease.lease_ms),
            destination: lease.destination.clone(),
            trace: lease.trace.clone().filter(|t| !t.traceparent.is_empty()),
            open: lease.recipients.iter().map(|r| r.recipient).collect(),
            queued: Vec::new(),
            sent: None,
        };
        if t.held.contains_key(&(id, lease.epoch)) {
            return None;
        }
        t.held.insert((id, lease.epoch), held);
        Some(since)
    }

    /// The same for a lease that came over no stream: the credit it took is that of the stream to `node`.
    pub(super) fn granted(
        &self,
        lease: &v1::Lease,
        node: NodeId,
        since: Instant,
    ) -> Option<Instant> {
        let generation = self.lock().links.get(&node).map_or(0, |l| l.generation);
        self.leased(lease, node, generation, since)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.lock().paused
    }

    pub(super) fn report(&self, report: v1::Report) {
        let Ok(id) = message_id("report.id", &report.id) else {
            return;
        };
        let key = (id, report.epoch);
        let mut t = self.lock();
        let Some(held) = t.held.get_mut(&key) else {
            tracing::debug!(message.id = %id, "outcome of a lease that is over is dropped");
            return;
        };
        for r in &report.recipients {
            held.open.remove(&r.recipient);
        }
        held.queued.extend(report.recipients);
        if held.sent.is_none() {
            t.send_report(key, &self.submit);
        }
    }

    pub(super) fn acknowledged(&self, ack: &v1::ReportAck) {
        let Ok(id) = message_id("ack.id", &ack.id) else {
            return;
        };
        let key = (id, ack.epoch);
        let mut t = self.lock();
        let Some(held) = t.held.get_mut(&key) else {
            return;
        };
        held.sent = None;
        if !ack.accepted {
            tracing::debug!(message.id = %id, epoch = ack.epoch, "report came too late, or twice");
        }
        if !held.queued.is_empty() {
            t.send_report(key, &self.submit);
        } else if held.open.is_empty() || !ack.accepted {
            t.end(key);
            self.settled.notify_waiters();
        }
    }

    pub(super) fn unacknowledged(&self) -> usize {
        self.lock()
            .held
            .values()
            .filter(|h| h.sent.is_some() || !h.queued.is_empty())
            .count()
    }

    pub(super) async fn settled(&self) {
        loop {
            let changed = self.settled.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.unacknowledged() == 0 {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn give_back(&self, leases: Vec<v1::LeaseRef>) {
        let mut t = self.lock();
        let mut by_node: BTreeMap<NodeId, Vec<v1::LeaseRef>> = BTreeMap::new();
        for lease in leases {
            let Ok(id) = message_id("return.id", &lease.id) else {
                continue;
            };
            let key = (id, lease.epoch);
            if let Some(node) = t.way(key, &self.submit).map(|l| l.node) {
                by_node.entry(node).or_default().push(lease);
            }
            match t.held.get_mut(&key) {
                // What was reported before is still to be acknowledged.
                Some(h) if h.sent.is_some() || !h.queued.is_empty() => h.open.clear(),
                Some(_) => t.end(key),
                None => {}
            }
        }
        for (node, leases) in by_node {
            t.send(node, Frame::GiveBack(v1::Return { leases }));
        }
        drop(t);
        self.settled.notify_waiters();
    }

    /// `None` if there is no stream to ask over.
    pub(super) fn renew(&self, id: MessageId, epoch: u64) -> Option<oneshot::Receiver<u64>> {
        let mut t = self.lock();
        let node = t.way((id, epoch), &self.submit)?.node;
        let (answer, rx) = oneshot::channel();
        let asked = Instant::now();
        t.renewals.insert((id, epoch), Renewing { asked, answer });
        let lease = v1::LeaseRef {
            id: Bytes::copy_from_slice(id.as_bytes()),
            epoch,
            until_ms: 0,
        };
        t.send(
            node,
            Frame::Renew(v1::Renew {
                leases: vec![lease],
            }),
        );
        Some(rx)
    }

    pub(super) fn forget_renewal(&self, id: MessageId, epoch: u64) {
        self.lock().renewals.remove(&(id, epoch));
    }

    pub(super) fn renewed(&self, ack: &v1::RenewAck) {
        let Ok(id) = message_id("renewed.id", &ack.id) else {
            return;
        };
        let mut t = self.lock();
        // From when the question was sent that this is the answer to: it may be an earlier one.
        let since = t.when(ack.since_ms);
        let length = Duration::from_millis(ack.lease_ms);
        if let Some(h) = t.held.get_mut(&(id, ack.epoch)) {
            h.until = h.until.max(since.unwrap_or_else(Instant::now) + length);
        }
        if let Some(r) = t.renewals.remove(&(id, ack.epoch)) {
            let left = since.map_or(length, |at| {
                (at + length).duration_since(r.asked).min(length)
            });
            let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            // 0 says that it is lost, which this is not.
            let left = if ack.lease_ms == 0 { 0 } else { left.max(1) };
            let _ = r.answer.send(left);
        }
    }

    pub(super) fn client(&self, id: MessageId, epoch: u64) -> Option<QueueClient<Line>> {
        self.lock()
            .way((id, epoch), &self.submit)
            .map(|l| l.client.clone())
    }

    /// Sends reports again that got no answer, or whose stream or leader is gone; gives up leases that are over.
    pub(super) async fn keep_reporting(&self) {
        let mut changes = self.submit.changes();
        loop {
            tokio::select! {
                () = sleep(TICK) => {}
                alive = changes.changed() => if !alive { return },
            }
            self.look_through();
        }
    }

    fn look_through(&self) {
        let now = Instant::now();
        let mut t = self.lock();
        let over: Vec<Key> = t
            .held
            .iter()
            .filter(|(_, h)| now > h.until + GRACE)
            .map(|(k, _)| *k)
            .collect();
        let ended = !over.is_empty();
        for key in over {
            tracing::info!(message.id = %key.0, epoch = key.1, "lease ran out before its outcome was recorded");
            t.end(key);
        }
        let again: Vec<Key> = t
            .held
            .iter()
            .filter(|(k, h)| match &h.sent {
                None => !h.queued.is_empty(),
                Some(s) => {
                    let best = t.way(**k, &self.submit).map(|l| (l.node, l.generation));
                    now.duration_since(s.at) > SILENCE || best.is_some_and(|b| b != s.over)
                }
            })
            .map(|(k, _)| *k)
            .collect();
        for key in again {
            t.send_report(key, &self.submit);
        }
        let nodes: Vec<NodeId> = t.links.keys().copied().collect();
        for node in nodes {
            t.send_credit(node);
            if t.links.get(&node).is_some_and(|l| l.said.elapsed() > BEAT) {
                t.send(node, Frame::Renew(v1::Renew::default()));
            }
        }
        drop(t);
        if ended {
            self.settled.notify_waiters();
        }
    }
}

impl Tables {
    /// The stream to the shard's leader, or else the one that the lease came over.
    fn way(&self, key: Key, submit: &SubmitClient) -> Option<&Link> {
        let leader = submit
            .leader(key.0.shard())
            .and_then(|node| self.links.get(&node));
        leader.or_else(|| self.held.get(&key).and_then(|h| self.links.get(&h.from)))
    }

    /// Full or gone: reports and renewals come again, the rest runs out by itself.
    fn send(&mut self, node: NodeId, frame: Frame) -> bool {
        let now = Instant::now();
        let sent_ms = u64::try_from(now.duration_since(self.zero).as_millis()).unwrap_or(0) + 1;
        let request = v1::DeliverRequest {
            frame: Some(frame),
            sent_ms,
        };
        self.links.get_mut(&node).is_some_and(|l| {
            let sent = l.frames.try_send(request).is_ok();
            if sent {
                l.said = now;
            }
            sent
        })
    }

    /// A moment that a node names by our clock; `None` if it names none.
    fn when(&self, ms: u64) -> Option<Instant> {
        let since_zero = Duration::from_millis(ms.checked_sub(1)?);
        self.zero.checked_add(since_zero)
    }

    /// What is on its way once more, or else what is queued.
    fn send_report(&mut self, key: Key, submit: &SubmitClient) {
        let Some(over) = self.way(key, submit).map(|l| (l.node, l.generation)) else {
            return;
        };
        let Some(held) = self.held.get_mut(&key) else {
            return;
        };
        // Again exactly what was sent before: an acknowledgement of the first copy must not cover more.
        let recipients = held
            .sent
            .take()
            .map_or_else(|| std::mem::take(&mut held.queued), |s| s.report);
        held.sent = Some(Sent {
            report: recipients.clone(),
            at: Instant::now(),
            over,
        });
        let report = v1::Report {
            id: Bytes::copy_from_slice(key.0.as_bytes()),
            epoch: key.1,
            recipients,
            destination: held.destination.clone(),
            trace: held.trace.clone(),
        };
        self.send(over.0, Frame::Report(report));
    }

    /// The lease is settled; its node may give out another.
    fn end(&mut self, key: Key) {
        self.renewals.remove(&key);
        if let Some(h) = self.held.remove(&key) {
            self.credit(h.from, h.generation, 1);
        }
    }

    fn credit(&mut self, node: NodeId, generation: u64, leases: u32) {
        if let Some(link) = self
            .links
            .get_mut(&node)
            .filter(|l| l.generation == generation)
        {
            link.credit += leases;
            // A frame per lease would be as many frames again as there are outcomes: they go in
            // bunches, what is left with the next look through.
            if link.credit >= BUNCH {
                self.send_credit(node);
            }
        }
    }

    /// What does not fit into the stream now goes with the next look through.
    fn send_credit(&mut self, node: NodeId) {
        let Some(leases) = self
            .links
            .get(&node)
            .map(|l| l.credit)
            .filter(|n| *n > 0 && !self.paused)
        else {
            return;
        };
        if self.send(node, Frame::Credit(v1::Credit { leases }))
            && let Some(link) = self.links.get_mut(&node)
        {
            link.credit = 0;
        }
    }
}
