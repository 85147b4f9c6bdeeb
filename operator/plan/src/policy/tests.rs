#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use proptest::prelude::*;
use sealane_crd::{ClusterRef, DocumentKind, SecretKey};
use sealane_policy::hash_password;

fn document(kind: DocumentKind, name: &str, rest: Value) -> PolicyDocument {
    let Value::Object(rest) = rest else {
        panic!("{rest}")
    };
    PolicyDocument {
        kind,
        name: name.to_owned(),
        password: None,
        password_verifier: None,
        password_verifier_secret_ref: None,
        senders: None,
        rest: rest.into_iter().collect(),
    }
}

fn domain(name: &str) -> PolicyDocument {
    document(DocumentKind::Domain, name, json!({}))
}

fn policy(name: &str, order: i32, documents: Vec<PolicyDocument>) -> PolicyInput {
    PolicyInput {
        name: name.to_owned(),
        spec: RelayPolicySpec {
            cluster_ref: ClusterRef {
                name: "mail".to_owned(),
            },
            order,
            documents,
        },
    }
}

fn keys(m: &Merged) -> Vec<String> {
    m.documents
        .as_ref()
        .unwrap()
        .iter()
        .map(document_key)
        .collect()
}

#[test]
fn documents_are_joined() {
    let m = merge(
        &[
            policy(
                "b",
                0,
                vec![
                    domain("b.example"),
                    document(
                        DocumentKind::Destination,
                        "*",
                        json!({"tls": {"level": "secure"}}),
                    ),
                ],
            ),
            policy("a", 5, vec![domain("a.example")]),
        ],
        &Verifiers::new(),
    );
    assert_eq!(
        keys(&m),
        ["Domain/a.example", "Domain/b.example", "Destination/*"]
    );
    assert_eq!(
        m.verdicts
            .iter()
            .map(|v| v.name.as_str())
            .collect::<Vec<_>>(),
        ["b", "a"]
    );
    assert_eq!(m.refusal(), None);
}

#[test]
fn a_conflict_names_both_policies_and_refuses_all() {
    let m = merge(
        &[
            policy("one", 0, vec![domain("a.example")]),
            policy("two", 0, vec![domain("b.example"), domain("a.example")]),
            policy("three", 0, vec![domain("c.example")]),
        ],
        &Verifiers::new(),
    );
    assert_eq!(m.documents, None);
    let conflicts: Vec<Option<String>> = m.verdicts.iter().map(PolicyVerdict::conflict).collect();
    assert_eq!(
        conflicts,
        [
            Some("Domain/a.example is in RelayPolicy \"one\" and in RelayPolicy \"two\": remove it from one of them".to_owned()),
            None,
            Some("Domain/a.example is in RelayPolicy \"two\" and in RelayPolicy \"one\": remove it from one of them".to_owned()),
        ]
    );
}

#[test]
fn the_same_name_of_another_kind_is_no_conflict() {
    let m = merge(
        &[
            policy("one", 0, vec![domain("a.example")]),
            policy(
                "two",
                0,
                vec![document(DocumentKind::Destination, "a.example", json!({}))],
            ),
        ],
        &Verifiers::new(),
    );
    assert!(m.documents.is_some());
}

#[test]
fn what_is_not_valid_is_named_with_document_and_field() {
    for (wrong, expected) in [
        (
            document(
                DocumentKind::Destination,
                "*",
                json!({"tls": {"level": "may"}}),
            ),
            "documents[1]: Destination \"*\": tls.level: \"may\": plaintext has no spelling here",
        ),
        (
            document(DocumentKind::Domain, "x.example", json!({"colour": "red"})),
            "documents[1]: Domain \"x.example\": ",
        ),
        (
            domain("A.example"),
            "documents[1]: Domain \"A.example\": name: \"A.example\": write it as \"a.example\"",
        ),
        (
            domain("a.example"),
            "documents[1]: Domain/a.example stands in this policy twice",
        ),
        (
            document(DocumentKind::Submitter, "app", json!({})),
            "documents[1]: Submitter \"app\": ",
        ),
        (
            PolicyDocument {
                password: Some("x".to_owned()),
                ..document(DocumentKind::Submitter, "app", json!({}))
            },
            "takes no password",
        ),
    ] {
        let m = merge(
            &[policy("p", 0, vec![domain("a.example"), wrong])],
            &Verifiers::new(),
        );
        assert_eq!(m.documents, None);
        let why = m.verdicts[0].invalid().unwrap();
        assert!(why.contains(expected), "{why} does not contain {expected}");
        assert!(
            !why.contains("document:"),
            "{why}: a place in a text that nobody wrote"
        );
    }
}

