//! The custom resources `RelayCluster` and `RelayPolicy`, API version `sealane.io/v1alpha1`.
//!
//! Pure: types, their defaults, and the rules that the API server itself checks (CEL). What cannot be said there is
//! checked by `sealane-plan`. [`crds`] is what is installed; the schemas are structural, and every default is in them, so
//! that what is stored says all that it means.
//!
//! Names of fields are an interface: `tests/golden.rs` shows what a change of a type changes for users.
#![forbid(unsafe_code)]
#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct, with its visibility, into a function"
)]
#![expect(
    clippy::duplicated_attributes,
    reason = "columns of the same type in one attribute are no repetition"
)]

mod cluster;
mod control_plane;
mod names;
mod policy;
mod relay;
mod schema;
mod settings;
mod status;

pub use cluster::{RelayCluster, RelayClusterSpec};
pub use control_plane::{ControlPlane, OnScaleDown, Storage};
pub use names::{SecretKey, SecretName, condition, reason};
pub use policy::{
    ClusterRef, DocumentKind, PolicyDocument, RelayPolicy, RelayPolicySpec, RelayPolicyStatus,
};
pub use relay::{
    Autoscaling, ClientAddress, Expose, ExposeType, Listeners, NodePorts, PublicCertificate, Relay,
};
pub use settings::{
    CertManager, Certificates, Issuer, IssuerRef, LogFormat, Monitoring, NetworkPolicySettings,
    PullPolicy, Telemetry,
};
pub use status::{CertificateTimes, MemberStatus, QueueStatus, RelayClusterStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// API group of both kinds.
pub const GROUP: &str = "sealane.io";
/// The one version.
pub const VERSION: &str = "v1alpha1";
/// Finalizer of a RelayCluster.
pub const FINALIZER: &str = "sealane.io/cleanup";

/// Both definitions, as they are installed.
pub fn crds() -> Vec<CustomResourceDefinition> {
    [RelayCluster::crd(), RelayPolicy::crd()]
        .into_iter()
        .map(schema::tidy)
        .collect()
}
