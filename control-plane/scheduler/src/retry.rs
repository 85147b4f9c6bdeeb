//! When to try again.

/// The time of the next attempt: the delay after attempt number `attempts` (from 1), with ±10 % jitter.
///
/// `delays_ms` is the schedule; its last delay repeats; empty means one hour. `jitter` is a random
/// number in 0..1000. Overflow saturates.
pub fn retry_at(delays_ms: &[u64], attempts: u32, now_ms: u64, jitter: u32) -> u64 {
    let index = usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX);
    let delay = delays_ms
        .get(index)
        .or(delays_ms.last())
        .copied()
        .unwrap_or(3_600_000);
    let permille = 900 + u64::from(jitter.min(999)) / 5;
    now_ms.saturating_add(delay.saturating_mul(permille) / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_delay_repeats_and_jitter_stays_within_ten_percent() {
        let delays = [1_000, 5_000];
        for jitter in [0, 1, 500, 999, 5_000] {
            let first = retry_at(&delays, 1, 0, jitter);
            assert!((900..=1_100).contains(&first), "{first}");
            let later = retry_at(&delays, 9, 0, jitter);
            assert!((4_500..=5_500).contains(&later), "{later}");
        }
        assert_eq!(retry_at(&delays, 0, 10, 500), 1_010);
        assert_eq!(retry_at(&[u64::MAX], 1, u64::MAX, 999), u64::MAX);
        assert_eq!(retry_at(&[], 1, 0, 500), 3_600_000);
    }
}
