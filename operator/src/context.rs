//! What every pass has at hand. Nothing in it is needed to know what to do next.
use crate::{backoff::Backoff, events::Events, failure::Failure, metrics::Metrics};
use kube::Client;
use sealane_plan::build::Apis;
use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Optional APIs are asked for again after this: somebody may install them.
const APIS: Duration = Duration::from_secs(60);

/// One for the process.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) events: Events,
    pub(crate) metrics: Metrics,
    pub(crate) backoff: Backoff,
    /// Whether [`crate::observe::ENDPOINTS`] is followed.
    pub(crate) endpoint_override: bool,
    /// A Secret that changed is in all pods, and was read again, after this.
    pub(crate) propagation: Duration,
    known_apis: Mutex<Option<(Instant, Apis)>>,
}

impl Context {
    pub(crate) fn new(
        client: Client,
        events: Events,
        metrics: Metrics,
        endpoint_override: bool,
        propagation: Duration,
    ) -> Self {
        Self {
            client,
            events,
            metrics,
            backoff: Backoff::default(),
            endpoint_override,
            propagation,
            known_apis: Mutex::default(),
        }
    }

    /// Which optional APIs the server has, as of a minute ago at most.
    pub(crate) async fn apis(&self) -> Result<Apis, Failure> {
        let known = *self
            .known_apis
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((_, apis)) = known.filter(|(at, _)| at.elapsed() < APIS) {
            return Ok(apis);
        }
        let apis = Apis {
            pod_monitor: self.has("monitoring.coreos.com/v1", "PodMonitor").await?,
            cert_manager: self.has("cert-manager.io/v1", "Certificate").await?,
        };
        *self
            .known_apis
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), apis));
        Ok(apis)
    }

    async fn has(&self, group: &str, kind: &str) -> Result<bool, Failure> {
        match self.client.list_api_group_resources(group).await {
            Ok(list) => Ok(list.resources.iter().any(|r| r.kind == kind)),
            // Not `is_not_found`: about a group that it does not know the API server speaks plain text, without a reason.
            Err(kube::Error::Api(s)) if s.code == 404 => Ok(false),
            Err(e) => Err(Failure::api(format!("ask for the API {group}"))(e)),
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("endpoint_override", &self.endpoint_override)
            .finish_non_exhaustive()
    }
}
