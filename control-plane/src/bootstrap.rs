//! How a node with an empty volume gets its identity: founds the cluster, or joins it.
//!
//! A cluster is founded once: the founding node first asks its peers whether there is one already, and
//! founds only after a majority of the configured nodes said that they know none. Peers that are
//! silent may be its quorum, restarting. Until it is a member a node serves [`Candidate`].
//! Node ids are allocated by the metadata group (the log index of the allocation), kept on the
//! volume and never reused; a wiped volume is a new node.
use crate::{access, config::ControlPlaneConfig};
use anyhow::Context;
use bytes::Bytes;
use rand::RngCore;
use sealane_runtime::{grpc, identity::Identity, world::Listener};
use sealane_store::{NodeIdentity, Store};
use sealane_wire::v1::{
    self,
    cluster_client::ClusterClient,
    cluster_server::{Cluster as ClusterService, ClusterServer},
};
use std::{collections::BTreeSet, time::Duration};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes, transport::Channel};

/// The founder's node id. Later ids are log indexes of the metadata group, which are larger.
const FOUNDER: u64 = 1;
/// One question to one peer.
const ASK: Duration = Duration::from_secs(3);
/// Between rounds over all peers.
const PAUSE: Duration = Duration::from_millis(250);
/// Answers under way when this node becomes a member.
const LAST_ANSWERS: Duration = Duration::from_millis(200);

/// Who this node is, and whether it has just founded the cluster.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) identity: NodeIdentity,
    /// The groups of this volume may still have to be initialized with this node alone.
    pub(crate) founder: bool,
}

/// Reads the volume's identity, or obtains one.
pub(crate) async fn identity(
    config: &ControlPlaneConfig,
    tls: &Identity,
    store: &Store,
) -> anyhow::Result<Membership> {
    if let Some(identity) = store.identity()? {
        let founder = identity.node_id == FOUNDER;
        return Ok(Membership { identity, founder });
    }
    let mut fresh = [0; 16];
    rand::rng().fill_bytes(&mut fresh);
    let incarnation = store.incarnation(fresh)?;
    let candidate = Routes::new(ClusterServer::new(Candidate { incarnation }));
    let listener = Listener::bind(config.listen)
        .await
        .with_context(|| format!("listen: {}", config.listen))?;
    let over = CancellationToken::new();
    let server = grpc::serve(
        listener,
        candidate,
        access::TABLE,
        tls.clone(),
        over.clone(),
    );
    tokio::pin!(server);
    let identity = tokio::select! {
        identity = found_or_join(config, tls, store, incarnation) => identity?,
        ended = &mut server => {
            ended?;
            anyhow::bail!("gRPC server ended");
        }
    };
    over.cancel();
    let _ = tokio::time::timeout(LAST_ANSWERS, server).await;
    Ok(identity)
}

async fn found_or_join(
    config: &ControlPlaneConfig,
    tls: &Identity,
    store: &Store,
    incarnation: [u8; 16],
) -> anyhow::Result<Membership> {
    let advertised = config.advertised();
    let mut nodes: BTreeSet<&str> = config.cluster.peers.iter().map(String::as_str).collect();
    nodes.insert(&advertised);
    let mut round = 0u32;
    loop {
        let mut member_seen = false;
        // Nodes that know no cluster, by incarnation: a peer may be this node under another address.
        let mut strangers = BTreeSet::from([Bytes::copy_from_slice(&incarnation)]);
        for address in &config.cluster.peers {
            match ask(config, tls, address, &incarnation).await {
                Ok(Answer::Joined(identity)) => {
                    store.set_identity(&identity)?;
                    tracing::info!(node_id = identity.node_id, cluster = %identity.cluster_id, "joined the cluster");
                    return Ok(Membership {
                        identity,
                        founder: false,
                    });
                }
                Ok(Answer::NoMember(incarnation)) => drop(strangers.insert(incarnation)),
                Err(e) => {
                    member_seen |= e.downcast_ref::<NotYet>().is_some();
                    if round.is_multiple_of(20) {
                        tracing::info!(peer = %address, reason = %format!("{e:#}"), "cannot join through this peer yet");
                    }
                }
            }
        }
        if config.cluster.bootstrap && !member_seen && strangers.len() * 2 > nodes.len() {
            let mut id = [0; 8];
            rand::rng().fill_bytes(&mut id);
            let name = tls.workload().cluster.clone();
            let identity = NodeIdentity {
                cluster_id: format!("{name}-{}", data_encoding::HEXLOWER.encode(&id)),
                cluster_name: name,
                node_id: FOUNDER,
                shards: config.cluster.shards,
                replicas: config.cluster.replicas,
            };
            store.set_identity(&identity)?;
            tracing::info!(cluster = %identity.cluster_id, shards = identity.shards, "founded the cluster");
            return Ok(Membership {
                identity,
                founder: true,
            });
        }
        round = round.saturating_add(1);
        tokio::time::sleep(PAUSE).await;
    }
}

/// A cluster exists, but could not allocate an id right now.
#[derive(Debug, thiserror::Error)]
#[error("the cluster cannot take a node right now: {0}")]
struct NotYet(String);

/// What a peer said.
enum Answer {
    Joined(NodeIdentity),
    /// It knows no cluster; its incarnation.
    NoMember(Bytes),
}

async fn ask(
    config: &ControlPlaneConfig,
    tls: &Identity,
    address: &str,
    incarnation: &[u8; 16],
) -> anyhow::Result<Answer> {
    let channel = grpc::channel(address, tls).context("address")?;
    let mut client = ClusterClient::new(channel);
    let who = within(client.identify(v1::IdentifyRequest::default())).await?;
    if !who.member {
        return Ok(Answer::NoMember(who.incarnation));
    }
    let request = v1::JoinRequest {
        name: config.name.clone(),
        address: config.advertised(),
        incarnation: incarnation.to_vec().into(),
    };
    let reply = within(client.join(request))
        .await
        .map_err(|e| NotYet(format!("{e:#}")))?;
    Ok(Answer::Joined(NodeIdentity {
        cluster_id: reply.cluster_id,
        cluster_name: tls.workload().cluster.clone(),
        node_id: reply.node_id,
        shards: reply.shards,
        replicas: reply.replicas,
    }))
}

async fn within<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> anyhow::Result<T> {
    let reply = tokio::time::timeout(ASK, call)
        .await
        .context("no answer in time")?;
    reply
        .map(tonic::Response::into_inner)
        .map_err(|s| anyhow::anyhow!("{}: {}", s.code(), s.message()))
}

/// What a node serves before it is a member.
#[derive(Debug)]
struct Candidate {
    incarnation: [u8; 16],
}

#[tonic::async_trait]
impl ClusterService for Candidate {
    async fn join(&self, _: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        Err(Status::unavailable("this node is no member yet"))
    }
    async fn identify(
        &self,
        _: Request<v1::IdentifyRequest>,
    ) -> Result<Response<v1::IdentifyReply>, Status> {
        Ok(Response::new(v1::IdentifyReply {
            incarnation: Bytes::copy_from_slice(&self.incarnation),
            ..v1::IdentifyReply::default()
        }))
    }
    async fn forward(
        &self,
        _: Request<v1::ForwardRequest>,
    ) -> Result<Response<v1::ForwardReply>, Status> {
        Err(Status::unavailable("this node is no member yet"))
    }
}

/// A client of the `Cluster` service at `address`.
pub(crate) fn cluster_client(
    address: &str,
    tls: &Identity,
) -> anyhow::Result<ClusterClient<Channel>> {
    Ok(ClusterClient::new(grpc::channel(address, tls)?))
}
