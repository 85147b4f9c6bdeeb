//! Conditions of both resources. `docs/kubernetes.md` says what each means and what to do.
#[cfg(test)]
mod tests;

use crate::{
    certs::{CertPlan, CertState, PublicFacts},
    observed::RelayFacts,
    plan::{Plan, Quorum},
    policy::{Merged, PolicyVerdict},
    validate::SpecError,
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use sealane_crd::{condition, reason};

/// Of how much of its life a certificate that nobody here renews may be left before it is reported, in seconds.
const PUBLIC_SOON: u64 = 14 * 86_400;

/// A condition without its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// One of [`sealane_crd::condition`].
    pub type_: &'static str,
    /// `None`: Unknown.
    pub status: Option<bool>,
    /// One of [`sealane_crd::reason`].
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

fn wanted(
    type_: &'static str,
    status: Option<bool>,
    reason: &'static str,
    message: impl Into<String>,
) -> Wanted {
    Wanted {
        type_,
        status,
        reason,
        message: message.into(),
    }
}

/// How the policy of a cluster stands.
#[derive(Debug, Clone, PartialEq)]
pub enum PolicyState {
    /// No RelayPolicy names the cluster.
    NotManaged,
    /// Refused.
    Refused(Merged),
    /// Valid, and live under this revision.
    Live {
        /// What was merged.
        merged: Merged,
        /// The revision.
        revision: u64,
    },
    /// Valid, and not live yet; why.
    Pending {
        /// What was merged.
        merged: Merged,
        /// For people.
        why: String,
    },
}

/// What the conditions of a RelayCluster are about.
#[derive(Debug, Clone, Copy)]
pub struct ClusterView<'a> {
    /// What is done in this pass.
    pub plan: &'a Plan,
    /// The Deployment; `None`: there is none yet.
    pub relays: Option<&'a RelayFacts>,
    /// `spec.relay.replicas`.
    pub relays_wanted: u32,
    /// Certificates of the workloads.
    pub certs: &'a CertPlan,
    /// The certificate that SMTP clients see.
    pub public: &'a PublicFacts,
    /// `spec.relay.certificate.secretName`.
    pub public_secret: &'a str,
    /// `spec.relay.hostname`.
    pub hostname: &'a str,
    /// The policy.
    pub policy: &'a PolicyState,
    /// Seconds since 1970.
    pub now: u64,
}

/// Conditions of a RelayCluster whose spec is refused: what was observed before stays, but for these.
pub fn refused(errors: &[SpecError]) -> Vec<Wanted> {
    let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let message = format!(
        "nothing is changed until this is mended: {}",
        all.join("; ")
    );
    vec![
        wanted(
            condition::PROGRESSING,
            Some(false),
            reason::INVALID,
            message.clone(),
        ),
        wanted(condition::DEGRADED, Some(true), reason::INVALID, message),
    ]
}

/// All conditions of a RelayCluster.
pub fn cluster(v: &ClusterView<'_>) -> Vec<Wanted> {
    vec![
        available(v),
        progressing(v),
        degraded(v),
        quorum(&v.plan.quorum),
        certificates(v),
        policy(v.policy),
    ]
}

fn available(v: &ClusterView<'_>) -> Wanted {
    let no = |reason, message: String| wanted(condition::AVAILABLE, Some(false), reason, message);
    match &v.plan.quorum {
        Quorum::Lost(why) => return no(reason::NO_QUORUM, why.clone()),
        Quorum::Unknown { reason, message } => return no(*reason, message.clone()),
        Quorum::Healthy | Quorum::Reduced(_) => {}
    }
    let ready = v.relays.map_or(0, |r| r.ready);
    if ready > 0 {
        let message = format!("{ready} relay nodes take mail");
        return wanted(condition::AVAILABLE, Some(true), reason::READY, message);
    }
    let why = if v.relays_wanted == 0 {
        "spec.relay.replicas is 0: no mail is taken or delivered; the queue is kept".to_owned()
    } else {
        "no relay node is ready: look at its log; without a policy it is never ready".to_owned()
    };
    no(reason::NO_RELAYS, why)
}

