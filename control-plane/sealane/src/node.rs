//! `node list`, and what is done to nodes.
use crate::{
    Connection, Output, Wait,
    show::{date, print, table},
};
use sealane_wire::v1::{self, admin_client::AdminClient, change_node_request::Action};
use serde_json::{Value, json};
use std::{io::IsTerminal, time::Duration};

/// Between two looks at a change that is under way.
const LOOK: Duration = Duration::from_millis(500);

fn kind(n: &v1::NodeInfo) -> &'static str {
    match n.kind() {
        v1::node_info::Kind::Relay => "relay",
        _ => "control-plane",
    }
}

async fn ask(connection: &Connection) -> anyhow::Result<v1::ListNodesReply> {
    connection
        .first(|c| async move {
            AdminClient::new(c)
                .list_nodes(v1::ListNodesRequest {})
                .await
        })
        .await
}

fn as_json(reply: &v1::ListNodesReply) -> Value {
    json!({ "settled": reply.settled, "nodes": reply.nodes.iter().map(|n| json!({
        "kind": kind(n), "name": n.name, "id": n.node_id, "address": n.address, "state": n.state, "leads": n.leads,
        "replicas": n.replicas, "wantedReplicas": n.wanted_replicas,
        "shardLeads": n.shard_leads, "wantedShardLeads": n.wanted_shard_leads,
        "since": date(n.connected_since_ms),
    })).collect::<Vec<_>>() })
}

pub(crate) async fn list(connection: &Connection, output: Output) -> anyhow::Result<()> {
    let reply = ask(connection).await?;
    print(output, &as_json(&reply), || {
        let mut t = table(&[
            "KIND", "NAME", "ID", "ADDRESS", "STATE", "SHARDS", "LEADS", "SINCE",
        ]);
        for n in &reply.nodes {
            let holds = !matches!(n.kind(), v1::node_info::Kind::Relay);
            let of = |is: u32, wanted: u32| {
                if holds {
                    format!("{is}/{wanted}")
                } else {
                    "-".to_owned()
                }
            };
            t.add_row([
                kind(n).to_owned(),
                n.name.clone(),
                if n.node_id == 0 {
                    "-".into()
                } else {
                    n.node_id.to_string()
                },
                n.address.clone(),
                n.state.clone(),
                of(n.replicas, n.wanted_replicas),
                of(n.shard_leads, n.wanted_shard_leads),
                date(n.connected_since_ms),
            ]);
        }
        let moving = if reply.settled {
            ""
        } else {
            "\nreplicas are moving, or a group has no leader: `sealane cluster status` shows which"
        };
        format!("{t}{moving}")
    });
    Ok(())
}

/// Asks for a change and, unless told otherwise, waits until every group is where it is to be.
pub(crate) async fn change(
    connection: &Connection,
    output: Output,
    action: Action,
    node: String,
    with: String,
    wait: Wait,
) -> anyhow::Result<()> {
    let request = v1::ChangeNodeRequest {
        action: action.into(),
        node,
        with,
    };
    let holder = connection
        .first(|c| {
            let request = request.clone();
            async move { AdminClient::new(c).change_node(request).await }
        })
        .await?
        .node_id;
    let reply = if wait.no_wait {
        ask(connection).await?
    } else {
        settled(connection, holder).await?
    };
    let about = reply.nodes.iter().find(|n| n.node_id == holder);
    let value = json!({ "node": holder, "settled": reply.settled,
        "name": about.map(|n| &n.name), "state": about.map(|n| &n.state) });
    print(output, &value, || {
        let name = about.map_or("", |n| n.name.as_str());
        let state = about.map_or("unknown", |n| n.state.as_str());
        let more = match state {
            "lost" => ": its places wait for the next node that joins",
            _ if reply.settled => "",
            _ => ": replicas are moving, `sealane node list` shows how many are left",
        };
        format!("node {holder} ({name}) is {state}{more}")
    });
    Ok(())
}

/// Waits; says on a terminal how far it is. A node that does not answer is not the end: the change goes
/// on by itself.
async fn settled(connection: &Connection, holder: u64) -> anyhow::Result<v1::ListNodesReply> {
    let terminal = std::io::stderr().is_terminal();
    let mut said = String::new();
    loop {
        if let Ok(reply) = ask(connection).await {
            let lost = reply
                .nodes
                .iter()
                .any(|n| n.node_id == holder && n.state == "lost");
            if reply.settled || lost {
                return Ok(reply);
            }
            let now = progress(&reply);
            if terminal && now != said {
                eprintln!("{now}");
                said = now;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn progress(reply: &v1::ListNodesReply) -> String {
    let members = reply
        .nodes
        .iter()
        .filter(|n| n.node_id != 0 && (n.replicas > 0 || n.wanted_replicas > 0));
    let each: Vec<String> = members
        .map(|n| format!("{} {}/{}", n.name, n.replicas, n.wanted_replicas))
        .collect();
    format!("moving replicas: {}", each.join(", "))
}
