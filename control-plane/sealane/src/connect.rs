//! Reaching the control plane: addresses in turn, one clear error if none answers.
use crate::Connection;
use anyhow::{Context, bail};
use sealane_runtime::{
    grpc,
    identity::{Identity, IdentityConfig},
};
use sealane_wire::v1::{self, admin_client::AdminClient};
use std::{future::Future, time::Duration};
use tonic::{Code, Status, transport::Channel};

pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

impl Connection {
    pub(crate) fn identity(&self) -> anyhow::Result<Identity> {
        let need = |path: &Option<std::path::PathBuf>, flag: &str, env: &str| {
            path.clone()
                .with_context(|| format!("{flag} is missing: give it or set {env}"))
        };
        Identity::load(&IdentityConfig {
            certificate: need(&self.cert, "--cert", "SEALANE_CERT")?,
            key: need(&self.key, "--key", "SEALANE_KEY")?,
            ca: need(&self.ca, "--ca", "SEALANE_CA")?,
        })
        .context("identity")
    }

    /// Channels to every address.
    pub(crate) fn channels(&self) -> anyhow::Result<Vec<(String, Channel)>> {
        if self.control.is_empty() {
            bail!("--control is missing: give control-plane addresses or set SEALANE_CONTROL");
        }
        let identity = self.identity()?;
        self.control
            .iter()
            .map(|a| Ok((a.clone(), grpc::channel(a, &identity)?)))
            .collect()
    }

    /// Channels to the configured addresses, and to the other nodes that the first one to answer knows of:
    /// not every node holds every shard.
    pub(crate) async fn all_nodes(&self) -> anyhow::Result<Vec<(String, Channel)>> {
        let mut all = self.channels()?;
        let identity = self.identity()?;
        let asked = self.first(|c| async move {
            AdminClient::new(c)
                .list_nodes(v1::ListNodesRequest {})
                .await
        });
        for node in asked.await?.nodes {
            let member = node.node_id != 0 && !matches!(node.state.as_str(), "removed" | "lost");
            if member && !all.iter().any(|(a, _)| *a == node.address) {
                all.push((
                    node.address.clone(),
                    grpc::channel(&node.address, &identity)?,
                ));
            }
        }
        Ok(all)
    }

    /// The first answer that is one; a refusal by the cluster itself is final.
    pub(crate) async fn first<T, F>(&self, call: impl Fn(Channel) -> F) -> anyhow::Result<T>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        first_of(self.channels()?, call).await
    }
}

/// The same among `nodes`.
pub(crate) async fn first_of<T, F>(
    nodes: Vec<(String, Channel)>,
    call: impl Fn(Channel) -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let mut causes = Vec::new();
    for (address, channel) in nodes {
        match tokio::time::timeout(DEADLINE, call(channel)).await {
            Ok(Ok(r)) => return Ok(r.into_inner()),
            Ok(Err(s))
                if !matches!(
                    s.code(),
                    Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled
                ) =>
            {
                bail!("{}", s.message());
            }
            Ok(Err(s)) => causes.push(format!("  {address}: {}", cause(&s))),
            Err(_) => causes.push(format!("  {address}: no answer within {DEADLINE:?}")),
        }
    }
    bail!("no control-plane node answered:\n{}", causes.join("\n"))
}

/// The innermost cause: tonic wraps it several times.
pub(crate) fn cause(s: &Status) -> String {
    let mut text = s.message().to_owned();
    let mut source = std::error::Error::source(s);
    while let Some(e) = source {
        text = e.to_string();
        source = e.source();
    }
    text
}
