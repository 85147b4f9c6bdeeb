//! `cluster status`, `node list`, `queue list`, `queue show`, and what is done to messages.
use crate::{Connection, Output, connect::cause};
use comfy_table::{Table, presets::NOTHING};
use sealane_wire::v1::{self, admin_client::AdminClient, change_messages_request::Action};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub(crate) fn table(header: &[&str]) -> Table {
    let mut t = Table::new();
    t.load_preset(NOTHING).set_header(header);
    t
}

pub(crate) fn age(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..=119 => format!("{s}s"),
        s @ 120..=7199 => format!("{}m", s / 60),
        s @ 7200..=172_799 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

pub(crate) fn date(ms: u64) -> String {
    let at = i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map(|t| t.to_string()).unwrap_or_default()
}

pub(crate) fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

pub(crate) fn print(output: Output, json: &Value, table: impl FnOnce() -> String) {
    match output {
        Output::Table => println!("{}", table()),
        Output::Json => println!("{json}"),
    }
}

/// Asks every node; a group's leader knows best about it.
pub(crate) async fn cluster_status(connection: &Connection, output: Output) -> anyhow::Result<()> {
    let mut groups: BTreeMap<u32, v1::GroupStatus> = BTreeMap::new();
    let mut head: Option<v1::ClusterStatusReply> = None;
    let mut causes = Vec::new();
    for (address, channel) in connection.channels()? {
        let mut client = AdminClient::new(channel);
        let call = client.cluster_status(v1::ClusterStatusRequest {});
        match tokio::time::timeout(std::time::Duration::from_secs(5), call).await {
            Ok(Ok(r)) => {
                let r = r.into_inner();
                for g in &r.groups {
                    let by_leader = g.leader == r.answered_by;
                    let better = groups
                        .get(&g.group)
                        .is_none_or(|old| g.term > old.term || (g.term == old.term && by_leader));
                    if better {
                        groups.insert(g.group, g.clone());
                    }
                }
                head.get_or_insert(r);
            }
            Ok(Err(s)) => causes.push(format!("  {address}: {}", cause(&s))),
            Err(_) => causes.push(format!("  {address}: no answer")),
        }
    }
    let Some(head) = head else {
        anyhow::bail!("no control-plane node answered:\n{}", causes.join("\n"))
    };
    for c in &causes {
        eprintln!("not reached:{}", c.trim_start_matches(' '));
    }
    let value = json!({
        "clusterId": head.cluster_id, "clusterName": head.cluster_name, "policyRevision": head.policy_revision,
        "replicas": head.replicas,
        "groups": groups.values().map(|g| json!({
            "group": g.group, "leader": g.leader, "term": g.term, "lastLogIndex": g.last_log_index,
            "appliedIndex": g.applied_index, "purgedIndex": g.purged_index, "voters": g.voters, "learners": g.learners,
            "waiting": g.waiting, "oldestAgeMs": g.oldest_age_ms, "quorum": g.quorum,
        })).collect::<Vec<_>>(),
    });
    print(output, &value, || {
        let mut t = table(&[
            "GROUP", "LEADER", "TERM", "QUORUM", "VOTERS", "LEARNERS", "LOG", "APPLIED", "WAITING",
            "OLDEST",
        ]);
        for g in groups.values() {
            let name = if g.group == 0 {
                "meta".to_owned()
            } else {
                format!("shard {}", g.group)
            };
            let list = |l: &[u64]| l.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
            t.add_row([
                name,
                if g.leader == 0 {
                    "none".into()
                } else {
                    g.leader.to_string()
                },
                g.term.to_string(),
                if g.quorum { "yes".into() } else { "NO".into() },
                list(&g.voters),
                list(&g.learners),
                g.last_log_index.to_string(),
                g.applied_index.to_string(),
                g.waiting.to_string(),
                if g.waiting == 0 {
                    "-".into()
                } else {
                    age(g.oldest_age_ms)
                },
            ]);
        }
        format!(
            "cluster {} · {} copies · policy revision {}\n{t}",
            head.cluster_id, head.replicas, head.policy_revision
        )
    });
    Ok(())
}

pub(crate) async fn node_list(connection: &Connection, output: Output) -> anyhow::Result<()> {
    let reply = connection
        .first(|c| async move {
            AdminClient::new(c)
                .list_nodes(v1::ListNodesRequest {})
                .await
        })
        .await?;
    let kind = |n: &v1::NodeInfo| match n.kind() {
        v1::node_info::Kind::Relay => "relay",
        _ => "control-plane",
    };
    let value = json!({ "nodes": reply.nodes.iter().map(|n| json!({
        "kind": kind(n), "name": n.name, "id": n.node_id, "address": n.address, "state": n.state, "leads": n.leads,
        "since": date(n.connected_since_ms),
    })).collect::<Vec<_>>() });
    print(output, &value, || {
        let mut t = table(&["KIND", "NAME", "ID", "ADDRESS", "STATE", "LEADS", "SINCE"]);
        for n in &reply.nodes {
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
                n.leads.to_string(),
                date(n.connected_since_ms),
            ]);
        }
        t.to_string()
    });
    Ok(())
}

