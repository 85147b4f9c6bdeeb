//! A relay node in the simulation: the product's clients of the control plane, with simulated SMTP on both sides.
use crate::{
    ledger::{Answer, Holding, Ledger},
    node, note,
    plan::Plan,
    sink::{Sink, Verdict},
    witness::Witness,
    zombie,
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sealane_client::{
    Content, DeliverClient, LeasedWork, Members, Renewal, Submission, SubmitClient, SubmitError,
    mtls,
};
use sealane_runtime::identity::Identity;
use sealane_types::{CHUNK_SIZE, MessageId, TraceContext};
use sealane_wire::v1;
use sha2::{Digest, Sha256};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    task::spawn_local,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Between the check of the lease and the final dot the lease must last at least this long.
const MARGIN: Duration = Duration::from_millis(500);
/// Leases that each node may have given out to one relay.
const CREDITS: u32 = 40;

/// Simulated time, milliseconds: the same on all hosts.
pub(crate) fn now_ms() -> u64 {
    let elapsed = turmoil::sim_elapsed().unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// What is shared by all relays, and outlives their processes.
#[derive(Debug, Clone)]
pub(crate) struct Outside {
    /// The judge.
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    /// The other mail servers.
    pub(crate) sink: Arc<Mutex<Sink>>,
    /// What nodes ever wrote.
    pub(crate) witness: Witness,
    /// Clients bring mail.
    pub(crate) busy: Arc<std::sync::atomic::AtomicBool>,
}

impl Outside {
    /// The judge.
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn sink(&self) -> MutexGuard<'_, Sink> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The nth relay of a plan.
#[derive(Debug, Clone)]
pub(crate) struct Relay {
    /// Which one.
    pub(crate) n: usize,
    /// The plan.
    pub(crate) plan: Rc<Plan>,
    /// Its certificate.
    pub(crate) identity: Identity,
    /// Of those who report what they do not hold any more.
    pub(crate) zombie: Identity,
    /// The world around it.
    pub(crate) outside: Outside,
    /// Processes so far.
    pub(crate) lives: Rc<Cell<u64>>,
}

/// The name of the nth relay.
pub(crate) fn name(n: usize) -> String {
    format!("relay-{}", n + 1)
}

struct Process {
    relay: Relay,
    life: u64,
    submit: SubmitClient,
    deliver: DeliverClient,
    chance: RefCell<StdRng>,
    serial: Cell<u64>,
}

impl Relay {
    /// The process.
    pub(crate) async fn run(self) {
        let life = self.lives.get() + 1;
        self.lives.set(life);
        note!("{} starts", name(self.n));
        let seeds = (0..self.plan.nodes).map(node::address).collect();
        let members = Members::new(seeds, mtls(self.identity.clone()));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let name = name(self.n);
        let submit = SubmitClient::start(&name, members.clone(), &tasks, stop.clone());
        let deliver = DeliverClient::start(
            &name,
            members,
            submit.clone(),
            CREDITS,
            &tasks,
            stop.clone(),
        );
        let seed = self.plan.seed ^ ((self.n as u64 + 1) << 40) ^ (life << 48);
        let clients = self.plan.clients;
        let process = Rc::new(Process {
            relay: self,
            life,
            submit,
            deliver,
            chance: RefCell::new(StdRng::seed_from_u64(seed)),
            serial: Cell::new(0),
        });
        for _ in 0..clients {
            spawn_local(process.clone().client());
        }
        while let Some(work) = process.deliver.lease().await {
            process.clone().hold(&work);
            spawn_local(process.clone().attempt(work));
        }
    }
}

impl Process {
    fn pick(&self, from: u64, to: u64) -> u64 {
        self.chance.borrow_mut().random_range(from..=to.max(from))
    }

    fn outside(&self) -> &Outside {
        &self.relay.outside
    }

    fn who(&self) -> (usize, u64) {
        (self.relay.n, self.life)
    }

    // ---- mail in

    async fn client(self: Rc<Self>) {
        let (least, most) = self.relay.plan.think_ms;
        loop {
            sleep(Duration::from_millis(self.pick(least, most))).await;
            if self
                .outside()
                .busy
                .load(std::sync::atomic::Ordering::Relaxed)
            {
                self.transaction().await;
            }
        }
    }

    /// Of the next client. An enqueue is withdrawn five seconds before the end of it.
    fn patience(&self) -> Duration {
        let every = u64::from(self.relay.plan.hasty_every);
        if every > 0 && self.pick(1, every) == 1 {
            return Duration::from_millis(self.pick(5001, 5300));
        }
        self.relay.plan.patience
    }

    /// One message, as an SMTP client sees it.
    async fn transaction(&self) {
        let deadline = Instant::now() + self.patience();
        let Some(shard) = self.submit.choose_shard() else {
            return;
        };
        let id = self.submit.new_id(shard);
        let raw = *id.as_bytes();
        let serial = self.serial.get();
        self.serial.set(serial + 1);
        let count = self.pick(1, 3);
        let mailboxes: Vec<String> = (0..count)
            .map(|k| {
                let destination = Sink::destination(self.pick(0, 99));
                format!("u{}-{}-{serial}-{k}@{destination}", self.relay.n, self.life)
            })
            .collect();
        let every = u64::from(self.relay.plan.large_every);
        let large = every > 0 && self.pick(1, every) == 1;
        let size = if large {
            CHUNK_SIZE + 200_000
        } else {
            usize::try_from(self.pick(60, self.relay.plan.body as u64)).unwrap_or(60)
        };
        let mut body = format!("Subject: {serial}\r\nMessage-ID: <{id}@sim>\r\n\r\n").into_bytes();
        body.resize(body.len() + size, b'x');
        let digest: [u8; 32] = Sha256::digest(&body).into();
        self.outside()
            .ledger()
            .offer(raw, digest, mailboxes.clone());
        let total = body.len() as u64;
        let content = if large {
            match self.upload(id, Bytes::from(body), deadline).await {
                Some(content) => content,
                None => {
                    // Pieces only: nothing was proposed that could be delivered.
                    return self
                        .outside()
                        .ledger()
                        .answer(raw, Answer::Refused, "upload");
                }
            }
        } else {
            Content::Inline(body.into())
        };
        let submission = Submission {
            id,
            envelope: v1::Envelope {
                reverse_path: format!("s{}-{}-{serial}@senders.example", self.relay.n, self.life),
                recipients: mailboxes
                    .iter()
                    .map(|m| v1::Recipient {
                        mailbox: m.clone(),
                        orcpt: String::new(),
                    })
                    .collect(),
                body_type: v1::BodyType::BodyType7bit.into(),
                envid: String::new(),
            },
            entry: v1::EntryRecord {
                listener: "submission".into(),
                relay: name(self.relay.n),
                ..Default::default()
            },
            trace: TraceContext::default(),
            size: total,
            sha256: digest,
            content,
            lease: self.pick(0, 1) == 1,
        };
        let envelope = submission.envelope.clone();
        let again = (self.pick(0, 7) == 0).then(|| submission.clone());
        let outcome = self.submit.submit(submission, deadline).await;
        if let Some(again) = again.filter(|_| outcome.is_ok()) {
            // As if the first answer had been lost: it must change nothing.
            let repeated = self
                .submit
                .submit(again, deadline + self.relay.plan.patience)
                .await;
            if let Err(e @ (SubmitError::Transient(_) | SubmitError::Rejected(_))) = repeated {
                let what = format!("I1: {id} was accepted, and asked again it is not: {e}");
                self.outside().ledger().violate(what);
            }
        }
        let (answer, why) = match &outcome {
            Ok(_) => {
                if let Err(what) = self.outside().witness.acknowledged(raw) {
                    self.outside().ledger().violate(what);
                }
                (Answer::Accepted, String::new())
            }
            Err(SubmitError::Unknown) => (Answer::Silence, String::new()),
            Err(e @ SubmitError::Transient(_)) => (Answer::Withdrawn, e.to_string()),
            Err(e) => (Answer::Refused, e.to_string()),
        };
        self.outside().ledger().answer(raw, answer, &why);
        // The first attempt is ours, as in the relay (`relay-node/src/kept.rs`).
        if let Ok(durable) = outcome
            && let Some(grant) = durable.grant()
        {
            let destination = envelope
                .recipients
                .first()
                .and_then(|r| r.mailbox.rsplit_once('@'))
                .map_or("", |(_, d)| d)
                .to_ascii_lowercase();
            let lease = v1::Lease {
                id: Bytes::copy_from_slice(&raw),
                epoch: grant.epoch,
                lease_ms: u64::try_from(grant.length.as_millis()).unwrap_or(u64::MAX),
                destination,
                reverse_path: envelope.reverse_path,
                recipients: envelope
                    .recipients
                    .into_iter()
                    .zip(0u32..)
                    .map(|(r, n)| v1::LeasedRecipient {
                        recipient: n,
                        mailbox: r.mailbox,
                        ..Default::default()
                    })
                    .collect(),
                size: total,
                ..Default::default()
            };
            self.deliver.granted(lease, grant.node, grant.since);
        }
    }

    async fn upload(&self, id: MessageId, body: Bytes, deadline: Instant) -> Option<Content> {
        let mut upload = self.submit.begin_upload(id, TraceContext::default());
        for piece in body.chunks(CHUNK_SIZE) {
            let piece = Bytes::copy_from_slice(piece);
            upload.push(piece, (), deadline).await.ok()?;
        }
        let chunks = upload.finish().await.ok()?;
        Some(Content::Uploaded { chunks })
    }

    // ---- mail out

    fn holding(&self, work: &LeasedWork) -> Holding {
        let left = (work.received + Duration::from_millis(work.lease.lease_ms))
            .saturating_duration_since(Instant::now());
        Holding {
            relay: self.who(),
            epoch: work.lease.epoch,
            until_ms: now_ms() + u64::try_from(left.as_millis()).unwrap_or(0),
        }
    }

    fn hold(self: Rc<Self>, work: &LeasedWork) {
        let Ok(id) = MessageId::from_slice(&work.lease.id) else {
            return;
        };
        let holding = self.holding(work);
        note!("{} leases {id} epoch {}", name(self.relay.n), holding.epoch);
        let mut stale = Vec::new();
        {
            let mut ledger = self.outside().ledger();
            for r in &work.lease.recipients {
                let before = ledger.leased(*id.as_bytes(), r.recipient, holding);
                stale.extend(before.map(|epoch| (r.recipient, epoch)));
            }
        }
        for (recipient, epoch) in stale {
            spawn_local(self.clone().lie(id, recipient, epoch));
        }
    }

    /// A relay that slept says of a lease that is someone else's by now that it delivered: it must not be believed.
    async fn lie(self: Rc<Self>, id: MessageId, recipient: u32, epoch: u64) {
        let node = usize::try_from(self.pick(0, 1000)).unwrap_or(0) % self.relay.plan.nodes;
        let report = v1::Report {
            id: Bytes::copy_from_slice(id.as_bytes()),
            epoch,
            recipients: vec![v1::RecipientReport {
                recipient,
                outcome: v1::Outcome::Delivered.into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let identity = self.relay.zombie.clone();
        let told = zombie::tell(identity, node::address(node), report);
        if let Ok(Some(true)) = tokio::time::timeout(Duration::from_secs(5), told).await {
            let what = format!("I6: the old epoch {epoch} of {id} was believed");
            self.outside().ledger().violate(what);
        }
    }

    fn let_go(&self, id: MessageId, work: &LeasedWork) {
        let mut ledger = self.outside().ledger();
        for r in &work.lease.recipients {
            ledger.ended(*id.as_bytes(), r.recipient, self.who(), work.lease.epoch);
        }
    }

    /// From the lease to the report.
    async fn attempt(self: Rc<Self>, mut work: LeasedWork) {
        let Ok(id) = MessageId::from_slice(&work.lease.id) else {
            return self
                .outside()
                .ledger()
                .violate("a lease without message id".into());
        };
        let epoch = work.lease.epoch;
        let reference = v1::LeaseRef {
            id: work.lease.id.clone(),
            epoch,
            until_ms: 0,
        };
        let until = |w: &LeasedWork| w.received + Duration::from_millis(w.lease.lease_ms);
        let body = timeout_at(until(&work), self.body(id, epoch)).await;
        let body = match body {
            Ok(Some(b)) => b,
            Ok(None) | Err(_) => {
                self.let_go(id, &work);
                return self.deliver.give_back(vec![reference]);
            }
        };
        let digest: [u8; 32] = Sha256::digest(&body).into();
        let known = self.outside().ledger().knows(id.as_bytes());
        if known {
            self.outside().ledger().fetched(*id.as_bytes(), digest);
        }
        // The conversation up to the final dot.
        sleep(Duration::from_millis(self.pick(1, 60))).await;
        if self.pick(0, 9) == 0 {
            // A slow one: it needs more time than it has.
            let asked = Instant::now();
            match self.deliver.renew(id, epoch).await {
                Renewal::Renewed(length) => {
                    work.received = asked;
                    work.lease.lease_ms = u64::try_from(length.as_millis()).unwrap_or(0);
                    self.clone().hold(&work);
                    sleep(Duration::from_millis(self.pick(100, 3000))).await;
                }
                Renewal::Lost => return self.let_go(id, &work),
                Renewal::Unknown => {}
            }
        }
        if Instant::now() + MARGIN > until(&work) {
            self.let_go(id, &work);
            return self.deliver.give_back(vec![reference]);
        }
        let holding = self.holding(&work);
        let mut said = Vec::new();
        for r in &work.lease.recipients {
            let verdict = self.outside().sink().ask(&r.mailbox, known);
            let mut ledger = self.outside().ledger();
            match verdict {
                Verdict::Accepts if known => {
                    ledger.deliver(*id.as_bytes(), r.recipient, &r.mailbox, holding, now_ms());
                }
                Verdict::Accepts => self.report_arrived(&mut ledger, id, &work, &body, true),
                Verdict::Refuses => ledger.failed(*id.as_bytes(), r.recipient),
                Verdict::Defers => {}
            }
            said.push((r.recipient, verdict));
        }
        // The remote server's answer is on its way.
        sleep(Duration::from_millis(self.pick(0, 40))).await;
        self.let_go(id, &work);
        self.deliver.report(v1::Report {
            id: work.lease.id.clone(),
            epoch,
            recipients: said
                .into_iter()
                .map(|(recipient, verdict)| v1::RecipientReport {
                    recipient,
                    outcome: verdict.outcome().into(),
                    reply: Some(verdict.reply()),
                    tls: Some(v1::TlsFacts::default()),
                    tls_caused: false,
                })
                .collect(),
            destination: work.lease.destination.clone(),
            trace: None,
        });
    }

    /// A message that we did not offer is a report of ours.
    fn report_arrived(
        &self,
        ledger: &mut Ledger,
        id: MessageId,
        work: &LeasedWork,
        body: &[u8],
        delivered: bool,
    ) {
        if !work.lease.reverse_path.is_empty() {
            return ledger.violate(format!("{id} was never offered and is no report"));
        }
        let text = String::from_utf8_lossy(body);
        let failed = text
            .lines()
            .filter_map(|l| l.strip_prefix("Final-Recipient: rfc822; "));
        for mailbox in failed {
            note!("report {id} returns {mailbox}");
            ledger.report(*id.as_bytes(), mailbox.trim(), delivered);
        }
    }

    async fn body(&self, id: MessageId, epoch: u64) -> Option<Bytes> {
        let mut pieces = self
            .deliver
            .fetch_body(id, epoch, TraceContext::default())
            .await
            .ok()?;
        let mut body = BytesMut::new();
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(p) => body.extend_from_slice(&p),
                Err(e) => {
                    if e.0.contains("is missing") {
                        let what = format!("I7: the body of {id} is gone: {e}");
                        self.outside().ledger().violate(what);
                    }
                    return None;
                }
            }
        }
        Some(body.freeze())
    }
}
