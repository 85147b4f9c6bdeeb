//! Tells relays which shards this node leads, and spreads leadership over the nodes.
use crate::raft::Groups;
use sealane_types::GroupId;
use sealane_wire::v1;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often leadership is looked at. Claims are hints: a proposal is refused if they are stale.
const LOOK: Duration = Duration::from_millis(25);
/// How often one leadership may be handed over for balance.
const BALANCE: Duration = Duration::from_secs(1);
/// A shard that just elected its leader keeps it for this long.
const SETTLE: Duration = Duration::from_secs(5);

/// The shards that this node leads and can commit to.
#[derive(Debug, Clone)]
pub(crate) struct LeaderClaims(Arc<watch::Sender<Arc<v1::Leading>>>);

impl LeaderClaims {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Arc::default())))
    }
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<v1::Leading>> {
        self.0.subscribe()
    }

    fn update(&self, claims: Vec<v1::LeaderClaim>) {
        self.0.send_if_modified(|old| {
            let changed = old.claims != claims;
            if changed {
                *old = Arc::new(v1::Leading { claims });
            }
            changed
        });
    }
}

/// Watches until `stop`; then claims nothing.
pub(crate) async fn run(groups: Arc<Groups>, claims: LeaderClaims, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut next_balance = tokio::time::Instant::now() + BALANCE;
    let mut since: BTreeMap<GroupId, (u64, tokio::time::Instant)> = BTreeMap::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => break,
        }
        let mut led = Vec::new();
        for group in groups.iter() {
            match group.leading() {
                Some(term) => {
                    let now = tokio::time::Instant::now();
                    let entry = since.entry(group.id()).or_insert((term, now));
                    if entry.0 != term {
                        *entry = (term, now);
                    }
                    if group.id() != GroupId::META {
                        led.push(v1::LeaderClaim {
                            shard: group.id().0,
                            term,
                        });
                    }
                }
                None => {
                    since.remove(&group.id());
                }
            }
        }
        claims.update(led);
        if tokio::time::Instant::now() >= next_balance {
            next_balance = tokio::time::Instant::now() + BALANCE;
            balance(&groups, &since).await;
        }
    }
    claims.update(Vec::new());
}

/// Hands over at most one group: to the voter that the placement prefers, if that one has everything.
async fn balance(groups: &Groups, since: &BTreeMap<GroupId, (u64, tokio::time::Instant)>) {
    for (id, (_, at)) in since {
        let Some(group) = groups.group(*id).filter(|_| at.elapsed() >= SETTLE) else {
            continue;
        };
        let view = group.view();
        let wanted = groups.registry().preferred(*id);
        let Some(preferred) = wanted.filter(|n| view.voters.contains(n)) else {
            continue;
        };
        let lag = view
            .matched
            .get(&preferred)
            .map(|m| view.last_log.saturating_sub(*m));
        if preferred != groups.node_id() && view.uniform && lag.is_some_and(|l| l <= 64) {
            tracing::info!(group = %id, to = preferred, "handing leadership over for balance");
            group.transfer_to(preferred).await;
            return;
        }
    }
}
