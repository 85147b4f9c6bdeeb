#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use proptest::prelude::*;

const DAY: u64 = 86_400;

/// Secrets and pods, with a time that is an argument.
#[derive(Debug, Clone)]
struct World {
    now: u64,
    issuer: Issuer,
    made: u32,
    authority: AuthorityFacts,
    identities: Vec<IdentityFacts>,
    /// What each pod has read: its leaf and whom it trusts.
    mounted: Vec<Option<(LeafFacts, Vec<String>)>>,
}

impl World {
    fn new(ordinals: u32) -> Self {
        let mut w = Self {
            now: 1_000_000_000,
            issuer: Issuer::Operator,
            made: 0,
            authority: AuthorityFacts::default(),
            identities: Vec::new(),
            mounted: Vec::new(),
        };
        w.scale(ordinals);
        w
    }

    fn scale(&mut self, ordinals: u32) {
        let mut identities = Vec::new();
        let mut mounted = Vec::new();
        for workload in workloads(&Names::new("ns", "mail"), ordinals) {
            let at = self.identities.iter().position(|i| i.workload == workload);
            identities.push(at.map_or_else(
                || IdentityFacts {
                    workload,
                    leaf: None,
                    bundle: Vec::new(),
                    offered: None,
                    offered_cas: Vec::new(),
                },
                |n| self.identities[n].clone(),
            ));
            mounted.push(at.and_then(|n| self.mounted[n].clone()));
        }
        self.identities = identities;
        self.mounted = mounted;
    }

    fn facts(&self) -> Facts {
        Facts {
            now: self.now,
            issuer: self.issuer,
            validity: 30 * DAY,
            ca_validity: 3650 * DAY,
            mount: MOUNT,
            authority: self.authority.clone(),
            identities: self.identities.clone(),
        }
    }

    fn cert(&mut self, until: u64) -> CertFacts {
        self.made += 1;
        CertFacts {
            fingerprint: format!("c{}", self.made),
            not_before: self.now - 3600,
            not_after: until,
        }
    }

    fn known(&self, fingerprint: &str) -> Option<CertFacts> {
        let a = &self.authority;
        let own = a.signing.iter().chain(&a.next).chain(&a.bundle);
        let others = self
            .identities
            .iter()
            .flat_map(|i| i.bundle.iter().chain(&i.offered_cas));
        own.chain(others)
            .find(|c| c.fingerprint == fingerprint)
            .cloned()
    }

    /// What the driver does with a plan; it dies after `most` actions, or before the bundles are written.
    fn pass(&mut self, most: usize) -> CertPlan {
        let plan = decide(&self.facts());
        let mut trusted = plan.trusted.clone();
        let mut fresh = Vec::new();
        for action in plan.actions.iter().take(most) {
            self.act(action, &mut trusted, &mut fresh);
        }
        if most <= plan.actions.len() {
            return plan;
        }
        let bundle: Vec<CertFacts> = trusted
            .iter()
            .map(|t| {
                let made = fresh
                    .iter()
                    .find(|c: &&CertFacts| c.fingerprint == t.fingerprint);
                made.cloned()
                    .or_else(|| self.known(&t.fingerprint))
                    .unwrap()
            })
            .collect();
        self.authority.bundle.clone_from(&bundle);
        self.authority.trusted = trusted;
        for i in &mut self.identities {
            if i.leaf.is_some() {
                i.bundle.clone_from(&bundle);
            }
        }
        plan
    }

    fn act(&mut self, action: &CertAction, trusted: &mut Vec<Trust>, fresh: &mut Vec<CertFacts>) {
        let mut trust = |c: &CertFacts| {
            fresh.push(c.clone());
            trusted.push(Trust {
                fingerprint: c.fingerprint.clone(),
                since: None,
                unused_since: None,
            });
        };
        match action {
            CertAction::CreateAuthority { until } => {
                let c = self.cert(*until);
                trust(&c);
                self.authority.bundle.push(c.clone());
                self.authority.signing = Some(c);
            }
            CertAction::PrepareNext { until } => {
                let c = self.cert(*until);
                trust(&c);
                self.authority.bundle.push(c.clone());
                self.authority.next = Some(c);
            }
            CertAction::PromoteNext => self.authority.signing = self.authority.next.take(),
            CertAction::Issue { workload, until } => {
                let ca = self.authority.signing.clone().expect("somebody signs");
                assert!(*until <= ca.not_after, "a leaf outlives its CA");
                let cert = self.cert(*until);
                let issuer = Some(ca.fingerprint.clone());
                let i = self
                    .identities
                    .iter_mut()
                    .find(|i| i.workload == *workload)
                    .unwrap();
                i.leaf = Some(LeafFacts {
                    cert,
                    issuer,
                    fits: true,
                });
                // Certificate and bundle of one Secret are one write.
                if !i.bundle.iter().any(|c| c.fingerprint == ca.fingerprint) {
                    i.bundle.clone_from(&self.authority.bundle);
                }
            }
            CertAction::Copy { workload } => {
                let i = self
                    .identities
                    .iter_mut()
                    .find(|i| i.workload == *workload)
                    .unwrap();
                i.leaf.clone_from(&i.offered);
            }
        }
    }

