//! Golden files of whole sets of objects, and what holds for every set.
#![allow(clippy::unwrap_used, reason = "tests")]
mod configs;
mod whole;

use super::*;
use crate::validate;
use sealane_crd::RelayCluster;
use serde_json::{Value, json};

fn raw(spec: &Value) -> ValidCluster {
    let c: RelayCluster = serde_json::from_value(json!({
        "apiVersion": "sealane.io/v1alpha1",
        "kind": "RelayCluster",
        "metadata": {"name": "mail", "namespace": "mail-system", "uid": "0b7c9f8e-1111-2222-3333-444455556666", "generation": 1},
        "spec": spec,
    }))
    .unwrap();
    validate(&c).unwrap()
}

fn minimal() -> Value {
    json!({
        "image": "registry.example/sealane:1.0.0",
        "relay": {"hostname": "mx.example.org", "certificate": {"secretName": "mx-tls"}},
    })
}

fn full() -> Value {
    json!({
        "image": "registry.example/sealane:1.0.0",
        "imagePullPolicy": "Always",
        "imagePullSecrets": [{"name": "registry"}],
        "relay": {
            "replicas": 4,
            "hostname": "mx.example.org",
            "listeners": {"submission": false},
            "expose": {
                "type": "LoadBalancer",
                "clientAddress": "ProxyProtocol",
                "proxyProtocolFrom": ["10.0.0.0/8"],
                "annotations": {"lb.example/proxy-protocol": "true"},
                "loadBalancerClass": "lb.example/tcp",
                "loadBalancerSourceRanges": ["0.0.0.0/0"],
                "nodePorts": {"mx": 30025},
            },
            "certificate": {"secretName": "mx-tls"},
            "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
            "bodyBudget": "1GiB",
            "drainSeconds": 120,
            "autoscaling": {"minReplicas": 3, "maxReplicas": 12, "targetCPUPercent": 60},
            "nodeSelector": {"role": "edge"},
            "tolerations": [{"key": "edge", "operator": "Exists", "effect": "NoSchedule"}],
            "priorityClassName": "mail",
            "config": {"maxMessageSize": "32MiB", "sessions": {"recipients": 200}},
        },
        "controlPlane": {
            "replicas": 5,
            "shards": 16,
            "copies": 3,
            "storage": {"size": "100Gi", "storageClassName": "fast"},
            "onScaleDown": "Retain",
            "resources": {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "8Gi"}},
            "nodeSelector": {"disk": "nvme"},
            "tolerations": [{"key": "disk", "operator": "Exists"}],
            "priorityClassName": "queue",
            "config": {"lease": "90s", "raft": {"heartbeat": "200ms"}},
        },
        "certificates": {
            "issuer": "CertManager",
            "certManager": {"issuerRef": {"name": "sealane"}},
            "validityHours": 240,
        },
        "networkPolicy": {
            "operatorNamespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "sealane-system"}},
            "metricsFrom": [{"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}],
        },
        "monitoring": {"podMonitor": true},
        "telemetry": {
            "otlpEndpoint": "http://otel-collector.monitoring:4317",
            "logFormat": "text",
            "logFilter": "info,sealane=debug",
        },
    })
}

const ALL: Apis = Apis {
    pod_monitor: true,
    cert_manager: true,
};

fn objects(cluster: &ValidCluster, founded: bool) -> Vec<DynamicObject> {
    let spec = cluster.spec();
    let replicas = spec.control_plane.replicas;
    build(&BuildInput {
        cluster,
        control_replicas: replicas,
        ordinals: replicas,
        storage: &spec.control_plane.storage.size,
        relay_image: &spec.image,
        founded,
        apis: ALL,
    })
    .objects()
}

fn yaml(objects: &[DynamicObject]) -> String {
    let texts = objects.iter().map(|o| serde_saphyr::to_string(o).unwrap());
    texts.collect::<Vec<_>>().join("---\n")
}

#[test]
fn a_minimal_cluster() {
    insta::assert_snapshot!("minimal", yaml(&objects(&raw(&minimal()), false)));
}

#[test]
fn a_full_cluster() {
    insta::assert_snapshot!("full", yaml(&objects(&raw(&full()), true)));
}

#[test]
fn what_restarts_every_node_is_only_what_must() {
    let template = |cluster: &ValidCluster, ordinals, founded| {
        let input = BuildInput {
            cluster,
            control_replicas: ordinals,
            ordinals,
            storage: "10Gi",
            relay_image: "i",
            founded,
            apis: Apis::default(),
        };
        build(&input).stateful_set.spec.unwrap().template
    };
    let cluster = raw(&minimal());
    let first = template(&cluster, 3, false);
    assert_eq!(
        first,
        template(&cluster, 5, true),
        "size, and whether it is founded"
    );
    for (path, value) in [
        ("/relay/replicas", json!(9)),
        ("/controlPlane", json!({"replicas": 5})),
        ("/controlPlane", json!({"onScaleDown": "Retain"})),
    ] {
        let mut spec = minimal();
        match path {
            "/relay/replicas" => spec["relay"]["replicas"] = value,
            _ => spec["controlPlane"] = value,
        }
        assert_eq!(first, template(&raw(&spec), 3, false), "{path}");
    }
    let mut spec = minimal();
    spec["controlPlane"] = json!({"config": {"lease": "30s"}});
    assert_ne!(
        first,
        template(&raw(&spec), 3, false),
        "it is read at start only"
    );
}

#[test]
fn relay_nodes_are_not_restarted_when_the_control_plane_grows() {
    let template = |replicas: u32| {
        let mut spec = minimal();
        spec["controlPlane"] = json!({"replicas": replicas});
        let cluster = raw(&spec);
        let input = BuildInput {
            cluster: &cluster,
            control_replicas: replicas,
            ordinals: replicas,
            storage: "10Gi",
            relay_image: "i",
            founded: true,
            apis: Apis::default(),
        };
        build(&input).deployment.spec.unwrap().template
    };
    assert_eq!(template(3), template(7));
}

#[test]
fn kept_secrets_have_no_owner() {
    let cluster = raw(&minimal());
    let kept = secret_meta(&cluster, "mail-ca".to_owned(), true);
    assert!(kept.owner_references.is_none());
    assert_eq!(kept.labels.unwrap()[names::LABEL_KEEP], "true");
    assert!(
        secret_meta(&cluster, "x".to_owned(), false)
            .owner_references
            .is_some()
    );
}
