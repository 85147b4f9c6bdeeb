//! The rules, in the order in which they are asked. The first one that has something to say decides.
use super::{Next, Step, VolumeGrowth, view::View};
use crate::{
    observed::{MemberFacts, MemberState, PodFacts, StatefulSetFacts, VolumeFacts},
    quantity,
};
use sealane_crd::{OnScaleDown, reason};

/// A rule: what to do or to wait for, or nothing.
type Rule = fn(&View<'_>, &StatefulSetFacts) -> Option<Next>;

/// Without the control plane's word: only what needs none.
const BLIND: &[Rule] = &[
    stateful_set_is_behind,
    pods_come_and_go,
    restart_what_does_not_run,
];

/// With it, in this order:
///
/// 1. Bring back a pod whose member has places.
/// 2. Finish, or take back, a removal.
/// 3. Finish a scale-down: pod, then volume.
/// 4. Take a new volume where a pod rests on a removed member's.
/// 5. Drop spares that are not wanted: they hold nothing.
/// 6. Mend: restart what runs and is not ready, with the newest template.
/// 7. Add spares, raise, remove: one, and only from rest.
/// 8. Restart what has an old template.
/// 9. Make the StatefulSet again for larger volumes.
/// 10. Watch copies that move though nothing is to be done: to a volume that was lost.
const SEEING: &[Rule] = &[
    another_cluster_answers,
    bring_back,
    removals_under_way,
    lower,
    delete_volume,
    renew_volume,
    drop_spare,
    mend,
    add_spare,
    raise,
    remove,
    restart,
    recreate,
    moving,
];

/// The next step, or what is waited for.
pub(super) fn next(v: &View<'_>) -> Next {
    if v.o.wanted.paused {
        return Next::wait(
            reason::PAUSED,
            "spec.paused: nothing is changed until it is false",
        );
    }
    let Some(set) = v.set() else {
        return create(v);
    };
    if set.terminating {
        return Next::wait(
            reason::WAITING,
            "the StatefulSet of the control plane is being deleted",
        );
    }
    if let Some(next) = BLIND.iter().find_map(|rule| rule(v, set)) {
        return next;
    }
    if v.o.cluster.is_none() {
        return unheard(v, set);
    }
    SEEING
        .iter()
        .find_map(|rule| rule(v, set))
        .unwrap_or_default()
}

/// For the first time; over volumes that were kept; around pods whose StatefulSet was taken away for larger volumes.
/// Whatever has a volume or a pod gets a place: with fewer, Kubernetes would stop members that are needed.
fn create(v: &View<'_>) -> Next {
    let kept = v
        .volumes
        .iter()
        .filter(|(n, x)| !x.terminating && !v.is_gone_for_good(**n))
        .map(|(n, _)| n + 1);
    let running = v.pods.keys().map(|n| n + 1);
    let members = v.current().map(|(n, _)| n + 1);
    let replicas = kept
        .chain(running)
        .chain(members)
        .max()
        .unwrap_or(0)
        .max(v.o.wanted.replicas);
    Next::step(Step::CreateControlPlane { replicas })
}

/// A full volume may be why a node does not answer, so nothing is waited for.
pub(super) fn grow(v: &View<'_>) -> Vec<VolumeGrowth> {
    let (Some(set), false) = (v.set(), v.o.wanted.paused) else {
        return Vec::new();
    };
    let wanted = &v.o.wanted.storage;
    let small = |x: &&&VolumeFacts| {
        x.ordinal < set.replicas && !x.terminating && quantity::is_less(&x.storage, wanted)
    };
    let small = v.volumes.values().filter(small);
    small
        .map(|x| VolumeGrowth {
            name: v.o.names.volume(x.ordinal),
            storage: wanted.clone(),
        })
        .collect()
}

/// What is waited for after the StatefulSet was changed.
pub(super) const BEHIND: &str =
    "Kubernetes has not looked at the StatefulSet of the control plane yet";

/// Its status says nothing about what was applied last.
fn stateful_set_is_behind(_: &View<'_>, set: &StatefulSetFacts) -> Option<Next> {
    (!set.is_current() || set.update_revision.is_none())
        .then(|| Next::wait(reason::STEPPING, BEHIND))
}

fn pods_come_and_go(v: &View<'_>, set: &StatefulSetFacts) -> Option<Next> {
    if let Some(p) = v.pods.values().find(|p| p.terminating) {
        let name = v.name(p.ordinal);
        return Some(Next::wait(
            reason::STEPPING,
            format!(
                "{name} is ending. If its machine is gone for good, delete the Node, or the pod with --force --grace-period=0"
            ),
        ));
    }
    if let Some(n) = v.pods.keys().find(|n| **n >= set.replicas) {
        let name = v.name(*n);
        return Some(Next::wait(
            reason::STEPPING,
            format!("{name} is about to be stopped"),
        ));
    }
    let missing = (0..set.replicas).find(|n| !v.pods.contains_key(n))?;
    let name = v.name(missing);
    Some(Next::wait(
        reason::STEPPING,
        format!("{name} is being made"),
    ))
}

fn is_old(p: &PodFacts, set: &StatefulSetFacts) -> bool {
    p.revision.is_some() && p.revision != set.update_revision
}

fn restart_pod(v: &View<'_>, p: &PodFacts) -> Next {
    Next::step(Step::RestartPod {
        name: v.name(p.ordinal),
        uid: p.uid.clone(),
    })
}

/// A pod that has no running process and an old template: an image that could not be pulled, a node that did not fit, a
/// crash. It takes part in nothing, so nothing is taken away; and nothing else would ever mend it.
fn restart_what_does_not_run(v: &View<'_>, set: &StatefulSetFacts) -> Option<Next> {
    let dead = v
        .pods
        .values()
        .find(|p| !p.running && !p.ready && is_old(p, set))?;
    Some(restart_pod(v, dead))
}

/// Nobody answers.
fn unheard(v: &View<'_>, set: &StatefulSetFacts) -> Next {
    let none_ready = v.pods.values().all(|p| !p.ready);
    let wanted = v.o.wanted.replicas;
    // Somebody stopped all of them: nobody is left who could say which are needed.
    if none_ready && set.replicas < wanted && (v.o.founded || set.replicas == 0) {
        return Next::step(Step::RaiseReplicas { replicas: wanted });
    }
    if v.o.founded {
        return Next::wait(
            reason::UNREACHABLE,
            "no control-plane node answers, so nothing is changed: are the pods running, and may the operator connect to port 7000?",
        );
    }
    // A cluster that was never seen, no pod of which is ready, with a template that was mended since.
    if let Some(p) = v.pods.values().find(|p| none_ready && is_old(p, set)) {
        return restart_pod(v, p);
    }
    let detail = v.not_ready(None).map(|d| format!(": {d}"));
    Next::wait(
        reason::FOUNDING,
        format!(
            "the first nodes found the cluster once a majority of them speaks to each other{}",
            detail.unwrap_or_default()
        ),
    )
}

fn another_cluster_answers(v: &View<'_>, _: &StatefulSetFacts) -> Option<Next> {
    let known = v.o.cluster_id.as_ref()?;
    let found = &v.o.cluster.as_ref()?.id;
    (known != found).then(|| {
        Next::stuck(
            reason::OTHER_CLUSTER,
            format!(
                "the control plane that answers is {found}, but status.clusterId is {known}: nothing is changed. If the old cluster is really gone, make a RelayCluster of another name and restore a backup into it"
            ),
        )
    })
}

/// Somebody made the StatefulSet smaller, or it was made again too small.
fn bring_back(v: &View<'_>, set: &StatefulSetFacts) -> Option<Next> {
    let has_places =
        |m: &MemberFacts| matches!(m.state, MemberState::Active | MemberState::Leaving);
    let needed = v
        .current()
        .filter(|(_, m)| has_places(m))
        .map(|(n, _)| n + 1)
        .max()?;
    (needed > set.replicas).then(|| Next::step(Step::RaiseReplicas { replicas: needed }))
}

/// Only one at a time is removed. One that is wanted after all is taken back.
fn removals_under_way(v: &View<'_>, _: &StatefulSetFacts) -> Option<Next> {
    let leaving = || v.current().filter(|(_, m)| m.state == MemberState::Leaving);
    if let Some((n, _)) = leaving().find(|(n, _)| *n < v.o.wanted.replicas) {
        return Some(Next::step(Step::AddMember { name: v.name(n) }));
    }
    let (n, m) = leaving().last()?;
    Some(Next::wait(
        reason::STEPPING,
        format!(
            "{} is being removed: {} of its shards still have a copy there",
            v.name(n),
            m.shards
        ),
    ))
}

/// The highest ordinal that is not wanted, once its member is removed; or if it never was one.
fn lower(v: &View<'_>, set: &StatefulSetFacts) -> Option<Next> {
    let highest = set.replicas.checked_sub(1)?;
    let unneeded = matches!(v.state(highest), None | Some(MemberState::Removed));
    (highest >= v.o.wanted.replicas && unneeded)
        .then(|| Next::step(Step::LowerReplicas { replicas: highest }))
}

/// Volumes of removed members are not kept, and all that is left is whole.
fn may_delete(v: &View<'_>) -> bool {
    v.o.wanted.on_scale_down == OnScaleDown::Delete
        && v.is_settled()
        && v.endangered(None).is_none()
}

/// Of a pod that is gone, whose member is removed for good.
fn delete_volume(v: &View<'_>, set: &StatefulSetFacts) -> Option<Next> {
    if !may_delete(v) {
        return None;
    }
    let old = v.volumes.values().find(|x| {
        x.ordinal >= set.replicas
            && !x.terminating
            && !v.pods.contains_key(&x.ordinal)
            && v.is_gone_for_good(x.ordinal)
    })?;
    Some(Next::step(Step::DeleteVolume {
        name: v.o.names.volume(old.ordinal),
        uid: old.uid.clone(),
    }))
}

/// Of a pod that is wanted again though its member was removed. Kubernetes keeps the volume until the pod is gone, then makes both
/// anew.
fn renew_volume(v: &View<'_>, set: &StatefulSetFacts) -> Option<Next> {
    let wanted = v.o.wanted.replicas.min(set.replicas);
    let n = (0..wanted).find(|n| v.rests(*n))?;
    let (old, pod) = (v.volumes.get(&n)?, v.pods.get(&n)?);
    if old.terminating {
        return Some(restart_pod(v, pod));
    }
    may_delete(v).then(|| {
        Next::step(Step::DeleteVolume {
            name: v.o.names.volume(n),
            uid: old.uid.clone(),
        })
    })
}

/// The highest ordinal that is not wanted, if it holds nothing. It is not waited for until it is ready.
fn drop_spare(v: &View<'_>, _: &StatefulSetFacts) -> Option<Next> {
    let (n, m) = unwanted(v)?;
    (m.state == MemberState::Spare).then(|| Next::step(Step::RemoveMember { name: v.name(n) }))
}

/// The highest ordinal that is not wanted, whether it has a pod or not.
fn unwanted<'a>(v: &View<'a>) -> Option<(u32, &'a MemberFacts)> {
    v.current()
        .filter(|(n, _)| *n >= v.o.wanted.replicas)
        .last()
}

