//! From policy and resolution to the input of the TLS decision.
use crate::tls::{CertificateRequirement, RequirementError};
use sealane_tls_policy::{HopFacts, HostSecurity, MxSecurity, PinnedRoute, PolicyLevel, StsPolicy};
use sealane_wire::v1::{TlsRequirement, tls_requirement::Level};

/// The facts of a hop. This version validates no DNSSEC and fetches no MTA-STS policy: every answer
/// of DNS is insecure, and nothing is published. Levels that need more end in D17.
pub(crate) fn hop_facts(tls: &TlsRequirement) -> HopFacts {
    let (route, policy) = match Level::try_from(tls.level) {
        Ok(Level::Secure) => (Some(PinnedRoute::Secure), PolicyLevel::Encrypt),
        Ok(Level::Fingerprint) => (Some(PinnedRoute::Fingerprint), PolicyLevel::Encrypt),
        Ok(Level::Unspecified | Level::Encrypt) => (None, PolicyLevel::Encrypt),
        Ok(Level::DaneOnly) => (None, PolicyLevel::DaneOnly),
        // A peer route needs a client certificate, which this version does not present; like a
        // level it does not know, it is out of reach.
        Ok(Level::Verified | Level::Peer) | Err(_) => (None, PolicyLevel::Verified),
    };
    HopFacts {
        route,
        mx: MxSecurity::Insecure,
        host: HostSecurity::Insecure,
        sts: StsPolicy::None,
        policy,
        require_tls: false,
        tls_required_no: false,
    }
}

/// What is checked of a certificate; `host` is the name expected where the policy names none.
pub(crate) fn certificate_requirement(
    tls: &TlsRequirement,
    host: &str,
) -> Result<CertificateRequirement, RequirementError> {
    match Level::try_from(tls.level) {
        Ok(Level::Secure) => CertificateRequirement::secure(&tls.names, &tls.roots_pem, host),
        Ok(Level::Fingerprint) => CertificateRequirement::fingerprint(&tls.pins),
        _ => Ok(CertificateRequirement::Any),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealane_tls_policy::{Row, decide};

    #[test]
    fn levels_of_the_policy_lead_to_their_rows() {
        for (level, row) in [
            (Level::Unspecified, Row::D15),
            (Level::Encrypt, Row::D15),
            (Level::Secure, Row::D19),
            (Level::Fingerprint, Row::D19),
            (Level::Verified, Row::D17),
            (Level::DaneOnly, Row::D17),
            (Level::Peer, Row::D17),
        ] {
            let tls = TlsRequirement {
                level: level.into(),
                ..TlsRequirement::default()
            };
            assert_eq!(decide(hop_facts(&tls)).row, row, "{level:?}");
        }
        assert_eq!(
            decide(hop_facts(&TlsRequirement {
                level: 99,
                ..TlsRequirement::default()
            }))
            .row,
            Row::D17
        );
    }
}
