//! A token bucket in whole numbers.

/// One token costs this many units; a rate of one per minute adds one unit per millisecond.
const COST: u64 = 60_000;

/// Makes tokens at a rate. A second's worth may lie in it, at least one.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    units: u64,
    at_ms: u64,
}

fn most(per_minute: u32) -> u64 {
    (u64::from(per_minute) * 1000).max(COST)
}

impl Bucket {
    /// Begins to fill at `at_ms`, which may be to come.
    pub fn empty_at(at_ms: u64) -> Self {
        Self { units: 0, at_ms }
    }

    /// Tokens in it now.
    pub fn available(&mut self, per_minute: u32, now_ms: u64) -> u32 {
        let passed = now_ms.saturating_sub(self.at_ms);
        self.units = self
            .units
            .saturating_add(passed.saturating_mul(u64::from(per_minute)))
            .min(most(per_minute));
        self.at_ms = self.at_ms.max(now_ms);
        u32::try_from(self.units / COST).unwrap_or(u32::MAX)
    }

    /// `tokens` of those that were available go.
    pub fn take(&mut self, tokens: u32) {
        self.units = self.units.saturating_sub(u64::from(tokens) * COST);
    }

    /// It could not hold more: it need not be remembered.
    pub fn is_full(&mut self, per_minute: u32, now_ms: u64) -> bool {
        self.available(per_minute, now_ms);
        self.units >= most(per_minute)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_time_has_more_than_its_tokens_and_a_second_s_worth(
            rate in 1u32..6000,
            steps in prop::collection::vec((0u64..400, 0u32..20), 1..400),
        ) {
            let start = 1_000_000;
            let mut b = Bucket::empty_at(start);
            let (mut now, mut taken) = (start, 0u64);
            for (pause, wanted) in steps {
                now += pause;
                let n = b.available(rate, now).min(wanted);
                b.take(n);
                taken += u64::from(n);
                let most = (now - start) * u64::from(rate) / COST + 1;
                prop_assert!(taken <= most, "{taken} of {most}");
                prop_assert!(u64::from(b.available(rate, now)) <= (u64::from(rate) / 60).max(1));
            }
        }
    }
}
