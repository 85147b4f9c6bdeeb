//! The decision. Read the module above first.
use super::{
    AuthorityFacts, CertAction, CertFacts, CertPlan, CertState, Facts, IdentityFacts, LeafFacts,
    Trust,
};
use sealane_crd::Issuer;

/// Decides what to make, and whom to trust.
///
/// 1. Who is trusted: those who were, those who are in a bundle, those who signed what is in use or offered; but for those
///    that have been of no use for long enough.
/// 2. The CA: make the first, prepare the next, promote it.
/// 3. Leaves: issue or copy what is missing, wrong, of another CA, or past two thirds of its life.
pub fn decide(f: &Facts) -> CertPlan {
    let trusted = trusted(f);
    let mut actions = Vec::new();
    let signer = match f.issuer {
        Issuer::Operator => authority(f, &trusted, &mut actions),
        Issuer::CertManager => Signer::None,
    };
    let mut missing = Vec::new();
    let mut waiting = Vec::new();
    for i in &f.identities {
        match leaf(f, &trusted, &signer, i) {
            Leaf::Good => {}
            Leaf::Make(action) => actions.push(action),
            Leaf::Wait(why) => {
                let name = &i.workload.name;
                let list = if i.leaf.as_ref().is_some_and(|l| in_use(f, l)) {
                    &mut waiting
                } else {
                    &mut missing
                };
                list.push(format!("{name}: {why}"));
            }
        }
    }
    let lost = f.issuer == Issuer::Operator && f.authority.signing.is_none() && uses_any(f);
    let state = if lost {
        CertState::Trouble(
            "the key of the CA is gone: the Secret with it was deleted or damaged. A new CA is being introduced beside the old one; new control-plane nodes get no certificate until it is trusted everywhere".to_owned(),
        )
    } else if !missing.is_empty() {
        CertState::Missing(missing.join("; "))
    } else if f.authority.next.is_some() || trusted.len() > 1 || !waiting.is_empty() {
        waiting.push(
            "a new CA is taking the place of the old one; both are trusted until then".to_owned(),
        );
        CertState::Rotating(waiting.join("; "))
    } else {
        CertState::Ready
    };
    let ends = f.identities.iter().filter_map(|i| i.leaf.as_ref());
    CertPlan {
        look_again: look_again(f, &trusted),
        ca_not_after: f.authority.signing.as_ref().map(|c| c.not_after),
        workload_not_after: ends.map(|l| l.cert.not_after).min(),
        actions,
        trusted,
        state,
    }
}

/// A leaf that works now.
fn in_use(f: &Facts, l: &LeafFacts) -> bool {
    l.fits && l.cert.not_after > f.now
}

fn uses_any(f: &Facts) -> bool {
    let mut leaves = f.identities.iter().filter_map(|i| i.leaf.as_ref());
    leaves.any(|l| in_use(f, l))
}

/// Some workload's certificate is of this CA, or will be.
fn is_used(f: &Facts, ca: &str) -> bool {
    let AuthorityFacts { signing, next, .. } = &f.authority;
    let signs = [signing, next]
        .into_iter()
        .flatten()
        .any(|c| c.fingerprint == ca);
    let of = |l: &Option<LeafFacts>| l.as_ref().is_some_and(|l| l.issuer.as_deref() == Some(ca));
    let signs = signs && f.issuer == Issuer::Operator;
    let offers = f.issuer == Issuer::CertManager;
    signs
        || f.identities
            .iter()
            .any(|i| of(&i.leaf) || (offers && of(&i.offered)))
}

/// Every CA that is known, each once: in an order that does not depend on who asks.
fn known(f: &Facts) -> Vec<&CertFacts> {
    let a = &f.authority;
    let own = a.signing.iter().chain(&a.next).chain(&a.bundle);
    let bundles = f.identities.iter().flat_map(|i| &i.bundle);
    let offers = f.issuer == Issuer::CertManager;
    let offered = f
        .identities
        .iter()
        .filter(|_| offers)
        .flat_map(|i| &i.offered_cas);
    let mut all: Vec<&CertFacts> = Vec::new();
    for ca in own.chain(bundles).chain(offered) {
        if !all.iter().any(|c| c.fingerprint == ca.fingerprint) {
            all.push(ca);
        }
    }
    all
}

fn trusted(f: &Facts) -> Vec<Trust> {
    let holders = || f.identities.iter().filter(|i| i.leaf.is_some());
    let mut all = Vec::new();
    for ca in known(f) {
        let fingerprint = &ca.fingerprint;
        let before = f
            .authority
            .trusted
            .iter()
            .find(|t| t.fingerprint == *fingerprint);
        let everywhere = holders().all(|i| i.bundle.iter().any(|c| c.fingerprint == *fingerprint))
            && holders().next().is_some();
        let since = match before.and_then(|t| t.since) {
            Some(since) if everywhere => Some(since),
            None if everywhere => Some(f.now),
            // Somebody lost it: the time begins again.
            _ => None,
        };
        let unused_since = if is_used(f, fingerprint) {
            None
        } else {
            Some(before.and_then(|t| t.unused_since).unwrap_or(f.now))
        };
        if unused_since.is_some_and(|at| at.saturating_add(f.mount) <= f.now) {
            continue;
        }
        all.push(Trust {
            fingerprint: fingerprint.clone(),
            since,
            unused_since,
        });
    }
    all
}

