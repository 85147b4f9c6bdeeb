//! Everything goes wrong in the model, and the operator may die between any two things it does.
use super::model::{BAD, Model, Phase};
use crate::{
    observed::{MemberFacts, MemberState},
    plan::{Plan, Step, plan},
};
use proptest::prelude::*;
use sealane_crd::OnScaleDown;

#[derive(Debug, Clone)]
enum Event {
    /// The StatefulSet controller looks.
    Controller,
    /// A pod gets on.
    Progress(u32),
    /// Copies move.
    Moves,
    /// The operator does so many things and dies; all, if they are fewer.
    Pass(u32),
    /// A process ends and is started again.
    Crash(u32),
    /// A pod is evicted.
    Evict(u32),
    Replicas(u32),
    Image(u32),
    /// An image that never starts.
    BadImage(u32),
    Retain(bool),
    Grow(u32),
    Pause(bool),
    /// Somebody scales the StatefulSet.
    Meddle(u32),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => Just(Event::Controller),
        12 => (0..8u32).prop_map(Event::Progress),
        8 => Just(Event::Moves),
        10 => Just(Event::Pass(9)),
        4 => (0..4u32).prop_map(Event::Pass),
        1 => (0..8u32).prop_map(Event::Crash),
        1 => (0..8u32).prop_map(Event::Evict),
        2 => (1..8u32).prop_map(Event::Replicas),
        1 => (1..4u32).prop_map(Event::Image),
        1 => (1..3u32).prop_map(Event::BadImage),
        1 => any::<bool>().prop_map(Event::Retain),
        1 => (11..14u32).prop_map(Event::Grow),
        1 => any::<bool>().prop_map(Event::Pause),
        1 => (0..8u32).prop_map(Event::Meddle),
    ]
}

impl Model {
    fn happen(&mut self, e: &Event) {
        self.tick();
        match e {
            Event::Controller => self.controller(),
            Event::Progress(n) => self.progress(*n),
            Event::Moves => self.moves(),
            Event::Pass(most) => {
                self.pass(*most);
            }
            Event::Crash(n) => self.crash(*n),
            Event::Evict(n) => self.delete_pod(*n),
            Event::Replicas(n) => self.wanted.replicas = (*n).max(self.wanted.copies),
            Event::Image(n) => self.wanted.image = format!("v{n}"),
            Event::BadImage(n) => self.wanted.image = format!("{BAD}{n}"),
            Event::Retain(true) => self.wanted.on_scale_down = OnScaleDown::Retain,
            Event::Retain(false) => self.wanted.on_scale_down = OnScaleDown::Delete,
            Event::Grow(n) => {
                // It never shrinks: the API server sees to that.
                let old: u32 = self.wanted.storage.trim_end_matches("Gi").parse().unwrap();
                self.wanted.storage = format!("{}Gi", old.max(*n));
            }
            Event::Pause(p) => self.wanted.paused = *p,
            Event::Meddle(n) => self.scale_set(*n),
        }
    }

    /// A pass of the operator: status, apply, volumes, the step. It dies after `most` of these.
    fn pass(&mut self, most: u32) -> Plan {
        let o = self.observe();
        let p = plan(&o);
        if self.wanted.paused {
            assert!(p.step.is_none() && p.grow.is_empty());
            return p;
        }
        if most >= 1 {
            self.founded = p.founded;
            self.cluster_id.clone_from(&p.cluster_id);
        }
        if most >= 2 {
            self.check_apply(&p);
            self.apply_set(p.control_replicas, &p.storage);
        }
        if most >= 3 {
            for g in &p.grow {
                let n = self.names.volume_ordinal(&g.name).unwrap();
                self.grow_volume(n, &g.storage);
            }
        }
        if let (Some(step), true) = (&p.step, most >= 4) {
            self.act(step);
        }
        p
    }

    /// The StatefulSet loses nothing but a highest ordinal that is no member.
    fn check_apply(&self, p: &Plan) {
        let before = self.set.as_ref().map(|s| s.replicas);
        if let Some(before) = before.filter(|b| *b > p.control_replicas) {
            assert_eq!(p.control_replicas + 1, before, "more than one pod goes");
            let name = self.names.control_pod(p.control_replicas);
            let alive = self
                .members
                .iter()
                .any(|m| m.name == name && m.state != MemberState::Removed);
            assert!(!alive, "{name} goes and is a member");
        }
        if before.is_none() {
            let kept = self.pods.keys().max().map_or(0, |n| n + 1);
            assert!(p.control_replicas >= kept, "a pod would be stopped");
        }
    }

