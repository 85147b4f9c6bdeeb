//! From PEM texts in Secrets to what the plan wants to know of them. Pure.
use data_encoding::HEXLOWER;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    sign::CertifiedKey,
};
use sealane_plan::certs::{CertFacts, LeafFacts, PublicFacts, Workload};
use sealane_runtime::identity;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A certificate that was read.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    der: CertificateDer<'static>,
    /// What the plan wants to know.
    pub(crate) facts: CertFacts,
}

impl Certificate {
    fn new(der: CertificateDer<'static>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(&der).ok()?;
        let seconds = |t: x509_parser::time::ASN1Time| u64::try_from(t.timestamp()).unwrap_or(0);
        let facts = CertFacts {
            fingerprint: HEXLOWER.encode(&Sha256::digest(&der)),
            not_before: seconds(parsed.validity().not_before),
            not_after: seconds(parsed.validity().not_after),
        };
        Some(Self { der, facts })
    }

    /// Whether the key of `ca` signed it.
    fn is_signed_by(&self, ca: &Self) -> bool {
        let own = X509Certificate::from_der(&self.der);
        let ca = X509Certificate::from_der(&ca.der);
        let (Ok((_, own)), Ok((_, ca))) = (own, ca) else {
            return false;
        };
        ca.is_ca() && own.verify_signature(Some(ca.public_key())).is_ok()
    }

    /// As text.
    pub(crate) fn pem(&self) -> String {
        let body = data_encoding::BASE64.encode(&self.der);
        let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
        for line in body.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
        text
    }
}

/// All certificates of a PEM text that can be read.
pub(crate) fn certificates(pem: &[u8]) -> Vec<Certificate> {
    CertificateDer::pem_slice_iter(pem)
        .map_while(Result::ok)
        .filter_map(Certificate::new)
        .collect()
}

/// Whether `key` is the key of the first certificate of `pem`.
fn is_pair(pem: &[u8], key: &[u8]) -> Result<(), String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("the certificate is no PEM: {e}"))?;
    if chain.is_empty() {
        return Err("there is no certificate".to_owned());
    }
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|_| "the key is no key in PEM".to_owned())?;
    CertifiedKey::from_der(chain, key, &identity::provider())
        .map(drop)
        .map_err(|e| format!("the key is not the certificate's: {e}"))
}

/// A CA's certificate, if `key` is its key.
pub(crate) fn authority(certificate: &[u8], key: &[u8]) -> Option<Certificate> {
    is_pair(certificate, key).ok()?;
    certificates(certificate).into_iter().next()
}

/// What a Secret has for a workload; `None`: nothing that can be read. `cas` are all that are known.
pub(crate) fn leaf(
    workload: &Workload,
    certificate: &[u8],
    key: &[u8],
    cas: &[Certificate],
) -> Option<LeafFacts> {
    let leaf = certificates(certificate).into_iter().next()?;
    let issuer = cas.iter().find(|ca| leaf.is_signed_by(ca));
    Some(LeafFacts {
        issuer: issuer.map(|ca| ca.facts.fingerprint.clone()),
        fits: names(&leaf, workload) && is_pair(certificate, key).is_ok(),
        cert: leaf.facts,
    })
}

/// Whether it names the workload and has its DNS names.
fn names(leaf: &Certificate, workload: &Workload) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(&leaf.der) else {
        return false;
    };
    let Ok(Some(san)) = parsed.subject_alternative_name() else {
        return false;
    };
    let all = &san.value.general_names;
    let mut uris = all.iter().filter_map(|n| match n {
        GeneralName::URI(u) => Some(*u),
        _ => None,
    });
    // Peers go by the first one.
    let named = uris.next() == Some(workload.uri.as_str());
    let has = |dns: &String| {
        all.iter()
            .any(|n| matches!(n, GeneralName::DNSName(d) if d == dns))
    };
    named && workload.dns.iter().all(has)
}

/// The certificate that SMTP clients see.
pub(crate) fn public(
    certificate: Option<&[u8]>,
    key: Option<&[u8]>,
    hostname: &str,
) -> PublicFacts {
    let (Some(pem), Some(key)) = (certificate, key) else {
        return PublicFacts::Unusable("it needs the keys tls.crt and tls.key".to_owned());
    };
    if let Err(why) = is_pair(pem, key) {
        return PublicFacts::Unusable(why);
    }
    match certificates(pem).into_iter().next() {
        None => PublicFacts::Unusable("the certificate cannot be read".to_owned()),
        Some(c) => PublicFacts::Present {
            names_host: is_valid_for(&c, hostname),
            cert: c.facts,
        },
    }
}

