//! The dealer: one in a cluster, in memory.
use crate::{
    Bucket, Grant, Need, PerKind,
    split::{Part, split},
};
use std::collections::BTreeMap;

/// Holders that find no place in turn give theirs up after this.
const TURN_MS: u64 = 1_000;
/// Whoever waits for a token and was not heard for this long does not keep others from it.
const WAITS_MS: u64 = 1_500;

/// What the policy allows at a destination, over the whole cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Connections at once.
    pub connections: u32,
    /// Connections that may be opened.
    pub connections_per_minute: Option<u32>,
    /// Messages that may begin.
    pub messages_per_minute: Option<u32>,
}

/// How long the dealer is careful, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// A predecessor may still answer for this long after the start.
    pub overlap_ms: u64,
    /// A silent holder is counted for this long; more than [`crate::VALID_MS`] and the overlap.
    pub hold_ms: u64,
}

impl Timing {
    /// For leaders that believe in themselves for at most `overlap_ms` after they were replaced.
    pub fn with_overlap(overlap_ms: u64) -> Self {
        Self {
            overlap_ms,
            // A tenth: clocks of two machines do not run at quite the same speed.
            hold_ms: overlap_ms.saturating_add(crate::VALID_MS + crate::VALID_MS / 10),
        }
    }
}

/// One destination in a question.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Lower-case domain.
    pub destination: &'a str,
    /// What the holder says.
    pub need: Need,
}

/// See the crate's documentation.
#[derive(Debug)]
pub struct Dealer {
    started_ms: u64,
    timing: Timing,
    /// Last question of each holder: its number, and when.
    holders: BTreeMap<String, (u64, u64)>,
    tables: BTreeMap<String, Table>,
    turns: u64,
    swept_ms: u64,
}

#[derive(Debug)]
struct Table {
    records: BTreeMap<String, Record>,
    connections: Bucket,
    messages: Bucket,
    leases: Bucket,
}

#[derive(Debug, Clone, Copy, Default)]
struct Record {
    said: Need,
    granted: u32,
    seen_ms: u64,
    /// Its turn for a place, where there are fewer places than holders.
    turn: u64,
    /// Since when it has a place.
    since_ms: u64,
    connections: Waits,
    messages: Waits,
    leases: Waits,
}

/// For tokens: how many, and since which turn.
#[derive(Debug, Clone, Copy, Default)]
struct Waits {
    wants: u32,
    turn: u64,
}

impl Record {
    /// Places that it may have.
    fn counted(&self) -> u32 {
        self.said.holds.max(self.granted)
    }
}

impl Dealer {
    /// One that becomes the dealer now.
    pub fn new(now_ms: u64, timing: Timing) -> Self {
        Self {
            started_ms: now_ms,
            timing,
            holders: BTreeMap::new(),
            tables: BTreeMap::new(),
            turns: 0,
            swept_ms: now_ms,
        }
    }