fn progressing(v: &ClusterView<'_>) -> Wanted {
    let is = |status, reason, message: String| {
        wanted(condition::PROGRESSING, Some(status), reason, message)
    };
    if let Some(step) = &v.plan.step {
        return is(true, reason::STEPPING, step.to_string());
    }
    if let Some(w) = &v.plan.waiting {
        return is(w.reason != reason::PAUSED, w.reason, w.message.clone());
    }
    match v.relays {
        None => is(
            true,
            reason::ROLLING,
            "relay nodes are being made".to_owned(),
        ),
        Some(r) if !r.is_complete() => is(
            true,
            reason::ROLLING,
            format!(
                "relay nodes: {} of {} are of the newest template, {} are ready",
                r.updated, r.replicas, r.ready
            ),
        ),
        Some(_) => is(
            false,
            reason::SETTLED,
            "everything is as it is to be".to_owned(),
        ),
    }
}

fn degraded(v: &ClusterView<'_>) -> Wanted {
    let is = |reason, message: String| wanted(condition::DEGRADED, Some(true), reason, message);
    if let Some(first) = v.plan.troubles.first() {
        let all: Vec<&str> = v.plan.troubles.iter().map(|t| t.message.as_str()).collect();
        return is(first.reason, all.join("; "));
    }
    if let CertState::Trouble(why) = &v.certs.state {
        return is(reason::MISSING, why.clone());
    }
    if let Some(w) = public(v) {
        return is(w.0, w.1);
    }
    if let PolicyState::Refused(merged) = v.policy {
        return is(reason::INVALID, merged.refusal().unwrap_or_default());
    }
    wanted(
        condition::DEGRADED,
        Some(false),
        reason::READY,
        "nothing needs a person",
    )
}

fn quorum(q: &Quorum) -> Wanted {
    let is = |status, reason, message: String| {
        wanted(condition::QUORUM_HEALTHY, status, reason, message)
    };
    match q {
        Quorum::Healthy => is(
            Some(true),
            reason::READY,
            "every group has a leader, and all its voters are ready".to_owned(),
        ),
        Quorum::Reduced(why) => is(Some(false), reason::MEMBER_DOWN, why.clone()),
        Quorum::Lost(why) => is(Some(false), reason::NO_QUORUM, why.clone()),
        Quorum::Unknown { reason, message } => is(None, *reason, message.clone()),
    }
}

/// What is wrong with the public certificate.
fn public(v: &ClusterView<'_>) -> Option<(&'static str, String)> {
    let secret = v.public_secret;
    match v.public {
        PublicFacts::Missing => Some((
            reason::MISSING,
            format!(
                "spec.relay.certificate.secretName: there is no Secret {secret:?}; relay nodes do not start without it"
            ),
        )),
        PublicFacts::Unusable(why) => Some((
            reason::MISSING,
            format!("spec.relay.certificate.secretName: the Secret {secret:?}: {why}"),
        )),
        PublicFacts::Present {
            names_host: false, ..
        } => Some((
            reason::INVALID,
            format!(
                "the certificate in the Secret {secret:?} is not valid for {:?}: clients that verify it refuse to send",
                v.hostname
            ),
        )),
        PublicFacts::Present { cert, .. } if cert.not_after <= v.now => Some((
            reason::EXPIRING,
            format!(
                "the certificate in the Secret {secret:?} is over: clients that verify it refuse to send"
            ),
        )),
        PublicFacts::Present { cert, .. } if cert.not_after < v.now.saturating_add(PUBLIC_SOON) => {
            Some((
                reason::EXPIRING,
                format!(
                    "the certificate in the Secret {secret:?} ends in less than 14 days and was not renewed"
                ),
            ))
        }
        PublicFacts::Present { .. } => None,
    }
}

fn certificates(v: &ClusterView<'_>) -> Wanted {
    let is = |status, reason, message: String| {
        wanted(condition::CERTIFICATES_READY, Some(status), reason, message)
    };
    let over = v.certs.workload_not_after.is_some_and(|at| at <= v.now);
    match &v.certs.state {
        CertState::Trouble(why) => return is(false, reason::MISSING, why.clone()),
        CertState::Missing(why) => return is(false, reason::ISSUING, why.clone()),
        _ if over => {
            let why = "a workload certificate is over; it is being replaced".to_owned();
            return is(false, reason::EXPIRING, why);
        }
        CertState::Ready | CertState::Rotating(_) => {}
    }
    if let Some((reason, why)) = public(v) {
        return is(false, reason, why);
    }
    match &v.certs.state {
        CertState::Rotating(why) => is(true, reason::ROTATING, why.clone()),
        _ => is(
            true,
            reason::READY,
            "all certificates are there and valid for long enough".to_owned(),
        ),
    }
}

