//! Rules of the state machine, and a random walk against a naive model.
use crate::{Effect, MemoryTables, ReadTables, Table, apply, queries};
use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use sealane_types::{GroupId, MessageId, ShardId};
use sealane_wire::v1::{
    self, Outcome, command::Op, command_reply::Result as Answer, recipient_record::State,
};
use std::collections::{BTreeMap, BTreeSet};

mod clock;
mod golden;
mod leases;
mod nodes;
mod report;
mod restore;
mod sweep;
mod walk;

const SHARD: GroupId = GroupId(1);

#[derive(Default)]
struct Log {
    tables: MemoryTables,
    index: u64,
    now: u64,
    /// Entries that carried a body.
    bodies: BTreeSet<u64>,
}

fn id(n: u8) -> MessageId {
    MessageId::new(ShardId::new(1).unwrap(), u64::from(n), [n; 9])
}

fn raw(n: u8) -> Bytes {
    Bytes::copy_from_slice(id(n).as_bytes())
}

fn enqueue(n: u8, recipients: usize, size: u64, chunks: u32) -> Op {
    Op::Enqueue(v1::EnqueueOp {
        id: raw(n),
        envelope: Some(v1::Envelope {
            reverse_path: "a@b.example".into(),
            recipients: (0..recipients)
                .map(|r| v1::Recipient {
                    mailbox: format!("r{r}@c.example"),
                    orcpt: String::new(),
                })
                .collect(),
            ..Default::default()
        }),
        size,
        chunks,
        expires_at_ms: 1_000_000,
        ..Default::default()
    })
}

fn lease(n: u8, recipients: Vec<u32>) -> Op {
    Op::Lease(v1::LeaseOp {
        holder: "r".into(),
        until_ms: 5000,
        items: vec![v1::LeaseItem {
            id: raw(n),
            recipients,
        }],
    })
}

fn results(n: u8, epoch: u64, outcomes: &[(u32, Outcome)], dsn: Option<v1::EnqueueOp>) -> Op {
    let results = outcomes
        .iter()
        .map(|(r, o)| v1::RecipientResult {
            recipient: *r,
            outcome: (*o).into(),
            retry_at_ms: 50,
            ..Default::default()
        })
        .collect();
    Op::Results(v1::ResultsOp {
        id: raw(n),
        epoch,
        results,
        dsn,
    })
}

impl Log {
    fn commit(&mut self, op: Op, body: usize) -> Answer {
        self.commit_in(SHARD, op, body)
    }

    fn commit_in(&mut self, group: GroupId, op: Op, body: usize) -> Answer {
        self.index += 1;
        if body > 0 {
            self.bodies.insert(self.index);
        }
        let header = v1::Command {
            now_ms: self.now,
            settled: 0,
            op: Some(op),
        }
        .encode_to_vec();
        let mut effects = Vec::new();
        let reply = apply(
            &mut self.tables,
            group,
            self.index,
            &header,
            body,
            &mut effects,
        )
        .unwrap();
        self.check();
        reply.result.unwrap()
    }

    fn message(&self, n: u8) -> Option<queries::StoredMessage> {
        queries::message(&self.tables, id(n)).unwrap()
    }

    /// Bodies are released exactly when nothing refers to them; counters agree with the tables.
    fn check(&self) {
        let mut referenced = BTreeSet::new();
        let messages = queries::list(&self.tables, None, usize::MAX, None).unwrap();
        for m in &messages {
            referenced.extend(
                m.record
                    .body
                    .iter()
                    .filter(|p| p.length > 0)
                    .map(|p| p.log_index),
            );
            let open = m
                .recipients
                .iter()
                .filter(|r| matches!(r.state(), State::Waiting | State::Leased | State::Held))
                .count();
            assert_eq!(m.record.open_recipients as usize, open);
            assert!(open > 0, "a finished message is still stored");
        }
        for (_, v) in self
            .tables
            .scan(Table::Upload, b"", b"", usize::MAX)
            .unwrap()
        {
            referenced.extend(
                v1::UploadRecord::decode(v)
                    .unwrap()
                    .part
                    .map(|p| p.log_index),
            );
        }
        let live: BTreeSet<u64> = self
            .bodies
            .difference(&self.tables.released)
            .copied()
            .collect();
        assert_eq!(live, referenced);
        assert_eq!(queries::count(&self.tables).unwrap(), messages.len() as u64);
    }
}

