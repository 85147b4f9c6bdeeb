//! What the API server's rules cannot say.
use crate::{Names, quantity};
use k8s_openapi::api::core::v1::ResourceRequirements;
use sealane_crd::{ClientAddress, ExposeType, Issuer, RelayCluster, RelayClusterSpec};
use sealane_types::DomainName;
use sealane_yaml::ByteSize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Fields of the control plane's configuration that the operator sets.
pub const CONTROL_OWNED: &[&str] = &[
    "name",
    "listen",
    "advertise",
    "dataDir",
    "identity",
    "cluster",
    "hostname",
    "metricsListen",
    "telemetry",
];
/// Fields of relay nodes' configuration that the operator sets.
pub const RELAY_OWNED: &[&str] = &[
    "name",
    "hostname",
    "listeners",
    "certificate",
    "identity",
    "controlPlane",
    "bodyBudget",
    "drainTimeout",
    "metricsListen",
    "telemetry",
];
/// Beside the bodies a relay node needs this much, in octets.
const BESIDES_BODIES: u64 = 256 << 20;
/// Least memory of a control-plane node, in octets: RocksDB's memtables and blocks, and bodies on their way.
const CONTROL_MEMORY: u64 = 512 << 20;

/// A wrong field, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SpecError {
    /// Path of the field, from `spec`.
    pub field: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

/// A RelayCluster that was checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidCluster {
    names: Names,
    uid: String,
    generation: i64,
    spec: RelayClusterSpec,
    body_budget: u64,
}

impl ValidCluster {
    /// Names of its objects.
    pub fn names(&self) -> &Names {
        &self.names
    }
    /// `metadata.uid`, for owner references.
    pub fn uid(&self) -> &str {
        &self.uid
    }
    /// `metadata.generation`.
    pub fn generation(&self) -> i64 {
        self.generation
    }
    /// Its spec.
    pub fn spec(&self) -> &RelayClusterSpec {
        &self.spec
    }
    /// `spec.relay.bodyBudget` in octets.
    pub fn body_budget(&self) -> u64 {
        self.body_budget
    }
}

#[derive(Debug, Default)]
struct Errors(Vec<SpecError>);

impl Errors {
    fn check(&mut self, ok: bool, field: &str, reason: impl Into<String>) {
        if !ok {
            self.0.push(SpecError {
                field: format!("spec.{field}"),
                reason: reason.into(),
            });
        }
    }
}

/// Checks everything, also what the API server checked when the resource was written: the rules may have been others then.
pub fn validate(c: &RelayCluster) -> Result<ValidCluster, Vec<SpecError>> {
    let mut e = Errors::default();
    let meta = &c.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let namespace = meta.namespace.clone().unwrap_or_default();
    if !is_label(&name) || name.len() > 40 {
        e.0.push(SpecError {
            field: "metadata.name".to_owned(),
            reason: format!(
                "{name:?}: at most 40 characters, a-z, 0-9 and '-', beginning with a letter"
            ),
        });
    }
    let uid = meta.uid.clone().unwrap_or_default();
    let body_budget = relay(&mut e, c);
    control(&mut e, c);
    certificates(&mut e, c);
    if !e.0.is_empty() {
        return Err(e.0);
    }
    Ok(ValidCluster {
        names: Names::new(&namespace, &name),
        uid,
        generation: meta.generation.unwrap_or(0),
        spec: c.spec.clone(),
        body_budget,
    })
}

fn is_label(s: &str) -> bool {
    let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    s.starts_with(|c: char| c.is_ascii_lowercase()) && !s.ends_with('-') && s.chars().all(ok)
}