/// One that runs, is not ready, and has an old template, while all others are ready: nothing that works is taken away.
fn mend(v: &View<'_>, set: &StatefulSetFacts) -> Option<Next> {
    let ill = v.pods.values().find(|p| !p.ready && is_old(p, set))?;
    let id = v.member(ill.ordinal).map(|m| m.id);
    let alone = v.not_ready(Some(ill.ordinal)).is_none();
    (alone && v.endangered(id).is_none() && lost(v).is_none()).then(|| restart_pod(v, ill))
}

const MOVING: &str = "copies are moving to where they are to be";

/// Why nothing new may begin; `None`: everything is at rest.
fn unrest(v: &View<'_>) -> Option<String> {
    if let Some(groups) = v.endangered(None) {
        return Some(format!("{groups} have no quorum of ready voters"));
    }
    if let Some(pods) = v.not_ready(None) {
        return Some(pods);
    }
    if !v.is_settled() {
        return Some(MOVING.to_owned());
    }
    None
}

fn lost(v: &View<'_>) -> Option<String> {
    let (n, _) = v.current().find(|(_, m)| m.state == MemberState::Lost)?;
    Some(format!(
        "{} was declared lost and its places wait",
        v.name(n)
    ))
}

fn when_at_rest(v: &View<'_>, what: &str, step: Step) -> Next {
    match unrest(v) {
        None => Next::step(step),
        Some(why) => Next::wait(reason::WAITING, format!("{what} waits: {why}")),
    }
}

