//! `decide` over all 6720 inputs against a direct port of the executable reference and against a
//! golden table that the reference itself printed; then the properties of the table.
#![allow(clippy::unwrap_used, reason = "tests")]
use sealane_tls_policy::{
    Checks, HopFacts, HopRequirement, HostSecurity, Judgement, Level, MxSecurity, OnFailure,
    PinnedRoute, PolicyLevel, Row, SessionFacts, StsPolicy, TlsSession, Tlsa, decide, judge,
};
use std::collections::BTreeSet;

mod reference;

/// One input in the words of the reference.
#[derive(Debug, Clone, Copy)]
struct Words {
    route: &'static str,
    mx: &'static str,
    a: &'static str,
    tlsa: &'static str,
    sts: &'static str,
    policy: &'static str,
    requiretls: bool,
    tls_no: bool,
}

/// Every input, in the order of the golden table.
fn all() -> Vec<(Words, HopFacts)> {
    let hosts = [
        ("fail", "na", HostSecurity::Failed),
        ("insecure", "na", HostSecurity::Insecure),
        ("secure", "usable", HostSecurity::Secure(Tlsa::Usable)),
        ("secure", "unusable", HostSecurity::Secure(Tlsa::Unusable)),
        ("secure", "nodata", HostSecurity::Secure(Tlsa::NoData)),
        ("secure", "insecure", HostSecurity::Secure(Tlsa::Insecure)),
        ("secure", "error", HostSecurity::Secure(Tlsa::Error)),
    ];
    let mut out = Vec::new();
    for (route, route_fact) in [
        ("", None),
        ("secure", Some(PinnedRoute::Secure)),
        ("fingerprint", Some(PinnedRoute::Fingerprint)),
        ("peer", Some(PinnedRoute::Peer)),
    ] {
        for (mx, mx_fact) in [
            ("fail", MxSecurity::Failed),
            ("nx", MxSecurity::NxDomain),
            ("null", MxSecurity::NullMx),
            ("secure", MxSecurity::Secure),
            ("insecure", MxSecurity::Insecure),
        ] {
            for (a, tlsa, host) in hosts {
                for (sts, sts_fact) in [
                    ("match", StsPolicy::Match),
                    ("nomatch", StsPolicy::NoMatch),
                    ("testing", StsPolicy::Testing),
                    ("none", StsPolicy::None),
                ] {
                    for (policy, level) in [
                        ("L1", PolicyLevel::Encrypt),
                        ("verified", PolicyLevel::Verified),
                        ("dane-only", PolicyLevel::DaneOnly),
                    ] {
                        for requiretls in [false, true] {
                            for tls_no in [false, true] {
                                out.push((
                                    Words {
                                        route,
                                        mx,
                                        a,
                                        tlsa,
                                        sts,
                                        policy,
                                        requiretls,
                                        tls_no,
                                    },
                                    HopFacts {
                                        route: route_fact,
                                        mx: mx_fact,
                                        host,
                                        sts: sts_fact,
                                        policy: level,
                                        require_tls: requiretls,
                                        tls_required_no: tls_no,
                                    },
                                ));
                            }
                        }
                    }
                }
            }
        }
    }
    out
}

/// The answer in the words of the reference: row, checks, failure.
fn words(r: HopRequirement) -> (String, BTreeSet<&'static str>, &'static str) {
    let Checks {
        dane,
        webpki,
        secure,
        fingerprint,
        peer,
    } = r.checks;
    let checks = [
        ("dane", dane),
        ("webpki", webpki),
        ("secure", secure),
        ("fingerprint", fingerprint),
        ("peer", peer),
    ];
    let failure = match r.on_failure {
        OnFailure::DeferDns => "defer 4.4.3",
        OnFailure::NextHostDns => "next host; defer 4.4.3",
        OnFailure::BounceNoDomain => "bounce 5.1.2",
        OnFailure::BounceNullMx => "bounce 5.1.10",
        OnFailure::DeferTls => "defer 4.7.5 > 5.7.5",
        OnFailure::DeferNoTls => "defer 4.7.4 > 5.7.4",
        OnFailure::NextHostRefetch => "next host; refetch policy; defer 4.7.5 > 5.7.5",
        OnFailure::NextHostTls => "next host; defer 4.7.5 > 5.7.5",
        OnFailure::BounceRequireTls => "bounce 5.7.30",
        OnFailure::NextHost => "next host; defer 4.7.4 (no STARTTLS) / 4.7.5 > 5.7.x",
    };
    (
        r.row_name(),
        checks
            .into_iter()
            .filter(|(_, on)| *on)
            .map(|(name, _)| name)
            .collect(),
        failure,
    )
}

