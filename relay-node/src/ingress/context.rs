//! What all connections share.
use super::{authenticator::Authenticator, handover::Handover, tls::PublicTls};
use crate::{
    budget::BodyBudget,
    config::{RelayNodeConfig, SessionLimits},
    metrics::IngressMetrics,
    networks::Network,
};
use sealane_client::SubmitClient;
use sealane_policy::PolicySnapshot;
use sealane_runtime::reload::Live;
use sealane_smtp::server::{Listener, ServerConfig};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::watch;

/// One per process.
#[derive(Debug)]
pub struct IngressContext {
    pub(super) relay: String,
    pub(super) hostname: String,
    pub(super) limits: SessionLimits,
    pub(super) drain_timeout: Duration,
    pub(super) tls: Arc<Live<PublicTls>>,
    pub(super) submit: SubmitClient,
    pub(super) policy: watch::Receiver<Option<Arc<PolicySnapshot>>>,
    pub(super) handover: Handover,
    pub(super) authenticator: Authenticator,
    pub(super) budget: BodyBudget,
    pub(super) max_connections: usize,
    pub(super) max_per_address: usize,
    pub(super) metrics: IngressMetrics,
    max_size: u64,
    proxies: Vec<Network>,
}

impl IngressContext {
    /// Shows the certificate that `tls` has at each handshake.
    pub fn new(
        config: &RelayNodeConfig,
        tls: Arc<Live<PublicTls>>,
        submit: SubmitClient,
        policy: watch::Receiver<Option<Arc<PolicySnapshot>>>,
        handover: Handover,
        metrics: IngressMetrics,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            relay: config.name.clone(),
            hostname: config.hostname.clone(),
            limits: config.sessions.clone(),
            drain_timeout: config.drain_timeout.0,
            tls,
            submit,
            policy,
            handover,
            authenticator: Authenticator::new()?,
            budget: BodyBudget::new(config.body_budget.0 / 2, metrics.body_bytes().clone()),
            max_connections: config.connections,
            max_per_address: config.connections_per_address,
            metrics,
            max_size: config.max_message_size.0,
            proxies: config.listeners.proxy_protocol_from.clone(),
        })
    }

    /// The rules of one listener.
    pub(super) fn session_config(&self, listener: Listener) -> Arc<ServerConfig> {
        Arc::new(ServerConfig {
            hostname: self.hostname.clone(),
            listener,
            max_size: self.max_size,
            max_recipients: self.limits.recipients,
            max_line: self.limits.command_line,
            max_errors: self.limits.errors,
            max_auth_failures: self.limits.auth_failures,
        })
    }

    /// Whether a connection from there has to say in a PROXY header who its client is.
    pub(super) fn is_proxy(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|n| n.contains(address))
    }

    /// The policy in force.
    pub(super) fn policy(&self) -> Option<Arc<PolicySnapshot>> {
        self.policy.borrow().clone()
    }
}