/// Copies move to the lowest spare that is wanted.
fn add_spare(v: &View<'_>, set: &StatefulSetFacts) -> Option<Next> {
    let wanted = v.o.wanted.replicas.min(set.replicas);
    let spare = (0..wanted).find(|n| v.state(*n) == Some(MemberState::Spare))?;
    let name = v.name(spare);
    Some(when_at_rest(
        v,
        &format!("adding {name}"),
        Step::AddMember { name },
    ))
}

fn raise(v: &View<'_>, set: &StatefulSetFacts) -> Option<Next> {
    let absent = |n: &u32| matches!(v.state(*n), None | Some(MemberState::Removed));
    if let Some(n) = (0..set.replicas.min(v.o.wanted.replicas)).find(absent) {
        let name = v.name(n);
        return Some(Next::wait(
            reason::STEPPING,
            format!("{name} has not joined the cluster yet: its log says why"),
        ));
    }
    if set.replicas >= v.o.wanted.replicas {
        return None;
    }
    let new = set.replicas;
    let volume = v.o.names.volume(new);
    match v.volumes.get(&new) {
        Some(x) if x.terminating => Some(Next::wait(
            reason::STEPPING,
            format!("the volume {volume} of a removed member is being deleted"),
        )),
        Some(_) if v.is_gone_for_good(new) => Some(in_the_way(v, &volume)),
        // Nodes are not ready before there are as many as copies: nothing to wait for, and nothing is taken away.
        _ if v.active() < usize::try_from(v.o.wanted.copies).unwrap_or(usize::MAX) => {
            Some(Next::step(Step::RaiseReplicas { replicas: new + 1 }))
        }
        _ => Some(when_at_rest(
            v,
            "starting another node",
            Step::RaiseReplicas { replicas: new + 1 },
        )),
    }
}

