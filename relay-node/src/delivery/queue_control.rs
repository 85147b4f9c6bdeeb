//! The queue's client as the control plane of delivery.
use super::{Body, BodyError, ControlPlane, LeaseKey, Renewal, Report};
use crate::{budget::BodyBudget, kept::KeptBodies};
use futures_util::{StreamExt, TryStreamExt, stream};
use sealane_client::DeliverClient;
use sealane_types::TraceContext;
use sealane_wire::v1;
use std::time::Duration;

/// Most memory that one body takes here: the gRPC stream's window, a piece being decoded, a piece
/// being sent.
const IN_FLIGHT: u64 = 4 << 20;
/// Waiting for memory; the peer has said 354 and waits too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Streams to every control-plane node.
#[derive(Debug, Clone)]
pub struct QueueControl {
    client: DeliverClient,
    budget: BodyBudget,
    kept: KeptBodies,
}

impl QueueControl {
    /// Over this client; bodies that are not among `kept` pay from `budget`.
    pub(crate) fn new(client: DeliverClient, budget: BodyBudget, kept: KeptBodies) -> Self {
        Self {
            client,
            budget,
            kept,
        }
    }
    /// The client itself.
    pub(crate) fn client(&self) -> &DeliverClient {
        &self.client
    }
}

impl ControlPlane for QueueControl {
    async fn fetch_body(
        &self,
        key: LeaseKey,
        size: u64,
        trace: TraceContext,
    ) -> Result<Body, BodyError> {
        if let Some(body) = self.kept.get(key.id) {
            return Ok(stream::once(std::future::ready(Ok(body))).boxed());
        }
        let needed = usize::try_from(size.min(IN_FLIGHT)).unwrap_or(usize::MAX);
        let paid = self.budget.pay(needed, PATIENCE).await;
        let paid = paid.ok_or_else(|| BodyError("no memory: see bodyBudget".into()))?;
        let pieces = self
            .client
            .fetch_body(key.id, key.epoch, trace)
            .await
            .map_err(|e| BodyError(e.0))?;
        // Given back with the stream.
        Ok(pieces
            .map_err(move |e| {
                let _ = &paid;
                BodyError(e.0)
            })
            .boxed())
    }
    async fn renew(&self, key: LeaseKey) -> Renewal {
        match self.client.renew(key.id, key.epoch).await {
            sealane_client::Renewal::Renewed(length) => Renewal::Renewed(length),
            sealane_client::Renewal::Lost => Renewal::Lost,
            sealane_client::Renewal::Unknown => Renewal::Unknown,
        }
    }
    async fn report(&self, report: Report) {
        self.kept.forget(report.key.id);
        self.client.report(report.into());
    }
    async fn give_back(&self, key: LeaseKey) {
        let id = key.id.as_bytes().to_vec().into();
        self.client.give_back(vec![v1::LeaseRef {
            id,
            epoch: key.epoch,
            until_ms: 0,
        }]);
    }
}