#[test]
fn enqueue_is_idempotent() {
    let mut log = Log::default();
    assert_eq!(
        log.commit(enqueue(1, 1, 5, 0), 5),
        Answer::Enqueued(v1::Enqueued {
            duplicate: false,
            ..Default::default()
        })
    );
    assert_eq!(
        log.commit(enqueue(1, 1, 5, 0), 5),
        Answer::Enqueued(v1::Enqueued {
            duplicate: true,
            ..Default::default()
        })
    );
    assert_eq!(queries::count(&log.tables).unwrap(), 1);
}

#[test]
fn an_aborted_id_is_never_accepted() {
    let mut log = Log::default();
    let abort = || Op::Abort(v1::AbortOp { id: raw(1) });
    assert_eq!(log.commit(abort(), 0), Answer::Aborted(v1::Aborted {}));
    assert_eq!(
        log.commit(enqueue(1, 1, 5, 0), 5),
        Answer::Aborted(v1::Aborted {})
    );
    log.commit(enqueue(2, 1, 5, 0), 5);
    assert_eq!(
        log.commit(Op::Abort(v1::AbortOp { id: raw(2) }), 0),
        Answer::Aborted(v1::Aborted {})
    );
    assert!(log.message(2).is_none());
}

#[test]
fn what_was_leased_cannot_be_aborted() {
    let mut log = Log::default();
    log.commit(enqueue(1, 1, 5, 0), 5);
    log.commit(lease(1, vec![0]), 0);
    assert_eq!(
        log.commit(Op::Abort(v1::AbortOp { id: raw(1) }), 0),
        Answer::Enqueued(v1::Enqueued {
            duplicate: true,
            ..Default::default()
        })
    );
    assert!(log.message(1).is_some());
}

#[test]
fn only_the_current_epoch_counts() {
    let mut log = Log::default();
    log.commit(enqueue(1, 1, 5, 0), 5);
    let Answer::Leased(first) = log.commit(lease(1, vec![0]), 0) else {
        panic!()
    };
    let Answer::Leased(none) = log.commit(lease(1, vec![0]), 0) else {
        panic!()
    };
    assert!(none.granted.is_empty(), "two leases overlap");
    log.commit(
        Op::Release(v1::ReleaseOp {
            leases: vec![v1::LeaseRef {
                id: raw(1),
                epoch: first.epoch,
                until_ms: 0,
            }],
            expired: true,
        }),
        0,
    );
    let Answer::Leased(second) = log.commit(lease(1, vec![0]), 0) else {
        panic!()
    };
    assert!(second.epoch > first.epoch);
    let stale = log.commit(results(1, first.epoch, &[(0, Outcome::Delivered)], None), 0);
    assert_eq!(stale, Answer::Counted(v1::Counted::default()));
    assert!(log.message(1).is_some());
    log.commit(
        results(1, second.epoch, &[(0, Outcome::Delivered)], None),
        0,
    );
    assert!(log.message(1).is_none());
}

#[test]
fn the_attempt_is_counted_before_it_happens() {
    let mut log = Log::default();
    log.commit(enqueue(1, 1, 5, 0), 5);
    log.commit(lease(1, vec![0]), 0);
    assert_eq!(log.message(1).unwrap().recipients[0].attempts, 1);
}

#[test]
fn a_failure_and_its_report_are_one_step() {
    let mut log = Log::default();
    log.commit(enqueue(1, 2, 5, 0), 5);
    let Answer::Leased(l) = log.commit(lease(1, vec![0, 1]), 0) else {
        panic!()
    };
    let Op::Enqueue(dsn) = enqueue(9, 1, 7, 0) else {
        panic!()
    };
    log.commit(
        results(
            1,
            l.epoch,
            &[(0, Outcome::Failed), (1, Outcome::Delivered)],
            Some(dsn.clone()),
        ),
        7,
    );
    assert!(log.message(1).is_none() && log.message(9).is_some());
    // Repeated by a confused relay: neither a second report nor a leaked body.
    log.commit(results(1, l.epoch, &[(0, Outcome::Failed)], Some(dsn)), 7);
    assert_eq!(queries::count(&log.tables).unwrap(), 1);
}

