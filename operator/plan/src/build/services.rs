//! Services.
use super::{meta, relay::listeners, selector_labels};
use crate::{
    ValidCluster,
    names::{CONTROL, GRPC_PORT, RELAY},
};
use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use sealane_crd::{ClientAddress, Expose, ExposeType};

pub(super) fn all(c: &ValidCluster) -> Vec<Service> {
    vec![headless(c), client(c), smtp(c)]
}

fn grpc() -> ServicePort {
    ServicePort {
        name: Some("grpc".to_owned()),
        port: GRPC_PORT.into(),
        target_port: Some(IntOrString::String("grpc".to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}

/// Names of the control plane's pods. They are found before they are ready: the cluster is founded by nodes that are not.
fn headless(c: &ValidCluster) -> Service {
    Service {
        metadata: meta(c, c.names().control(), CONTROL),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector_labels(c.names(), CONTROL)),
            ports: Some(vec![grpc()]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Any control-plane node that is ready, for `sealane`.
fn client(c: &ValidCluster) -> Service {
    Service {
        metadata: meta(c, c.names().control_client(), CONTROL),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(selector_labels(c.names(), CONTROL)),
            ports: Some(vec![grpc()]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn smtp(c: &ValidCluster) -> Service {
    let r = &c.spec().relay;
    let x = &r.expose;
    let mut metadata = meta(c, c.names().smtp(), RELAY);
    metadata.annotations = (!x.annotations.is_empty()).then(|| x.annotations.clone());
    let balanced = x.type_ == ExposeType::LoadBalancer;
    let public = balanced || x.type_ == ExposeType::NodePort;
    let policy = match x.client_address {
        ClientAddress::Local => "Local",
        ClientAddress::ProxyProtocol | ClientAddress::Lost => "Cluster",
    };
    let type_ = match x.type_ {
        ExposeType::LoadBalancer => "LoadBalancer",
        ExposeType::NodePort => "NodePort",
        // With ports of the nodes, the Service is for those inside.
        ExposeType::HostPort | ExposeType::ClusterIP => "ClusterIP",
    };
    let ranges = &x.load_balancer_source_ranges;
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(type_.to_owned()),
            selector: Some(selector_labels(c.names(), RELAY)),
            external_traffic_policy: public.then(|| policy.to_owned()),
            load_balancer_class: x.load_balancer_class.clone().filter(|_| balanced),
            load_balancer_source_ranges: (balanced && !ranges.is_empty()).then(|| ranges.clone()),
            ports: Some(
                listeners(r)
                    .into_iter()
                    .map(|(name, _, number)| ServicePort {
                        name: Some(name.to_owned()),
                        port: number.into(),
                        target_port: Some(IntOrString::String(name.to_owned())),
                        protocol: Some("TCP".to_owned()),
                        node_port: public.then(|| node_port(x, name)).flatten(),
                        app_protocol: None,
                    })
                    .collect(),
            ),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn node_port(x: &Expose, listener: &str) -> Option<i32> {
    let ports = x.node_ports?;
    let port = match listener {
        "mx" => ports.mx,
        "submission" => ports.submission,
        _ => ports.submissions,
    };
    port.map(Into::into)
}
