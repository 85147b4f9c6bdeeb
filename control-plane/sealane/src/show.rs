//! `cluster status`, `queue list`, `queue show`, and what is done to messages.
use crate::{
    Connection, Output,
    connect::{DEADLINE, cause, first_of},
};
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

/// Whether a group's voters are those of the placement.
fn placed(g: &v1::GroupStatus) -> bool {
    g.voters.len() == g.wanted.len() && g.wanted.iter().all(|n| g.voters.contains(n))
}

/// Asks every node; a group's leader knows best about it.
pub(crate) async fn cluster_status(connection: &Connection, output: Output) -> anyhow::Result<()> {
    // The best word about each group, and whether its leader said it.
    let mut groups: BTreeMap<u32, (v1::GroupStatus, bool)> = BTreeMap::new();
    let mut head: Option<v1::ClusterStatusReply> = None;
    let mut causes = Vec::new();
    for (address, channel) in connection.all_nodes().await? {
        let mut client = AdminClient::new(channel);
        let call = client.cluster_status(v1::ClusterStatusRequest {});
        match tokio::time::timeout(std::time::Duration::from_secs(5), call).await {
            Ok(Ok(r)) => {
                let r = r.into_inner();
                for g in &r.groups {
                    let by_leader = g.leader == r.answered_by;
                    let rank = |g: &v1::GroupStatus, by_leader| (g.term, by_leader, g.held);
                    let better = groups.get(&g.group).is_none_or(|(old, old_by_leader)| {
                        rank(g, by_leader) > rank(old, *old_by_leader)
                    });
                    if better {
                        groups.insert(g.group, (g.clone(), by_leader));
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
    let groups: Vec<v1::GroupStatus> = groups.into_values().map(|(g, _)| g).collect();
    let value = json!({
        "clusterId": head.cluster_id, "clusterName": head.cluster_name, "policyRevision": head.policy_revision,
        "replicas": head.replicas,
        "groups": groups.iter().map(|g| json!({
            "group": g.group, "leader": g.leader, "term": g.term, "lastLogIndex": g.last_log_index,
            "appliedIndex": g.applied_index, "purgedIndex": g.purged_index, "voters": g.voters, "learners": g.learners,
            "waiting": g.waiting, "oldestAgeMs": g.oldest_age_ms, "quorum": g.quorum,
            "wanted": g.wanted, "placed": placed(g),
        })).collect::<Vec<_>>(),
    });
    print(output, &value, || {
        let mut t = table(&[
            "GROUP", "LEADER", "TERM", "QUORUM", "VOTERS", "WANTED", "LEARNERS", "LOG", "APPLIED",
            "WAITING", "OLDEST",
        ]);
        for g in &groups {
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
                if placed(g) {
                    "as is".into()
                } else {
                    list(&g.wanted)
                },
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

/// The queue of all shards: each node is asked for the shards that no node before it held.
async fn whole_queue(
    connection: &Connection,
    destination: String,
    limit: u32,
) -> anyhow::Result<v1::ListQueueReply> {
    let (mut whole, mut causes) = (v1::ListQueueReply::default(), Vec::new());
    for (address, channel) in connection.all_nodes().await? {
        let mut client = AdminClient::new(channel);
        let request = |shards| v1::ListQueueRequest {
            limit,
            page_token: String::new(),
            destination: destination.clone(),
            shards,
        };
        let status = client.cluster_status(v1::ClusterStatusRequest {});
        let held = match tokio::time::timeout(DEADLINE, status).await {
            Ok(Ok(status)) => status.into_inner().groups,
            Ok(Err(s)) => {
                causes.push(format!("{address}: {}", cause(&s)));
                continue;
            }
            Err(_) => {
                causes.push(format!("{address}: no answer"));
                continue;
            }
        };
        let new = held
            .iter()
            .filter(|g| g.group != 0 && g.held)
            .map(|g| g.group);
        let new: Vec<u32> = new.filter(|g| !whole.shards.contains(g)).collect();
        if new.is_empty() {
            continue;
        }
        let part = client.list_queue(request(new)).await?.into_inner();
        whole.messages.extend(part.messages);
        whole.total_waiting += part.total_waiting;
        whole.shards.extend(part.shards);
    }
    for c in &causes {
        eprintln!("not reached: {c}");
    }
    // Ids begin with their shard and go on with the time of acceptance.
    whole.messages.sort_by(|a, b| a.id.cmp(&b.id));
    whole
        .messages
        .truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(whole)
}

pub(crate) async fn queue_list(
    connection: &Connection,
    output: Output,
    destination: String,
    limit: u32,
) -> anyhow::Result<()> {
    let reply = whole_queue(connection, destination, limit).await?;
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
    let reply = first_of(connection.all_nodes().await?, |c| {
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