#[test]
fn chunks_make_a_message_only_when_complete() {
    let mut log = Log::default();
    let chunk = |seq| {
        Op::Chunk(v1::BodyChunkOp {
            id: raw(1),
            seq,
            length: 4,
        })
    };
    log.commit(chunk(0), 4);
    assert!(matches!(
        log.commit(enqueue(1, 1, 8, 2), 0),
        Answer::Refused(_)
    ));
    log.commit(chunk(1), 4);
    log.commit(chunk(1), 4);
    assert!(matches!(
        log.commit(enqueue(1, 1, 9, 2), 0),
        Answer::Refused(_)
    ));
    assert_eq!(
        log.commit(enqueue(1, 1, 8, 2), 0),
        Answer::Enqueued(v1::Enqueued {
            duplicate: false,
            ..Default::default()
        })
    );
    assert_eq!(log.message(1).unwrap().record.body.len(), 2);
    log.commit(chunk(0), 4);
}

#[test]
fn garbage_is_refused_and_changes_nothing() {
    let mut log = Log::default();
    log.commit(enqueue(1, 1, 5, 0), 5);
    let before = log.tables.clone();
    let mut effects: Vec<Effect> = Vec::new();
    let reply = apply(&mut log.tables, SHARD, 99, b"\xff\xff\xff", 0, &mut effects).unwrap();
    assert!(matches!(reply.result, Some(Answer::Refused(_))));
    assert_eq!(before, log.tables);
    assert!(matches!(
        log.commit_in(GroupId::META, enqueue(2, 1, 5, 0), 5),
        Answer::Refused(_)
    ));
}

#[test]
fn p7_node_ids_are_never_reused() {
    let mut log = Log::default();
    log.commit_in(
        GroupId::META,
        Op::InitCluster(v1::InitClusterOp {
            cluster_id: "c".into(),
            shards: 2,
            replicas: 3,
            first: Some(v1::NodeRecord {
                id: 1,
                ..Default::default()
            }),
            ..Default::default()
        }),
        0,
    );
    let mut join = |incarnation: u8| {
        let op = Op::AllocateNode(v1::AllocateNodeOp {
            // As a StatefulSet names its pods: the ordinal must not be the id.
            name: "control-plane-2".into(),
            address: "a:1".into(),
            incarnation: vec![incarnation; 16].into(),
        });
        match log.commit_in(GroupId::META, op, 0) {
            Answer::Node(n) => n.node_id,
            other => panic!("{other:?}"),
        }
    };
    let first = join(1);
    assert_eq!(join(1), first, "the same volume asks again");
    assert!(join(2) > first, "a wiped volume is a new node");
}

#[test]
fn policy_is_applied_whole_or_not_at_all() {
    let mut log = Log::default();
    let domain = |n: &str| v1::Document {
        kind: Some(v1::document::Kind::Domain(v1::DomainDocument {
            name: n.into(),
            ..Default::default()
        })),
    };
    let mut put = |documents: Vec<v1::Document>, expected_revision| {
        let op = v1::ApplyPolicyOp {
            documents,
            expected_revision,
            ..Default::default()
        };
        log.commit_in(GroupId::META, Op::ApplyPolicy(op), 0)
    };
    let Answer::Policy(p) = put(vec![domain("a"), domain("b")], 0) else {
        panic!()
    };
    assert_eq!((p.revision, p.created.len()), (1, 2));
    assert!(matches!(
        put(vec![domain("c"), v1::Document::default()], 0),
        Answer::Refused(_)
    ));
    assert!(matches!(put(vec![domain("c")], 7), Answer::Refused(r) if r.revision_conflict));
    let Answer::Policy(p) = put(vec![domain("a")], 1) else {
        panic!()
    };
    assert_eq!((p.revision, p.unchanged.len()), (1, 1));
    assert_eq!(queries::policy_set(&log.tables).unwrap().documents.len(), 2);
}

/// What a recipient can be, in the simplest words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plain {
    Waiting,
    Leased(u64),
    Over,
}

#[derive(Debug, Clone)]
enum Do {
    Enqueue(u8, usize),
    Abort(u8),
    Lease(u8, u32),
    Report(u8, u32, bool, u8),
    Release(u8, bool),
}