    /// Answers a holder, one grant per question in their order. `None`: a question with this number or
    /// a later one was answered before, so this one says nothing any more. `holder` is one run of one
    /// process; `sequence` grows with every question of it.
    pub fn answer<'a>(
        &mut self,
        holder: &str,
        sequence: u64,
        asks: impl IntoIterator<Item = Ask<'a>>,
        now_ms: u64,
        limits: impl Fn(&str) -> Limit,
    ) -> Option<Vec<Grant>> {
        if self
            .holders
            .get(holder)
            .is_some_and(|(n, _)| *n >= sequence)
        {
            return None;
        }
        self.holders.insert(holder.to_owned(), (sequence, now_ms));
        self.sweep(now_ms, &limits);
        let grants = asks.into_iter().map(|ask| {
            let limit = limits(ask.destination);
            self.deal(holder, ask, limit, now_ms)
        });
        Some(grants.collect())
    }

    /// Destinations with a holder or a rate that is not at rest.
    pub fn destinations(&self) -> usize {
        self.tables.len()
    }

    fn deal(&mut self, holder: &str, ask: Ask<'_>, limit: Limit, now_ms: u64) -> Grant {
        let begins = self.started_ms.saturating_add(self.timing.overlap_ms);
        let table = self
            .tables
            .entry(ask.destination.to_owned())
            .or_insert_with(|| Table {
                records: BTreeMap::new(),
                connections: Bucket::empty_at(begins),
                messages: Bucket::empty_at(begins),
                leases: Bucket::empty_at(begins),
            });
        table.forget_silent(now_ms, self.timing.hold_ms);
        let turns = &mut self.turns;
        let mut record = table.records.get(holder).copied().unwrap_or_else(|| {
            *turns += 1;
            Record {
                turn: *turns,
                ..Record::default()
            }
        });
        let had = record.said.holds > 0;
        record.said = ask.need;
        record.granted = 0;
        record.seen_ms = now_ms;
        if !had && ask.need.holds > 0 {
            record.since_ms = now_ms;
        }
        table.records.insert(holder.to_owned(), record);

        let known = now_ms >= self.started_ms.saturating_add(self.timing.hold_ms);
        let places = if known {
            table.places(holder, limit.connections, now_ms, turns)
        } else {
            // Others may have whatever is not said here.
            let used = ask.need.needs.max(ask.need.open);
            ask.need.holds.min(used).min(limit.connections)
        };
        let mut spend = |rate, per_minute| table.tokens(holder, rate, per_minute, now_ms, turns);
        let tokens = PerKind {
            connections: spend(CONNECTIONS, limit.connections_per_minute),
            messages: spend(MESSAGES, limit.messages_per_minute),
            leases: spend(LEASES, limit.messages_per_minute),
        };
        if let Some(record) = table.records.get_mut(holder) {
            record.granted = places;
            if record.is_nothing() {
                table.records.remove(holder);
            }
        }
        Grant { places, tokens }
    }

    /// Forgets what does not matter any more, now and then.
    fn sweep(&mut self, now_ms: u64, limits: &impl Fn(&str) -> Limit) {
        if now_ms < self.swept_ms.saturating_add(1_000) {
            return;
        }
        self.swept_ms = now_ms;
        let hold = self.timing.hold_ms;
        self.holders
            .retain(|_, (_, seen)| now_ms < seen.saturating_add(hold));
        self.tables.retain(|name, table| {
            table.forget_silent(now_ms, hold);
            !table.records.is_empty() || !table.is_at_rest(limits(name), now_ms)
        });
    }
}

impl Record {
    fn is_nothing(&self) -> bool {
        self.counted() == 0
            && self.said.needs == 0
            && self.connections.wants == 0
            && self.messages.wants == 0
            && self.leases.wants == 0
    }
}

/// Where the parts of one rate are.
#[derive(Clone, Copy)]
struct Rate {
    bucket: fn(&mut Table) -> &mut Bucket,
    waits: fn(&mut Record) -> &mut Waits,
    wanted: fn(&Need) -> u32,
}

const CONNECTIONS: Rate = Rate {
    bucket: |t| &mut t.connections,
    waits: |r| &mut r.connections,
    wanted: |n| n.tokens.connections,
};
const MESSAGES: Rate = Rate {
    bucket: |t| &mut t.messages,
    waits: |r| &mut r.messages,
    wanted: |n| n.tokens.messages,
};
const LEASES: Rate = Rate {
    bucket: |t| &mut t.leases,
    waits: |r| &mut r.leases,
    wanted: |n| n.tokens.leases,
};

impl Table {
    fn forget_silent(&mut self, now_ms: u64, hold_ms: u64) {
        self.records
            .retain(|_, r| now_ms < r.seen_ms.saturating_add(hold_ms));
    }

    fn is_at_rest(&mut self, limit: Limit, now_ms: u64) -> bool {
        let rest = |bucket: &mut Bucket, rate: Option<u32>| {
            rate.is_none_or(|rate| bucket.is_full(rate, now_ms))
        };
        rest(&mut self.connections, limit.connections_per_minute)
            && rest(&mut self.messages, limit.messages_per_minute)
            && rest(&mut self.leases, limit.messages_per_minute)
    }

