//! Reading the state: for services, the dispatcher and the relay's policy watch.
use crate::{
    records::{clock, decode, get, recipient_count, recipients},
    tables::{ReadTables, Table, TableError},
};
use sealane_types::{GroupId, MessageId};
use sealane_wire::v1::{self, recipient_record::State};
use std::collections::BTreeMap;

/// Most nodes and documents read at once.
const ALL: usize = 1_000_000;

/// A message with its recipients, in envelope order.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredMessage {
    /// Its id.
    pub id: MessageId,
    /// Envelope, entry record, body references.
    pub record: v1::MessageRecord,
    /// One per recipient of the envelope.
    pub recipients: Vec<v1::RecipientRecord>,
}

/// A message that is not finished.
pub fn message(t: &impl ReadTables, id: MessageId) -> Result<Option<StoredMessage>, TableError> {
    let Some(record) = get::<v1::MessageRecord>(t, Table::Message, id.as_bytes())? else {
        return Ok(None);
    };
    let recipients = recipients(t, id, recipient_count(&record))?;
    Ok(Some(StoredMessage {
        id,
        record,
        recipients,
    }))
}

/// Messages after `after`, oldest first, at most `limit`; only those with an open recipient in `destination` if given.
pub fn list(
    t: &impl ReadTables,
    after: Option<MessageId>,
    limit: usize,
    destination: Option<&str>,
) -> Result<Vec<StoredMessage>, TableError> {
    let mut out = Vec::new();
    let mut start = after
        .map(|id| [id.as_bytes().as_slice(), &[0]].concat())
        .unwrap_or_default();
    while out.len() < limit {
        let want = limit - out.len();
        let page = t.scan(Table::Message, &start, b"", want)?;
        let last = page.len() < want;
        for (key, value) in page {
            start = [key.as_ref(), &[0]].concat();
            let id = MessageId::from_slice(&key).map_err(|e| TableError {
                table: Table::Message,
                reason: e.to_string(),
            })?;
            let record: v1::MessageRecord = decode(Table::Message, value)?;
            let recipients = recipients(t, id, recipient_count(&record))?;
            if destination.is_none_or(|d| has_open(&record, &recipients, d)) {
                out.push(StoredMessage {
                    id,
                    record,
                    recipients,
                });
            }
        }
        if last {
            break;
        }
    }
    Ok(out)
}

/// Whether a recipient in that domain is not settled yet.
fn has_open(m: &v1::MessageRecord, recipients: &[v1::RecipientRecord], domain: &str) -> bool {
    let envelope = m.envelope.iter().flat_map(|e| &e.recipients);
    envelope.zip(recipients).any(|(given, r)| {
        matches!(r.state(), State::Waiting | State::Leased | State::Held)
            && given
                .mailbox
                .rsplit_once('@')
                .is_some_and(|(_, d)| d.eq_ignore_ascii_case(domain))
    })
}

/// Messages that are not finished.
pub fn count(t: &impl ReadTables) -> Result<u64, TableError> {
    Ok(clock(t)?.messages)
}

/// The oldest unfinished message by the time in its id. `floor` is where to begin: who knows that there
/// is nothing before it does not pass over what was deleted there.
pub fn oldest(
    t: &impl ReadTables,
    floor: Option<MessageId>,
) -> Result<Option<MessageId>, TableError> {
    let start = floor.as_ref().map_or(&[][..], |id| id.as_bytes());
    let first = t.scan(Table::Message, start, b"", 1)?;
    Ok(first
        .first()
        .and_then(|(key, _)| MessageId::from_slice(key).ok()))
}

/// The current revision; 0 before the first policy.
pub fn policy_revision(t: &impl ReadTables) -> Result<u64, TableError> {
    let stored = t.get(Table::Policy, b"")?;
    Ok(stored
        .and_then(|b| b.as_ref().try_into().ok())
        .map_or(0, u64::from_be_bytes))
}

/// The whole policy.
pub fn policy_set(t: &impl ReadTables) -> Result<v1::PolicySet, TableError> {
    let documents = t
        .scan(Table::Policy, &[1], b"", ALL)?
        .into_iter()
        .map(|(_, v)| decode(Table::Policy, v))
        .collect::<Result<_, _>>()?;
    Ok(v1::PolicySet {
        revision: policy_revision(t)?,
        documents,
    })
}

/// Every node that was ever given an id, oldest first.
pub fn nodes(t: &impl ReadTables) -> Result<Vec<v1::NodeRecord>, TableError> {
    let mut nodes = t
        .scan(Table::Node, b"", b"", ALL)?
        .into_iter()
        .map(|(_, v)| decode(Table::Node, v))
        .collect::<Result<Vec<v1::NodeRecord>, _>>()?;
    crate::nodes::name_states(&mut nodes, cluster(t)?.map_or(0, |c| c.replicas));
    Ok(nodes)
}

/// Where the replicas are to be, and the revision of the node registry.
pub fn placement(t: &impl ReadTables) -> Result<v1::PlacementRecord, TableError> {
    if let Some(stored) = get(t, Table::Placement, b"")? {
        return Ok(stored);
    }
    // Written before there was a placement: what it would be.
    let shards = cluster(t)?.map_or(0, |c| c.shards);
    let replicas = cluster(t)?.map_or(0, |c| c.replicas);
    let holders = crate::nodes::holders(&nodes(t)?);
    let placement = crate::placement::place(&holders, shards, replicas, &BTreeMap::new());
    Ok(crate::nodes::placement_record(0, placement))
}

/// Where they are, as the leader of each group reported last.
pub fn group_reports(
    t: &impl ReadTables,
) -> Result<BTreeMap<GroupId, v1::GroupReport>, TableError> {
    let rows = t.scan(Table::Placement, &[0], b"", ALL)?;
    let rows = rows.into_iter().map(|(key, v)| {
        let group = key.as_ref().try_into().map_err(|_| TableError {
            table: Table::Placement,
            reason: "a group has 4 octets".into(),
        })?;
        Ok((
            GroupId(u32::from_be_bytes(group)),
            decode(Table::Placement, v)?,
        ))
    });
    rows.collect()
}

/// The cluster, once founded.
pub fn cluster(t: &impl ReadTables) -> Result<Option<v1::ClusterRecord>, TableError> {
    get(t, Table::Cluster, b"")
}

/// The restore that this group takes or took part in.
pub fn restore(t: &impl ReadTables) -> Result<Option<v1::RestoreRecord>, TableError> {
    get(t, Table::Cluster, crate::restore::KEY)
}
