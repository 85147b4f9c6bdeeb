//! Whether this node still is a member, and whether its volume is what it was. A node that was removed while it was away, or that nobody
//! speaks to any more, hears of it from nobody: it asks. Removal is for good, so any member's word is enough.
use crate::{
    bootstrap,
    config::ControlPlaneConfig,
    raft::{Groups, codec},
};
use sealane_runtime::identity::Identity;
use sealane_store::{LogPosition, NodeIdentity, Store, StoreError};
use sealane_types::GroupId;
use sealane_wire::v1;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// All are asked at once; a start waits no longer than this for those that do not answer.
const ASK: Duration = Duration::from_secs(1);
/// How often a running node asks.
const LOOK: Duration = Duration::from_secs(5);

/// What the peers that answered say of a node.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// It is no member any more.
    pub(crate) removed: bool,
    /// How far it said that its logs are durable.
    durable: Vec<(GroupId, LogPosition)>,
}

impl Standing {
    /// Refuses a volume that is behind what this node once said of it: an old copy of the whole volume
    /// looks right by itself. The leaders of the groups remember.
    pub(crate) fn check(&self, store: &Store) -> Result<(), StoreError> {
        for (group, last) in &self.durable {
            store.check_against(*group, *last)?;
        }
        Ok(())
    }
}

/// Asks the configured peers, before this node takes part in anything.
pub(crate) async fn before_start(
    config: &ControlPlaneConfig,
    tls: &Identity,
    identity: &NodeIdentity,
) -> Standing {
    let peers = config.cluster.peers.iter().cloned().collect();
    ask(peers, tls, &identity.cluster_id, identity.node_id).await
}

/// Asks now and then until `stop`.
pub(crate) async fn run(
    config: ControlPlaneConfig,
    tls: Identity,
    groups: Arc<Groups>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return,
        }
        let known = groups.registry();
        let me = groups.node_id();
        let others = known
            .nodes
            .values()
            .filter(|n| n.id != me && !known.refused(n.id));
        let mut addresses: BTreeSet<String> = others.map(|n| n.address.clone()).collect();
        addresses.extend(config.cluster.peers.iter().cloned());
        if ask(addresses, &tls, groups.cluster_id(), me).await.removed {
            groups.expel();
        }
    }
}

async fn ask(
    addresses: BTreeSet<String>,
    tls: &Identity,
    cluster_id: &str,
    node_id: u64,
) -> Standing {
    let mut questions = JoinSet::new();
    for address in addresses {
        let request = v1::IdentifyRequest {
            node_id,
            cluster_id: cluster_id.to_owned(),
        };
        let (tls, cluster_id) = (tls.clone(), cluster_id.to_owned());
        questions.spawn(async move {
            let mut client = bootstrap::cluster_client(&address, &tls).ok()?;
            let reply = client.identify(request).await.ok()?.into_inner();
            (reply.cluster_id == cluster_id).then_some(reply)
        });
    }
    let mut standing = Standing::default();
    let all = async {
        while let Some(answer) = questions.join_next().await {
            let Ok(Some(reply)) = answer else { continue };
            standing.removed |= reply.removed;
            let durable = reply.durable.iter();
            standing.durable.extend(durable.filter_map(|one| {
                let last = codec::log_id_from_wire(one.last.as_ref()?);
                Some((GroupId(one.group), codec::position(&last)))
            }));
        }
    };
    let _not_all = tokio::time::timeout(ASK, all).await;
    standing
}

/// Says what to do.
pub(crate) fn say_removed(config: &ControlPlaneConfig, node_id: u64) {
    tracing::error!(
        node_id,
        data_dir = %config.data_dir.display(),
        "this node is no member of the cluster any more and does nothing: its id is never valid again. \
         The cluster needs nothing of this volume. To use this machine again stop the process, empty \
         dataDir and start it: it joins as a new node"
    );
}
