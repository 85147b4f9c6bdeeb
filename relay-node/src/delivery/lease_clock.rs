//! How long a lease still holds, by the monotonic clock.
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Shared between the renewal and the attempt. A lease that was lost stays lost.
#[derive(Debug, Clone)]
pub struct LeaseClock {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// `None`: lost.
    end: Option<Instant>,
    /// The final dot may be on its way.
    committed: bool,
}

impl LeaseClock {
    /// A lease that was received at `received` and lasts `length` from then.
    pub fn new(received: Instant, length: Duration) -> Self {
        let state = State {
            end: Some(received + length),
            committed: false,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renewed: it lasts `length` from `asked`, the moment before the request was sent.
    pub fn renewed(&self, asked: Instant, length: Duration) {
        if let Some(end) = self.lock().end.as_mut() {
            *end = (*end).max(asked + length);
        }
    }

    /// Someone else may have it now. `true`: nothing was done yet that cannot be taken back, the attempt
    /// is to end; `false`: its outcome counts all the same.
    pub fn lost(&self) -> bool {
        let mut state = self.lock();
        state.end = None;
        !state.committed
    }

    /// What is left; zero if lost or over.
    pub fn remaining(&self) -> Duration {
        self.lock().remaining()
    }

    /// Enough is left to go on.
    pub fn holds(&self, margin: Duration) -> bool {
        self.remaining() > margin
    }

    /// [`Self::holds`], for the last time: what follows, the final dot, cannot be taken back.
    pub fn commit(&self, margin: Duration) -> bool {
        let mut state = self.lock();
        state.committed = state.remaining() > margin;
        state.committed
    }
}

impl State {
    fn remaining(&self) -> Duration {
        self.end.map_or(Duration::ZERO, |end| {
            end.saturating_duration_since(Instant::now())
        })
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
    async fn what_was_committed_is_finished_and_nothing_is_committed_without_a_lease() {
        let clock = LeaseClock::new(Instant::now(), 60 * SECOND);
        assert!(!clock.commit(61 * SECOND) && clock.commit(2 * SECOND));
        assert!(!clock.lost(), "the final dot is on its way");
        let clock = LeaseClock::new(Instant::now(), 60 * SECOND);
        assert!(clock.lost(), "nothing is on its way");
        assert!(!clock.commit(Duration::ZERO));
    }

    #[tokio::test]
    async fn the_margin_counts_as_over() {
        let clock = LeaseClock::new(Instant::now(), SECOND);
        assert!(!clock.holds(2 * SECOND));
        clock.renewed(Instant::now(), 60 * SECOND);
        assert!(clock.holds(2 * SECOND));
    }
}
