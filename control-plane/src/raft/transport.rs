//! The gRPC `Raft` service: what peers say to this node's groups.
//!
//! Cluster, group, sender and target of every request are checked before openraft sees it.
use super::{codec, groups::Groups, network::MAX_MESSAGE, state_machine::SnapshotData, types::*};
use futures_util::StreamExt;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, TransferLeaderRequest, VoteRequest};
use sealane_runtime::blocking;
use sealane_store::SnapshotStage;
use sealane_types::GroupId;
use sealane_wire::v1::{
    self,
    raft_server::{Raft as RaftService, RaftServer},
};
use std::{pin::Pin, sync::Arc};
use tonic::{Request, Response, Status, Streaming};

/// Serves the Raft RPCs of all groups.
#[derive(Debug, Clone)]
pub struct RaftTransport {
    groups: Arc<Groups>,
}

impl RaftTransport {
    /// The tonic service.
    pub fn server(groups: Arc<Groups>) -> RaftServer<Self> {
        RaftServer::new(Self { groups })
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// The group that a request is for, if it is from this cluster and meant for this node.
    fn group(
        &self,
        address: Option<&v1::RaftAddress>,
    ) -> Result<&super::groups::RaftGroup, Status> {
        let a = address.ok_or_else(|| Status::invalid_argument("address: missing"))?;
        if a.cluster_id != self.groups.cluster_id() {
            return Err(Status::permission_denied(
                "address.cluster_id: another cluster",
            ));
        }
        if a.to != self.groups.node_id() {
            return Err(Status::permission_denied(format!(
                "address.to: this is node {}, not {}",
                self.groups.node_id(),
                a.to
            )));
        }
        if a.from == a.to {
            return Err(Status::permission_denied("address.from: this node itself"));
        }
        if self.groups.registry().refused(a.from) {
            return Err(Status::permission_denied(format!(
                "address.from: node {} was removed from this cluster",
                a.from
            )));
        }
        if self.groups.removed() {
            return Err(Status::permission_denied("this node was removed"));
        }
        self.groups.raft_group(GroupId(a.group)).ok_or_else(|| {
            Status::failed_precondition(format!("address.group: no group {}", a.group))
        })
    }

    /// The same where this node may vote: nobody needs the vote of one that the group's leader left out, and
    /// its replica may have been emptied.
    fn voter(
        &self,
        address: Option<&v1::RaftAddress>,
    ) -> Result<&super::groups::RaftGroup, Status> {
        let group = self.group(address)?;
        if self
            .groups
            .registry()
            .left_out(group.id, self.groups.node_id())
        {
            return Err(Status::failed_precondition(
                "address.to: no member of this group",
            ));
        }
        Ok(group)
    }
}

fn bad(e: std::io::Error) -> Status {
    Status::invalid_argument(e.to_string())
}

fn stopped(e: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("raft stopped: {e}"))
}

fn append_request(r: v1::AppendRequest) -> std::io::Result<AppendEntriesRequest<TypeConfig>> {
    Ok(AppendEntriesRequest {
        vote: codec::vote_from_wire(r.vote)?,
        prev_log_id: r.prev.as_ref().map(codec::log_id_from_wire),
        entries: r
            .entries
            .into_iter()
            .map(codec::entry_from_wire)
            .collect::<std::io::Result<_>>()?,
        leader_commit: r.leader_commit.as_ref().map(codec::log_id_from_wire),
    })
}

fn append_reply(r: openraft::raft::StreamAppendResult<TypeConfig>) -> v1::AppendReply {
    use v1::append_reply::Kind;
    match r {
        Ok(matched) => v1::AppendReply {
            kind: Kind::Success.into(),
            matched: matched.as_ref().map(codec::wire_log_id),
            vote: None,
        },
        Err(StreamAppendError::Conflict(at)) => v1::AppendReply {
            kind: Kind::Conflict.into(),
            matched: Some(codec::wire_log_id(&at)),
            vote: None,
        },
        Err(StreamAppendError::HigherVote(v)) => v1::AppendReply {
            kind: Kind::HigherVote.into(),
            matched: None,
            vote: Some(codec::wire_vote(&v)),
        },
    }
}

fn vote_request(r: v1::VoteRequest) -> std::io::Result<VoteRequest<TypeConfig>> {
    Ok(VoteRequest {
        vote: codec::vote_from_wire(r.vote)?,
        last_log_id: r.last_log.as_ref().map(codec::log_id_from_wire),
        leadership_transfer: r.leadership_transfer,
    })
}

fn vote_reply(r: &openraft::raft::VoteResponse<TypeConfig>) -> v1::VoteReply {
    v1::VoteReply {
        vote: Some(codec::wire_vote(&r.vote)),
        granted: r.vote_granted,
        last_log: r.last_log_id.as_ref().map(codec::wire_log_id),
    }
}

