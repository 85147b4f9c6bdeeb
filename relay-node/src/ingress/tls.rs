//! TLS as SMTP clients see it.
use crate::config::PublicCertificate;
use anyhow::Context;
use jiff::Timestamp;
use rustls::{ServerConfig, version};
use sealane_runtime::{
    identity,
    pem::{self, PemFile},
    reload::{CertificateFigures, Certified, Live},
    world,
};
use std::sync::Arc;

/// The name of the files in figures and in the log.
const PUBLIC: &str = "public";

/// What SMTP clients are shown.
#[derive(Debug)]
pub struct PublicTls {
    pub(super) config: Arc<ServerConfig>,
    /// Seconds since the epoch.
    ends: i64,
}

impl Certified for PublicTls {
    fn ends(&self) -> Vec<(&'static str, i64)> {
        vec![(PUBLIC, self.ends)]
    }
}

/// Reads the files; what changes in them is looked at by whoever keeps the result.
pub fn public_tls(
    files: &PublicCertificate,
    figures: CertificateFigures,
) -> anyhow::Result<Arc<Live<PublicTls>>> {
    let paths = vec![files.certificate.clone(), files.key.clone()];
    Live::load(PUBLIC, paths, figures, judge)
}

/// TLS 1.2 and 1.3, no client certificate, no 0-RTT. A client that offers ALPN must offer one of ours
/// (cross-protocol attacks); most offer none. What takes the place of `old` has to be valid now.
fn judge(files: &[PemFile], old: Option<&PublicTls>) -> anyhow::Result<PublicTls> {
    let [certificate, key] = files else {
        anyhow::bail!("a public certificate is of two files");
    };
    let chain = certificate.certificates()?;
    let end_entity = chain.first().context("the chain is empty")?;
    let (from, ends) = pem::validity(end_entity)?;
    if old.is_some() {
        let now = i64::try_from(world::now_ms() / 1000).unwrap_or(i64::MAX);
        anyhow::ensure!(
            (from..=ends).contains(&now),
            "the certificate is valid from {} to {} only",
            day(from),
            day(ends)
        );
    }
    let mut config = ServerConfig::builder_with_provider(identity::provider())
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
        .with_no_client_auth()
        .with_single_cert(chain, key.private_key()?)?;
    config.alpn_protocols = vec![b"smtp".to_vec(), b"esmtp".to_vec()];
    // A new one with every certificate: no session outlives the certificate that it began with.
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    Ok(PublicTls {
        config: Arc::new(config),
        ends,
    })
}

fn day(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use sealane_runtime::reload::Look;
    use std::fs;

    fn issued(until: i32) -> (String, String) {
        let mut params = CertificateParams::new(vec!["relay.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn a_renewed_certificate_is_shown_and_a_bad_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let files = PublicCertificate {
            certificate: folder.path().join("tls.crt"),
            key: folder.path().join("tls.key"),
        };
        let write = |(certificate, key): &(String, String)| {
            fs::write(&files.certificate, certificate).unwrap();
            fs::write(&files.key, key).unwrap();
        };
        let (first, second) = (issued(2080), issued(2081));
        write(&first);
        let live = public_tls(&files, CertificateFigures::default()).unwrap();
        let before = live.current();
        for (what, bad) in [
            ("a key of another one", (second.0.clone(), first.1.clone())),
            ("over", issued(2001)),
            (
                "half",
                (second.0[..second.0.len() / 2].to_owned(), second.1.clone()),
            ),
            ("nothing", (String::new(), String::new())),
        ] {
            write(&bad);
            assert_eq!(live.look(), Look::Refused, "{what}");
        }
        assert!(Arc::ptr_eq(&before, &live.current()));
        write(&second);
        assert_eq!(live.look(), Look::Renewed);
        assert!(!Arc::ptr_eq(&before, &live.current()));
        assert!(live.figures().not_after(PUBLIC) > before.ends);
        assert_eq!(live.figures().looks(PUBLIC), (1, 4));
    }
}
