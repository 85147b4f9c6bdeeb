//! Results and the reports that failures cause.
use super::*;

fn expired(n: u8, recipients: &[u32], dsn: Option<u8>) -> Op {
    let results = recipients
        .iter()
        .map(|r| v1::RecipientResult {
            recipient: *r,
            outcome: Outcome::Failed.into(),
            expired: true,
            ..Default::default()
        })
        .collect();
    Op::Results(v1::ResultsOp {
        id: raw(n),
        epoch: 0,
        results,
        dsn: dsn.map(report),
    })
}

fn report(n: u8) -> v1::EnqueueOp {
    let Op::Enqueue(dsn) = enqueue(n, 1, 7, 0) else {
        panic!()
    };
    dsn
}

fn counted(effective: u32) -> Answer {
    Answer::Counted(v1::Counted {
        effective,
        accepted: Vec::new(),
    })
}

fn leased(log: &mut Log, n: u8, recipients: Vec<u32>) -> u64 {
    match log.commit(lease(n, recipients), 0) {
        Answer::Leased(l) => l.epoch,
        other => panic!("{other:?}"),
    }
}

#[test]
fn epoch_zero_can_only_expire() {
    let mut log = Log::default();
    log.commit(enqueue(1, 1, 5, 0), 5);
    for outcome in [
        Outcome::Delivered,
        Outcome::Failed,
        Outcome::Deferred,
        Outcome::Unspecified,
    ] {
        assert_eq!(
            log.commit(results(1, 0, &[(0, outcome)], None), 0),
            counted(0),
            "{outcome:?}"
        );
    }
    assert_eq!(
        log.commit(expired(1, &[0], Some(9)), 7),
        counted(0),
        "its time is not up, whatever the leader's clock says"
    );
    time_is_up(&mut log, 1);
    assert_eq!(log.commit(expired(1, &[0], Some(9)), 7), counted(1));
    assert!(log.message(1).is_none() && log.message(9).is_some());
}

fn time_is_up(log: &mut Log, n: u8) {
    let ids = vec![raw(n)];
    let op = Op::Expire(v1::ExpireOp {
        ids,
        actor: "a".into(),
    });
    log.commit(op, 0);
}

#[test]
fn a_leased_recipient_does_not_expire_and_no_report_names_it() {
    let mut log = Log::default();
    log.commit(enqueue(1, 2, 5, 0), 5);
    leased(&mut log, 1, vec![1]);
    time_is_up(&mut log, 1);
    assert_eq!(log.commit(expired(1, &[0, 1], Some(9)), 7), counted(0));
    assert!(log.message(9).is_none());
    assert_eq!(log.commit(expired(1, &[0], Some(9)), 7), counted(1));
    assert!(log.message(1).is_some() && log.message(9).is_some());
}

#[test]
fn a_failure_whose_report_cannot_be_stored_is_not_recorded() {
    let mut log = Log::default();
    log.commit(enqueue(1, 1, 5, 0), 5);
    log.commit(enqueue(2, 1, 5, 0), 5);
    let epoch = leased(&mut log, 1, vec![0]);
    let broken = [
        v1::EnqueueOp {
            size: 8,
            ..report(9)
        },
        v1::EnqueueOp {
            envelope: None,
            ..report(9)
        },
        v1::EnqueueOp {
            chunks: 1,
            ..report(9)
        },
        v1::EnqueueOp {
            id: Bytes::from_static(b"short"),
            ..report(9)
        },
        report(2),
    ];
    for dsn in broken {
        let answer = log.commit(results(1, epoch, &[(0, Outcome::Failed)], Some(dsn)), 7);
        assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
        assert_eq!(log.message(1).unwrap().record.open_recipients, 1);
    }
    let good = results(1, epoch, &[(0, Outcome::Failed)], Some(report(9)));
    assert_eq!(log.commit(good, 7), counted(1));
    assert!(log.message(9).is_some());
}

#[test]
fn without_failure_there_is_no_report() {
    let mut log = Log::default();
    log.commit(enqueue(1, 2, 5, 0), 5);
    let epoch = leased(&mut log, 1, vec![0, 1]);
    let delivered = results(1, epoch, &[(0, Outcome::Delivered)], Some(report(9)));
    assert_eq!(log.commit(delivered, 7), counted(1));
    assert!(log.message(9).is_none());
}

#[test]
fn a_recipient_named_twice_counts_once() {
    let mut log = Log::default();
    log.commit(enqueue(1, 2, 5, 0), 5);
    let epoch = leased(&mut log, 1, vec![0, 1]);
    let twice = results(
        1,
        epoch,
        &[(0, Outcome::Delivered), (0, Outcome::Failed)],
        None,
    );
    assert_eq!(log.commit(twice, 0), counted(1));
    let m = log.message(1).unwrap();
    assert_eq!(m.record.open_recipients, 1);
    assert_eq!(m.recipients[0].state(), State::Delivered);
}

#[test]
fn another_shards_message_is_refused() {
    let mut log = Log::default();
    let answer = log.commit_in(GroupId(2), enqueue(1, 1, 5, 0), 5);
    assert!(matches!(answer, Answer::Refused(r) if r.field == "id"));
}

#[test]
fn a_list_by_destination_names_messages_with_open_recipients_there() {
    let mut log = Log::default();
    let Op::Enqueue(mut o) = enqueue(1, 1, 5, 0) else {
        panic!()
    };
    let other = v1::Recipient {
        mailbox: "x@Other.example".into(),
        orcpt: String::new(),
    };
    o.envelope.as_mut().unwrap().recipients.push(other);
    log.commit(Op::Enqueue(o), 5);
    log.commit(enqueue(2, 1, 5, 0), 5);
    let count = |log: &Log, d| queries::list(&log.tables, None, 9, Some(d)).unwrap().len();
    assert_eq!(
        (count(&log, "c.example"), count(&log, "other.example")),
        (2, 1)
    );
    let epoch = leased(&mut log, 1, vec![1]);
    log.commit(results(1, epoch, &[(1, Outcome::Delivered)], None), 0);
    assert_eq!(
        (count(&log, "c.example"), count(&log, "other.example")),
        (2, 0)
    );
}

#[test]
fn the_list_continues_where_a_page_ended() {
    let mut log = Log::default();
    for n in 1..=7 {
        log.commit(enqueue(n, 1, 5, 0), 5);
    }
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = queries::list(&log.tables, after, 3, None).unwrap();
        seen.extend(page.iter().map(|m| m.id));
        match page.last() {
            Some(m) if page.len() == 3 => after = Some(m.id),
            _ => break,
        }
    }
    assert_eq!(seen, (1..=7).map(id).collect::<Vec<_>>());
}
