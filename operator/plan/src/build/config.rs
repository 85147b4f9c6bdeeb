//! Configuration files of both processes (docs/configuration.md), in ConfigMaps.
use super::{BuildInput, meta, relay::listeners};
use crate::names::{CONTROL, GRPC_PORT, METRICS_PORT, RELAY};
use k8s_openapi::api::core::v1::ConfigMap;
use sealane_crd::{ClientAddress, Telemetry};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// In the image.
pub(super) const CONTROL_PROGRAM: &str = "/usr/local/bin/control-plane";
/// In the image.
pub(super) const RELAY_PROGRAM: &str = "/usr/local/bin/relay-node";
/// The ConfigMap.
pub(super) const FOLDER: &str = "/etc/sealane/config";
/// The Secret with the workload's identity.
pub(super) const IDENTITY: &str = "/etc/sealane/identity";
/// The Secret with the public certificate.
pub(super) const CERTIFICATE: &str = "/etc/sealane/certificate";
/// The volume. The process makes a folder in it: a new file system has a `lost+found`.
pub(super) const VOLUME: &str = "/var/lib/sealane";
/// Name of the relay nodes' file.
const RELAY_KEY: &str = "relay-node.yaml";

pub(super) fn relay_file() -> String {
    format!("{FOLDER}/{RELAY_KEY}")
}

/// One file for each ordinal.
pub(super) fn control_map(i: &BuildInput<'_>) -> ConfigMap {
    let n = i.cluster.names();
    let files = (0..i.ordinals).map(|ordinal| {
        let key = format!("{}.yaml", n.control_pod(ordinal));
        (key, yaml(&control(i, ordinal)))
    });
    ConfigMap {
        metadata: meta(i.cluster, n.control_config(), CONTROL),
        data: Some(files.collect()),
        ..ConfigMap::default()
    }
}

pub(super) fn relay_map(i: &BuildInput<'_>) -> ConfigMap {
    let n = i.cluster.names();
    ConfigMap {
        metadata: meta(i.cluster, n.relay_config(), RELAY),
        data: Some(BTreeMap::from([(RELAY_KEY.to_owned(), yaml(&relay(i)))])),
        ..ConfigMap::default()
    }
}

/// Of what a control-plane node must be restarted for. Who its peers are, and whether it may found the cluster, only matters
/// while its volume is empty.
pub(super) fn control_digest(i: &BuildInput<'_>) -> String {
    let mut common = control(i, 0);
    for of_one in ["name", "advertise"] {
        common.remove(of_one);
    }
    if let Some(Value::Object(cluster)) = common.get_mut("cluster") {
        for of_the_beginning in ["bootstrap", "peers"] {
            cluster.remove(of_the_beginning);
        }
    }
    if let Some(Value::Object(identity)) = common.get_mut("identity") {
        identity.clear();
    }
    digest(&common)
}

pub(super) fn relay_digest(i: &BuildInput<'_>) -> String {
    digest(&relay(i))
}

fn digest(config: &Map<String, Value>) -> String {
    let text = Value::Object(config.clone()).to_string();
    let hash = Sha256::digest(text.as_bytes());
    data_encoding::HEXLOWER.encode(&hash[..16])
}

fn yaml(config: &Map<String, Value>) -> String {
    serde_saphyr::to_string(config).expect("a map of JSON values is YAML")
}

fn any(port: u16) -> String {
    format!("0.0.0.0:{port}")
}

fn telemetry(t: &Telemetry) -> Value {
    let mut all = Map::new();
    all.insert("logFormat".to_owned(), json!(t.log_format));
    if let Some(endpoint) = &t.otlp_endpoint {
        all.insert("otlpEndpoint".to_owned(), json!(endpoint));
    }
    if let Some(filter) = &t.log_filter {
        all.insert("logFilter".to_owned(), json!(filter));
    }
    Value::Object(all)
}

fn object(fields: Value, more: &BTreeMap<String, Value>) -> Map<String, Value> {
    // What is ours wins; `validate` refuses a spec that says it too.
    let mut all: Map<String, Value> = more.clone().into_iter().collect();
    if let Value::Object(ours) = fields {
        all.extend(ours);
    }
    all
}

/// Of the control-plane node `ordinal`.
pub(super) fn control(i: &BuildInput<'_>, ordinal: u32) -> Map<String, Value> {
    let n = i.cluster.names();
    let s = i.cluster.spec();
    let name = n.control_pod(ordinal);
    let mut peers: Vec<String> = (0..i.ordinals)
        .filter(|o| *o != ordinal)
        .map(|o| n.control_address(o))
        .collect();
    if peers.is_empty() && i.founded {
        // A node that founds no cluster must have somebody to ask. An only one whose volume is lost gets no answer, and waits
        // for a person instead of founding an empty cluster over what was there.
        peers.push(n.control_client_address());
    }
    object(
        json!({
            "name": name,
            "listen": any(GRPC_PORT),
            "advertise": n.control_address(ordinal),
            "dataDir": format!("{VOLUME}/data"),
            "identity": {
                "certificate": format!("{IDENTITY}/{name}.crt"),
                "key": format!("{IDENTITY}/{name}.key"),
                "ca": format!("{IDENTITY}/ca.crt"),
            },
            "cluster": {
                "bootstrap": ordinal == 0 && !i.founded,
                "peers": peers,
                "shards": s.control_plane.shards,
                "replicas": s.control_plane.copies,
            },
            "hostname": s.relay.hostname,
            "metricsListen": any(METRICS_PORT),
            "telemetry": telemetry(&s.telemetry),
        }),
        &s.control_plane.config,
    )
}

/// Of every relay node; the environment variable SEALANE_NAME takes the place of `name`.
pub(super) fn relay(i: &BuildInput<'_>) -> Map<String, Value> {
    let n = i.cluster.names();
    let s = i.cluster.spec();
    let r = &s.relay;
    let on: Map<String, Value> = listeners(r)
        .into_iter()
        .map(|(name, number, _)| (name.to_owned(), json!(any(number))))
        .collect();
    // As many as there are copies never go: the list is the same whatever the control plane's size, and the others are
    // learnt from these.
    let control: Vec<String> = (0..s.control_plane.copies)
        .map(|o| n.control_address(o))
        .collect();
    let mut ours = json!({
        "name": n.relay(),
        "hostname": r.hostname,
        "listeners": on,
        "certificate": {
            "certificate": format!("{CERTIFICATE}/tls.crt"),
            "key": format!("{CERTIFICATE}/tls.key"),
        },
        "identity": {
            "certificate": format!("{IDENTITY}/tls.crt"),
            "key": format!("{IDENTITY}/tls.key"),
            "ca": format!("{IDENTITY}/ca.crt"),
        },
        "controlPlane": control,
        "bodyBudget": r.body_budget,
        "drainTimeout": format!("{}s", r.drain_seconds),
        "metricsListen": any(METRICS_PORT),
        "telemetry": telemetry(&s.telemetry),
    });
    if r.expose.client_address == ClientAddress::ProxyProtocol {
        ours["listeners"]["proxyProtocolFrom"] = json!(r.expose.proxy_protocol_from);
    }
    object(ours, &r.config)
}
