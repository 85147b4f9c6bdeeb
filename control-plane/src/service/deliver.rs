//! `Queue.Deliver`: leases out, outcomes in. Outcomes become log entries here: the retry time, the
//! end of a message's life and its non-delivery report are decided by the leader.
use crate::{
    background::dispatch::{Dispatch, Expire},
    metrics::Metrics,
    policy_view::PolicyView,
    raft::{Committed, Group, Groups},
    service::results::ResultsBatcher,
};
use bytes::{Bytes, BytesMut};
use rand::Rng;
use sealane_mutants::{Mutant::M14, mutant};
use sealane_policy::RetrySchedule;
use sealane_scheduler::retry_at;
use sealane_state::queries::{self, StoredMessage};
use sealane_types::{GroupId, MessageId, sanitize};
use sealane_wire::{
    message_id,
    v1::{self, Outcome, command::Op, command_reply::Result as Answer, recipient_record::State},
};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Semaphore, mpsc};
use tonic::{Status, Streaming};
use tracing::{Instrument, info_span};

/// Leases and acknowledgements on their way to one relay.
const EVENTS: usize = 1024;
/// Reports of one relay that are being committed at once.
const REPORTS: usize = 1024;
/// Octets of the original header that a non-delivery report may quote.
const HEADER_LIMIT: usize = 64 << 10;
/// Recipients settled by one entry: with their replies quoted twice, a report of them stays below 1 MiB.
const RESULTS: usize = 400;

/// Everything a Deliver stream needs; one per node.
#[derive(Debug)]
pub(crate) struct DeliverDesk {
    pub(crate) groups: Arc<Groups>,
    pub(crate) policy: PolicyView,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) dispatch: Dispatch,
    pub(crate) lease: Duration,
    /// Reporting-MTA of our reports.
    pub(crate) hostname: String,
    pub(crate) node: String,
    pub(crate) sessions: AtomicU64,
    /// One per shard.
    pub(crate) results: BTreeMap<GroupId, ResultsBatcher>,
}

impl DeliverDesk {
    /// Serves one stream until the relay ends it.
    pub(crate) fn serve(
        self: Arc<Self>,
        relay: String,
        hello: v1::ServerHello,
        mut frames: Streaming<v1::DeliverRequest>,
    ) -> mpsc::Receiver<Result<v1::DeliverEvent, Status>> {
        use v1::{deliver_event::Frame as Event, deliver_request::Frame};
        let (tx, rx) = mpsc::channel(EVENTS);
        tokio::spawn(async move {
            let event = |frame| Ok(v1::DeliverEvent { frame: Some(frame) });
            if tx.send(event(Event::Hello(hello))).await.is_err() {
                return;
            }
            let session = self.sessions.fetch_add(1, Ordering::Relaxed);
            // A relay that reaches this node under two addresses drops one of the streams before it gives
            // credit on it: only credit makes a worker.
            let mut joined = false;
            tracing::info!(%relay, "delivery stream opened");
            let slots = Arc::new(Semaphore::new(REPORTS));
            let removed = self.groups.until_removed();
            tokio::pin!(removed);
            loop {
                let next = tokio::select! {
                    () = &mut removed => break,
                    next = frames.message() => next,
                };
                let Ok(Some(v1::DeliverRequest {
                    frame: Some(frame),
                    sent_ms,
                })) = next
                else {
                    break;
                };
                match frame {
                    Frame::Hello(_) => {}
                    Frame::Credit(c) => {
                        if !std::mem::replace(&mut joined, true) {
                            self.dispatch.joined(&relay, session, tx.clone());
                        }
                        self.dispatch.shows(&relay, session, sent_ms);
                        self.dispatch.credit(&relay, session, c.leases);
                    }
                    Frame::Report(r) => {
                        let Ok(slot) = slots.clone().acquire_owned().await else {
                            break;
                        };
                        let (desk, tx, relay) = (self.clone(), tx.clone(), relay.clone());
                        tokio::spawn(async move {
                            // No answer if it could not be committed: the relay reports again.
                            if let Some(ack) = desk.report(&relay, r).await {
                                let _ = tx
                                    .send(Ok(v1::DeliverEvent {
                                        frame: Some(Event::Ack(ack)),
                                    }))
                                    .await;
                            }
                            drop(slot);
                        });
                    }
                    Frame::Renew(r) => {
                        self.dispatch.shows(&relay, session, sent_ms);
                        let (desk, tx, relay) = (self.clone(), tx.clone(), relay.clone());
                        tokio::spawn(async move {
                            for ack in desk.renew(&relay, r, sent_ms).await {
                                let _ = tx
                                    .send(Ok(v1::DeliverEvent {
                                        frame: Some(Event::Renewed(ack)),
                                    }))
                                    .await;
                            }
                        });
                    }
                    Frame::GiveBack(r) => {
                        let desk = self.clone();
                        tokio::spawn(async move { desk.give_back(r).await });
                    }
                }
            }
            tracing::info!(%relay, "delivery stream closed");
            self.dispatch.left(&relay, session);
        });
        rx
    }

