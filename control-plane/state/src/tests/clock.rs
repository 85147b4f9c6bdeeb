//! The group's time.
use super::*;

const HOUR: u64 = 3_600_000;

/// Commits something harmless stamped `stamp`; the group's time after it.
fn tick(log: &mut Log, stamp: u64) -> u64 {
    log.now = stamp;
    log.commit(Op::Renew(v1::RenewOp::default()), 0);
    crate::records::clock(&log.tables).unwrap().now_ms
}

#[test]
fn time_never_runs_backwards() {
    let mut log = Log::default();
    assert_eq!(tick(&mut log, 5_000), 5_000);
    assert_eq!(tick(&mut log, 4_000), 5_000);
    assert_eq!(tick(&mut log, 5_000 + HOUR), 5_000 + HOUR);
}

#[test]
fn one_wrong_stamp_moves_nothing() {
    let mut log = Log::default();
    tick(&mut log, 1_000);
    assert_eq!(tick(&mut log, 1_000 + 9 * HOUR), 1_000);
    assert_eq!(tick(&mut log, 1_100), 1_100);
    // The claim is forgotten: the next wrong stamp is a first one again.
    assert_eq!(tick(&mut log, 1_000 + 9 * HOUR), 1_100);
}

#[test]
fn two_claims_in_a_row_move_time_as_far_as_they_agree() {
    let mut log = Log::default();
    tick(&mut log, 1_000);
    assert_eq!(tick(&mut log, 1_000 + 900 * HOUR), 1_000);
    assert_eq!(tick(&mut log, 1_000 + 2 * HOUR), 1_000 + 2 * HOUR);
}

#[test]
fn a_message_id_confirms_its_leaders_stamp() {
    let mut log = Log::default();
    tick(&mut log, 1_000);
    // Two days of silence, then new mail: relay and leader agree on the time.
    log.now = 48 * HOUR;
    let Op::Enqueue(mut o) = enqueue(1, 1, 5, 0) else {
        panic!()
    };
    let id = MessageId::new(ShardId::new(1).unwrap(), 48 * HOUR - 20, [7; 9]);
    o.id = Bytes::copy_from_slice(id.as_bytes());
    log.commit(Op::Enqueue(o), 5);
    let stored = queries::message(&log.tables, id).unwrap().unwrap();
    assert_eq!(stored.record.enqueued_at_ms, 48 * HOUR - 20);
}

/// A leader's clock is an hour ahead; then the next leader's is right, an hour behind the group's time.
fn after_a_fast_clock() -> Log {
    let mut log = Log::default();
    tick(&mut log, HOUR);
    tick(&mut log, 2 * HOUR);
    log.now = HOUR;
    log
}

#[test]
fn what_comes_after_a_clock_was_ahead_is_due_by_the_clock_that_is_right() {
    let mut log = after_a_fast_clock();
    log.commit(enqueue(1, 2, 5, 0), 5);
    let due = |log: &Log| {
        let m = log.message(1).unwrap();
        let all: Vec<u64> = m.recipients.iter().map(|r| r.due_ms).collect();
        all
    };
    assert_eq!(due(&log), [HOUR, HOUR]);
    log.commit(lease(1, vec![0, 1]), 0);
    let epoch = log.index;
    let mut deferred = results(1, epoch, &[(0, Outcome::Deferred)], None);
    if let Op::Results(o) = &mut deferred {
        o.results[0].retry_at_ms = HOUR + 60_000;
    }
    log.commit(deferred, 0);
    log.commit(
        Op::Release(v1::ReleaseOp {
            leases: vec![v1::LeaseRef {
                id: raw(1),
                epoch,
                until_ms: 0,
            }],
            expired: true,
        }),
        0,
    );
    assert_eq!(due(&log), [HOUR + 60_000, HOUR]);
}

#[test]
fn what_a_wrong_clock_stored_as_due_in_ten_years_can_be_leased_now() {
    let mut log = Log {
        now: HOUR,
        ..Log::default()
    };
    log.commit(enqueue(1, 1, 5, 0), 5);
    log.commit(lease(1, vec![0]), 0);
    let mut deferred = results(1, log.index, &[(0, Outcome::Deferred)], None);
    if let Op::Results(o) = &mut deferred {
        o.results[0].retry_at_ms = 90_000 * HOUR;
    }
    log.commit(deferred, 0);
    assert_eq!(log.message(1).unwrap().recipients[0].due_ms, 90_000 * HOUR);
    log.commit(lease(1, vec![0]), 0);
    let m = log.message(1).unwrap();
    assert_eq!(m.recipients[0].state(), State::Leased);
}

#[test]
fn nothing_expires_by_the_time_of_a_group_that_ran_ahead_of_its_leader() {
    let mut log = Log {
        now: HOUR,
        ..Log::default()
    };
    let Op::Enqueue(mut o) = enqueue(1, 1, 5, 0) else {
        panic!()
    };
    o.expires_at_ms = 2 * HOUR;
    log.commit(Op::Enqueue(o), 5);
    tick(&mut log, 2 * HOUR);
    let verdict = Op::Results(v1::ResultsOp {
        id: raw(1),
        results: vec![v1::RecipientResult {
            outcome: Outcome::Failed.into(),
            expired: true,
            ..Default::default()
        }],
        ..Default::default()
    });
    log.now = HOUR + 1;
    assert!(matches!(log.commit(verdict.clone(), 0), Answer::Counted(c) if c.effective == 0));
    log.now = 2 * HOUR;
    assert!(matches!(log.commit(verdict, 0), Answer::Counted(c) if c.effective == 1));
}

#[test]
fn a_clock_that_is_behind_shortens_no_life() {
    let mut log = Log::default();
    tick(&mut log, 90_000 * HOUR);
    log.now = HOUR;
    let Op::Enqueue(mut o) = enqueue(1, 1, 5, 0) else {
        panic!()
    };
    o.expires_at_ms = log.now + 120 * HOUR;
    log.commit(Op::Enqueue(o), 5);
    let m = log.message(1).unwrap().record;
    assert_eq!(
        (m.enqueued_at_ms, m.expires_at_ms),
        (90_000 * HOUR, 90_120 * HOUR)
    );
}

#[test]
fn the_metadata_group_takes_every_stamp_ahead() {
    let mut log = Log::default();
    for (stamp, expected) in [(1_000, 1_000), (90 * HOUR, 90 * HOUR), (5, 90 * HOUR)] {
        log.now = stamp;
        log.commit_in(
            GroupId::META,
            Op::ApplyPolicy(v1::ApplyPolicyOp::default()),
            0,
        );
        assert_eq!(crate::records::clock(&log.tables).unwrap().now_ms, expected);
    }
}

proptest! {
    /// Clocks that tick, however wide their steps, are never more than one step ahead of the group.
    #[test]
    fn time_follows_any_ticking_clock(steps in prop::collection::vec(1u64..100 * HOUR, 2..50)) {
        let mut log = Log::default();
        let mut stamp = 1;
        let mut before = 0;
        for step in steps {
            let previous = stamp;
            stamp += step;
            let now = tick(&mut log, stamp);
            prop_assert!(now >= before && now <= stamp);
            prop_assert!(before == 0 || now >= previous, "{now} is behind {previous}");
            before = now;
        }
    }
}
