//! What a cluster is made of, and its start.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::{Cluster, Namespaces, ONE_AT_A_TIME};
use crate::layout::{ControlPlane, Layout, Relay, Settings};
use crate::links::Links;
use crate::powerloss::Disk;
use crate::sink::{Sink, SinkConfig};
use crate::{ports, tools};

/// What to build.
#[derive(Debug)]
pub struct Builder {
    control_planes: usize,
    /// How many of them are there from the start.
    founders: Option<usize>,
    relays: usize,
    settings: Settings,
    pub(super) delays: String,
    pub(super) next_hop: Option<SocketAddr>,
    cluster: String,
    pub(super) bare: bool,
    disks: bool,
    links: bool,
    namespaces: bool,
    beside: bool,
}

impl Builder {
    #[must_use]
    pub fn control_planes(mut self, count: usize) -> Self {
        self.control_planes = count;
        self
    }

    /// Only so many control-plane nodes are started, and known to the relay nodes; [`Cluster::start`] starts
    /// the others later.
    #[must_use]
    pub fn founders(mut self, count: usize) -> Self {
        self.founders = Some(count);
        self
    }

    #[must_use]
    pub fn relays(mut self, count: usize) -> Self {
        self.relays = count;
        self
    }

    #[must_use]
    pub fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Does not wait until the other clusters of this process are gone.
    #[must_use]
    pub fn beside(mut self, others: bool) -> Self {
        self.beside = others;
        self
    }

    /// Retry delays of the destination `*`, as a YAML list.
    #[must_use]
    pub fn delays(mut self, delays: &str) -> Self {
        delays.clone_into(&mut self.delays);
        self
    }

    /// Route all mail here instead of to the sink.
    #[must_use]
    pub fn next_hop(mut self, address: SocketAddr) -> Self {
        self.next_hop = Some(address);
        self
    }

    /// No policy is applied: relay nodes run, but are not ready.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// Each control-plane node keeps its volume on a [`Disk`] of its own.
    #[must_use]
    pub fn disks(mut self) -> Self {
        self.disks = true;
        self
    }

    /// Control-plane nodes are reached through [`Links`].
    #[must_use]
    pub fn links(mut self) -> Self {
        self.links = true;
        self
    }

    /// Each process of the product has a network namespace of its own.
    #[must_use]
    pub fn namespaces(mut self) -> Self {
        self.namespaces = true;
        self
    }

    /// Name of the cluster in its certificates.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.cluster);
        self
    }

    /// The layout with free ports in `root`, nothing written.
    ///
    /// # Errors
    /// When binaries or ports are missing.
    pub fn layout(&self, root: &Path) -> Result<Layout> {
        self.layout_in(root, None)
    }

    fn layout_in(&self, root: &Path, namespaces: Option<&Namespaces>) -> Result<Layout> {
        let local = |name: &str| {
            let mut address = ports::free()?;
            if let Some(namespaces) = namespaces {
                address.set_ip(namespaces.address(name)?.into());
            }
            anyhow::Ok(address)
        };
        let namespace = |name: &str| namespaces.map(|all| all.path(name)).transpose();
        let control_planes = (1..=self.control_planes)
            .map(|number| {
                let name = control_plane(number);
                let advertise = if self.links {
                    let mut address = ports::free()?;
                    address.set_ip(host(namespaces));
                    Some(address)
                } else {
                    None
                };
                Ok(ControlPlane {
                    listen: local(&name)?,
                    advertise,
                    metrics: local(&name)?,
                    namespace: namespace(&name)?,
                    name,
                })
            })
            .collect::<Result<_>>()?;
        let relays = (1..=self.relays)
            .map(|number| {
                let name = relay_node(number);
                Ok(Relay {
                    mx: local(&name)?,
                    submission: local(&name)?,
                    submissions: local(&name)?,
                    metrics: local(&name)?,
                    namespace: namespace(&name)?,
                    name,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Layout {
            root: root.to_owned(),
            binaries: tools::folder()?,
            cluster: self.cluster.clone(),
            founders: self.founders.unwrap_or(self.control_planes),
            control_planes,
            relays,
            settings: self.settings.clone(),
        })
    }

    /// Starts everything, applies the demo policy and waits until mail is accepted.
    ///
    /// # Errors
    /// When that does not happen in time; the error names the folder with the logs.
    pub async fn start(self) -> Result<Cluster> {
        let began = Instant::now();
        let mut cluster = self.prepare().await?;
        let outcome = cluster.come_up(&self).await;
        if let Err(error) = outcome {
            let kept = cluster.keep_folder();
            return Err(error.context(format!(
                "cluster did not start; see {}",
                kept.join("log").display()
            )));
        }
        println!(
            "cluster up after {:.1} s in {}",
            began.elapsed().as_secs_f32(),
            cluster.layout.root.display()
        );
        Ok(cluster)
    }

    /// Writes configuration and PKI and starts the sink, but no process of the product.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub async fn prepare(&self) -> Result<Cluster> {
        let turn = match self.beside {
            true => None,
            false => Some(ONE_AT_A_TIME.lock().await),
        };
        let folder = tempfile::Builder::new().prefix("sealane-").tempdir()?;
        let namespaces = if self.namespaces {
            let nodes = (1..=self.control_planes).map(control_plane);
            let names: Vec<String> = nodes.chain((1..=self.relays).map(relay_node)).collect();
            Some(Namespaces::create(&names)?)
        } else {
            None
        };
        let layout = self.layout_in(folder.path(), namespaces.as_ref())?;
        layout.write()?;
        let mut disks = BTreeMap::new();
        if self.disks {
            for node in &layout.control_planes {
                disks.insert(node.name.clone(), Disk::mount(&layout.data(&node.name))?);
            }
        }
        let mut links = self.links.then(Links::new);
        if let Some(links) = &mut links {
            for (address, name) in namespaces.iter().flat_map(Namespaces::addresses) {
                links.lives_at(&name, address.into());
            }
            for node in &layout.control_planes {
                links
                    .open(&node.name, node.reached_at(), node.listen)
                    .await?;
            }
        }
        let anywhere = SocketAddr::from((host(namespaces.as_ref()), 0));
        let sink = Sink::start(SinkConfig::at(anywhere, folder.path().join("sink"))).await?;
        Ok(Cluster {
            layout,
            sink,
            processes: BTreeMap::new(),
            disks,
            links,
            namespaces,
            folder: Some(folder),
            passed: false,
            _turn: turn,
        })
    }
}

fn control_plane(number: usize) -> String {
    format!("control-plane-{number}")
}

fn relay_node(number: usize) -> String {
    format!("relay-node-{number}")
}

/// Where this process is, for the processes of the product.
fn host(namespaces: Option<&Namespaces>) -> IpAddr {
    namespaces
        .map_or(Ipv4Addr::LOCALHOST, Namespaces::host)
        .into()
}

impl Cluster {
    /// Three control-plane nodes and two relay nodes, unless told otherwise.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            control_planes: 3,
            founders: None,
            relays: 2,
            settings: Settings::default(),
            delays: "[1s, 1s, 2s, 5s]".to_owned(),
            next_hop: None,
            cluster: "test".to_owned(),
            bare: false,
            disks: false,
            links: false,
            namespaces: false,
            beside: false,
        }
    }
}