    fn act(&mut self, step: &Step) {
        match step {
            Step::CreateControlPlane { .. }
            | Step::RaiseReplicas { .. }
            | Step::LowerReplicas { .. } => {}
            Step::RestartPod { name, uid } => {
                let n = self.names.ordinal(name).unwrap();
                assert_eq!(self.pods[&n].uid, *uid);
                self.check_restart(n);
                self.delete_pod(n);
            }
            Step::AddMember { name } => {
                let leaving = self.leaving();
                assert!(
                    leaving.iter().all(|l| l == name),
                    "{leaving:?} leave while {name} is added"
                );
                self.add_member(name);
            }
            Step::RemoveMember { name } => {
                let spare = self.state_of(name) == Some(MemberState::Spare);
                let n = self.names.ordinal(name).unwrap();
                let highest = self
                    .members
                    .iter()
                    .filter(|m| m.state != MemberState::Removed);
                let highest = highest.filter_map(|m| self.names.ordinal(&m.name)).max();
                assert_eq!(highest, Some(n), "not the highest one");
                assert!(n >= self.wanted.replicas);
                if !spare {
                    assert!(
                        self.leaving().is_empty(),
                        "{:?} leave while {name} is removed",
                        self.leaving()
                    );
                    assert!(
                        self.is_settled(),
                        "copies are moving while {name} is removed"
                    );
                    assert!(self.wanted.copies == 1 || self.depends_on(n).is_empty());
                }
                self.remove_member(name);
            }
            Step::DeleteVolume { name, uid } => {
                let n = self.names.volume_ordinal(name).unwrap();
                assert_eq!(self.volumes[&n].uid, *uid);
                assert!(n >= self.set.as_ref().unwrap().replicas || self.was_removed(n));
                let pod = self.names.control_pod(n);
                let mut of = self.members.iter().filter(|m| m.name == pod).peekable();
                assert!(
                    of.peek().is_some() && of.all(|m| m.state == MemberState::Removed),
                    "{pod} is a member"
                );
                self.delete_volume(n);
            }
            Step::RecreateStatefulSet => {
                assert!(self.pods.values().all(|p| !p.terminating));
                self.set = None;
            }
        }
    }

    fn state_of(&self, name: &str) -> Option<MemberState> {
        let mut of = self.members.iter().rev().filter(|m| m.name == name);
        of.find(|m| m.state != MemberState::Removed)
            .map(|m| m.state)
    }

    fn leaving(&self) -> Vec<String> {
        let all = self
            .members
            .iter()
            .filter(|m| m.state == MemberState::Leaving);
        all.map(|m| m.name.clone()).collect()
    }

    /// No group loses its quorum by it, unless the spec says that there is one copy only. And one that works goes only while
    /// all others work.
    fn check_restart(&self, n: u32) {
        let lost = self.depends_on(n);
        assert!(
            lost.is_empty() || self.wanted.copies == 1 || !self.founded,
            "groups {lost:?} lose their quorum"
        );
        if self.is_ready(n) {
            assert!(self.leaving().is_empty());
            for (other, p) in &self.pods {
                assert!(
                    *other == n
                        || (self.is_ready(*other) && !p.terminating)
                        || self.was_removed(*other),
                    "{other} and {n} are in motion"
                );
            }
        }
    }

    /// It runs on the volume of a removed member.
    fn was_removed(&self, n: u32) -> bool {
        let id = self.volumes.get(&n).and_then(|v| v.identity);
        let of = |m: &&MemberFacts| Some(m.id) == id;
        let member = self.members.iter().find(of);
        member.is_some_and(|m| m.state == MemberState::Removed)
    }

    /// Everybody gets on, and nothing is broken any more.
    fn calm(&mut self) -> Plan {
        if self.wanted.image.starts_with(BAD) {
            self.wanted.image = "v9".to_owned();
        }
        self.wanted.paused = false;
        let mut last = None;
        for _ in 0..600 {
            self.tick();
            self.controller();
            for n in 0..10 {
                self.progress(n);
            }
            self.moves();
            let p = self.pass(9);
            if p.step.is_none() && p.waiting.is_none() && p.grow.is_empty() && self.is_whole() {
                return p;
            }
            // A person does what a message says about volumes that were kept.
            if self.wanted.on_scale_down == OnScaleDown::Retain && !p.troubles.is_empty() {
                self.follow(&p);
            }
            last = Some(p);
        }
        panic!("never at rest: {:?}\n{self:#?}", last.unwrap());
    }