#[test]
fn every_input_agrees_with_the_reference() {
    let all = all();
    assert_eq!(all.len(), 6720);
    for (w, facts) in all {
        let expected = reference::decide(
            w.route,
            w.mx,
            w.a,
            w.tlsa,
            w.sts,
            w.policy,
            w.requiretls,
            w.tls_no,
        );
        assert_eq!(words(decide(facts)), expected, "{w:?}");
    }
}

#[test]
fn every_input_agrees_with_the_golden_table() {
    let golden = include_str!("golden/decision_table.txt");
    let legend: Vec<(char, &str)> = golden
        .lines()
        .filter_map(|l| l.split_once(" = "))
        .filter(|(k, _)| k.len() == 1)
        .map(|(k, v)| (k.chars().next().unwrap(), v))
        .collect();
    let letters: Vec<char> = golden
        .split_once("\n\n")
        .unwrap()
        .1
        .chars()
        .filter(|c| c.is_ascii_alphabetic())
        .collect();
    let all = all();
    assert_eq!(letters.len(), all.len());
    for ((w, facts), letter) in all.into_iter().zip(letters) {
        let expected = legend.iter().find(|(k, _)| *k == letter).unwrap().1;
        let (row, checks, failure) = words(decide(facts));
        let checks: Vec<_> = checks.into_iter().collect();
        assert_eq!(
            format!("{row} | {} | {failure}", checks.join(" ")),
            expected,
            "{w:?}"
        );
    }
}

#[test]
fn a_usable_tlsa_implies_the_dane_check_on_every_delivery() {
    for (w, facts) in all() {
        let r = decide(facts);
        let exempt = matches!(r.row, Row::D18 | Row::D19);
        if r.connects() && !exempt && facts.host == HostSecurity::Secure(Tlsa::Usable) {
            assert!(r.checks.dane, "{w:?}");
        }
    }
}

#[test]
fn an_enforced_sts_policy_implies_the_webpki_check_and_a_matching_host() {
    for (w, facts) in all() {
        let r = decide(facts);
        if r.connects() && !matches!(r.row, Row::D18 | Row::D19) {
            assert!(facts.sts != StsPolicy::NoMatch, "{w:?}");
            assert!(facts.sts != StsPolicy::Match || r.checks.webpki, "{w:?}");
        }
    }
}

#[test]
fn requiretls_implies_a_certificate_check_and_beats_the_header() {
    for (w, facts) in all() {
        let r = decide(facts);
        if facts.require_tls && r.connects() && r.row != Row::D19 {
            assert!(!r.checks.is_empty() && r.require_tls, "{w:?}");
        }
        if facts.require_tls {
            assert_eq!(
                r,
                decide(HopFacts {
                    tls_required_no: false,
                    ..facts
                }),
                "{w:?}"
            );
        }
    }
}

#[test]
fn the_header_never_lowers_a_route_with_its_own_check() {
    for (w, facts) in all().into_iter().filter(|(_, f)| f.route.is_some()) {
        assert_eq!(decide(facts).row, Row::D19, "{w:?}");
        assert!(!decide(facts).checks.is_empty(), "{w:?}");
    }
}

