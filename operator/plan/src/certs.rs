//! Which certificates to make, and which CAs everybody trusts.
//!
//! A CA is replaced without a moment in which two processes do not trust each other:
//!
//! ```text
//!   signing: old      signing: old       signing: new       signing: new
//!   trusted: old  ──► trusted: old,new ► trusted: new,old ► trusted: new
//!              next is made     mounted everywhere    no leaf of old is left,
//!              after 2/3 of     for `mount` seconds   and all are mounted for
//!              its life         (promote, reissue)    `mount` seconds (drop)
//! ```
//!
//! The rule behind it, which holds for cert-manager's certificates too: a leaf is put to use only when the CA that signed it
//! has been trusted everywhere for `mount` seconds, unless all leaves that are in use are of that CA. And a CA is trusted
//! until no leaf of it has been in use for as long.
//!
//! What is remembered between passes is in the Secret NAME-ca: the pair that signs, the one that is next, and the list of
//! trusted CAs with two times each ([`Trust`], as JSON in the annotation [`TRUST_ANNOTATION`]).
mod decide;
#[cfg(test)]
mod tests;

pub use decide::decide;

use crate::Names;
use sealane_crd::Issuer;
use serde::{Deserialize, Serialize};

/// Annotation of the Secret NAME-ca.
pub const TRUST_ANNOTATION: &str = "sealane.io/trusted";
/// Keys of the Secret NAME-ca beside tls.crt, tls.key and ca.crt: the pair that will sign next.
pub const NEXT_CERTIFICATE: &str = "next.crt";
/// The key of it.
pub const NEXT_KEY: &str = "next.key";
/// A Secret that changed is in all pods, and was read again, after so many seconds: kubelet looks every minute, and its
/// cache may be as old.
pub const MOUNT: u64 = 600;
/// The DNS name in every control-plane certificate, which every client of gRPC verifies.
pub const CONTROL_SERVER_NAME: &str = "control.sealane.internal";
/// Name in the operator's identity.
pub const OPERATOR_NAME: &str = "sealane-operator";

/// What a workload may do: the part of `spiffe://CLUSTER/ROLE/NAME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkloadRole {
    /// A control-plane node.
    Control,
    /// Relay nodes.
    Relay,
    /// The operator.
    Operator,
}

impl WorkloadRole {
    /// As in the certificate.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Relay => "relay",
            Self::Operator => "operator",
        }
    }
}

/// Who needs a certificate, and where it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// What it may do.
    pub role: WorkloadRole,
    /// Which one.
    pub name: String,
    /// `spiffe://CLUSTER/ROLE/NAME`.
    pub uri: String,
    /// DNS names in the certificate.
    pub dns: Vec<String>,
    /// Secret that it is in. The Secret has the trusted CAs in ca.crt.
    pub secret: String,
    /// Key of that Secret with the certificate.
    pub certificate_key: String,
    /// Key of that Secret with the private key.
    pub key_key: String,
    /// With cert-manager: its Certificate, and the Secret that it fills with tls.crt, tls.key and ca.crt.
    pub issued: String,
}

/// All that need one: control-plane nodes with an ordinal below `ordinals`, the relay nodes together, the operator.
pub fn workloads(names: &Names, ordinals: u32) -> Vec<Workload> {
    let make = |role: WorkloadRole, name: String, secret: String, file: &str| {
        let control = role == WorkloadRole::Control;
        Workload {
            role,
            uri: format!("spiffe://{}/{}/{name}", names.trust_domain(), role.as_str()),
            dns: control
                .then(|| CONTROL_SERVER_NAME.to_owned())
                .into_iter()
                .collect(),
            certificate_key: format!("{file}.crt"),
            key_key: format!("{file}.key"),
            issued: match role {
                WorkloadRole::Operator => names.issued(&format!("{}-operator", names.cluster())),
                _ => names.issued(&name),
            },
            secret,
            name,
        }
    };
    let mut all: Vec<Workload> = (0..ordinals)
        .map(|n| {
            let name = names.control_pod(n);
            let file = name.clone();
            make(WorkloadRole::Control, name, names.control_identity(), &file)
        })
        .collect();
    all.push(make(
        WorkloadRole::Relay,
        names.relay(),
        names.relay_identity(),
        "tls",
    ));
    all.push(make(
        WorkloadRole::Operator,
        OPERATOR_NAME.to_owned(),
        names.operator_identity(),
        "tls",
    ));
    all
}

/// A certificate. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertFacts {
    /// SHA-256 of its DER form, in hexadecimal digits.
    pub fingerprint: String,
    /// From when it is valid.
    pub not_before: u64,
    /// Until when.
    pub not_after: u64,
}

