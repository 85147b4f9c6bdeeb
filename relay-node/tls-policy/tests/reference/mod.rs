//! The executable reference of the decision table, statement by statement and in its own words, so
//! that the two can be read side by side. Knows nothing of the crate under test.
use std::collections::BTreeSet;

/// Row, checks, failure.
pub(crate) type Answer = (String, BTreeSet<&'static str>, &'static str);

/// `route`: "" for none. `tls_no` is the header, `requiretls` the MAIL parameter.
#[allow(clippy::too_many_arguments, reason = "as in the reference")]
pub(crate) fn decide(
    route: &'static str,
    mx: &str,
    a: &str,
    tlsa: &str,
    sts: &str,
    policy: &'static str,
    requiretls: bool,
    mut tls_no: bool,
) -> Answer {
    let answer = |row: &str, checks: &BTreeSet<&'static str>, failure| {
        (row.to_owned(), checks.clone(), failure)
    };
    let none = BTreeSet::new();
    if !route.is_empty() {
        return answer("D19", &BTreeSet::from([route]), "defer 4.7.5 > 5.7.5");
    }
    if mx == "fail" {
        return answer("D1", &none, "defer 4.4.3");
    }
    if mx == "nx" {
        return answer("D2", &none, "bounce 5.1.2");
    }
    if mx == "null" {
        return answer("D3", &none, "bounce 5.1.10");
    }
    if requiretls {
        tls_no = false;
    }
    let req = if tls_no {
        "L1"
    } else if requiretls && policy == "L1" {
        "verified"
    } else {
        policy
    };
    if a == "fail" {
        return answer("D1", &none, "next host; defer 4.4.3");
    }
    if tls_no {
        return answer("D18", &none, "defer 4.7.4 > 5.7.4");
    }
    if sts == "nomatch" {
        return answer(
            "D22",
            &none,
            "next host; refetch policy; defer 4.7.5 > 5.7.5",
        );
    }
    if tlsa == "error" {
        return answer("D8", &none, "next host; defer 4.7.5 > 5.7.5");
    }
    let mut checks = BTreeSet::new();
    if tlsa == "usable" {
        checks.insert("dane");
    }
    if sts == "match" {
        checks.insert("webpki");
    }
    let mut got = BTreeSet::new();
    if tlsa == "usable" && mx == "secure" {
        got.insert("L3a");
    }
    if sts == "match" {
        got.insert("L3b");
    }
    if req == "dane-only" && !got.contains("L3a") {
        return answer("D17", &checks, "defer 4.7.5 > 5.7.5");
    }
    if req == "verified" && got.is_empty() {
        if mx == "secure" {
            checks.insert("webpki");
            got.insert("L3c");
        } else if requiretls {
            return answer("D16", &checks, "bounce 5.7.30");
        } else {
            return answer("D17", &checks, "defer 4.7.5 > 5.7.5");
        }
    }
    let mut row = String::from(if got.contains("L3a") {
        if sts == "match" { "D5" } else { "D4" }
    } else if got.contains("L3b") {
        if mx == "secure" { "D9" } else { "D13" }
    } else if got.contains("L3c") {
        if tlsa == "unusable" { "D7" } else { "D11" }
    } else if tlsa == "usable" {
        "D12"
    } else if tlsa == "unusable" {
        "D6"
    } else if sts == "testing" && mx == "insecure" {
        "D14"
    } else if mx == "secure" {
        "D10"
    } else {
        "D15"
    });
    if requiretls {
        row = format!("D16:{row}");
    }
    (
        row,
        checks,
        "next host; defer 4.7.4 (no STARTTLS) / 4.7.5 > 5.7.x",
    )
}
