//! Work that only the leader of a group does: found wherever it is, asked again after an election.
use crate::{Connection, connect::cause};
use anyhow::{Context, bail};
use sealane_runtime::{grpc, identity::Identity};
use sealane_wire::v1::{self, admin_client::AdminClient, node_info::Kind};
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status, transport::Channel};

/// A group without progress for this long is given up.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(300);
/// Waiting for the list of nodes.
const LIST: Duration = Duration::from_secs(10);

/// Why an attempt did not do all of it.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Asking again would not help.
    Final(anyhow::Error),
    /// Ask the leader, which is at `hint` if that is known.
    Again {
        why: String,
        hint: Option<String>,
        /// Something was done that is not to be done again.
        progress: bool,
    },
}

impl Stop {
    pub(crate) fn again(why: impl Into<String>) -> Self {
        Self::Again {
            why: why.into(),
            hint: None,
            progress: false,
        }
    }

    pub(crate) fn elsewhere(e: v1::AskElsewhere) -> Self {
        Self::Again {
            why: "no node says that it leads".into(),
            hint: Some(e.address).filter(|a| !a.is_empty()),
            progress: false,
        }
    }

    pub(crate) fn progressed(self) -> Self {
        match self {
            Self::Again { why, hint, .. } => Self::Again {
                why,
                hint,
                progress: true,
            },
            other => other,
        }
    }
}

impl From<Status> for Stop {
    fn from(s: Status) -> Self {
        match s.code() {
            Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::Cancelled
            | Code::DeadlineExceeded => Self::again(cause(&s)),
            _ => Self::Final(anyhow::anyhow!("{}", s.message())),
        }
    }
}

impl From<anyhow::Error> for Stop {
    fn from(e: anyhow::Error) -> Self {
        Self::Final(e)
    }
}

/// Every control-plane node that the caller or the cluster named.
#[derive(Debug)]
pub(crate) struct Nodes {
    identity: Identity,
    addresses: Vec<String>,
}

impl Nodes {
    /// A group may be on any node of the cluster, not only on those that the caller knows.
    pub(crate) async fn find(connection: &Connection) -> anyhow::Result<Self> {
        let list = connection.first(|c| async move {
            AdminClient::new(c)
                .list_nodes(v1::ListNodesRequest {})
                .await
        });
        let listed = tokio::time::timeout(LIST, list)
            .await
            .context("node list")??;
        let mut addresses = connection.control.clone();
        for node in listed.nodes {
            let control = node.kind() == Kind::ControlPlane
                && !["removed", "lost"].contains(&node.state.as_str());
            if control && !node.address.is_empty() && !addresses.contains(&node.address) {
                addresses.push(node.address);
            }
        }
        Ok(Self {
            identity: connection.identity()?,
            addresses,
        })
    }

    /// Calls `attempt` with a channel to one node after another, or to where one points, until it is done.
    pub(crate) async fn at_leader<T>(
        &self,
        what: &str,
        mut attempt: impl AsyncFnMut(Channel) -> Result<T, Stop>,
    ) -> anyhow::Result<T> {
        let mut since = Instant::now();
        let mut turn = self.addresses.iter().cycle();
        let mut pointed = None;
        loop {
            let hinted = pointed.is_some();
            let address = pointed
                .take()
                .or_else(|| turn.next().cloned())
                .context("--control is missing")?;
            let channel = grpc::channel(&address, &self.identity)?;
            match attempt(channel).await {
                Ok(done) => return Ok(done),
                Err(Stop::Final(e)) => return Err(e.context(what.to_owned())),
                Err(Stop::Again {
                    why,
                    hint,
                    progress,
                }) => {
                    if progress {
                        since = Instant::now();
                    }
                    if since.elapsed() >= PATIENCE {
                        bail!("{what}: no progress for {PATIENCE:?}; at last: {address}: {why}");
                    }
                    // An election is waited out; two nodes that point at each other are too.
                    if hint.is_none() || hinted {
                        tokio::time::sleep(PAUSE).await;
                    }
                    pointed = hint;
                }
            }
        }
    }
}
