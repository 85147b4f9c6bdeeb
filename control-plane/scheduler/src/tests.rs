//! Rules of the index, and random work against what must always hold.
use crate::{Assignment, ExpiredLease, Limit, NewItem, Outcome, Scheduler};
use proptest::prelude::*;
use sealane_shares::Tokens;
use sealane_types::{MessageId, ShardId};
use std::collections::{BTreeMap, BTreeSet};

fn id_in(shard: u8, n: u64) -> MessageId {
    MessageId::new(ShardId::new(shard.into()).unwrap(), n, [0; 9])
}

fn id(n: u64) -> MessageId {
    id_in(1, n)
}

fn item(n: u64, destination: &str, due_ms: u64) -> NewItem<'_> {
    NewItem {
        id: id(n),
        destination,
        sender: "s",
        prefer: "",
        due_ms,
        expires_ms: 1_000_000_000,
        held: false,
    }
}

fn places(n: u32) -> impl Fn(&str) -> Limit {
    move |_: &str| Limit {
        leases: n,
        first: n,
        rated: false,
    }
}

fn taken(a: Vec<Assignment>) -> Vec<u64> {
    a.into_iter()
        .flat_map(|a| a.items)
        .map(|i| i.id.time_ms())
        .collect()
}

fn with_relay(credits: u32) -> Scheduler {
    let mut s = Scheduler::new();
    s.worker("r", credits);
    s
}

#[test]
fn a_destination_that_never_answered_holds_few_leases() {
    let limits = |_: &str| Limit {
        leases: 8,
        first: 2,
        rated: false,
    };
    let mut s = with_relay(100);
    for n in 1..=20 {
        s.upsert(item(n, "a", 0));
    }
    assert_eq!(taken(s.next(1, 100, &limits)).len(), 2);
    // It speaks to us: nobody waits for the commit of a lease any more.
    s.outcome("a", Outcome::Answered, 2, 0, &limits);
    assert_eq!(taken(s.next(2, 100, &limits)).len(), 6);
    s.outcome("a", Outcome::Refused, 3, 0, &limits);
    s.remove(id(1));
    assert!(s.next(4, 100, &limits).is_empty());
}

#[test]
fn nothing_is_assigned_before_it_is_due_or_without_credit() {
    let mut s = with_relay(0);
    s.upsert(item(1, "a", 50));
    assert!(s.next(49, 10, &places(9)).is_empty());
    s.worker("r", 5);
    assert!(s.next(49, 10, &places(9)).is_empty());
    assert_eq!(taken(s.next(50, 10, &places(9))), [1]);
    assert_eq!(s.credits("r"), 4);
    assert!(s.next(50, 10, &places(9)).is_empty());
}

#[test]
fn a_black_hole_delays_nobody_else() {
    let mut s = with_relay(100);
    for n in 0..50 {
        s.upsert(item(n, "hole", 0));
    }
    s.upsert(item(99, "good", 0));
    let got = taken(s.next(0, 100, &places(2)));
    assert_eq!(got.len(), 3);
    assert!(got.contains(&99));
}

#[test]
fn a_bulk_sender_delays_nobody_else() {
    let mut s = with_relay(1000);
    for n in 0..500 {
        s.upsert(NewItem {
            sender: "bulk",
            ..item(n, "a", 0)
        });
    }
    s.upsert(NewItem {
        sender: "one",
        ..item(900, "a", 0)
    });
    assert!(taken(s.next(0, 3, &places(1000))).contains(&900));
}

#[test]
fn a_removed_lease_frees_its_destination() {
    let mut s = with_relay(100);
    s.upsert(item(1, "a", 0));
    s.upsert(item(2, "a", 0));
    assert_eq!(taken(s.next(0, 10, &places(1))), [1]);
    s.leased(id(1), "a", 7, 500);
    assert!(s.next(0, 10, &places(1)).is_empty());
    let lease = ExpiredLease {
        id: id(1),
        epoch: 7,
    };
    assert_eq!(s.expired_leases(501, 10), std::slice::from_ref(&lease));
    assert!(s.expired_leases(10_501, 10).is_empty());
    assert_eq!(s.expired_leases(10_502, 10), [lease]);
    s.remove(id(1));
    assert_eq!(taken(s.next(0, 10, &places(1))), [2]);
}

