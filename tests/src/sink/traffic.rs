//! When connections and messages began, as the far end sees it: what limits are measured by.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A record in memory, of everything since the sink started.
#[derive(Debug, Default)]
pub struct Traffic {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connections: Vec<Connection>,
    /// MAIL commands that were accepted.
    messages: Vec<Instant>,
    open: usize,
    peak: usize,
}

#[derive(Debug)]
struct Connection {
    opened: Instant,
    open: bool,
}

impl Traffic {
    /// Its number.
    pub(super) fn opened(&self) -> usize {
        let mut state = self.lock();
        state.connections.push(Connection {
            opened: Instant::now(),
            open: true,
        });
        state.open += 1;
        state.peak = state.peak.max(state.open);
        state.connections.len() - 1
    }

    /// QUIT was said, or the connection broke, whichever is first.
    pub(super) fn closed(&self, number: usize) {
        let mut state = self.lock();
        if let Some(connection) = state.connections.get_mut(number)
            && std::mem::replace(&mut connection.open, false)
        {
            state.open -= 1;
        }
    }

    pub(super) fn message(&self) {
        self.lock().messages.push(Instant::now());
    }

    /// Most connections that were open at once.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.lock().peak
    }

    /// Open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.lock().open
    }

    /// When each connection was accepted.
    #[must_use]
    pub fn connections(&self) -> Vec<Instant> {
        self.lock()
            .connections
            .iter()
            .map(|one| one.opened)
            .collect()
    }

    /// When each message began.
    #[must_use]
    pub fn messages(&self) -> Vec<Instant> {
        self.lock().messages.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Most of these moments, which are in order, within any stretch of time of this length.
#[must_use]
pub fn most_within(moments: &[Instant], length: Duration) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (last, moment) in moments.iter().enumerate() {
        while moment.duration_since(moments[first]) > length {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_stretch_counts() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let moments = [at(0), at(900), at(1000), at(1100), at(5000)];
        assert_eq!(most_within(&moments, Duration::from_millis(200)), 3);
        assert_eq!(most_within(&moments, Duration::from_millis(1100)), 4);
        assert_eq!(most_within(&moments, Duration::from_secs(60)), 5);
        assert_eq!(most_within(&[], Duration::from_secs(60)), 0);
    }
}
