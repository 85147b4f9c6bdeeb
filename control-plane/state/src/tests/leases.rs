//! The lease that comes with the enqueue, holders that go silent, and messages that are held.
use super::*;

fn leased(n: u8, recipients: usize) -> Op {
    let Op::Enqueue(mut o) = enqueue(n, recipients, 5, 0) else {
        panic!()
    };
    o.holder = "r".into();
    o.lease_until_ms = 5_000;
    Op::Enqueue(o)
}

fn enqueued(a: Answer) -> v1::Enqueued {
    match a {
        Answer::Enqueued(e) => e,
        other => panic!("{other:?}"),
    }
}

fn release(n: u8, epoch: u64, expired: bool) -> Op {
    let leases = vec![v1::LeaseRef {
        id: raw(n),
        epoch,
        until_ms: 0,
    }];
    Op::Release(v1::ReleaseOp { leases, expired })
}

fn first(log: &Log, n: u8) -> v1::RecipientRecord {
    log.message(n).unwrap().recipients[0].clone()
}

#[test]
fn the_first_lease_comes_with_the_enqueue_and_again_with_its_repetition() {
    let mut log = Log::default();
    let e = enqueued(log.commit(leased(1, 2), 5));
    assert_eq!(
        (e.duplicate, e.lease_epoch, e.lease_until_ms),
        (false, log.index, 5_000)
    );
    assert_eq!(first(&log, 1).attempts, 1);
    let again = enqueued(log.commit(leased(1, 2), 5));
    assert_eq!((again.duplicate, again.lease_epoch), (true, e.lease_epoch));
    // To nobody else.
    let Op::Enqueue(o) = leased(1, 2) else {
        panic!()
    };
    let other = Op::Enqueue(v1::EnqueueOp {
        holder: "q".into(),
        ..o
    });
    assert_eq!(enqueued(log.commit(other, 5)).lease_epoch, 0);
    // Nor once one of its recipients is settled.
    log.commit(
        results(1, e.lease_epoch, &[(0, Outcome::Delivered)], None),
        0,
    );
    let late = enqueued(log.commit(leased(1, 2), 5));
    assert_eq!((late.duplicate, late.lease_epoch), (true, 0));
}

#[test]
fn who_aborts_never_saw_the_lease_that_came_with_the_enqueue() {
    let mut log = Log::default();
    let e = enqueued(log.commit(leased(1, 1), 5));
    let abort = Op::Abort(v1::AbortOp { id: raw(1) });
    assert_eq!(log.commit(abort, 0), Answer::Aborted(v1::Aborted {}));
    assert!(log.message(1).is_none());
    assert_eq!(
        log.commit(
            results(1, e.lease_epoch, &[(0, Outcome::Delivered)], None),
            0
        ),
        Answer::Counted(v1::Counted::default())
    );
    // A later lease is somebody's work.
    let e = enqueued(log.commit(leased(2, 1), 5));
    log.commit(release(2, e.lease_epoch, true), 0);
    log.commit(lease(2, vec![0]), 0);
    let abort = Op::Abort(v1::AbortOp { id: raw(2) });
    assert!(enqueued(log.commit(abort, 0)).duplicate);
}

#[test]
fn an_attempt_that_did_not_begin_is_not_counted() {
    let mut log = Log::default();
    let e = enqueued(log.commit(leased(1, 1), 5));
    log.commit(release(1, e.lease_epoch, false), 0);
    assert_eq!(
        (first(&log, 1).attempts, first(&log, 1).lost_holders),
        (0, 0)
    );
}

#[test]
fn a_message_that_silences_its_holders_is_quarantined_until_it_is_let_go() {
    let mut log = Log::default();
    log.commit(enqueue(1, 1, 5, 0), 5);
    for round in 1..=5 {
        assert_eq!(first(&log, 1).state(), State::Waiting, "round {round}");
        log.commit(lease(1, vec![0]), 0);
        let epoch = log.index;
        log.commit(release(1, epoch, true), 0);
    }
    assert_eq!(first(&log, 1).state(), State::Held);
    assert!(log.message(1).unwrap().record.hold.contains("silent"));
    log.commit(lease(1, vec![0]), 0);
    assert_eq!(first(&log, 1).state(), State::Held);
    let go = Op::Hold(v1::HoldOp {
        ids: vec![raw(1), raw(9)],
        reason: String::new(),
        actor: "someone".into(),
    });
    assert!(matches!(log.commit(go, 0), Answer::Counted(c) if c.effective == 1));
    assert_eq!(
        (first(&log, 1).state(), first(&log, 1).lost_holders),
        (State::Waiting, 0)
    );
    let audit = log.tables.scan(Table::Audit, b"", b"", 9).unwrap();
    let entry = v1::AuditRecord::decode(audit[0].1.clone()).unwrap();
    assert_eq!(
        (entry.actor.as_str(), entry.action.as_str()),
        ("someone", "release")
    );
}

