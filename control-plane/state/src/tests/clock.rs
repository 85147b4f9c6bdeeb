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
