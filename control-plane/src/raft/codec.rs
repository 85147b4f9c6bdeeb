//! Conversions between openraft's types, our stored records and our wire messages.
//!
//! Nothing here can panic on foreign bytes: a malformed record is an [`std::io::Error`] that names it.
use super::types::{Entry, LeaderId, LogId, Membership, Peer, Proposal, StoredMembership, Vote};
use bytes::Bytes;
use openraft::EntryPayload;
use prost::Message;
use sealane_store::{Applied, LogPosition, StoredEntry, StoredPayload, VoteRecord};
use sealane_wire::v1;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

fn invalid(what: &str, why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {why}"))
}

// ---- positions

pub(crate) fn position(id: &LogId) -> LogPosition {
    LogPosition {
        term: id.leader_id.term,
        node: id.leader_id.node_id,
        index: id.index,
    }
}

pub(super) fn log_id(p: LogPosition) -> LogId {
    LogId::new(
        LeaderId {
            term: p.term,
            node_id: p.node,
        },
        p.index,
    )
}

pub(super) fn wire_log_id(id: &LogId) -> v1::LogId {
    v1::LogId {
        term: id.leader_id.term,
        node: id.leader_id.node_id,
        index: id.index,
    }
}

pub(crate) fn wire_position(p: &LogPosition) -> v1::LogId {
    v1::LogId {
        term: p.term,
        node: p.node,
        index: p.index,
    }
}

pub(crate) fn log_id_from_wire(id: &v1::LogId) -> LogId {
    LogId::new(
        LeaderId {
            term: id.term,
            node_id: id.node,
        },
        id.index,
    )
}

// ---- votes

pub(super) fn vote_record(v: &Vote) -> VoteRecord {
    VoteRecord {
        term: v.leader_id.term,
        node: v.leader_id.node_id,
        committed: v.committed,
    }
}

pub(super) fn vote(r: VoteRecord) -> Vote {
    Vote {
        leader_id: LeaderId {
            term: r.term,
            node_id: r.node,
        },
        committed: r.committed,
    }
}

pub(super) fn wire_vote(v: &Vote) -> v1::RaftVote {
    v1::RaftVote {
        term: v.leader_id.term,
        node: v.leader_id.node_id,
        committed: v.committed,
    }
}

pub(super) fn vote_from_wire(v: Option<v1::RaftVote>) -> io::Result<Vote> {
    let v = v.ok_or_else(|| invalid("vote", "missing"))?;
    Ok(Vote {
        leader_id: LeaderId {
            term: v.term,
            node_id: v.node,
        },
        committed: v.committed,
    })
}

// ---- membership

pub(super) fn wire_membership(m: &Membership) -> v1::Membership {
    v1::Membership {
        configs: m
            .get_joint_config()
            .iter()
            .map(|c| v1::VoterSet {
                voters: c.iter().copied().collect(),
            })
            .collect(),
        members: m
            .nodes()
            .map(|(id, p)| v1::Member {
                id: *id,
                address: p.address.clone(),
                name: p.name.clone(),
            })
            .collect(),
    }
}

pub(super) fn membership_from_wire(m: v1::Membership) -> io::Result<Membership> {
    let configs: Vec<BTreeSet<u64>> = m
        .configs
        .into_iter()
        .map(|c| c.voters.into_iter().collect())
        .collect();
    let nodes: BTreeMap<u64, Peer> = m
        .members
        .into_iter()
        .map(|m| {
            (
                m.id,
                Peer {
                    address: m.address,
                    name: m.name,
                },
            )
        })
        .collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|e| invalid("membership", e))
}

fn membership_from_bytes(b: &[u8]) -> io::Result<Membership> {
    membership_from_wire(v1::Membership::decode(b).map_err(|e| invalid("membership", e))?)
}

pub(super) fn stored_membership(applied: &Applied) -> io::Result<StoredMembership> {
    Ok(StoredMembership::new(
        applied.membership_at.map(log_id),
        membership_from_bytes(&applied.membership)?,
    ))
}

pub(super) fn membership_bytes(m: &Membership) -> Bytes {
    wire_membership(m).encode_to_vec().into()
}