    fn mount(&mut self, n: usize) {
        let i = &self.identities[n];
        if let Some(leaf) = &i.leaf {
            let bundle = i.bundle.iter().map(|c| c.fingerprint.clone()).collect();
            self.mounted[n] = Some((leaf.clone(), bundle));
        }
    }

    fn mount_all(&mut self) {
        (0..self.identities.len()).for_each(|n| self.mount(n));
    }

    /// Every two pods that run can speak to each other.
    fn check(&self) {
        for (a, x) in self.mounted.iter().enumerate() {
            for (b, y) in self.mounted.iter().enumerate() {
                let (Some((leaf, _)), Some((_, trust))) = (x, y) else {
                    continue;
                };
                let issuer = leaf.issuer.as_ref().unwrap();
                assert!(
                    trust.contains(issuer),
                    "{b} does not trust {a}, whose leaf is of {issuer}: {trust:?}"
                );
                assert!(leaf.cert.not_after > self.now, "the leaf of {a} is over");
            }
        }
    }

    /// Both are as if nothing was ever replaced.
    fn is_at_rest(&self) -> bool {
        let ca = self
            .authority
            .signing
            .as_ref()
            .map(|c| c.fingerprint.clone());
        self.authority.next.is_none()
            && self.authority.bundle.len() == 1
            && self
                .identities
                .iter()
                .all(|i| i.leaf.as_ref().is_some_and(|l| l.issuer == ca))
    }
}

#[test]
fn at_first_everything_is_made_at_once() {
    let mut w = World::new(3);
    let plan = w.pass(usize::MAX);
    assert!(matches!(
        plan.actions[0],
        CertAction::CreateAuthority { .. }
    ));
    assert_eq!(plan.actions.len(), 6);
    assert_eq!(plan.state, CertState::Ready);
    w.mount_all();
    w.check();
    let plan = w.pass(usize::MAX);
    assert_eq!((plan.actions, plan.state), (vec![], CertState::Ready));
    assert_eq!(w.authority.trusted[0].since, Some(w.now));
}

#[test]
fn a_leaf_is_renewed_after_two_thirds_of_its_life_and_a_new_node_gets_one_at_once() {
    let mut w = World::new(3);
    w.pass(usize::MAX);
    w.pass(usize::MAX);
    w.now += 19 * DAY;
    assert_eq!(decide(&w.facts()).actions, vec![]);
    w.scale(4);
    let plan = w.pass(usize::MAX);
    assert_eq!(plan.actions.len(), 1);
    w.now += 2 * DAY;
    let plan = w.pass(usize::MAX);
    assert_eq!(
        plan.actions.len(),
        5,
        "all but the one that was issued two days ago"
    );
}

#[test]
fn look_again_names_the_next_moment_at_which_time_decides() {
    let mut w = World::new(1);
    w.pass(usize::MAX);
    w.pass(usize::MAX);
    let mut passes = 0;
    let end = w.now + 4000 * DAY;
    while w.now < end {
        let next = decide(&w.facts()).look_again;
        assert!(next > w.now);
        w.now = next;
        w.pass(usize::MAX);
        w.pass(usize::MAX);
        w.mount_all();
        w.check();
        passes += 1;
        assert!(passes < 1000, "time stands still");
    }
    assert!(w.is_at_rest());
    assert_ne!(
        w.authority.signing.unwrap().fingerprint,
        "c1",
        "the CA was replaced"
    );
}