/// Every state of TLS, with every subset of checks passing.
fn sessions() -> Vec<SessionFacts> {
    let mut out = Vec::new();
    for offers_require_tls in [false, true] {
        for tls in [
            TlsSession::NotTried,
            TlsSession::NotOffered,
            TlsSession::HandshakeFailed,
        ] {
            out.push(SessionFacts {
                tls,
                offers_require_tls,
            });
        }
        for bits in 0u8..32 {
            let on = |n: u8| bits & (1 << n) != 0;
            let passed = Checks {
                dane: on(0),
                webpki: on(1),
                secure: on(2),
                fingerprint: on(3),
                peer: on(4),
            };
            out.push(SessionFacts {
                tls: TlsSession::Established(passed),
                offers_require_tls,
            });
        }
    }
    out
}

#[test]
fn nothing_is_delivered_without_tls_or_with_a_failed_check() {
    for (w, facts) in all() {
        let r = decide(facts);
        for s in sessions() {
            let Judgement::Deliver(level) = judge(r, s) else {
                continue;
            };
            let TlsSession::Established(passed) = s.tls else {
                panic!("{w:?} {s:?}")
            };
            assert!(r.connects(), "{w:?}");
            assert!(passed.dane || !r.checks.dane, "{w:?}");
            assert!(passed.webpki || !r.checks.webpki, "{w:?}");
            assert!(passed.secure || !r.checks.secure, "{w:?}");
            assert!(passed.fingerprint || !r.checks.fingerprint, "{w:?}");
            assert!(passed.peer || !r.checks.peer, "{w:?}");
            assert!(s.offers_require_tls || !r.require_tls, "{w:?}");
            assert_eq!(level == Level::Encrypted, r.checks.is_empty(), "{w:?}");
        }
    }
}

#[test]
fn missing_tls_is_4_7_4_and_failing_tls_4_7_5_until_the_lifetime_ends() {
    let facts = HopFacts {
        route: None,
        mx: MxSecurity::Insecure,
        host: HostSecurity::Insecure,
        sts: StsPolicy::None,
        policy: PolicyLevel::Encrypt,
        require_tls: false,
        tls_required_no: false,
    };
    let r = decide(facts);
    assert_eq!(r.row, Row::D15);
    let session = |tls| SessionFacts {
        tls,
        offers_require_tls: false,
    };
    let refused = |detail| Judgement::Refuse {
        status: (4, 7, detail),
        at_limit: (5, 7, detail),
        tls_caused: true,
        next_host: true,
    };
    assert_eq!(judge(r, session(TlsSession::NotOffered)), refused(4));
    assert_eq!(judge(r, session(TlsSession::HandshakeFailed)), refused(5));
    assert_eq!(
        judge(r, session(TlsSession::Established(Checks::default()))),
        Judgement::Deliver(Level::Encrypted)
    );
    let unreachable = decide(HopFacts {
        policy: PolicyLevel::Verified,
        ..facts
    });
    assert_eq!(unreachable.row, Row::D17);
    assert_eq!(
        judge(unreachable, session(TlsSession::NotTried)),
        Judgement::Refuse {
            status: (4, 7, 5),
            at_limit: (5, 7, 5),
            tls_caused: true,
            next_host: false
        }
    );
}

#[test]
fn dns_failures_are_not_tls_caused() {
    let facts = HopFacts {
        route: None,
        mx: MxSecurity::NullMx,
        host: HostSecurity::Insecure,
        sts: StsPolicy::None,
        policy: PolicyLevel::Encrypt,
        require_tls: false,
        tls_required_no: false,
    };
    let session = SessionFacts {
        tls: TlsSession::NotTried,
        offers_require_tls: false,
    };
    for (mx, status) in [
        (MxSecurity::NullMx, (5, 1, 10)),
        (MxSecurity::NxDomain, (5, 1, 2)),
        (MxSecurity::Failed, (4, 4, 3)),
    ] {
        let Judgement::Refuse {
            status: got,
            tls_caused,
            ..
        } = judge(decide(HopFacts { mx, ..facts }), session)
        else {
            panic!("{mx:?}")
        };
        assert_eq!((got, tls_caused), (status, false));
    }
}
