//! Both ends and a bad network: whatever happens, the limits hold in sum; when it stops, everybody is served.
use crate::{Ask, Dealer, Grant, Kind, Limit, Need, PerKind, RENEW_MS, Share, Timing, VALID_MS};
use proptest::prelude::*;

const STEP: u64 = 10;
const OVERLAP: u64 = 1_200;
/// A holder gives an answer up after this.
const PATIENCE: u64 = 700;

/// Numbers by a seed (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

struct Holder {
    /// This run of it.
    name: String,
    /// Its clock is ahead by this.
    ahead: u64,
    share: Share,
    /// Attempts that want to begin.
    backlog: u32,
    /// Of these, at most so many at once.
    appetite: u32,
    /// Ends of the attempts under way.
    busy: Vec<u64>,
    open: u32,
    sequence: u64,
    next_ask: u64,
    /// Asked at its time, and with which sequence.
    asked: Option<(u64, u64, Need)>,
    begun: u64,
}

impl Holder {
    fn new(number: u64, run: u64, ahead: u64) -> Self {
        Self {
            name: format!("h{number}/{run}"),
            ahead,
            share: Share::default(),
            backlog: 0,
            appetite: 0,
            busy: Vec::new(),
            open: 0,
            sequence: 0,
            next_ask: 0,
            asked: None,
            begun: 0,
        }
    }

    fn held(&self, now: u64) -> u32 {
        self.share.allowed(now + self.ahead).max(self.open)
    }
}

#[derive(Clone)]
enum Packet {
    Question {
        holder: usize,
        name: String,
        sequence: u64,
        need: Need,
        dealer: usize,
    },
    Answer {
        holder: usize,
        name: String,
        sequence: u64,
        grant: Grant,
    },
}

struct World {
    now: u64,
    dice: Dice,
    limit: Limit,
    holders: Vec<Holder>,
    runs: u64,
    /// With the time when it answers no more.
    dealers: Vec<(Dealer, u64)>,
    packets: Vec<(u64, Packet)>,
    faults: bool,
    opened: Vec<u64>,
}

