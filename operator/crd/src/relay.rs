//! `spec.relay`.
use crate::schema;
use k8s_openapi::{
    api::core::v1::{ResourceRequirements, Toleration},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The relay nodes.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!(self.listeners.mx && self.expose.clientAddress == 'Lost')")
        .message("expose.clientAddress: Lost is not possible with listeners.mx: every client would have an address of the cluster, so SPF and limits per address would judge the wrong one, and a rule that trusts inside addresses would be an open relay. Use Local or ProxyProtocol, or turn listeners.mx off")
        .field_path(".expose.clientAddress"),
    validation = Rule::new("!(self.expose.type == 'HostPort' && has(self.autoscaling))")
        .message("autoscaling: with expose.type HostPort each node of Kubernetes takes one relay node: a HorizontalPodAutoscaler would make pods that find no place")
        .field_path(".autoscaling")
)]
#[serde(rename_all = "camelCase")]
pub struct Relay {
    /// How many. `kubectl scale relaycluster/NAME --replicas=N` and a HorizontalPodAutoscaler change this. Relay nodes that go finish their sessions and deliveries and hand the rest back to the queue. 0 takes no mail; the queue is kept.
    #[serde(default = "replicas")]
    #[schemars(range(min = 0, max = 500))]
    pub replicas: u32,
    /// Name of this mail system in greetings, EHLO and Received headers, fully qualified, such as mx.example.org. It is what MX records and reverse DNS of the public addresses must say, and the certificate must be valid for it.
    #[schemars(length(min = 3, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?([.][A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?)+$')")
        .message("hostname: needs a fully qualified name such as mx.example.org, without a dot at the end: other mail servers look it up"))]
    pub hostname: String,
    /// What is listened to. At least one.
    #[serde(default)]
    pub listeners: Listeners,
    /// How clients reach the relay nodes.
    #[serde(default)]
    pub expose: Expose,
    /// The certificate that SMTP clients see: a Secret of type kubernetes.io/tls. It is read again when the Secret changes; no connection ends.
    pub certificate: PublicCertificate,
    /// Resources of each pod. The memory limit must hold bodyBudget and some 256MiB more.
    #[serde(default = "resources")]
    pub resources: ResourceRequirements,
    /// Octets of message bodies in memory at once in each relay node, half for mail coming in, half for mail going out.
    #[serde(default = "body_budget")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,14}(B|KiB|MiB|GiB)?$')")
        .message("bodyBudget: write it as 256MiB or 1GiB"))]
    pub body_budget: String,
    /// Sessions and deliveries may take this long to finish when a relay node stops. The pod is killed 30 seconds later.
    #[serde(default = "drain_seconds")]
    #[schemars(range(min = 5, max = 3600))]
    pub drain_seconds: u32,
    /// A HorizontalPodAutoscaler by CPU that scales this resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Nodes of Kubernetes must have these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods bear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tolerations: Vec<Toleration>,
    /// PriorityClass of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// More of the configuration of relay-node, as in docs/configuration.md: maxMessageSize, sessions, delivery, resolver and so on. What the operator sets itself is refused here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::free_object")]
    pub config: BTreeMap<String, Value>,
}

/// A Secret of type kubernetes.io/tls.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublicCertificate {
    /// Name of the Secret; it has the keys tls.crt and tls.key.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// What is listened to.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.mx || self.submission || self.submissions")
    .message("listeners: needs at least one of mx, submission and submissions"))]
pub struct Listeners {
    /// Port 25: mail for the domains that are served. STARTTLS is required.
    #[serde(default = "yes")]
    pub mx: bool,
    /// Port 587: mail of submitters. STARTTLS and AUTH are required.
    #[serde(default = "yes")]
    pub submission: bool,
    /// Port 465: mail of submitters over TLS from the first octet. AUTH is required.
    #[serde(default = "yes")]
    pub submissions: bool,
}

