//! Accepts connections, a permit before each.
use super::{connection::Connection, context::IngressContext, proxy};
use crate::metrics::{IngressMetrics, Refusal};
use sealane_smtp::server::{Listener, ServerConfig};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// After an error of accept (out of descriptors, most likely).
const PAUSE: Duration = Duration::from_millis(100);
/// Said in clear, and nothing else, to an address that has too many connections.
const TOO_MANY: &[u8] = b"421 4.7.0 Too many connections from your address\r\n";

/// Until `stop`; connections end by themselves then, or at once with `cut`.
pub(super) async fn serve(
    context: Arc<IngressContext>,
    kind: Listener,
    socket: TcpListener,
    connections: TaskTracker,
    stop: CancellationToken,
    cut: CancellationToken,
) {
    let config = context.session_config(kind);
    let permits = Arc::new(Semaphore::new(context.max_connections));
    let per_address = PerAddress::new(context.max_per_address);
    tracing::info!(listener = kind.as_str(), address = %socket.local_addr().map_or_else(|e| e.to_string(), |a| a.to_string()), "listening");
    loop {
        let permit = tokio::select! {
            p = permits.clone().acquire_owned() => p,
            () = stop.cancelled() => return,
        };
        let Ok(permit) = permit else { return };
        let accepted = tokio::select! {
            a = socket.accept() => a,
            () = stop.cancelled() => return,
        };
        let (tcp, peer) = match accepted {
            Ok(a) => a,
            Err(e) => {
                tracing::warn!(listener = kind.as_str(), error = %e, "accept failed");
                sleep(PAUSE).await;
                continue;
            }
        };
        let _ = tcp.set_nodelay(true);
        let visit = Visit {
            context: context.clone(),
            kind,
            config: config.clone(),
            per_address: per_address.clone(),
            stop: stop.clone(),
        };
        let cut = cut.clone();
        connections.spawn(async move {
            cut.run_until_cancelled(visit.take(tcp, peer)).await;
            drop(permit);
        });
    }
}

/// What an accepted connection is served with.
struct Visit {
    context: Arc<IngressContext>,
    kind: Listener,
    config: Arc<ServerConfig>,
    per_address: PerAddress,
    stop: CancellationToken,
}

impl Visit {
    /// From the first octet to the last.
    async fn take(self, mut tcp: TcpStream, from: SocketAddr) {
        let (metrics, listener) = (&self.context.metrics, self.kind.as_str());
        let peer = if self.context.is_proxy(from.ip()) {
            match proxy::client(&mut tcp, from).await {
                Ok(client) => client,
                Err(proxy::NoClient::Silent) => return,
                Err(e) => {
                    metrics.refused(listener, Refusal::Proxy);
                    tracing::info!(proxy = %from, listener, error = %e, "connection closed: nobody knows its client");
                    return;
                }
            }
        } else {
            from
        };
        let Some(_place) = self.per_address.take(peer.ip()) else {
            metrics.refused(listener, Refusal::Connections);
            if self.kind != Listener::Submissions {
                let _ = tcp.try_write(TOO_MANY);
            }
            return;
        };
        let _open = Open::count(metrics, listener);
        let connection = Connection::new(
            self.context.clone(),
            self.kind,
            self.config.clone(),
            peer,
            self.stop.clone(),
        );
        Box::pin(connection.run(tcp)).await;
    }
}

/// An open session, counted until it is dropped.
struct Open<'a>(&'a IngressMetrics, &'static str);

impl<'a> Open<'a> {
    fn count(metrics: &'a IngressMetrics, listener: &'static str) -> Self {
        metrics.opened(listener);
        Self(metrics, listener)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.closed(self.1);
    }
}

/// Open connections by address.
#[derive(Debug, Clone)]
struct PerAddress {
    limit: usize,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A counted connection; gone when dropped.
#[derive(Debug)]
struct Place {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl PerAddress {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            open: Arc::default(),
        }
    }

    /// `None` if the address has as many as it may.
    fn take(&self, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= self.limit && !address.is_loopback() {
            return None;
        }
        *count += 1;
        Some(Place {
            open: self.open.clone(),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_its_share_and_gets_it_back() {
        let places = PerAddress::new(2);
        let (a, b) = (
            "192.0.2.1".parse().unwrap(),
            "::ffff:192.0.2.1".parse().unwrap(),
        );
        let first = places.take(a).unwrap();
        let _second = places.take(b).unwrap();
        assert!(places.take(a).is_none());
        assert!(places.take("192.0.2.2".parse().unwrap()).is_some());
        drop(first);
        assert!(places.take(b).is_some());
        let many: Vec<_> = (0..5)
            .map(|_| places.take("127.0.0.1".parse().unwrap()))
            .collect();
        assert!(many.iter().all(Option::is_some));
        drop(many);
        assert_eq!(places.open.lock().unwrap().len(), 1);
    }
}