/// The volume of a removed member: a node that starts with it is refused for ever.
fn in_the_way(v: &View<'_>, volume: &str) -> Next {
    if v.o.wanted.on_scale_down == OnScaleDown::Delete {
        let why = unrest(v).unwrap_or_else(|| "its pod is not gone yet".to_owned());
        return Next::wait(
            reason::WAITING,
            format!("deleting the volume {volume} of a removed member waits: {why}"),
        );
    }
    Next::stuck(
        reason::VOLUME_IN_THE_WAY,
        format!(
            "the PersistentVolumeClaim {volume} is of a member that was removed, and was kept (controlPlane.onScaleDown: Retain): a node with it is never let in again. Delete it, and another node is started"
        ),
    )
}

/// One that holds copies: they move away first.
fn remove(v: &View<'_>, _: &StatefulSetFacts) -> Option<Next> {
    let (n, m) = unwanted(v)?;
    let name = v.name(n);
    let what = format!("removing {name}");
    let step = Step::RemoveMember { name };
    let copies = usize::try_from(v.o.wanted.copies).unwrap_or(usize::MAX);
    let enough = |active: usize| {
        (active < copies).then(|| {
            Next::wait(
                reason::WAITING,
                format!("{what} waits: {active} active nodes would be left for {copies} copies of everything"),
            )
        })
    };
    match m.state {
        MemberState::Lost => Some(enough(v.active()).unwrap_or_else(|| Next::step(step))),
        MemberState::Active => {
            if let Some(wait) = enough(v.active().saturating_sub(1)) {
                return Some(wait);
            }
            // One that is down may go: the others do the work.
            let others = v.not_ready(Some(n)).or_else(|| lost(v));
            let groups = v.endangered(Some(m.id));
            let groups =
                groups.map(|g| format!("{g} would have no quorum of ready voters without it"));
            let moving = (!v.is_settled()).then(|| MOVING.to_owned());
            match others.or(groups).or(moving) {
                None => Some(Next::step(step)),
                Some(why) => Some(Next::wait(reason::WAITING, format!("{what} waits: {why}"))),
            }
        }
        MemberState::Spare | MemberState::Leaving | MemberState::Removed => None,
        MemberState::Unknown => Some(Next::stuck(
            reason::MEMBER_LOST,
            format!(
                "{what} waits: the control plane says a state of it that this operator does not know; upgrade the operator"
            ),
        )),
    }
}

/// One that has an old template: spares first, then who leads least; who leads most is the last one.
fn restart(v: &View<'_>, set: &StatefulSetFacts) -> Option<Next> {
    let order = |p: &&&PodFacts| {
        let m = v.member(p.ordinal);
        let holds = m.is_some_and(|m| m.state != MemberState::Spare);
        (
            p.ready,
            holds,
            m.map_or(0, |m| m.leads),
            u32::MAX - p.ordinal,
        )
    };
    let old = v
        .pods
        .values()
        .filter(|p| is_old(p, set))
        .min_by_key(order)?;
    let name = v.name(old.ordinal);
    let id = v.member(old.ordinal).map(|m| m.id);
    let groups = v
        .endangered(id)
        .map(|g| format!("{g} would have no quorum of ready voters without it"));
    match unrest(v).or_else(|| lost(v)).or(groups) {
        None => Some(restart_pod(v, old)),
        Some(why) => Some(Next::wait(
            reason::WAITING,
            format!("restarting {name} with the newest template waits: {why}"),
        )),
    }
}

/// New volumes are to be as large as the others. Nothing else is under way.
fn recreate(v: &View<'_>, set: &StatefulSetFacts) -> Option<Next> {
    if !quantity::is_less(&set.storage, &v.o.wanted.storage) || !grow(v).is_empty() {
        return None;
    }
    Some(when_at_rest(
        v,
        "making the StatefulSet again, for larger volumes,",
        Step::RecreateStatefulSet,
    ))
}

fn moving(v: &View<'_>, _: &StatefulSetFacts) -> Option<Next> {
    (!v.is_settled()).then(|| Next::wait(reason::STEPPING, MOVING))
}
