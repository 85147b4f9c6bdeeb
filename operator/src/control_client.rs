//! What the operator asks of a cluster's control plane, with its own identity.
//!
//! Every node is asked, all at the same time: each knows best about the groups that it leads, and of the lists of nodes the
//! newest counts. Nothing is kept between passes, so a certificate that was changed is used at once.
use futures_util::future::join_all;
use sealane_runtime::{
    grpc,
    identity::{Identity, IdentityConfig},
};
use sealane_wire::v1::{
    self, admin_client::AdminClient, change_node_request::Action, policy_client::PolicyClient,
};
use std::{
    collections::BTreeMap, fs::OpenOptions, future::Future, io::Write,
    os::unix::fs::OpenOptionsExt, path::Path, time::Duration,
};
use tonic::{Code, Status, transport::Channel};

/// A node answers a question by then.
const ASK: Duration = Duration::from_secs(4);
/// A change is decided by then: it needs a majority, and may wait for an election.
const CHANGE: Duration = Duration::from_secs(10);
/// Most octets of one reply; a policy is the largest.
const MAX_MESSAGE: usize = 8 << 20;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The cluster decided against it; asking again would not help.
    #[error("the control plane refused: {0}")]
    Refused(String),
    /// What it was based on has changed meanwhile.
    #[error("the control plane has changed meanwhile: {0}")]
    Stale(String),
    /// No node answered.
    #[error("no control-plane node answered: {0}")]
    Nobody(String),
}

/// What is known of one Raft group.
#[derive(Debug, Clone)]
pub(crate) struct GroupAnswer {
    /// The best word about it.
    pub(crate) status: v1::GroupStatus,
    /// Whether its leader said it.
    pub(crate) by_leader: bool,
}

/// All answers together.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// The newest list of nodes.
    pub(crate) nodes: v1::ListNodesReply,
    pub(crate) cluster_id: String,
    /// The newest that any node knows.
    pub(crate) policy_revision: u64,
    /// By number.
    pub(crate) groups: BTreeMap<u32, GroupAnswer>,
    /// Ids of the nodes that answered.
    pub(crate) answered: Vec<u64>,
    /// Addresses that did not answer, and why.
    pub(crate) silent: Vec<(String, String)>,
}

impl Answers {
    fn take(&mut self, nodes: v1::ListNodesReply, status: v1::ClusterStatusReply) {
        if self.answered.is_empty() || nodes.registry_revision > self.nodes.registry_revision {
            self.nodes = nodes;
            self.cluster_id = status.cluster_id;
        }
        self.policy_revision = self.policy_revision.max(status.policy_revision);
        for g in status.groups {
            let by_leader = g.leader != 0 && g.leader == status.answered_by;
            let rank = |g: &v1::GroupStatus, by_leader: bool| (g.term, by_leader, g.held);
            let better = self
                .groups
                .get(&g.group)
                .is_none_or(|old| rank(&g, by_leader) > rank(&old.status, old.by_leader));
            if better {
                let group = g.group;
                self.groups.insert(
                    group,
                    GroupAnswer {
                        status: g,
                        by_leader,
                    },
                );
            }
        }
        if !self.answered.contains(&status.answered_by) {
            self.answered.push(status.answered_by);
        }
    }
}

/// One cluster's control plane.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    identity: Identity,
    addresses: Vec<String>,
}

impl ControlPlane {
    /// `addresses`: host:port of as many nodes as are known; the others are learnt from them.
    pub(crate) fn new(identity: Identity, addresses: Vec<String>) -> Self {
        Self {
            identity,
            addresses,
        }
    }

    /// Asks every node, those too that only the others know. `None`: nobody answered, and why is in the second part.
    pub(crate) async fn ask(&mut self) -> (Option<Answers>, Vec<(String, String)>) {
        let mut all = Answers::default();
        let mut asked: Vec<String> = Vec::new();
        // The second round is for nodes that the first one named.
        for _ in 0..2 {
            let round: Vec<String> = self
                .addresses
                .iter()
                .filter(|a| !asked.contains(a))
                .cloned()
                .collect();
            if round.is_empty() {
                break;
            }
            asked.extend(round.iter().cloned());
            for (address, answer) in round
                .iter()
                .zip(join_all(round.iter().map(|a| self.ask_one(a))).await)
            {
                match answer {
                    Ok((nodes, status)) => all.take(nodes, status),
                    Err(why) => all.silent.push((address.clone(), why)),
                }
            }
            for n in &all.nodes.nodes {
                let member = n.node_id != 0 && !matches!(n.state.as_str(), "removed" | "lost");
                if member && !n.address.is_empty() && !self.addresses.contains(&n.address) {
                    self.addresses.push(n.address.clone());
                }
            }
        }
        let silent = all.silent.clone();
        self.addresses
            .retain(|a| !silent.iter().any(|(s, _)| s == a));
        ((!all.answered.is_empty()).then_some(all), silent)
    }

