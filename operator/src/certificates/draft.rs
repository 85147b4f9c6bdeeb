//! The Secrets as they are to be: what was read, with the plan's actions carried out. Nothing is written here.
use super::{
    BUNDLE, CERTIFICATE, KEY,
    issue::{self, IssueError, Pair, Validity},
    read::{self, Certificate},
};
use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use sealane_plan::{
    Names, ValidCluster, build,
    certs::{
        CertAction, NEXT_CERTIFICATE, NEXT_KEY, TRUST_ANNOTATION, Trust, Workload, WorkloadRole,
    },
};
use sealane_runtime::identity::{Role, WorkloadId};
use std::collections::BTreeMap;

type Data = BTreeMap<String, ByteString>;

/// Contents of the cluster's own Secrets.
pub(super) struct Draft<'a> {
    names: &'a Names,
    read: &'a BTreeMap<String, Secret>,
    workloads: &'a [Workload],
    known: &'a [Certificate],
    ca: Data,
    /// By name of the Secret.
    identities: BTreeMap<String, Data>,
    /// CAs that were made in this pass.
    new: Vec<Certificate>,
    trusted: Vec<Trust>,
    /// Kind and description of what was made.
    made: Vec<(&'static str, String)>,
}

impl<'a> Draft<'a> {
    /// Begins with what was read. Of identities only what belongs to one of `workloads` is kept.
    pub(super) fn new(
        names: &'a Names,
        read: &'a BTreeMap<String, Secret>,
        workloads: &'a [Workload],
        known: &'a [Certificate],
    ) -> Self {
        let data = |name: &str| {
            read.get(name)
                .and_then(|s| s.data.clone())
                .unwrap_or_default()
        };
        let mut identities: BTreeMap<String, Data> = BTreeMap::new();
        for w in workloads {
            let old = data(&w.secret);
            let new = identities.entry(w.secret.clone()).or_default();
            for key in [&w.certificate_key, &w.key_key] {
                if let Some(v) = old.get(key) {
                    new.insert(key.clone(), v.clone());
                }
            }
        }
        Self {
            ca: data(&names.ca()),
            names,
            read,
            workloads,
            known,
            identities,
            new: Vec::new(),
            trusted: Vec::new(),
            made: Vec::new(),
        }
    }

