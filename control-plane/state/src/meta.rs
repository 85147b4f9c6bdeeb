//! Group 0: the cluster and its policy. Its nodes: `nodes.rs`.
use crate::{
    apply::{Effect, Step, refused},
    nodes::{self, allocated},
    records::{get, put},
    tables::{Table, TableError, WriteTables},
};
use prost::Message;
use sealane_types::ShardId;
use sealane_wire::v1::{self, command_reply::Result as Answer, document::Kind};
use std::collections::BTreeSet;

/// "Kind/name", the key of a document.
pub(crate) fn document_key(d: &v1::Document) -> Option<String> {
    Some(match d.kind.as_ref()? {
        Kind::Domain(x) => format!("Domain/{}", x.name),
        Kind::Submitter(x) => format!("Submitter/{}", x.name),
        Kind::Destination(x) => format!("Destination/{}", x.name),
    })
}

pub(crate) fn init_cluster<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::InitClusterOp,
) -> Result<Answer, TableError> {
    if let Some(c) = get::<v1::ClusterRecord>(s.tables, Table::Cluster, b"")? {
        let same = c.cluster_id == o.cluster_id;
        return Ok(match o.first {
            Some(first) if same => Answer::Node(allocated(&c, first.id)),
            _ => refused("cluster_id", "another cluster lives here"),
        });
    }
    let Some(first) = o.first else {
        return Ok(refused("first", "missing"));
    };
    if o.cluster_id.is_empty() {
        return Ok(refused("cluster_id", "empty"));
    }
    if ShardId::new(o.shards).is_none() {
        return Ok(refused("shards", "needs 1 to 255"));
    }
    if o.replicas == 0 {
        return Ok(refused("replicas", "needs at least 1"));
    }
    let record = v1::ClusterRecord {
        cluster_id: o.cluster_id,
        cluster_name: o.cluster_name,
        shards: o.shards,
        replicas: o.replicas,
    };
    put(s.tables, Table::Cluster, b"", &record);
    let id = first.id;
    nodes::found(s, &record, first)?;
    audit(s, "cluster", "init", &record.cluster_id);
    Ok(Answer::Node(allocated(&record, id)))
}

pub(crate) fn revision<T: WriteTables>(s: &Step<'_, T>) -> Result<u64, TableError> {
    crate::queries::policy_revision(s.tables)
}

/// All documents or none. The revision grows only if something changed.
pub(crate) fn apply_policy<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::ApplyPolicyOp,
) -> Result<Answer, TableError> {
    let current = revision(s)?;
    if o.expected_revision != 0 && o.expected_revision != current {
        return Ok(Answer::Refused(v1::Refused {
            field: "expected_revision".into(),
            reason: format!(
                "the policy is at revision {current}, not {}",
                o.expected_revision
            ),
            revision_conflict: true,
        }));
    }
    let mut seen = BTreeSet::new();
    for (n, d) in o.documents.iter().enumerate() {
        match document_key(d) {
            None => {
                return Ok(refused(
                    &format!("documents[{n}].kind"),
                    "missing or unknown",
                ));
            }
            Some(k) if !seen.insert(k.clone()) => {
                return Ok(refused(
                    &format!("documents[{n}]"),
                    format!("{k} is named twice"),
                ));
            }
            Some(_) => {}
        }
    }
    let mut reply = v1::PolicyApplyReply::default();
    for d in &o.documents {
        let Some(key) = document_key(d) else { continue };
        match s.tables.get(Table::Policy, key.as_bytes())? {
            None => reply.created.push(key.clone()),
            Some(old) if old == d.encode_to_vec() => {
                reply.unchanged.push(key);
                continue;
            }
            Some(_) => reply.updated.push(key.clone()),
        }
        put(s.tables, Table::Policy, key.as_bytes(), d);
    }
    for key in o.remove {
        if !key.is_empty()
            && !seen.contains(&key)
            && s.tables.get(Table::Policy, key.as_bytes())?.is_some()
        {
            s.tables.delete(Table::Policy, key.as_bytes());
            reply.removed.push(key);
        }
    }
    let changed =
        !(reply.created.is_empty() && reply.updated.is_empty() && reply.removed.is_empty());
    reply.revision = if changed { current + 1 } else { current };
    if changed {
        s.tables
            .put(Table::Policy, b"", &reply.revision.to_be_bytes());
        let what = format!(
            "created {:?}, updated {:?}, removed {:?}",
            reply.created, reply.updated, reply.removed
        );
        audit(s, &o.actor, "policy.apply", &what);
        s.effects.push(Effect::Policy(reply.revision));
    }
    Ok(Answer::Policy(reply))
}

/// Something that changes nothing and has to be known.
pub(crate) fn note<T: WriteTables>(s: &mut Step<'_, T>, o: &v1::AuditOp) -> Answer {
    audit(s, &o.actor, &o.action, &o.detail);
    Answer::Audited(v1::Audited {})
}

pub(crate) fn audit<T: WriteTables>(s: &mut Step<'_, T>, actor: &str, action: &str, detail: &str) {
    let record = v1::AuditRecord {
        at_ms: s.now,
        actor: actor.to_owned(),
        action: action.to_owned(),
        detail: detail.to_owned(),
    };
    put(s.tables, Table::Audit, &s.index.to_be_bytes(), &record);
}
