//! `Policy`: watch, get, apply.
use super::cluster::Proposer;
use crate::policy_view::PolicyView;
use sealane_runtime::identity::WorkloadId;
use sealane_types::GroupId;
use sealane_wire::v1::{self, policy_server::Policy as PolicyService};
use std::{collections::BTreeMap, pin::Pin};
use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};
use tonic::{Request, Response, Status};

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct PolicyRpc {
    pub(crate) view: PolicyView,
    pub(crate) proposer: Proposer,
}

#[tonic::async_trait]
impl PolicyService for PolicyRpc {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::PolicySet, Status>> + Send>>;

    async fn watch(
        &self,
        _: Request<v1::PolicyWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let stream = WatchStream::new(self.view.subscribe()).map(|r| Ok(r.wire));
        // A node that was removed hears of no policy any more: who watches goes elsewhere.
        let groups = self.proposer.groups.clone();
        let removed = async move { groups.until_removed().await };
        let stream = futures_util::StreamExt::take_until(stream, Box::pin(removed));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get(
        &self,
        _: Request<v1::PolicyGetRequest>,
    ) -> Result<Response<v1::PolicySet>, Status> {
        Ok(Response::new(self.view.current().wire))
    }

    async fn apply(
        &self,
        request: Request<v1::PolicyApplyRequest>,
    ) -> Result<Response<v1::PolicyApplyReply>, Status> {
        let actor = request
            .extensions()
            .get::<WorkloadId>()
            .map(ToString::to_string)
            .unwrap_or_default();
        let r = request.into_inner();
        for (n, document) in r.documents.iter().enumerate() {
            sealane_policy::Document::from_wire(document)
                .map_err(|e| Status::invalid_argument(format!("documents[{n}]: {e}")))?;
        }
        if r.dry_run {
            return Ok(Response::new(self.diff(&r)));
        }
        let op = v1::command::Op::ApplyPolicy(v1::ApplyPolicyOp {
            documents: r.documents,
            expected_revision: r.expected_revision,
            remove: r.remove,
            actor,
        });
        let committed = self.proposer.propose(GroupId::META, op).await?;
        match committed.reply.result {
            Some(v1::command_reply::Result::Policy(p)) => Ok(Response::new(p)),
            Some(v1::command_reply::Result::Refused(r)) if r.revision_conflict => {
                Err(Status::aborted(format!("{}: {}", r.field, r.reason)))
            }
            Some(v1::command_reply::Result::Refused(r)) => Err(Status::invalid_argument(format!(
                "{}: {}",
                r.field, r.reason
            ))),
            _ => Err(Status::internal("unexpected answer of the state machine")),
        }
    }
}

impl PolicyRpc {
    /// What `apply` would change, by the local state.
    fn diff(&self, r: &v1::PolicyApplyRequest) -> v1::PolicyApplyReply {
        let current = self.view.current().wire;
        let mut known: BTreeMap<String, &v1::Document> = current
            .documents
            .iter()
            .map(|d| (sealane_policy::document_key(d), d))
            .collect();
        let mut reply = v1::PolicyApplyReply {
            revision: current.revision,
            ..Default::default()
        };
        for d in &r.documents {
            let key = sealane_policy::document_key(d);
            match known.get(&key) {
                None => reply.created.push(key),
                Some(old) if *old == d => reply.unchanged.push(key),
                Some(_) => reply.updated.push(key),
            }
        }
        for key in &r.remove {
            if known.remove(key).is_some() {
                reply.removed.push(key.clone());
            }
        }
        reply
    }
}