    fn group_of(&self, id: MessageId) -> Option<Group> {
        self.groups.group(id.shard().group())
    }

    /// Commits what a relay reports. `None`: not committed, outcome unknown.
    async fn report(&self, relay: &str, report: v1::Report) -> Option<v1::ReportAck> {
        let refused = || {
            Some(v1::ReportAck {
                id: report.id.clone(),
                epoch: report.epoch,
                accepted: false,
            })
        };
        let Ok(id) = message_id("report.id", &report.id) else {
            return refused();
        };
        let Some(group) = self.group_of(id) else {
            return refused();
        };
        // Only the leader's state tells whether the lease still stands.
        group.leading()?;
        if let Some(outcome) = of_destination(&report) {
            self.dispatch.outcome(&report.destination, outcome);
        }
        let ack = |accepted| {
            Some(v1::ReportAck {
                id: report.id.clone(),
                epoch: report.epoch,
                accepted,
            })
        };
        let all_delivered = report
            .recipients
            .iter()
            .all(|r| r.outcome() == Outcome::Delivered);
        if all_delivered && !report.recipients.is_empty() {
            // Nothing of the message is needed to record this.
            let span = info_span!("queue.record", message.id = %id, epoch = report.epoch);
            if let Some(trace) = report.trace.clone() {
                sealane_runtime::telemetry::set_parent(&span, &trace.into());
            }
            let results = report.recipients.iter().map(as_reported).collect();
            let recorded = self.record(&group, id, report.epoch, results);
            return ack(recorded.instrument(span).await?);
        }
        let message = match queries::message(&group.store().reader(), id) {
            Ok(Some(m)) => m,
            Ok(None) => return refused(),
            Err(e) => {
                tracing::error!(message = %id, error = %e, "message unreadable");
                return None;
            }
        };
        let span = info_span!("queue.record", message.id = %id, epoch = report.epoch);
        if let Some(trace) = message.record.trace.clone() {
            sealane_runtime::telemetry::set_parent(&span, &trace.into());
        }
        let results = self.results(&message, &report);
        let accepted = self
            .commit(&group, &message, report.epoch, results)
            .instrument(span)
            .await?;
        if accepted {
            tracing::debug!(message = %id, relay, "report recorded");
        }
        ack(accepted)
    }

    fn schedule(&self, mailbox: &str) -> RetrySchedule {
        let domain = mailbox.rsplit_once('@').map_or("", |(_, d)| d);
        self.policy.current().parsed.destination(domain).retry
    }

