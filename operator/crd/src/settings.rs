//! What is the same for relay nodes and the control plane.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When the image is pulled.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// If the node has none.
    #[default]
    IfNotPresent,
    /// Never.
    Never,
}

impl PullPolicy {
    /// As Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Certificates with which the processes know each other.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.issuer != 'CertManager' || has(self.certManager)")
        .message("certManager: issuer CertManager needs certManager.issuerRef")
        .field_path(".certManager"),
    validation = Rule::new("self.issuer == 'CertManager' || !has(self.certManager)")
        .message("certManager: is only used with issuer CertManager")
        .field_path(".certManager"),
    validation = Rule::new("self.caValidityHours >= 3 * self.validityHours")
        .message("caValidityHours: must be at least three times validityHours: a CA is replaced after two thirds of its life, and what it signed until then must end before it does")
        .field_path(".caValidityHours")
)]
#[serde(rename_all = "camelCase")]
pub struct Certificates {
    /// Who issues them. Operator: the operator, by a CA of this cluster in the Secret NAME-ca. CertManager: cert-manager.
    #[serde(default)]
    pub issuer: Issuer,
    /// With issuer CertManager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_manager: Option<CertManager>,
    /// How long a workload certificate is valid, in hours. It is renewed after two thirds of that, without a restart.
    #[serde(default = "validity")]
    #[schemars(range(min = 24, max = 8760))]
    pub validity_hours: u32,
    /// How long the CA is valid, in hours. It is replaced after two thirds of that, without a restart: both are trusted for a while.
    #[serde(default = "ca_validity")]
    #[schemars(range(min = 72, max = 262800))]
    pub ca_validity_hours: u32,
}

/// Who issues certificates.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Issuer {
    /// The operator.
    #[default]
    Operator,
    /// cert-manager.
    CertManager,
}

/// cert-manager.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertManager {
    /// An issuer that signs names of URIs and puts its CA in ca.crt: a CA or Vault issuer of this cluster's own. Whoever has a certificate of it may join the control plane.
    pub issuer_ref: IssuerRef,
}

/// An issuer of cert-manager.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerRef {
    /// Name of the issuer.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Issuer or ClusterIssuer.
    #[serde(default = "issuer_kind")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// API group of the issuer.
    #[serde(default = "issuer_group")]
    #[schemars(length(min = 1, max = 253))]
    pub group: String,
}

/// Who may connect to the pods.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicySettings {
    /// Make NetworkPolicies that deny everything but what is needed: SMTP to relay nodes, gRPC among the parts, metrics from where `metricsFrom` says, DNS, and any TCP that goes out of relay nodes, because destinations may have any port.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Labels of the operator's namespace. Absent: pods of the operator in any namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator_namespace_selector: Option<LabelSelector>,
    /// Labels of namespaces that may read metrics. Empty: none but this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub metrics_from: Vec<LabelSelector>,
}

/// How metrics are found.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Monitoring {
    /// Make PodMonitors for the Prometheus operator, if its API is there.
    #[serde(default)]
    pub pod_monitor: bool,
}

/// Logs and traces of the pods.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Telemetry {
    /// OTLP collector over gRPC, such as http://otel-collector.monitoring:4317. Absent: no traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[^/?#]+/?$')")
        .message("telemetry.otlpEndpoint: write it as http://host:4317"))]
    pub otlp_endpoint: Option<String>,
    /// Form of the log.
    #[serde(default)]
    pub log_format: LogFormat,
    /// What is logged, as in RUST_LOG, such as info or info,sealane=debug.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub log_filter: Option<String>,
}

/// Form of the log.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For eyes.
    Text,
    /// One object per line.
    #[default]
    Json,
}

fn yes() -> bool {
    true
}
fn validity() -> u32 {
    720
}
fn ca_validity() -> u32 {
    87_600
}
fn issuer_kind() -> String {
    "Issuer".to_owned()
}
fn issuer_group() -> String {
    "cert-manager.io".to_owned()
}

impl Default for Certificates {
    fn default() -> Self {
        Self {
            issuer: Issuer::Operator,
            cert_manager: None,
            validity_hours: validity(),
            ca_validity_hours: ca_validity(),
        }
    }
}

impl Default for NetworkPolicySettings {
    fn default() -> Self {
        Self {
            enabled: true,
            operator_namespace_selector: None,
            metrics_from: Vec::new(),
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            log_format: LogFormat::Json,
            log_filter: None,
        }
    }
}
