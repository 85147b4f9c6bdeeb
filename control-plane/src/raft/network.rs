//! openraft's network over the gRPC `Raft` service.
//!
//! Connections are per peer address and shared by all groups: one for log entries, one for
//! heartbeats and votes (a large body never delays them), one for snapshots.
use super::{
    codec,
    state_machine::SnapshotData,
    types::{Entry, Peer, TypeConfig, Vote},
};
use futures_util::{Stream, StreamExt, stream};
use openraft::{
    OptionalSend, RaftNetworkFactory,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{RPCOption, v2::RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
        StreamAppendResult, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
    type_config::alias::SnapshotOf,
};
use sealane_runtime::{
    blocking::{self, Gone, Outlet},
    identity::Identity,
};
use sealane_store::{Export, GroupStore, StoreError};
use sealane_types::GroupId;
use sealane_wire::v1::{self, raft_client::RaftClient};
use std::{collections::HashMap, fmt::Display, future::Future, sync::Arc, time::Duration};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Most octets of one Raft RPC message in either direction.
pub(super) const MAX_MESSAGE: usize = 8 << 20;
/// A peer that owes an answer for this long is given up and dialled again.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// After a stream that could not be opened: this, doubled [`DOUBLINGS`] times at most.
const REFUSED: Duration = Duration::from_millis(20);
const DOUBLINGS: u32 = 4;
/// Longest a vote, heartbeat or transfer may take whatever openraft asks for.
const SHORT_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Lane {
    Log,
    Heartbeat,
    Snapshot,
}

/// Who this node is on the Raft network, and its connections.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) cluster_id: String,
    pub(super) node_id: u64,
    identity: Identity,
    channels: std::sync::Mutex<HashMap<(String, Lane), Channel>>,
}

impl Connections {
    pub(super) fn new(cluster_id: String, node_id: u64, identity: Identity) -> Arc<Self> {
        Arc::new(Self {
            cluster_id,
            node_id,
            identity,
            channels: Default::default(),
        })
    }

    fn client(
        &self,
        address: &str,
        lane: Lane,
    ) -> Result<RaftClient<Channel>, Unreachable<TypeConfig>> {
        let mut channels = self.channels.lock().expect("no panic while held");
        let channel = match channels.get(&(address.to_owned(), lane)) {
            Some(c) => c.clone(),
            None => {
                let c = sealane_runtime::grpc::channel(address, &self.identity)
                    .map_err(|e| Unreachable::from_string(format!("{address}: {e}")))?;
                channels.insert((address.to_owned(), lane), c.clone());
                c
            }
        };
        Ok(RaftClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }
}

/// Makes the clients of one group.
#[derive(Debug, Clone)]
pub(super) struct NetworkFactory {
    connections: Arc<Connections>,
    group: GroupId,
}

impl NetworkFactory {
    pub(super) fn new(connections: Arc<Connections>, group: GroupId) -> Self {
        Self { connections, group }
    }

    fn network(&self, target: u64, node: &Peer, lane: Lane) -> Network {
        let from = self.connections.node_id;
        // P16: openraft never asks for a client to itself; if it did, the peer check would refuse it.
        Network {
            connections: self.connections.clone(),
            address: node.address.clone(),
            lane,
            refused: 0,
            to: v1::RaftAddress {
                cluster_id: self.connections.cluster_id.clone(),
                group: self.group.0,
                from,
                to: target,
            },
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Network;

    async fn new_client(&mut self, target: u64, node: &Peer) -> Network {
        self.network(target, node, Lane::Log)
    }
    async fn new_heartbeat_client(&mut self, target: u64, node: &Peer) -> Network {
        self.network(target, node, Lane::Heartbeat)
    }
    async fn new_snapshot_client(&mut self, target: u64, node: &Peer) -> Network {
        self.network(target, node, Lane::Snapshot)
    }
}

/// A client of one group on one peer.
#[derive(Debug)]
pub(super) struct Network {
    connections: Arc<Connections>,
    address: String,
    lane: Lane,
    /// Append streams in a row that could not be opened.
    refused: u32,
    to: v1::RaftAddress,
}

fn rpc_error(e: impl Display) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::from_string(e))
}

/// Unavailable means the peer is down: openraft backs off.
fn status_error(s: tonic::Status) -> RPCError<TypeConfig> {
    match s.code() {
        tonic::Code::Unavailable
        | tonic::Code::PermissionDenied
        | tonic::Code::FailedPrecondition => RPCError::Unreachable(Unreachable::from_string(s)),
        _ => rpc_error(s),
    }
}

fn append_request(to: &v1::RaftAddress, r: &AppendEntriesRequest<TypeConfig>) -> v1::AppendRequest {
    v1::AppendRequest {
        address: Some(to.clone()),
        vote: Some(codec::wire_vote(&r.vote)),
        prev: r.prev_log_id.as_ref().map(codec::wire_log_id),
        entries: r
            .entries
            .iter()
            .map(|e: &Entry| codec::wire_entry(e))
            .collect(),
        leader_commit: r.leader_commit.as_ref().map(codec::wire_log_id),
    }
}

fn append_result(
    r: v1::AppendReply,
) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
    use v1::append_reply::Kind;
    let matched = r.matched.as_ref().map(codec::log_id_from_wire);
    match Kind::try_from(r.kind) {
        Ok(Kind::Success | Kind::Partial) => Ok(Ok(matched)),
        Ok(Kind::Conflict) => match matched {
            Some(at) => Ok(Err(StreamAppendError::Conflict(at))),
            None => Err(rpc_error("conflict without position")),
        },
        Ok(Kind::HigherVote) => Ok(Err(StreamAppendError::HigherVote(
            codec::vote_from_wire(r.vote).map_err(rpc_error)?,
        ))),
        _ => Err(rpc_error("append reply of unknown kind")),
    }
}