/// How clients reach the relay nodes.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.clientAddress != 'ProxyProtocol' || (has(self.proxyProtocolFrom) && self.proxyProtocolFrom.size() > 0)")
        .message("proxyProtocolFrom: clientAddress ProxyProtocol needs the addresses of the load balancer: whoever else could connect could claim any address")
        .field_path(".proxyProtocolFrom"),
    validation = Rule::new("self.clientAddress == 'ProxyProtocol' || !has(self.proxyProtocolFrom) || self.proxyProtocolFrom.size() == 0")
        .message("proxyProtocolFrom: is only used with clientAddress ProxyProtocol; without it the first line of each connection would be taken for SMTP")
        .field_path(".proxyProtocolFrom"),
    validation = Rule::new("self.type == 'LoadBalancer' || !has(self.loadBalancerClass)")
        .message("loadBalancerClass: is only used with type LoadBalancer")
        .field_path(".loadBalancerClass"),
    validation = Rule::new("self.type == 'LoadBalancer' || !has(self.loadBalancerSourceRanges) || self.loadBalancerSourceRanges.size() == 0")
        .message("loadBalancerSourceRanges: is only used with type LoadBalancer")
        .field_path(".loadBalancerSourceRanges"),
    validation = Rule::new("self.type in ['LoadBalancer', 'NodePort'] || !has(self.nodePorts)")
        .message("nodePorts: is only used with type NodePort or LoadBalancer")
        .field_path(".nodePorts"),
    validation = Rule::new("self.type != 'LoadBalancer' || oldSelf.type != 'LoadBalancer' || (has(self.loadBalancerClass) == has(oldSelf.loadBalancerClass) && (!has(self.loadBalancerClass) || self.loadBalancerClass == oldSelf.loadBalancerClass))")
        .message("loadBalancerClass: Kubernetes allows no change of it: choose another type first, then LoadBalancer with the new class")
        .field_path(".loadBalancerClass")
)]
#[serde(rename_all = "camelCase")]
pub struct Expose {
    /// LoadBalancer: a Service of that type. NodePort: a port of every node of Kubernetes. HostPort: ports 25, 587 and 465 of the nodes on which relay nodes run, one relay node for each. ClusterIP: from inside only.
    #[serde(default, rename = "type")]
    pub type_: ExposeType,
    /// How the client's address is kept. SPF, limits per address and the records of each message are about it. Local: only nodes with a relay node take connections, and the client's address stays (externalTrafficPolicy: Local). ProxyProtocol: the load balancer says it in the first line of each connection. Lost: every client has an address of the cluster; never with the MX listener.
    #[serde(default)]
    pub client_address: ClientAddress,
    /// With clientAddress ProxyProtocol: address ranges (CIDR) that the load balancer connects from. Everybody else is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 2, max = 64)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(c, isCIDR(c))").message("proxyProtocolFrom: each entry is a range such as 10.0.0.0/8 or 2001:db8::/32")
    )]
    pub proxy_protocol_from: Vec<String>,
    /// Annotations of the Service, for the load balancer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Which load balancer takes the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub load_balancer_class: Option<String>,
    /// Address ranges (CIDR) that the load balancer takes connections from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 2, max = 64)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(c, isCIDR(c))").message("loadBalancerSourceRanges: each entry is a range such as 192.0.2.0/24")
    )]
    pub load_balancer_source_ranges: Vec<String>,
    /// Fixed ports of the nodes of Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_ports: Option<NodePorts>,
}

/// By what clients reach the relay nodes.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExposeType {
    /// A Service of that type.
    #[default]
    LoadBalancer,
    /// A port of every node of Kubernetes.
    NodePort,
    /// Ports of the nodes on which relay nodes run.
    HostPort,
    /// From inside only.
    ClusterIP,
}

/// Who a client is to a relay node.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientAddress {
    /// `externalTrafficPolicy: Local`.
    #[default]
    Local,
    /// The PROXY protocol.
    ProxyProtocol,
    /// Not kept.
    Lost,
}

/// Fixed ports of the nodes of Kubernetes, from the range of the cluster, usually 30000 to 32767.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePorts {
    /// For port 25.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub mx: Option<u16>,
    /// For port 587.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub submission: Option<u16>,
    /// For port 465.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub submissions: Option<u16>,
}

/// A HorizontalPodAutoscaler.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.minReplicas <= self.maxReplicas")
    .message("autoscaling: minReplicas must not be above maxReplicas"))]
#[serde(rename_all = "camelCase")]
pub struct Autoscaling {
    /// Fewest relay nodes.
    #[serde(default = "replicas")]
    #[schemars(range(min = 1, max = 500))]
    pub min_replicas: u32,
    /// Most relay nodes.
    #[schemars(range(min = 1, max = 500))]
    pub max_replicas: u32,
    /// CPU that is aimed at, in percent of `resources.requests.cpu`.
    #[serde(default = "target_cpu", rename = "targetCPUPercent")]
    #[schemars(range(min = 1, max = 100))]
    pub target_cpu_percent: u32,
}

fn yes() -> bool {
    true
}
fn replicas() -> u32 {
    2
}
fn target_cpu() -> u32 {
    70
}
fn drain_seconds() -> u32 {
    60
}
fn body_budget() -> String {
    "256MiB".to_owned()
}
fn resources() -> ResourceRequirements {
    let amounts = |pairs: &[(&str, &str)]| {
        let amount = |(name, n): &(&str, &str)| ((*name).to_owned(), Quantity((*n).to_owned()));
        Some(pairs.iter().map(amount).collect())
    };
    ResourceRequirements {
        claims: None,
        requests: amounts(&[("cpu", "250m"), ("memory", "512Mi")]),
        limits: amounts(&[("memory", "1Gi")]),
    }
}

impl Default for Listeners {
    fn default() -> Self {
        Self {
            mx: true,
            submission: true,
            submissions: true,
        }
    }
}

impl Default for Expose {
    fn default() -> Self {
        Self {
            type_: ExposeType::LoadBalancer,
            client_address: ClientAddress::Local,
            proxy_protocol_from: Vec::new(),
            annotations: BTreeMap::new(),
            load_balancer_class: None,
            load_balancer_source_ranges: Vec::new(),
            node_ports: None,
        }
    }
}
