//! What holds for every set of objects.
use super::{super::kinds, ALL, minimal, objects, raw};
use crate::names;
use k8s_openapi::api::core::v1::PodSpec;
use kube::core::DynamicObject;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn id(o: &DynamicObject) -> String {
    let kind = o.types.as_ref().unwrap().kind.clone();
    format!("{kind}/{}", o.metadata.name.clone().unwrap())
}

fn pod_specs(objects: &[DynamicObject]) -> Vec<(String, PodSpec)> {
    let with = objects
        .iter()
        .filter(|o| o.data["spec"]["template"]["spec"].is_object());
    with.map(|o| {
        let spec = o.data["spec"]["template"]["spec"].clone();
        (id(o), serde_json::from_value(spec).unwrap())
    })
    .collect()
}

fn check_pod(name: &str, p: &PodSpec) {
    let s = p.security_context.as_ref().unwrap();
    assert_eq!(
        (s.run_as_non_root, s.run_as_user.map(|u| u > 0)),
        (Some(true), Some(true)),
        "{name}"
    );
    assert_eq!(
        s.seccomp_profile.as_ref().unwrap().type_,
        "RuntimeDefault",
        "{name}"
    );
    assert_eq!(p.automount_service_account_token, Some(false), "{name}");
    assert!(
        p.host_network.is_none() && p.host_pid.is_none() && p.host_ipc.is_none(),
        "{name}"
    );
    assert!(
        p.service_account_name.is_some() && p.termination_grace_period_seconds.is_some(),
        "{name}"
    );
    for v in p.volumes.iter().flatten() {
        assert!(v.host_path.is_none(), "{name}: {}", v.name);
    }
    for c in &p.containers {
        let s = c.security_context.as_ref().unwrap();
        assert_eq!(s.allow_privilege_escalation, Some(false), "{name}");
        assert_eq!(s.read_only_root_filesystem, Some(true), "{name}");
        assert_eq!(s.run_as_non_root, Some(true), "{name}");
        let drop = s.capabilities.as_ref().unwrap().drop.clone().unwrap();
        assert_eq!(drop, ["ALL"], "{name}");
        assert!(
            c.liveness_probe.is_some() && c.readiness_probe.is_some() && c.startup_probe.is_some(),
            "{name}"
        );
        assert!(
            c.resources.is_some() && c.image.as_ref().is_some_and(|i| !i.is_empty()),
            "{name}"
        );
        let declared: BTreeSet<&String> = p.volumes.iter().flatten().map(|v| &v.name).collect();
        for m in c.volume_mounts.iter().flatten() {
            assert!(
                declared.contains(&m.name) || m.name == "data",
                "{name}: {}",
                m.name
            );
            assert!(
                m.sub_path.is_none(),
                "{name}: a subPath does not follow changes"
            );
        }
        let ports: BTreeSet<&String> = c
            .ports
            .iter()
            .flatten()
            .filter_map(|p| p.name.as_ref())
            .collect();
        assert_eq!(
            ports.len(),
            c.ports.as_ref().unwrap().len(),
            "{name}: two ports of one name"
        );
        assert!(ports.iter().all(|p| p.len() <= 15), "{name}: {ports:?}");
    }
}

fn is_within(small: &Value, large: &Value) -> bool {
    let Value::Object(small) = small else {
        return false;
    };
    small.iter().all(|(k, v)| large.get(k) == Some(v))
}

