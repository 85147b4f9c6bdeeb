//! `Admin`: what an operator asks, answered from this node's state, and what one does to messages.
use crate::{
    background::dispatch::Dispatch,
    policy_view::PolicyView,
    raft::{Group, Groups},
    registry::Registry,
    service::cluster::Proposer,
};
use bytes::Bytes;
use sealane_runtime::{blocking, identity::WorkloadId};
use sealane_state::queries;
use sealane_types::{GroupId, MessageId};
use sealane_wire::v1::{
    self, admin_server::Admin as AdminService, change_messages_request::Action, command::Op,
    command_reply::Result as Answer,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tonic::{Request, Response, Status};

const DEFAULT_LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1000;
/// Messages changed by one request.
const CHANGES: usize = 1000;
/// A decision of the metadata group is applied here by then, or this node lags behind.
const DECIDED: Duration = Duration::from_secs(3);
/// How often that is looked at.
const SEEN: Duration = Duration::from_millis(20);
/// Octets of a reason that are kept.
const REASON: usize = 200;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct AdminRpc {
    pub(crate) groups: Arc<Groups>,
    pub(crate) policy: PolicyView,
    pub(crate) dispatch: Dispatch,
    pub(crate) cluster_name: String,
    pub(crate) proposer: Proposer,
}

fn storage(e: impl std::fmt::Display) -> Status {
    Status::internal(format!("state unreadable: {e}"))
}

impl AdminRpc {
    fn group_status(&self, group: &Group, registry: &Registry) -> Result<v1::GroupStatus, Status> {
        let v = group.view();
        let wanted = registry.placement.get(&group.id()).cloned();
        let held = self.groups.holds(group.id()) || group.id() == GroupId::META;
        if let Some(r) = registry.reports.get(&group.id()).filter(|_| !held) {
            return Ok(v1::GroupStatus {
                group: group.id().0,
                leader: r.leader,
                term: r.term,
                voters: r.voters.clone(),
                learners: r.learners.clone(),
                wanted: wanted.unwrap_or_default(),
                ..Default::default()
            });
        }
        let mut s = v1::GroupStatus {
            group: group.id().0,
            leader: v.leader.unwrap_or(0),
            term: v.term,
            last_log_index: v.last_log,
            applied_index: v.applied,
            purged_index: v.purged,
            voters: v.voters.into_iter().collect(),
            learners: v.learners.into_iter().collect(),
            quorum: v.quorum,
            wanted: wanted.unwrap_or_default(),
            held,
            ..Default::default()
        };
        if group.id() != GroupId::META {
            let reader = group.store().reader();
            s.waiting = queries::count(&reader).map_err(storage)?;
            let oldest = queries::oldest(&reader, None).map_err(storage)?;
            let now = self.groups.clock().wall_ms();
            s.oldest_age_ms = oldest.map_or(0, |id| now.saturating_sub(id.time_ms()));
        }
        Ok(s)
    }

    fn shards(&self) -> impl Iterator<Item = Group> + '_ {
        self.groups.iter().filter(|g| g.id() != GroupId::META)
    }
}

