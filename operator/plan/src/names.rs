//! Names of everything that belongs to a RelayCluster.

/// Label of everything that the operator made.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "sealane-operator");
/// Label of everything that belongs to a RelayCluster, pods, volumes and Secrets too: its name.
pub const CLUSTER_LABEL: &str = "sealane.io/cluster";
/// Label: which product; the value is [`PRODUCT`].
pub const LABEL_NAME: &str = "app.kubernetes.io/name";
/// Label: which RelayCluster.
pub const LABEL_INSTANCE: &str = "app.kubernetes.io/instance";
/// Label: which part, [`CONTROL`], [`RELAY`] or [`CERTIFICATES`].
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Value of [`LABEL_NAME`] on everything but the operator itself.
pub const PRODUCT: &str = "sealane";
/// Label of what stays when the RelayCluster goes.
pub const LABEL_KEEP: &str = "sealane.io/keep";
/// Part: the control plane.
pub const CONTROL: &str = "control-plane";
/// Part: relay nodes.
pub const RELAY: &str = "relay-node";
/// Part: Secrets with certificates, which several parts use.
pub const CERTIFICATES: &str = "certificates";
/// Label of the operator's own pods, which NetworkPolicies let in.
pub const OPERATOR_POD: (&str, &str) = ("app.kubernetes.io/name", "sealane-operator");

/// gRPC.
pub const GRPC_PORT: u16 = 7000;
/// /metrics, /livez, /readyz.
pub const METRICS_PORT: u16 = 9090;
/// Container ports of the listeners: without privileges.
pub const MX_PORT: u16 = 2525;
/// Submission.
pub const SUBMISSION_PORT: u16 = 2587;
/// Submission over TLS.
pub const SUBMISSIONS_PORT: u16 = 2465;

/// Names of one RelayCluster's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    cluster: String,
    namespace: String,
}

impl Names {
    /// Of the RelayCluster `namespace/cluster`.
    pub fn new(namespace: &str, cluster: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    /// `metadata.name` of the RelayCluster.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }
    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
    /// Trust domain of all workload identities: NAME.NAMESPACE.
    pub fn trust_domain(&self) -> String {
        format!("{}.{}", self.cluster, self.namespace)
    }

    /// StatefulSet, headless Service, ServiceAccount, PodDisruptionBudget of the control plane.
    pub fn control(&self) -> String {
        format!("{}-control", self.cluster)
    }
    /// ClusterIP Service of the control plane.
    pub fn control_client(&self) -> String {
        format!("{}-control-client", self.cluster)
    }
    /// ConfigMap of the control plane.
    pub fn control_config(&self) -> String {
        format!("{}-control-config", self.cluster)
    }
    /// Secret with the control plane's identities: NAME-control-N.crt and .key, ca.crt.
    pub fn control_identity(&self) -> String {
        format!("{}-control-identity", self.cluster)
    }
    /// Pod and member N.
    pub fn control_pod(&self, ordinal: u32) -> String {
        format!("{}-control-{ordinal}", self.cluster)
    }
    /// N of a pod or member; `None`: not of this control plane.
    pub fn ordinal(&self, name: &str) -> Option<u32> {
        canonical(name.strip_prefix(&self.control())?.strip_prefix('-')?)
    }
    /// PersistentVolumeClaim of pod N.
    pub fn volume(&self, ordinal: u32) -> String {
        format!("data-{}", self.control_pod(ordinal))
    }
    /// N of a PersistentVolumeClaim.
    pub fn volume_ordinal(&self, name: &str) -> Option<u32> {
        self.ordinal(name.strip_prefix("data-")?)
    }
    /// Where others reach pod N, without the port: NAME-control-N.NAME-control.NAMESPACE.svc.
    pub fn control_host(&self, ordinal: u32) -> String {
        format!(
            "{}.{}.{}.svc",
            self.control_pod(ordinal),
            self.control(),
            self.namespace
        )
    }
    /// host:port of pod N.
    pub fn control_address(&self, ordinal: u32) -> String {
        format!("{}:{GRPC_PORT}", self.control_host(ordinal))
    }
    /// host:port of whichever control-plane node is ready.
    pub fn control_client_address(&self) -> String {
        format!(
            "{}.{}.svc:{GRPC_PORT}",
            self.control_client(),
            self.namespace
        )
    }

    /// Deployment, ServiceAccount, PodDisruptionBudget, HorizontalPodAutoscaler of relay nodes; name in their identity.
    pub fn relay(&self) -> String {
        format!("{}-relay", self.cluster)
    }
    /// ConfigMap of relay nodes.
    pub fn relay_config(&self) -> String {
        format!("{}-relay-config", self.cluster)
    }
    /// Secret with the identity of relay nodes: tls.crt, tls.key, ca.crt.
    pub fn relay_identity(&self) -> String {
        format!("{}-relay-identity", self.cluster)
    }
    /// Service for SMTP.
    pub fn smtp(&self) -> String {
        format!("{}-smtp", self.cluster)
    }

    /// Secret with the CA: tls.crt, tls.key, and ca.crt with all that are trusted.
    pub fn ca(&self) -> String {
        format!("{}-ca", self.cluster)
    }
    /// Secret with the operator's identity: tls.crt, tls.key, ca.crt.
    pub fn operator_identity(&self) -> String {
        format!("{}-operator-identity", self.cluster)
    }
    /// cert-manager's Certificate, and the Secret that it fills, for one workload.
    pub fn issued(&self, workload: &str) -> String {
        format!("{workload}-issued")
    }
}

/// A number as Kubernetes writes ordinals: no sign, no leading zero.
fn canonical(s: &str) -> Option<u32> {
    let n: u32 = s.parse().ok()?;
    (n.to_string() == s).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_are_read_as_they_are_written() {
        let n = Names::new("mail-system", "mail");
        assert_eq!(n.ordinal(&n.control_pod(4)), Some(4));
        assert_eq!(n.volume_ordinal(&n.volume(12)), Some(12));
        for other in [
            "mail-control-",
            "mail-control-01",
            "mail-control-+1",
            "mail-control-client",
            "mail2-control-1",
            "x",
        ] {
            assert_eq!(n.ordinal(other), None, "{other}");
        }
        assert_eq!(n.volume_ordinal("mail-control-1"), None);
    }

    #[test]
    fn addresses_name_pod_service_and_namespace() {
        let n = Names::new("ns", "mail");
        assert_eq!(
            n.control_address(2),
            "mail-control-2.mail-control.ns.svc:7000"
        );
        assert_eq!(
            n.control_client_address(),
            "mail-control-client.ns.svc:7000"
        );
        assert_eq!(n.trust_domain(), "mail.ns");
    }
}