fn message_json(m: &v1::QueuedMessage) -> Value {
    json!({
        "id": m.id, "reversePath": m.reverse_path, "size": m.size, "acceptedAt": date(m.accepted_at_ms),
        "submitter": m.submitter,
        "recipients": m.recipients.iter().map(|r| json!({
            "mailbox": r.mailbox, "state": r.state, "attempts": r.attempts, "dueAt": date(r.due_at_ms),
            "leaseHolder": r.lease_holder, "epoch": r.epoch,
            "lastReply": r.last_reply.as_ref().map(|l| json!({
                "code": l.code, "enhanced": l.enhanced, "text": l.text, "remote": l.remote })),
        })).collect::<Vec<_>>(),
    })
}

pub(crate) async fn queue_list(
    connection: &Connection,
    output: Output,
    destination: String,
    limit: u32,
) -> anyhow::Result<()> {
    let request = v1::ListQueueRequest {
        limit,
        page_token: String::new(),
        destination,
    };
    let reply = connection
        .first(|c| {
            let request = request.clone();
            async move { AdminClient::new(c).list_queue(request).await }
        })
        .await?;
    let value = json!({
        "totalWaiting": reply.total_waiting,
        "messages": reply.messages.iter().map(message_json).collect::<Vec<_>>(),
    });
    print(output, &value, || {
        let mut t = table(&[
            "ID",
            "AGE",
            "SIZE",
            "FROM",
            "TO",
            "STATE",
            "TRIES",
            "LAST REPLY",
        ]);
        for m in &reply.messages {
            for r in &m.recipients {
                let last = r.last_reply.as_ref().map_or(String::new(), |l| {
                    format!("{} {} {}", l.code, l.enhanced, l.text)
                });
                t.add_row([
                    m.id.clone(),
                    age(now_ms().saturating_sub(m.accepted_at_ms)),
                    m.size.to_string(),
                    format!("<{}>", m.reverse_path),
                    r.mailbox.clone(),
                    r.state.clone(),
                    r.attempts.to_string(),
                    last.chars().take(60).collect(),
                ]);
            }
        }
        let shown = reply.messages.len() as u64;
        let rest = if shown < reply.total_waiting && shown == u64::from(limit) {
            format!("; {shown} shown, --limit shows more")
        } else {
            String::new()
        };
        format!("{t}\n{} waiting{rest}", reply.total_waiting)
    });
    Ok(())
}

