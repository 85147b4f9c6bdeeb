//! Several RelayPolicies become one policy, or are refused together.
//!
//! All RelayPolicies of a cluster are read in the order of (order, name) and their documents joined. The same kind and name
//! in two of them is a conflict. A conflict, or a document that is not valid, refuses all of them: what is live stays, since
//! a policy with a part missing may send mail where it must not go. The order decides nothing but whom messages name first.
#[cfg(test)]
mod tests;

use sealane_crd::{PolicyDocument, RelayPolicySpec};
use sealane_policy::{document_key, parse_yaml};
use sealane_wire::v1;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A RelayPolicy.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyInput {
    /// `metadata.name`.
    pub name: String,
    /// Its spec.
    pub spec: RelayPolicySpec,
}

/// Values of Secrets that documents name, by (Secret, key). `None`: there is no such Secret or key.
pub type Verifiers = BTreeMap<(String, String), Option<String>>;

/// What is wrong with one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyFault {
    /// A document is not valid: which one, and why.
    Invalid(String),
    /// Another policy has a document of the same kind and name.
    Conflict {
        /// "Kind/name".
        key: String,
        /// The other policy.
        with: String,
    },
}

/// What became of one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyVerdict {
    /// `metadata.name`.
    pub name: String,
    /// How many documents it has.
    pub documents: u32,
    /// Everything that is wrong with it, in the order of its documents.
    pub faults: Vec<PolicyFault>,
}

