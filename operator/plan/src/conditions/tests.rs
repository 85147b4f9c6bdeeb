#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::{
    certs::CertFacts,
    plan::{Step, Trouble, Waiting},
    policy::PolicyFault,
};

fn at_rest() -> Plan {
    Plan {
        step: None,
        grow: Vec::new(),
        waiting: None,
        troubles: Vec::new(),
        quorum: Quorum::Healthy,
        founded: true,
        cluster_id: None,
        control_replicas: 3,
        ordinals: 3,
        storage: "10Gi".to_owned(),
        relay_image: "v1".to_owned(),
        control_current: true,
    }
}

fn relays(ready: u32) -> RelayFacts {
    RelayFacts {
        image: "v1".to_owned(),
        replicas: 2,
        generation: 1,
        observed_generation: 1,
        total: 2,
        updated: 2,
        ready,
    }
}

fn certs(state: CertState) -> CertPlan {
    CertPlan {
        actions: Vec::new(),
        trusted: Vec::new(),
        state,
        look_again: 0,
        ca_not_after: None,
        workload_not_after: None,
    }
}

fn present(not_after: u64, names_host: bool) -> PublicFacts {
    PublicFacts::Present {
        cert: CertFacts {
            fingerprint: "f".to_owned(),
            not_before: 0,
            not_after,
        },
        names_host,
    }
}

struct Case {
    plan: Plan,
    relays: Option<RelayFacts>,
    certs: CertPlan,
    public: PublicFacts,
    policy: PolicyState,
}

impl Case {
    fn rest() -> Self {
        Self {
            plan: at_rest(),
            relays: Some(relays(2)),
            certs: certs(CertState::Ready),
            public: present(100 * 86_400, true),
            policy: PolicyState::NotManaged,
        }
    }

    fn get(&self, type_: &str) -> (Option<bool>, &'static str, String) {
        let all = cluster(&ClusterView {
            plan: &self.plan,
            relays: self.relays.as_ref(),
            relays_wanted: 2,
            certs: &self.certs,
            public: &self.public,
            public_secret: "mx-tls",
            hostname: "mx.example.org",
            policy: &self.policy,
            now: 86_400,
        });
        assert_eq!(all.len(), 6);
        let found = all.into_iter().find(|w| w.type_ == type_).unwrap();
        (found.status, found.reason, found.message)
    }
}

