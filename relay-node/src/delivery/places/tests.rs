use super::*;
use futures_util::FutureExt;
use sealane_shares::{Ask, Dealer, Limit, Timing};

const A: &str = "a.example";

fn limits(connections: u32) -> Limits {
    Limits {
        connections,
        ..Limits::default()
    }
}

/// A dealer that was there before anybody asked.
struct Table {
    dealer: Dealer,
    sequence: u64,
    connections: u32,
    rate: Option<u32>,
    /// Of the dealer's clock.
    ms: u64,
    valid: Duration,
}

impl Table {
    fn of(connections: u32, rate: Option<u32>) -> Self {
        Self {
            dealer: Dealer::new(0, Timing::with_overlap(0)),
            sequence: 0,
            connections,
            rate,
            ms: 1_000_000,
            valid: Duration::from_secs(1_000),
        }
    }

    /// One question of a relay, answered; true if something is missing.
    fn round(&mut self, places: &Places, relay: &str) -> bool {
        let question = places.question();
        let asked = Instant::now();
        self.sequence += 1;
        let asks = question.0.iter().map(|(destination, need)| Ask {
            destination,
            need: *need,
        });
        let limit = |_: &str| Limit {
            connections: self.connections,
            connections_per_minute: self.rate,
            messages_per_minute: None,
        };
        let answer = self
            .dealer
            .answer(relay, self.sequence, asks, self.ms, limit);
        let dealt = Dealt {
            asked,
            valid: self.valid,
            shares: answer.unwrap().into_iter().map(Into::into).collect(),
        };
        places.answered(&question, &dealt)
    }
}

fn relay() -> Places {
    Places::new(DeliveryMetrics::default())
}

/// The first attempt of a relay that held nothing.
async fn first_turn(places: &Places, table: &mut Table, name: &str, limits: &Limits) -> Turn {
    let mut turn = Box::pin(places.enter(A, limits));
    assert!(turn.as_mut().now_or_never().is_none(), "nothing is held");
    assert!(places.asked().now_or_never().is_some(), "asked at once");
    table.round(places, name);
    turn.now_or_never().expect("its turn")
}

#[tokio::test]
async fn a_destination_has_so_many_turns_and_no_more() {
    let (places, mut table, limits) = (relay(), Table::of(2, None), limits(2));
    let first = first_turn(&places, &mut table, "r", &limits).await;
    let mut second = Box::pin(places.enter(A, &limits));
    assert!(second.as_mut().now_or_never().is_none());
    table.round(&places, "r");
    let _second = second.now_or_never().expect("its turn");
    let _ = places.asked().now_or_never();
    let mut third = Box::pin(places.enter(A, &limits));
    assert!(third.as_mut().now_or_never().is_none());
    assert!(
        places.asked().now_or_never().is_none(),
        "there is no more to have"
    );
    let mut fourth = Box::pin(places.enter(A, &limits));
    assert!(fourth.as_mut().now_or_never().is_none());
    drop(third);
    drop(first);
    assert!(
        fourth.as_mut().now_or_never().is_some(),
        "the one before it is gone"
    );
}

#[tokio::test]
async fn without_a_dealer_nothing_begins_and_what_runs_may_finish() {
    let (places, mut table, limits) = (relay(), Table::of(3, None), limits(3));
    let turn = first_turn(&places, &mut table, "r", &limits).await;
    let _place = turn.open().unwrap();
    table.valid = Duration::ZERO;
    table.round(&places, "r");
    assert!(places.enter(A, &limits).now_or_never().is_none());
    assert!(turn.open().is_none());
    assert!(places.exceeds(A), "it is to be closed when it is idle");
    assert_eq!(places.excess()[0].1, 1);
    table.valid = Duration::from_secs(1_000);
    table.round(&places, "r");
    assert!(!places.exceeds(A));
}

#[tokio::test]
async fn a_place_goes_to_another_relay_once_its_connection_is_closed() {
    let (one, two, mut table, limits) = (relay(), relay(), Table::of(1, None), limits(1));
    let turn = first_turn(&one, &mut table, "one", &limits).await;
    let place = turn.open().unwrap();
    drop(turn);
    let mut waits = Box::pin(two.enter(A, &limits));
    assert!(waits.as_mut().now_or_never().is_none());
    assert!(table.round(&two, "two"), "ask again soon");
    table.round(&one, "one");
    assert_eq!(one.excess().len(), 1, "its idle connection is in the way");
    table.round(&two, "two");
    assert!(waits.as_mut().now_or_never().is_none());
    drop(place);
    assert!(one.asked().now_or_never().is_some(), "this is news");
    table.round(&one, "one");
    table.round(&two, "two");
    assert!(waits.now_or_never().is_some());
    table.round(&one, "one");
    assert!(one.0.lock().is_empty(), "nothing is remembered");
}

#[tokio::test]
async fn a_new_connection_spends_a_token_that_was_asked_for() {
    let (places, mut table, limits) = (relay(), Table::of(5, Some(60)), limits(5));
    let turn = first_turn(&places, &mut table, "r", &limits).await;
    assert!(!turn.spend(Kind::Connection), "nobody asked for one");
    let wants = turn.wants_token(Kind::Connection);
    table.ms += 1_000;
    assert!(places.asked().now_or_never().is_some());
    table.round(&places, "r");
    assert!(turn.spend(Kind::Connection));
    assert!(!turn.spend(Kind::Connection));
    drop(wants);
    assert!(!table.round(&places, "r"));
    table.ms += 1_000;
    table.round(&places, "r");
    assert!(!turn.spend(Kind::Connection), "nobody asked for one");
}
