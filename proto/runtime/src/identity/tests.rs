use super::*;
use crate::testing::{Authority, Files, Issued};

const RELAY: &str = "spiffe://c/relay/mail-relay";

#[test]
fn an_instance_is_told_from_its_certificate_unless_it_is_called_like_it() {
    let workload: WorkloadId = RELAY.parse().unwrap();
    let known = |instance: &str| workload.of_instance(instance).map(|w| w.name);
    assert_eq!(known("mail-relay").unwrap(), "mail-relay");
    assert_eq!(known("a-1.B_2").unwrap(), "mail-relay/a-1.B_2");
    assert_eq!(known(&"x".repeat(128)).unwrap().len(), 11 + 128);
    let longer = "x".repeat(129);
    for bad in ["", "a/b", "a b", "-a", ".", "ä", "a\n", longer.as_str()] {
        assert!(known(bad).is_err(), "{bad:?}");
    }
    // No certificate names an instance.
    assert!(
        "spiffe://c/relay/mail-relay/a"
            .parse::<WorkloadId>()
            .is_err()
    );
}

#[test]
fn a_new_certificate_of_the_same_workload_is_taken_into_use() {
    let (old, new) = (Authority::new(), Authority::new());
    let files = Files::new(&old.issue(RELAY, 2080), &old.pem);
    let identity = Identity::load(&files.config()).unwrap();
    let year = |y: i64| (y - 1970) * 31_556_952;
    let ends = |name| identity.figures().not_after(name);
    assert!((ends("identity") - year(2080)).abs() < 86_400 * 2);
    assert!((ends("ca") - year(2090)).abs() < 86_400 * 2);
    assert_eq!(identity.look(), Look::Same);

    let (server, client) = (identity.server_config(), identity.client_config());
    let clone = identity.clone();
    files.write(&new.issue(RELAY, 2085), &format!("{}{}", old.pem, new.pem));
    assert_eq!(identity.look(), Look::Renewed);
    assert!(ends("identity") > year(2084));
    assert!(!Arc::ptr_eq(&server, &clone.server_config()), "clones too");
    assert!(!Arc::ptr_eq(&client, &clone.client_config()));
    assert_eq!(identity.figures().looks("identity"), (1, 0));
}

#[test]
fn what_nobody_would_speak_to_is_refused_and_the_old_stays() {
    let (ca, other) = (Authority::new(), Authority::new());
    let good = ca.issue(RELAY, 2080);
    let files = Files::new(&good, &ca.pem);
    let identity = Identity::load(&files.config()).unwrap();
    let before = identity.server_config();
    let key = ca.issue(RELAY, 2080).key;
    let half = good.certificate.len() / 2;
    let of = |certificate: &str, key: &str| Issued {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
    };
    let bad: [(&str, Issued, &str); 9] = [
        (
            "the key of another certificate",
            of(&good.certificate, &key),
            &ca.pem,
        ),
        (
            "another workload",
            ca.issue("spiffe://c/relay/other", 2080),
            &ca.pem,
        ),
        (
            "another role",
            ca.issue("spiffe://c/control/mail-relay", 2080),
            &ca.pem,
        ),
        ("a certificate that is over", ca.issue(RELAY, 2001), &ca.pem),
        (
            "an authority that is not in the bundle",
            other.issue(RELAY, 2080),
            &ca.pem,
        ),
        ("the bundle without our authority", good.clone(), &other.pem),
        (
            "half a certificate",
            of(&good.certificate[..half], &good.key),
            &ca.pem,
        ),
        ("no key", of(&good.certificate, ""), &ca.pem),
        ("no authority", good.clone(), ""),
    ];
    for (what, issued, bundle) in &bad {
        files.write(issued, bundle);
        assert_eq!(identity.look(), Look::Refused, "{what}");
    }
    let failures = bad.len() as u64;
    assert_eq!(identity.figures().looks("identity"), (0, failures));
    assert!(Arc::ptr_eq(&before, &identity.server_config()));
    files.write(&good, &ca.pem);
    assert_eq!(identity.look(), Look::Same);
}
