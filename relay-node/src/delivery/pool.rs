//! Connections that wait for their next message.
use super::{connection::Connection, places::Places};
use crate::resolve::Hop;
use std::{collections::HashMap, sync::Mutex, time::Duration};
use tokio::{sync::Notify, time::Instant};

/// Which messages may share a connection: the same address by the same name, with TLS that was
/// judged under the same requirement.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PoolKey {
    pub(crate) hop: Hop,
    /// [`crate::tls::CertificateRequirement::key`].
    pub(crate) requirement: [u8; 32],
}

/// Idle connections. Bounded by the leases that ran within the last `hold`, hence by the credits.
#[derive(Debug)]
pub(crate) struct Pool {
    hold: Duration,
    idle: Mutex<HashMap<PoolKey, Vec<(Instant, Connection)>>>,
    /// Done with; they wait for their QUIT, so that no report waits for it.
    retired: Mutex<Vec<Connection>>,
    /// There are connections to part with.
    over: Notify,
}

impl Pool {
    /// Keeps a connection for `hold`.
    pub(crate) fn new(hold: Duration) -> Self {
        Self {
            hold,
            idle: Mutex::default(),
            retired: Mutex::default(),
            over: Notify::new(),
        }
    }

    /// The one that was used last, so that the others run out; one that has its place at this
    /// destination before one that would have to change it.
    pub(crate) fn take(&self, key: &PoolKey, destination: &str) -> Option<Connection> {
        let mut idle = self.idle.lock().expect("no panic while held");
        let waiting = idle.get_mut(key)?;
        let own = waiting.iter().rposition(|(_, c)| c.is_at(destination));
        let found = match own {
            Some(n) => Some(waiting.remove(n)),
            None => waiting.pop(),
        };
        if waiting.is_empty() {
            idle.remove(key);
        }
        drop(idle);
        let (until, connection) = found?;
        if until > Instant::now() {
            return Some(connection);
        }
        self.retire(connection);
        None
    }

    /// One that has a place at this destination: one that is done with, or the one that waits longest.
    pub(crate) fn evict(&self, destination: &str) -> Option<Connection> {
        {
            let mut retired = self.retired.lock().expect("no panic while held");
            if let Some(n) = retired.iter().position(|c| c.is_at(destination)) {
                return Some(retired.swap_remove(n));
            }
        }
        let mut idle = self.idle.lock().expect("no panic while held");
        let oldest = |waiting: &[(Instant, Connection)]| {
            let own = waiting.iter().enumerate();
            let own = own.filter(|(_, (_, c))| c.is_at(destination));
            own.map(|(n, (until, _))| (*until, n)).min()
        };
        let all = idle.iter_mut();
        let found = all.filter_map(|(_, waiting)| Some((oldest(waiting)?, waiting)));
        let ((_, n), waiting) = found.min_by_key(|(at, _)| *at)?;
        // Its list is removed with the next look for what is over, if it is empty now.
        Some(waiting.remove(n).1)
    }

    /// Until there may be connections to part with: [`Self::over`].
    pub(crate) async fn woken(&self) {
        self.over.notified().await;
    }

    pub(crate) fn wake(&self) {
        self.over.notify_one();
    }

    pub(crate) fn put(&self, key: PoolKey, connection: Connection) {
        let until = Instant::now() + self.hold;
        self.idle
            .lock()
            .expect("no panic while held")
            .entry(key)
            .or_default()
            .push((until, connection));
    }

    /// It will carry nothing more.
    pub(crate) fn retire(&self, connection: Connection) {
        self.retired
            .lock()
            .expect("no panic while held")
            .push(connection);
        self.wake();
    }

    /// Removes those that are done with, whose time is over, or for which there is no place any more;
    /// the caller says QUIT on them.
    pub(crate) fn over(&self, places: &Places) -> Vec<Connection> {
        let now = Instant::now();
        let mut out = std::mem::take(&mut *self.retired.lock().expect("no panic while held"));
        let mut idle = self.idle.lock().expect("no panic while held");
        idle.retain(|_, waiting| {
            out.extend(
                waiting
                    .extract_if(.., |(until, _)| *until <= now)
                    .map(|(_, connection)| connection),
            );
            !waiting.is_empty()
        });
        drop(idle);
        for (destination, excess) in places.excess() {
            let gone = (0..excess).map_while(|_| self.evict(&destination));
            out.extend(gone);
        }
        out
    }

    /// Removes all of them; the caller says QUIT on them.
    pub(crate) fn drain(&self) -> Vec<Connection> {
        let mut out = std::mem::take(&mut *self.retired.lock().expect("no panic while held"));
        let idle = std::mem::take(&mut *self.idle.lock().expect("no panic while held"));
        out.extend(
            idle.into_values()
                .flatten()
                .map(|(_, connection)| connection),
        );
        out
    }
}