#[test]
fn verifiers_come_from_secrets() {
    let mut app = document(DocumentKind::Submitter, "app", json!({}));
    app.senders = Some(vec!["@a.example".to_owned()]);
    app.password_verifier_secret_ref = Some(SecretKey {
        name: "app".to_owned(),
        key: "verifier".to_owned(),
    });
    let input = [policy("p", 0, vec![app])];
    let at = ("app".to_owned(), "verifier".to_owned());
    assert_eq!(wanted_secrets(&input), BTreeSet::from([at.clone()]));
    let without = merge(&input, &Verifiers::from([(at.clone(), None)]));
    let why = without.verdicts[0].invalid().unwrap();
    assert!(
        why.contains("there is no Secret \"app\" with a key \"verifier\""),
        "{why}"
    );
    let verifier = hash_password("secret", &[3; 16]).unwrap();
    let with = merge(
        &input,
        &Verifiers::from([(at.clone(), Some(format!("{verifier}\n")))]),
    );
    assert_eq!(keys(&with), ["Submitter/app"]);
    let plain = merge(&input, &Verifiers::from([(at, Some("secret".to_owned()))]));
    let why = plain.verdicts[0].invalid().unwrap();
    assert!(why.contains("passwordVerifier"), "{why}");
    assert!(
        !why.contains("\"secret\""),
        "what may be a password is not repeated: {why}"
    );
}

#[test]
fn a_document_may_hold_any_text() {
    let m = merge(
        &[policy(
            "p",
            0,
            vec![document(
                DocumentKind::Domain,
                "a.example",
                json!({"recipients": ["---", "a\"b", "ü", "x: y #z"]}),
            )],
        )],
        &Verifiers::new(),
    );
    let Some(v1::document::Kind::Domain(d)) = &m.documents.unwrap()[0].kind else {
        panic!()
    };
    assert_eq!(d.recipients, ["---", "a\"b", "ü", "x: y #z"]);
}

#[test]
fn only_what_differs_is_sent() {
    let set = |names: &[&str]| {
        let input = policy("p", 0, names.iter().map(|n| domain(n)).collect());
        merge(&[input], &Verifiers::new()).documents.unwrap()
    };
    let live = set(&["a.example", "b.example"]);
    assert_eq!(difference(&live, &live), None);
    let change = difference(&live, &set(&["b.example", "c.example"])).unwrap();
    assert_eq!(
        change
            .documents
            .iter()
            .map(document_key)
            .collect::<Vec<_>>(),
        ["Domain/c.example"]
    );
    assert_eq!(change.remove, ["Domain/a.example"]);
    assert_eq!(difference(&live, &[]).unwrap().remove.len(), 2);
}

fn some_policies() -> impl Strategy<Value = Vec<PolicyInput>> {
    let documents = proptest::collection::btree_set(0..8u32, 0..4);
    let one = (0..3i32, documents);
    proptest::collection::vec(one, 0..5).prop_map(|all| {
        all.into_iter()
            .enumerate()
            .map(|(n, (order, names))| {
                let documents = names.iter().map(|d| match d {
                    7 => domain("a..b"),
                    d => domain(&format!("d{d}.example")),
                });
                policy(&format!("p{n}"), order, documents.collect())
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn the_order_of_the_list_does_not_matter(
        (policies, shuffled) in some_policies().prop_flat_map(|p| (Just(p.clone()), Just(p).prop_shuffle()))
    ) {
        prop_assert_eq!(merge(&policies, &Verifiers::new()), merge(&shuffled, &Verifiers::new()));
    }

    #[test]
    fn conflicts_are_mutual_and_refuse_everything(policies in some_policies()) {
        let m = merge(&policies, &Verifiers::new());
        let of = |v: &PolicyVerdict| -> Vec<(String, String, String)> {
            v.faults.iter().filter_map(|f| match f {
                PolicyFault::Conflict { key, with } => Some((v.name.clone(), with.clone(), key.clone())),
                PolicyFault::Invalid(_) => None,
            }).collect()
        };
        let all: BTreeSet<_> = m.verdicts.iter().flat_map(of).collect();
        for (a, b, key) in &all {
            prop_assert!(a != b);
            prop_assert!(all.contains(&(b.clone(), a.clone(), key.clone())));
        }
        let mut seen = BTreeSet::new();
        let twice = policies.iter().flat_map(|p| &p.spec.documents).any(|d| !seen.insert(d.name.clone()));
        prop_assert_eq!(twice, !all.is_empty());
        let whole = m.verdicts.iter().all(|v| v.faults.is_empty());
        prop_assert_eq!(m.documents.is_some(), whole);
        prop_assert_eq!(m.refusal().is_none(), whole);
        if let Some(documents) = m.documents {
            prop_assert_eq!(documents.len(), policies.iter().map(|p| p.spec.documents.len()).sum::<usize>());
        }
    }
}