fn is_valid_for(certificate: &Certificate, hostname: &str) -> bool {
    let parsed = rustls::server::ParsedCertificate::try_from(&certificate.der);
    let name = ServerName::try_from(hostname);
    match (parsed, name) {
        (Ok(c), Ok(n)) => rustls::client::verify_server_name(&c, &n).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::certificates::issue::{self, Pair, Validity};
    use sealane_plan::{Names, certs::workloads};
    use sealane_runtime::identity::WorkloadId;

    fn validity() -> Validity {
        Validity {
            now: 1_800_000_000,
            until: 1_802_592_000,
        }
    }

    fn ca() -> Pair {
        issue::authority("mail.ns", validity()).unwrap()
    }

    fn issue_for(ca: &Pair, w: &Workload) -> Pair {
        let id: WorkloadId = w.uri.parse().unwrap();
        issue::workload(ca, &id, &w.dns, validity()).unwrap()
    }

    fn read(w: &Workload, pair: &Pair, key: &Pair, cas: &[&Pair]) -> LeafFacts {
        let cas: Vec<Certificate> = cas
            .iter()
            .flat_map(|p| certificates(p.certificate.as_bytes()))
            .collect();
        leaf(w, pair.certificate.as_bytes(), key.key.as_bytes(), &cas).unwrap()
    }

    #[test]
    fn what_was_issued_fits_its_workload_and_no_other() {
        let all = workloads(&Names::new("ns", "mail"), 2);
        let (ca, other) = (ca(), ca());
        for w in &all {
            let pair = issue_for(&ca, w);
            let facts = read(w, &pair, &pair, &[&other, &ca]);
            let signer = certificates(ca.certificate.as_bytes()).remove(0);
            assert!(facts.fits, "{}", w.uri);
            assert_eq!(facts.issuer, Some(signer.facts.fingerprint));
            assert_eq!(facts.cert.not_after, 1_802_592_000);
            assert_eq!(facts.cert.not_before, 1_800_000_000 - 3600);
            for v in all.iter().filter(|v| v.uri != w.uri) {
                assert!(!read(v, &pair, &pair, &[]).fits, "{} for {}", w.uri, v.uri);
            }
        }
    }

    #[test]
    fn a_certificate_beside_another_key_or_of_another_ca_is_noticed() {
        let w = &workloads(&Names::new("ns", "mail"), 1)[0];
        let (ca, other) = (ca(), ca());
        let (a, b) = (issue_for(&ca, w), issue_for(&ca, w));
        assert!(!read(w, &a, &b, &[&ca]).fits);
        assert_eq!(read(w, &a, &a, &[&other]).issuer, None);
        assert!(leaf(w, b"", a.key.as_bytes(), &[]).is_none());
        assert!(authority(ca.certificate.as_bytes(), other.key.as_bytes()).is_none());
        assert!(authority(ca.certificate.as_bytes(), ca.key.as_bytes()).is_some());
    }

    #[test]
    fn the_public_certificate_must_be_for_the_host() {
        let made = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            rcgen::generate_simple_self_signed(names).unwrap()
        };
        let key = made(&["*.example.org"]);
        let (pem, secret) = (key.cert.pem(), key.signing_key.serialize_pem());
        let is_for = |host: &str| match public(Some(pem.as_bytes()), Some(secret.as_bytes()), host)
        {
            PublicFacts::Present { names_host, .. } => names_host,
            other => panic!("{other:?}"),
        };
        assert!(is_for("mx.example.org"));
        assert!(!is_for("example.org"));
        let other = made(&["mx.example.org"]).signing_key.serialize_pem();
        for (c, k) in [
            (Some(pem.as_bytes()), None),
            (Some(pem.as_bytes()), Some(other.as_bytes())),
            (Some(&b"x"[..]), Some(secret.as_bytes())),
        ] {
            assert!(matches!(
                public(c, k, "mx.example.org"),
                PublicFacts::Unusable(_)
            ));
        }
    }

    #[test]
    fn a_certificate_is_written_as_it_was_read() {
        let ca = ca();
        let read = certificates(ca.certificate.as_bytes());
        let again = certificates(read[0].pem().as_bytes());
        assert_eq!(read[0].facts, again[0].facts);
        assert_eq!(read[0].der, again[0].der);
    }
}
