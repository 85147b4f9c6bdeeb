//! A token bucket in whole numbers.

/// One message costs this many units; a rate of one message per minute adds one unit per millisecond.
const COST: u64 = 60_000;

/// How many messages may begin. A second's worth may begin at once, at least one message.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bucket {
    units: u64,
    at_ms: u64,
    per_minute: u32,
    full: bool,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new() -> Self {
        Self {
            full: true,
            ..Self::default()
        }
    }

    fn fill(&mut self, per_minute: u32, now_ms: u64) {
        let rate = u64::from(per_minute);
        self.per_minute = per_minute;
        let most = (rate * 1000).max(COST);
        if std::mem::take(&mut self.full) {
            (self.units, self.at_ms) = (most, now_ms);
        }
        let passed = now_ms.saturating_sub(self.at_ms);
        self.units = self
            .units
            .saturating_add(passed.saturating_mul(rate))
            .min(most);
        self.at_ms = self.at_ms.max(now_ms);
    }

    /// `None` if a message may begin now, else when to ask again.
    pub(crate) fn wait(&mut self, per_minute: u32, now_ms: u64) -> Option<u64> {
        self.fill(per_minute, now_ms);
        let missing = COST.checked_sub(self.units).filter(|n| *n > 0)?;
        Some(now_ms.saturating_add(missing.div_ceil(u64::from(per_minute).max(1))))
    }

    /// A message begins.
    pub(crate) fn take(&mut self) {
        self.units = self.units.saturating_sub(COST);
    }

    /// When it will be full again: then it need not be remembered.
    pub(crate) fn full_at(&self) -> u64 {
        let rate = u64::from(self.per_minute).max(1);
        let missing = (rate * 1000).max(COST).saturating_sub(self.units);
        self.at_ms.saturating_add(missing.div_ceil(rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_minute_has_more_than_its_messages_and_one_burst(rate in 1u32..6000, steps in prop::collection::vec(0u64..400, 1..400)) {
            let mut b = Bucket::new();
            let mut now = 1_000_000;
            let mut begun = 0u64;
            let start = now;
            for s in steps {
                now += s;
                while b.wait(rate, now).is_none() {
                    b.take();
                    begun += 1;
                }
                let most = (now - start) * u64::from(rate) / COST + (u64::from(rate) / 60).max(1) + 1;
                prop_assert!(begun <= most, "{begun} of {most}");
                // Asking again at the time that was named succeeds.
                let at = b.wait(rate, now).unwrap_or(now);
                prop_assert!(b.clone().wait(rate, at).is_none());
            }
        }
    }
}
