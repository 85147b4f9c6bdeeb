//! Certificates that change while a process runs.
//!
//! ```text
//!  files ── read every few seconds ──► judged whole ──► for every handshake from now on
//!                                          └ refused ──► the old ones stay; said once, counted
//! ```
//!
//! What was read is compared by its contents: Kubernetes swaps a symbolic link on the way to the files, so paths are
//! followed anew and no time of a file tells anything. Connections that are open go on with what they began with.
use crate::{blocking, pem::PemFile};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use sha2::{Digest, Sha256};
use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

/// Between two looks at the files.
pub const EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabel {
    certificate: &'static str,
}

/// What a process says of its certificates. Cheap to clone; all clones are the same figures.
#[derive(Debug, Clone, Default)]
pub struct CertificateFigures {
    not_after: Family<CertificateLabel, Gauge>,
    reloads: Family<CertificateLabel, Counter>,
    failures: Family<CertificateLabel, Counter>,
}

impl CertificateFigures {
    /// Shows them; once per process.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("sealane");
        r.register(
            "certificate_not_after_seconds",
            "When the certificate in use ends, seconds since the epoch; of a CA bundle the first to end",
            self.not_after.clone(),
        );
        r.register(
            "certificate_reloads",
            "Times that changed certificate files were taken into use",
            self.reloads.clone(),
        );
        r.register(
            "certificate_reload_failures",
            "Looks at certificate files that could not be used: the old ones stay in use",
            self.failures.clone(),
        );
    }

    /// When the certificate of this name ends, seconds since the epoch; 0: there is none.
    pub fn not_after(&self, certificate: &'static str) -> i64 {
        self.not_after
            .get_or_create(&CertificateLabel { certificate })
            .get()
    }

    /// How often files of this name were taken into use, and how often they could not be.
    pub fn looks(&self, certificate: &'static str) -> (u64, u64) {
        let label = CertificateLabel { certificate };
        (
            self.reloads.get_or_create(&label).get(),
            self.failures.get_or_create(&label).get(),
        )
    }

    fn show(&self, ends: Vec<(&'static str, i64)>) {
        for (certificate, end) in ends {
            self.not_after
                .get_or_create(&CertificateLabel { certificate })
                .set(end);
        }
    }
}

/// What is made of certificate files.
pub trait Certified: Send + Sync + 'static {
    /// The certificates in it, by names of a closed set, and when each ends, seconds since the epoch.
    fn ends(&self) -> Vec<(&'static str, i64)>;
}

/// Judges files as a whole, beside what is in use: none at the start.
type Judge<T> = Box<dyn Fn(&[PemFile], Option<&T>) -> anyhow::Result<T> + Send + Sync>;

/// What a look at the files found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// What is in use.
    Same,
    /// Something new, which is in use now.
    Renewed,
    /// Something that cannot be used.
    Refused,
}

#[derive(Debug)]
struct Seen {
    /// Of what is in use.
    digest: [u8; 32],
    /// What was complained about last.
    refused: Option<Refused>,
}

#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Contents([u8; 32]),
    Unreadable(String),
}

/// What certificate files say now.
pub struct Live<T> {
    name: &'static str,
    files: Vec<PathBuf>,
    judge: Judge<T>,
    current: RwLock<Arc<T>>,
    seen: Mutex<Seen>,
    figures: CertificateFigures,
}

impl<T> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Live({} of {:?})", self.name, self.files)
    }
}

impl<T: Certified> Live<T> {
    /// Reads the files; `judge` gets them in their order, and what is in use if that is to be replaced.
    pub fn load(
        name: &'static str,
        files: Vec<PathBuf>,
        figures: CertificateFigures,
        judge: impl Fn(&[PemFile], Option<&T>) -> anyhow::Result<T> + Send + Sync + 'static,
    ) -> anyhow::Result<Arc<Self>> {
        let (read, digest) = read(&files)?;
        let first = judge(&read, None)?;
        figures.show(first.ends());
        // Both counters are there from the start.
        let _none_yet = figures.looks(name);
        Ok(Arc::new(Self {
            name,
            files,
            judge: Box::new(judge),
            current: RwLock::new(Arc::new(first)),
            seen: Mutex::new(Seen {
                digest,
                refused: None,
            }),
            figures,
        }))
    }