#[tonic::async_trait]
impl RaftService for RaftTransport {
    type AppendStream =
        Pin<Box<dyn futures_util::Stream<Item = Result<v1::AppendReply, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<v1::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let mut frames = request.into_inner();
        // The first frame tells the group; the rest must be for the same one.
        let Some(first) = frames.message().await? else {
            return Ok(Response::new(Box::pin(futures_util::stream::empty())));
        };
        let group = self.group(first.address.as_ref())?;
        let raft = group.raft();
        let address = first.address.clone();
        let groups = self.groups.clone();
        let from = address.as_ref().map_or(0, |a| a.from);
        let first = append_request(first).map_err(bad)?;
        let rest = frames
            .take_while(|f| std::future::ready(f.is_ok()))
            .filter_map(move |f| {
                let request = f
                    .ok()
                    .filter(|f| f.address == address && !groups.registry().refused(from))
                    .and_then(|f| append_request(f).ok());
                if request.is_none() {
                    tracing::warn!(
                        from,
                        "append frame refused: malformed, for another group or of a removed node"
                    );
                }
                std::future::ready(Some(request))
            })
            // A bad frame ends the stream; the sender starts a new one.
            .take_while(|r| std::future::ready(r.is_some()))
            .filter_map(std::future::ready);
        let input = futures_util::stream::once(std::future::ready(first)).chain(rest);
        let group = self.groups.shared_group(group.id);
        let output = raft.stream_append(input).map(move |r| {
            if let (Ok(Ok(_) | Err(StreamAppendError::Conflict(_))), Some(group)) = (&r, &group) {
                group.note_leader();
            }
            r.map(append_reply).map_err(stopped)
        });
        Ok(Response::new(Box::pin(output)))
    }

    async fn vote(
        &self,
        request: Request<v1::VoteRequest>,
    ) -> Result<Response<v1::VoteReply>, Status> {
        let r = request.into_inner();
        let group = self.voter(r.address.as_ref())?;
        let reply = group
            .raft()
            .vote(vote_request(r).map_err(bad)?)
            .await
            .map_err(stopped)?;
        Ok(Response::new(vote_reply(&reply)))
    }

    async fn pre_vote(
        &self,
        request: Request<v1::VoteRequest>,
    ) -> Result<Response<v1::VoteReply>, Status> {
        let r = request.into_inner();
        let group = self.voter(r.address.as_ref())?;
        let reply = group
            .raft()
            .pre_vote(vote_request(r).map_err(bad)?)
            .await
            .map_err(stopped)?;
        Ok(Response::new(vote_reply(&reply)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotFrame>>,
    ) -> Result<Response<v1::SnapshotReply>, Status> {
        use v1::snapshot_frame::Frame;
        let mut frames = request.into_inner();
        let Some(v1::SnapshotFrame {
            frame: Some(Frame::Header(header)),
        }) = frames.message().await?
        else {
            return Err(Status::invalid_argument(
                "frame: the first must be a header",
            ));
        };
        if header.format != 1 {
            return Err(Status::failed_precondition(format!(
                "header.format: {} is not known",
                header.format
            )));
        }
        let group = self.group(header.address.as_ref())?;
        let vote = codec::vote_from_wire(header.vote).map_err(bad)?;
        let membership =
            codec::membership_from_wire(header.membership.unwrap_or_default()).map_err(bad)?;
        let meta = SnapshotMeta {
            last_log_id: header.last_applied.as_ref().map(codec::log_id_from_wire),
            last_membership: StoredMembership::new(
                header.membership_id.as_ref().map(codec::log_id_from_wire),
                membership,
            ),
        };
        let mut stage: SnapshotStage = blocking::in_place(|| group.store.stage_snapshot())
            .map_err(|e| Status::internal(e.to_string()))?;
        let staged = loop {
            match frames.message().await?.and_then(|f| f.frame) {
                Some(Frame::Records(batch)) => {
                    stage = blocking::run(move || {
                        let records = batch
                            .records
                            .into_iter()
                            .map(|r| {
                                let table = u8::try_from(r.table)
                                    .map_err(|_| "records.table: out of range".to_owned())?;
                                Ok(sealane_store::SnapshotRecord {
                                    table,
                                    key: r.key,
                                    value: r.value,
                                })
                            })
                            .collect::<Result<Vec<_>, String>>()?;
                        stage
                            .write(&records, batch.crc32c)
                            .map_err(|e| e.to_string())?;
                        Ok::<_, String>(stage)
                    })
                    .await
                    .map_err(|e| Status::internal(e.to_string()))?
                    .map_err(Status::data_loss)?;
                }
                Some(Frame::End(end)) => {
                    break blocking::run(move || stage.finish(end.records, &end.sha256))
                        .await
                        .map_err(|e| Status::internal(e.to_string()))?
                        .map_err(|e| Status::data_loss(e.to_string()))?;
                }
                Some(Frame::Header(_)) => {
                    return Err(Status::invalid_argument("frame: a second header"));
                }
                None => return Err(Status::data_loss("snapshot ended early")),
            }
        };
        let snapshot = openraft::type_config::alias::SnapshotOf::<TypeConfig, SnapshotData> {
            meta,
            snapshot: SnapshotData::Incoming(staged),
        };
        let reply = group
            .raft()
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(stopped)?;
        Ok(Response::new(v1::SnapshotReply {
            vote: Some(codec::wire_vote(&reply.vote)),
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderReply>, Status> {
        let r = request.into_inner();
        let group = self.group(r.address.as_ref())?;
        let from = codec::vote_from_wire(r.from).map_err(bad)?;
        let request = TransferLeaderRequest::new(
            from,
            r.to,
            r.last_log.as_ref().map(codec::log_id_from_wire),
        );
        let result = group
            .raft()
            .handle_transfer_leader(request)
            .await
            .map_err(stopped)?;
        let vote = group.raft().metrics().borrow_watched().vote;
        Ok(Response::new(v1::TransferLeaderReply {
            vote: Some(codec::wire_vote(&vote)),
            accepted: result.is_ok(),
        }))
    }
}