fn policy(p: &PolicyState) -> Wanted {
    let is =
        |status, reason, message: String| wanted(condition::POLICY_SYNCED, status, reason, message);
    match p {
        PolicyState::NotManaged => is(
            None,
            reason::NOT_MANAGED,
            "no RelayPolicy names this cluster: `sealane policy` manages it".to_owned(),
        ),
        PolicyState::Refused(m) => is(
            Some(false),
            reason::INVALID,
            format!(
                "nothing is applied, what is live stays: {}",
                m.refusal().unwrap_or_default()
            ),
        ),
        PolicyState::Live { merged, revision } => is(
            Some(true),
            reason::APPLIED,
            match merged.verdicts.len() {
                1 => format!("1 RelayPolicy is live as revision {revision}"),
                n => format!("{n} RelayPolicies are live as revision {revision}"),
            },
        ),
        PolicyState::Pending { why, .. } => is(Some(false), reason::PENDING, why.clone()),
    }
}

/// Conditions of one RelayPolicy of a cluster.
pub fn policy_conditions(verdict: &PolicyVerdict, state: &PolicyState) -> Vec<Wanted> {
    let valid = match verdict.invalid() {
        None => wanted(
            condition::VALID,
            Some(true),
            reason::VALID,
            format!("{} documents are valid", verdict.documents),
        ),
        Some(why) => wanted(condition::VALID, Some(false), reason::INVALID, why),
    };
    let conflict = match verdict.conflict() {
        None => wanted(
            condition::CONFLICT,
            Some(false),
            reason::NO_CONFLICT,
            "no other RelayPolicy has a document of the same kind and name",
        ),
        Some(why) => wanted(condition::CONFLICT, Some(true), reason::CONFLICT, why),
    };
    let synced = match state {
        PolicyState::Live { revision, .. } => wanted(
            condition::SYNCED,
            Some(true),
            reason::APPLIED,
            format!("live in revision {revision}"),
        ),
        PolicyState::Pending { why, .. } => {
            wanted(condition::SYNCED, Some(false), reason::PENDING, why.clone())
        }
        PolicyState::Refused(_) if !verdict.faults.is_empty() => wanted(
            condition::SYNCED,
            Some(false),
            reason::INVALID,
            "refused; what is live stays",
        ),
        PolicyState::Refused(m) => wanted(
            condition::SYNCED,
            Some(false),
            reason::OTHERS_REFUSED,
            format!(
                "all RelayPolicies of a cluster are applied together, and another one is refused: {}",
                m.refusal().unwrap_or_default()
            ),
        ),
        PolicyState::NotManaged => wanted(
            condition::SYNCED,
            None,
            reason::PENDING,
            "not looked at yet",
        ),
    };
    vec![valid, conflict, synced]
}

/// Conditions of a RelayPolicy that names a RelayCluster which does not exist.
pub fn orphaned(cluster: &str) -> Vec<Wanted> {
    vec![wanted(
        condition::SYNCED,
        Some(false),
        reason::NO_CLUSTER,
        format!("spec.clusterRef.name: there is no RelayCluster {cluster:?} in this namespace"),
    )]
}

/// The conditions to write: those that are there stay unless they are in `new`, in the order of their types; the time of one
/// changes only with its status.
pub fn update(
    old: &[Condition],
    new: &[Wanted],
    generation: i64,
    now: Timestamp,
) -> Vec<Condition> {
    let mut all: Vec<Condition> = old
        .iter()
        .filter(|c| !new.iter().any(|w| w.type_ == c.type_))
        .cloned()
        .collect();
    for w in new {
        let status = match w.status {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let before = old
            .iter()
            .find(|c| c.type_ == w.type_ && c.status == status);
        all.push(Condition {
            type_: w.type_.to_owned(),
            status: status.to_owned(),
            reason: w.reason.to_owned(),
            message: shortened(&w.message),
            observed_generation: Some(generation),
            last_transition_time: before.map_or(Time(now), |c| c.last_transition_time.clone()),
        });
    }
    all.sort_by(|a, b| a.type_.cmp(&b.type_));
    all
}

/// Kubernetes takes 32768 octets; nobody reads them.
fn shortened(s: &str) -> String {
    const MOST: usize = 2000;
    if s.chars().count() <= MOST {
        return s.to_owned();
    }
    let mut text: String = s.chars().take(MOST).collect();
    text.push('…');
    text
}