impl Network {
    fn client(&self) -> Result<RaftClient<Channel>, RPCError<TypeConfig>> {
        self.connections
            .client(&self.address, self.lane)
            .map_err(RPCError::Unreachable)
    }

    /// Opens an append stream. openraft opens the next one at once: its own pauses are in the stream of
    /// requests, which nobody reads before the peer took the call. A peer whose process is gone refuses
    /// within microseconds, so the pause has to be here.
    async fn open<S>(
        &mut self,
        requests: S,
    ) -> Result<tonic::Streaming<v1::AppendReply>, RPCError<TypeConfig>>
    where
        S: Stream<Item = v1::AppendRequest> + Send + 'static,
    {
        let mut client = self.client()?;
        let error = match tokio::time::timeout(ANSWER_DEADLINE, client.append(requests)).await {
            Ok(Ok(r)) => {
                self.refused = 0;
                return Ok(r.into_inner());
            }
            Ok(Err(s)) => status_error(s),
            Err(_) => rpc_error("no stream within the deadline"),
        };
        tokio::time::sleep(REFUSED * (1 << self.refused.min(DOUBLINGS))).await;
        self.refused = self.refused.saturating_add(1);
        Err(error)
    }

    async fn within<T>(
        deadline: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, RPCError<TypeConfig>> {
        match tokio::time::timeout(deadline, call).await {
            Ok(Ok(r)) => Ok(r.into_inner()),
            Ok(Err(s)) => Err(status_error(s)),
            Err(_) => Err(rpc_error(format!("no answer within {deadline:?}"))),
        }
    }

    fn vote_request(&self, rpc: VoteRequest<TypeConfig>) -> v1::VoteRequest {
        v1::VoteRequest {
            address: Some(self.to.clone()),
            vote: Some(codec::wire_vote(&rpc.vote)),
            last_log: rpc.last_log_id.as_ref().map(codec::wire_log_id),
            leadership_transfer: rpc.leadership_transfer,
        }
    }
}

fn vote_reply(r: v1::VoteReply) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
    let vote: Vote = codec::vote_from_wire(r.vote).map_err(rpc_error)?;
    Ok(VoteResponse::new(
        vote,
        r.last_log.as_ref().map(codec::log_id_from_wire),
        r.granted,
    ))
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = append_request(&self.to, &rpc);
        let mut client = self.client()?;
        let call = async {
            let mut replies = client.append(stream::iter([request])).await?.into_inner();
            let reply = replies.message().await?;
            reply
                .map(tonic::Response::new)
                .ok_or_else(|| tonic::Status::unavailable("stream ended without an answer"))
        };
        let reply = Self::within(option.hard_ttl().max(SHORT_DEADLINE), call).await?;
        Ok(append_result(reply)?.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let to = self.to.clone();
            // Counts requests that wait for their answer: only then does the deadline run.
            let (sent, owed) = tokio::sync::watch::channel(0u64);
            let requests = input.map(move |r| {
                sent.send_modify(|n| *n += 1);
                append_request(&to, &r)
            });
            let replies = self.open(requests).await?;
            let stream = stream::unfold(Some((replies, owed, 0u64)), |state| async move {
                let (mut replies, mut owed, answered) = state?;
                let answer = tokio::select! {
                    biased;
                    m = replies.message() => m,
                    () = overdue(&mut owed, answered) => {
                        return Some((Err(rpc_error("peer owes an answer beyond the deadline")), None));
                    }
                };
                match answer {
                    Ok(Some(reply)) => {
                        let result = append_result(reply);
                        let go_on = matches!(result, Ok(Ok(_)));
                        Some((result, go_on.then_some((replies, owed, answered + 1))))
                    }
                    Ok(None) => None,
                    Err(s) => Some((Err(status_error(s)), None)),
                }
            });
            Ok(Box::pin(stream) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = self.vote_request(rpc);
        let mut client = self.client()?;
        vote_reply(Self::within(option.hard_ttl().max(SHORT_DEADLINE), client.vote(request)).await?)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = self.vote_request(rpc);
        let mut client = self.client()?;
        vote_reply(
            Self::within(
                option.hard_ttl().max(SHORT_DEADLINE),
                client.pre_vote(request),
            )
            .await?,
        )
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let SnapshotData::Outgoing(source) = snapshot.snapshot else {
            return Err(StreamingError::Network(NetworkError::from_string(
                "a received snapshot is not sent on",
            )));
        };
        let header = v1::SnapshotHeader {
            address: Some(self.to.clone()),
            vote: Some(codec::wire_vote(&vote)),
            format: 1,
            ..Default::default()
        };
        let mut client = self
            .connections
            .client(&self.address, self.lane)
            .map_err(StreamingError::Unreachable)?;
        let (rx, reader) = blocking::produce(4, move |out| send_records(&source, header, out));
        let result = tokio::select! {
            biased;
            r = client.snapshot(ReceiverStream::new(rx)) => r,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        match reader.await {
            Ok(Ok(()) | Err(ExportError::ReceiverGone(Gone))) => {}
            Ok(Err(e)) => {
                return Err(StreamingError::Network(NetworkError::from_string(format!(
                    "reading the snapshot: {e}"
                ))));
            }
            Err(e) => return Err(StreamingError::Network(NetworkError::from_string(e))),
        }
        let reply = result
            .map_err(|s| StreamingError::Network(NetworkError::from_string(s)))?
            .into_inner();
        let vote = codec::vote_from_wire(reply.vote)
            .map_err(|e| StreamingError::Network(NetworkError::from_string(e)))?;
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = v1::TransferLeaderRequest {
            address: Some(self.to.clone()),
            from: Some(codec::wire_vote(req.from_leader())),
            to: *req.to_node_id(),
            last_log: req.last_log_id().map(codec::wire_log_id),
        };
        let mut client = self.client()?;
        let reply = Self::within(
            option.hard_ttl().max(SHORT_DEADLINE),
            client.transfer_leader(request),
        )
        .await?;
        if reply.accepted {
            return Ok(Ok(()));
        }
        let actual = codec::vote_from_wire(reply.vote).map_err(rpc_error)?;
        Ok(Err(TransferLeaderError::VoteChanged {
            expected: *req.from_leader(),
            actual,
        }))
    }
}

/// Resolves when a request has gone unanswered for [`ANSWER_DEADLINE`].
async fn overdue(sent: &mut tokio::sync::watch::Receiver<u64>, answered: u64) {
    loop {
        if *sent.borrow_and_update() > answered {
            tokio::time::sleep(ANSWER_DEADLINE).await;
            return;
        }
        if sent.changed().await.is_err() {
            // The request stream ended: the reply stream ends by itself or by keepalive.
            tokio::time::sleep(ANSWER_DEADLINE).await;
            return;
        }
    }
}

/// Header, batches of records, end with count and digest. The header names the position that was pinned.
fn send_records(
    source: &GroupStore,
    header: v1::SnapshotHeader,
    out: &mut Outlet<v1::SnapshotFrame>,
) -> Result<(), ExportError> {
    use v1::snapshot_frame::Frame;
    let mut header = Some(header);
    source.export(|part| {
        let frame = match part {
            Export::Start(applied) => {
                let mut header = header.take().unwrap_or_default();
                let membership = codec::stored_membership(&applied)?;
                header.last_applied = applied
                    .last
                    .map(codec::log_id)
                    .as_ref()
                    .map(codec::wire_log_id);
                header.membership_id = membership.log_id().as_ref().map(codec::wire_log_id);
                header.membership = Some(codec::wire_membership(membership.membership()));
                Frame::Header(header)
            }
            Export::Batch(records, crc32c) => Frame::Records(codec::wire_records(records, crc32c)),
            Export::End(records, sha256) => Frame::End(codec::wire_end(records, sha256)),
        };
        out.send(v1::SnapshotFrame { frame: Some(frame) })
            .map_err(ExportError::ReceiverGone)
    })
}

#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    ReceiverGone(Gone),
}
