//! `RelayPolicy`: policy documents as a resource.
use crate::names::SecretKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What is wanted.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "sealane.io",
    version = "v1alpha1",
    kind = "RelayPolicy",
    plural = "relaypolicies",
    namespaced,
    doc = "Policy documents of a RelayCluster. All RelayPolicies of a cluster together are its policy: their documents are joined, and the same kind and name in two of them is a conflict. Then, and when a document is not valid, nothing is applied, and what is live stays.",
    derive = "PartialEq",
    status = "RelayPolicyStatus",
    shortname = "slp",
    category = "sealane",
    selectable = ".spec.clusterRef.name",
    printcolumn(
        name = "Cluster",
        type_ = "string",
        json_path = ".spec.clusterRef.name"
    ),
    printcolumn(
        name = "Documents",
        type_ = "integer",
        json_path = ".status.documents",
        description = "how many documents it has"
    ),
    printcolumn(
        name = "Valid",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Valid\")].status"
    ),
    printcolumn(
        name = "Conflict",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Conflict\")].status"
    ),
    printcolumn(
        name = "Synced",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Synced\")].status"
    ),
    printcolumn(
        name = "Revision",
        type_ = "integer",
        json_path = ".status.revision",
        description = "revision of the live policy that holds it"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct RelayPolicySpec {
    /// The RelayCluster, in the same namespace.
    pub cluster_ref: ClusterRef,
    /// Policies are read in the order of (order, name). It decides how messages name them and nothing else: no policy overrides another.
    #[serde(default)]
    pub order: i32,
    /// The documents, as `sealane policy` takes them: each has a kind, a name, and the fields of docs/configuration.md.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["kind".into(), "name".into()]))]
    pub documents: Vec<PolicyDocument>,
}

/// A RelayCluster of the same namespace.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// One document. Domain: recipients (any, or a list of local parts), route {host, port, implicitTls}. Submitter: senders, and passwordVerifierSecretRef or passwordVerifier. Destination: route, tls {level, names, rootsPem, pins}, retry {delays, lifetime, tlsLifetime}, limits {connections, messagesPerConnection, messagesPerMinute, connectionsPerMinute}.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.password)")
        .message("password: a RelayPolicy takes no password: everybody who may read it, and every backup of Kubernetes, would have it. Put its argon2id verifier (PHC form) in a Secret and name that with passwordVerifierSecretRef")
        .reason(Reason::FieldValueForbidden)
        .field_path(".password"),
    validation = Rule::new("self.kind == 'Submitter' || !(has(self.passwordVerifierSecretRef) || has(self.passwordVerifier) || has(self.senders))")
        .message("senders, passwordVerifier, passwordVerifierSecretRef: only a Submitter has them"),
    validation = Rule::new("self.kind != 'Submitter' || has(self.password) || has(self.passwordVerifierSecretRef) != has(self.passwordVerifier)")
        .message("passwordVerifierSecretRef: a Submitter needs either passwordVerifierSecretRef or passwordVerifier")
)]
#[serde(rename_all = "camelCase")]
pub struct PolicyDocument {
    /// Domain: mail for it is taken on port 25. Submitter: who may submit mail. Destination: how a next hop is spoken to.
    pub kind: DocumentKind,
    /// Domain: a domain name. Submitter: the user name. Destination: a domain, ".domain" for what is below it, or "*" for the default.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// Refused: see passwordVerifierSecretRef.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub password: Option<String>,
    /// Submitter: the PHC string of the password, argon2id. Better kept in a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub password_verifier: Option<String>,
    /// Submitter: the Secret of this namespace that has the PHC string of the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_verifier_secret_ref: Option<SecretKey>,
    /// Submitter: sender addresses: user@domain, @domain, or "*" for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000), inner(length(min = 1, max = 320)))]
    pub senders: Option<Vec<String>>,
    /// The other fields.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Kind of a document.
#[derive(
    JsonSchema, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum DocumentKind {
    /// Mail for it is taken.
    Domain,
    /// Who may submit.
    Submitter,
    /// How a next hop is spoken to.
    Destination,
}

impl DocumentKind {
    /// As it is spelt.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Domain => "Domain",
            Self::Submitter => "Submitter",
            Self::Destination => "Destination",
        }
    }
}

/// What is. Written by the operator only.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayPolicyStatus {
    /// Generation of the spec that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Valid, Conflict, Synced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Revision of the live policy that holds this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// How many documents it has.
    #[serde(default)]
    pub documents: u32,
}
