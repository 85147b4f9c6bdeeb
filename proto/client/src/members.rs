//! The addresses of the control plane.
use anyhow::Context;
use sealane_runtime::{
    grpc,
    identity::{self, INSTANCE_KEY, Identity},
};
use sealane_wire::v1;
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

/// Makes a lazily connecting channel to an address (host:port).
pub type Dial = Arc<dyn Fn(&str) -> anyhow::Result<Channel> + Send + Sync>;

/// Dials with mutual TLS.
pub fn mtls(identity: Identity) -> Dial {
    Arc::new(move |address| grpc::channel(address, &identity))
}

/// A channel on which every call says who we are beside our certificate.
pub type Line = InterceptedService<Channel, Caller>;

/// Says which of several relays with the same certificate this one is, if it has a name of its own.
#[derive(Debug, Clone, Default)]
pub struct Caller(Option<MetadataValue<Ascii>>);

impl Interceptor for Caller {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(name) = &self.0 {
            request.metadata_mut().insert(INSTANCE_KEY, name.clone());
        }
        Ok(request)
    }
}

/// Where the control plane is: the configured addresses, and those that its nodes report.
#[derive(Clone)]
pub struct Members {
    seeds: Arc<[String]>,
    all: watch::Sender<Arc<[String]>>,
    /// Cluster and revision of the list that was taken over last.
    latest: Arc<Mutex<(String, u64)>>,
    dial: Dial,
    caller: Caller,
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
            latest: Arc::default(),
            dial,
            caller: Caller::default(),
        }
    }
    /// From here on every call says this name: several relays may have one certificate, not one name.
    pub fn called(mut self, name: &str) -> anyhow::Result<Self> {
        identity::check_instance(name).map_err(|e| anyhow::anyhow!("{name:?} {e}"))?;
        let value = name
            .parse::<MetadataValue<Ascii>>()
            .with_context(|| format!("{name:?}"))?;
        self.caller = Caller(Some(value));
        Ok(self)
    }
    /// A channel to one of them.
    pub fn dial(&self, address: &str) -> anyhow::Result<Line> {
        let channel = (self.dial)(address)?;
        Ok(InterceptedService::new(channel, self.caller.clone()))
    }
    /// Every address known now, the configured ones first.
    pub fn addresses(&self) -> Arc<[String]> {
        self.all.borrow().clone()
    }
    /// Follows the addresses.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<[String]>> {
        self.all.subscribe()
    }
    /// Takes over what a node reports: who joined is reached, who was removed is not tried again (unless
    /// it is configured). A node that lags behind does not take us back.
    pub(crate) fn learn(&self, hello: &v1::ServerHello) {
        let reported = &hello.control_addresses;
        {
            let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
            let old = latest.0 == hello.cluster_id && hello.registry_revision < latest.1;
            if old || reported.is_empty() {
                return;
            }
            *latest = (hello.cluster_id.clone(), hello.registry_revision);
        }
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn hello(registry_revision: u64, addresses: &[&str]) -> v1::ServerHello {
        v1::ServerHello {
            registry_revision,
            control_addresses: addresses.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn every_call_says_the_name_if_there_is_one() {
        let members = Members::new(vec!["a:1".into()], Arc::new(|_| anyhow::bail!("no")));
        let said = |members: &Members| {
            let request = members.caller.clone().call(Request::new(())).unwrap();
            let name = request.metadata().get(INSTANCE_KEY).cloned();
            name.map(|n| n.to_str().unwrap().to_owned())
        };
        assert_eq!(said(&members), None);
        let members = members.called("mail-relay-5d7f-x2").unwrap();
        assert_eq!(said(&members), Some("mail-relay-5d7f-x2".into()));
        assert!(members.called("a b").is_err());
    }

    #[test]
    fn growth_and_shrinkage_are_followed_and_a_lagging_node_is_not() {
        let members = Members::new(vec!["a:1".into()], Arc::new(|_| anyhow::bail!("no")));
        members.learn(&hello(5, &["a:1", "b:1", "c:1"]));
        assert_eq!(*members.addresses(), ["a:1", "b:1", "c:1"]);
        members.learn(&hello(9, &["b:1", "c:1", "d:1"]));
        let now = ["a:1", "b:1", "c:1", "d:1"];
        assert_eq!(*members.addresses(), now, "the configured one stays");
        members.learn(&hello(7, &["a:1", "b:1"]));
        assert_eq!(*members.addresses(), now);
        members.learn(&hello(11, &["c:1", "d:1"]));
        assert_eq!(*members.addresses(), ["a:1", "c:1", "d:1"]);
        members.learn(&hello(12, &[]));
        assert_eq!(members.addresses().len(), 3, "nobody is not a list");
    }
}