fn relay(e: &mut Errors, c: &RelayCluster) -> u64 {
    let r = &c.spec.relay;
    match DomainName::parse(&r.hostname) {
        Ok(d) => e.check(
            d.is_fully_qualified() && d.literal().is_none(),
            "relay.hostname",
            "needs a fully qualified name such as mx.example.org",
        ),
        Err(why) => e.check(false, "relay.hostname", why.to_string()),
    }
    let l = &r.listeners;
    e.check(
        l.mx || l.submission || l.submissions,
        "relay.listeners",
        "needs at least one of mx, submission and submissions",
    );
    let x = &r.expose;
    e.check(
        !(l.mx && x.client_address == ClientAddress::Lost),
        "relay.expose.clientAddress",
        "Lost is not possible with listeners.mx: every client would have an address of the cluster, so SPF and limits per address would judge the wrong one, and a rule that trusts inside addresses would be an open relay",
    );
    e.check(
        (x.client_address == ClientAddress::ProxyProtocol) != x.proxy_protocol_from.is_empty(),
        "relay.expose.proxyProtocolFrom",
        "is needed with clientAddress ProxyProtocol, and only then: the addresses that the load balancer connects from",
    );
    for (field, list) in [
        ("relay.expose.proxyProtocolFrom", &x.proxy_protocol_from),
        (
            "relay.expose.loadBalancerSourceRanges",
            &x.load_balancer_source_ranges,
        ),
    ] {
        for range in list {
            e.check(
                is_cidr(range),
                field,
                format!("{range:?} is no range such as 10.0.0.0/8"),
            );
        }
    }
    let taken = [
        x.node_ports.and_then(|p| p.mx),
        x.node_ports.and_then(|p| p.submission),
        x.node_ports.and_then(|p| p.submissions),
    ];
    let mut ports: Vec<u16> = taken.into_iter().flatten().collect();
    let before = ports.len();
    ports.sort_unstable();
    ports.dedup();
    e.check(
        ports.len() == before,
        "relay.expose.nodePorts",
        "the same port twice",
    );
    let body_budget = r.body_budget.parse::<ByteSize>().map_or(0, |b| b.0);
    e.check(
        (8 << 20..=1 << 40).contains(&body_budget),
        "relay.bodyBudget",
        format!("{:?}: write 8MiB to 1024GiB", r.body_budget),
    );
    if let Some(limit) = memory_limit(e, "relay", &r.resources) {
        let needed = body_budget.saturating_add(BESIDES_BODIES);
        e.check(
            limit >= needed,
            "relay.resources.limits.memory",
            format!(
                "needs at least bodyBudget and {}MiB, that is {}MiB: with less the kernel kills relay nodes under load",
                BESIDES_BODIES >> 20,
                needed.div_ceil(1 << 20)
            ),
        );
    }
    if let Some(a) = &r.autoscaling {
        e.check(
            (1..=a.max_replicas).contains(&a.min_replicas),
            "relay.autoscaling.minReplicas",
            "must be 1 to maxReplicas",
        );
        let cpu = r.resources.requests.as_ref().and_then(|q| q.get("cpu"));
        e.check(
            cpu.is_some(),
            "relay.resources.requests.cpu",
            "autoscaling by CPU needs it: the target is a part of it",
        );
        e.check(
            x.type_ != ExposeType::HostPort,
            "relay.autoscaling",
            "is not possible with expose.type HostPort: each node of Kubernetes takes one relay node",
        );
    }
    owned(e, "relay.config", &r.config, RELAY_OWNED);
    body_budget
}

fn control(e: &mut Errors, c: &RelayCluster) {
    let p = &c.spec.control_plane;
    e.check(
        matches!(p.replicas, 1 | 3 | 5 | 7),
        "controlPlane.replicas",
        "must be 1, 3, 5 or 7: an even number of nodes survives no more failures than one less",
    );
    e.check(
        matches!(p.copies, 1 | 3 | 5),
        "controlPlane.copies",
        "must be 1, 3 or 5: an even number of copies survives no more failures than one less",
    );
    e.check(
        p.copies <= p.replicas,
        "controlPlane.copies",
        "each copy needs a node of its own: at most as many as replicas",
    );
    e.check(
        (1..=64).contains(&p.shards),
        "controlPlane.shards",
        "must be 1 to 64",
    );
    let size = quantity::octets(&p.storage.size);
    e.check(
        size.is_some_and(|n| n >= 1 << 30),
        "controlPlane.storage.size",
        format!("{:?}: write at least 1Gi", p.storage.size),
    );
    if let Some(limit) = memory_limit(e, "controlPlane", &p.resources) {
        e.check(
            limit >= CONTROL_MEMORY,
            "controlPlane.resources.limits.memory",
            format!("needs at least {}Mi", CONTROL_MEMORY >> 20),
        );
    }
    owned(e, "controlPlane.config", &p.config, CONTROL_OWNED);
}

fn certificates(e: &mut Errors, c: &RelayCluster) {
    let s = &c.spec.certificates;
    e.check(
        (s.issuer == Issuer::CertManager) == s.cert_manager.is_some(),
        "certificates.certManager",
        "is needed with issuer CertManager, and only then",
    );
    e.check(
        s.validity_hours >= 24,
        "certificates.validityHours",
        "must be at least 24",
    );
    e.check(
        s.ca_validity_hours / 3 >= s.validity_hours,
        "certificates.caValidityHours",
        "must be at least three times validityHours: a CA is replaced after two thirds of its life, and what it signed until then must end before it does",
    );
}

/// `resources.limits.memory` in octets, if there is one.
fn memory_limit(e: &mut Errors, part: &str, r: &ResourceRequirements) -> Option<u64> {
    let limit = r.limits.as_ref()?.get("memory")?;
    let octets = quantity::octets(&limit.0);
    e.check(
        octets.is_some(),
        &format!("{part}.resources.limits.memory"),
        format!("{:?} is no amount such as 1Gi", limit.0),
    );
    octets
}

fn owned(e: &mut Errors, field: &str, config: &BTreeMap<String, Value>, refused: &[&str]) {
    for key in config.keys() {
        e.check(
            !refused.contains(&key.as_str()),
            &format!("{field}.{key}"),
            "is set by the operator, from other fields of the RelayCluster: remove it here",
        );
    }
}

/// Address and length of a prefix.
fn is_cidr(s: &str) -> bool {
    let Some((address, length)) = s.split_once('/') else {
        return false;
    };
    let Ok(length) = length.parse::<u8>() else {
        return false;
    };
    match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => length <= 32,
        Ok(std::net::IpAddr::V6(_)) => length <= 128,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests;
