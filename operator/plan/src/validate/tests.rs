#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use serde_json::json;

fn cluster(change: impl Fn(&mut Value)) -> RelayCluster {
    let mut raw = json!({
        "apiVersion": "sealane.io/v1alpha1",
        "kind": "RelayCluster",
        "metadata": {"name": "mail", "namespace": "ns", "uid": "u-1", "generation": 4},
        "spec": {
            "image": "sealane:1",
            "relay": {"hostname": "mx.example.org", "certificate": {"secretName": "mx-tls"}},
            "controlPlane": {},
            "certificates": {},
        },
    });
    change(&mut raw);
    serde_json::from_value(raw).unwrap()
}

#[test]
fn the_smallest_cluster_is_valid() {
    let c = validate(&cluster(|_| {})).unwrap();
    assert_eq!(
        (c.names().cluster(), c.uid(), c.generation()),
        ("mail", "u-1", 4)
    );
    assert_eq!(c.body_budget(), 256 << 20);
}

#[test]
fn every_refusal_names_its_field() {
    type Change = fn(&mut Value);
    let cases: &[(Change, &str)] = &[
        (
            |c| c["metadata"]["name"] = json!("Mail.1"),
            "metadata.name: \"Mail.1\"",
        ),
        (
            |c| c["spec"]["relay"]["hostname"] = json!("mx"),
            "spec.relay.hostname: ",
        ),
        (
            |c| c["spec"]["relay"]["hostname"] = json!("mx..org"),
            "spec.relay.hostname: ",
        ),
        (
            |c| c["spec"]["relay"]["hostname"] = json!("[192.0.2.1]"),
            "spec.relay.hostname: ",
        ),
        (
            |c| {
                c["spec"]["relay"]["listeners"] =
                    json!({"mx": false, "submission": false, "submissions": false})
            },
            "spec.relay.listeners: ",
        ),
        (
            |c| c["spec"]["relay"]["expose"] = json!({"clientAddress": "Lost"}),
            "an open relay",
        ),
        (
            |c| c["spec"]["relay"]["expose"] = json!({"clientAddress": "ProxyProtocol"}),
            "spec.relay.expose.proxyProtocolFrom: is needed",
        ),
        (
            |c| c["spec"]["relay"]["expose"] = json!({"proxyProtocolFrom": ["10.0.0.0/8"]}),
            "spec.relay.expose.proxyProtocolFrom: is needed",
        ),
        (
            |c| {
                c["spec"]["relay"]["expose"] =
                    json!({"clientAddress": "ProxyProtocol", "proxyProtocolFrom": ["10.0.0.0/33"]})
            },
            "\"10.0.0.0/33\" is no range",
        ),
        (
            |c| {
                c["spec"]["relay"]["expose"] =
                    json!({"type": "NodePort", "nodePorts": {"mx": 30025, "submission": 30025}})
            },
            "spec.relay.expose.nodePorts: ",
        ),
        (
            |c| c["spec"]["relay"]["bodyBudget"] = json!("1KiB"),
            "spec.relay.bodyBudget: \"1KiB\"",
        ),
        (
            |c| c["spec"]["relay"]["bodyBudget"] = json!("2GiB"),
            "spec.relay.resources.limits.memory: needs at least bodyBudget and 256MiB, that is 2304MiB",
        ),
        (
            |c| c["spec"]["relay"]["resources"] = json!({"limits": {"memory": "much"}}),
            "spec.relay.resources.limits.memory: \"much\"",
        ),
        (
            |c| {
                c["spec"]["relay"]["autoscaling"] = json!({"maxReplicas": 5});
                c["spec"]["relay"]["resources"] = json!({});
            },
            "spec.relay.resources.requests.cpu: ",
        ),
        (
            |c| c["spec"]["relay"]["autoscaling"] = json!({"minReplicas": 6, "maxReplicas": 5}),
            "spec.relay.autoscaling.minReplicas: ",
        ),
        (
            |c| c["spec"]["relay"]["config"] = json!({"hostname": "x"}),
            "spec.relay.config.hostname: is set by the operator",
        ),
        (
            |c| c["spec"]["controlPlane"]["replicas"] = json!(4),
            "spec.controlPlane.replicas: ",
        ),
        (
            |c| c["spec"]["controlPlane"]["copies"] = json!(5),
            "spec.controlPlane.copies: each copy",
        ),
        (
            |c| c["spec"]["controlPlane"]["shards"] = json!(0),
            "spec.controlPlane.shards: ",
        ),
        (
            |c| c["spec"]["controlPlane"]["storage"] = json!({"size": "10GiB"}),
            "spec.controlPlane.storage.size: ",
        ),
        (
            |c| c["spec"]["controlPlane"]["config"] = json!({"cluster": {"bootstrap": true}}),
            "spec.controlPlane.config.cluster: ",
        ),
        (
            |c| c["spec"]["controlPlane"]["resources"] = json!({"limits": {"memory": "64Mi"}}),
            "spec.controlPlane.resources.limits.memory: ",
        ),
        (
            |c| c["spec"]["certificates"]["issuer"] = json!("CertManager"),
            "spec.certificates.certManager: ",
        ),
        (
            |c| c["spec"]["certificates"] = json!({"validityHours": 720, "caValidityHours": 2000}),
            "spec.certificates.caValidityHours: ",
        ),
    ];
    for (change, expected) in cases {
        let errors = validate(&cluster(change)).unwrap_err();
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert!(
            all.iter().any(|e| e.contains(expected)),
            "{all:?} does not contain {expected}"
        );
    }
}

#[test]
fn other_fields_of_the_configuration_are_taken() {
    let c = cluster(|c| {
        c["spec"]["relay"]["config"] =
            json!({"maxMessageSize": "32MiB", "sessions": {"recipients": 200}});
        c["spec"]["controlPlane"]["config"] = json!({"lease": "30s"});
    });
    validate(&c).unwrap();
}