impl World {
    fn new(seed: u64, limit: Limit, holders: u64) -> Self {
        let mut dice = Dice(seed | 1);
        let holders = (0..holders)
            .map(|n| Holder::new(n, 0, dice.roll(1_000_000)))
            .collect();
        Self {
            now: 5_000_000,
            dice,
            limit,
            holders,
            runs: 0,
            dealers: vec![(
                Dealer::new(5_000_000, Timing::with_overlap(OVERLAP)),
                u64::MAX,
            )],
            packets: Vec::new(),
            faults: true,
            opened: Vec::new(),
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        if self.faults {
            self.misfortune();
        }
        for n in 0..self.holders.len() {
            self.work(n);
            self.ask(n);
        }
        let now = self.now;
        let due: Vec<Packet> = self
            .packets
            .extract_if(.., |(at, _)| *at <= now)
            .map(|(_, p)| p)
            .collect();
        for packet in due {
            self.arrive(packet);
        }
    }

    fn misfortune(&mut self) {
        if self.dice.one_in(600) {
            // A new leader; the old one does not know it for a while.
            let until = self.now + self.dice.roll(OVERLAP);
            if let Some((_, end)) = self.dealers.last_mut() {
                *end = until;
            }
            self.dealers.push((
                Dealer::new(self.now, Timing::with_overlap(OVERLAP)),
                u64::MAX,
            ));
        }
        if self.dice.one_in(500) {
            let n = self.dice.roll(self.holders.len() as u64);
            self.runs += 1;
            let ahead = self.dice.roll(1_000_000);
            self.holders[n as usize] = Holder::new(n, self.runs, ahead);
        }
        if self.dice.one_in(40) {
            let n = self.dice.roll(self.holders.len() as u64) as usize;
            let (backlog, appetite) = (self.dice.roll(60), 1 + self.dice.roll(8));
            self.holders[n].backlog = backlog as u32;
            self.holders[n].appetite = appetite as u32;
        }
    }

    fn work(&mut self, n: usize) {
        let (now, rated) = (self.now, self.limit.connections_per_minute.is_some());
        let h = &mut self.holders[n];
        let own = now + h.ahead;
        let before = h.busy.len();
        h.busy.retain(|end| *end > now);
        for _ in h.busy.len()..before {
            h.share.end();
        }
        // Idle connections close when there are too many, and now and then.
        let idle = h.open.saturating_sub(h.busy.len() as u32);
        let mut close = idle.min(h.share.excess(own));
        if self.dice.one_in(100) {
            close = idle;
        }
        for _ in 0..close {
            h.open -= 1;
            h.share.close();
        }
        while h.backlog > 0 && (h.busy.len() as u32) < h.appetite && h.share.begin(own) {
            if h.open <= h.busy.len() as u32 {
                if rated && !h.share.spend(Kind::Connection, own) {
                    h.share.end();
                    break;
                }
                assert!(h.share.open(own), "a place for each attempt that began");
                h.open += 1;
                self.opened.push(now);
            }
            h.backlog -= 1;
            h.begun += 1;
            h.busy.push(now + 10 + self.dice.roll(800));
        }
    }

    fn ask(&mut self, n: usize) {
        let now = self.now;
        let h = &mut self.holders[n];
        let own = now + h.ahead;
        if h.asked.is_some_and(|(at, _, _)| own >= at + PATIENCE) {
            h.asked = None;
            h.next_ask = own + 200;
        }
        let urgent = h.backlog > 0 && h.share.allowed(own) == 0;
        if h.asked.is_some() || own < h.next_ask && !(urgent && self.dice.one_in(3)) {
            return;
        }
        let waiting = h
            .backlog
            .min(h.appetite.saturating_sub(h.busy.len() as u32));
        let tokens = if self.limit.connections_per_minute.is_some() {
            waiting
        } else {
            0
        };
        let need = h.share.need(
            waiting,
            PerKind {
                connections: tokens,
                ..PerKind::default()
            },
            own,
        );
        h.sequence += 1;
        h.next_ask = own + RENEW_MS;
        h.asked = Some((own, h.sequence, need));
        // The newest dealer, or another one by mistake.
        let mut dealer = self.dealers.len() - 1;
        if self.faults && dealer > 0 && self.dice.one_in(3) {
            dealer -= 1;
        }
        let packet = Packet::Question {
            holder: n,
            name: h.name.clone(),
            sequence: h.sequence,
            need,
            dealer,
        };
        self.send(packet);
    }

    fn send(&mut self, packet: Packet) {
        let delay = if !self.faults {
            1
        } else if self.dice.one_in(12) {
            return;
        } else if self.dice.one_in(8) {
            self.dice.roll(4_000)
        } else {
            self.dice.roll(30)
        };
        self.packets.push((self.now + delay, packet));
    }

    fn arrive(&mut self, packet: Packet) {
        let (now, limit) = (self.now, self.limit);
        match packet {
            Packet::Question {
                holder,
                name,
                sequence,
                need,
                dealer,
            } => {
                let Some((dealer, end)) = self.dealers.get_mut(dealer) else {
                    return;
                };
                if now > *end {
                    return;
                }
                let asks = [Ask {
                    destination: "d.example",
                    need,
                }];
                if let Some(grants) = dealer.answer(&name, sequence, asks, now, |_| limit) {
                    self.send(Packet::Answer {
                        holder,
                        name,
                        sequence,
                        grant: grants[0],
                    });
                }
            }
            Packet::Answer {
                holder,
                name,
                sequence,
                grant,
            } => {
                let h = &mut self.holders[holder];
                if let Some((at, asked, need)) = h.asked.filter(|_| h.name == name)
                    && asked == sequence
                {
                    h.asked = None;
                    h.share.granted(at, VALID_MS, need, grant);
                    if h.share.holds_less_than_told(now + h.ahead) {
                        h.next_ask = now + h.ahead;
                    }
                }
            }
        }
    }

    fn held(&self) -> u32 {
        self.holders.iter().map(|h| h.held(self.now)).sum()
    }

    fn calm(&mut self) {
        self.faults = false;
        for _ in 0..1_000 {
            self.step();
        }
    }
}

fn places(connections: u32) -> Limit {
    Limit {
        connections,
        connections_per_minute: None,
        messages_per_minute: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Lost, late and repeated answers, dead holders, two dealers at a time: the sum holds at every step.
    /// When the network is well again, every holder with need gets its turn, and the places all come back.
    #[test]
    fn places_never_exceed_the_limit_and_everybody_gets_a_turn(seed in any::<u64>(), limit in 1u32..8, holders in 1u64..7) {
        let mut w = World::new(seed, places(limit), holders);
        for _ in 0..4_000 {
            w.step();
            prop_assert!(w.held() <= limit, "{} of {limit} at {}", w.held(), w.now);
        }
        w.calm();
        for h in &mut w.holders {
            (h.backlog, h.appetite, h.begun) = (1_000_000, 5, 0);
        }
        // A turn lasts a second, changing hands two more, and a transaction most of one.
        let rounds = (4 * holders / u64::from(limit) + 8) * 100;
        for _ in 0..rounds {
            w.step();
            prop_assert!(w.held() <= limit);
        }
        for h in &w.holders {
            prop_assert!(h.begun > 0, "{} never began; {:?}", h.name, w.holders.iter().map(|h| h.begun).collect::<Vec<_>>());
        }
        for h in &mut w.holders {
            h.backlog = 0;
        }
        w.calm();
        for h in &mut w.holders {
            while h.open > 0 { h.open -= 1; h.share.close(); }
        }
        w.calm();
        let (dealer, _) = w.dealers.last_mut().unwrap();
        let need = Need { needs: limit, ..Need::default() };
        let ask = Ask { destination: "d.example", need };
        let grants = dealer.answer("newcomer", 1, [ask], w.now, |_| places(limit)).unwrap();
        prop_assert_eq!(grants[0].places, limit, "unused places came back");
    }

    /// Connections per minute, under the same misfortunes, over every stretch of time.
    #[test]
    fn tokens_never_exceed_the_rate_and_everybody_gets_some(seed in any::<u64>(), rate in 1u32..600, holders in 1u64..6) {
        let limit = Limit { connections_per_minute: Some(rate), ..places(50) };
        let mut w = World::new(seed, limit, holders);
        for _ in 0..6_000 {
            w.step();
        }
        w.calm();
        for h in &mut w.holders {
            (h.backlog, h.appetite, h.begun) = (1_000_000, 5, 0);
            h.open = 0;
            h.share = Share::default();
            h.busy.clear();
        }
        let all_once = 60_000 * holders / u64::from(rate) + 10_000;
        for _ in 0..all_once / STEP {
            w.step();
        }
        for (i, first) in w.opened.iter().enumerate() {
            for (j, last) in w.opened.iter().enumerate().skip(i).step_by(1 + (w.opened.len() - i) / 40) {
                let most = (last - first + 3_000) * u64::from(rate) / 60_000 + 1;
                prop_assert!((j - i + 1) as u64 <= most, "{} in {} ms at {rate} per minute", j - i + 1, last - first);
            }
        }
        for h in &w.holders {
            prop_assert!(h.begun > 0, "{} got no token in {all_once} ms", h.name);
        }
    }
}

#[test]
fn shares_follow_the_backlog() {
    let mut d = Dealer::new(0, Timing::with_overlap(OVERLAP));
    let mut ask = |name: &str, n: u64, now: u64, holds: u32, needs: u32| {
        let need = Need {
            holds,
            needs,
            open: holds,
            ..Need::default()
        };
        let ask = Ask {
            destination: "d",
            need,
        };
        d.answer(name, n, [ask], now, |_| places(20)).unwrap()[0].places
    };
    assert_eq!(ask("a", 1, 10_000, 0, 90), 20);
    assert_eq!(ask("b", 1, 10_100, 0, 30), 0, "all are taken");
    assert_eq!(ask("a", 2, 11_000, 20, 90), 15);
    assert_eq!(
        ask("b", 2, 11_100, 0, 30),
        0,
        "not before they are given back"
    );
    assert_eq!(ask("a", 3, 12_000, 15, 90), 15);
    assert_eq!(ask("b", 3, 12_100, 0, 30), 5);
    // The one that needed most has nothing left to do.
    assert_eq!(ask("a", 4, 13_000, 15, 2), 2);
    assert_eq!(ask("a", 5, 13_001, 2, 2), 2);
    assert_eq!(ask("b", 4, 13_100, 5, 30), 18);
}

#[test]
fn a_new_dealer_confirms_and_gives_nothing_for_a_while() {
    let mut d = Dealer::new(0, Timing::with_overlap(OVERLAP));
    let mut ask = |name: &str, n: u64, now: u64, holds: u32, needs: u32| {
        let need = Need {
            holds,
            needs,
            open: holds,
            ..Need::default()
        };
        let ask = Ask {
            destination: "d",
            need,
        };
        d.answer(name, n, [ask], now, |_| places(20))
            .map(|g| g[0].places)
    };
    assert_eq!(ask("a", 7, 10, 4, 9), Some(4));
    assert_eq!(ask("b", 3, 20, 0, 9), Some(0));
    assert_eq!(ask("b", 3, 30, 0, 9), None, "an old question");
    assert_eq!(ask("a", 8, 4_499, 4, 9), Some(4));
    assert_eq!(ask("a", 9, 4_500, 4, 9), Some(9));
}

#[test]
fn nothing_is_remembered_of_holders_that_are_gone() {
    let mut d = Dealer::new(0, Timing::with_overlap(OVERLAP));
    let limit = Limit {
        messages_per_minute: Some(60),
        ..places(2)
    };
    for n in 0..100 {
        let need = Need {
            needs: 1,
            ..Need::default()
        };
        let name = format!("d{n}");
        d.answer(
            "a",
            n + 1,
            [Ask {
                destination: &name,
                need,
            }],
            10_000 + n,
            |_| limit,
        );
    }
    assert_eq!(d.destinations(), 100);
    d.answer("b", 1, [], 20_000, |_| limit);
    assert_eq!(d.destinations(), 0);
    assert!(
        d.answer("a", 1, [], 30_000, |_| limit).is_some(),
        "its numbers too"
    );
}