impl CertFacts {
    /// When two thirds of its life are over.
    pub fn renew_at(&self) -> u64 {
        let life = self.not_after.saturating_sub(self.not_before);
        self.not_before.saturating_add(life / 3 * 2)
    }
}

/// A workload's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafFacts {
    /// The certificate.
    pub cert: CertFacts,
    /// Fingerprint of the known CA whose key signed it; `None`: of none that is known.
    pub issuer: Option<String>,
    /// It names its workload and has the DNS names, and the key beside it is its key.
    pub fits: bool,
}

/// What there is for a [`Workload`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFacts {
    /// For whom.
    pub workload: Workload,
    /// What is in use; `None`: nothing, or nothing that can be read.
    pub leaf: Option<LeafFacts>,
    /// CAs in ca.crt of the same Secret.
    pub bundle: Vec<CertFacts>,
    /// With cert-manager: what it issued last.
    pub offered: Option<LeafFacts>,
    /// With cert-manager: CAs in ca.crt beside it.
    pub offered_cas: Vec<CertFacts>,
}

/// A CA that is trusted, and since when. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trust {
    /// Of the CA's certificate.
    pub fingerprint: String,
    /// When it was first seen in the bundle of every workload that has a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// When no workload's certificate was of it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unused_since: Option<u64>,
}

/// The Secret NAME-ca.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthorityFacts {
    /// tls.crt, if tls.key is its key.
    pub signing: Option<CertFacts>,
    /// next.crt, if next.key is its key.
    pub next: Option<CertFacts>,
    /// All in ca.crt.
    pub bundle: Vec<CertFacts>,
    /// The annotation; empty if it is not there or cannot be read.
    pub trusted: Vec<Trust>,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Seconds since 1970.
    pub now: u64,
    /// `spec.certificates.issuer`.
    pub issuer: Issuer,
    /// Life of a workload's certificate, in seconds.
    pub validity: u64,
    /// Life of a CA, in seconds.
    pub ca_validity: u64,
    /// Usually [`MOUNT`].
    pub mount: u64,
    /// The Secret NAME-ca; default if it is not there.
    pub authority: AuthorityFacts,
    /// One for each of [`workloads`].
    pub identities: Vec<IdentityFacts>,
}

/// What to make. In this order; each is complete in itself, and seen in the next pass if the operator dies after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertAction {
    /// Make a CA and write it as tls.crt and tls.key of NAME-ca, and into ca.crt. `until` is its end.
    CreateAuthority {
        /// Seconds since 1970.
        until: u64,
    },
    /// Make a CA and write it as next.crt and next.key of NAME-ca, and into ca.crt.
    PrepareNext {
        /// Seconds since 1970.
        until: u64,
    },
    /// Write next.crt and next.key as tls.crt and tls.key, and remove them, in one write.
    PromoteNext,
    /// Make a key and a certificate for a workload, signed by what is tls.crt of NAME-ca by now.
    Issue {
        /// For whom.
        workload: Workload,
        /// Its end, seconds since 1970; not after that of the CA.
        until: u64,
    },
    /// Copy tls.crt and tls.key of cert-manager's Secret to the workload's.
    Copy {
        /// For whom.
        workload: Workload,
    },
}

/// How the certificates are, for condition CertificatesReady.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertState {
    /// All are there and fit.
    Ready,
    /// All are there and fit; some are being replaced.
    Rotating(String),
    /// Some are not there yet.
    Missing(String),
    /// A person is needed.
    Trouble(String),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertPlan {
    /// Before bundles are written.
    pub actions: Vec<CertAction>,
    /// What ca.crt of NAME-ca and of every identity Secret is to hold, in this order, and the annotation. A CA that an
    /// action of this plan makes is added behind them, without times.
    pub trusted: Vec<Trust>,
    /// State after the actions.
    pub state: CertState,
    /// When to decide again at the latest, seconds since 1970.
    pub look_again: u64,
    /// End of the CA that signs.
    pub ca_not_after: Option<u64>,
    /// End of the workload certificate that ends first.
    pub workload_not_after: Option<u64>,
}

/// The public certificate, in the Secret that `spec.relay.certificate` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicFacts {
    /// There is no such Secret.
    Missing,
    /// It has no certificate with a key that is its key; why.
    Unusable(String),
    /// What it has.
    Present {
        /// The certificate.
        cert: CertFacts,
        /// It is valid for `spec.relay.hostname`.
        names_host: bool,
    },
}