    async fn ask_one(
        &self,
        address: &str,
    ) -> Result<(v1::ListNodesReply, v1::ClusterStatusReply), String> {
        let channel = grpc::channel(address, &self.identity).map_err(|e| format!("{e:#}"))?;
        let mut admin = AdminClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let both = async {
            let nodes = admin
                .list_nodes(v1::ListNodesRequest {})
                .await?
                .into_inner();
            let status = admin.cluster_status(v1::ClusterStatusRequest {}).await?;
            Ok::<_, Status>((nodes, status.into_inner()))
        };
        match tokio::time::timeout(ASK, both).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(s)) => Err(cause(&s)),
            Err(_) => Err(format!("no answer within {ASK:?}")),
        }
    }

    /// Adds or removes a member. Answered when it is decided, not when the replicas have moved.
    pub(crate) async fn change_node(&self, action: Action, node: &str) -> Result<u64, CallError> {
        let request = v1::ChangeNodeRequest {
            action: action.into(),
            node: node.to_owned(),
            with: String::new(),
        };
        let reply = self
            .first(CHANGE, |channel| {
                let request = request.clone();
                async move { AdminClient::new(channel).change_node(request).await }
            })
            .await?;
        Ok(reply.node_id)
    }

    /// The policy in force, as one node knows it.
    pub(crate) async fn policy(&self) -> Result<v1::PolicySet, CallError> {
        self.first(ASK, |channel| async move {
            PolicyClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE)
                .get(v1::PolicyGetRequest {})
                .await
        })
        .await
    }

    /// Makes a revision; [`CallError::Stale`] if `expected_revision` is not the current one.
    pub(crate) async fn apply_policy(
        &self,
        request: v1::PolicyApplyRequest,
    ) -> Result<v1::PolicyApplyReply, CallError> {
        self.first(CHANGE, |channel| {
            let request = request.clone();
            async move {
                PolicyClient::new(channel)
                    .max_encoding_message_size(MAX_MESSAGE)
                    .apply(request)
                    .await
            }
        })
        .await
    }

    /// The first answer that is one; a refusal by the cluster itself is final.
    async fn first<T, F>(
        &self,
        deadline: Duration,
        call: impl Fn(Channel) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut causes = Vec::new();
        for address in &self.addresses {
            let channel = match grpc::channel(address, &self.identity) {
                Ok(c) => c,
                Err(e) => {
                    causes.push(format!("{address}: {e:#}"));
                    continue;
                }
            };
            match tokio::time::timeout(deadline, call(channel)).await {
                Ok(Ok(r)) => return Ok(r.into_inner()),
                Ok(Err(s)) => match s.code() {
                    Code::Unavailable
                    | Code::Unknown
                    | Code::Internal
                    | Code::Cancelled
                    | Code::DeadlineExceeded => causes.push(format!("{address}: {}", cause(&s))),
                    Code::Aborted => return Err(CallError::Stale(s.message().to_owned())),
                    _ => return Err(CallError::Refused(s.message().to_owned())),
                },
                Err(_) => causes.push(format!("{address}: no answer within {deadline:?}")),
            }
        }
        if causes.is_empty() {
            causes.push("no address is known".to_owned());
        }
        Err(CallError::Nobody(causes.join("; ")))
    }
}

/// The innermost cause: tonic wraps it several times.
fn cause(s: &Status) -> String {
    let mut text = s.message().to_owned();
    let mut source = std::error::Error::source(s);
    while let Some(e) = source {
        text = e.to_string();
        source = e.source();
    }
    text
}

/// An identity from the PEM texts of a Secret. They pass through files that only this process can read, in a folder that is
/// gone when this returns: the runtime reads identities from files.
pub(crate) fn identity(certificate: &[u8], key: &[u8], ca: &[u8]) -> anyhow::Result<Identity> {
    let folder = tempfile::tempdir()?;
    let write = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        private(&path, text).map(|()| path)
    };
    Identity::load(&IdentityConfig {
        certificate: write("tls.crt", certificate)?,
        key: write("tls.key", key)?,
        ca: write("ca.crt", ca)?,
    })
}

fn private(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn status(by: u64, group: u32, leader: u64, term: u64) -> v1::ClusterStatusReply {
        v1::ClusterStatusReply {
            cluster_id: "c".to_owned(),
            answered_by: by,
            groups: vec![v1::GroupStatus {
                group,
                leader,
                term,
                held: true,
                quorum: leader == by,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn list(revision: u64, states: &[&str]) -> v1::ListNodesReply {
        let node = |s: &&str| v1::NodeInfo {
            state: (*s).to_owned(),
            node_id: 1,
            ..Default::default()
        };
        v1::ListNodesReply {
            nodes: states.iter().map(node).collect(),
            registry_revision: revision,
            ..Default::default()
        }
    }

    #[test]
    fn the_leader_knows_best_and_the_newest_list_counts() {
        let mut all = Answers::default();
        all.take(list(5, &["active"]), status(2, 1, 1, 7));
        assert!(!all.groups[&1].by_leader);
        all.take(list(6, &["active", "spare"]), status(1, 1, 1, 7));
        assert!(all.groups[&1].by_leader);
        all.take(list(4, &["active"]), status(3, 1, 3, 6));
        let g = &all.groups[&1];
        assert!(
            g.by_leader && g.status.leader == 1,
            "a deposed leader is not heard"
        );
        all.take(list(6, &["active"]), status(4, 1, 0, 8));
        assert!(!all.groups[&1].by_leader, "a newer term has no leader yet");
        assert_eq!(all.nodes.nodes.len(), 2);
        assert_eq!(all.answered, [2, 1, 3, 4]);
    }
}
