//! Restoring a backup: once, in order, whole, and only into what is fresh.
use super::*;
use v1::{
    dedupe_record::Fate, restore_cluster_op::Step as Phase, restore_op::Step as Do,
    restore_record::State as Progress,
};

const BACKUP: [u8; 32] = [7; 32];

fn op(step: Do) -> Op {
    Op::Restore(v1::RestoreOp {
        backup: Bytes::from_static(&BACKUP),
        step: Some(step),
    })
}

fn open(hold: &str) -> Op {
    op(Do::Open(v1::RestoreOpen {
        source_cluster: "old".into(),
        hold: hold.into(),
    }))
}

fn recipient(state: State) -> v1::RecipientRecord {
    v1::RecipientRecord {
        state: state.into(),
        attempts: 3,
        due_ms: 777_000,
        epoch: 99,
        lease_until_ms: 55,
        holder: if state == State::Leased { "r" } else { "" }.into(),
        lost_holders: 2,
        ..Default::default()
    }
}

/// Message `n` behind `after` (0: it is the first), with these recipients.
fn stored(n: u8, after: u8, states: &[State], size: u64, chunks: u32) -> v1::RestoredMessage {
    let Op::Enqueue(e) = enqueue(n, states.len(), size, chunks) else {
        panic!()
    };
    v1::RestoredMessage {
        id: raw(n),
        after: if after == 0 { Bytes::new() } else { raw(after) },
        record: Some(v1::MessageRecord {
            envelope: e.envelope,
            size,
            enqueued_at_ms: 11,
            expires_at_ms: 900_000,
            log_index: 4_000,
            open_recipients: 50,
            body: vec![v1::BodyPart {
                log_index: 4_000,
                length: 1,
            }],
            ..Default::default()
        }),
        recipients: states.iter().copied().map(recipient).collect(),
        chunks,
    }
}

fn message(n: u8, after: u8, states: &[State]) -> Op {
    op(Do::Message(stored(n, after, states, 5, 0)))
}

fn progress(answer: Answer) -> v1::RestoreRecord {
    match answer {
        Answer::Restore(r) => *r,
        other => panic!("{other:?}"),
    }
}

fn refused_field(answer: Answer) -> String {
    match answer {
        Answer::Refused(r) => r.field,
        other => panic!("{other:?}"),
    }
}

fn opened() -> Log {
    let mut log = Log {
        now: 500_000,
        ..Default::default()
    };
    progress(log.commit(open(""), 0));
    log
}

#[test]
fn a_message_comes_back_with_attempts_next_retry_expiry_and_states() {
    let mut log = opened();
    let states = [
        State::Waiting,
        State::Delivered,
        State::Failed,
        State::Leased,
    ];
    progress(log.commit(message(1, 0, &states), 5));
    let m = log.message(1).unwrap();
    assert_eq!(
        (m.record.enqueued_at_ms, m.record.expires_at_ms),
        (11, 900_000)
    );
    assert_eq!(m.record.open_recipients, 2);
    assert_eq!(
        m.record.body[0].log_index, log.index,
        "bodies have new positions"
    );
    let [waits, delivered, failed, leased] = &m.recipients[..] else {
        panic!()
    };
    assert_eq!(
        (waits.state(), waits.attempts, waits.due_ms),
        (State::Waiting, 3, 777_000)
    );
    assert_eq!(
        (delivered.state(), failed.state()),
        (State::Delivered, State::Failed)
    );
    // The attempt counts, how it ended is not known: due at once.
    assert_eq!(
        (leased.state(), leased.attempts, leased.due_ms),
        (State::Waiting, 3, log.now)
    );
    assert!(
        m.recipients
            .iter()
            .all(|r| r.epoch == 0 && r.holder.is_empty())
    );
}