    /// What was made: kind, and what it is.
    pub(super) fn made(&self) -> &[(&'static str, String)] {
        &self.made
    }

    /// One action of the plan. `now` in seconds since 1970.
    pub(super) fn carry_out(&mut self, action: &CertAction, now: u64) -> Result<(), IssueError> {
        match action {
            CertAction::CreateAuthority { until } => {
                let validity = Validity { now, until: *until };
                self.new_authority(validity, CERTIFICATE, KEY, "a CA")
            }
            CertAction::PrepareNext { until } => {
                let validity = Validity { now, until: *until };
                self.new_authority(
                    validity,
                    NEXT_CERTIFICATE,
                    NEXT_KEY,
                    "the CA that signs next",
                )
            }
            CertAction::PromoteNext => {
                for (from, to) in [(NEXT_CERTIFICATE, CERTIFICATE), (NEXT_KEY, KEY)] {
                    if let Some(v) = self.ca.remove(from) {
                        self.ca.insert(to.to_owned(), v);
                    }
                }
                self.made
                    .push(("promotion", "the next CA signs from now on".to_owned()));
                Ok(())
            }
            CertAction::Issue { workload, until } => {
                self.issue(workload, Validity { now, until: *until })
            }
            CertAction::Copy { workload } => {
                self.copy(workload);
                Ok(())
            }
        }
    }

    fn new_authority(
        &mut self,
        validity: Validity,
        certificate: &str,
        key: &str,
        what: &str,
    ) -> Result<(), IssueError> {
        let pair = issue::authority(&self.names.trust_domain(), validity)?;
        self.new
            .extend(read::certificates(pair.certificate.as_bytes()));
        put(&mut self.ca, certificate, key, pair);
        self.made.push(("authority", what.to_owned()));
        Ok(())
    }

    fn issue(&mut self, w: &Workload, validity: Validity) -> Result<(), IssueError> {
        let text = |key: &str| {
            let value = self.ca.get(key).map(|v| v.0.as_slice()).unwrap_or_default();
            String::from_utf8_lossy(value).into_owned()
        };
        let ca = Pair {
            certificate: text(CERTIFICATE),
            key: text(KEY),
        };
        let id = WorkloadId {
            cluster: self.names.trust_domain(),
            role: match w.role {
                WorkloadRole::Control => Role::Control,
                WorkloadRole::Relay => Role::Relay,
                WorkloadRole::Operator => Role::Operator,
            },
            name: w.name.clone(),
        };
        let pair = issue::workload(&ca, &id, &w.dns, validity)?;
        let data = self.identities.entry(w.secret.clone()).or_default();
        put(data, &w.certificate_key, &w.key_key, pair);
        self.made
            .push(("workload", format!("a certificate of {}", w.name)));
        Ok(())
    }

    fn copy(&mut self, w: &Workload) {
        let Some(from) = self.read.get(&w.issued).and_then(|s| s.data.as_ref()) else {
            return;
        };
        let data = self.identities.entry(w.secret.clone()).or_default();
        for (key, to) in [(CERTIFICATE, &w.certificate_key), (KEY, &w.key_key)] {
            if let Some(v) = from.get(key) {
                data.insert(to.clone(), v.clone());
            }
        }
        self.made.push((
            "copy",
            format!("the certificate of {} from cert-manager", w.name),
        ));
    }

    /// Whom everybody trusts; CAs that were made in this pass come behind.
    pub(super) fn trust(&mut self, trusted: &[Trust]) {
        let new = self.new.iter().map(|c| Trust {
            fingerprint: c.facts.fingerprint.clone(),
            since: None,
            unused_since: None,
        });
        self.trusted = trusted.iter().cloned().chain(new).collect();
        let all = || self.new.iter().chain(self.known);
        let bundle: String = self
            .trusted
            .iter()
            .filter_map(|t| all().find(|c| c.facts.fingerprint == t.fingerprint))
            .map(Certificate::pem)
            .collect();
        if bundle.is_empty() {
            return;
        }
        let bundle = ByteString(bundle.into_bytes());
        for data in std::iter::once(&mut self.ca).chain(self.identities.values_mut()) {
            data.insert(BUNDLE.to_owned(), bundle.clone());
        }
    }

    /// The Secrets to write, in this order. One that would hold nothing is left out.
    pub(super) fn secrets(self, valid: &ValidCluster) -> Vec<(String, Secret)> {
        let mut metas: BTreeMap<String, ObjectMeta> = BTreeMap::new();
        let ca = self.names.ca();
        let mut meta = build::secret_meta(valid, ca.clone(), true);
        if let Ok(text) = serde_json::to_string(&self.trusted) {
            meta.annotations = Some(BTreeMap::from([(TRUST_ANNOTATION.to_owned(), text)]));
        }
        metas.insert(ca.clone(), meta);
        for w in self.workloads {
            let meta = build::secret_meta(valid, w.secret.clone(), false);
            metas.insert(w.secret.clone(), meta);
        }
        std::iter::once((ca, self.ca))
            .chain(self.identities)
            .filter(|(_, data)| !data.is_empty())
            .map(|(name, data)| {
                let meta = metas.remove(&name).unwrap_or_default();
                let secret = over(self.read.get(&name), meta, data);
                (name, secret)
            })
            .collect()
    }
}

fn put(data: &mut Data, certificate: &str, key: &str, pair: Pair) {
    data.insert(
        certificate.to_owned(),
        ByteString(pair.certificate.into_bytes()),
    );
    data.insert(key.to_owned(), ByteString(pair.key.into_bytes()));
}

/// What was read, with our metadata and contents. Its version stays: another write in between is noticed.
fn over(old: Option<&Secret>, meta: ObjectMeta, data: Data) -> Secret {
    let mut new = old.cloned().unwrap_or_else(|| Secret {
        metadata: ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    });
    let m = &mut new.metadata;
    m.labels
        .get_or_insert_default()
        .extend(meta.labels.unwrap_or_default());
    if let Some(a) = meta.annotations {
        m.annotations.get_or_insert_default().extend(a);
    }
    m.owner_references = meta.owner_references;
    m.managed_fields = None;
    new.data = Some(data);
    new
}

/// Writing `new` over `old` would change nothing.
pub(super) fn is_same(old: &Secret, new: &Secret) -> bool {
    let (o, n) = (&old.metadata, &new.metadata);
    old.data == new.data
        && o.labels == n.labels
        && o.annotations == n.annotations
        && o.owner_references == n.owner_references
}