    /// The control plane has done by itself what it was told.
    fn is_whole(&self) -> bool {
        // A new image is applied in the pass that finds nothing else to do.
        let newest = self.pods.values().all(|p| p.image == self.wanted.image);
        newest && self.is_settled() && self.pods.keys().all(|n| self.is_ready(*n))
    }

    fn follow(&mut self, p: &Plan) {
        let stuck: Vec<u32> = self
            .volumes
            .keys()
            .copied()
            .filter(|n| {
                let volume = format!("PersistentVolumeClaim {} ", self.names.volume(*n));
                p.troubles.iter().any(|t| t.message.contains(&volume))
            })
            .collect();
        for n in stuck {
            let pod = self.names.control_pod(n);
            assert_eq!(
                self.state_of(&pod),
                None,
                "told to delete the volume of a member"
            );
            self.pods.remove(&n);
            self.delete_volume(n);
        }
    }

    fn check_rest(&self) {
        let wanted = self.wanted.replicas;
        let set = self.set.as_ref().unwrap();
        assert_eq!(
            (set.replicas, set.image.as_str()),
            (wanted, self.wanted.image.as_str())
        );
        assert_eq!(set.storage, self.wanted.storage);
        assert_eq!(
            self.pods.keys().copied().collect::<Vec<_>>(),
            (0..wanted).collect::<Vec<_>>()
        );
        for (n, p) in &self.pods {
            assert!(
                self.is_ready(*n) && p.phase == Phase::Current && p.image == self.wanted.image,
                "{n}"
            );
            assert_eq!(
                self.state_of(&self.names.control_pod(*n)),
                Some(MemberState::Active)
            );
        }
        let members = self
            .members
            .iter()
            .filter(|m| m.state != MemberState::Removed);
        assert_eq!(u32::try_from(members.count()).unwrap(), wanted);
        if self.wanted.on_scale_down == OnScaleDown::Delete {
            // One that no member ever wrote to is nobody's, and is used again.
            let mut left = self.volumes.range(wanted..);
            assert!(
                left.all(|(_, v)| v.identity.is_none()),
                "a volume is left: {:?}",
                self.volumes
            );
        }
        assert!(self.is_settled());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_quorum_is_lost_by_the_operator_and_in_the_end_all_is_as_wanted(
        replicas in 1..8u32,
        copies in prop_oneof![Just(1u32), Just(3), Just(3), Just(5)],
        events in proptest::collection::vec(event(), 0..160),
    ) {
        let mut m = Model::new(replicas, copies);
        for e in &events {
            m.happen(e);
        }
        m.calm();
        m.check_rest();
    }

    /// From rest, with nothing but the operator's own steps, no group is ever without a quorum.
    #[test]
    fn an_upgrade_and_a_change_of_size_interrupt_nothing(from in 3..8u32, to in 3..8u32, dies in proptest::collection::vec(0..6u32, 0..60)) {
        let mut m = Model::new(from, 3);
        m.calm();
        m.wanted.replicas = to;
        m.wanted.image = "v2".to_owned();
        let mut deaths = dies.iter();
        for round in 0.. {
            assert!(round < 600, "never at rest");
            m.tick();
            m.controller();
            (0..8).for_each(|n| m.progress(n));
            m.moves();
            for g in &m.groups {
                prop_assert!(m.has_quorum(g));
            }
            let p = m.pass(deaths.next().copied().unwrap_or(9));
            for g in &m.groups {
                prop_assert!(m.has_quorum(g));
            }
            if deaths.len() == 0 && p.step.is_none() && p.waiting.is_none() && m.is_whole() {
                break;
            }
        }
        m.check_rest();
    }
}

#[test]
fn three_become_five_become_three() {
    let mut m = Model::new(3, 3);
    m.calm();
    m.check_rest();
    m.wanted.replicas = 5;
    m.calm();
    m.check_rest();
    m.wanted.replicas = 3;
    m.calm();
    m.check_rest();
    let removed: Vec<u64> = m
        .members
        .iter()
        .filter(|x| x.state == MemberState::Removed)
        .map(|x| x.id)
        .collect();
    assert_eq!(removed, [4, 5]);
    m.wanted.replicas = 5;
    m.calm();
    let ids: Vec<u64> = m.members.iter().map(|x| x.id).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7], "an id is used again");
}