fn step() -> impl Strategy<Value = Do> {
    let n = 0u8..4;
    prop_oneof![
        (n.clone(), 1usize..4).prop_map(|(n, r)| Do::Enqueue(n, r)),
        n.clone().prop_map(Do::Abort),
        (n.clone(), 0u32..4).prop_map(|(n, r)| Do::Lease(n, r)),
        (n.clone(), 0u32..4, any::<bool>(), 0u8..3)
            .prop_map(|(n, r, stale, o)| Do::Report(n, r, stale, o)),
        (n, any::<bool>()).prop_map(|(n, stale)| Do::Release(n, stale)),
    ]
}

proptest! {
    /// The real tables and a model of ten lines agree after every step; the same log gives the same tables.
    #[test]
    fn random_logs_agree_with_the_model(steps in prop::collection::vec(step(), 0..60)) {
        let (mut log, mut twin) = (Log::default(), Log::default());
        let mut model: BTreeMap<u8, Vec<Plain>> = BTreeMap::new();
        let mut void: BTreeSet<u8> = BTreeSet::new();
        let mut ever: BTreeSet<u8> = BTreeSet::new();
        let mut touched: BTreeSet<u8> = BTreeSet::new();
        for s in steps {
            log.now += 100;
            twin.now += 100;
            let epoch = |n: &u8| model.get(n).into_iter().flatten().find_map(|p| match p {
                Plain::Leased(e) => Some(*e),
                _ => None,
            }).unwrap_or(1_000_000);
            let (op, body) = match &s {
                Do::Enqueue(n, r) => (enqueue(*n, *r, 5, 0), 5),
                Do::Abort(n) => (Op::Abort(v1::AbortOp { id: raw(*n) }), 0),
                Do::Lease(n, r) => (lease(*n, vec![*r]), 0),
                Do::Report(n, r, stale, o) => {
                    let outcome = [Outcome::Delivered, Outcome::Failed, Outcome::Deferred][*o as usize];
                    (results(*n, epoch(n) + if *stale { 5_000_000 } else { 0 }, &[(*r, outcome)], None), 0)
                }
                Do::Release(n, stale) => {
                    let l = v1::LeaseRef { id: raw(*n), epoch: epoch(n) + if *stale { 5_000_000 } else { 0 }, until_ms: 0 };
                    (Op::Release(v1::ReleaseOp { leases: vec![l], expired: true }), 0)
                }
            };
            let at = epoch(match &s { Do::Enqueue(n, _) | Do::Abort(n) | Do::Lease(n, _) | Do::Report(n, ..) | Do::Release(n, _) => n });
            let answer = log.commit(op.clone(), body);
            prop_assert_eq!(twin.commit(op, body), answer);
            match s {
                Do::Enqueue(n, r) if !void.contains(&n) && ever.insert(n) => drop(model.insert(n, vec![Plain::Waiting; r])),
                Do::Abort(n) if !ever.contains(&n) || (model.contains_key(&n) && !touched.contains(&n)) => {
                    model.remove(&n);
                    void.insert(n);
                }
                Do::Lease(n, r) => if let Some(p) = model.get_mut(&n).and_then(|m| m.get_mut(r as usize))
                    && *p == Plain::Waiting
                {
                    *p = Plain::Leased(log.index);
                    touched.insert(n);
                },
                Do::Report(n, r, false, o) => if let Some(p) = model.get_mut(&n).and_then(|m| m.get_mut(r as usize))
                    && *p == Plain::Leased(at)
                {
                    *p = if o == 2 { Plain::Waiting } else { Plain::Over };
                },
                Do::Release(n, false) => for p in model.get_mut(&n).into_iter().flatten() {
                    if *p == Plain::Leased(at) {
                        *p = Plain::Waiting;
                    }
                },
                _ => {}
            }
            model.retain(|_, m| m.iter().any(|p| *p != Plain::Over));
            for n in 0..4 {
                let real: Option<Vec<Plain>> = log.message(n).map(|m| m.recipients.iter().map(|r| match r.state() {
                    State::Waiting => Plain::Waiting,
                    State::Leased => Plain::Leased(r.epoch),
                    _ => Plain::Over,
                }).collect());
                prop_assert_eq!(real.as_ref(), model.get(&n));
            }
        }
        prop_assert_eq!(log.tables, twin.tables);
    }
}
