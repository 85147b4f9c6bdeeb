//! The queue's client as the control plane of delivery.
use super::{Body, BodyError, ControlPlane, LeaseKey, Renewal, Report};
use futures_util::{StreamExt, TryStreamExt};
use sealane_client::DeliverClient;
use sealane_types::TraceContext;
use sealane_wire::v1;

/// Streams to every control-plane node.
#[derive(Debug, Clone)]
pub struct QueueControl {
    client: DeliverClient,
}

impl QueueControl {
    /// Over this client.
    pub fn new(client: DeliverClient) -> Self {
        Self { client }
    }
    /// The client itself.
    pub(crate) fn client(&self) -> &DeliverClient {
        &self.client
    }
}

impl ControlPlane for QueueControl {
    async fn fetch_body(&self, key: LeaseKey, trace: TraceContext) -> Result<Body, BodyError> {
        let pieces = self
            .client
            .fetch_body(key.id, key.epoch, trace)
            .await
            .map_err(|e| BodyError(e.0))?;
        Ok(pieces.map_err(|e| BodyError(e.0)).boxed())
    }
    async fn renew(&self, key: LeaseKey) -> Renewal {
        match self.client.renew(key.id, key.epoch).await {
            sealane_client::Renewal::Renewed(length) => Renewal::Renewed(length),
            sealane_client::Renewal::Lost => Renewal::Lost,
            sealane_client::Renewal::Unknown => Renewal::Unknown,
        }
    }
    async fn report(&self, report: Report) {
        self.client.report(report.into());
    }
    async fn give_back(&self, key: LeaseKey) {
        let id = key.id.as_bytes().to_vec().into();
        self.client.give_back(vec![v1::LeaseRef {
            id,
            epoch: key.epoch,
        }]);
    }
}