/// A leaf of this CA may be put to use: everybody trusts it for long enough, or everybody's certificate is of it.
fn is_usable(f: &Facts, trusted: &[Trust], ca: &str) -> bool {
    let Some(t) = trusted.iter().find(|t| t.fingerprint == ca) else {
        return false;
    };
    let waited = t
        .since
        .is_some_and(|at| at.saturating_add(f.mount) <= f.now);
    waited || only(f, ca)
}

/// No certificate that is in use is of another CA.
fn only(f: &Facts, ca: &str) -> bool {
    let leaves = f.identities.iter().filter_map(|i| i.leaf.as_ref());
    leaves
        .filter(|l| in_use(f, l))
        .all(|l| l.issuer.as_deref() == Some(ca))
}

/// Who signs in this pass.
enum Signer<'a> {
    /// Nobody: cert-manager does, or the CA is on its way.
    None,
    /// A CA that is made in this pass.
    New { until: u64 },
    /// One that is there.
    Known(&'a CertFacts),
}

fn authority<'a>(f: &'a Facts, trusted: &[Trust], actions: &mut Vec<CertAction>) -> Signer<'a> {
    let a = &f.authority;
    let until = f.now.saturating_add(f.ca_validity);
    if let Some(next) = &a.next
        && is_usable(f, trusted, &next.fingerprint)
    {
        actions.push(CertAction::PromoteNext);
        return Signer::Known(next);
    }
    match &a.signing {
        Some(ca) => {
            if a.next.is_none() && ca.renew_at() <= f.now {
                actions.push(CertAction::PrepareNext { until });
            }
            Signer::Known(ca)
        }
        None if a.next.is_some() => Signer::None,
        None if uses_any(f) => {
            actions.push(CertAction::PrepareNext { until });
            Signer::None
        }
        None => {
            actions.push(CertAction::CreateAuthority { until });
            Signer::New { until }
        }
    }
}

enum Leaf {
    Good,
    Make(CertAction),
    Wait(String),
}

fn leaf(f: &Facts, trusted: &[Trust], signer: &Signer<'_>, i: &IdentityFacts) -> Leaf {
    match f.issuer {
        Issuer::Operator => issued(f, trusted, signer, i),
        Issuer::CertManager => copied(f, trusted, i),
    }
}

fn issued(f: &Facts, trusted: &[Trust], signer: &Signer<'_>, i: &IdentityFacts) -> Leaf {
    let good = i
        .leaf
        .as_ref()
        .filter(|l| in_use(f, l) && l.cert.renew_at() > f.now);
    let until = f.now.saturating_add(f.validity);
    let make = |ca_until: u64| {
        Leaf::Make(CertAction::Issue {
            workload: i.workload.clone(),
            until: until.min(ca_until),
        })
    };
    match signer {
        Signer::New { until } => make(*until),
        Signer::Known(ca) => {
            if good.is_some_and(|l| l.issuer.as_deref() == Some(&ca.fingerprint)) {
                return Leaf::Good;
            }
            if is_usable(f, trusted, &ca.fingerprint) {
                return make(ca.not_after);
            }
            Leaf::Wait("the CA is not trusted everywhere yet".to_owned())
        }
        Signer::None if good.is_some() => Leaf::Good,
        Signer::None => Leaf::Wait("there is no CA that could sign yet".to_owned()),
    }
}

fn copied(f: &Facts, trusted: &[Trust], i: &IdentityFacts) -> Leaf {
    let same = |l: &LeafFacts| {
        i.leaf
            .as_ref()
            .is_some_and(|own| own.cert.fingerprint == l.cert.fingerprint)
    };
    let secret = &i.workload.issued;
    match &i.offered {
        Some(l) if same(l) && in_use(f, l) => Leaf::Good,
        Some(l) if !l.fits => Leaf::Wait(format!(
            "the Secret {secret} has no certificate with the name {} and its key: the issuer must sign names of URIs",
            i.workload.uri
        )),
        Some(l) if l.cert.not_after <= f.now => {
            Leaf::Wait(format!("the certificate in the Secret {secret} is over"))
        }
        Some(l) => match &l.issuer {
            None => Leaf::Wait(format!(
                "ca.crt of the Secret {secret} is not the CA that signed its certificate: the issuer must be a CA of its own"
            )),
            Some(ca) if is_usable(f, trusted, ca) => Leaf::Make(CertAction::Copy {
                workload: i.workload.clone(),
            }),
            Some(_) => Leaf::Wait("its new CA is not trusted everywhere yet".to_owned()),
        },
        None => Leaf::Wait(format!(
            "cert-manager has not filled the Secret {secret} yet"
        )),
    }
}

/// The next moment at which time alone changes the decision.
fn look_again(f: &Facts, trusted: &[Trust]) -> u64 {
    let a = &f.authority;
    let leaves = f.identities.iter().filter_map(|i| i.leaf.as_ref());
    let renewals = leaves
        .map(|l| l.cert.renew_at())
        .chain(a.signing.as_ref().map(CertFacts::renew_at));
    let waits = trusted.iter().flat_map(|t| [t.since, t.unused_since]);
    let waits = waits.flatten().map(|at| at.saturating_add(f.mount));
    renewals
        .chain(waits)
        .filter(|at| *at > f.now)
        .min()
        .unwrap_or(f.now.saturating_add(f.mount))
}