#[test]
fn a_message_that_is_leased_and_due_again_holds_one_place() {
    let mut s = with_relay(100);
    for round in 0..5 {
        // One recipient is leased until 500, another one is due.
        s.leased(id(1), "a", 7 + round, 500);
        s.upsert(item(1, "a", 0));
        assert_eq!(taken(s.next(0, 10, &places(2))), [1]);
        s.remove(id(1));
    }
    s.upsert(item(2, "a", 0));
    s.upsert(item(3, "a", 0));
    assert_eq!(taken(s.next(0, 10, &places(2))), [2, 3]);
    assert!(s.expired_leases(501, 10).is_empty());
}

#[test]
fn what_expires_is_named_whether_it_waits_is_due_blocked_or_held() {
    let mut s = with_relay(1);
    let expiring = |n, destination, due_ms| NewItem {
        expires_ms: 10,
        ..item(n, destination, due_ms)
    };
    s.upsert(expiring(1, "later", 100));
    s.upsert(expiring(2, "due", 0));
    s.upsert(NewItem {
        held: true,
        ..expiring(3, "held", 0)
    });
    s.upsert(expiring(4, "full", 0));
    assert!(s.expired_messages(9, 10).is_empty());
    assert!(s.next(9, 10, &places(0)).is_empty());
    let mut named = s.expired_messages(10, 10);
    named.sort_unstable();
    assert_eq!(named, [id(1), id(2), id(3), id(4)]);
    assert!(s.next(100, 10, &places(9)).is_empty());
    assert_eq!(s.waiting(), 0);
}

#[test]
fn a_held_message_is_never_due_until_it_is_let_go() {
    let mut s = with_relay(9);
    s.upsert(NewItem {
        held: true,
        ..item(1, "a", 0)
    });
    assert!(s.next(1_000, 10, &places(9)).is_empty());
    s.upsert(item(1, "a", 0));
    assert_eq!(taken(s.next(1_000, 10, &places(9))), [1]);
}

#[test]
fn a_destination_that_refuses_is_left_alone_then_probed_with_one_message() {
    let mut s = with_relay(100);
    for n in 0..10 {
        s.upsert(item(n, "a", 0));
    }
    let first = taken(s.next(0, 3, &places(8)));
    assert_eq!(first.len(), 3);
    for n in &first {
        s.outcome("a", Outcome::Refused, 0, 500, &places(8));
        s.remove(id(*n));
    }
    assert!(s.next(999, 10, &places(8)).is_empty());
    let probe = taken(s.next(1_000, 10, &places(8)));
    assert_eq!(probe.len(), 1);
    s.outcome("a", Outcome::Delivered, 1_001, 500, &places(8));
    s.remove(id(probe[0]));
    // Half the places, and one more per delivery.
    assert_eq!(taken(s.next(1_002, 10, &places(8))).len(), 5);
}

#[test]
fn the_body_is_where_it_was_accepted_else_where_connections_are_warm() {
    let mut s = with_relay(5);
    s.worker("q", 9);
    s.upsert(NewItem {
        prefer: "r",
        ..item(1, "a", 0)
    });
    let one = s.next(0, 1, &places(9));
    assert_eq!(one[0].worker, "r");
    s.upsert(item(2, "a", 0));
    assert_eq!(s.next(0, 1, &places(9))[0].worker, "r");
    s.upsert(item(3, "b", 0));
    assert_eq!(s.next(0, 1, &places(9))[0].worker, "q");
    s.worker_gone("r");
    s.upsert(NewItem {
        prefer: "r",
        ..item(4, "a", 0)
    });
    assert_eq!(s.next(0, 1, &places(9))[0].worker, "q");
}