    /// Turns a relay's words into results: deferred becomes a retry time, or failed if time is up.
    fn results(&self, message: &StoredMessage, report: &v1::Report) -> Vec<v1::RecipientResult> {
        let now = self.groups.clock().wall_ms();
        let age = now.saturating_sub(message.record.enqueued_at_ms);
        let may_expire = self.groups.may_expire();
        let envelope = message.record.envelope.as_ref();
        // One for all: what was tried together is tried together again.
        let jitter = rand::rng().random_range(0..1000);
        let mut results = Vec::with_capacity(report.recipients.len());
        for r in &report.recipients {
            let Some(index) = usize::try_from(r.recipient).ok() else {
                continue;
            };
            let (Some(given), Some(stored)) = (
                envelope.and_then(|e| e.recipients.get(index)),
                message.recipients.get(index),
            ) else {
                continue;
            };
            let mut result = as_reported(r);
            if r.outcome() == Outcome::Deferred {
                let schedule = self.schedule(&given.mailbox);
                let lifetime = if r.tls_caused {
                    schedule.tls_lifetime_ms.min(schedule.lifetime_ms)
                } else {
                    schedule.lifetime_ms
                };
                if may_expire && age >= lifetime {
                    result.outcome = Outcome::Failed.into();
                    result.expired = true;
                    result.reply = Some(expired_reply(r.reply.clone(), r.tls_caused));
                } else {
                    result.retry_at_ms =
                        retry_at(&schedule.delays_ms, stored.attempts, now, jitter);
                }
            }
            results.push(result);
        }
        results
    }

    /// Proposes the results in parts that fit an entry with their report; `None`: not all of them
    /// were recorded, so report again.
    async fn commit(
        &self,
        group: &Group,
        message: &StoredMessage,
        epoch: u64,
        results: Vec<v1::RecipientResult>,
    ) -> Option<bool> {
        let mut effective = false;
        for part in results.chunks(RESULTS) {
            effective |= self
                .commit_part(group, message, epoch, part.to_vec())
                .await?;
        }
        Some(effective)
    }

    /// Records results that cause no report, in one entry with others.
    async fn record(
        &self,
        group: &Group,
        id: MessageId,
        epoch: u64,
        results: Vec<v1::RecipientResult>,
    ) -> Option<bool> {
        let outcomes: Vec<Outcome> = results.iter().map(v1::RecipientResult::outcome).collect();
        let op = v1::ResultsOp {
            id: Bytes::copy_from_slice(id.as_bytes()),
            epoch,
            results,
            dsn: None,
        };
        let effective = self.results.get(&group.id())?.commit(op).await?;
        if effective {
            for o in outcomes {
                self.metrics.result(o.as_str_name());
            }
        }
        Some(effective)
    }

    /// Proposes results, and the report that the failures among them cause, as one entry.
    async fn commit_part(
        &self,
        group: &Group,
        message: &StoredMessage,
        epoch: u64,
        results: Vec<v1::RecipientResult>,
    ) -> Option<bool> {
        if results.iter().all(|r| r.outcome() != Outcome::Failed) {
            return self.record(group, message.id, epoch, results).await;
        }
        let (dsn, body) = match self.dsn(group, message, &results) {
            Some((op, body)) => (Some(op), body),
            None => (None, Bytes::new()),
        };
        let has_dsn = dsn.is_some();
        let outcomes: Vec<Outcome> = results.iter().map(v1::RecipientResult::outcome).collect();
        let op = Op::Results(v1::ResultsOp {
            id: Bytes::copy_from_slice(message.id.as_bytes()),
            epoch,
            results,
            dsn,
        });
        match group.propose(op, body).await {
            Ok(Committed {
                reply:
                    v1::CommandReply {
                        result: Some(Answer::Refused(r)),
                    },
                ..
            }) => {
                tracing::error!(message = %message.id, field = r.field, reason = r.reason, "results refused");
                None
            }
            Ok(c) => {
                let effective =
                    matches!(c.reply.result, Some(Answer::Counted(n)) if n.effective > 0);
                if effective {
                    for o in outcomes {
                        self.metrics.result(o.as_str_name());
                    }
                    if has_dsn {
                        self.metrics.dsn();
                    }
                }
                Some(effective)
            }
            Err(e) => {
                tracing::debug!(message = %message.id, error = %e, "results not committed");
                None
            }
        }
    }

