//! Names of pods and Services, as ports of the loopback.
//!
//! A pod's port N is some port of 127.0.0.1 that stays the same as long as the pod's name. A Service is a listener that
//! passes connections on to pods that are ready, as kube-proxy would: who is connected stays connected.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::ports;

/// Ends every name of a pod or a Service, with the port behind it.
const ENDS: [&str; 2] = [".svc.cluster.local:", ".svc:"];

/// Namespace and name.
pub(super) type Name = (String, String);

/// A pod that takes connections.
#[derive(Debug, Clone, Default)]
pub(super) struct ReadyPod {
    pub(super) name: Name,
    pub(super) labels: BTreeMap<String, String>,
    /// By the name of the container's port.
    pub(super) ports: BTreeMap<String, u16>,
}

/// A Service, as far as connections go.
#[derive(Debug, Clone, Default)]
pub(super) struct Service {
    pub(super) selector: BTreeMap<String, String>,
    /// Port and target: a number or the name of a container's port.
    pub(super) ports: BTreeMap<u16, String>,
}

#[derive(Debug, Default)]
struct Book {
    pods: HashMap<(Name, u16), SocketAddr>,
    ready: Vec<ReadyPod>,
    services: HashMap<Name, Service>,
    open: HashMap<(Name, u16), SocketAddr>,
    tasks: Vec<JoinHandle<()>>,
    turn: AtomicUsize,
}

impl Drop for Book {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// See the module's documentation. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Directory(Arc<Mutex<Book>>);

impl Directory {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a pod's port is, whether the pod exists or not.
    ///
    /// # Errors
    /// When no port is free.
    pub fn pod(&self, namespace: &str, pod: &str, port: u16) -> Result<SocketAddr> {
        let key = ((namespace.to_owned(), pod.to_owned()), port);
        if let Some(address) = self.lock().pods.get(&key) {
            return Ok(*address);
        }
        let address = ports::free()?;
        Ok(*self.lock().pods.entry(key).or_insert(address))
    }

    /// From now on a pod's port has the same number here: for addresses that are in nobody's hands.
    pub fn keep(&self, namespace: &str, pod: &str, port: u16) {
        let key = ((namespace.to_owned(), pod.to_owned()), port);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        self.lock().pods.insert(key, address);
    }

    /// Where a Service's port is, whether the Service exists or not.
    ///
    /// # Errors
    /// When no port is free.
    pub fn service(&self, namespace: &str, service: &str, port: u16) -> Result<SocketAddr> {
        let key = ((namespace.to_owned(), service.to_owned()), port);
        if let Some(address) = self.lock().open.get(&key) {
            return Ok(*address);
        }
        let listener =
            std::net::TcpListener::bind(ports::free()?).context("a Service's listener")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = TcpListener::from_std(listener)?;
        let weak = Arc::downgrade(&self.0);
        let (name, port) = key.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Some(book) = weak.upgrade() else { return };
                let backend = Self(book).backend(&name, port);
                tokio::spawn(pass(client, backend));
            }
        });
        let mut book = self.lock();
        book.tasks.push(task);
        book.open.insert(key, address);
        Ok(address)
    }

    /// A ready pod behind a Service's port, in turn.
    fn backend(&self, service: &Name, port: u16) -> Option<SocketAddr> {
        let book = self.lock();
        let facts = book.services.get(service)?;
        let target = facts.ports.get(&port)?;
        let fits = |pod: &&ReadyPod| {
            pod.name.0 == service.0
                && facts
                    .selector
                    .iter()
                    .all(|(k, v)| pod.labels.get(k) == Some(v))
        };
        let addresses: Vec<SocketAddr> = book
            .ready
            .iter()
            .filter(fits)
            .filter_map(|pod| {
                let number = target
                    .parse()
                    .ok()
                    .or_else(|| pod.ports.get(target).copied())?;
                book.pods.get(&(pod.name.clone(), number)).copied()
            })
            .collect();
        let turn = book.turn.fetch_add(1, Ordering::Relaxed);
        addresses.get(turn.checked_rem(addresses.len())?).copied()
    }

    /// What is ready and what Services there are, from now on.
    pub(super) fn update(&self, ready: Vec<ReadyPod>, services: HashMap<Name, Service>) {
        let mut book = self.lock();
        book.ready = ready;
        book.services = services;
    }

    /// Puts addresses of the loopback in the place of names, and of the pod's own listeners.
    ///
    /// # Errors
    /// When no port is free.
    pub(super) fn rewrite(&self, text: &str, own: &Name, own_ports: &[u16]) -> Result<String> {
        let mut text = self.names(text)?;
        for port in own_ports {
            let address = self.pod(&own.0, &own.1, *port)?.to_string();
            for any in ["0.0.0.0", "[::]"] {
                text = text.replace(&format!("{any}:{port}"), &address);
            }
        }
        Ok(text)
    }

    fn names(&self, text: &str) -> Result<String> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        loop {
            let found = ENDS
                .iter()
                .filter_map(|end| Some((rest.find(end)?, *end)))
                .min();
            let Some((at, end)) = found else {
                out.push_str(rest);
                return Ok(out);
            };
            let (before, behind) = rest.split_at(at);
            let behind = behind.get(end.len()..).unwrap_or_default();
            let of_host = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
            let host = before
                .get(before.trim_end_matches(of_host).len()..)
                .unwrap_or_default();
            let digits: String = behind.chars().take_while(char::is_ascii_digit).collect();
            let parts: Vec<&str> = host.split('.').collect();
            let address = match (parts.as_slice(), digits.parse()) {
                ([pod, _, namespace], Ok(port)) => Some(self.pod(namespace, pod, port)?),
                ([service, namespace], Ok(port)) => Some(self.service(namespace, service, port)?),
                _ => None,
            };
            match address {
                Some(address) => {
                    out.push_str(before.get(..before.len() - host.len()).unwrap_or_default());
                    out.push_str(&address.to_string());
                }
                None => {
                    out.push_str(before);
                    out.push_str(end);
                    out.push_str(&digits);
                }
            }
            rest = behind.get(digits.len()..).unwrap_or_default();
        }
    }
}