pub(crate) async fn queue_show(
    connection: &Connection,
    output: Output,
    id: String,
) -> anyhow::Result<()> {
    let request = v1::ShowMessageRequest { id };
    let reply = connection
        .first(|c| {
            let request = request.clone();
            async move { AdminClient::new(c).show_message(request).await }
        })
        .await?;
    let entry = reply.entry.clone().unwrap_or_default();
    let tls = entry.tls.clone().unwrap_or_default();
    let value = json!({
        "message": reply.message.as_ref().map(message_json),
        "shard": reply.shard, "hold": reply.hold, "expiresAt": date(reply.expires_at_ms),
        "sha256": data_encoding::HEXLOWER.encode(&reply.sha256),
        "traceparent": reply.trace.as_ref().map(|t| &t.traceparent),
        "bodyParts": reply.body.len(),
        "entry": { "listener": entry.listener, "peer": entry.peer, "helo": entry.helo, "submitter": entry.submitter,
            "rule": entry.rule, "policyRevision": entry.policy_revision, "relay": entry.relay,
            "acceptedAt": date(entry.accepted_at_ms), "tls": format!("{} {} {}", tls.version, tls.cipher, tls.group) },
    });
    print(output, &value, || message_page(&reply));
    Ok(())
}

pub(crate) async fn queue_change(
    connection: &Connection,
    output: Output,
    action: Action,
    ids: Vec<String>,
    reason: String,
) -> anyhow::Result<()> {
    let request = v1::ChangeMessagesRequest {
        ids,
        action: action.into(),
        reason,
    };
    let reply = connection
        .first(|c| {
            let request = request.clone();
            async move { AdminClient::new(c).change_messages(request).await }
        })
        .await?;
    let value = json!({ "changed": reply.changed, "missing": reply.missing });
    let done = match action {
        Action::Hold => "held",
        Action::Release => "released",
        Action::Return | Action::Unspecified => "returned",
    };
    print(output, &value, || {
        let changed = reply.changed.iter().map(|id| format!("{id}  {done}"));
        let missing = reply
            .missing
            .iter()
            .map(|id| format!("{id}  not in the queue"));
        changed.chain(missing).collect::<Vec<_>>().join("\n")
    });
    Ok(())
}

/// One message for people.
fn message_page(reply: &v1::ShowMessageReply) -> String {
    let message = reply.message.clone().unwrap_or_default();
    let entry = reply.entry.clone().unwrap_or_default();
    let tls = entry.tls.clone().unwrap_or_default();
    let mut facts = Table::new();
    facts.load_preset(NOTHING);
    let mut fact = |name: &str, value: String| {
        facts.add_row([name.to_owned(), value]);
    };
    fact("message", format!("{} (shard {})", message.id, reply.shard));
    fact("from", format!("<{}>", message.reverse_path));
    fact(
        "size",
        format!("{} octets in {} parts", message.size, reply.body.len()),
    );
    fact(
        "accepted",
        format!(
            "{} ({} ago)",
            date(message.accepted_at_ms),
            age(now_ms().saturating_sub(message.accepted_at_ms))
        ),
    );
    fact("expires", date(reply.expires_at_ms));
    if !reply.hold.is_empty() {
        fact("held", reply.hold.clone());
    }
    fact(
        "came in",
        format!(
            "{} of {} from {} (HELO {})",
            entry.listener, entry.relay, entry.peer, entry.helo
        ),
    );
    if !entry.submitter.is_empty() {
        fact("submitter", entry.submitter.clone());
    }
    fact(
        "let in by",
        format!("{} (policy revision {})", entry.rule, entry.policy_revision),
    );
    fact(
        "TLS",
        format!("{} {} {}", tls.version, tls.cipher, tls.group),
    );
    fact("sha256", data_encoding::HEXLOWER.encode(&reply.sha256));
    if let Some(trace) = &reply.trace {
        fact("trace", trace.traceparent.clone());
    }
    let mut recipients = table(&["TO", "STATE", "TRIES", "NEXT TRY", "HELD BY", "LAST REPLY"]);
    for r in &message.recipients {
        let last = r.last_reply.as_ref().map_or(String::new(), |l| {
            format!("{} {} {} ({})", l.code, l.enhanced, l.text, l.remote)
        });
        recipients.add_row([
            r.mailbox.clone(),
            r.state.clone(),
            r.attempts.to_string(),
            date(r.due_at_ms),
            r.lease_holder.clone(),
            last,
        ]);
    }
    format!("{facts}\n\n{recipients}")
}
