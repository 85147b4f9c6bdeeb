//! NetworkPolicies: nothing may pass, but for what is listed here. Probes come from the node, which always may.
use super::{meta, relay::listeners, selector, selector_labels};
use crate::{
    ValidCluster,
    names::{CONTROL, GRPC_PORT, LABEL_COMPONENT, METRICS_PORT, OPERATOR_POD, RELAY},
};
use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use std::collections::BTreeMap;

pub(super) fn all(c: &ValidCluster) -> Vec<NetworkPolicy> {
    if !c.spec().network_policy.enabled {
        return Vec::new();
    }
    vec![deny(c), control(c), relay(c)]
}

fn policy(c: &ValidCluster, name: String, part: &str, spec: NetworkPolicySpec) -> NetworkPolicy {
    NetworkPolicy {
        metadata: meta(c, name, part),
        spec: Some(NetworkPolicySpec {
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ..spec
        }),
    }
}

/// All pods of the cluster, whatever they are.
fn deny(c: &ValidCluster) -> NetworkPolicy {
    let mut every = selector_labels(c.names(), CONTROL);
    every.remove(LABEL_COMPONENT);
    let spec = NetworkPolicySpec {
        pod_selector: Some(LabelSelector {
            match_labels: Some(every),
            match_expressions: None,
        }),
        ..NetworkPolicySpec::default()
    };
    policy(c, format!("{}-deny", c.names().cluster()), CONTROL, spec)
}

fn port(protocol: &str, number: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(IntOrString::Int(number.into())),
        end_port: None,
    }
}

fn pods(c: &ValidCluster, part: &str) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        pod_selector: Some(selector(c.names(), part)),
        ..NetworkPolicyPeer::default()
    }
}

fn operator(c: &ValidCluster) -> NetworkPolicyPeer {
    let own = &c.spec().network_policy.operator_namespace_selector;
    let (key, value) = OPERATOR_POD;
    NetworkPolicyPeer {
        namespace_selector: Some(own.clone().unwrap_or_default()),
        pod_selector: Some(LabelSelector {
            match_labels: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])),
            match_expressions: None,
        }),
        ip_block: None,
    }
}

/// From this namespace, and from those that `metricsFrom` names.
fn metrics(c: &ValidCluster) -> NetworkPolicyIngressRule {
    let mut from = vec![NetworkPolicyPeer {
        pod_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    }];
    let others = c.spec().network_policy.metrics_from.iter();
    from.extend(others.map(|s| NetworkPolicyPeer {
        namespace_selector: Some(s.clone()),
        ..NetworkPolicyPeer::default()
    }));
    NetworkPolicyIngressRule {
        from: Some(from),
        ports: Some(vec![port("TCP", METRICS_PORT)]),
    }
}

fn dns() -> NetworkPolicyEgressRule {
    NetworkPolicyEgressRule {
        to: None,
        ports: Some(vec![port("UDP", 53), port("TCP", 53)]),
    }
}

/// The collector may be anywhere.
fn telemetry(c: &ValidCluster) -> Option<NetworkPolicyEgressRule> {
    let endpoint = c.spec().telemetry.otlp_endpoint.as_ref()?;
    let (scheme, rest) = endpoint.split_once("://")?;
    let host = rest.trim_end_matches('/');
    let standard = if scheme == "https" { 443 } else { 80 };
    let number = host
        .rsplit_once(':')
        .and_then(|(_, p)| p.parse().ok())
        .unwrap_or(standard);
    Some(NetworkPolicyEgressRule {
        to: None,
        ports: Some(vec![port("TCP", number)]),
    })
}

fn control(c: &ValidCluster) -> NetworkPolicy {
    let grpc = || Some(vec![port("TCP", GRPC_PORT)]);
    let egress = [
        Some(NetworkPolicyEgressRule {
            to: Some(vec![pods(c, CONTROL)]),
            ports: grpc(),
        }),
        Some(dns()),
        telemetry(c),
    ];
    let spec = NetworkPolicySpec {
        pod_selector: Some(selector(c.names(), CONTROL)),
        ingress: Some(vec![
            NetworkPolicyIngressRule {
                from: Some(vec![pods(c, CONTROL), pods(c, RELAY), operator(c)]),
                ports: grpc(),
            },
            metrics(c),
        ]),
        egress: Some(egress.into_iter().flatten().collect()),
        policy_types: None,
    };
    policy(c, c.names().control(), CONTROL, spec)
}

/// Mail goes anywhere, and a route may name any port: so may all TCP.
fn relay(c: &ValidCluster) -> NetworkPolicy {
    let smtp = listeners(&c.spec().relay);
    let any_tcp = NetworkPolicyPort {
        protocol: Some("TCP".to_owned()),
        port: None,
        end_port: None,
    };
    let spec = NetworkPolicySpec {
        pod_selector: Some(selector(c.names(), RELAY)),
        ingress: Some(vec![
            NetworkPolicyIngressRule {
                from: None,
                ports: Some(
                    smtp.iter()
                        .map(|(_, number, _)| port("TCP", *number))
                        .collect(),
                ),
            },
            metrics(c),
        ]),
        egress: Some(vec![
            NetworkPolicyEgressRule {
                to: None,
                ports: Some(vec![any_tcp]),
            },
            dns(),
        ]),
        policy_types: None,
    };
    policy(c, c.names().relay(), RELAY, spec)
}