fn check_all(objects: &[DynamicObject]) {
    let mut ids = BTreeSet::new();
    for o in objects {
        let name = id(o);
        assert!(ids.insert(name.clone()), "{name} twice");
        assert!(o.metadata.name.as_ref().unwrap().len() <= 63, "{name}");
        assert_eq!(
            o.metadata.namespace.as_deref(),
            Some("mail-system"),
            "{name}"
        );
        let owners = o.metadata.owner_references.clone().unwrap();
        assert!(
            owners.len() == 1 && owners[0].controller == Some(true),
            "{name}"
        );
        let labels = o.metadata.labels.clone().unwrap();
        assert!(
            labels.contains_key(names::CLUSTER_LABEL) && labels.values().all(|v| v.len() <= 63),
            "{name}"
        );
    }
    let pods = pod_specs(objects);
    assert_eq!(pods.len(), 2);
    for (name, p) in &pods {
        check_pod(name, p);
    }
    // Selectors find the pods that they mean, and no others.
    let templates: Vec<Value> = objects
        .iter()
        .map(|o| o.data["spec"]["template"]["metadata"]["labels"].clone())
        .filter(Value::is_object)
        .collect();
    for o in objects {
        let name = id(o);
        let spec = &o.data["spec"];
        let (selector, most) = match o.types.as_ref().unwrap().kind.as_str() {
            "Service" => (&spec["selector"], 1),
            "StatefulSet" | "Deployment" | "PodDisruptionBudget" => {
                (&spec["selector"]["matchLabels"], 1)
            }
            "NetworkPolicy" if name.ends_with("-deny") => (&spec["podSelector"]["matchLabels"], 2),
            "NetworkPolicy" => (&spec["podSelector"]["matchLabels"], 1),
            "PodMonitor" => (&spec["selector"]["matchLabels"], 2),
            _ => continue,
        };
        let found = templates.iter().filter(|t| is_within(selector, t)).count();
        assert_eq!(found, most, "{name}: {selector}");
    }
    // What a Service calls a port is one.
    for o in objects
        .iter()
        .filter(|o| o.types.as_ref().unwrap().kind == "Service")
    {
        for p in o.data["spec"]["ports"].as_array().unwrap() {
            let target = p["targetPort"].as_str().unwrap();
            let mut ports = pods
                .iter()
                .flat_map(|(_, p)| &p.containers)
                .flat_map(|c| c.ports.iter().flatten());
            assert!(
                ports.any(|c| c.name.as_deref() == Some(target)),
                "{}: {target}",
                id(o)
            );
        }
    }
}

fn some_spec() -> impl Strategy<Value = Value> {
    let expose = prop_oneof![
        Just(json!({})),
        Just(json!({"type": "NodePort", "nodePorts": {"mx": 30025}})),
        Just(json!({"type": "HostPort"})),
        Just(json!({"type": "ClusterIP"})),
        Just(json!({"clientAddress": "ProxyProtocol", "proxyProtocolFrom": ["10.0.0.0/8"]})),
    ];
    let sizes = (prop_oneof![Just(3u32), Just(5), Just(7)], 0..20u32);
    let flags = (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    );
    (expose, sizes, flags).prop_map(
        |(expose, (control, relays), (policy, monitor, manager, mx, scaled))| {
            let mut spec = minimal();
            spec["relay"]["replicas"] = json!(relays);
            spec["relay"]["listeners"] = json!({"mx": mx, "submission": !mx});
            if scaled && expose["type"] != "HostPort" {
                spec["relay"]["autoscaling"] = json!({"maxReplicas": 9});
            }
            spec["relay"]["expose"] = expose;
            spec["controlPlane"] = json!({"replicas": control});
            spec["networkPolicy"] = json!({"enabled": policy});
            spec["monitoring"] = json!({"podMonitor": monitor});
            if manager {
                spec["certificates"] =
                    json!({"issuer": "CertManager", "certManager": {"issuerRef": {"name": "i"}}});
            }
            spec
        },
    )
}

proptest! {
    #[test]
    fn every_set_of_objects_is_whole(spec in some_spec(), founded in any::<bool>()) {
        let cluster = raw(&spec);
        let all = objects(&cluster, founded);
        check_all(&all);
        prop_assert_eq!(&all, &objects(&raw(&spec), founded));
        let kinds: BTreeSet<String> = kinds(ALL).into_iter().map(|k| k.kind).collect();
        for o in &all {
            prop_assert!(kinds.contains(&o.types.as_ref().unwrap().kind));
        }
    }
}