/// Without a backend the connection is closed: nobody listens.
async fn pass(mut client: TcpStream, backend: Option<SocketAddr>) {
    let Some(address) = backend else { return };
    let Ok(mut server) = TcpStream::connect(address).await else {
        return;
    };
    let _delay = (client.set_nodelay(true), server.set_nodelay(true));
    let _ended = copy_bidirectional(&mut client, &mut server).await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_own_listeners_become_addresses_and_the_rest_stays() {
        let directory = Directory::default();
        let pod = directory.pod("ns", "mail-control-1", 7000).unwrap();
        let own = directory.pod("ns", "mail-control-0", 7000).unwrap();
        let service = directory
            .service("ns", "mail-control-client", 7000)
            .unwrap();
        let text = "listen: 0.0.0.0:7000\npeers: [\"mail-control-1.mail-control.ns.svc:7000\", mail-control-client.ns.svc:7000]\nx: a.svc:1 .svc: y";
        let name = ("ns".to_owned(), "mail-control-0".to_owned());
        let out = directory.rewrite(text, &name, &[7000]).unwrap();
        assert_eq!(
            out,
            format!("listen: {own}\npeers: [\"{pod}\", {service}]\nx: a.svc:1 .svc: y")
        );
    }

    #[tokio::test]
    async fn a_service_leads_to_ready_pods_that_it_selects() {
        let directory = Directory::default();
        let name = |s: &str| ("ns".to_owned(), s.to_owned());
        let label = |s: &str| BTreeMap::from([("app".to_owned(), s.to_owned())]);
        let pod = |s: &str, app: &str| ReadyPod {
            name: name(s),
            labels: label(app),
            ports: BTreeMap::from([("mx".to_owned(), 2525)]),
        };
        let service = Service {
            selector: label("relay"),
            ports: BTreeMap::from([(25, "mx".to_owned())]),
        };
        let services = HashMap::from([(name("smtp"), service)]);
        directory.update(vec![pod("a", "relay"), pod("b", "other")], services.clone());
        let a = directory.pod("ns", "a", 2525).unwrap();
        assert_eq!(directory.backend(&name("smtp"), 25), Some(a));
        assert_eq!(directory.backend(&name("smtp"), 26), None);
        directory.update(Vec::new(), services);
        assert_eq!(directory.backend(&name("smtp"), 25), None);
    }
}
