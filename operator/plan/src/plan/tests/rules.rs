//! One rule at a time, with what it says.
use super::super::{Plan, Quorum, Step, plan};
use crate::{
    Names,
    observed::{
        ClusterFacts, GroupFacts, MemberFacts, MemberState, Observed, PodFacts, RelayFacts,
        StatefulSetFacts, VolumeFacts, Wanted,
    },
};
use sealane_crd::{OnScaleDown, reason};

/// At rest: everything is as it is to be.
fn rest(nodes: u32) -> Observed {
    let ids: Vec<u64> = (1..=u64::from(nodes)).collect();
    let voters: Vec<u64> = ids.iter().copied().take(3).collect();
    Observed {
        names: Names::new("ns", "mail"),
        wanted: Wanted {
            replicas: nodes,
            copies: 3,
            image: "v1".to_owned(),
            storage: "10Gi".to_owned(),
            on_scale_down: OnScaleDown::Delete,
            paused: false,
        },
        founded: true,
        cluster_id: Some("c".to_owned()),
        stateful_set: Some(StatefulSetFacts {
            replicas: nodes,
            generation: 2,
            observed_generation: 2,
            update_revision: Some("r1".to_owned()),
            image: "v1".to_owned(),
            storage: "10Gi".to_owned(),
            terminating: false,
        }),
        pods: (0..nodes).map(pod).collect(),
        volumes: (0..nodes).map(volume).collect(),
        cluster: Some(ClusterFacts {
            id: "c".to_owned(),
            members: ids
                .iter()
                .zip(0..)
                .map(|(id, n)| MemberFacts {
                    id: *id,
                    name: format!("mail-control-{n}"),
                    state: MemberState::Active,
                    joined_at: 100,
                    shards: 8,
                    leads: 3 - u32::try_from(*id % 3).unwrap(),
                })
                .collect(),
            groups: (0..3)
                .map(|group| GroupFacts {
                    group,
                    leader: Some(voters[0]),
                    voters: voters.clone(),
                    wanted: voters.clone(),
                    quorum: true,
                })
                .collect(),
            settled: true,
        }),
        relays: Some(RelayFacts {
            image: "v1".to_owned(),
            replicas: 2,
            generation: 1,
            observed_generation: 1,
            total: 2,
            updated: 2,
            ready: 2,
        }),
    }
}

fn pod(ordinal: u32) -> PodFacts {
    PodFacts {
        ordinal,
        uid: format!("p{ordinal}"),
        ready: true,
        running: true,
        terminating: false,
        revision: Some("r1".to_owned()),
        trouble: None,
    }
}

fn volume(ordinal: u32) -> VolumeFacts {
    VolumeFacts {
        ordinal,
        uid: format!("v{ordinal}"),
        created_at: 50,
        storage: "10Gi".to_owned(),
        terminating: false,
    }
}

fn set(o: &mut Observed) -> &mut StatefulSetFacts {
    o.stateful_set.as_mut().unwrap()
}

fn member(o: &mut Observed, n: usize) -> &mut MemberFacts {
    &mut o.cluster.as_mut().unwrap().members[n]
}

fn step(o: &Observed) -> Step {
    let p = plan(o);
    p.step.clone().unwrap_or_else(|| panic!("no step: {p:?}"))
}

fn waits(o: &Observed, expected: &str) -> Plan {
    let p = plan(o);
    assert_eq!(p.step, None);
    let said = &p.waiting.as_ref().unwrap().message;
    assert!(
        said.contains(expected),
        "{said:?} does not contain {expected:?}"
    );
    p
}

fn restarts(n: u32) -> Step {
    Step::RestartPod {
        name: format!("mail-control-{n}"),
        uid: format!("p{n}"),
    }
}

#[test]
fn at_rest_nothing_is_done() {
    let p = plan(&rest(3));
    assert_eq!((p.step, p.waiting, p.troubles), (None, None, vec![]));
    assert_eq!(
        (p.quorum, p.control_replicas, p.ordinals),
        (Quorum::Healthy, 3, 3)
    );
    assert!(p.control_current && p.founded);
}

