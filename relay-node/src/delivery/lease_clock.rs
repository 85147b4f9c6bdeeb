//! How long a lease still holds, by the monotonic clock.
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

/// Shared between the renewal and the attempt. A lease that was lost stays lost.
#[derive(Debug, Clone)]
pub struct LeaseClock {
    end: Arc<Mutex<Option<Instant>>>,
}

impl LeaseClock {
    /// A lease that was received at `received` and lasts `length` from then.
    pub fn new(received: Instant, length: Duration) -> Self {
        Self {
            end: Arc::new(Mutex::new(Some(received + length))),
        }
    }
    /// Renewed: it lasts `length` from `asked`, the moment before the request was sent.
    pub fn renewed(&self, asked: Instant, length: Duration) {
        let mut end = self.end.lock().expect("no panic while held");
        if let Some(end) = end.as_mut() {
            *end = (*end).max(asked + length);
        }
    }
    /// Someone else may have it now.
    pub fn lost(&self) {
        *self.end.lock().expect("no panic while held") = None;
    }
    /// What is left; zero if lost or over.
    pub fn remaining(&self) -> Duration {
        let end = *self.end.lock().expect("no panic while held");
        end.map_or(Duration::ZERO, |end| {
            end.saturating_duration_since(Instant::now())
        })
    }
    /// Enough is left to finish what cannot be taken back.
    pub fn holds(&self, margin: Duration) -> bool {
        self.remaining() > margin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn a_lost_lease_is_not_renewed() {
        let now = Instant::now();
        let clock = LeaseClock::new(now, 60 * SECOND);
        assert!(clock.holds(2 * SECOND));
        clock.lost();
        clock.renewed(now, 60 * SECOND);
        assert_eq!(clock.remaining(), Duration::ZERO);
    }

    #[tokio::test]
    async fn the_margin_counts_as_over() {
        let clock = LeaseClock::new(Instant::now(), SECOND);
        assert!(!clock.holds(2 * SECOND));
        clock.renewed(Instant::now(), 60 * SECOND);
        assert!(clock.holds(2 * SECOND));
    }
}
