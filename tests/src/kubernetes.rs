//! A Kubernetes for one test: a real API server and real controllers, and a kubelet that starts processes.
//!
//! ```text
//!   helm, kubectl, operator ──▶ kube-apiserver ──▶ etcd
//!                                    ▲   ▲
//!        kube-controller-manager ────┘   └──── Kubelet: binds pods and volumes, starts the real binaries,
//!   (StatefulSets, Deployments, garbage)       probes them, stops them, says so in the pods' status
//! ```
//!
//! [`Cluster::start`] starts the servers on free ports. [`Kubelet::start`] makes pods run: a container is a process of
//! `target/`, a volume is a folder, a Secret is files that follow it as they would in a pod, a name that ends in `.svc` is
//! a port of the loopback. What a pod may not do is not enforced; what the API server checks is checked.
//!
//! The programs come from `make test-k8s` ([`assets`]). No crate of the product is used here either.

mod addresses;
mod api;
pub mod assets;
pub mod cert_manager;
mod cluster;
pub mod golden;
mod kubelet;
pub mod lint;
pub mod mail;
pub mod manifests;
pub mod membership;
mod pki;

pub use addresses::Directory;
pub use api::{Api, Refused};
pub use cluster::Cluster;
pub use kubelet::{Kubelet, Scope};