#[test]
fn copies_that_move_by_themselves_are_watched() {
    let mut o = rest(3);
    o.cluster.as_mut().unwrap().settled = false;
    let p = waits(&o, "copies are moving");
    assert_eq!(p.waiting.unwrap().reason, reason::STEPPING);
}

#[test]
fn paused_means_that_nothing_is_done() {
    let mut o = rest(3);
    o.wanted.replicas = 5;
    o.wanted.paused = true;
    let p = waits(&o, "spec.paused");
    assert_eq!(p.waiting.unwrap().reason, reason::PAUSED);
}

#[test]
fn the_control_plane_is_made_over_volumes_that_were_kept() {
    let mut o = rest(3);
    o.stateful_set = None;
    o.pods.clear();
    o.cluster = None;
    o.founded = false;
    o.volumes = vec![volume(4), volume(0)];
    assert_eq!(step(&o), Step::CreateControlPlane { replicas: 5 });
    o.volumes.clear();
    let p = plan(&o);
    assert_eq!(p.step, Some(Step::CreateControlPlane { replicas: 3 }));
    assert_eq!((p.control_replicas, p.ordinals, p.founded), (3, 3, false));
}

#[test]
fn nothing_is_done_on_a_status_that_is_behind_or_while_pods_come_and_go() {
    let mut o = rest(3);
    o.wanted.replicas = 5;
    set(&mut o).generation = 3;
    waits(&o, "has not looked at the StatefulSet");
    let mut o = rest(3);
    o.pods[1].terminating = true;
    waits(&o, "mail-control-1 is ending");
    let mut o = rest(3);
    o.pods.remove(2);
    waits(&o, "mail-control-2 is being made");
    let mut o = rest(3);
    o.pods.push(pod(3));
    waits(&o, "mail-control-3 is about to be stopped");
}

#[test]
fn an_old_template_is_replaced_one_by_one_and_who_leads_most_goes_last() {
    let mut o = rest(3);
    set(&mut o).update_revision = Some("r2".to_owned());
    for (n, leads) in [(0, 4), (1, 5), (2, 1)] {
        member(&mut o, n).leads = leads;
    }
    for n in [2, 0, 1] {
        assert_eq!(step(&o), restarts(n));
        let p = o.pods.iter_mut().find(|p| p.ordinal == n).unwrap();
        p.revision = Some("r2".to_owned());
    }
    assert_eq!(plan(&o).step, None);
}

#[test]
fn no_restart_while_another_one_is_not_ready_or_copies_move() {
    let mut o = rest(3);
    set(&mut o).update_revision = Some("r2".to_owned());
    o.pods[0].ready = false;
    o.pods[0].revision = Some("r2".to_owned());
    let p = waits(&o, "mail-control-0 is not ready");
    assert!(matches!(p.quorum, Quorum::Reduced(_)));
    let mut o = rest(3);
    set(&mut o).update_revision = Some("r2".to_owned());
    o.cluster.as_mut().unwrap().settled = false;
    waits(&o, "copies are moving");
    o.cluster.as_mut().unwrap().groups[1].quorum = false;
    let p = waits(&o, "groups 1 have no quorum");
    assert!(matches!(p.quorum, Quorum::Lost(_)));
}

#[test]
fn what_does_not_run_with_an_old_template_is_restarted_in_any_case() {
    let mut o = rest(3);
    set(&mut o).update_revision = Some("r2".to_owned());
    o.pods[1].ready = false;
    o.pods[1].running = false;
    o.cluster = None;
    assert_eq!(step(&o), restarts(1));
    o.pods[1].running = true;
    let p = waits(&o, "no control-plane node answers");
    assert_eq!(p.waiting.unwrap().reason, reason::UNREACHABLE);
}

#[test]
fn one_that_runs_and_is_not_ready_is_restarted_when_all_others_are() {
    let mut o = rest(3);
    set(&mut o).update_revision = Some("r2".to_owned());
    o.pods[1].ready = false;
    assert_eq!(step(&o), restarts(1));
    o.pods[2].ready = false;
    o.pods[2].revision = Some("r2".to_owned());
    assert_eq!(plan(&o).step, None);
}

