//! Any observation at all, also such as cannot be: what is never done.
use super::super::{Plan, Step, plan};
use crate::{
    Names,
    observed::{
        ClusterFacts, GroupFacts, MemberFacts, MemberState, Observed, PodFacts, RelayFacts,
        StatefulSetFacts, VolumeFacts, Wanted,
    },
};
use proptest::{collection::vec, option, prelude::*};
use sealane_crd::OnScaleDown;

fn state() -> impl Strategy<Value = MemberState> {
    prop_oneof![
        6 => Just(MemberState::Active),
        2 => Just(MemberState::Spare),
        1 => Just(MemberState::Leaving),
        1 => Just(MemberState::Lost),
        2 => Just(MemberState::Removed),
        1 => Just(MemberState::Unknown),
    ]
}

prop_compose! {
    fn wanted()(replicas in 1..8u32, copies in prop_oneof![Just(1u32), Just(3), Just(5)], image in "v[12]", large in any::<bool>(), delete in any::<bool>(), paused in prop::bool::weighted(0.05)) -> Wanted {
        Wanted {
            replicas,
            copies,
            image,
            storage: if large { "20Gi" } else { "10Gi" }.to_owned(),
            on_scale_down: if delete { OnScaleDown::Delete } else { OnScaleDown::Retain },
            paused,
        }
    }
}

prop_compose! {
    fn set()(replicas in 1..8u32, generation in 1..3i64, observed_generation in 0..3i64, revision in option::weighted(0.9, "r[12]"), image in "v[12]", terminating in prop::bool::weighted(0.02)) -> StatefulSetFacts {
        StatefulSetFacts {
            replicas,
            generation,
            observed_generation,
            update_revision: revision,
            image,
            storage: "10Gi".to_owned(),
            terminating,
        }
    }
}

prop_compose! {
    fn pod(ordinal: u32)(uid in "[a-c]", ready in prop::bool::weighted(0.9), running in prop::bool::weighted(0.9), terminating in prop::bool::weighted(0.03), revision in option::weighted(0.95, "r[12]")) -> PodFacts {
        PodFacts { ordinal, uid, ready, running, terminating, revision, trouble: None }
    }
}

prop_compose! {
    fn group(group: u32)(leader in option::weighted(0.95, 1..10u64), voters in proptest::collection::btree_set(1..10u64, 1..6), quorum in prop::bool::weighted(0.95)) -> GroupFacts {
        let voters: Vec<u64> = voters.into_iter().collect();
        GroupFacts { group, leader, wanted: voters.clone(), voters, quorum }
    }
}

fn pods(n: u32) -> impl Strategy<Value = Vec<PodFacts>> {
    (0..n).map(pod).collect::<Vec<_>>()
}

fn cluster() -> impl Strategy<Value = ClusterFacts> {
    let members = vec((0..9u32, state(), 0..9u32, 0..9u64), 1..10);
    let groups = (0..3u32).map(group).collect::<Vec<_>>();
    (members, groups, prop::bool::weighted(0.8)).prop_map(|(members, groups, settled)| {
        ClusterFacts {
            id: "c".to_owned(),
            members: (1u64..)
                .zip(members)
                .map(|(id, (n, state, leads, joined_at))| MemberFacts {
                    id,
                    name: if n == 8 {
                        "stranger".to_owned()
                    } else {
                        format!("mail-control-{n}")
                    },
                    state,
                    joined_at,
                    shards: leads,
                    leads,
                })
                .collect(),
            groups,
            settled,
        }
    })
}

fn observed() -> impl Strategy<Value = Observed> {
    let volumes = proptest::collection::btree_set(0..8u32, 0..8);
    let parts = (
        wanted(),
        option::weighted(0.95, set()),
        (0..8u32).prop_flat_map(pods),
        volumes,
        option::weighted(0.9, cluster()),
    );
    (parts, any::<bool>(), prop::bool::weighted(0.9)).prop_map(
        |((wanted, stateful_set, pods, volumes, cluster), founded, same)| Observed {
            names: Names::new("ns", "mail"),
            wanted,
            founded,
            cluster_id: founded.then(|| if same { "c" } else { "d" }.to_owned()),
            stateful_set,
            pods,
            volumes: volumes
                .into_iter()
                .map(|ordinal| VolumeFacts {
                    ordinal,
                    uid: "v".to_owned(),
                    created_at: 4,
                    storage: "10Gi".to_owned(),
                    terminating: ordinal == 7,
                })
                .collect(),
            cluster,
            relays: Some(RelayFacts {
                image: "v1".to_owned(),
                replicas: 2,
                generation: 1,
                observed_generation: 1,
                total: 2,
                updated: 2,
                ready: 2,
            }),
        },
    )
}

/// Members of a name, as the facts have them.
fn named<'a>(o: &'a Observed, name: &str) -> Vec<&'a MemberFacts> {
    let all = o.cluster.iter().flat_map(|c| &c.members);
    all.filter(|m| m.name == name).collect()
}

fn alive(o: &Observed, name: &str) -> Option<MemberFacts> {
    let all = named(o, name)
        .into_iter()
        .filter(|m| m.state != MemberState::Removed);
    all.max_by_key(|m| m.id).cloned()
}

/// Ready voters of a group without one node, by nothing but the facts.
fn ready_voters(o: &Observed, g: &GroupFacts, without: Option<u64>) -> usize {
    let is_ready = |id: &&u64| {
        o.pods.iter().any(|p| {
            let m = alive(o, &o.names.control_pod(p.ordinal));
            p.ready && !p.terminating && m.is_some_and(|m| m.id == **id && m.state.is_listened_to())
        })
    };
    g.voters
        .iter()
        .filter(|id| Some(**id) != without)
        .filter(is_ready)
        .count()
}

