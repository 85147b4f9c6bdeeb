//! Changes of a group's members, one entry (or a joint one and its end) at a time.
use super::{
    groups::{Group, ProposeError},
    types::Peer,
};
use openraft::{
    ChangeMembers,
    errors::{ClientWriteError, RaftError},
};
use std::collections::{BTreeMap, BTreeSet};

impl Group {
    /// Voters that are left out are no members any more (`retain` is false).
    async fn change(&self, change: ChangeMembers<u64, Peer>) -> Result<(), ProposeError> {
        match self.inner.raft().change_membership(change, false).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(f))) => {
                Err(ProposeError::NotLeader {
                    leader: f.leader_id,
                })
            }
            Err(e) => Err(ProposeError::Unavailable(e.to_string())),
        }
    }

    /// Adds a member that receives the log but does not vote.
    pub async fn add_learner(
        &self,
        node: u64,
        address: &str,
        name: &str,
    ) -> Result<(), ProposeError> {
        let peer = Peer {
            address: address.to_owned(),
            name: name.to_owned(),
        };
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(node, peer)])))
            .await
    }

    /// Makes a caught-up learner a voter, in one change with the removal of the voter that it replaces.
    pub async fn promote(&self, node: u64, instead_of: Option<u64>) -> Result<(), ProposeError> {
        let mut voters = self.view().voters;
        voters.insert(node);
        if let Some(old) = instead_of {
            voters.remove(&old);
        }
        self.change(ChangeMembers::ReplaceAllVoters(voters)).await
    }

    /// Takes the vote of a member, and its membership.
    pub async fn remove_voter(&self, node: u64) -> Result<(), ProposeError> {
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([node])))
            .await
    }

    /// Sends it nothing any more.
    pub async fn remove_learner(&self, node: u64) -> Result<(), ProposeError> {
        self.change(ChangeMembers::RemoveNodes(BTreeSet::from([node])))
            .await
    }

    /// Ends a joint membership that an earlier leader left behind: its target becomes the membership.
    pub async fn finish_change(&self) -> Result<(), ProposeError> {
        self.change(ChangeMembers::AddVoterIds(BTreeSet::new()))
            .await
    }
}