// ---- entries

pub(super) fn stored_entry(e: Entry) -> StoredEntry {
    let payload = match e.payload {
        EntryPayload::Blank => StoredPayload::Blank,
        EntryPayload::Normal(p) => StoredPayload::Command {
            header: p.header,
            body: p.body,
        },
        EntryPayload::Membership(m) => StoredPayload::Membership(membership_bytes(&m)),
    };
    StoredEntry {
        position: position(&e.log_id),
        payload,
    }
}

pub(super) fn entry(e: StoredEntry) -> io::Result<Entry> {
    let payload = match e.payload {
        StoredPayload::Blank => EntryPayload::Blank,
        StoredPayload::Command { header, body } => EntryPayload::Normal(Proposal { header, body }),
        StoredPayload::Membership(b) => EntryPayload::Membership(membership_from_bytes(&b)?),
    };
    Ok(Entry {
        log_id: log_id(e.position),
        payload,
    })
}

pub(super) fn wire_entry(e: &Entry) -> v1::LogEntry {
    use v1::log_entry::Kind;
    let (kind, header, body) = match &e.payload {
        EntryPayload::Blank => (Kind::Blank, Bytes::new(), Bytes::new()),
        EntryPayload::Normal(p) => (Kind::Command, p.header.clone(), p.body.clone()),
        EntryPayload::Membership(m) => (Kind::Membership, membership_bytes(m), Bytes::new()),
    };
    v1::LogEntry {
        id: Some(wire_log_id(&e.log_id)),
        kind: kind.into(),
        header,
        body,
    }
}

pub(super) fn entry_from_wire(e: v1::LogEntry) -> io::Result<Entry> {
    use v1::log_entry::Kind;
    let id =
        e.id.as_ref()
            .ok_or_else(|| invalid("entries.id", "missing"))?;
    let payload = match Kind::try_from(e.kind).map_err(|e| invalid("entries.kind", e))? {
        Kind::Blank => EntryPayload::Blank,
        Kind::Command => EntryPayload::Normal(Proposal {
            header: e.header,
            body: e.body,
        }),
        Kind::Membership => EntryPayload::Membership(membership_from_bytes(&e.header)?),
    };
    Ok(Entry {
        log_id: log_id_from_wire(id),
        payload,
    })
}

/// A batch of an export.
pub(crate) fn wire_records(
    records: Vec<sealane_store::SnapshotRecord>,
    crc32c: u32,
) -> v1::SnapshotRecords {
    let records = records.into_iter().map(|r| v1::SnapshotRecord {
        table: u32::from(r.table),
        key: r.key,
        value: r.value,
    });
    v1::SnapshotRecords {
        records: records.collect(),
        crc32c,
    }
}

/// The end of an export.
pub(crate) fn wire_end(records: u64, sha256: [u8; 32]) -> v1::SnapshotEnd {
    v1::SnapshotEnd {
        records,
        sha256: sha256.to_vec().into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_wire_and_disk() {
        let members = BTreeMap::from([
            (
                1,
                Peer {
                    address: "a:1".into(),
                    name: "a".into(),
                },
            ),
            (5, Peer::default()),
        ]);
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Proposal {
                header: Bytes::from_static(b"h"),
                body: Bytes::from_static(b"body"),
            }),
            EntryPayload::Membership(Membership::new(vec![BTreeSet::from([1])], members).unwrap()),
        ] {
            let e = Entry {
                log_id: LogId::new(
                    LeaderId {
                        term: 3,
                        node_id: 5,
                    },
                    9,
                ),
                payload,
            };
            assert_eq!(entry(stored_entry(e.clone())).unwrap(), e);
            assert_eq!(entry_from_wire(wire_entry(&e)).unwrap(), e);
        }
    }

    #[test]
    fn malformed_wire_entries_are_errors() {
        assert!(entry_from_wire(v1::LogEntry::default()).is_err());
        let e = v1::LogEntry {
            id: Some(v1::LogId::default()),
            kind: 77,
            ..Default::default()
        };
        assert!(entry_from_wire(e).is_err());
        assert!(vote_from_wire(None).is_err());
    }
}
