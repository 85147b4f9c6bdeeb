//! What is forgotten, and when.
use super::*;
use crate::REMEMBER_MS;

fn sweep(before: u64, limit: u32) -> Op {
    Op::Sweep(v1::SweepOp {
        dedupe_before_ms: before,
        upload_before_ms: before,
        limit,
    })
}

fn swept(log: &mut Log, before: u64, limit: u32) -> u32 {
    match log.commit(sweep(before, limit), 0) {
        Answer::Counted(c) => c.effective,
        other => panic!("{other:?}"),
    }
}

fn chunk(n: u8, seq: u32) -> Op {
    Op::Chunk(v1::BodyChunkOp {
        id: raw(n),
        seq,
        length: 4,
    })
}

fn duplicate() -> Answer {
    Answer::Enqueued(v1::Enqueued {
        duplicate: true,
        ..Default::default()
    })
}

fn finish(log: &mut Log, n: u8) {
    let Answer::Leased(l) = log.commit(lease(n, vec![0]), 0) else {
        panic!()
    };
    log.commit(results(n, l.epoch, &[(0, Outcome::Delivered)], None), 0);
}

#[test]
fn a_living_message_is_never_forgotten() {
    let mut log = Log {
        now: 100,
        ..Log::default()
    };
    log.commit(enqueue(1, 1, 5, 0), 5);
    log.commit(enqueue(2, 1, 5, 0), 5);
    finish(&mut log, 2);
    log.now = REMEMBER_MS + 2;
    assert_eq!(
        swept(&mut log, u64::MAX, 10),
        0,
        "at the cut-off is not before it"
    );
    let again = log.commit(enqueue(2, 1, 5, 0), 5);
    assert_eq!(again, duplicate());
    log.now += 1;
    assert_eq!(swept(&mut log, 2, 10), 0);
    assert_eq!(swept(&mut log, u64::MAX, 10), 1);
    let again = log.commit(enqueue(1, 1, 5, 0), 5);
    assert_eq!(again, duplicate());
}

#[test]
fn an_orphan_upload_is_released_and_its_id_is_void() {
    let mut log = Log {
        now: 100,
        ..Log::default()
    };
    log.commit(chunk(1, 0), 4);
    log.now = 900;
    log.commit(chunk(1, 1), 4);
    assert_eq!(swept(&mut log, 500, 10), 1);
    assert_eq!(
        log.commit(enqueue(1, 1, 8, 2), 0),
        Answer::Aborted(v1::Aborted {})
    );
    log.now = REMEMBER_MS + 2;
    // The second piece, and the fate made at 900.
    assert_eq!(swept(&mut log, u64::MAX, 10), 2);
}

#[test]
fn an_enqueued_id_is_not_voided_by_stray_pieces() {
    let mut log = Log {
        now: 100,
        ..Log::default()
    };
    log.commit(chunk(1, 0), 4);
    log.commit(enqueue(1, 1, 5, 0), 5);
    log.now = 2_000;
    assert_eq!(swept(&mut log, 1_000, 10), 1, "the stray piece");
    let again = log.commit(enqueue(1, 1, 5, 0), 5);
    assert_eq!(again, duplicate());
}

#[test]
fn cut_offs_ahead_of_the_groups_time_forget_nothing_new() {
    let mut log = Log {
        now: 100,
        ..Log::default()
    };
    log.commit(chunk(1, 0), 4);
    log.commit(Op::Abort(v1::AbortOp { id: raw(2) }), 0);
    assert_eq!(swept(&mut log, u64::MAX, 10), 0);
}

#[test]
fn long_lived_messages_do_not_hide_finished_ones() {
    let mut log = Log {
        now: 300,
        ..Log::default()
    };
    for n in 1..=9 {
        log.commit(enqueue(n, 1, 5, 0), 5);
    }
    for n in 7..=9 {
        finish(&mut log, n);
    }
    log.now = REMEMBER_MS + 100;
    let rounds: Vec<u32> = (0..3).map(|_| swept(&mut log, u64::MAX, 2)).collect();
    assert_eq!(rounds, [2, 1, 0]);
    // Those that lived long leave nothing to forget: nobody asks for such old ids.
    for n in 1..=6 {
        finish(&mut log, n);
    }
    assert!(
        log.tables
            .scan(Table::Dedupe, b"", b"", 9)
            .unwrap()
            .is_empty()
    );
}