#[test]
fn a_message_may_be_leased_with_its_enqueue_if_nobody_waits_before_it() {
    let mut s = with_relay(4);
    assert!(!s.reserve(id(1), "a", "unknown", 0, &places(2)));
    assert!(s.reserve(id(1), "a", "r", 0, &places(2)));
    assert_eq!(s.credits("r"), 3);
    s.leased(id(1), "a", 5, 100);
    assert!(s.reserve(id(2), "a", "r", 0, &places(2)));
    assert!(!s.reserve(id(3), "a", "r", 0, &places(2)));
    s.remove(id(2));
    s.upsert(item(4, "a", 0));
    assert!(s.next(0, 0, &places(2)).is_empty());
    assert!(!s.reserve(id(3), "a", "r", 0, &places(2)));
    assert_eq!(taken(s.next(0, 9, &places(2))), [4]);
    s.remove(id(4));
    assert!(s.reserve(id(5), "a", "r", 0, &places(2)));
    s.remove(id(5));
    assert!(
        !s.reserve(id(6), "a", "r", 0, &places(2)),
        "credits are spent"
    );
}

#[test]
fn a_message_to_two_destinations_has_two_items() {
    let mut s = with_relay(9);
    s.upsert(item(1, "a", 0));
    s.upsert(item(1, "b", 5));
    s.upsert(item(1, "a", 0));
    assert_eq!(s.waiting(), 2);
    assert_eq!(taken(s.next(0, 9, &places(1))), [1]);
    assert_eq!(taken(s.next(5, 9, &places(1))), [1]);
    s.remove(id(1));
    s.upsert(item(2, "a", 0));
    s.upsert(item(2, "b", 0));
    assert_eq!(taken(s.next(5, 9, &places(1))).len(), 2);
}

#[test]
fn nothing_is_left_of_a_shard_that_goes() {
    let mut s = with_relay(1000);
    for n in 0..100 {
        for shard in 1..=2 {
            let destination = format!("d{}", n % 7);
            s.upsert(NewItem {
                id: id_in(shard, n),
                sender: "someone",
                ..item(0, &destination, n)
            });
        }
    }
    s.next(50, 30, &places(3));
    s.drop_shard(ShardId::new(1).unwrap());
    assert!(s.next(100, 1000, &places(1000)).iter().all(|a| {
        let mut ids = a.items.iter().map(|i| i.id);
        ids.all(|id| id.shard() == ShardId::new(2).unwrap())
    }));
    s.drop_shard(ShardId::new(2).unwrap());
    assert_eq!(s.waiting(), 0);
    s.worker_gone("r");
    assert_eq!(s.remembered(), (0, 0, 0));
    assert!(s.expired_leases(u64::MAX, 10).is_empty());
}

#[test]
fn a_deferred_message_costs_little_memory_and_no_work() {
    let steps = |n: u64| {
        let mut s = with_relay(10);
        for n in 0..n {
            let destination = format!("d{}.example", n % 1000);
            s.upsert(item(n, &destination, 10_000_000 + n));
        }
        s.upsert(item(n + 1, "now.example", 0));
        assert_eq!(taken(s.next(1, 10, &places(1))), [n + 1]);
        (s.steps, s.memory() as u64 / n)
    };
    let (few, _) = steps(1_000);
    let (many, octets) = steps(200_000);
    assert_eq!(few, many);
    assert!(octets <= 160, "{octets} octets per message");
}

