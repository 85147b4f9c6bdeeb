//! Makes keys and certificates. When, and for whom, is decided by the plan.
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use sealane_runtime::identity::WorkloadId;
use std::{fmt, time::Duration};

/// Clocks of the nodes may be behind ours by this much.
const BEHIND: Duration = Duration::from_secs(3600);

/// A certificate and its key, both in PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    /// PKCS #8.
    pub(crate) key: String,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pair(the key is not shown)")
    }
}

/// From an hour before `now` until `until`, both in seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Validity {
    pub(crate) now: u64,
    pub(crate) until: u64,
}

/// What cannot be issued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    /// The CA's Secret does not hold what it should.
    #[error("the CA's certificate or key cannot be read: {0}")]
    Authority(rcgen::Error),
    /// A name is no name, or there is no randomness.
    #[error("a certificate for {subject} cannot be made: {cause}")]
    Make {
        /// Whose.
        subject: String,
        /// As the library says it.
        cause: rcgen::Error,
    },
}

fn params(validity: Validity) -> CertificateParams {
    let at = |seconds: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    let mut p = CertificateParams::default();
    p.not_before = at(validity.now.saturating_sub(BEHIND.as_secs()));
    p.not_after = at(validity.until);
    p
}

/// A new CA of `cluster`.
pub(crate) fn authority(cluster: &str, validity: Validity) -> Result<Pair, IssueError> {
    let subject = format!("Sealane CA {cluster}");
    let make = || -> Result<Pair, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut p = params(validity);
        p.distinguished_name = rcgen::DistinguishedName::new();
        p.distinguished_name
            .push(DnType::CommonName, subject.as_str());
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = p.self_signed(&key)?.pem();
        Ok(Pair {
            certificate,
            key: key.serialize_pem(),
        })
    };
    make().map_err(|cause| IssueError::Make {
        subject: subject.clone(),
        cause,
    })
}

/// An identity of `workload`, signed by `ca`, for client and server; `dns` are further names.
pub(crate) fn workload(
    ca: &Pair,
    workload: &WorkloadId,
    dns: &[String],
    validity: Validity,
) -> Result<Pair, IssueError> {
    let ca_key = KeyPair::from_pem(&ca.key).map_err(IssueError::Authority)?;
    let issuer =
        Issuer::from_ca_cert_pem(&ca.certificate, ca_key).map_err(IssueError::Authority)?;
    let id = workload.to_string();
    let make = || -> Result<Pair, rcgen::Error> {
        let mut p = params(validity);
        p.distinguished_name = rcgen::DistinguishedName::new();
        p.distinguished_name
            .push(DnType::CommonName, workload.name.as_str());
        p.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        for name in dns {
            p.subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into()?));
        }
        p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        p.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        p.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = p.signed_by(&key, &issuer)?.pem();
        Ok(Pair {
            certificate,
            key: key.serialize_pem(),
        })
    };
    make().map_err(|cause| IssueError::Make {
        subject: id.clone(),
        cause,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::control_client::identity;
    use rustls::pki_types::ServerName;
    use sealane_runtime::identity::{CONTROL_SERVER_NAME, Identity, Role};

    fn seconds_now() -> u64 {
        u64::try_from(jiff::Timestamp::now().as_second()).unwrap()
    }

    fn days(n: u64) -> Validity {
        let now = seconds_now();
        Validity {
            now,
            until: now + n * 86_400,
        }
    }

    fn control(name: &str) -> WorkloadId {
        WorkloadId {
            cluster: "mail.prod".to_owned(),
            role: Role::Control,
            name: name.to_owned(),
        }
    }

    fn issue(ca: &Pair) -> Pair {
        let dns = [CONTROL_SERVER_NAME.to_owned()];
        workload(ca, &control("mail-control-0"), &dns, days(30)).unwrap()
    }

    #[test]
    fn an_identity_is_one_for_the_runtime() {
        let ca = authority("mail.prod", days(3650)).unwrap();
        let pair = issue(&ca);
        let id = identity(
            pair.certificate.as_bytes(),
            pair.key.as_bytes(),
            ca.certificate.as_bytes(),
        )
        .unwrap();
        assert_eq!(*id.workload(), control("mail-control-0"));
    }

    /// Whether two workloads that trust these CAs finish a TLS handshake.
    fn speak(client: &Identity, server: &Identity) -> Result<(), rustls::Error> {
        let name = ServerName::try_from(CONTROL_SERVER_NAME).unwrap();
        let mut client = rustls::ClientConnection::new(client.client_config(), name)?;
        let mut server = rustls::ServerConnection::new(server.server_config())?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets()?;
            }
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets()?;
            }
        }
        Ok(())
    }

    fn load(pair: &Pair, trust: &[&Pair]) -> Identity {
        let bundle: String = trust.iter().map(|p| p.certificate.as_str()).collect();
        identity(
            pair.certificate.as_bytes(),
            pair.key.as_bytes(),
            bundle.as_bytes(),
        )
        .unwrap()
    }

    #[test]
    fn workloads_of_one_ca_speak_and_those_of_two_with_the_same_name_do_not() {
        let [old, new] = [(); 2].map(|()| authority("mail.prod", days(3650)).unwrap());
        let [a, b] = [issue(&old), issue(&new)];
        speak(&load(&a, &[&old]), &load(&a, &[&old])).unwrap();
        assert!(speak(&load(&a, &[&old]), &load(&b, &[&new])).is_err());
        // The overlap of a rotation: both are trusted, whoever issued.
        let both = [&new, &old];
        speak(&load(&a, &both), &load(&b, &both)).unwrap();
        speak(&load(&b, &both), &load(&a, &both)).unwrap();
    }

    #[test]
    fn a_certificate_is_valid_as_long_as_was_asked_for() {
        let ca = authority("mail.prod", days(3650)).unwrap();
        let now = seconds_now();
        let (_, pem) = x509_parser::pem::parse_x509_pem(issue(&ca).certificate.as_bytes()).unwrap();
        let leaf = pem.parse_x509().unwrap();
        let until = u64::try_from(leaf.validity().not_after.timestamp()).unwrap();
        let from = u64::try_from(leaf.validity().not_before.timestamp()).unwrap();
        assert!((now + 30 * 86_400).abs_diff(until) < 60);
        assert!((now - 3600).abs_diff(from) < 60);
        assert!(!leaf.is_ca());
    }

    #[test]
    fn what_is_no_ca_signs_nothing() {
        let ca = authority("mail.prod", days(3650)).unwrap();
        let broken = Pair {
            certificate: "no PEM".to_owned(),
            ..ca.clone()
        };
        let e = workload(&broken, &control("a"), &[], days(30)).unwrap_err();
        assert!(matches!(e, IssueError::Authority(_)), "{e}");
        assert!(!format!("{ca:?}").contains("PRIVATE"));
    }
}