    /// The non-delivery report for the failed among `results`; none for the null reverse-path.
    fn dsn(
        &self,
        group: &Group,
        message: &StoredMessage,
        results: &[v1::RecipientResult],
    ) -> Option<(v1::EnqueueOp, Bytes)> {
        let failed: Vec<&v1::RecipientResult> = results
            .iter()
            .filter(|r| r.outcome() == Outcome::Failed)
            .collect();
        let envelope = message.record.envelope.as_ref()?;
        if failed.is_empty() || !hears_of_failures(envelope) {
            return None;
        }
        let now = self.groups.clock().wall_ms();
        let mut random = [0u8; 9];
        rand::rng().fill(&mut random);
        let id = MessageId::new(message.id.shard(), now, random);
        let failures: Vec<sealane_dsn::Failure<'_>> = failed
            .iter()
            .filter_map(|r| {
                let recipient = envelope
                    .recipients
                    .get(usize::try_from(r.recipient).ok()?)?;
                Some(sealane_dsn::Failure {
                    recipient,
                    reply: r.reply.as_ref(),
                    expired: r.expired,
                })
            })
            .collect();
        let report = sealane_dsn::build(&sealane_dsn::Report {
            id,
            original_id: message.id,
            record: &message.record,
            failures: &failures,
            original_header: &self.header(group, message),
            reporting_mta: &self.hostname,
            now_ms: now,
        });
        let schedule = self.schedule(&envelope.reverse_path);
        let op = v1::EnqueueOp {
            id: Bytes::copy_from_slice(id.as_bytes()),
            envelope: Some(report.envelope),
            entry: Some(v1::EntryRecord {
                listener: "dsn".into(),
                rule: format!("failure of {}", message.id),
                relay: self.node.clone(),
                accepted_at_ms: now,
                ..Default::default()
            }),
            trace: message.record.trace.clone(),
            size: report.body.len() as u64,
            sha256: Sha256::digest(&report.body).to_vec().into(),
            chunks: 0,
            expires_at_ms: now.saturating_add(schedule.lifetime_ms),
            holder: String::new(),
            lease_until_ms: 0,
        };
        Some((op, report.body))
    }

    /// The first octets of the message, up to the limit: the builder takes the header from them.
    fn header(&self, group: &Group, message: &StoredMessage) -> Bytes {
        let mut out = BytesMut::new();
        for part in &message.record.body {
            if out.len() >= HEADER_LIMIT {
                break;
            }
            match group.store().read_body(part.log_index) {
                Ok(Some(b)) => {
                    out.extend_from_slice(b.get(..HEADER_LIMIT.min(b.len())).unwrap_or(&b))
                }
                Ok(None) | Err(_) => break,
            }
        }
        out.truncate(HEADER_LIMIT);
        out.freeze()
    }

    /// `sent_ms` is when the relay asked, by its clock.
    async fn renew(&self, relay: &str, renew: v1::Renew, sent_ms: u64) -> Vec<v1::RenewAck> {
        let lease_ms = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
        let mut by_group: std::collections::BTreeMap<_, Vec<v1::LeaseRef>> = Default::default();
        for l in renew.leases {
            if let Ok(id) = message_id("renew.id", &l.id) {
                by_group.entry(id.shard().group()).or_default().push(l);
            }
        }
        let mut acks = Vec::new();
        for (group, leases) in by_group {
            let Some(group) = self.groups.group(group) else {
                continue;
            };
            let started = tokio::time::Instant::now();
            let op = Op::Renew(v1::RenewOp {
                holder: relay.to_owned(),
                until_ms: self.groups.clock().wall_ms().saturating_add(lease_ms),
                leases: leases.clone(),
            });
            let Ok(committed) = group.propose(op, Bytes::new()).await else {
                continue;
            };
            let Some(Answer::Counted(counted)) = committed.reply.result else {
                continue;
            };
            let spent = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            acks.extend(leases.into_iter().map(|l| {
                let held = counted.accepted.contains(&l);
                v1::RenewAck {
                    id: l.id,
                    epoch: l.epoch,
                    lease_ms: match sent_ms {
                        _ if !held => 0,
                        0 => lease_ms.saturating_sub(spent),
                        _ => lease_ms,
                    },
                    since_ms: sent_ms,
                }
            }));
        }
        acks
    }

