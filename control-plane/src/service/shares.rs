//! `Queue.DealShares`: the dealer of the cluster, on the node that leads group 0.
use crate::{metrics::Metrics, policy_view::PolicyView, raft::Groups};
use sealane_shares::{Ask, Dealer, Limit, Timing, VALID_MS};
use sealane_types::DomainName;
use sealane_wire::v1;
use std::{
    sync::{Arc, Mutex},
    time::Instant,
};
use tonic::Status;

/// Destinations in one question.
const MOST: usize = 100_000;

/// The dealer of the last term in which this node led group 0; it deals while it leads.
#[derive(Debug)]
pub(crate) struct DealerDesk {
    groups: Arc<Groups>,
    policy: PolicyView,
    metrics: Arc<Metrics>,
    /// Zero of the dealer's clock.
    zero: Instant,
    /// With the term of group 0 for which it deals.
    dealer: Mutex<Option<(u64, Dealer)>>,
}

impl DealerDesk {
    pub(crate) fn new(groups: Arc<Groups>, policy: PolicyView, metrics: Arc<Metrics>) -> Self {
        Self {
            groups,
            policy,
            metrics,
            zero: Instant::now(),
            dealer: Mutex::default(),
        }
    }

    /// Answers `holder`, which is one process; its run is in the request.
    pub(crate) fn deal(
        &self,
        holder: &str,
        request: &v1::ShareRequest,
    ) -> Result<v1::ShareReply, Status> {
        check(request)?;
        let policy = self.policy.current().parsed;
        let limits = |destination: &str| {
            let l = policy.destination(destination).limits;
            Limit {
                connections: l.connections,
                connections_per_minute: l.connections_per_minute,
                messages_per_minute: l.messages_per_minute,
            }
        };
        let asks = request.needs.iter().map(|n| Ask {
            destination: &n.destination,
            need: n.need(),
        });
        let holder = format!("{holder}/{:016x}", request.session);
        let mut desk = self.dealer.lock().expect("no panic while held");
        let Some((term, dealer)) = self.current(&mut desk) else {
            return Ok(self.elsewhere());
        };
        let now = self.now_ms();
        let Some(grants) = dealer.answer(&holder, request.sequence, asks, now, limits) else {
            return Err(Status::aborted("sequence: a later question was answered"));
        };
        self.metrics.dealt(dealer.destinations());
        Ok(v1::ShareReply {
            dealer: true,
            dealer_address: String::new(),
            term: *term,
            valid_ms: VALID_MS,
            shares: grants.into_iter().map(Into::into).collect(),
        })
    }

    /// Begins to deal with a new leadership. Asked often: the sooner a dealer begins, the sooner it knows
    /// what everybody holds.
    pub(crate) fn look(&self) {
        let mut desk = self.dealer.lock().expect("no panic while held");
        let dealing = self.current(&mut desk).is_some();
        self.metrics.dealer(dealing);
    }

    fn current<'a>(&self, desk: &'a mut Option<(u64, Dealer)>) -> Option<&'a mut (u64, Dealer)> {
        let meta = self.groups.meta();
        // A leader that waits for its quorum may lead on in the same term: nobody else dealt in it.
        let term = meta.leads()?;
        if desk.as_ref().is_none_or(|(of, _)| *of != term) {
            tracing::info!(term, "dealing the shares of destinations");
            let overlap = u64::try_from(meta.overlap().as_millis()).unwrap_or(u64::MAX);
            let dealer = Dealer::new(self.now_ms(), Timing::with_overlap(overlap));
            *desk = Some((term, dealer));
        }
        desk.as_mut()
    }

    fn elsewhere(&self) -> v1::ShareReply {
        let meta = self.groups.meta();
        let leader = meta.view().leader.filter(|n| *n != self.groups.node_id());
        let address = leader.and_then(|n| meta.members().remove(&n));
        v1::ShareReply {
            dealer: false,
            dealer_address: address.unwrap_or_default(),
            ..v1::ShareReply::default()
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.zero.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn check(request: &v1::ShareRequest) -> Result<(), Status> {
    if request.needs.len() > MOST {
        return Err(Status::invalid_argument(format!("needs: more than {MOST}")));
    }
    for need in &request.needs {
        let name = &need.destination;
        let lower = DomainName::parse(name).is_ok_and(|d| d.as_str() == name);
        if !lower {
            return Err(Status::invalid_argument(
                "needs.destination: not a lower-case domain",
            ));
        }
    }
    Ok(())
}
