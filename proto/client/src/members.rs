//! The addresses of the control plane.
use sealane_runtime::{grpc, identity::Identity};
use std::{fmt, sync::Arc};
use tokio::sync::watch;
use tonic::transport::Channel;

/// Makes a lazily connecting channel to an address (host:port).
pub type Dial = Arc<dyn Fn(&str) -> anyhow::Result<Channel> + Send + Sync>;

/// Dials with mutual TLS.
pub fn mtls(identity: Identity) -> Dial {
    Arc::new(move |address| grpc::channel(address, &identity))
}

/// Where the control plane is: the configured addresses, and those that its nodes report.
#[derive(Clone)]
pub struct Members {
    seeds: Arc<[String]>,
    all: watch::Sender<Arc<[String]>>,
    dial: Dial,
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members")
            .field("all", &*self.all.borrow())
            .finish_non_exhaustive()
    }
}

impl Members {
    /// `seeds` stay for good; at least one of them must lead to a living node at start.
    pub fn new(seeds: Vec<String>, dial: Dial) -> Self {
        let seeds: Arc<[String]> = seeds.into();
        Self {
            all: watch::Sender::new(seeds.clone()),
            seeds,
            dial,
        }
    }
    /// A channel to one of them.
    pub fn dial(&self, address: &str) -> anyhow::Result<Channel> {
        (self.dial)(address)
    }
    /// Every address known now, the configured ones first.
    pub fn addresses(&self) -> Arc<[String]> {
        self.all.borrow().clone()
    }
    /// Follows the addresses.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<[String]>> {
        self.all.subscribe()
    }
    /// Takes over what a node reports.
    pub(crate) fn learn(&self, reported: &[String]) {
        let mut all: Vec<String> = self.seeds.to_vec();
        for address in reported {
            if !address.is_empty() && !all.contains(address) {
                all.push(address.clone());
            }
        }
        self.all.send_if_modified(|known| {
            let changed = known.len() != all.len() || all.iter().any(|a| !known.contains(a));
            if changed {
                *known = all.into();
            }
            changed
        });
    }
}
