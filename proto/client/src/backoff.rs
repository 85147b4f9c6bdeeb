//! Pauses between attempts.
use rand::Rng;
use std::time::Duration;

/// Doubles from `first` to `last`; each pause is drawn from the upper half, so that many clients do
/// not come back at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, last: Duration) -> Self {
        Self {
            first,
            last,
            next: first,
        }
    }
    /// For connections to the control plane.
    pub(crate) fn connect() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(2))
    }
    /// For frames that were refused for now.
    pub(crate) fn resend() -> Self {
        Self::new(Duration::from_millis(20), Duration::from_millis(500))
    }
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.last);
        pause.mul_f64(rand::rng().random_range(0.5..1.0))
    }
}