#[test]
fn a_held_message_stays_held_after_a_deferral_and_still_expires() {
    let mut log = Log {
        now: 10,
        ..Log::default()
    };
    let e = enqueued(log.commit(leased(1, 1), 5));
    let hold = Op::Hold(v1::HoldOp {
        ids: vec![raw(1)],
        reason: "looked at".into(),
        actor: "a".into(),
    });
    log.commit(hold, 0);
    assert_eq!(first(&log, 1).state(), State::Leased);
    log.commit(
        results(1, e.lease_epoch, &[(0, Outcome::Deferred)], None),
        0,
    );
    assert_eq!(first(&log, 1).state(), State::Held);
    let verdict = v1::RecipientResult {
        recipient: 0,
        outcome: Outcome::Failed.into(),
        expired: true,
        ..Default::default()
    };
    let expired = |log: &mut Log| {
        let op = Op::Results(v1::ResultsOp {
            id: raw(1),
            epoch: 0,
            results: vec![verdict.clone()],
            dsn: None,
        });
        matches!(log.commit(op, 0), Answer::Counted(c) if c.effective == 1)
    };
    assert!(!expired(&mut log), "its time is not up");
    let end = Op::Expire(v1::ExpireOp {
        ids: vec![raw(1)],
        actor: "a".into(),
    });
    log.commit(end, 0);
    assert!(expired(&mut log));
    assert!(log.message(1).is_none());
}

#[test]
fn a_lease_is_not_renewed_beyond_the_time_of_its_message() {
    let mut log = Log {
        now: 10,
        ..Log::default()
    };
    let e = enqueued(log.commit(leased(1, 1), 5));
    let renew = || {
        Op::Renew(v1::RenewOp {
            holder: "r".into(),
            until_ms: 9_000_000,
            leases: vec![v1::LeaseRef {
                id: raw(1),
                epoch: e.lease_epoch,
                until_ms: 0,
            }],
        })
    };
    assert!(matches!(log.commit(renew(), 0), Answer::Counted(c) if c.effective == 1));
    log.now = 1_000_000;
    assert!(matches!(log.commit(renew(), 0), Answer::Counted(c) if c.effective == 0));
}

#[test]
fn outcomes_of_many_messages_are_one_entry() {
    let mut log = Log::default();
    let epochs: Vec<u64> = (1..=3)
        .map(|n| enqueued(log.commit(leased(n, 1), 5)).lease_epoch)
        .collect();
    let item = |n: u8, epoch| match results(n, epoch, &[(0, Outcome::Delivered)], None) {
        Op::Results(o) => o,
        _ => panic!(),
    };
    let items = vec![
        item(1, epochs[0]),
        item(2, 7_000),
        item(3, epochs[2]),
        item(9, 1),
    ];
    let Answer::Counted(c) = log.commit(Op::ResultsBatch(v1::ResultsBatchOp { items }), 0) else {
        panic!()
    };
    let accepted: Vec<_> = c.accepted.iter().map(|l| (l.id.clone(), l.epoch)).collect();
    assert_eq!(accepted, [(raw(1), epochs[0]), (raw(3), epochs[2])]);
    assert!(log.message(1).is_none() && log.message(2).is_some() && log.message(3).is_none());
}

#[test]
fn a_lease_that_was_prolonged_is_not_taken_back_for_its_old_end() {
    let mut log = Log::default();
    let e = enqueued(log.commit(leased(1, 1), 5));
    let before = first(&log, 1).lease_until_ms;
    let reference = |until_ms| v1::LeaseRef {
        id: raw(1),
        epoch: e.lease_epoch,
        until_ms,
    };
    // By a leader whose clock is an hour behind: it is another end all the same.
    let renew = Op::Renew(v1::RenewOp {
        holder: "r".into(),
        until_ms: 1,
        leases: vec![reference(0)],
    });
    assert!(matches!(log.commit(renew, 0), Answer::Counted(c) if c.effective == 1));
    let take_back = |until_ms| {
        Op::Release(v1::ReleaseOp {
            leases: vec![reference(until_ms)],
            expired: true,
        })
    };
    assert!(matches!(log.commit(take_back(before), 0), Answer::Counted(c) if c.effective == 0));
    assert_eq!(first(&log, 1).state(), State::Leased);
    let now = first(&log, 1).lease_until_ms;
    assert!(matches!(log.commit(take_back(now), 0), Answer::Counted(c) if c.effective == 1));
}