    /// What is in use: ask anew for every handshake.
    pub fn current(&self) -> Arc<T> {
        let current = self.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where its figures are shown.
    pub fn figures(&self) -> &CertificateFigures {
        &self.figures
    }

    /// Reads the files and takes them into use if they changed and are good. Blocks.
    pub fn look(&self) -> Look {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (files, digest) = match read(&self.files) {
            Ok(read) => read,
            Err(e) => {
                let why = format!("{e:#}");
                return self.refuse(&mut seen, Refused::Unreadable(why.clone()), &why);
            }
        };
        if digest == seen.digest {
            seen.refused = None;
            return Look::Same;
        }
        // What was refused before is judged again: it may be of a time that has come.
        let next = match (self.judge)(&files, Some(&*self.current())) {
            Ok(next) => next,
            Err(e) => {
                return self.refuse(&mut seen, Refused::Contents(digest), &format!("{e:#}"));
            }
        };
        let ends = next.ends();
        tracing::info!(
            certificate = self.name,
            not_after = ?ends,
            "certificate files changed: every handshake from now on is with the new ones"
        );
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        *seen = Seen {
            digest,
            refused: None,
        };
        self.figures.show(ends);
        let label = CertificateLabel {
            certificate: self.name,
        };
        self.figures.reloads.get_or_create(&label).inc();
        Look::Renewed
    }

    fn refuse(&self, seen: &mut Seen, refused: Refused, why: &str) -> Look {
        let label = CertificateLabel {
            certificate: self.name,
        };
        self.figures.failures.get_or_create(&label).inc();
        if seen.refused.as_ref() != Some(&refused) {
            tracing::error!(
                certificate = self.name,
                files = ?self.files,
                error = why,
                "certificate files changed and cannot be used: the old ones stay in use. Mend the files; \
                 they are looked at every few seconds"
            );
            seen.refused = Some(refused);
        }
        Look::Refused
    }

    /// Looks at the files for ever.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn keep(self: Arc<Self>) {
        self.keep_looking(EVERY).await;
    }

    async fn keep_looking(self: Arc<Self>, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            let live = self.clone();
            if let Err(e) = blocking::run(move || live.look()).await {
                tracing::error!(certificate = self.name, error = %e, "certificate files were not looked at");
            }
        }
    }
}

fn read(files: &[PathBuf]) -> anyhow::Result<(Vec<PemFile>, [u8; 32])> {
    let mut digest = Sha256::new();
    let mut all = Vec::with_capacity(files.len());
    for path in files {
        let file = PemFile::read(path)?;
        digest.update((file.octets().len() as u64).to_le_bytes());
        digest.update(file.octets());
        all.push(file);
    }
    Ok((all, digest.finalize().into()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink, path::Path};

    /// A number in a file is a certificate that ends then.
    #[derive(Debug)]
    struct Ends(i64);
    impl Certified for Ends {
        fn ends(&self) -> Vec<(&'static str, i64)> {
            vec![("public", self.0)]
        }
    }

    fn live(file: &Path) -> Arc<Live<Ends>> {
        let judge = |files: &[PemFile], old: Option<&Ends>| {
            let text = std::str::from_utf8(files[0].octets())?;
            let end: i64 = text.trim().parse()?;
            anyhow::ensure!(old.is_none_or(|o| o.0 <= end), "older");
            Ok(Ends(end))
        };
        let files = vec![file.to_owned()];
        Live::load("public", files, CertificateFigures::default(), judge).unwrap()
    }

    #[test]
    fn a_link_that_is_swapped_is_a_change_and_the_same_contents_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, end) in [("..1", "5"), ("..2", "5"), ("..3", "8")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("tls.crt"), end).unwrap();
        }
        let swap = |to: &str| {
            symlink(to, at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
        };
        swap("..1");
        symlink("..data/tls.crt", at("tls.crt")).unwrap();
        let live = live(&at("tls.crt"));
        assert_eq!(live.figures().not_after("public"), 5);
        swap("..2");
        assert_eq!(live.look(), Look::Same);
        swap("..3");
        assert_eq!(live.look(), Look::Renewed);
        assert_eq!(live.look(), Look::Same);
        assert_eq!(
            (live.current().0, live.figures().not_after("public")),
            (8, 8)
        );
        assert_eq!(live.figures().looks("public"), (1, 0));
    }

    #[test]
    fn what_is_bad_or_gone_leaves_the_old_in_use_until_it_is_mended() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tls.crt");
        fs::write(&file, "5").unwrap();
        let live = live(&file);
        let held = live.current();
        for bad in ["", "half", "4"] {
            fs::write(&file, bad).unwrap();
            assert_eq!(live.look(), Look::Refused, "{bad:?}");
            assert_eq!(live.current().0, 5);
        }
        fs::remove_file(&file).unwrap();
        assert_eq!(live.look(), Look::Refused);
        assert_eq!(live.figures().looks("public"), (0, 4));
        fs::write(&file, "5").unwrap();
        assert_eq!(live.look(), Look::Same);
        fs::write(&file, "6").unwrap();
        assert_eq!(live.look(), Look::Renewed);
        assert_eq!((live.current().0, held.0), (6, 5), "who holds it goes on");
    }

    #[tokio::test]
    async fn files_are_looked_at_again_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tls.crt");
        fs::write(&file, "5").unwrap();
        let live = live(&file);
        let keeping = tokio::spawn(live.clone().keep_looking(Duration::from_millis(5)));
        for end in [6, 7] {
            fs::write(&file, end.to_string()).unwrap();
            let renewed = async {
                while live.current().0 != end {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let in_time = tokio::time::timeout(Duration::from_secs(20), renewed);
            in_time.await.unwrap();
        }
        keeping.abort();
    }
}
