//! From objects of the API, and answers of the control plane, to the facts that the plan reads. Pure.
use crate::control_client::Answers;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{Container, ContainerStatus, PersistentVolumeClaim, Pod, PodTemplateSpec},
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::ResourceExt;
use sealane_plan::{
    Names,
    observed::{
        ClusterFacts, GroupFacts, MemberFacts, MemberState, PodFacts, RelayFacts, StatefulSetFacts,
        VolumeFacts,
    },
};
use sealane_wire::v1::{self, node_info::Kind};
use std::collections::BTreeMap;

/// Label that the StatefulSet controller gives its pods.
const REVISION: &str = "controller-revision-hash";

fn count(n: Option<i32>) -> u32 {
    n.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

/// `spec.replicas`, which is 1 where it is absent.
fn wanted(n: Option<i32>) -> u32 {
    n.map_or(1, |n| count(Some(n)))
}

fn storage(requests: Option<&BTreeMap<String, Quantity>>) -> String {
    let found = requests.and_then(|r| r.get("storage"));
    found.map(|q| q.0.clone()).unwrap_or_default()
}

fn image(template: &PodTemplateSpec) -> String {
    let first = template.spec.as_ref().and_then(|s| s.containers.first());
    first
        .and_then(|c: &Container| c.image.clone())
        .unwrap_or_default()
}

pub(super) fn stateful_set(s: &StatefulSet) -> StatefulSetFacts {
    let spec = s.spec.clone().unwrap_or_default();
    let status = s.status.clone().unwrap_or_default();
    let claims = spec.volume_claim_templates.unwrap_or_default();
    let data = claims
        .iter()
        .find(|c| c.metadata.name.as_deref() == Some("data"));
    let resources = data.and_then(|c| c.spec.as_ref()?.resources.as_ref());
    StatefulSetFacts {
        replicas: wanted(spec.replicas),
        generation: s.metadata.generation.unwrap_or(0),
        observed_generation: status.observed_generation.unwrap_or(0),
        update_revision: status.update_revision,
        image: image(&spec.template),
        storage: storage(resources.and_then(|r| r.requests.as_ref())),
        terminating: s.metadata.deletion_timestamp.is_some(),
    }
}

pub(super) fn relays(d: &Deployment) -> RelayFacts {
    let spec = d.spec.clone().unwrap_or_default();
    let status = d.status.clone().unwrap_or_default();
    RelayFacts {
        image: image(&spec.template),
        replicas: wanted(spec.replicas),
        generation: d.metadata.generation.unwrap_or(0),
        observed_generation: status.observed_generation.unwrap_or(0),
        total: count(status.replicas),
        updated: count(status.updated_replicas),
        ready: count(status.ready_replicas),
    }
}

/// `None`: not a pod of this control plane.
pub(super) fn pod(names: &Names, p: &Pod) -> Option<PodFacts> {
    let status = p.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    let state = |c: &ContainerStatus| c.state.clone().unwrap_or_default();
    let waiting = containers.iter().find_map(|c| state(c).waiting);
    let unscheduled = conditions
        .iter()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False");
    let trouble = match (waiting, unscheduled) {
        (Some(w), _) => text(w.reason, w.message),
        (None, Some(u)) => text(u.reason.clone(), u.message.clone()),
        (None, None) => None,
    };
    Some(PodFacts {
        ordinal: names.ordinal(p.metadata.name.as_deref()?)?,
        uid: p.metadata.uid.clone().unwrap_or_default(),
        ready: conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True"),
        running: !containers.is_empty() && containers.iter().all(|c| state(c).running.is_some()),
        terminating: p.metadata.deletion_timestamp.is_some(),
        revision: p.labels().get(REVISION).cloned(),
        trouble,
    })
}

fn text(reason: Option<String>, message: Option<String>) -> Option<String> {
    match (reason, message) {
        (Some(r), Some(m)) if !m.is_empty() => Some(format!("{r}: {m}")),
        (Some(r), _) => Some(r),
        (None, m) => m,
    }
}

/// `None`: not a volume of this control plane.
pub(super) fn volume(names: &Names, c: &PersistentVolumeClaim) -> Option<VolumeFacts> {
    let resources = c.spec.as_ref().and_then(|s| s.resources.as_ref());
    Some(VolumeFacts {
        ordinal: names.volume_ordinal(c.metadata.name.as_deref()?)?,
        uid: c.metadata.uid.clone().unwrap_or_default(),
        created_at: c
            .metadata
            .creation_timestamp
            .as_ref()
            .and_then(|t| u64::try_from(t.0.as_second()).ok())
            .unwrap_or(0),
        storage: storage(resources.and_then(|r| r.requests.as_ref())),
        terminating: c.metadata.deletion_timestamp.is_some(),
    })
}

/// A group's quorum counts only on the word of its leader: others cannot know it.
pub(super) fn cluster(answers: &Answers) -> ClusterFacts {
    let members = answers
        .nodes
        .nodes
        .iter()
        .filter(|n| n.kind() == Kind::ControlPlane);
    let groups = answers.groups.values().map(|g| GroupFacts {
        group: g.status.group,
        leader: Some(g.status.leader).filter(|l| *l != 0),
        voters: g.status.voters.clone(),
        wanted: g.status.wanted.clone(),
        quorum: g.by_leader && g.status.quorum,
    });
    ClusterFacts {
        id: answers.cluster_id.clone(),
        members: members.map(member).collect(),
        groups: groups.collect(),
        settled: answers.nodes.settled,
    }
}

fn member(n: &v1::NodeInfo) -> MemberFacts {
    MemberFacts {
        id: n.node_id,
        name: n.name.clone(),
        state: MemberState::parse(&n.state),
        joined_at: n.connected_since_ms / 1000,
        shards: n.replicas,
        leads: n.shard_leads,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::control_client::GroupAnswer;
    use serde_json::json;

    fn names() -> Names {
        Names::new("ns", "mail")
    }

    #[test]
    fn a_pod_says_why_it_does_not_run() {
        let p: Pod = serde_json::from_value(json!({
            "metadata": {"name": "mail-control-2", "labels": {"controller-revision-hash": "abc"}},
            "status": {
                "conditions": [{"type": "Ready", "status": "False"}],
                "containerStatuses": [{"name": "control-plane", "ready": false, "restartCount": 3, "image": "i", "imageID": "",
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}}]
            }
        }))
        .unwrap();
        let f = pod(&names(), &p).unwrap();
        assert_eq!(
            (f.ordinal, f.ready, f.running, f.terminating),
            (2, false, false, false)
        );
        assert_eq!(f.revision.as_deref(), Some("abc"));
        assert_eq!(f.trouble.as_deref(), Some("CrashLoopBackOff: back-off 40s"));
    }

    #[test]
    fn a_pod_that_found_no_node_is_not_running() {
        let p: Pod = serde_json::from_value(json!({
            "metadata": {"name": "mail-control-0"},
            "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]}
        }))
        .unwrap();
        let f = pod(&names(), &p).unwrap();
        assert!(!f.running && !f.ready);
        assert_eq!(f.trouble.as_deref(), Some("Unschedulable: 0/3 nodes"));
    }

    #[test]
    fn pods_and_volumes_of_others_are_not_ours() {
        let p: Pod =
            serde_json::from_value(json!({"metadata": {"name": "mail2-control-0"}})).unwrap();
        assert!(pod(&names(), &p).is_none());
        let c: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"name": "data-mail2-control-0"}})).unwrap();
        assert!(volume(&names(), &c).is_none());
    }

    #[test]
    fn a_stateful_set_tells_its_storage_and_whether_its_status_is_current() {
        let s: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "mail-control", "generation": 4},
            "spec": {"replicas": 3, "serviceName": "x", "selector": {},
                "template": {"spec": {"containers": [{"name": "c", "image": "sealane:2"}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"resources": {"requests": {"storage": "10Gi"}}}}]},
            "status": {"replicas": 3, "observedGeneration": 3, "updateRevision": "mail-control-9"}
        }))
        .unwrap();
        let f = stateful_set(&s);
        assert_eq!(
            (f.replicas, f.storage.as_str(), f.image.as_str()),
            (3, "10Gi", "sealane:2")
        );
        assert!(!f.is_current());
    }

    #[test]
    fn a_quorum_counts_only_on_the_leaders_word() {
        let group = |by_leader| {
            let status = v1::GroupStatus {
                group: 1,
                leader: 2,
                quorum: true,
                ..Default::default()
            };
            let mut a = Answers::default();
            a.groups.insert(1, GroupAnswer { status, by_leader });
            cluster(&a).groups[0].quorum
        };
        assert!(group(true));
        assert!(!group(false));
    }

    #[test]
    fn relays_are_no_members() {
        let node = |kind: Kind, name: &str| v1::NodeInfo {
            kind: kind.into(),
            name: name.to_owned(),
            state: "leaving (3 replicas left)".to_owned(),
            ..Default::default()
        };
        let mut a = Answers::default();
        a.nodes.nodes = vec![
            node(Kind::ControlPlane, "mail-control-0"),
            node(Kind::Relay, "mail-relay-x"),
        ];
        let members = cluster(&a).members;
        assert_eq!(members.len(), 1);
        assert_eq!(members[0].state, MemberState::Leaving);
    }
}
