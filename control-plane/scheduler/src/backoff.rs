//! A destination that sends everybody away is left alone for a while.

/// The first pause, milliseconds; it doubles up to [`LONGEST`].
const FIRST: u64 = 1_000;
const LONGEST: u64 = 300_000;
/// A refusal matters for this long after its pause.
const MEMORY: u64 = 3_600_000;
/// What comes back together counts once.
const CROWDED: u64 = 1_000;

/// What happened at a destination, as far as it concerns all mail for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It took a message.
    Delivered,
    /// It did not want us at all: no connection, no TLS, 421 or 4yz before a message was named.
    Refused,
    /// It answered, whatever it said about a message.
    Answered,
}

/// Pauses and the ceiling of what may be under way at once.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backoff {
    /// Pauses in a row.
    refusals: u32,
    until_ms: u64,
    /// Below the configured limit after a refusal; `None`: no ceiling.
    ceiling: Option<u32>,
    /// The ceiling does not fall again before this.
    crowded_until_ms: u64,
}

impl Backoff {
    /// The end of a pause that begins with this outcome.
    pub(crate) fn note(&mut self, o: Outcome, limit: u32, now_ms: u64, jitter: u32) -> Option<u64> {
        match o {
            Outcome::Refused if now_ms < self.until_ms => None,
            Outcome::Refused => {
                let pause = FIRST
                    .checked_shl(self.refusals.min(20))
                    .unwrap_or(LONGEST)
                    .min(LONGEST);
                // 80 % to 120 %.
                let pause = pause * (800 + u64::from(jitter.min(999)) * 400 / 1000) / 1000;
                self.refusals = self.refusals.saturating_add(1);
                self.until_ms = now_ms.saturating_add(pause);
                self.ceiling = Some((self.ceiling.unwrap_or(limit).min(limit) / 2).max(1));
                Some(self.until_ms)
            }
            Outcome::Answered => {
                self.refusals = 0;
                None
            }
            Outcome::Delivered => {
                self.refusals = 0;
                self.ceiling = self.ceiling.map(|c| c + 1).filter(|c| *c < limit);
                None
            }
        }
    }

    /// What was given out found no place there: half of it is enough, as long as nothing is delivered.
    pub(crate) fn crowded(&mut self, limit: u32, now_ms: u64) {
        if now_ms >= self.crowded_until_ms {
            self.ceiling = Some((self.ceiling.unwrap_or(limit).min(limit) / 2).max(1));
            self.crowded_until_ms = now_ms.saturating_add(CROWDED);
        }
    }

    /// How many may be under way: none in a pause, one after it until the destination answers.
    pub(crate) fn allows(&self, limit: u32, now_ms: u64) -> u32 {
        if now_ms < self.until_ms && self.refusals > 0 {
            0
        } else if self.refusals > 0 {
            limit.min(1)
        } else {
            self.ceiling.unwrap_or(limit).min(limit)
        }
    }

    /// When a destination that nobody asked meanwhile begins anew; `None`: there is nothing to forget.
    pub(crate) fn remembered_until(&self) -> Option<u64> {
        let clear = self.refusals == 0 && self.ceiling.is_none();
        (!clear).then(|| {
            self.until_ms
                .max(self.crowded_until_ms)
                .saturating_add(MEMORY)
        })
    }

    pub(crate) fn held_until(&self) -> Option<u64> {
        (self.refusals > 0).then_some(self.until_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_count_once_each() {
        let mut b = Backoff::default();
        assert_eq!(b.allows(20, 0), 20);
        assert_eq!(b.note(Outcome::Refused, 20, 0, 500), Some(1_000));
        // Those that were under way together fail together.
        assert_eq!(b.note(Outcome::Refused, 20, 10, 500), None);
        assert_eq!(b.allows(20, 999), 0);
        assert_eq!(b.allows(20, 1_000), 1);
        assert_eq!(b.note(Outcome::Refused, 20, 1_000, 500), Some(3_000));
        assert_eq!(b.note(Outcome::Refused, 20, 3_000, 0), Some(6_200));
        for _ in 0..40 {
            let until = b.until_ms;
            b.note(Outcome::Refused, 20, until, 999);
            assert!(b.until_ms - until <= LONGEST * 12 / 10);
        }
        assert_eq!(b.note(Outcome::Answered, 20, u64::MAX, 0), None);
        assert_eq!(b.allows(20, 0), 1);
        for n in 2..20 {
            b.note(Outcome::Delivered, 20, 0, 0);
            assert_eq!(b.allows(20, 0), n);
        }
        b.note(Outcome::Delivered, 20, 0, 0);
        assert!(b.remembered_until().is_none());
        assert_eq!(b.allows(20, 0), 20);
    }
}