#[test]
fn a_single_copy_is_restarted_because_the_spec_says_that_there_is_one() {
    let mut o = rest(1);
    o.wanted.copies = 1;
    set(&mut o).update_revision = Some("r2".to_owned());
    assert_eq!(step(&o), restarts(0));
    o.wanted.copies = 3;
    waits(&o, "would have no quorum of ready voters without it");
}

#[test]
fn growing_is_one_pod_then_one_member() {
    let mut o = rest(3);
    o.wanted.replicas = 5;
    let p = plan(&o);
    assert_eq!(p.step, Some(Step::RaiseReplicas { replicas: 4 }));
    assert_eq!((p.control_replicas, p.ordinals), (4, 5));
    set(&mut o).replicas = 4;
    o.pods.push(pod(3));
    o.pods[3].ready = false;
    waits(&o, "mail-control-3 has not joined the cluster yet");
    let joined = MemberFacts {
        id: 9,
        name: "mail-control-3".to_owned(),
        state: MemberState::Spare,
        joined_at: 200,
        shards: 0,
        leads: 0,
    };
    o.cluster.as_mut().unwrap().members.push(joined);
    waits(
        &o,
        "adding mail-control-3 waits: mail-control-3 is not ready",
    );
    o.pods[3].ready = true;
    let add = Step::AddMember {
        name: "mail-control-3".to_owned(),
    };
    assert_eq!(step(&o), add);
    member(&mut o, 3).state = MemberState::Active;
    o.cluster.as_mut().unwrap().settled = false;
    waits(&o, "starting another node waits: copies are moving");
}

#[test]
fn shrinking_is_member_then_pod_then_volume() {
    let mut o = rest(5);
    o.wanted.replicas = 3;
    let remove = Step::RemoveMember {
        name: "mail-control-4".to_owned(),
    };
    assert_eq!(step(&o), remove);
    member(&mut o, 4).state = MemberState::Leaving;
    o.cluster.as_mut().unwrap().settled = false;
    waits(&o, "mail-control-4 is being removed: 8 of its shards");
    member(&mut o, 4).state = MemberState::Removed;
    o.cluster.as_mut().unwrap().settled = true;
    assert_eq!(step(&o), Step::LowerReplicas { replicas: 4 });
    set(&mut o).replicas = 4;
    waits(&o, "mail-control-4 is about to be stopped");
    o.pods.pop();
    let delete = Step::DeleteVolume {
        name: "data-mail-control-4".to_owned(),
        uid: "v4".to_owned(),
    };
    assert_eq!(step(&o), delete);
    o.wanted.on_scale_down = OnScaleDown::Retain;
    assert!(matches!(step(&o), Step::RemoveMember { name } if name == "mail-control-3"));
}

#[test]
fn a_removal_is_taken_back() {
    let mut o = rest(5);
    member(&mut o, 4).state = MemberState::Leaving;
    let add = Step::AddMember {
        name: "mail-control-4".to_owned(),
    };
    assert_eq!(step(&o), add);
}

#[test]
fn a_removal_that_cannot_be_taken_back_is_finished_and_the_node_made_anew() {
    let mut o = rest(5);
    member(&mut o, 4).state = MemberState::Removed;
    o.pods[4].ready = false;
    assert!(matches!(step(&o), Step::DeleteVolume { name, .. } if name == "data-mail-control-4"));
    // The same pod on a volume that is younger than the member: it is about to join.
    o.volumes[4].created_at = 101;
    waits(&o, "mail-control-4 has not joined");
}

/// It was wanted again, and then not, while its pod was there; a pod above it keeps it from being lowered.
#[test]
fn a_pod_of_a_removed_member_below_others_is_not_waited_for() {
    let remove = Step::RemoveMember {
        name: "mail-control-5".to_owned(),
    };
    let mut o = rest(6);
    o.wanted.replicas = 3;
    member(&mut o, 4).state = MemberState::Removed;
    o.pods[4].ready = false;
    assert_eq!(step(&o), remove);
    member(&mut o, 1).state = MemberState::Spare;
    assert_eq!(
        step(&o),
        Step::AddMember {
            name: "mail-control-1".to_owned()
        }
    );
    member(&mut o, 5).state = MemberState::Spare;
    assert_eq!(step(&o), remove);
    member(&mut o, 5).state = MemberState::Removed;
    assert_eq!(step(&o), Step::LowerReplicas { replicas: 5 });
}

