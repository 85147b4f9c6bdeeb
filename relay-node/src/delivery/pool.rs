//! Connections that wait for their next message.
use super::connection::Connection;
use crate::resolve::Hop;
use std::{collections::HashMap, sync::Mutex, time::Duration};
use tokio::time::Instant;

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
}

impl Pool {
    /// Keeps a connection for `hold`.
    pub(crate) fn new(hold: Duration) -> Self {
        Self {
            hold,
            idle: Mutex::default(),
            retired: Mutex::default(),
        }
    }

    /// The one that was used last, so that the others run out.
    pub(crate) fn take(&self, key: &PoolKey) -> Option<Connection> {
        let mut idle = self.idle.lock().expect("no panic while held");
        let waiting = idle.get_mut(key)?;
        let found = waiting.pop();
        if waiting.is_empty() {
            idle.remove(key);
        }
        found
            .filter(|(until, _)| *until > Instant::now())
            .map(|(_, connection)| connection)
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
    }

    /// Removes those whose time is over; the caller says QUIT on them.
    pub(crate) fn expired(&self) -> Vec<Connection> {
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
