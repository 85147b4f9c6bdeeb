//! `Queue`: the RPCs of relay nodes.
use super::{deliver::DeliverDesk, shares::DealerDesk, submit::SubmitDesk};
use crate::raft::{Group, Groups};
use sealane_runtime::{
    blocking::{self, Outlet},
    identity::WorkloadId,
};
use sealane_state::queries;
use sealane_types::MessageId;
use sealane_wire::{
    message_id,
    v1::{self, queue_server::Queue as QueueService},
};
use std::{pin::Pin, sync::Arc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct QueueRpc {
    pub(crate) groups: Arc<Groups>,
    pub(crate) submit: Arc<SubmitDesk>,
    pub(crate) deliver: Arc<DeliverDesk>,
    pub(crate) dealer: Arc<DealerDesk>,
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a relay hears first, and again when the nodes change.
pub(super) fn hello(groups: &Groups) -> v1::ServerHello {
    let registry = groups.registry();
    v1::ServerHello {
        node_id: groups.node_id(),
        cluster_id: groups.cluster_id().to_owned(),
        shards: groups.shards(),
        control_addresses: registry.addresses(),
        registry_revision: registry.revision,
        now_ms: groups.clock().wall_ms(),
    }
}

/// The caller, by its certificate, and of several with the same one by the name that it said.
fn caller<T>(request: &Request<T>) -> Result<&WorkloadId, Status> {
    request
        .extensions()
        .get::<WorkloadId>()
        .ok_or_else(|| Status::unauthenticated("no workload identity"))
}

fn relay_name<T>(request: &Request<T>) -> Result<String, Status> {
    caller(request).map(|w| w.name.clone())
}

#[tonic::async_trait]
impl QueueService for QueueRpc {
    type SubmitStream = Out<v1::SubmitReply>;
    type DeliverStream = Out<v1::DeliverEvent>;
    type FetchBodyStream = Out<v1::BodyPiece>;

    async fn submit(
        &self,
        request: Request<Streaming<v1::SubmitRequest>>,
    ) -> Result<Response<Self::SubmitStream>, Status> {
        let relay = relay_name(&request)?;
        let replies = self.submit.clone().serve(relay, request.into_inner());
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }

    async fn deliver(
        &self,
        request: Request<Streaming<v1::DeliverRequest>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let relay = relay_name(&request)?;
        let events = self
            .deliver
            .clone()
            .serve(relay, hello(&self.groups), request.into_inner());
        Ok(Response::new(Box::pin(ReceiverStream::new(events))))
    }

    async fn deal_shares(
        &self,
        request: Request<v1::ShareRequest>,
    ) -> Result<Response<v1::ShareReply>, Status> {
        let who = caller(&request)?;
        let holder = format!("{}/{}", who.role.as_str(), who.name);
        self.dealer
            .deal(&holder, request.get_ref())
            .map(Response::new)
    }

    /// Only the holder of the current lease reads a body.
    async fn fetch_body(
        &self,
        request: Request<v1::FetchBodyRequest>,
    ) -> Result<Response<Self::FetchBodyStream>, Status> {
        let relay = relay_name(&request)?;
        let r = request.into_inner();
        let id = message_id("id", &r.id).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let group = self
            .groups
            .group(id.shard().group())
            .ok_or_else(|| Status::not_found("id: unknown shard"))?;
        let (rx, _) = blocking::produce(2, move |out| {
            if let Err(refused) = pieces(&group, id, r.epoch, &relay, out) {
                let _ = out.send(Err(refused));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

/// Sends the parts of a body; blocks.
fn pieces(
    group: &Group,
    id: MessageId,
    epoch: u64,
    relay: &str,
    out: &mut Outlet<Result<v1::BodyPiece, Status>>,
) -> Result<(), Status> {
    let message = queries::message(&group.store().reader(), id)
        .map_err(|e| Status::internal(e.to_string()))?
        .ok_or_else(|| Status::not_found("message is finished"))?;
    if !message
        .recipients
        .iter()
        .any(|x| x.epoch == epoch && x.holder == relay)
    {
        return Err(Status::failed_precondition("epoch: the lease is over"));
    }
    for part in &message.record.body {
        let stored = group.store().read_body(part.log_index);
        let data = stored
            .map_err(|e| Status::data_loss(e.to_string()))?
            .ok_or_else(|| Status::data_loss(format!("body part {} is missing", part.log_index)))?;
        if out.send(Ok(v1::BodyPiece { data })).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