fn short(
    (status, reason, _): (Option<bool>, &'static str, String),
) -> (Option<bool>, &'static str) {
    (status, reason)
}

#[test]
fn at_rest_all_is_well() {
    let c = Case::rest();
    for (type_, status, reason) in [
        (condition::AVAILABLE, Some(true), reason::READY),
        (condition::PROGRESSING, Some(false), reason::SETTLED),
        (condition::DEGRADED, Some(false), reason::READY),
        (condition::QUORUM_HEALTHY, Some(true), reason::READY),
        (condition::CERTIFICATES_READY, Some(true), reason::READY),
        (condition::POLICY_SYNCED, None, reason::NOT_MANAGED),
    ] {
        assert_eq!(short(c.get(type_)), (status, reason), "{type_}");
    }
}

#[test]
fn a_step_a_wait_and_a_roll_out_are_progress() {
    let mut c = Case::rest();
    c.relays = Some(RelayFacts {
        updated: 1,
        ..relays(2)
    });
    assert_eq!(
        short(c.get(condition::PROGRESSING)),
        (Some(true), reason::ROLLING)
    );
    c.plan.waiting = Some(Waiting {
        reason: reason::WAITING,
        message: "w".to_owned(),
    });
    assert_eq!(
        short(c.get(condition::PROGRESSING)),
        (Some(true), reason::WAITING)
    );
    c.plan.waiting = Some(Waiting {
        reason: reason::PAUSED,
        message: "p".to_owned(),
    });
    assert_eq!(
        short(c.get(condition::PROGRESSING)),
        (Some(false), reason::PAUSED)
    );
    c.plan.step = Some(Step::LowerReplicas { replicas: 3 });
    let (status, reason, message) = c.get(condition::PROGRESSING);
    assert_eq!((status, reason), (Some(true), reason::STEPPING));
    assert_eq!(
        message,
        "stopping a control-plane node that is removed, 3 stay"
    );
}

#[test]
fn mail_is_taken_only_with_a_quorum_and_a_relay_node() {
    let mut c = Case::rest();
    c.relays = Some(relays(0));
    assert_eq!(
        short(c.get(condition::AVAILABLE)),
        (Some(false), reason::NO_RELAYS)
    );
    c.relays = Some(relays(1));
    c.plan.quorum = Quorum::Reduced("r".to_owned());
    assert_eq!(
        short(c.get(condition::AVAILABLE)),
        (Some(true), reason::READY)
    );
    assert_eq!(
        short(c.get(condition::QUORUM_HEALTHY)),
        (Some(false), reason::MEMBER_DOWN)
    );
    c.plan.quorum = Quorum::Lost("l".to_owned());
    assert_eq!(
        short(c.get(condition::AVAILABLE)),
        (Some(false), reason::NO_QUORUM)
    );
    c.plan.quorum = Quorum::Unknown {
        reason: reason::FOUNDING,
        message: "f".to_owned(),
    };
    assert_eq!(
        short(c.get(condition::AVAILABLE)),
        (Some(false), reason::FOUNDING)
    );
    assert_eq!(
        short(c.get(condition::QUORUM_HEALTHY)),
        (None, reason::FOUNDING)
    );
}

#[test]
fn what_needs_a_person_is_degraded() {
    let mut c = Case::rest();
    c.public = PublicFacts::Missing;
    let (status, reason, message) = c.get(condition::DEGRADED);
    assert_eq!((status, reason), (Some(true), reason::MISSING));
    assert!(message.contains("no Secret \"mx-tls\""), "{message}");
    assert_eq!(
        short(c.get(condition::CERTIFICATES_READY)),
        (Some(false), reason::MISSING)
    );
    for (public, reason) in [
        (present(100 * 86_400, false), reason::INVALID),
        (present(86_400, true), reason::EXPIRING),
        (present(9 * 86_400, true), reason::EXPIRING),
        (PublicFacts::Unusable("no key".to_owned()), reason::MISSING),
    ] {
        c.public = public;
        assert_eq!(short(c.get(condition::DEGRADED)), (Some(true), reason));
    }
    c.plan.troubles = vec![Trouble {
        reason: reason::MEMBER_LOST,
        message: "m".to_owned(),
    }];
    assert_eq!(
        c.get(condition::DEGRADED),
        (Some(true), reason::MEMBER_LOST, "m".to_owned())
    );
}

#[test]
fn a_rotation_is_ready_and_a_missing_certificate_is_not() {
    let mut c = Case::rest();
    c.certs = certs(CertState::Rotating("r".to_owned()));
    assert_eq!(
        short(c.get(condition::CERTIFICATES_READY)),
        (Some(true), reason::ROTATING)
    );
    c.certs = certs(CertState::Missing("m".to_owned()));
    assert_eq!(
        short(c.get(condition::CERTIFICATES_READY)),
        (Some(false), reason::ISSUING)
    );
    c.certs = CertPlan {
        workload_not_after: Some(86_400),
        ..certs(CertState::Ready)
    };
    assert_eq!(
        short(c.get(condition::CERTIFICATES_READY)),
        (Some(false), reason::EXPIRING)
    );
}

fn verdict(name: &str, faults: Vec<PolicyFault>) -> PolicyVerdict {
    PolicyVerdict {
        name: name.to_owned(),
        documents: 1,
        faults,
    }
}

#[test]
fn a_refused_policy_says_why_and_so_do_the_others() {
    let conflict = |with: &str| PolicyFault::Conflict {
        key: "Domain/a.example".to_owned(),
        with: with.to_owned(),
    };
    let merged = Merged {
        verdicts: vec![
            verdict("a", vec![conflict("b")]),
            verdict("b", vec![conflict("a")]),
            verdict("c", vec![]),
            verdict(
                "d",
                vec![PolicyFault::Invalid("documents[0]: wrong".to_owned())],
            ),
        ],
        documents: None,
    };
    let state = PolicyState::Refused(merged.clone());
    let of = |n: usize| -> Vec<(Option<bool>, &str)> {
        policy_conditions(&merged.verdicts[n], &state)
            .iter()
            .map(|w| (w.status, w.reason))
            .collect()
    };
    assert_eq!(
        of(0),
        [
            (Some(true), reason::VALID),
            (Some(true), reason::CONFLICT),
            (Some(false), reason::INVALID)
        ]
    );
    assert_eq!(
        of(2),
        [
            (Some(true), reason::VALID),
            (Some(false), reason::NO_CONFLICT),
            (Some(false), reason::OTHERS_REFUSED)
        ]
    );
    assert_eq!(of(3)[0], (Some(false), reason::INVALID));
    let mut c = Case::rest();
    c.policy = state;
    let (status, _, message) = c.get(condition::POLICY_SYNCED);
    assert_eq!(status, Some(false));
    assert!(
        message.contains("RelayPolicy \"a\" and in RelayPolicy \"b\""),
        "{message}"
    );
}

#[test]
fn the_time_of_a_condition_changes_with_its_status_only() {
    let at = |s: i64| Timestamp::from_second(s).unwrap();
    let want = |status, message: &str| wanted(condition::AVAILABLE, status, reason::READY, message);
    let first = update(&[], &[want(Some(true), "a")], 1, at(10));
    let same = update(&first, &[want(Some(true), "b")], 2, at(20));
    assert_eq!(same[0].last_transition_time.0, at(10));
    assert_eq!(
        (same[0].message.as_str(), same[0].observed_generation),
        ("b", Some(2))
    );
    let other = update(&same, &[want(None, "c")], 2, at(30));
    assert_eq!(
        (other[0].status.as_str(), other[0].last_transition_time.0),
        ("Unknown", at(30))
    );
    let kept = update(&other, &refused(&[]), 3, at(40));
    let types: Vec<&str> = kept.iter().map(|c| c.type_.as_str()).collect();
    assert_eq!(types, ["Available", "Degraded", "Progressing"]);
    assert_eq!(kept[0], other[0], "what was observed before stays");
}

#[test]
fn a_long_message_is_shortened_between_characters() {
    let long = "ü".repeat(5000);
    let c = update(
        &[],
        &[wanted(
            condition::DEGRADED,
            Some(true),
            reason::INVALID,
            long,
        )],
        1,
        Timestamp::UNIX_EPOCH,
    );
    assert_eq!(c[0].message.chars().count(), 2001);
}