#[test]
fn a_repetition_changes_nothing_even_after_the_message_was_delivered_and_forgotten() {
    let mut log = opened();
    progress(log.commit(message(1, 0, &[State::Waiting]), 5));
    log.now = 800_000;
    let Answer::Leased(l) = log.commit(lease(1, vec![0]), 0) else {
        panic!()
    };
    log.commit(results(1, l.epoch, &[(0, Outcome::Delivered)], None), 0);
    log.tables.delete_fate(1);
    let r = progress(log.commit(message(1, 0, &[State::Waiting]), 5));
    assert_eq!(r.messages, 1);
    assert!(log.message(1).is_none(), "delivered twice");
    // A piece that was sent again goes with the repetition.
    let chunk = v1::BodyChunkOp {
        id: raw(1),
        seq: 0,
        length: 4,
    };
    log.commit(Op::Chunk(chunk), 4);
    log.commit(message(1, 0, &[State::Waiting]), 5);
    assert!(
        log.tables
            .scan(Table::Upload, b"", b"", 9)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn none_can_be_left_out() {
    let mut log = opened();
    progress(log.commit(message(1, 0, &[State::Waiting]), 5));
    assert_eq!(
        refused_field(log.commit(message(3, 2, &[State::Waiting]), 5)),
        "message.after"
    );
    progress(log.commit(message(2, 1, &[State::Waiting]), 5));
    let r = progress(log.commit(message(3, 2, &[State::Waiting]), 5));
    assert_eq!((r.messages, r.last), (3, raw(3)));
    let close = |after| op(Do::Close(v1::RestoreClose { after: raw(after) }));
    assert_eq!(refused_field(log.commit(close(2), 0)), "close.after");
    assert_eq!(
        progress(log.commit(close(3), 0)).state(),
        Progress::Restored
    );
    assert_eq!(
        refused_field(log.commit(message(4, 3, &[State::Waiting]), 5)),
        "restore"
    );
}

#[test]
fn a_body_in_pieces_comes_back_in_pieces() {
    let mut log = opened();
    for seq in 0..2 {
        let chunk = v1::BodyChunkOp {
            id: raw(1),
            seq,
            length: 4,
        };
        log.commit(Op::Chunk(chunk), 4);
    }
    let m = |size, chunks| op(Do::Message(stored(1, 0, &[State::Waiting], size, chunks)));
    assert_eq!(refused_field(log.commit(m(8, 3), 0)), "chunks");
    assert_eq!(refused_field(log.commit(m(9, 2), 0)), "size");
    progress(log.commit(m(8, 2), 0));
    let parts = log.message(1).unwrap().record.body;
    assert_eq!(
        parts.iter().map(|p| p.log_index).collect::<Vec<_>>(),
        [2, 3]
    );
}

#[test]
fn what_does_not_fit_is_refused_and_its_body_released() {
    let mut log = opened();
    let before = log.tables.clone();
    let mut other_shard = stored(1, 0, &[State::Waiting], 5, 0);
    let foreign = MessageId::new(ShardId::new(2).unwrap(), 1, [1; 9]);
    other_shard.id = Bytes::copy_from_slice(foreign.as_bytes());
    let mut few = stored(1, 0, &[State::Waiting, State::Waiting], 5, 0);
    few.recipients.pop();
    let mut unnamed = stored(1, 0, &[State::Waiting], 5, 0);
    unnamed.record = None;
    let none_open = stored(1, 0, &[State::Delivered], 5, 0);
    let stateless = stored(1, 0, &[State::Unspecified], 5, 0);
    let short = stored(1, 0, &[State::Waiting], 6, 0);
    for (m, field) in [
        (other_shard, "id"),
        (few, "message.recipients"),
        (unnamed, "message.record"),
        (none_open, "message.recipients"),
        (stateless, "message.recipients[0].state"),
        (short, "size"),
    ] {
        assert_eq!(refused_field(log.commit(op(Do::Message(m)), 5)), field);
    }
    log.tables.released.clear();
    assert_eq!(before, log.tables);
}

#[test]
fn only_a_fresh_shard_is_restored_and_only_from_one_backup() {
    let mut used = Log::default();
    used.commit(enqueue(1, 1, 5, 0), 5);
    assert_eq!(refused_field(used.commit(open(""), 0)), "shard");
    assert_eq!(
        refused_field(used.commit(message(2, 0, &[State::Waiting]), 5)),
        "backup"
    );
    let mut log = opened();
    progress(log.commit(open(""), 0));
    assert_eq!(refused_field(log.commit(open("look first"), 0)), "hold");
    let other = |step| {
        Op::Restore(v1::RestoreOp {
            backup: Bytes::from_static(&[8; 32]),
            step: Some(step),
        })
    };
    assert_eq!(
        refused_field(log.commit(other(Do::Open(v1::RestoreOpen::default())), 0)),
        "backup"
    );
    let m = stored(1, 0, &[State::Waiting], 5, 0);
    assert_eq!(
        refused_field(log.commit(other(Do::Message(m)), 5)),
        "backup"
    );
}

#[test]
fn what_this_cluster_knows_of_an_id_is_newer_than_the_backup() {
    let mut log = opened();
    // Its relay withdrew 1 and brought 2 again while the restore was under way.
    log.commit(Op::Abort(v1::AbortOp { id: raw(1) }), 0);
    log.commit(enqueue(2, 1, 5, 0), 5);
    let at = log.index;
    progress(log.commit(message(1, 0, &[State::Waiting]), 5));
    progress(log.commit(message(2, 1, &[State::Waiting]), 5));
    assert!(log.message(1).is_none());
    assert_eq!(log.message(2).unwrap().record.log_index, at);
}

#[test]
fn an_aborted_id_stays_aborted() {
    let mut log = opened();
    let fates = v1::RestoredFates {
        aborted: vec![raw(1)],
        finished: vec![raw(2)],
    };
    progress(log.commit(op(Do::Fates(fates)), 0));
    assert_eq!(
        log.commit(enqueue(1, 1, 5, 0), 5),
        Answer::Aborted(v1::Aborted {})
    );
    let Answer::Enqueued(e) = log.commit(enqueue(2, 1, 5, 0), 5) else {
        panic!()
    };
    assert!(e.duplicate && log.message(2).is_none());
    let kept: v1::DedupeRecord = crate::records::get(&log.tables, Table::Dedupe, id(1).as_bytes())
        .unwrap()
        .unwrap();
    assert_eq!(kept.fate(), Fate::Aborted);
}

#[test]
fn everything_is_held_if_the_operator_wants_to_look_first() {
    let mut log = Log::default();
    progress(log.commit(open("restored"), 0));
    let states = [State::Waiting, State::Leased, State::Delivered];
    progress(log.commit(message(1, 0, &states), 5));
    let m = log.message(1).unwrap();
    assert_eq!(m.record.hold, "restored");
    let now: Vec<State> = m
        .recipients
        .iter()
        .map(v1::RecipientRecord::state)
        .collect();
    assert_eq!(now, [State::Held, State::Held, State::Delivered]);
    assert_eq!(m.recipients[0].due_ms, 777_000);
    // A reason that it had stays.
    let mut held = stored(2, 1, &[State::Held], 5, 0);
    held.record.as_mut().unwrap().hold = "legal".into();
    progress(log.commit(op(Do::Message(held)), 5));
    assert_eq!(log.message(2).unwrap().record.hold, "legal");
}

#[test]
fn who_keeps_an_index_learns_of_it() {
    let mut log = opened();
    let mut effects = Vec::new();
    let header = v1::Command {
        now_ms: 600_000,
        settled: 0,
        op: Some(message(1, 0, &[State::Waiting])),
    }
    .encode_to_vec();
    apply(&mut log.tables, SHARD, 50, &header, 5, &mut effects).unwrap();
    assert_eq!(effects, [Effect::Message(id(1))]);
}

// ---- group 0

fn step(phase: Phase, change: impl FnOnce(&mut v1::RestoreClusterOp)) -> Op {
    let mut o = v1::RestoreClusterOp {
        backup: Bytes::from_static(&BACKUP),
        step: phase.into(),
        source_cluster: "old".into(),
        actor: "me".into(),
        ..Default::default()
    };
    change(&mut o);
    Op::RestoreCluster(o)
}

fn domain(name: &str) -> v1::Document {
    let domain = v1::DomainDocument {
        name: name.into(),
        ..Default::default()
    };
    v1::Document {
        kind: Some(v1::document::Kind::Domain(domain)),
    }
}

#[test]
fn the_policy_comes_back_under_its_revision_once() {
    let mut log = Log::default();
    let mut meta = |op| log.commit_in(GroupId::META, op, 0);
    assert_eq!(refused_field(meta(step(Phase::Policy, |_| {}))), "backup");
    progress(meta(step(Phase::Begin, |_| {})));
    assert_eq!(refused_field(meta(step(Phase::End, |_| {}))), "step");
    let policy = || {
        step(Phase::Policy, |o| {
            o.documents = vec![domain("a.example"), domain("b.example")];
            o.policy_revision = 9;
        })
    };
    progress(meta(policy()));
    assert!(progress(meta(policy())).policy);
    let r = progress(meta(step(Phase::End, |o| o.messages = 3)));
    assert_eq!((r.state(), r.messages), (Progress::Restored, 3));
    // Begun again it says so, and changes nothing.
    assert_eq!(
        progress(meta(step(Phase::Begin, |_| {}))).state(),
        Progress::Restored
    );
    let set = queries::policy_set(&log.tables).unwrap();
    assert_eq!((set.revision, set.documents.len()), (9, 2));
    let audits = log.tables.scan(Table::Audit, b"", b"", 99).unwrap();
    assert_eq!(audits.len(), 3, "begin, policy and end are audited");
}

#[test]
fn a_cluster_with_a_policy_is_not_restored_over() {
    let mut log = Log::default();
    let apply = Op::ApplyPolicy(v1::ApplyPolicyOp {
        documents: vec![domain("a.example")],
        ..Default::default()
    });
    log.commit_in(GroupId::META, apply.clone(), 0);
    let before = log.tables.clone();
    let answer = log.commit_in(GroupId::META, step(Phase::Begin, |_| {}), 0);
    assert_eq!(refused_field(answer), "cluster");
    assert_eq!(before, log.tables);
    // Nor one that got its policy while the restore was under way.
    let mut log = Log::default();
    progress(log.commit_in(GroupId::META, step(Phase::Begin, |_| {}), 0));
    log.commit_in(GroupId::META, apply, 0);
    let answer = log.commit_in(GroupId::META, step(Phase::Policy, |_| {}), 0);
    assert_eq!(refused_field(answer), "policy");
}

#[test]
fn a_note_is_audited_and_changes_nothing_else() {
    let mut log = Log::default();
    let note = Op::Audit(v1::AuditOp {
        actor: "me".into(),
        action: "backup.export".into(),
        detail: "group 1".into(),
    });
    assert_eq!(
        log.commit_in(GroupId::META, note.clone(), 0),
        Answer::Audited(v1::Audited {})
    );
    let audits = log.tables.scan(Table::Audit, b"", b"", 9).unwrap();
    let record = v1::AuditRecord::decode(audits[0].1.clone()).unwrap();
    assert_eq!(
        (record.actor.as_str(), record.detail.as_str()),
        ("me", "group 1")
    );
    assert_eq!(refused_field(log.commit(note, 0)), "command.op");
}

impl MemoryTables {
    /// As the sweep does an hour later.
    fn delete_fate(&mut self, n: u8) {
        crate::WriteTables::delete(self, Table::Dedupe, id(n).as_bytes());
    }
}
