//! What the index makes of stored times, of effects and of reservations.
use super::*;
use sealane_scheduler::Limit;

#[test]
fn a_message_that_is_known_gets_no_second_reservation() {
    let (group, id) = (GroupId(1), MessageId::from_slice(&[1; 16]));
    let id = id.expect("16 octets of shard 1");
    let mut index = Index::default();
    let build = index.follow(group, Some(1)).expect("a new shard");
    index.built(group, build);
    index.scheduler.worker("relay", 8);
    let limits = |_: &str| Limit {
        leases: 8,
        first: 8,
        rated: false,
    };
    assert!(index.reserve(id, "example.org", "relay", 0, &limits));
    assert!(!index.reserve(id, "example.org", "relay", 0, &limits));
    let leased = Effect::Leased {
        id,
        epoch: 1,
        until_ms: 9000,
    };
    let batch = EffectBatch {
        group,
        applied: 1,
        effects: vec![leased],
    };
    index.effects(&batch, 9_000);
    // The relay did not get the answer and asks again.
    assert!(!index.reserve(id, "example.org", "relay", 1, &limits));
}

const HOUR: u64 = 3_600_000;

fn id() -> MessageId {
    MessageId::from_slice(&[1; 16]).expect("16 octets of shard 1")
}

fn built() -> Index {
    let mut index = Index::default();
    let build = index.follow(GroupId(1), Some(1)).expect("a new shard");
    index.built(GroupId(1), build);
    index
}

/// Leases last 5 s, the pause after an attempt is a minute.
fn at(wall_ms: u64, steady_ms: u64) -> Moment<'static> {
    Moment {
        now: Now { wall_ms, steady_ms },
        lease_ms: 5_000,
        longest: &|_, attempts| u64::from(attempts > 0) * 60_000,
    }
}

fn stored(recipient: v1::RecipientRecord) -> StoredMessage {
    StoredMessage {
        id: id(),
        record: v1::MessageRecord {
            envelope: Some(v1::Envelope {
                recipients: vec![v1::Recipient {
                    mailbox: "a@example.org".into(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            expires_at_ms: 1_000 * HOUR,
            ..Default::default()
        },
        recipients: vec![recipient],
    }
}

fn leased(until_ms: u64) -> StoredMessage {
    stored(v1::RecipientRecord {
        state: State::Leased.into(),
        attempts: 1,
        epoch: 7,
        lease_until_ms: until_ms,
        ..Default::default()
    })
}

fn over(index: &mut Index, steady_ms: u64) -> Vec<Over> {
    let (leases, _) = index.expired(steady_ms, 0, 10);
    leases.into_values().flatten().collect()
}

#[test]
fn a_lease_that_is_found_lasts_its_whole_time_from_then_whatever_the_wall_clock_says() {
    for wall in [0, 10 * HOUR, 90_000 * HOUR] {
        let mut index = built();
        index.replace(id(), Some(&leased(10 * HOUR)), &at(wall, 1_000));
        assert_eq!(over(&mut index, 6_000), []);
        let found = over(&mut index, 6_001);
        assert_eq!(found.len(), 1, "by a clock that shows {wall}");
        assert_eq!(found[0].until_ms, 10 * HOUR);
    }
}

#[test]
fn reading_a_lease_again_does_not_prolong_it_and_a_renewal_does() {
    let mut index = built();
    index.replace(id(), Some(&leased(50)), &at(10, 1_000));
    index.replace(id(), Some(&leased(50)), &at(10 * HOUR, 5_000));
    assert_eq!(over(&mut index, 6_001).len(), 1);
    // Its leader's clock was set back: the new end is hardly later.
    index.replace(id(), Some(&leased(51)), &at(0, 5_500));
    assert_eq!(over(&mut index, 10_500), []);
    assert_eq!(over(&mut index, 10_501)[0].until_ms, 51);
}

fn leases_at(index: &mut Index, steady_ms: u64) -> usize {
    let (session, (events, _)) = (1, tokio::sync::mpsc::channel(1));
    let relay = Relay {
        session,
        events,
        since_ms: 0,
        shows: None,
    };
    index.joined("relay", relay);
    index.credit("relay", Some(session), 8);
    let limits = |_: &str| Limit {
        leases: 8,
        first: 8,
        rated: false,
    };
    index.assign(steady_ms, 10, &limits).len()
}

#[test]
fn nothing_waits_longer_than_its_pause_however_far_ahead_a_wrong_clock_put_it() {
    let waiting = |attempts, due_ms| {
        stored(v1::RecipientRecord {
            state: State::Waiting.into(),
            attempts,
            due_ms,
            ..Default::default()
        })
    };
    for (attempts, due, steady) in [
        // Due in time, in a second, in ten years; never attempted.
        (1, HOUR, 1_000),
        (1, HOUR + 1_000, 2_000),
        (1, 90_000 * HOUR, 61_000),
        (0, 90_000 * HOUR, 1_000),
    ] {
        let m = waiting(attempts, due);
        let mut index = built();
        index.replace(id(), Some(&m), &at(HOUR, 1_000));
        assert_eq!(leases_at(&mut index, steady - 1), 0, "{due} too early");
        assert_eq!(leases_at(&mut index, steady), 1, "{due} too late");
        // And who leases it sees the same.
        let then = at(HOUR + steady - 1_000, steady);
        assert!(then.may_go("example.org", &m.recipients[0]), "{due}");
    }
    let early = waiting(1, HOUR + 30_000);
    assert!(!at(HOUR, 0).may_go("example.org", &early.recipients[0]));
}

#[test]
fn a_relays_clock_is_known_from_the_frame_that_took_the_shortest_way() {
    let mut index = built();
    leases_at(&mut index, 0);
    let mut shows = |sent, received| {
        index.shows("relay", 1, (sent, received));
        index.relays["relay"].shows
    };
    assert_eq!(shows(100, 1_000), Some((100, 1_000)));
    assert_eq!(shows(600, 9_000), Some((100, 1_000)));
    assert_eq!(shows(8_200, 9_050), Some((8_200, 9_050)));
    let later = 9_050 + SHOWS_MS + 1;
    assert_eq!(shows(9_000, later), Some((9_000, later)));
}
