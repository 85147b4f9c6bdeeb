//! Time in which this process ran.
//!
//! A machine that suspends its processes (a debugger, a frozen control group, a paused virtual machine) stops the
//! harness together with what it watches. Limits are limits of what is watched, so such time does not count; and
//! each such interval is a pause of every process at once, which is counted as a fault.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How often the watch looks.
const BEAT: Duration = Duration::from_millis(100);
/// A beat that is later than this was no busy machine: nothing ran.
const LATE: Duration = Duration::from_millis(2500);

#[derive(Debug)]
struct Watch {
    last: Instant,
    /// Beginnings and ends, in order.
    frozen: Vec<(Instant, Instant)>,
}

impl Watch {
    fn new(now: Instant) -> Self {
        Self {
            last: now,
            frozen: Vec::new(),
        }
    }

    fn beat(&mut self, now: Instant) {
        if now.duration_since(self.last) > LATE {
            self.frozen.push((self.last, now));
        }
        self.last = self.last.max(now);
    }

    fn frozen(&self, from: Instant, to: Instant) -> Duration {
        let overlap = |&(began, ended): &(Instant, Instant)| {
            ended.min(to).saturating_duration_since(began.max(from))
        };
        self.frozen.iter().map(overlap).sum()
    }
}

fn watch() -> MutexGuard<'static, Watch> {
    static WATCH: OnceLock<Mutex<Watch>> = OnceLock::new();
    let watch = WATCH.get_or_init(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(BEAT);
                watch().beat(Instant::now());
            }
        });
        Mutex::new(Watch::new(Instant::now()))
    });
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much of this time the process was not running.
#[must_use]
pub fn frozen(from: Instant, to: Instant) -> Duration {
    let mut watch = watch();
    // Who asks first after a thaw may be faster than the watch.
    watch.beat(Instant::now());
    watch.frozen(from, to)
}

/// How long the process ran in this time.
#[must_use]
pub fn between(from: Instant, to: Instant) -> Duration {
    to.saturating_duration_since(from)
        .saturating_sub(frozen(from, to))
}

/// How long the process ran since then.
#[must_use]
pub fn since(from: Instant) -> Duration {
    between(from, Instant::now())
}

/// How often it was stopped since then.
#[must_use]
pub fn stops(since: Instant) -> usize {
    let mut watch = watch();
    watch.beat(Instant::now());
    let later = watch.frozen.iter().filter(|(_, ended)| *ended > since);
    later.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_late_beat_is_frozen_time_and_only_where_it_overlaps() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut watch = Watch::new(start);
        for ms in [100, 200, 2000, 12_000, 12_100] {
            watch.beat(at(ms));
        }
        assert_eq!(watch.frozen, [(at(2000), at(12_000))]);
        assert_eq!(watch.frozen(start, at(20_000)), Duration::from_secs(10));
        assert_eq!(watch.frozen(at(7000), at(9000)), Duration::from_secs(2));
        assert_eq!(watch.frozen(at(12_000), at(20_000)), Duration::ZERO);
        // A beat that was taken by somebody else meanwhile.
        watch.beat(at(12_050));
        assert_eq!(watch.last, at(12_100));
    }
}
