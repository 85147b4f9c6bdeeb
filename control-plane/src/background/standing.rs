//! Whether this node still is a member, whether its volume is what it was, and what time it is. A node
//! that was removed while it was away, or that nobody speaks to any more, hears of it from nobody: it asks.
//! Removal is for good, so any member's word is enough; of the time, see [`sealane_runtime::clock`].
use crate::{
    bootstrap,
    config::ControlPlaneConfig,
    metrics::Metrics,
    raft::{Groups, codec},
};
use sealane_runtime::{blocking, clock::Clock, identity::Identity};
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
/// What others said of the time is believed for this long: several questions may be lost.
pub(crate) const FRESH: Duration = Duration::from_secs(60);
/// And while nobody has told it what time it is.
const SOON: Duration = Duration::from_millis(500);

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
    /// looks right by itself. Those who lead or led the groups remember.
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
    clock: &Arc<Clock>,
) -> Standing {
    let peers = config.cluster.peers.iter().cloned().collect();
    ask(peers, tls, (&identity.cluster_id, identity.node_id), clock).await
}

/// Asks now and then until `stop`.
pub(crate) async fn run(
    config: ControlPlaneConfig,
    tls: Identity,
    (groups, clock): (Arc<Groups>, Arc<Clock>),
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    loop {
        // Who was alone at its start asks sooner.
        let pause = if clock.is_compared() { LOOK } else { SOON };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
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
        blocking::in_place(|| remember(&groups));
        let asked = ask(addresses, &tls, (groups.cluster_id(), me), &clock).await;
        if asked.removed {
            groups.expel();
        }
        let wrong = clock.wrong_by_ms();
        metrics.clock(wrong);
        if wrong != 0 {
            tracing::warn!(
                wrong_by_ms = wrong,
                "this machine's clock is not what most nodes' clocks show: it is not gone by. Mend its time"
            );
        }
    }
}

/// Leaders write down what others can never be without again: whoever leads later, and after all were
/// restarted, can still tell a node that its volume is an old copy.
fn remember(groups: &Groups) {
    for group in groups.iter() {
        let Some(now) = group.witnessed() else {
            continue;
        };
        let store = group.store();
        let saved = store.read_witnessed().and_then(|before| {
            let mut of = now;
            for (node, last) in &mut of {
                *last = before.get(node).map_or(*last, |b| (*last).max(*b));
            }
            if of == before {
                return Ok(());
            }
            store.save_witnessed(&of)
        });
        if let Err(e) = saved {
            tracing::warn!(group = %group.id(), error = %e, "not remembered how far other nodes' logs are");
        }
    }
}

async fn ask(
    addresses: BTreeSet<String>,
    tls: &Identity,
    (cluster_id, node_id): (&str, u64),
    clock: &Arc<Clock>,
) -> Standing {
    let mut questions = JoinSet::new();
    for address in addresses {
        let request = v1::IdentifyRequest {
            node_id,
            cluster_id: cluster_id.to_owned(),
        };
        let (tls, cluster_id, clock) = (tls.clone(), cluster_id.to_owned(), clock.clone());
        questions.spawn(async move {
            let mut client = bootstrap::cluster_client(&address, &tls).ok()?;
            let asked = clock.steady_ms();
            let reply = client.identify(request).await.ok()?.into_inner();
            if reply.cluster_id != cluster_id {
                return None;
            }
            if reply.node_id != node_id && reply.now_ms > 0 {
                clock.heard(reply.node_id, reply.now_ms, (asked, clock.steady_ms()));
            }
            Some(reply)
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
