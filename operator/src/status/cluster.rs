//! The status of a RelayCluster, from what was observed and planned. Pure but for the time of conditions that change.
use crate::{certificates::Certificates, control_client::Answers};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::Resource;
use sealane_crd::{
    CertificateTimes, MemberStatus, QueueStatus, RelayCluster, RelayClusterStatus, reason,
};
use sealane_plan::{
    Observed, Plan, ValidCluster,
    build::relay_selector,
    certs::PublicFacts,
    conditions::{self, ClusterView, PolicyState},
    observed::{MemberFacts, MemberState, RelayFacts},
};
use std::collections::BTreeMap;

/// What a pass found and decided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub(crate) valid: &'a ValidCluster,
    pub(crate) observed: &'a Observed,
    /// The Deployment as it is after it was applied.
    pub(crate) relays: Option<&'a RelayFacts>,
    pub(crate) plan: &'a Plan,
    pub(crate) certificates: &'a Certificates,
    pub(crate) answers: Option<&'a Answers>,
    pub(crate) policy: &'a PolicyState,
}

/// What nobody could say in this pass stays as it was.
pub(crate) fn of_cluster(cluster: &RelayCluster, s: &Seen<'_>) -> RelayClusterStatus {
    let old = cluster.status.clone().unwrap_or_default();
    let spec = s.valid.spec();
    let members = members(s, &old);
    let leaders = match s.answers {
        None => old.leaders.clone(),
        Some(_) => members
            .iter()
            .filter(|m| m.leads > 0)
            .map(|m| (m.name.clone(), m.leads))
            .collect(),
    };
    let ready = s
        .observed
        .pods
        .iter()
        .filter(|p| p.ready && !p.terminating)
        .count();
    let relays_complete = s
        .relays
        .is_some_and(|r| r.image == spec.image && r.is_complete());
    let all_run = s.plan.control_current && relays_complete;
    let wanted = conditions::cluster(&ClusterView {
        plan: s.plan,
        relays: s.relays,
        relays_wanted: spec.relay.replicas,
        certs: &s.certificates.plan,
        public: &s.certificates.public,
        public_secret: &spec.relay.certificate.secret_name,
        hostname: &spec.relay.hostname,
        policy: s.policy,
        now: u64::try_from(Timestamp::now().as_second()).unwrap_or(0),
    });
    RelayClusterStatus {
        observed_generation: cluster.meta().generation,
        replicas: s.relays.map_or(0, |r| r.total),
        ready_replicas: s.relays.map_or(0, |r| r.ready),
        selector: relay_selector(s.valid.names()),
        conditions: super::conditions(cluster, &old.conditions, &wanted),
        founded: s.plan.founded,
        cluster_id: s.plan.cluster_id.clone(),
        members_ready: format!("{ready}/{}", spec.control_plane.replicas),
        leaders,
        members,
        queue: s.answers.map_or(old.queue, |a| Some(queue(a))),
        policy_revision: s.answers.map(|a| a.policy_revision).or(old.policy_revision),
        step: step(s.plan),
        version: if all_run {
            Some(spec.image.clone())
        } else {
            old.version.clone()
        },
        certificates: Some(times(s.certificates)),
    }
}

fn step(plan: &Plan) -> Option<String> {
    let step = plan.step.as_ref().map(ToString::to_string);
    let waiting = plan.waiting.as_ref().filter(|w| w.reason != reason::PAUSED);
    step.or_else(|| waiting.map(|w| w.message.clone()))
}

/// Those that count; the state is the control plane's own word.
fn members(s: &Seen<'_>, old: &RelayClusterStatus) -> Vec<MemberStatus> {
    let names = s.valid.names();
    let ready = |name: &str| {
        let ordinal = names.ordinal(name);
        let mut pods = s.observed.pods.iter();
        pods.any(|p| Some(p.ordinal) == ordinal && p.ready && !p.terminating)
    };
    let (Some(answers), Some(cluster)) = (s.answers, &s.observed.cluster) else {
        let stale = old.members.iter().cloned();
        return stale
            .map(|m| MemberStatus {
                ready: ready(&m.name),
                ..m
            })
            .collect();
    };
    let word = |m: &MemberFacts| {
        let mut all = answers.nodes.nodes.iter();
        let found = all.find(|n| n.node_id == m.id && n.name == m.name);
        found.map(|n| n.state.clone()).unwrap_or_default()
    };
    let mut all: Vec<MemberStatus> = cluster
        .members
        .iter()
        .filter(|m| m.state != MemberState::Removed)
        .map(|m| MemberStatus {
            name: m.name.clone(),
            id: m.id,
            state: word(m),
            // A pod that is ready under the name of a lost member is another one.
            ready: m.state.is_listened_to() && ready(&m.name),
            shards: m.shards,
            leads: m.leads,
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name).then(a.id.cmp(&b.id)));
    all
}

/// Of each shard the best word counts once.
fn queue(answers: &Answers) -> QueueStatus {
    let shards: BTreeMap<u32, (u64, u64)> = answers
        .groups
        .iter()
        .filter(|(group, _)| **group != 0)
        .map(|(group, g)| (*group, (g.status.waiting, g.status.oldest_age_ms)))
        .collect();
    let oldest = shards.values().map(|(_, age)| *age).max().unwrap_or(0) / 1000;
    QueueStatus {
        waiting: shards.values().map(|(waiting, _)| *waiting).sum(),
        // To the minute: a status that changes every second is written every second.
        oldest_age_seconds: oldest / 60 * 60,
    }
}

fn times(c: &Certificates) -> CertificateTimes {
    let at = |seconds: u64| {
        let seconds = i64::try_from(seconds).ok()?;
        Timestamp::from_second(seconds).ok().map(Time)
    };
    let public = match &c.public {
        PublicFacts::Present { cert, .. } => Some(cert.not_after),
        PublicFacts::Missing | PublicFacts::Unusable(_) => None,
    };
    CertificateTimes {
        ca_not_after: c.plan.ca_not_after.and_then(at),
        workload_not_after: c.plan.workload_not_after.and_then(at),
        public_not_after: public.and_then(at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_client::GroupAnswer;
    use sealane_wire::v1;

    #[test]
    fn the_queue_counts_each_shard_once_and_its_age_to_the_minute() {
        let group = |group: u32, waiting, oldest_age_ms| {
            let status = v1::GroupStatus {
                group,
                waiting,
                oldest_age_ms,
                ..Default::default()
            };
            (
                group,
                GroupAnswer {
                    status,
                    by_leader: true,
                },
            )
        };
        let answers = Answers {
            groups: [group(0, 99, 0), group(1, 3, 125_000), group(2, 4, 59_000)].into(),
            ..Answers::default()
        };
        let q = queue(&answers);
        assert_eq!((q.waiting, q.oldest_age_seconds), (7, 120));
    }
}
