//! PEM files, read once and judged by what was read.
use anyhow::Context;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Octets of a file that holds certificates or a key: far more than any has.
const MOST: u64 = 1 << 20;

/// A file as it was at one moment.
pub struct PemFile {
    path: PathBuf,
    octets: Vec<u8>,
}

/// It may hold a key.
impl fmt::Debug for PemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PemFile({})", self.path.display())
    }
}

impl PemFile {
    /// Reads at most 1 MiB; symbolic links are followed anew.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let name = || path.display().to_string();
        let file = File::open(path).with_context(name)?;
        let mut octets = Vec::new();
        file.take(MOST + 1)
            .read_to_end(&mut octets)
            .with_context(name)?;
        anyhow::ensure!(octets.len() as u64 <= MOST, "{}: above 1 MiB", name());
        Ok(Self {
            path: path.to_owned(),
            octets,
        })
    }

    /// What was read.
    pub fn octets(&self) -> &[u8] {
        &self.octets
    }

    /// Its certificates, at least one.
    pub fn certificates(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let path = self.path.display();
        let certs = CertificateDer::pem_slice_iter(&self.octets)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| anyhow::anyhow!("{path}: {e}"))?;
        anyhow::ensure!(!certs.is_empty(), "{path}: no certificate");
        Ok(certs)
    }

    /// Its private key.
    pub fn private_key(&self) -> anyhow::Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(&self.octets)
            .map_err(|e| anyhow::anyhow!("{}: {e}", self.path.display()))
    }
}

/// From when to when a certificate is valid, seconds since the epoch.
pub fn validity(certificate: &CertificateDer<'_>) -> anyhow::Result<(i64, i64)> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| anyhow::anyhow!("certificate: {e}"))?;
    let validity = parsed.validity();
    Ok((
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    ))
}
