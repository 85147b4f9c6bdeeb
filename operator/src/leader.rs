//! One operator acts at a time: it holds a `coordination.k8s.io` Lease. Who loses it ends the process, so that nothing
//! that it had begun goes on.
mod election;

pub(crate) use election::Terms;

use crate::cli::LeaseName;
use election::{Election, Move, Seen};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// A look at the Lease of a candidate may take this long.
const LOOK: Duration = Duration::from_secs(5);

/// Why this process may act no more.
#[derive(Debug, thiserror::Error)]
#[error(
    "the lease {lease} could not be renewed within {deadline:?}: another operator may act now, so this process ends"
)]
pub(crate) struct Lost {
    lease: String,
    deadline: Duration,
}

/// A candidate, then the leader.
pub(crate) struct Leader {
    api: Api<Lease>,
    name: String,
    election: Election,
    began: Instant,
}

impl std::fmt::Debug for Leader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Leader({})", self.election.identity())
    }
}

impl Leader {
    /// `identity` must be another one for every process that ever runs.
    pub(crate) fn new(client: Client, lease: &LeaseName, identity: String, terms: Terms) -> Self {
        Self {
            api: Api::namespaced(client, &lease.namespace),
            name: lease.name.clone(),
            election: Election::new(identity, terms),
            began: Instant::now(),
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Waits until this process leads.
    ///
    /// # Cancel safety
    ///
    /// A Lease that was taken just then runs out by itself.
    pub(crate) async fn acquire(&mut self, mut looked: impl FnMut()) {
        let mut held = String::new();
        loop {
            match timeout(LOOK, self.step()).await {
                Ok(Ok(holder)) => {
                    looked();
                    if self.election.leads(self.now()) {
                        return tracing::info!(lease = %self.name, "this process leads");
                    }
                    if holder != held {
                        tracing::info!(lease = %self.name, %holder, "waiting for the lease");
                        held = holder;
                    }
                }
                Ok(Err(e)) => {
                    tracing::warn!(lease = %self.name, error = %e, "the lease cannot be read or written");
                }
                Err(_) => tracing::warn!(lease = %self.name, "no answer about the lease"),
            }
            sleep(self.election.terms().pause).await;
        }
    }

    /// Renews until that fails for too long.
    ///
    /// # Cancel safety
    ///
    /// What was renewed stays so; call it again, or [`Leader::release`].
    pub(crate) async fn keep(&mut self) -> Lost {
        loop {
            let left = self.election.left(self.now());
            match timeout(left, self.step()).await {
                Ok(Ok(_)) => {}
                Ok(Err(e)) => tracing::warn!(lease = %self.name, error = %e, "renewal failed"),
                Err(_) => tracing::warn!(lease = %self.name, "no answer about the lease"),
            }
            if !self.election.leads(self.now()) {
                return Lost {
                    lease: self.name.clone(),
                    deadline: self.election.terms().deadline,
                };
            }
            let pause = self.election.terms().pause;
            sleep(pause.min(self.election.left(self.now()))).await;
        }
    }

    /// Lets the next one begin at once. Only when nothing is under way any more.
    pub(crate) async fn release(mut self) {
        let free = async {
            let Some(mut lease) = self.api.get_opt(&self.name).await? else {
                return Ok(());
            };
            if self.election.look(Some(&seen(&lease)), self.now()) != Move::Renew {
                return Ok(());
            }
            if let Some(spec) = &mut lease.spec {
                spec.holder_identity = Some(String::new());
            }
            let written = self
                .api
                .replace(&self.name, &PostParams::default(), &lease)
                .await;
            written.map(drop)
        };
        match timeout(LOOK, free).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                tracing::info!(error = %e, "the lease was not released; it runs out by itself")
            }
            Err(_) => tracing::info!("the lease was not released in time; it runs out by itself"),
        }
    }

    /// One look, and the write that follows from it. Answers with the holder.
    async fn step(&mut self) -> kube::Result<String> {
        let asked = self.now();
        let lease = self.api.get_opt(&self.name).await?;
        let seen = lease.as_ref().map(seen);
        let identity = self.election.identity().to_owned();
        let post = PostParams::default();
        let written = match (self.election.look(seen.as_ref(), asked), lease) {
            (Move::Wait, _) => return Ok(seen.map(|s| s.holder).unwrap_or_default()),
            (Move::Renew, Some(mut lease)) => {
                self.fill(&mut lease, false);
                self.api.replace(&self.name, &post, &lease).await
            }
            (_, Some(mut lease)) => {
                self.fill(&mut lease, true);
                self.api.replace(&self.name, &post, &lease).await
            }
            (_, None) => {
                let mut lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(self.name.clone()),
                        ..ObjectMeta::default()
                    },
                    spec: None,
                };
                self.fill(&mut lease, true);
                self.api.create(&post, &lease).await
            }
        };
        match written {
            Ok(_) => {
                self.election.wrote(asked);
                Ok(identity)
            }
            // Somebody else wrote in between: the next look tells who.
            Err(kube::Error::Api(s)) if s.is_conflict() || s.is_already_exists() => {
                Ok(String::new())
            }
            Err(e) => Err(e),
        }
    }

    /// Writes ourselves into the Lease. Its version stays, so that a write after another one's is refused.
    fn fill(&self, lease: &mut Lease, taken: bool) {
        let now = MicroTime(jiff::Timestamp::now());
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        spec.holder_identity = Some(self.election.identity().to_owned());
        spec.lease_duration_seconds = i32::try_from(self.election.terms().length.as_secs()).ok();
        if taken {
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        spec.renew_time = Some(now);
    }
}

fn seen(lease: &Lease) -> Seen {
    let spec = lease.spec.clone().unwrap_or_default();
    let length = spec
        .lease_duration_seconds
        .and_then(|s| u64::try_from(s).ok())
        .map_or(Terms::default().length, Duration::from_secs);
    Seen {
        holder: spec.holder_identity.unwrap_or_default(),
        version: lease.resource_version().unwrap_or_default(),
        length,
    }
}

#[cfg(test)]
#[path = "leader/tests.rs"]
mod tests;
