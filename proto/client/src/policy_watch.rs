//! The policy in force, followed from any node of the control plane.
use crate::{backoff::Backoff, members::Members};
use sealane_policy::PolicySnapshot;
use sealane_wire::v1::{self, policy_client::PolicyClient};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A set carries every document of the cluster.
const MAX_SET: usize = 64 << 20;
/// A node that says nothing for this long after the call is passed over.
const FIRST: Duration = Duration::from_secs(5);

/// Keeps the last policy when the stream is lost, and says so in the log.
#[derive(Debug)]
pub struct PolicyWatch;

impl PolicyWatch {
    /// Follows the policy until `stop`; `None` until a set arrived that somebody applied. What a node says
    /// before that, revision 0, is no policy: who took it for one would refuse all mail for good (550) while
    /// the cluster is set up.
    pub fn start(
        name: &str,
        members: Members,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> watch::Receiver<Option<Arc<PolicySnapshot>>> {
        let (tx, rx) = watch::channel(None);
        let name = name.to_owned();
        tasks.spawn(async move { stop.run_until_cancelled(follow(name, members, tx)).await });
        rx
    }
}

async fn follow(name: String, members: Members, tx: watch::Sender<Option<Arc<PolicySnapshot>>>) {
    let mut backoff = Backoff::connect();
    let mut turn = 0usize;
    loop {
        let addresses = members.addresses();
        let Some(address) = addresses.get(turn % addresses.len().max(1)) else {
            return;
        };
        turn = turn.wrapping_add(1);
        match watch_one(&name, &members, address, &tx, &mut backoff).await {
            Ok(()) => {
                tracing::info!(%address, "policy stream ended; the last policy stays in force")
            }
            Err(e) => {
                tracing::info!(%address, error = %e, "no policy stream; the last policy stays in force")
            }
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

async fn watch_one(
    name: &str,
    members: &Members,
    address: &str,
    tx: &watch::Sender<Option<Arc<PolicySnapshot>>>,
    backoff: &mut Backoff,
) -> anyhow::Result<()> {
    let mut client = PolicyClient::new(members.dial(address)?).max_decoding_message_size(MAX_SET);
    let request = v1::PolicyWatchRequest {
        watcher: name.to_owned(),
    };
    let mut sets = tokio::time::timeout(FIRST, client.watch(request))
        .await??
        .into_inner();
    let mut first = true;
    loop {
        let set = if first {
            tokio::time::timeout(FIRST, sets.message()).await??
        } else {
            sets.message().await?
        };
        let Some(set) = set else { return Ok(()) };
        first = false;
        backoff.reset();
        // A node that lags behind does not take us back, and before the first policy there is none.
        let known = tx.borrow().as_ref().map_or(0, |now| now.revision());
        if set.revision <= known {
            if known == 0 {
                tracing::info!(%address, "nobody applied a policy yet: not ready, no mail is taken");
            }
            continue;
        }
        match PolicySnapshot::from_wire(&set) {
            Ok(snapshot) => {
                tracing::info!(revision = snapshot.revision(), "policy in force");
                tx.send_replace(Some(Arc::new(snapshot)));
            }
            Err(e) => {
                tracing::error!(revision = set.revision, error = %e, "policy not understood; the last one stays")
            }
        }
    }
}
