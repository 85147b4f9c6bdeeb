//! The decision table.
use crate::{
    Checks, HopFacts, HopRequirement, HostSecurity, MxSecurity, OnFailure, PinnedRoute,
    PolicyLevel, Row, StsPolicy, Tlsa,
};
use sealane_mutants::{Mutant::M15, mutant};

/// Names the row that applies. Total and pure; the order of the steps is part of the meaning:
///
/// 1. a route with its own check (D19);
/// 2. the MX lookup (D1, D2, D3), then the address lookup (D1);
/// 3. `TLS-Required: No` lowers (D18), unless REQUIRETLS is present (RFC 8689 section 4.1);
/// 4. hosts that are out: MTA-STS (D22), TLSA (D8);
/// 5. published policies give checks and levels;
/// 6. a required level that they do not reach: WebPKI under a secure MX, else D16 or D17;
/// 7. the row by the strongest level.
pub fn decide(facts: HopFacts) -> HopRequirement {
    if let Some(route) = facts.route {
        return stop(Row::D19, route_checks(route), OnFailure::DeferTls);
    }
    match facts.mx {
        MxSecurity::Failed => return stop(Row::D1, Checks::default(), OnFailure::DeferDns),
        MxSecurity::NxDomain => return stop(Row::D2, Checks::default(), OnFailure::BounceNoDomain),
        MxSecurity::NullMx => return stop(Row::D3, Checks::default(), OnFailure::BounceNullMx),
        MxSecurity::Secure | MxSecurity::Insecure => {}
    }
    let tlsa = match facts.host {
        HostSecurity::Failed => return stop(Row::D1, Checks::default(), OnFailure::NextHostDns),
        HostSecurity::Insecure => None,
        HostSecurity::Secure(tlsa) => Some(tlsa),
    };
    if facts.tls_required_no && !facts.require_tls {
        return stop(Row::D18, Checks::default(), OnFailure::DeferNoTls);
    }
    if facts.sts == StsPolicy::NoMatch {
        return stop(Row::D22, Checks::default(), OnFailure::NextHostRefetch);
    }
    if tlsa == Some(Tlsa::Error) && !mutant(M15) {
        return stop(Row::D8, Checks::default(), OnFailure::NextHostTls);
    }
    published(facts, tlsa)
}

/// Steps 5 to 7.
fn published(facts: HopFacts, tlsa: Option<Tlsa>) -> HopRequirement {
    let secure_mx = facts.mx == MxSecurity::Secure;
    let sts = facts.sts == StsPolicy::Match;
    let dane = tlsa == Some(Tlsa::Usable);
    let mut checks = Checks {
        dane,
        webpki: sts,
        ..Checks::default()
    };
    let level = match (dane && secure_mx, sts) {
        (true, _) => Some(Reached::Dane),
        (false, true) => Some(Reached::Sts),
        (false, false) => None,
    };
    let policy = if facts.require_tls && facts.policy == PolicyLevel::Encrypt {
        PolicyLevel::Verified
    } else {
        facts.policy
    };
    let level = match (policy, level) {
        (PolicyLevel::DaneOnly, l) if l != Some(Reached::Dane) => {
            return stop(Row::D17, checks, OnFailure::DeferTls);
        }
        (PolicyLevel::Verified, None) if secure_mx => {
            checks.webpki = true;
            Some(Reached::SecureMx)
        }
        (PolicyLevel::Verified, None) if facts.require_tls => {
            return stop(Row::D16, checks, OnFailure::BounceRequireTls);
        }
        (PolicyLevel::Verified, None) => return stop(Row::D17, checks, OnFailure::DeferTls),
        (_, level) => level,
    };
    let row = match level {
        Some(Reached::Dane) if sts => Row::D5,
        Some(Reached::Dane) => Row::D4,
        Some(Reached::Sts) if secure_mx => Row::D9,
        Some(Reached::Sts) => Row::D13,
        Some(Reached::SecureMx) if tlsa == Some(Tlsa::Unusable) => Row::D7,
        Some(Reached::SecureMx) => Row::D11,
        None if dane => Row::D12,
        None if tlsa == Some(Tlsa::Unusable) => Row::D6,
        None if facts.sts == StsPolicy::Testing && !secure_mx => Row::D14,
        None if secure_mx => Row::D10,
        None => Row::D15,
    };
    HopRequirement {
        row,
        require_tls: facts.require_tls,
        checks,
        on_failure: OnFailure::NextHost,
    }
}

/// The strongest verified level that passing the checks will reach.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reached {
    Dane,
    Sts,
    SecureMx,
}

fn route_checks(route: PinnedRoute) -> Checks {
    match route {
        PinnedRoute::Secure => Checks {
            secure: true,
            ..Checks::default()
        },
        PinnedRoute::Fingerprint => Checks {
            fingerprint: true,
            ..Checks::default()
        },
        PinnedRoute::Peer => Checks {
            peer: true,
            ..Checks::default()
        },
    }
}

fn stop(row: Row, checks: Checks, on_failure: OnFailure) -> HopRequirement {
    HopRequirement {
        row,
        require_tls: false,
        checks,
        on_failure,
    }
}
