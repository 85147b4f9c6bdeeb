//! `Backup`: a group's state to an operator, and back into a fresh cluster (see [`super::restore`]).
//!
//! Whoever reads it reads bodies and password verifiers: role admin only, and audited before the first
//! octet leaves.
use super::{cluster::Proposer, restore};
use crate::raft::{Group, Groups, ProposeError, codec};
use sealane_runtime::identity::WorkloadId;
use sealane_store::{Export, StoreError};
use sealane_types::GroupId;
use sealane_wire::v1::{
    self, backup_server::Backup as BackupService, command::Op, command_reply::Result as Answer,
    export_frame::Frame,
};
use std::{
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::spawn_blocking,
    time::timeout,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

/// Exports at once: each pins a state of the database, and takes about 4 MiB.
const EXPORTS: usize = 4;
/// A quorum confirms leadership within this.
const CONFIRM: Duration = Duration::from_secs(5);
/// The reader of an export takes a frame within this, or the pinned state is let go.
const TAKE: Duration = Duration::from_secs(60);
/// Octets of the reason why everything restored is held.
const REASON: usize = 200;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct BackupRpc {
    pub(super) groups: Arc<Groups>,
    proposer: Proposer,
    cluster_name: String,
    exports: Arc<Semaphore>,
    pub(super) disk_full: Arc<AtomicBool>,
    pub(super) closing: Arc<AtomicBool>,
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Who calls, for the audit.
fn actor<T>(request: &Request<T>) -> String {
    let workload = request.extensions().get::<WorkloadId>();
    workload.map(ToString::to_string).unwrap_or_default()
}

pub(super) fn refusal(r: &v1::Refused) -> Status {
    Status::failed_precondition(format!("{}: {}", r.field, r.reason))
}

impl BackupRpc {
    pub(crate) fn new(
        groups: Arc<Groups>,
        proposer: Proposer,
        cluster_name: String,
        (disk_full, closing): (Arc<AtomicBool>, Arc<AtomicBool>),
    ) -> Self {
        Self {
            groups,
            proposer,
            cluster_name,
            exports: Arc::new(Semaphore::new(EXPORTS)),
            disk_full,
            closing,
        }
    }

    /// The group if it is here; `None` if it is elsewhere.
    pub(super) fn local(&self, group: u32) -> Result<Option<Group>, Status> {
        if group > self.groups.shards() {
            return Err(Status::invalid_argument(format!(
                "group: there are 0 to {}",
                self.groups.shards()
            )));
        }
        Ok(self.groups.group(GroupId(group)))
    }

    fn header(&self) -> v1::BackupHeader {
        v1::BackupHeader {
            cluster_id: self.groups.cluster_id().to_owned(),
            cluster_name: self.cluster_name.clone(),
            shards: self.groups.shards(),
            replicas: self.groups.replicas(),
            created_at_ms: self.groups.clock().wall_ms(),
            software: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// In group 0, durably.
    async fn audit(&self, actor: String, action: &str, detail: String) -> Result<(), Status> {
        let op = Op::Audit(v1::AuditOp {
            actor,
            action: action.to_owned(),
            detail,
        });
        let committed = self.proposer.propose(GroupId::META, op).await?;
        match committed.reply.result {
            Some(Answer::Audited(_)) => Ok(()),
            _ => Err(Status::internal("unexpected answer of the state machine")),
        }
    }

    /// Blocks; ends when everything is sent or the reader is gone.
    fn send(&self, group: &Group, tx: &mpsc::Sender<Result<v1::ExportFrame, Status>>) {
        let runtime = Handle::current();
        let put = |item| {
            let sent = runtime.block_on(timeout(TAKE, tx.send(item)));
            sent.map_err(|_| ExportError::TooSlow)?
                .map_err(|_| ExportError::ReaderGone)
        };
        let done = group.store().export(|part| {
            let frame = match part {
                Export::Start(applied) => Frame::Start(v1::ExportStart {
                    cluster: Some(self.header()),
                    group: Some(v1::BackupGroup {
                        group: group.id().0,
                        term: applied.last.map_or(0, |p| p.term),
                        index: applied.last.map_or(0, |p| p.index),
                    }),
                }),
                Export::Batch(records, crc) => Frame::Records(codec::wire_records(records, crc)),
                Export::End(records, sha256) => Frame::End(codec::wire_end(records, sha256)),
            };
            put(Ok(v1::ExportFrame { frame: Some(frame) }))
        });
        match done {
            Ok(()) => tracing::info!(group = %group.id(), "group exported"),
            Err(ExportError::Store(e)) => {
                tracing::error!(group = %group.id(), error = %e, "state unreadable: not exported");
                let _ = put(Err(Status::data_loss(format!("state unreadable: {e}"))));
            }
            Err(e) => tracing::warn!(group = %group.id(), error = %e, "export ended early"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the reader is gone")]
    ReaderGone,
    #[error("the reader took nothing for {TAKE:?}")]
    TooSlow,
}

/// Where to ask, as far as this node knows.
pub(super) fn elsewhere(group: Option<&Group>, leader: Option<u64>) -> v1::AskElsewhere {
    let address = |group: &Group| group.members().get(&leader?).cloned();
    v1::AskElsewhere {
        leader: leader.unwrap_or(0),
        address: group.and_then(address).unwrap_or_default(),
    }
}

/// The leader that this node believes in, unless it is itself.
pub(super) fn other_leader(groups: &Groups, group: &Group) -> Option<u64> {
    group.view().leader.filter(|l| *l != groups.node_id())
}

#[tonic::async_trait]
impl BackupService for BackupRpc {
    type ExportStream = Out<v1::ExportFrame>;
    type RestoreShardStream = Out<v1::RestoreReply>;

    async fn export(
        &self,
        request: Request<v1::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let actor = actor(&request);
        let number = request.into_inner().group;
        let local = self.local(number)?;
        let redirect = |group: Option<&Group>, leader| {
            let frame = Some(Frame::Elsewhere(elsewhere(group, leader)));
            let one = tokio_stream::once(Ok(v1::ExportFrame { frame }));
            Ok(Response::new(Box::pin(one) as Self::ExportStream))
        };
        let Some(group) = local else {
            return redirect(None, None);
        };
        if !group.is_leader() {
            return redirect(Some(&group), other_leader(&self.groups, &group));
        }
        let permit: OwnedSemaphorePermit = self
            .exports
            .clone()
            .try_acquire_owned()
            .map_err(|_| Status::unavailable(format!("{EXPORTS} exports run on this node")))?;
        self.audit(actor, "backup.export", format!("group {number}"))
            .await?;
        match timeout(CONFIRM, group.confirm_leading()).await {
            Ok(Ok(())) => {}
            Ok(Err(ProposeError::NotLeader { leader })) => return redirect(Some(&group), leader),
            Ok(Err(e)) => return Err(Status::unavailable(e.to_string())),
            Err(_) => return Err(Status::unavailable("no quorum confirms the leader")),
        }
        let (tx, rx) = mpsc::channel(2);
        let service = self.clone();
        spawn_blocking(move || {
            service.send(&group, &tx);
            drop(permit);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn restore_cluster(
        &self,
        request: Request<v1::RestoreClusterRequest>,
    ) -> Result<Response<v1::RestoreClusterReply>, Status> {
        let actor = actor(&request);
        let r = request.into_inner();
        for (n, document) in r.documents.iter().enumerate() {
            sealane_policy::Document::from_wire(document)
                .map_err(|e| Status::invalid_argument(format!("documents[{n}]: {e}")))?;
        }
        let op = Op::RestoreCluster(v1::RestoreClusterOp {
            backup: r.backup,
            step: r.step,
            source_cluster: r.source_cluster,
            hold: sealane_types::sanitize(r.hold.as_bytes(), REASON),
            documents: r.documents,
            policy_revision: r.policy_revision,
            messages: r.messages,
            actor,
        });
        let committed = self.proposer.propose(GroupId::META, op).await?;
        match committed.reply.result {
            Some(Answer::Restore(record)) => Ok(Response::new(v1::RestoreClusterReply {
                record: Some(*record),
            })),
            Some(Answer::Refused(r)) => Err(refusal(&r)),
            _ => Err(Status::internal("unexpected answer of the state machine")),
        }
    }

    async fn restore_shard(
        &self,
        request: Request<Streaming<v1::RestoreFrame>>,
    ) -> Result<Response<Self::RestoreShardStream>, Status> {
        let replies = restore::serve(self, request.into_inner()).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }
}