#[derive(Debug, Clone)]
enum Do {
    New {
        n: u64,
        destination: u8,
        sender: u8,
        delay: u64,
    },
    Work {
        max: usize,
    },
    Settle {
        keep: bool,
    },
    Refuse {
        destination: u8,
    },
    Tokens {
        n: u32,
        ms: u64,
    },
    Crowded,
    Reserve {
        n: u64,
        destination: u8,
    },
    Pass {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Do> {
    prop_oneof![
        6 => (0u64..40, 0u8..4, 0u8..3, 0u64..300).prop_map(|(n, destination, sender, delay)| Do::New { n, destination, sender, delay }),
        4 => (1usize..6).prop_map(|max| Do::Work { max }),
        4 => any::<bool>().prop_map(|keep| Do::Settle { keep }),
        1 => (0u8..4).prop_map(|destination| Do::Refuse { destination }),
        2 => (1u32..4, 1u64..500).prop_map(|(n, ms)| Do::Tokens { n, ms }),
        1 => Just(Do::Crowded),
        2 => (100u64..140, 0u8..4).prop_map(|(n, destination)| Do::Reserve { n, destination }),
        3 => (1u64..400).prop_map(|ms| Do::Pass { ms }),
    ]
}

proptest! {
    /// At every step: places hold, every message where there is a rate has its token, nothing is assigned early, twice, or in a pause. And in the end
    /// everything was assigned and nothing is remembered.
    #[test]
    fn random_work_keeps_every_rule(steps in prop::collection::vec(step(), 1..120), limit in 1u32..4, credits in 1u32..6) {
        let limits = |d: &str| Limit { leases: limit, first: limit, rated: d == "d0" };
        let mut s = with_relay(credits);
        let mut now = 1_000u64;
        let mut waiting: BTreeMap<u64, (String, u64)> = BTreeMap::new();
        let mut held: Vec<(u64, String)> = Vec::new();
        let mut pauses: BTreeMap<String, u64> = BTreeMap::new();
        let mut tokens = Tokens::default();
        let check = |held: &Vec<(u64, String)>| {
            for d in 0..4 {
                let name = format!("d{d}");
                let n = held.iter().filter(|(_, h)| *h == name).count();
                prop_assert!(n <= limit as usize, "{n} at {name}");
            }
            Ok(())
        };
        for step in steps {
            match step {
                Do::New { n, destination, sender, delay } => {
                    if held.iter().any(|(h, _)| *h == n) { continue; }
                    let (destination, sender) = (format!("d{destination}"), format!("s{sender}"));
                    // A message has one destination here: it replaces what it was before.
                    s.remove(id(n));
                    s.upsert(NewItem { sender: &sender, ..item(n, &destination, now + delay) });
                    waiting.insert(n, (destination, now + delay));
                }
                Do::Work { max } => {
                    let spent = u32::try_from(held.len()).unwrap();
                    s.worker("r", credits.saturating_sub(spent));
                    for i in s.next(now, max, &limits).into_iter().flat_map(|a| a.items) {
                        let n = i.id.time_ms();
                        let (destination, due) = waiting.remove(&n).expect("assigned twice or never offered");
                        prop_assert_eq!(&destination, &i.destination);
                        prop_assert!(due <= now);
                        prop_assert!(pauses.get(&destination).is_none_or(|until| now >= *until * 8 / 10));
                        prop_assert!(destination != "d0" || tokens.take(now), "no token");
                        held.push((n, destination));
                    }
                    check(&held)?;
                    prop_assert!(held.len() <= credits as usize || spent as usize >= held.len());
                }
                Do::Settle { keep } => {
                    if held.is_empty() { continue; }
                    let (n, destination) = held.remove(0);
                    if keep {
                        s.leased(id(n), &destination, 3, now + 10_000_000);
                        held.push((n, destination));
                    } else {
                        s.outcome(&destination, Outcome::Delivered, now, 0, &limits);
                        s.remove(id(n));
                    }
                }
                Do::Refuse { destination } => {
                    let name = format!("d{destination}");
                    s.outcome(&name, Outcome::Refused, now, 0, &limits);
                }
                Do::Tokens { n, ms } => {
                    // Only somebody who is known is given tokens.
                    let known = waiting.values().any(|(d, _)| d == "d0") || held.iter().any(|(_, d)| d == "d0");
                    if known {
                        s.tokens("d0", n, now + ms);
                        tokens.add(n, now + ms);
                    }
                }
                Do::Crowded => {
                    if let Some((n, _)) = held.first() {
                        s.crowded(id(*n), 3, now, &limits);
                    }
                }
                Do::Reserve { n, destination } => {
                    let name = format!("d{destination}");
                    if held.iter().any(|(h, _)| *h == n) { continue; }
                    let due = waiting.values().any(|(d, due)| *d == name && *due <= now);
                    s.next(now, 0, &limits);
                    if s.reserve(id(n), &name, "r", now, &limits) {
                        prop_assert!(!due, "before those that wait");
                        prop_assert!(destination != 0 || tokens.take(now), "no token");
                        held.push((n, name));
                    }
                    check(&held)?;
                }
                Do::Pass { ms } => now += ms,
            }
            pauses.clear();
            for b in s.busiest(10) {
                if let Some(until) = b.held_until_ms { pauses.insert(b.destination, until); }
            }
        }
        let mut rounds = 0;
        while !waiting.is_empty() || !held.is_empty() {
            for (n, destination) in std::mem::take(&mut held) {
                s.outcome(&destination, Outcome::Delivered, now, 0, &limits);
                s.remove(id(n));
            }
            now += 2_000;
            s.worker("r", credits);
            for short in s.short(now, 10, &limits) {
                prop_assert_eq!(&short.destination, "d0");
                prop_assert!(short.tokens <= limit);
                s.tokens("d0", short.tokens, now + 1_000);
            }
            for i in s.next(now, 1000, &limits).into_iter().flat_map(|a| a.items) {
                let n = i.id.time_ms();
                let (destination, _) = waiting.remove(&n).expect("assigned twice or never offered");
                held.push((n, destination));
            }
            check(&held)?;
            rounds += 1;
            prop_assert!(rounds < 2_000, "stuck with {waiting:?} {:?}", s.busiest(10));
        }
        s.next(now + 10_000_000, 10, &limits);
        s.worker_gone("r");
        prop_assert_eq!(s.remembered(), (0, 0, 0));
    }

    /// However much mail the others have, a message waits for one turn of each of them at most.
    #[test]
    fn nobody_starves(bulk in 1usize..300, destinations in 1usize..10) {
        let mut s = with_relay(100_000);
        for n in 0..bulk * destinations {
            let name = format!("d{}", n % destinations);
            s.upsert(NewItem { sender: "bulk", ..item(n as u64, &name, 0) });
        }
        s.upsert(NewItem { sender: "one", ..item(900_000, "d0", 0) });
        let got = taken(s.next(0, 2 * destinations, &places(1_000_000)));
        prop_assert!(got.contains(&900_000));
    }
}

#[test]
fn the_same_slot_is_used_again_without_confusion() {
    let mut s = with_relay(100);
    s.upsert(item(1, "a", 0));
    assert!(s.next(0, 0, &places(1)).is_empty());
    // Ready, removed, and its slot taken by another message of the same sender.
    s.remove(id(1));
    s.upsert(item(2, "a", 50));
    assert!(s.next(10, 10, &places(9)).is_empty());
    assert_eq!(taken(s.next(50, 10, &places(9))), [2]);
    let seen: BTreeSet<u64> = taken(s.next(60, 10, &places(9))).into_iter().collect();
    assert!(seen.is_empty());
}

#[test]
fn a_destination_with_a_rate_begins_what_it_has_tokens_for() {
    let rated = |_: &str| Limit {
        leases: 9,
        first: 9,
        rated: true,
    };
    let mut s = with_relay(100);
    assert!(
        !s.reserve(id(9), "a", "r", 0, &rated),
        "it waits for a token"
    );
    for n in 0..5 {
        s.upsert(item(n, "a", 0));
    }
    assert!(s.next(0, 10, &rated).is_empty());
    assert_eq!(s.short(0, 10, &rated)[0].tokens, 5);
    s.tokens("a", 2, 100);
    assert_eq!(taken(s.next(50, 10, &rated)), [0, 1]);
    assert_eq!(s.short(50, 10, &rated)[0].tokens, 3);
    s.tokens("a", 2, 100);
    assert!(s.next(100, 10, &rated).is_empty(), "their time is over");
    s.worker("r", 0);
    assert!(s.short(100, 10, &rated).is_empty(), "nobody could take it");
    s.worker("r", 5);
    assert!(s.short(100, 10, &places(9)).is_empty(), "no rate any more");
    assert_eq!(taken(s.next(100, 10, &places(9))), [2, 3, 4]);
}

#[test]
fn what_found_no_place_makes_fewer_leases_until_mail_is_delivered() {
    let mut s = with_relay(100);
    for n in 0..16 {
        s.upsert(item(n, "a", 0));
    }
    let first = taken(s.next(0, 100, &places(8)));
    assert_eq!(first.len(), 8);
    for n in &first {
        s.leased(id(*n), "a", 7, 100_000);
    }
    s.crowded(id(first[0]), 6, 10, &places(8));
    // Another epoch is another lease; what comes back together counts once.
    for n in &first {
        s.crowded(id(*n), 7, 10, &places(8));
        s.remove(id(*n));
    }
    assert_eq!(taken(s.next(20, 100, &places(8))).len(), 4);
    s.outcome("a", Outcome::Delivered, 30, 0, &places(8));
    assert_eq!(taken(s.next(30, 100, &places(8))).len(), 1);
}

/// Fifty destinations that take nothing and a sender with nine tenths of the mail: everybody else's mail
/// is assigned in the same call, whatever the number of relays' credits that the others would use up.
#[test]
fn black_holes_and_bulk_delay_nobody() {
    let mut s = with_relay(500);
    let mut n = 0;
    let mut add = |s: &mut Scheduler, destination: &str, sender: &str, count: u64| {
        for _ in 0..count {
            n += 1;
            s.upsert(NewItem {
                sender,
                ..item(n, destination, 0)
            });
        }
        n
    };
    for hole in 0..50 {
        add(&mut s, &format!("hole{hole}"), "bulk", 200);
    }
    add(&mut s, "good", "bulk", 900);
    let last = add(&mut s, "good", "one", 100);
    let got = taken(s.next(0, 500, &places(4)));
    // In the first round every hole has four places, and "good" as many: two of them of the small sender.
    assert_eq!(got.len(), 51 * 4);
    let small = |got: &[u64]| got.iter().filter(|n| **n > last - 100).count();
    assert_eq!(small(&got), 2);
    // The holes answer nothing; "good" delivers.
    let mut delivered = small(&got);
    let mut good: Vec<u64> = got.into_iter().filter(|n| *n > 50 * 200).collect();
    for round in 1..=50 {
        for n in good {
            s.outcome("good", Outcome::Delivered, round, 0, &places(4));
            s.remove(id(n));
        }
        good = taken(s.next(round, 400, &places(4)));
        assert_eq!(good.len(), 4);
        delivered += small(&good);
    }
    assert!(delivered >= 100, "{delivered}");
}

#[test]
fn a_step_costs_the_same_however_much_waits() {
    let steps = |n: u64| {
        let mut s = with_relay(1_000_000);
        for n in 0..n {
            s.upsert(item(n, &format!("d{}", n % 100), 0));
        }
        // What was due is looked at once; from then on only what is done costs.
        s.next(0, 100, &places(1));
        let before = s.steps;
        for round in 0..100 {
            s.remove(id(round));
            s.next(1, 100, &places(1));
        }
        s.steps - before
    };
    assert_eq!(steps(1_000), steps(50_000));
}
