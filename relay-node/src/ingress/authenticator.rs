//! Password verification: dear by design, so bounded, and remembered for a while.
use rand::Rng;
use sealane_policy::{PolicySnapshot, hash_password, verify_password};
use sealane_smtp::server::{AuthOutcome, Secret};
use sha2::{Digest, Sha256};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::Semaphore, time::timeout};

/// Wait for a place among them; then 454.
const PATIENCE: Duration = Duration::from_secs(20);
/// Credentials remembered.
const REMEMBERED: usize = 4096;

/// Verifies submitters.
#[derive(Debug)]
pub(super) struct Authenticator {
    places: Arc<Semaphore>,
    /// Verified against when the name is unknown, so that time does not tell.
    dummy: Arc<str>,
    verified: Mutex<Verified>,
    key: [u8; 32],
}

/// Fingerprints of credentials that were right under one policy revision.
#[derive(Debug, Default)]
struct Verified {
    revision: u64,
    fingerprints: HashSet<[u8; 32]>,
}

impl Authenticator {
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut rng = rand::rng();
        let (mut salt, mut key, mut password) = ([0; 16], [0; 32], [0u8; 16]);
        rng.fill(&mut salt);
        rng.fill(&mut key);
        rng.fill(&mut password);
        let password = data_encoding::HEXLOWER.encode(&password);
        let dummy = hash_password(&password, &salt).map_err(|e| anyhow::anyhow!("argon2: {e}"))?;
        Ok(Self {
            // Each takes some 50 ms of CPU and 19 MiB; half of the processors stay with the mail.
            places: Arc::new(Semaphore::new(
                std::thread::available_parallelism().map_or(1, |n| (n.get() / 2).max(1)),
            )),
            dummy: dummy.into(),
            verified: Mutex::default(),
            key,
        })
    }

    /// # Cancel safety
    /// Cancel safe; a verification that began is finished for nothing.
    pub(super) async fn verify(
        &self,
        policy: Option<Arc<PolicySnapshot>>,
        name: String,
        password: Secret,
    ) -> AuthOutcome {
        let Some(policy) = policy else {
            return AuthOutcome::Unavailable;
        };
        let verifier = policy.verifier(&name);
        let known = verifier.is_some();
        let verifier: Arc<str> = verifier.map_or_else(|| self.dummy.clone(), Arc::from);
        let fingerprint = self.fingerprint(&verifier, &name, &password);
        if known && self.remembers(policy.revision(), &fingerprint) {
            return AuthOutcome::Accepted(name);
        }
        let Ok(Ok(place)) = timeout(PATIENCE, self.places.clone().acquire_owned()).await else {
            return AuthOutcome::Unavailable;
        };
        let right = tokio::task::spawn_blocking(move || {
            let right = verify_password(&verifier, &password.0);
            drop(place);
            right
        })
        .await;
        match right {
            Ok(true) if known => {
                self.remember(policy.revision(), fingerprint);
                AuthOutcome::Accepted(name)
            }
            Ok(_) => AuthOutcome::Rejected,
            Err(e) => {
                tracing::error!(error = %e, "password verification failed to run");
                AuthOutcome::Unavailable
            }
        }
    }

    /// Keyed with a secret of this process; the verifier is in it, so that a changed password never matches.
    fn fingerprint(&self, verifier: &str, name: &str, password: &Secret) -> [u8; 32] {
        let mut h = Sha256::new();
        h.update(self.key);
        for part in [verifier.as_bytes(), name.as_bytes(), &password.0] {
            h.update((part.len() as u64).to_be_bytes());
            h.update(part);
        }
        let inner = h.finalize();
        Sha256::new()
            .chain_update(self.key)
            .chain_update(inner)
            .finalize()
            .into()
    }

    fn remembers(&self, revision: u64, fingerprint: &[u8; 32]) -> bool {
        let v = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        v.revision == revision && v.fingerprints.contains(fingerprint)
    }

    fn remember(&self, revision: u64, fingerprint: [u8; 32]) {
        let mut v = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if v.revision != revision || v.fingerprints.len() >= REMEMBERED {
            v.fingerprints.clear();
            v.revision = revision;
        }
        v.fingerprints.insert(fingerprint);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use sealane_wire::v1::{self, document::Kind};

    fn policy(revision: u64, password: &str) -> Arc<PolicySnapshot> {
        let submitter = v1::SubmitterDocument {
            name: "alice".into(),
            password_verifier: hash_password(password, &[3; 16]).unwrap(),
            senders: vec!["*".into()],
        };
        let documents = vec![v1::Document {
            kind: Some(Kind::Submitter(submitter)),
        }];
        Arc::new(
            PolicySnapshot::from_wire(&v1::PolicySet {
                revision,
                documents,
            })
            .unwrap(),
        )
    }

    #[tokio::test]
    async fn a_changed_password_is_not_remembered() {
        let a = Authenticator::new().unwrap();
        let secret = |s: &str| Secret(s.as_bytes().to_vec());
        let accepted = AuthOutcome::Accepted("alice".into());
        assert_eq!(
            a.verify(None, "alice".into(), secret("one")).await,
            AuthOutcome::Unavailable
        );
        let first = policy(1, "one");
        for _ in 0..3 {
            assert_eq!(
                a.verify(Some(first.clone()), "alice".into(), secret("one"))
                    .await,
                accepted
            );
        }
        assert_eq!(
            a.verify(Some(first.clone()), "alice".into(), secret("two"))
                .await,
            AuthOutcome::Rejected
        );
        assert_eq!(
            a.verify(Some(first), "bob".into(), secret("one")).await,
            AuthOutcome::Rejected
        );
        let second = policy(2, "two");
        assert_eq!(
            a.verify(Some(second.clone()), "alice".into(), secret("one"))
                .await,
            AuthOutcome::Rejected
        );
        assert_eq!(
            a.verify(Some(second), "alice".into(), secret("two")).await,
            accepted
        );
    }
}
