//! Certificates of the workloads, in Secrets. What is to be made is decided by sealane-plan; here it is made and written.
//!
//! A Secret is written whole, and only over the version that was read: a process that lost the Lease without knowing it yet
//! cannot put an old CA over a new one. Private keys are in Secrets and in memory; the operator's own passes through a file
//! when it is read (`control_client`). They are never logged.
mod draft;
mod issue;
mod read;

pub(crate) use issue::IssueError;

use crate::{context::Context, failure::Failure};
use draft::Draft;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, api::PostParams};
use read::Certificate;
use sealane_crd::{Issuer, RelayCluster};
use sealane_plan::{
    Names, ValidCluster,
    certs::{
        self, AuthorityFacts, CertFacts, CertPlan, Facts, IdentityFacts, PublicFacts, Trust,
        Workload, workloads,
    },
};
use std::collections::BTreeMap;

/// Keys of Secrets of type kubernetes.io/tls, and of ours where there is one certificate.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// Trusted CAs.
const BUNDLE: &str = "ca.crt";

/// The Secrets of a cluster as they were read, by name; those that do not exist are absent.
#[derive(Default)]
pub(crate) struct Secrets(BTreeMap<String, Secret>);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Secrets {
    fn value(&self, secret: &str, key: &str) -> Option<&[u8]> {
        let data = self.0.get(secret)?.data.as_ref()?;
        data.get(key).map(|v| v.0.as_slice())
    }

    /// The same, empty if it is absent.
    fn text(&self, secret: &str, key: &str) -> &[u8] {
        self.value(secret, key).unwrap_or_default()
    }

    /// Certificate, key and trusted CAs of the operator.
    pub(crate) fn operator(&self, names: &Names) -> Option<(&[u8], &[u8], &[u8])> {
        let secret = names.operator_identity();
        Some((
            self.value(&secret, CERTIFICATE)?,
            self.value(&secret, KEY)?,
            self.value(&secret, BUNDLE)?,
        ))
    }
}

/// How certificates stand after a pass.
#[derive(Debug)]
pub(crate) struct Certificates {
    pub(crate) plan: CertPlan,
    pub(crate) public: PublicFacts,
}

/// Reads the Secrets that are the same in every pass; those of cert-manager are read when it is known how many there are.
pub(crate) async fn secrets(context: &Context, valid: &ValidCluster) -> Result<Secrets, Failure> {
    let n = valid.names();
    let mut secrets = Secrets::default();
    let public = valid.spec().relay.certificate.secret_name.clone();
    for name in [
        n.ca(),
        n.control_identity(),
        n.relay_identity(),
        n.operator_identity(),
        public,
    ] {
        fetch(context, n, &mut secrets, name).await?;
    }
    Ok(secrets)
}

async fn fetch(
    context: &Context,
    names: &Names,
    secrets: &mut Secrets,
    name: String,
) -> Result<(), Failure> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), names.namespace());
    let found = api.get_opt(&name).await;
    if let Some(s) = found.map_err(Failure::api(format!("read Secret {name}")))? {
        secrets.0.insert(name, s);
    }
    Ok(())
}

/// Issues and writes what is due for the ordinals below `ordinals`. If `paused`, only says how it stands.
pub(crate) async fn ensure(
    context: &Context,
    cluster: &RelayCluster,
    valid: &ValidCluster,
    mut secrets: Secrets,
    ordinals: u32,
) -> Result<Certificates, Failure> {
    let spec = valid.spec();
    let all = workloads(valid.names(), ordinals);
    if spec.certificates.issuer == Issuer::CertManager {
        for w in &all {
            fetch(context, valid.names(), &mut secrets, w.issued.clone()).await?;
        }
    }
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
    let known = known(valid, &secrets, &all);
    let mut facts = facts(valid, &secrets, &all, &known, now);
    facts.mount = context.propagation.as_secs();
    let plan = certs::decide(&facts);
    if !spec.paused {
        let mut draft = Draft::new(valid.names(), &secrets.0, &all, &known);
        for action in &plan.actions {
            draft.carry_out(action, now)?;
        }
        draft.trust(&plan.trusted);
        write(context, cluster, valid, &secrets, draft).await?;
    }
    Ok(Certificates {
        public: public(valid, &secrets),
        plan,
    })
}

