//! Asks the dealer for messages per minute to hand to relays, for the destinations of this node's
//! shards that wait for them. Relays ask again when a message begins: their tokens are the limit,
//! these keep what cannot begin yet out of the relays.
use crate::{background::dispatch::Dispatch, service::shares::DealerDesk};
use sealane_runtime::{
    grpc,
    identity::{Identity, Role},
};
use sealane_shares::{Need, PerKind, TOKENS_VALID_MS};
use sealane_wire::v1::{self, queue_client::QueueClient};
use std::{sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Between questions; also how soon a new leadership is noticed.
const PAUSE: Duration = Duration::from_millis(100);
/// For an answer.
const PATIENCE: Duration = Duration::from_millis(700);

/// The one task that asks.
#[derive(Debug)]
pub(crate) struct TokenKeeper {
    pub(crate) dispatch: Dispatch,
    pub(crate) desk: Arc<DealerDesk>,
    pub(crate) identity: Identity,
    /// Our name.
    pub(crate) name: String,
}

impl TokenKeeper {
    /// Runs until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let session = rand::random();
        let mut sequence = 0;
        let mut dealer = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.dispatch.more_short() => {}
                () = sleep(PAUSE) => {}
            }
            self.desk.look();
            let short = self.dispatch.short();
            if short.is_empty() {
                continue;
            }
            sequence += 1;
            let needs = short.iter().map(|s| {
                let tokens = PerKind {
                    leases: s.tokens,
                    ..PerKind::default()
                };
                let need = Need {
                    tokens,
                    ..Need::default()
                };
                v1::ShareNeed::of(&s.destination, need)
            });
            let request = v1::ShareRequest {
                session,
                sequence,
                needs: needs.collect(),
            };
            let asked = self.dispatch.steady_ms();
            match self.ask(request, &mut dealer).await {
                Ok(reply) => {
                    let until = asked.saturating_add(TOKENS_VALID_MS);
                    for (s, share) in short.iter().zip(&reply.shares) {
                        self.dispatch
                            .tokens(&s.destination, share.lease_tokens, until);
                    }
                }
                Err(e) => {
                    dealer = None;
                    tracing::debug!(error = %format!("{e:#}"), "no tokens dealt");
                }
            }
            // What came meanwhile is asked together.
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(PAUSE) => {}
            }
        }
    }

    async fn ask(
        &self,
        request: v1::ShareRequest,
        dealer: &mut Option<(String, QueueClient<Channel>)>,
    ) -> anyhow::Result<v1::ShareReply> {
        let me = format!("{}/{}", Role::Control.as_str(), self.name);
        let here = self.desk.deal(&me, &request)?;
        if here.dealer {
            return Ok(here);
        }
        let address = here.dealer_address;
        anyhow::ensure!(!address.is_empty(), "group 0 has no leader");
        let client = match dealer {
            Some((of, client)) if *of == address => client,
            _ => {
                let client = QueueClient::new(grpc::channel(&address, &self.identity)?);
                &mut dealer.insert((address, client)).1
            }
        };
        let reply = timeout(PATIENCE, client.deal_shares(request))
            .await??
            .into_inner();
        anyhow::ensure!(reply.dealer, "it does not lead group 0");
        Ok(reply)
    }
}