#[test]
fn a_wanted_pod_on_the_volume_of_a_removed_member_gets_a_new_one_below_others_too() {
    let mut o = rest(5);
    member(&mut o, 3).state = MemberState::Removed;
    o.pods[3].ready = false;
    let delete = Step::DeleteVolume {
        name: "data-mail-control-3".to_owned(),
        uid: "v3".to_owned(),
    };
    let p = plan(&o);
    assert_eq!((p.step, p.troubles), (Some(delete), vec![]));
    // It is kept while a pod uses it.
    o.volumes[3].terminating = true;
    assert_eq!(step(&o), restarts(3));
    o.volumes[3].terminating = false;
    o.wanted.on_scale_down = OnScaleDown::Retain;
    let p = waits(&o, "mail-control-3 has not joined");
    assert_eq!(p.troubles[0].reason, reason::VOLUME_IN_THE_WAY);
    // Nothing is deleted while a group is in danger.
    o.wanted.on_scale_down = OnScaleDown::Delete;
    o.cluster.as_mut().unwrap().settled = false;
    assert_eq!(plan(&o).step, None);
}

#[test]
fn an_unwanted_spare_goes_before_it_is_ready() {
    let mut o = rest(4);
    o.wanted.replicas = 3;
    member(&mut o, 1).state = MemberState::Spare;
    member(&mut o, 3).state = MemberState::Spare;
    o.pods[3].ready = false;
    assert_eq!(
        step(&o),
        Step::RemoveMember {
            name: "mail-control-3".to_owned()
        }
    );
}

#[test]
fn the_volume_of_a_removed_member_is_in_the_way() {
    let mut o = rest(4);
    o.wanted.replicas = 5;
    let mut gone = member(&mut o, 0).clone();
    gone.id = 40;
    gone.name = "mail-control-4".to_owned();
    gone.state = MemberState::Removed;
    o.cluster.as_mut().unwrap().members.push(gone);
    o.volumes.push(volume(4));
    assert!(matches!(step(&o), Step::DeleteVolume { .. }));
    o.wanted.on_scale_down = OnScaleDown::Retain;
    let p = waits(
        &o,
        "data-mail-control-4 is of a member that was removed, and was kept",
    );
    assert_eq!(p.troubles[0].reason, reason::VOLUME_IN_THE_WAY);
}

#[test]
fn too_few_would_be_left() {
    let mut o = rest(4);
    o.wanted.replicas = 3;
    member(&mut o, 0).state = MemberState::Spare;
    o.pods[0].ready = false;
    // The spare is wanted, so it is added first.
    waits(&o, "adding mail-control-0 waits");
    member(&mut o, 0).state = MemberState::Lost;
    let p = waits(
        &o,
        "removing mail-control-3 waits: 2 active nodes would be left for 3 copies",
    );
    assert!(
        p.troubles[0]
            .message
            .contains("mail-control-0 (id 1) was declared lost")
    );
}

#[test]
fn a_stateful_set_that_somebody_made_smaller_gets_its_pods_back() {
    let mut o = rest(5);
    o.pods.truncate(3);
    set(&mut o).replicas = 3;
    assert_eq!(step(&o), Step::RaiseReplicas { replicas: 5 });
}

#[test]
fn a_control_plane_that_somebody_stopped_is_started_again() {
    let mut o = rest(3);
    set(&mut o).replicas = 0;
    o.pods.clear();
    o.cluster = None;
    assert_eq!(step(&o), Step::RaiseReplicas { replicas: 3 });
    // Only a pause in the conversation: nothing is known, so nothing is done.
    let mut o = rest(3);
    o.wanted.replicas = 5;
    o.cluster = None;
    waits(&o, "no control-plane node answers");
}