/// Every CA in any of the Secrets, each once.
fn known(valid: &ValidCluster, secrets: &Secrets, all: &[Workload]) -> Vec<Certificate> {
    let ca = valid.names().ca();
    let own = [CERTIFICATE, certs::NEXT_CERTIFICATE, BUNDLE].map(|key| (ca.as_str(), key));
    let others = all
        .iter()
        .flat_map(|w| [(w.secret.as_str(), BUNDLE), (w.issued.as_str(), BUNDLE)]);
    let mut found: Vec<Certificate> = Vec::new();
    for (secret, key) in own.into_iter().chain(others) {
        for c in read::certificates(secrets.text(secret, key)) {
            if !found
                .iter()
                .any(|f| f.facts.fingerprint == c.facts.fingerprint)
            {
                found.push(c);
            }
        }
    }
    found
}

fn facts(
    valid: &ValidCluster,
    secrets: &Secrets,
    all: &[Workload],
    known: &[Certificate],
    now: u64,
) -> Facts {
    let s = &valid.spec().certificates;
    let ca = valid.names().ca();
    let pair = |certificate: &str, key: &str| {
        let pair = read::authority(secrets.text(&ca, certificate), secrets.text(&ca, key));
        pair.map(|c| c.facts)
    };
    let bundle = |secret: &str| -> Vec<CertFacts> {
        let all = read::certificates(secrets.text(secret, BUNDLE));
        all.into_iter().map(|c| c.facts).collect()
    };
    let identity = |w: &Workload| IdentityFacts {
        leaf: read::leaf(
            w,
            secrets.text(&w.secret, &w.certificate_key),
            secrets.text(&w.secret, &w.key_key),
            known,
        ),
        bundle: bundle(&w.secret),
        offered: read::leaf(
            w,
            secrets.text(&w.issued, CERTIFICATE),
            secrets.text(&w.issued, KEY),
            known,
        ),
        offered_cas: bundle(&w.issued),
        workload: w.clone(),
    };
    Facts {
        now,
        issuer: s.issuer,
        validity: u64::from(s.validity_hours) * 3600,
        ca_validity: u64::from(s.ca_validity_hours) * 3600,
        mount: certs::MOUNT,
        authority: AuthorityFacts {
            signing: pair(CERTIFICATE, KEY),
            next: pair(certs::NEXT_CERTIFICATE, certs::NEXT_KEY),
            bundle: bundle(&ca),
            trusted: trusted(secrets, &ca),
        },
        identities: all.iter().map(identity).collect(),
    }
}

/// What was remembered; nothing if it cannot be read.
fn trusted(secrets: &Secrets, ca: &str) -> Vec<Trust> {
    let annotations = secrets
        .0
        .get(ca)
        .and_then(|s| s.metadata.annotations.as_ref());
    let text = annotations.and_then(|a| a.get(certs::TRUST_ANNOTATION));
    text.and_then(|t| serde_json::from_str(t).ok())
        .unwrap_or_default()
}

fn public(valid: &ValidCluster, secrets: &Secrets) -> PublicFacts {
    let relay = &valid.spec().relay;
    let name = &relay.certificate.secret_name;
    if !secrets.0.contains_key(name) {
        return PublicFacts::Missing;
    }
    let value = |key| secrets.value(name, key);
    read::public(value(CERTIFICATE), value(KEY), &relay.hostname)
}

/// The CA first: what it signed is of no use without it.
async fn write(
    context: &Context,
    cluster: &RelayCluster,
    valid: &ValidCluster,
    secrets: &Secrets,
    draft: Draft<'_>,
) -> Result<(), Failure> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), valid.names().namespace());
    let made = draft.made().to_vec();
    for (name, wanted) in draft.secrets(valid) {
        let old = secrets.0.get(&name);
        if old.is_some_and(|o| draft::is_same(o, &wanted)) {
            continue;
        }
        let post = PostParams {
            field_manager: Some(crate::events::CONTROLLER.to_owned()),
            ..PostParams::default()
        };
        let written = match old {
            None => api.create(&post, &wanted).await,
            Some(_) => api.replace(&name, &post, &wanted).await,
        };
        written.map_err(Failure::api(format!("write Secret {name}")))?;
    }
    for (kind, _) in &made {
        context.metrics.certificate(kind);
    }
    if !made.is_empty() {
        let all: Vec<&str> = made.iter().map(|(_, what)| what.as_str()).collect();
        let note = all.join(", ");
        context
            .events
            .did(cluster, "IssueCertificates", "CertificatesIssued", note)
            .await;
    }
    Ok(())
}
