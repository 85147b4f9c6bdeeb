//! What processes say about themselves: probes, and the admin CLI.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::layout::Layout;

/// GET over a bare socket: Ok when the status is 200.
///
/// # Errors
/// When nobody answers or the status is another.
pub async fn http_ok(address: SocketAddr, path: &str) -> Result<()> {
    http_get(address, path).await.map(|_| ())
}

/// GET over a bare socket; gives the response with its headers.
///
/// # Errors
/// When nobody answers or the status is not 200.
pub async fn http_get(address: SocketAddr, path: &str) -> Result<String> {
    let asking = async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), asking).await??;
    ensure!(
        answer.starts_with("HTTP/1.1 200"),
        "{path}: {}",
        answer.lines().next().unwrap_or("empty answer")
    );
    Ok(answer)
}

/// Whether every group has a leader and three voters (or as many as there are nodes).
///
/// # Errors
/// Says which group has not.
pub(crate) fn settled(layout: &Layout) -> Result<()> {
    let status = layout.admin_json(&["cluster", "status"])?;
    let groups = groups(&status)?;
    ensure!(
        groups.len() as u64 == u64::from(layout.settings.shards) + 1,
        "{} groups",
        groups.len()
    );
    let voters = layout.control_planes.len().min(3);
    for group in groups {
        ensure!(number(group, "leader") != 0, "no leader: {group}");
        let known = group
            .get("voters")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        ensure!(known >= voters, "{known} voters: {group}");
    }
    Ok(())
}

fn groups(status: &Value) -> Result<&Vec<Value>> {
    status
        .get("groups")
        .and_then(Value::as_array)
        .with_context(|| format!("no groups in {status}"))
}

/// A number of a JSON object; JSON mappings of protobuf may write 64-bit numbers as strings.
#[must_use]
pub fn number(value: &Value, key: &str) -> u64 {
    match value.get(key) {
        Some(Value::String(text)) => text.parse().unwrap_or(0),
        Some(other) => other.as_u64().unwrap_or(0),
        None => 0,
    }
}

pub(super) fn leader_and_follower(layout: &Layout, group: u64) -> Result<(String, String)> {
    let status = layout.admin_json(&["cluster", "status"])?;
    let entry = groups(&status)?
        .iter()
        .find(|one| number(one, "group") == group)
        .with_context(|| format!("group {group} in {status}"))?;
    let leader = number(entry, "leader");
    ensure!(leader != 0, "group {group} has no leader");
    let nodes = layout.admin_json(&["node", "list"])?;
    let list = nodes
        .as_array()
        .or_else(|| nodes.get("nodes").and_then(Value::as_array))
        .context("nodes")?;
    let mut found = (None, None);
    for node in list {
        let id = ["nodeId", "node_id", "id"]
            .iter()
            .map(|key| number(node, key))
            .max()
            .unwrap_or(0);
        let name = node
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        if id == leader {
            found.0 = Some(name);
        } else if id != 0 {
            found.1 = Some(name);
        }
    }
    Ok((
        found.0.context("leader's name")?,
        found.1.context("a follower's name")?,
    ))
}