impl PolicyVerdict {
    /// Why its documents are not valid; `None`: they are.
    pub fn invalid(&self) -> Option<String> {
        let all: Vec<&str> = self
            .faults
            .iter()
            .filter_map(|f| match f {
                PolicyFault::Invalid(why) => Some(why.as_str()),
                PolicyFault::Conflict { .. } => None,
            })
            .collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// With whom it conflicts about what; `None`: with nobody.
    pub fn conflict(&self) -> Option<String> {
        let all: Vec<String> = self
            .faults
            .iter()
            .filter_map(|f| match f {
                PolicyFault::Conflict { key, with } => Some(format!(
                    "{key} is in RelayPolicy {:?} and in RelayPolicy {with:?}: remove it from one of them",
                    self.name
                )),
                PolicyFault::Invalid(_) => None,
            })
            .collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// All policies of a cluster together.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// One for each policy, in the order of (order, name).
    pub verdicts: Vec<PolicyVerdict>,
    /// The whole policy, in the order of kind and name; `None`: refused.
    pub documents: Option<Vec<v1::Document>>,
}

impl Merged {
    /// Why nothing is applied, with the name of each policy; `None`: everything is valid.
    pub fn refusal(&self) -> Option<String> {
        let all: BTreeSet<String> = self
            .verdicts
            .iter()
            .flat_map(|v| {
                let invalid = v
                    .invalid()
                    .map(|w| format!("RelayPolicy {:?}: {w}", v.name));
                [invalid, v.conflict()]
            })
            .flatten()
            .collect();
        (!all.is_empty()).then(|| all.into_iter().collect::<Vec<_>>().join("; "))
    }
}

/// Secrets that the documents name, to be read before [`merge`].
pub fn wanted_secrets<'a>(
    policies: impl IntoIterator<Item = &'a PolicyInput>,
) -> BTreeSet<(String, String)> {
    policies
        .into_iter()
        .flat_map(|p| &p.spec.documents)
        .filter_map(|d| d.password_verifier_secret_ref.as_ref())
        .map(|r| (r.name.clone(), r.key.clone()))
        .collect()
}

/// Joins them. The order of the list does not matter.
pub fn merge(policies: &[PolicyInput], verifiers: &Verifiers) -> Merged {
    let mut sorted: Vec<&PolicyInput> = policies.iter().collect();
    sorted.sort_by_key(|p| (p.spec.order, &p.name));
    let mut holders: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut documents: BTreeMap<(u8, String), v1::Document> = BTreeMap::new();
    let mut verdicts: Vec<PolicyVerdict> = Vec::new();
    for (at, p) in sorted.iter().enumerate() {
        let mut faults = Vec::new();
        for (n, d) in p.spec.documents.iter().enumerate() {
            let key = format!("{}/{}", d.kind.as_str(), d.name);
            let owners = holders.entry(key.clone()).or_default();
            if owners.contains(&at) {
                faults.push(PolicyFault::Invalid(format!(
                    "documents[{n}]: {key} stands in this policy twice"
                )));
                continue;
            }
            owners.push(at);
            match convert(d, verifiers) {
                Ok(document) => {
                    let rank = d.kind as u8;
                    documents.insert((rank, document_key(&document)), document);
                }
                Err(why) => faults.push(PolicyFault::Invalid(format!("documents[{n}]: {why}"))),
            }
        }
        verdicts.push(PolicyVerdict {
            name: p.name.clone(),
            documents: u32::try_from(p.spec.documents.len()).unwrap_or(u32::MAX),
            faults,
        });
    }
    for (key, owners) in holders.iter().filter(|(_, owners)| owners.len() > 1) {
        for at in owners {
            let others = owners.iter().filter(|o| *o != at);
            for other in others {
                let with = verdicts[*other].name.clone();
                verdicts[*at].faults.push(PolicyFault::Conflict {
                    key: key.clone(),
                    with,
                });
            }
        }
    }
    let whole = verdicts.iter().all(|v| v.faults.is_empty());
    Merged {
        verdicts,
        documents: whole.then(|| documents.into_values().collect()),
    }
}

/// One document as the product takes it, checked as the product checks it.
fn convert(d: &PolicyDocument, verifiers: &Verifiers) -> Result<v1::Document, String> {
    let label = format!("{} {:?}", d.kind.as_str(), d.name);
    if d.password.is_some() {
        return Err(format!(
            "{label}: password: a RelayPolicy takes no password: everybody who may read it would have it. Name a Secret with passwordVerifierSecretRef"
        ));
    }
    let mut fields: Map<String, Value> = d.rest.clone().into_iter().collect();
    fields.insert("kind".to_owned(), json!(d.kind.as_str()));
    fields.insert("name".to_owned(), json!(d.name));
    if let Some(senders) = &d.senders {
        fields.insert("senders".to_owned(), json!(senders));
    }
    let verifier = match (&d.password_verifier, &d.password_verifier_secret_ref) {
        (Some(_), Some(_)) => {
            return Err(format!(
                "{label}: passwordVerifier: give either passwordVerifier or passwordVerifierSecretRef"
            ));
        }
        (Some(v), None) => Some(v.clone()),
        (None, Some(r)) => match verifiers.get(&(r.name.clone(), r.key.clone())) {
            Some(Some(v)) => Some(v.trim().to_owned()),
            _ => {
                return Err(format!(
                    "{label}: passwordVerifierSecretRef: there is no Secret {:?} with a key {:?} that is text",
                    r.name, r.key
                ));
            }
        },
        (None, None) => None,
    };
    if let Some(v) = verifier {
        fields.insert("passwordVerifier".to_owned(), json!(v));
    }
    // JSON on one line is YAML, and no text in it can look like a separator of documents.
    let text = Value::Object(fields).to_string();
    let mut no_salt = || [0; 16];
    let mut read = parse_yaml(&text, "document", &mut no_salt).map_err(|e| {
        let whole = e.to_string();
        let place = format!("{}:{}: ", e.file, e.line);
        let reason = whole.strip_prefix(&place).unwrap_or(&whole);
        let named = reason.strip_prefix(&format!("{label}: ")).unwrap_or(reason);
        format!("{label}: {named}")
    })?;
    match (read.pop(), read.is_empty()) {
        (Some(document), true) => Ok(document.wire().clone()),
        _ => Err(format!("{label}: is not one document")),
    }
}

/// What takes the live policy to the wanted one.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyChange {
    /// New, or not as they are to be.
    pub documents: Vec<v1::Document>,
    /// "Kind/name" of those that are live and not wanted, in order.
    pub remove: Vec<String>,
}

/// `None`: the live policy is the wanted one.
pub fn difference(live: &[v1::Document], wanted: &[v1::Document]) -> Option<PolicyChange> {
    let by_key = |all: &[v1::Document]| -> BTreeMap<String, v1::Document> {
        all.iter().map(|d| (document_key(d), d.clone())).collect()
    };
    let (live, wanted) = (by_key(live), by_key(wanted));
    let documents: Vec<v1::Document> = wanted
        .iter()
        .filter(|(key, d)| live.get(*key) != Some(*d))
        .map(|(_, d)| d.clone())
        .collect();
    let remove: Vec<String> = live
        .keys()
        .filter(|key| !wanted.contains_key(*key))
        .cloned()
        .collect();
    (!documents.is_empty() || !remove.is_empty()).then_some(PolicyChange { documents, remove })
}