    async fn give_back(&self, give_back: v1::Return) {
        let mut by_group: std::collections::BTreeMap<_, Vec<v1::LeaseRef>> = Default::default();
        let mut all = Vec::with_capacity(give_back.leases.len());
        for l in give_back.leases {
            if let Ok(id) = message_id("return.id", &l.id) {
                all.push((id, l.epoch));
                by_group.entry(id.shard().group()).or_default().push(l);
            }
        }
        self.dispatch.crowded(&all);
        for (group, leases) in by_group {
            let Some(group) = self.groups.group(group) else {
                continue;
            };
            if let Err(e) = group
                .propose(
                    Op::Release(v1::ReleaseOp {
                        leases,
                        expired: false,
                    }),
                    Bytes::new(),
                )
                .await
            {
                tracing::debug!(error = %e, "leases not given back: they run out by themselves");
            }
        }
    }
}

impl Expire for DeliverDesk {
    /// Its waiting and held recipients fail, with one report.
    async fn expire(&self, id: MessageId) -> bool {
        let Some(group) = self.group_of(id) else {
            return false;
        };
        let message = match queries::message(&group.store().reader(), id) {
            Ok(Some(m)) => m,
            Ok(None) => return true,
            Err(e) => {
                tracing::error!(message = %id, error = %e, "message unreadable");
                return false;
            }
        };
        // The index counts by the steady clock from when it read the message: what time it is is asked here.
        let over = message.record.expires_at_ms <= self.groups.clock().wall_ms();
        if !over || !self.groups.may_expire() {
            return false;
        }
        let results: Vec<v1::RecipientResult> = message
            .recipients
            .iter()
            .enumerate()
            .filter(|(_, r)| matches!(r.state(), State::Waiting | State::Held))
            .map(|(n, r)| v1::RecipientResult {
                recipient: u32::try_from(n).unwrap_or(u32::MAX),
                outcome: Outcome::Failed.into(),
                reply: Some(expired_reply(r.last_reply.clone(), false)),
                tls: r.last_tls.clone(),
                retry_at_ms: 0,
                expired: true,
            })
            .collect();
        let done = self.commit(&group, &message, 0, results).await == Some(true);
        if done {
            tracing::info!(message = %id, "message expired");
        }
        done
    }
}

/// What a report says about its destination as a whole.
fn of_destination(report: &v1::Report) -> Option<sealane_scheduler::Outcome> {
    use sealane_scheduler::Outcome as Of;
    let all = &report.recipients;
    if report.destination.is_empty() || all.is_empty() {
        return None;
    }
    if all.iter().any(|r| r.outcome() == Outcome::Delivered) {
        return Some(Of::Delivered);
    }
    // 421, or any refusal outside TLS, where no message was named yet, or no host that we could or may
    // speak to: X.4.z (network, routing), X.7.z (TLS).
    let refused = |r: &v1::RecipientReport| {
        let reply = r.reply.as_ref();
        let enhanced = reply.map_or("", |r| r.enhanced.as_str());
        let outside_tls = r.tls.is_none();
        r.outcome() == Outcome::Deferred
            && reply.is_some_and(|r| {
                r.code == 421
                    || r.code >= 400 && outside_tls
                    || r.code == 0 && (enhanced.starts_with("4.4.") || enhanced.starts_with("4.7."))
            })
    };
    Some(if all.iter().all(refused) {
        Of::Refused
    } else {
        Of::Answered
    })
}

