//! By which time a process judges.
//!
//! How long something took is asked of the *steady* clock, which nobody sets: leases, pauses, retries.
//! What time of day it is (stamps of entries, ids, the end of a message's life) is asked of the *wall* clock,
//! and one wall clock that is wrong must not decide alone: control-plane nodes tell each other, and relays, what
//! theirs show. A process whose clock is further from the median of all that it knows than five seconds goes by
//! the median. Of an even number the earlier of the two in the middle counts: mail that is returned later
//! than it could be is better than mail that is returned though its time is not up.
use crate::world;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Clocks that are synchronised differ by less.
const TOLERANCE_MS: i64 = 5_000;
/// An answer that took longer says too little about the time.
const SLOW_MS: u64 = 2_000;

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Time of day, milliseconds since the epoch.
    pub wall_ms: u64,
    /// Milliseconds since this process began.
    pub steady_ms: u64,
}

impl Now {
    /// When the steady clock is where the wall clock will show `wall_ms`: not before now.
    pub fn steady_at(&self, wall_ms: u64) -> u64 {
        let left = wall_ms.saturating_sub(self.wall_ms);
        self.steady_ms.saturating_add(left)
    }
}

/// The clocks of this process.
#[derive(Debug)]
pub struct Clock {
    zero: Instant,
    fresh_ms: u64,
    opinions: Mutex<Opinions>,
}

impl Clock {
    /// What others say is believed for `fresh` from when it was heard.
    pub fn new(fresh: Duration) -> Self {
        Self {
            zero: Instant::now(),
            fresh_ms: u64::try_from(fresh.as_millis()).unwrap_or(u64::MAX),
            opinions: Mutex::default(),
        }
    }

    /// Milliseconds since this process began.
    pub fn steady_ms(&self) -> u64 {
        u64::try_from(self.zero.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What this process goes by.
    pub fn now(&self) -> Now {
        let steady_ms = self.steady_ms();
        let own = ahead(world::now_ms(), steady_ms);
        let believed = self.lock().believed(own, self.oldest(steady_ms));
        Now {
            wall_ms: u64::try_from(believed)
                .unwrap_or(0)
                .saturating_add(steady_ms),
            steady_ms,
        }
    }

    /// The wall clock's part of [`Self::now`].
    pub fn wall_ms(&self) -> u64 {
        self.now().wall_ms
    }

    /// How far the operating system's wall clock is from what this process goes by; 0: it goes by it.
    pub fn wrong_by_ms(&self) -> i64 {
        let own = i64::try_from(world::now_ms()).unwrap_or(i64::MAX);
        let off = own.saturating_sub(i64::try_from(self.wall_ms()).unwrap_or(i64::MAX));
        // The two were not read at the same moment.
        if off.abs() <= 1 { 0 } else { off }
    }

    /// Whether somebody else said lately what its clock shows.
    pub fn is_compared(&self) -> bool {
        let steady_ms = self.steady_ms();
        let oldest = self.oldest(steady_ms);
        self.lock().since(oldest).next().is_some()
    }

    /// `node` showed `wall_ms` between these two moments of the steady clock.
    pub fn heard(&self, node: u64, wall_ms: u64, (asked, answered): (u64, u64)) {
        let took = answered.saturating_sub(asked);
        if took <= SLOW_MS {
            let opinion = ahead(wall_ms, asked.saturating_add(took / 2));
            self.lock().0.insert(node, (opinion, answered));
        }
    }

    fn oldest(&self, steady_ms: u64) -> u64 {
        steady_ms.saturating_sub(self.fresh_ms)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Opinions> {
        self.opinions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ahead(wall_ms: u64, steady_ms: u64) -> i64 {
    let wall = i64::try_from(wall_ms).unwrap_or(i64::MAX);
    wall.saturating_sub(i64::try_from(steady_ms).unwrap_or(i64::MAX))
}

/// How far other nodes' wall clocks are ahead of our steady clock, and when they said so.
#[derive(Debug, Default)]
struct Opinions(BTreeMap<u64, (i64, u64)>);

impl Opinions {
    fn since(&self, oldest: u64) -> impl Iterator<Item = i64> {
        let all = self.0.values();
        all.filter(move |(_, at)| *at >= oldest)
            .map(|(ahead, _)| *ahead)
    }

    fn believed(&self, own: i64, oldest: u64) -> i64 {
        let mut all: Vec<i64> = self.since(oldest).collect();
        if all.is_empty() {
            return own;
        }
        all.push(own);
        all.sort_unstable();
        let middle = (all.len() - 1) / 2;
        let median = all.get(middle).copied().unwrap_or(own);
        own.clamp(
            median.saturating_sub(TOLERANCE_MS),
            median.saturating_add(TOLERANCE_MS),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;
    const YEARS: i64 = 10 * 365 * 24 * HOUR;

    fn opinions(of: &[i64]) -> Opinions {
        let all = of.iter().zip(2u64..);
        Opinions(all.map(|(o, node)| (node, (*o, 0))).collect())
    }

    #[test]
    fn one_wrong_clock_of_three_is_outvoted_in_both_directions() {
        for wrong in [HOUR, -HOUR, YEARS, -YEARS] {
            let at = |own: i64, others: &[i64]| opinions(others).believed(own, 0);
            assert!(at(wrong, &[0, 7]).abs() <= TOLERANCE_MS + 7, "{wrong}");
            assert_eq!(
                at(0, &[wrong, 7]),
                0,
                "a right clock is not bent by {wrong}"
            );
        }
    }

    #[test]
    fn clocks_that_agree_are_left_alone() {
        assert_eq!(opinions(&[300, -200]).believed(900, 0), 900);
    }

    #[test]
    fn of_two_clocks_the_earlier_counts() {
        assert_eq!(opinions(&[0]).believed(YEARS, 0), TOLERANCE_MS);
        assert_eq!(opinions(&[YEARS]).believed(0, 0), 0);
    }

    #[test]
    fn without_others_and_with_old_words_only_the_own_clock_counts() {
        assert_eq!(Opinions::default().believed(YEARS, 0), YEARS);
        let old = opinions(&[0, 0]);
        assert_eq!(old.believed(YEARS, 1), YEARS);
    }

    #[test]
    fn a_time_that_is_over_is_now_and_a_far_one_does_not_overflow() {
        let now = Now {
            wall_ms: 1_000,
            steady_ms: 5,
        };
        assert_eq!(now.steady_at(400), 5);
        assert_eq!(now.steady_at(1_100), 105);
        assert_eq!(now.steady_at(u64::MAX), u64::MAX - 1_000 + 5);
    }
}
