//! `Cluster`: joining, and proposals forwarded to the leader of a group.
use crate::{
    bootstrap,
    raft::{Committed, Group, Groups, ProposeError, codec},
};
use bytes::Bytes;
use prost::Message;
use sealane_runtime::identity::Identity;
use sealane_types::GroupId;
use sealane_wire::v1::{self, cluster_server::Cluster as ClusterService};
use std::{sync::Arc, time::Duration};
use tonic::{Request, Response, Status};

/// Proposes to a group wherever its leader is.
#[derive(Debug, Clone)]
pub(crate) struct Proposer {
    pub(crate) groups: Arc<Groups>,
    pub(crate) identity: Identity,
}

/// Tries to reach the leader before giving up.
const ATTEMPTS: u32 = 20;

impl Proposer {
    /// Proposes `op` to `group`, here or at its leader; waits out an election. `op` must be idempotent: it may be proposed twice.
    pub(crate) async fn propose(
        &self,
        group: GroupId,
        op: v1::command::Op,
    ) -> Result<Committed, Status> {
        let local = self
            .groups
            .group(group)
            .ok_or_else(|| Status::invalid_argument("group: unknown"))?;
        let mut last = String::from("no leader known");
        for _ in 0..ATTEMPTS {
            match local.propose(op.clone(), Bytes::new()).await {
                Ok(c) => return Ok(c),
                Err(ProposeError::NotLeader { leader }) => {
                    for node in self.may_lead(group, leader) {
                        match self.forward(&local, node, op.clone()).await {
                            Ok(Some(c)) => return Ok(c),
                            Ok(None) => last = format!("node {node} does not lead"),
                            Err(e) => last = format!("{e:#}"),
                        }
                    }
                }
                Err(e) => last = e.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Err(Status::unavailable(format!(
            "group {group} has no reachable leader: {last}"
        )))
    }

    /// The leader that this node's own log names; and, where that is nobody or out of date because this
    /// node does not hold the group, the one that was reported last.
    fn may_lead(&self, group: GroupId, named: Option<u64>) -> Vec<u64> {
        let registry = self.groups.registry();
        let reported = registry.reports.get(&group).map(|r| r.leader);
        let held = self.groups.holds(group);
        let mut nodes: Vec<u64> = named.filter(|_| held).into_iter().collect();
        nodes.extend(reported.filter(|_| !held || nodes.is_empty()));
        nodes.extend(named.filter(|_| !held));
        nodes.retain(|n| *n != self.groups.node_id());
        nodes.dedup();
        nodes
    }

    async fn forward(
        &self,
        group: &crate::raft::Group,
        node: u64,
        op: v1::command::Op,
    ) -> anyhow::Result<Option<Committed>> {
        let known = self.groups.registry();
        let registered = known.nodes.get(&node).map(|n| n.address.clone());
        let address = registered
            .or_else(|| group.members().remove(&node))
            .ok_or_else(|| anyhow::anyhow!("leader {node} has no address"))?;
        let mut client = bootstrap::cluster_client(&address, &self.identity)?;
        let request = v1::ForwardRequest {
            cluster_id: self.groups.cluster_id().to_owned(),
            group: group.id().0,
            command: v1::Command {
                now_ms: 0,
                settled: 0,
                op: Some(op),
            }
            .encode_to_vec()
            .into(),
        };
        let reply = tokio::time::timeout(Duration::from_secs(5), client.forward(request))
            .await??
            .into_inner();
        if reply.not_leader {
            return Ok(None);
        }
        Ok(Some(Committed {
            index: reply.log_index,
            reply: v1::CommandReply::decode(reply.response)?,
        }))
    }
}

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct ClusterRpc {
    pub(crate) proposer: Proposer,
}

/// What this node, as a leader, was told to be durable on another; and what it remembers of when it led last.
fn durable(groups: &Groups, node: u64) -> Vec<v1::DurableLog> {
    let of = |g: Group| {
        let remembered = g.store().read_witnessed().ok().and_then(|of| {
            let last = of.get(&node)?;
            Some(codec::wire_position(last))
        });
        let group = g.id().0;
        let all = [g.durable_at(node), remembered].into_iter().flatten();
        all.map(move |last| v1::DurableLog {
            group,
            last: Some(last),
        })
    };
    groups.iter().flat_map(of).collect()
}

#[tonic::async_trait]
impl ClusterService for ClusterRpc {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinReply>, Status> {
        let r = request.into_inner();
        if r.incarnation.len() != 16 {
            return Err(Status::invalid_argument("incarnation: needs 16 octets"));
        }
        if r.address.is_empty() {
            return Err(Status::invalid_argument("address: empty"));
        }
        let op = v1::command::Op::AllocateNode(v1::AllocateNodeOp {
            name: r.name,
            address: r.address,
            incarnation: r.incarnation,
        });
        let committed = self.proposer.propose(GroupId::META, op).await?;
        match committed.reply.result {
            Some(v1::command_reply::Result::Node(n)) => Ok(Response::new(v1::JoinReply {
                cluster_id: n.cluster_id,
                node_id: n.node_id,
                shards: n.shards,
                replicas: n.replicas,
            })),
            Some(v1::command_reply::Result::Refused(r)) => Err(Status::failed_precondition(
                format!("{}: {}", r.field, r.reason),
            )),
            _ => Err(Status::internal("unexpected answer of the state machine")),
        }
    }

    async fn identify(
        &self,
        request: Request<v1::IdentifyRequest>,
    ) -> Result<Response<v1::IdentifyReply>, Status> {
        let groups = &self.proposer.groups;
        let asked = request.into_inner();
        let ours = asked.cluster_id == groups.cluster_id();
        Ok(Response::new(v1::IdentifyReply {
            cluster_id: groups.cluster_id().to_owned(),
            node_id: groups.node_id(),
            member: true,
            removed: ours && groups.registry().refused(asked.node_id),
            durable: if ours {
                durable(groups, asked.node_id)
            } else {
                Vec::new()
            },
            now_ms: sealane_runtime::world::now_ms(),
            ..v1::IdentifyReply::default()
        }))
    }

    async fn forward(
        &self,
        request: Request<v1::ForwardRequest>,
    ) -> Result<Response<v1::ForwardReply>, Status> {
        let r = request.into_inner();
        let groups = &self.proposer.groups;
        if r.cluster_id != groups.cluster_id() {
            return Err(Status::permission_denied("cluster_id: another cluster"));
        }
        let group = groups
            .group(GroupId(r.group))
            .ok_or_else(|| Status::invalid_argument("group: unknown"))?;
        let op = v1::Command::decode(r.command)
            .map_err(|e| Status::invalid_argument(format!("command: {e}")))?
            .op
            .ok_or_else(|| Status::invalid_argument("command.op: missing"))?;
        match group.propose(op, Bytes::new()).await {
            Ok(c) => Ok(Response::new(v1::ForwardReply {
                response: c.reply.encode_to_vec().into(),
                log_index: c.index,
                not_leader: false,
            })),
            Err(ProposeError::NotLeader { .. }) => Ok(Response::new(v1::ForwardReply {
                not_leader: true,
                ..Default::default()
            })),
            Err(e) => Err(Status::unavailable(e.to_string())),
        }
    }
}