#[tonic::async_trait]
impl AdminService for AdminRpc {
    async fn cluster_status(
        &self,
        _: Request<v1::ClusterStatusRequest>,
    ) -> Result<Response<v1::ClusterStatusReply>, Status> {
        let registry = self.groups.registry();
        let groups = blocking::in_place(|| {
            self.groups
                .iter()
                .map(|g| self.group_status(&g, &registry))
                .collect::<Result<_, _>>()
        })?;
        Ok(Response::new(v1::ClusterStatusReply {
            cluster_id: self.groups.cluster_id().to_owned(),
            cluster_name: self.cluster_name.clone(),
            answered_by: self.groups.node_id(),
            groups,
            policy_revision: self.policy.current().wire.revision,
            replicas: self.groups.replicas(),
            registry_revision: registry.revision,
        }))
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesReply>, Status> {
        use v1::node_info::Kind;
        let registry = self.groups.registry();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut nodes: Vec<v1::NodeInfo> = registry
            .nodes
            .values()
            .map(|n| {
                let (replicas, leads) = registry.actual(n.id);
                let (wanted_replicas, wanted_leads) = registry.planned(n.id);
                let meta = registry.reports.get(&GroupId::META);
                let leads_meta = meta.is_some_and(|r| r.leader == n.id);
                v1::NodeInfo {
                    kind: Kind::ControlPlane.into(),
                    state: registry.standing(n.id),
                    leads: number(leads + usize::from(leads_meta)),
                    name: n.name.clone(),
                    node_id: n.id,
                    address: n.address.clone(),
                    connected_since_ms: n.joined_at_ms,
                    version: String::new(),
                    replicas: number(replicas),
                    wanted_replicas: number(wanted_replicas),
                    shard_leads: number(leads),
                    wanted_shard_leads: number(wanted_leads),
                }
            })
            .collect();
        nodes.extend(self.dispatch.relays().into_iter().map(|r| v1::NodeInfo {
            kind: Kind::Relay.into(),
            name: r.name,
            state: "connected".to_owned(),
            connected_since_ms: r.since_ms,
            ..Default::default()
        }));
        Ok(Response::new(v1::ListNodesReply {
            nodes,
            settled: registry.settled(),
            registry_revision: registry.revision,
        }))
    }

    async fn list_queue(
        &self,
        request: Request<v1::ListQueueRequest>,
    ) -> Result<Response<v1::ListQueueReply>, Status> {
        let r = request.into_inner();
        let limit = if r.limit == 0 {
            DEFAULT_LIMIT
        } else {
            r.limit.min(MAX_LIMIT)
        };
        let after = match r.page_token.as_str() {
            "" => None,
            t => Some(
                t.parse::<MessageId>()
                    .map_err(|e| Status::invalid_argument(format!("page_token: {e}")))?,
            ),
        };
        let destination = (!r.destination.is_empty()).then(|| r.destination.to_ascii_lowercase());
        blocking::in_place(|| {
            let mut reply = v1::ListQueueReply::default();
            for group in self.shards() {
                let asked = r.shards.is_empty() || r.shards.contains(&group.id().0);
                if !asked || !self.groups.holds(group.id()) {
                    continue;
                }
                reply.shards.push(group.id().0);
                let reader = group.store().reader();
                reply.total_waiting += queries::count(&reader).map_err(storage)?;
                // Pages run shard by shard; within a shard the id order is the order of acceptance.
                let room = usize::try_from(limit)
                    .unwrap_or(0)
                    .saturating_sub(reply.messages.len());
                let start = match after {
                    Some(id) if id.shard().group() > group.id() => continue,
                    Some(id) if id.shard().group() == group.id() => Some(id),
                    _ => None,
                };
                if room == 0 {
                    continue;
                }
                let page =
                    queries::list(&reader, start, room, destination.as_deref()).map_err(storage)?;
                if page.len() == room {
                    reply.next_page_token =
                        page.last().map(|m| m.id.to_string()).unwrap_or_default();
                }
                let now = self.groups.clock().wall_ms();
                reply.messages.extend(page.iter().map(|m| queued(m, now)));
            }
            Ok(Response::new(reply))
        })
    }

    async fn show_message(
        &self,
        request: Request<v1::ShowMessageRequest>,
    ) -> Result<Response<v1::ShowMessageReply>, Status> {
        let id: MessageId = request
            .into_inner()
            .id
            .parse()
            .map_err(|e| Status::invalid_argument(format!("id: {e}")))?;
        let group = self
            .groups
            .group(id.shard().group())
            .ok_or_else(|| Status::not_found(format!("shard {} does not exist", id.shard())))?;
        if !self.groups.holds(group.id()) {
            return Err(Status::unavailable(format!(
                "this node does not hold shard {}",
                id.shard()
            )));
        }
        let found = blocking::in_place(|| queries::message(&group.store().reader(), id))
            .map_err(storage)?;
        let Some(m) = found else {
            return Err(Status::not_found(format!(
                "message {id} is not in the queue: it was never accepted, or it is finished"
            )));
        };
        Ok(Response::new(v1::ShowMessageReply {
            message: Some(queued(&m, self.groups.clock().wall_ms())),
            entry: m.record.entry.clone(),
            trace: m.record.trace.clone(),
            body: m.record.body.clone(),
            expires_at_ms: m.record.expires_at_ms,
            shard: id.shard().get(),
            sha256: m.record.sha256.clone(),
            hold: m.record.hold.clone(),
        }))
    }

    async fn change_messages(
        &self,
        request: Request<v1::ChangeMessagesRequest>,
    ) -> Result<Response<v1::ChangeMessagesReply>, Status> {
        let actor = actor(&request);
        let r = request.into_inner();
        if r.ids.is_empty() || r.ids.len() > CHANGES {
            return Err(Status::invalid_argument(format!(
                "ids: needs 1 to {CHANGES} of them"
            )));
        }
        let mut by_shard: BTreeMap<GroupId, Vec<MessageId>> = BTreeMap::new();
        for id in &r.ids {
            let id: MessageId = id
                .parse()
                .map_err(|e| Status::invalid_argument(format!("ids: {id}: {e}")))?;
            by_shard.entry(id.shard().group()).or_default().push(id);
        }
        let mut reply = v1::ChangeMessagesReply::default();
        for (group, ids) in by_shard {
            let op = change(r.action(), &ids, &r.reason, &actor)?;
            let committed = self.proposer.propose(group, op).await?;
            let changed: BTreeSet<MessageId> = match committed.reply.result {
                Some(Answer::Counted(c)) => c
                    .accepted
                    .iter()
                    .filter_map(|l| MessageId::from_slice(&l.id).ok())
                    .collect(),
                _ => return Err(Status::internal("unexpected answer of the state machine")),
            };
            for id in ids {
                let list = if changed.contains(&id) {
                    &mut reply.changed
                } else {
                    &mut reply.missing
                };
                list.push(id.to_string());
            }
        }
        Ok(Response::new(reply))
    }

    async fn change_node(
        &self,
        request: Request<v1::ChangeNodeRequest>,
    ) -> Result<Response<v1::ChangeNodeReply>, Status> {
        use v1::{change_node_op::Action as Decided, change_node_request::Action as Asked};
        let actor = actor(&request);
        let r = request.into_inner();
        if r.node.is_empty() {
            return Err(Status::invalid_argument("node: empty"));
        }
        let action = match r.action() {
            Asked::Add => Decided::Add,
            Asked::Remove => Decided::Remove,
            Asked::Replace => Decided::Replace,
            Asked::Unspecified => {
                return Err(Status::invalid_argument("action: ADD, REMOVE or REPLACE"));
            }
        };
        let op = Op::ChangeNode(v1::ChangeNodeOp {
            action: action.into(),
            node: r.node,
            with: r.with,
            actor,
        });
        let committed = self.proposer.propose(GroupId::META, op).await?;
        // Who asks this node next sees what was decided.
        let seen = async {
            while self.groups.meta().view().applied < committed.index {
                tokio::time::sleep(SEEN).await;
            }
        };
        let _late = tokio::time::timeout(DECIDED, seen).await;
        self.groups.refresh_registry();
        match committed.reply.result {
            Some(Answer::Node(n)) => Ok(Response::new(v1::ChangeNodeReply { node_id: n.node_id })),
            Some(Answer::Refused(r)) => Err(Status::failed_precondition(format!(
                "{}: {}",
                r.field, r.reason
            ))),
            _ => Err(Status::internal("unexpected answer of the state machine")),
        }
    }
}

/// The caller, by its certificate.
fn actor<T>(request: &Request<T>) -> String {
    let caller = request.extensions().get::<WorkloadId>();
    caller.map(ToString::to_string).unwrap_or_default()
}

/// What an operator wants done, as an entry of the messages' shard.
fn change(action: Action, ids: &[MessageId], reason: &str, actor: &str) -> Result<Op, Status> {
    let ids = ids
        .iter()
        .map(|id| Bytes::copy_from_slice(id.as_bytes()))
        .collect();
    let actor = actor.to_owned();
    Ok(match action {
        Action::Hold if reason.trim().is_empty() => {
            return Err(Status::invalid_argument("reason: say why it is held"));
        }
        Action::Hold => Op::Hold(v1::HoldOp {
            ids,
            reason: sealane_types::sanitize(reason.as_bytes(), REASON),
            actor,
        }),
        Action::Release => Op::Hold(v1::HoldOp {
            ids,
            reason: String::new(),
            actor,
        }),
        Action::Return => Op::Expire(v1::ExpireOp { ids, actor }),
        Action::Unspecified => {
            return Err(Status::invalid_argument("action: HOLD, RELEASE or RETURN"));
        }
    })
}

fn queued(m: &queries::StoredMessage, now: u64) -> v1::QueuedMessage {
    let envelope = m.record.envelope.clone().unwrap_or_default();
    v1::QueuedMessage {
        id: m.id.to_string(),
        size: m.record.size,
        accepted_at_ms: m
            .record
            .entry
            .as_ref()
            .map_or(m.record.enqueued_at_ms, |e| e.accepted_at_ms),
        submitter: m
            .record
            .entry
            .as_ref()
            .map(|e| e.submitter.clone())
            .unwrap_or_default(),
        recipients: m
            .recipients
            .iter()
            .zip(&envelope.recipients)
            .map(|(r, e)| v1::QueuedRecipient {
                mailbox: e.mailbox.clone(),
                state: state_name(r, now).to_owned(),
                attempts: r.attempts,
                due_at_ms: r.due_ms,
                last_reply: r.last_reply.clone(),
                lease_holder: r.holder.clone(),
                epoch: r.epoch,
            })
            .collect(),
        reverse_path: envelope.reverse_path,
    }
}

fn state_name(r: &v1::RecipientRecord, now: u64) -> &'static str {
    use v1::recipient_record::State;
    match r.state() {
        State::Leased => "leased",
        State::Held => "held",
        State::Delivered => "delivered",
        State::Failed => "failed",
        State::Expired => "expired",
        State::Waiting | State::Unspecified if r.due_ms > now => "deferred",
        State::Waiting | State::Unspecified => "due",
    }
}