#[test]
fn a_lost_key_of_the_ca_is_replaced_beside_the_old_one() {
    let mut w = World::new(3);
    w.pass(usize::MAX);
    w.pass(usize::MAX);
    w.mount_all();
    w.authority = AuthorityFacts::default();
    let plan = w.pass(usize::MAX);
    assert!(matches!(plan.state, CertState::Trouble(_)));
    assert!(matches!(plan.actions[..], [CertAction::PrepareNext { .. }]));
    for _ in 0..6 {
        w.mount_all();
        w.check();
        w.now += MOUNT;
        w.pass(usize::MAX);
    }
    w.mount_all();
    w.check();
    assert!(w.is_at_rest());
}

#[test]
fn a_wrong_name_or_a_foreign_issuer_is_replaced() {
    for spoil in [
        |l: &mut LeafFacts| l.fits = false,
        |l: &mut LeafFacts| l.issuer = None,
        |l: &mut LeafFacts| l.cert.not_after = 1,
    ] {
        let mut w = World::new(1);
        w.pass(usize::MAX);
        w.pass(usize::MAX);
        w.now += MOUNT;
        spoil(w.identities[0].leaf.as_mut().unwrap());
        let plan = decide(&w.facts());
        assert!(
            matches!(&plan.actions[..], [CertAction::Issue { workload, .. }] if workload.name == "mail-control-0")
        );
    }
}

#[test]
fn what_cert_manager_issues_is_copied_and_its_new_ca_is_trusted_first() {
    let mut w = World::new(1);
    w.issuer = Issuer::CertManager;
    assert!(matches!(decide(&w.facts()).state, CertState::Missing(_)));
    let offer = |w: &mut World, ca: &CertFacts| {
        for n in 0..w.identities.len() {
            let cert = w.cert(w.now + 30 * DAY);
            let leaf = LeafFacts {
                cert,
                issuer: Some(ca.fingerprint.clone()),
                fits: true,
            };
            w.identities[n].offered = Some(leaf);
            w.identities[n].offered_cas = vec![ca.clone()];
        }
    };
    let old = w.cert(w.now + 900 * DAY);
    offer(&mut w, &old);
    assert_eq!(
        w.pass(usize::MAX).actions.len(),
        3,
        "the first ones at once"
    );
    w.pass(usize::MAX);
    w.mount_all();
    w.check();
    let new = w.cert(w.now + 900 * DAY);
    offer(&mut w, &new);
    let plan = w.pass(usize::MAX);
    assert!(plan.actions.is_empty() && matches!(plan.state, CertState::Rotating(_)));
    for _ in 0..5 {
        w.mount_all();
        w.check();
        w.now += MOUNT;
        w.pass(usize::MAX);
    }
    assert_eq!(w.identities[0].leaf, w.identities[0].offered);
    assert_eq!(w.authority.bundle, vec![new]);
}

#[derive(Debug, Clone)]
enum Event {
    /// Time passes; every pod has read what was in its Secrets `MOUNT` before.
    Hours(u64),
    Pass(usize),
    /// A pod reads its Secret.
    Mount(usize),
    Scale(u32),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let one = prop_oneof![
        2 => (1..2000u64).prop_map(Event::Hours),
        4 => Just(Event::Pass(usize::MAX)),
        2 => (0..8usize).prop_map(Event::Pass),
        2 => (0..9usize).prop_map(Event::Mount),
        1 => (1..6u32).prop_map(Event::Scale),
    ];
    proptest::collection::vec(one, 1..120)
}

proptest! {
    /// Whatever happens, no two pods ever refuse each other, and the operator may die at any point of a pass. Only a pass
    /// that comes within the last third of a life is needed.
    #[test]
    fn nobody_is_ever_refused(events in events()) {
        let mut w = World::new(3);
        w.pass(usize::MAX);
        w.mount_all();
        for e in events {
            match e {
                Event::Hours(n) => {
                    for _ in 0..n.div_ceil(24) {
                        // Secrets are mounted within MOUNT, and somebody looks once a day.
                        w.now += MOUNT;
                        w.mount_all();
                        w.check();
                        w.now += DAY - MOUNT;
                        w.pass(usize::MAX);
                    }
                }
                Event::Pass(most) => {
                    w.pass(most);
                }
                Event::Mount(n) if n < w.identities.len() => w.mount(n),
                Event::Mount(_) => {}
                Event::Scale(n) => w.scale(n),
            }
            w.check();
        }
        for _ in 0..12 {
            w.now += MOUNT;
            w.mount_all();
            w.pass(usize::MAX);
            w.check();
        }
        prop_assert!(w.is_at_rest() || w.authority.next.is_some());
    }
}