/// The null reverse-path never does: a report about a report would have no end (RFC 5321 section 4.5.5).
fn hears_of_failures(envelope: &v1::Envelope) -> bool {
    !envelope.reverse_path.is_empty() || mutant(M14)
}

/// What a relay reported, without a verdict of ours.
fn as_reported(r: &v1::RecipientReport) -> v1::RecipientResult {
    v1::RecipientResult {
        recipient: r.recipient,
        outcome: r.outcome,
        reply: r.reply.clone(),
        tls: r.tls.clone(),
        retry_at_ms: 0,
        expired: false,
    }
}

/// The last reply, made permanent: X.4.7 delivery time expired, or the TLS failure's own detail (X.7.4, X.7.5).
fn expired_reply(last: Option<v1::Reply>, tls_caused: bool) -> v1::Reply {
    let mut reply = last.unwrap_or_default();
    let detail = reply.enhanced.strip_prefix("4.").map(str::to_owned);
    reply.enhanced = match detail {
        Some(d) if tls_caused => format!("5.{d}"),
        _ => "5.4.7".to_owned(),
    };
    reply.text = sanitize(
        format!("delivery time expired; last: {} {}", reply.code, reply.text).as_bytes(),
        400,
    );
    reply.code = 0;
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealane_scheduler::Outcome as Of;

    #[test]
    fn a_refusal_before_a_message_was_named_is_of_the_destination() {
        let report = |code, enhanced: &str, tls: bool| v1::Report {
            destination: "d.example".into(),
            recipients: vec![v1::RecipientReport {
                outcome: Outcome::Deferred.into(),
                reply: Some(v1::Reply {
                    code,
                    enhanced: enhanced.into(),
                    ..v1::Reply::default()
                }),
                tls: tls.then(v1::TlsFacts::default),
                ..v1::RecipientReport::default()
            }],
            ..v1::Report::default()
        };
        for (code, enhanced, tls, expected) in [
            // Greetings, and refusals of STARTTLS.
            (421, "4.3.2", false, Of::Refused),
            (450, "", false, Of::Refused),
            (454, "4.7.0", false, Of::Refused),
            (554, "5.3.2", false, Of::Refused),
            // No connection, no TLS.
            (0, "4.4.1", false, Of::Refused),
            (0, "4.7.5", true, Of::Refused),
            // Inside TLS only 421 is about more than the message.
            (421, "", true, Of::Refused),
            (450, "4.2.1", true, Of::Answered),
            (451, "4.7.1", true, Of::Answered),
            (0, "4.3.0", false, Of::Answered),
        ] {
            let said = of_destination(&report(code, enhanced, tls));
            assert_eq!(said, Some(expected), "{code} {enhanced} {tls}");
        }
    }

    #[test]
    fn the_null_reverse_path_hears_of_no_failure() {
        let from = |reverse_path: &str| v1::Envelope {
            reverse_path: reverse_path.into(),
            ..v1::Envelope::default()
        };
        assert!(hears_of_failures(&from("sender@client.example")));
        assert!(!hears_of_failures(&from("")));
    }

    #[test]
    fn expiry_is_5_4_7_unless_tls_was_the_cause() {
        let last = |e: &str| {
            Some(v1::Reply {
                code: 451,
                enhanced: e.into(),
                text: "later".into(),
                remote: String::new(),
            })
        };
        assert_eq!(expired_reply(last("4.2.0"), false).enhanced, "5.4.7");
        assert_eq!(expired_reply(last("4.7.5"), true).enhanced, "5.7.5");
        assert_eq!(expired_reply(None, true).enhanced, "5.4.7");
    }
}