#[test]
fn another_cluster_is_left_alone() {
    let mut o = rest(3);
    o.wanted.replicas = 5;
    o.cluster_id = Some("other".to_owned());
    let p = waits(&o, "status.clusterId is other");
    assert_eq!(p.troubles[0].reason, reason::OTHER_CLUSTER);
    assert_eq!(p.cluster_id.as_deref(), Some("other"));
}

#[test]
fn a_member_that_is_no_pod_of_ours_is_said() {
    let mut o = rest(3);
    let mut m = member(&mut o, 0).clone();
    m.id = 77;
    m.name = "control-plane-9".to_owned();
    o.cluster.as_mut().unwrap().members.push(m);
    assert!(
        plan(&o).troubles[0]
            .message
            .contains("sealane node remove control-plane-9")
    );
}

#[test]
fn larger_volumes_are_asked_for_at_once_and_the_stateful_set_is_made_again_in_the_end() {
    let mut o = rest(3);
    o.wanted.storage = "20Gi".to_owned();
    o.cluster = None;
    o.pods[0].ready = false;
    let p = plan(&o);
    assert_eq!(p.grow.len(), 3);
    assert_eq!(
        (p.grow[2].name.as_str(), p.grow[2].storage.as_str()),
        ("data-mail-control-2", "20Gi")
    );
    assert_eq!(p.storage, "10Gi", "a volume template cannot be changed");
    let mut o = rest(3);
    o.wanted.storage = "20Gi".to_owned();
    assert_eq!(plan(&o).step, None, "first the volumes");
    for v in &mut o.volumes {
        v.storage = "20Gi".to_owned();
    }
    assert_eq!(step(&o), Step::RecreateStatefulSet);
    o.stateful_set = None;
    let p = plan(&o);
    assert_eq!((p.control_replicas, p.storage.as_str()), (3, "20Gi"));
}

#[test]
fn relays_are_upgraded_after_the_control_plane() {
    let mut o = rest(3);
    o.wanted.image = "v2".to_owned();
    assert_eq!(
        plan(&o).relay_image,
        "v1",
        "the StatefulSet has not got it yet"
    );
    set(&mut o).image = "v2".to_owned();
    set(&mut o).update_revision = Some("r2".to_owned());
    assert_eq!(plan(&o).relay_image, "v1");
    for p in &mut o.pods {
        p.revision = Some("r2".to_owned());
    }
    assert_eq!(plan(&o).relay_image, "v2");
    o.pods[0].ready = false;
    assert_eq!(plan(&o).relay_image, "v1");
    o.relays = None;
    assert_eq!(plan(&o).relay_image, "v2", "there are none yet");
}

#[test]
fn states_are_read_as_the_control_plane_says_them() {
    for (text, state) in [
        ("active", MemberState::Active),
        ("spare", MemberState::Spare),
        ("leaving (3 replicas left)", MemberState::Leaving),
        ("lost", MemberState::Lost),
        ("removed", MemberState::Removed),
        ("unknown", MemberState::Unknown),
        ("", MemberState::Unknown),
    ] {
        assert_eq!(MemberState::parse(text), state, "{text}");
    }
}

#[test]
fn a_template_that_this_pass_changed_is_not_settled() {
    let o = rest(3);
    let before = o.stateful_set.as_ref();
    let mut same = plan(&o);
    same.after_applying(before, before);
    assert_eq!(same.waiting, None);

    let mut changed = o.stateful_set.clone().unwrap();
    changed.generation += 1;
    let mut new = plan(&o);
    new.after_applying(before, Some(&changed));
    assert_eq!(new.waiting.unwrap().reason, reason::STEPPING);
    let mut none_before = plan(&o);
    none_before.after_applying(None, before);
    assert_eq!(none_before.waiting.unwrap().reason, reason::STEPPING);

    // What the plan says already is more than that.
    let mut paused = o.clone();
    paused.wanted.paused = true;
    let mut paused = plan(&paused);
    paused.after_applying(before, Some(&changed));
    assert_eq!(paused.waiting.unwrap().reason, reason::PAUSED);
}