fn is_removed(o: &Observed, name: &str) -> bool {
    !named(o, name).is_empty() && alive(o, name).is_none()
}

/// Nothing depends on the pod of a removed member.
fn is_ready_or_removed(o: &Observed, n: u32) -> bool {
    is_removed(o, &o.names.control_pod(n)) || o.pods.iter().any(|p| p.ordinal == n && p.ready)
}

fn check(o: &Observed, p: &Plan) {
    let Some(step) = &p.step else { return };
    assert!(p.waiting.is_none() && !o.wanted.paused);
    let set = o.stateful_set.as_ref();
    match step {
        Step::CreateControlPlane { replicas } => {
            assert!(set.is_none());
            assert!(o.pods.iter().all(|p| p.ordinal < *replicas));
            return;
        }
        _ => assert!(set.unwrap().is_current(), "acts on a status that is behind"),
    }
    let set = set.unwrap();
    assert!(
        o.pods.iter().all(|p| !p.terminating),
        "acts while a pod is ending"
    );
    match step {
        Step::CreateControlPlane { .. } => unreachable!(),
        Step::RestartPod { name, .. } => {
            let pod = o
                .pods
                .iter()
                .find(|p| o.names.control_pod(p.ordinal) == *name)
                .unwrap();
            if o.volumes
                .iter()
                .any(|x| x.ordinal == pod.ordinal && x.terminating)
                && is_removed(o, name)
            {
                return;
            }
            assert_ne!(pod.revision, set.update_revision);
            if !pod.ready {
                return;
            }
            let cluster = o.cluster.as_ref().unwrap();
            assert!(cluster.settled);
            assert!((0..set.replicas).all(|n| is_ready_or_removed(o, n)));
            let id = alive(o, name).map(|m| m.id);
            for g in &cluster.groups {
                let single = o.wanted.copies == 1 && g.voters.len() == 1;
                assert!(g.leader.is_some() && g.quorum);
                assert!(
                    single || ready_voters(o, g, id) * 2 > g.voters.len(),
                    "group {} loses its majority",
                    g.group
                );
            }
            assert!(cluster.members.iter().all(|m| m.name == "stranger"
                || m.state != MemberState::Leaving
                || alive(o, &m.name).is_none_or(|a| a.id != m.id)));
        }
        Step::RaiseReplicas { replicas } => assert!(*replicas > set.replicas),
        Step::LowerReplicas { replicas } => {
            assert_eq!(replicas + 1, set.replicas);
            assert_eq!(alive(o, &o.names.control_pod(*replicas)), None);
        }
        Step::AddMember { name } => {
            let n = o.names.ordinal(name).unwrap();
            assert!(n < o.wanted.replicas);
            let m = alive(o, name).unwrap();
            assert!(matches!(m.state, MemberState::Spare | MemberState::Leaving));
        }
        Step::RemoveMember { name } => {
            let n = o.names.ordinal(name).unwrap();
            assert!(n >= o.wanted.replicas);
            let m = alive(o, name).unwrap();
            assert!(matches!(
                m.state,
                MemberState::Spare | MemberState::Active | MemberState::Lost
            ));
            let cluster = o.cluster.as_ref().unwrap();
            if m.state == MemberState::Active {
                let active = cluster
                    .members
                    .iter()
                    .filter(|m| m.state == MemberState::Active)
                    .count();
                assert!(active > usize::try_from(o.wanted.copies).unwrap());
                assert!(cluster.settled);
                for g in &cluster.groups {
                    let single = o.wanted.copies == 1 && g.voters == [m.id];
                    assert!(single || ready_voters(o, g, Some(m.id)) * 2 > g.voters.len());
                }
            }
        }
        Step::DeleteVolume { name, .. } => {
            let n = o.names.volume_ordinal(name).unwrap();
            let pod = o.names.control_pod(n);
            let has_pod = o.pods.iter().any(|p| p.ordinal == n);
            assert!(n >= set.replicas || (n < o.wanted.replicas && has_pod));
            assert!(n < set.replicas || !has_pod);
            assert!(is_removed(o, &pod));
            assert_eq!(o.wanted.on_scale_down, OnScaleDown::Delete);
        }
        Step::RecreateStatefulSet => {
            assert!((0..set.replicas).all(|n| is_ready_or_removed(o, n)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn nothing_that_works_is_taken_away(o in observed()) {
        check(&o, &plan(&o));
    }

    #[test]
    fn the_order_of_lists_does_not_matter(
        (a, b) in observed().prop_flat_map(|o| {
            let lists = (Just(o.pods.clone()).prop_shuffle(), Just(o.volumes.clone()).prop_shuffle());
            (Just(o), lists).prop_map(|(a, (pods, volumes))| {
                let mut b = Observed { pods, volumes, ..a.clone() };
                if let Some(c) = &mut b.cluster {
                    c.members.reverse();
                }
                (a, b)
            })
        })
    ) {
        prop_assert_eq!(plan(&a), plan(&b));
    }

    #[test]
    fn relays_follow_only_a_control_plane_that_is_current(o in observed()) {
        let p = plan(&o);
        if p.relay_image != "v1" {
            prop_assert!(p.control_current);
            let set = o.stateful_set.unwrap();
            prop_assert_eq!(set.image, o.wanted.image);
            prop_assert!(o.pods.iter().filter(|p| p.ordinal < set.replicas).all(|p| p.ready && p.revision == set.update_revision));
        }
    }
}