    /// The places of a holder from now on: what it should have, as far as others do not have it.
    fn places(&mut self, holder: &str, limit: u32, now_ms: u64, turns: &mut u64) -> u32 {
        let holds = self.records.get(holder).map_or(0, |r| r.said.holds);
        let should = self.should_have(holder, limit, now_ms, turns);
        if should <= holds {
            return should;
        }
        let counted = self
            .records
            .values()
            .fold(0u32, |n, r| n.saturating_add(r.counted()));
        let free = limit.saturating_sub(counted);
        let granted = holds + (should - holds).min(free);
        if holds == 0
            && granted > 0
            && let Some(r) = self.records.get_mut(holder)
        {
            r.since_ms = now_ms;
        }
        granted
    }

    fn should_have(&mut self, holder: &str, limit: u32, now_ms: u64, turns: &mut u64) -> u32 {
        let needers = self.records.values().filter(|r| r.said.needs > 0).count();
        if needers > limit as usize {
            return self.in_turn(holder, limit, now_ms, turns);
        }
        let parts: Vec<Part> = self
            .records
            .values()
            .map(|r| Part {
                needs: r.said.needs,
                open: r.said.open,
            })
            .collect();
        let targets = split(limit, &parts);
        let mut mine = (0, 0);
        let mut pressing = false;
        for ((name, r), target) in self.records.iter().zip(targets) {
            if name == holder {
                mine = (target, r.said.holds);
            } else {
                let has = r.counted();
                pressing |= target > has && (has == 0 || target - has > 1);
            }
        }
        let (target, holds) = mine;
        // A difference of one is not worth a warm connection.
        if target + 1 == holds && !pressing && holds <= limit {
            return holds;
        }
        target
    }

    /// Fewer places than holders with need: one each, in turn.
    fn in_turn(&mut self, holder: &str, limit: u32, now_ms: u64, turns: &mut u64) -> u32 {
        let somebody_waits = self
            .records
            .iter()
            .any(|(name, r)| name != holder && r.said.needs > 0 && r.counted() == 0);
        if let Some(r) = self.records.get_mut(holder)
            && r.said.holds > 0
            && somebody_waits
            && now_ms >= r.since_ms.saturating_add(TURN_MS)
        {
            *turns += 1;
            r.turn = *turns;
            r.since_ms = now_ms;
        }
        let Some(mine) = self.records.get(holder).filter(|r| r.said.needs > 0) else {
            return 0;
        };
        let before = self
            .records
            .values()
            .filter(|r| r.said.needs > 0 && r.turn < mine.turn)
            .count();
        u32::from(before < limit as usize)
    }

    /// Tokens for a holder: those that came before it keep their part.
    fn tokens(
        &mut self,
        holder: &str,
        rate: Rate,
        per_minute: Option<u32>,
        now_ms: u64,
        turns: &mut u64,
    ) -> u32 {
        let Some(record) = self.records.get_mut(holder) else {
            return 0;
        };
        let wants = per_minute.map_or(0, |_| (rate.wanted)(&record.said));
        let waits = (rate.waits)(record);
        if waits.wants == 0 || waits.turn == 0 {
            *turns += 1;
            waits.turn = *turns;
        }
        waits.wants = wants;
        let mine = *waits;
        let Some(per_minute) = per_minute.filter(|_| wants > 0) else {
            return 0;
        };
        let available = (rate.bucket)(self).available(per_minute, now_ms);
        let waiting: Vec<Waits> = self
            .records
            .values_mut()
            .filter(|r| now_ms < r.seen_ms.saturating_add(WAITS_MS))
            .map(|r| *(rate.waits)(r))
            .filter(|w| w.wants > 0)
            .collect();
        let count = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
        let part = available.checked_div(count).unwrap_or(0).max(1);
        let before = waiting.iter().filter(|w| w.turn < mine.turn);
        let kept = before.fold(0u32, |n, w| n.saturating_add(w.wants.min(part)));
        let given = wants.min(available.saturating_sub(kept));
        if given > 0 {
            (rate.bucket)(self).take(given);
            if let Some(record) = self.records.get_mut(holder) {
                *turns += 1;
                *(rate.waits)(record) = Waits {
                    wants: wants - given,
                    turn: *turns,
                };
            }
        }
        given
    }
}
