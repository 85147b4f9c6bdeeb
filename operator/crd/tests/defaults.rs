//! Defaults: what serde fills in is what the schema says.
#![allow(clippy::unwrap_used, reason = "tests")]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use sealane_crd::{RelayCluster, RelayClusterStatus, RelayPolicy, crds};
use serde_json::{Value, json};

fn smallest() -> Value {
    json!({
        "apiVersion": "sealane.io/v1alpha1",
        "kind": "RelayCluster",
        "metadata": {"name": "mail", "namespace": "ns"},
        "spec": {
            "image": "sealane:1",
            "relay": {"hostname": "mx.example.org", "certificate": {"secretName": "mx-tls"}},
        },
    })
}

/// As the API server does it (KEP-575): from the outside to the inside, only what is absent.
fn fill(value: &mut Value, s: &JSONSchemaProps) {
    let Value::Object(fields) = value else { return };
    for (name, child) in s.properties.iter().flatten() {
        if let (Some(default), false) = (&child.default, fields.contains_key(name)) {
            fields.insert(name.clone(), default.0.clone());
        }
        if let Some(field) = fields.get_mut(name) {
            fill(field, child);
        }
    }
}

fn schema() -> JSONSchemaProps {
    crds()[0].spec.versions[0]
        .schema
        .clone()
        .unwrap()
        .open_api_v3_schema
        .unwrap()
}

#[test]
fn the_smallest_cluster_is_complete() {
    let c: RelayCluster = serde_json::from_value(smallest()).unwrap();
    let s = &c.spec;
    assert_eq!((s.relay.replicas, s.relay.drain_seconds), (2, 60));
    assert_eq!(s.relay.body_budget, "256MiB");
    assert!(s.relay.listeners.mx && s.relay.listeners.submission && s.relay.listeners.submissions);
    let p = &s.control_plane;
    assert_eq!((p.replicas, p.copies, p.shards), (3, 3, 8));
    assert_eq!(p.storage.size, "10Gi");
    assert_eq!(
        (
            s.certificates.validity_hours,
            s.certificates.ca_validity_hours
        ),
        (720, 87_600)
    );
    assert!(s.network_policy.enabled && !s.monitoring.pod_monitor && !s.paused);
}

#[test]
fn what_the_schema_fills_in_is_what_the_types_fill_in() {
    for part in [
        "",
        "controlPlane",
        "certificates",
        "networkPolicy",
        "telemetry",
        "monitoring",
    ] {
        let mut raw = smallest();
        if !part.is_empty() {
            raw["spec"][part] = json!({});
        }
        let by_types: RelayCluster = serde_json::from_value(raw.clone()).unwrap();
        fill(&mut raw, &schema());
        let by_schema: RelayCluster = serde_json::from_value(raw.clone()).unwrap();
        assert_eq!(by_types, by_schema, "{part}");
        assert_eq!(
            serde_json::to_value(&by_types.spec).unwrap(),
            raw["spec"],
            "{part}"
        );
    }
}

#[test]
fn a_part_of_a_part_is_filled_in_too() {
    let mut raw = smallest();
    raw["spec"]["relay"]["expose"] = json!({"type": "NodePort", "nodePorts": {"mx": 30025}});
    raw["spec"]["relay"]["autoscaling"] = json!({"maxReplicas": 9});
    let by_types: RelayCluster = serde_json::from_value(raw.clone()).unwrap();
    fill(&mut raw, &schema());
    assert_eq!(serde_json::to_value(&by_types.spec).unwrap(), raw["spec"]);
    let a = by_types.spec.relay.autoscaling.unwrap();
    assert_eq!(
        (a.min_replicas, a.max_replicas, a.target_cpu_percent),
        (2, 9, 70)
    );
}

#[test]
fn resources_survive_being_written_and_read() {
    let c: RelayCluster = serde_json::from_value(smallest()).unwrap();
    let again: RelayCluster = serde_json::from_value(serde_json::to_value(&c).unwrap()).unwrap();
    assert_eq!(c, again);
    let p: RelayPolicy = serde_json::from_value(json!({
        "apiVersion": "sealane.io/v1alpha1",
        "kind": "RelayPolicy",
        "metadata": {"name": "base"},
        "spec": {
            "clusterRef": {"name": "mail"},
            "documents": [
                {"kind": "Domain", "name": "served.example", "recipients": "any",
                 "route": {"host": "mail.internal.example", "port": 25}},
                {"kind": "Submitter", "name": "app", "senders": ["*"],
                 "passwordVerifierSecretRef": {"name": "app", "key": "verifier"}},
            ],
        },
    }))
    .unwrap();
    assert_eq!(
        p.spec.documents[0].rest["route"]["host"],
        "mail.internal.example"
    );
    assert!(!p.spec.documents[1].rest.contains_key("senders"));
    let again: RelayPolicy = serde_json::from_value(serde_json::to_value(&p).unwrap()).unwrap();
    assert_eq!(p, again);
}

#[test]
fn an_empty_status_is_readable() {
    let s: RelayClusterStatus = serde_json::from_value(json!({})).unwrap();
    assert_eq!(s, RelayClusterStatus::default());
}
