//! Pauses after failures, for each cluster its own.
use rand::Rng;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(60);

/// Doubles with every failure, begins anew after a success.
#[derive(Debug, Default)]
pub(crate) struct Backoff(Mutex<HashMap<String, Duration>>);

impl Backoff {
    /// The pause after one more failure of `key`, from the upper half of what it may be, so that many do not come back at once.
    pub(crate) fn failed(&self, key: &str) -> Duration {
        let mut pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = pauses.get(key).copied().unwrap_or(FIRST);
        pauses.insert(key.to_owned(), (pause * 2).min(LAST));
        pause.mul_f64(rand::rng().random_range(0.5..1.0))
    }

    pub(crate) fn succeeded(&self, key: &str) {
        let mut pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pauses.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_begin_anew() {
        let b = Backoff::default();
        assert!(b.failed("a") <= FIRST);
        for _ in 0..10 {
            b.failed("a");
        }
        let long = b.failed("a");
        assert!(long >= LAST / 2 && long <= LAST);
        assert!(b.failed("b") <= FIRST, "others have their own");
        b.succeeded("a");
        assert!(b.failed("a") <= FIRST);
    }
}
