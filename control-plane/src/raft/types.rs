//! The openraft type configuration.
use bytes::Bytes;
use sealane_wire::v1;
use std::fmt;

/// What a log entry of a queue or metadata group carries.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proposal {
    /// Encoded [`v1::Command`].
    pub header: Bytes,
    /// Message octets the command refers to; may be empty.
    pub body: Bytes,
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Proposal({} + {} octets)",
            self.header.len(),
            self.body.len()
        )
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What apply answers to the proposer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer(pub v1::CommandReply);

/// A member as recorded in the membership.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// gRPC address, host:port.
    pub address: String,
    /// For people.
    pub name: String,
}

openraft::declare_raft_types!(
    /// Sealane's Raft: u64 node ids, several leaders per term possible, our own entries.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Answer,
        Node = Peer,
);

pub(super) type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub(super) type LogId = openraft::LogId<LeaderId>;
pub(super) type Vote = openraft::impls::Vote<LeaderId>;
pub(super) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(super) type Membership = openraft::Membership<u64, Peer>;
pub(super) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(super) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
