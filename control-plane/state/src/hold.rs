//! What an operator does to messages: hold, let go, end. Every change is audited in its shard.
use crate::{
    apply::{Effect, Step},
    records::{get, put, recipient_count, recipient_key, recipients},
    shard::parse_id,
    tables::{Table, TableError, WriteTables},
};
use sealane_wire::v1::{self, command_reply::Result as Answer, recipient_record::State};

fn audit<T: WriteTables>(s: &mut Step<'_, T>, actor: String, action: &str, detail: String) {
    let record = v1::AuditRecord {
        at_ms: s.now,
        actor,
        action: action.to_owned(),
        detail,
    };
    put(s.tables, Table::Audit, &s.index.to_be_bytes(), &record);
}

/// Calls `change` on every named message that is there, and reads it again; names the ids it took.
fn each<T: WriteTables>(
    s: &mut Step<'_, T>,
    ids: Vec<bytes::Bytes>,
    change: impl Fn(
        &mut Step<'_, T>,
        sealane_types::MessageId,
        &mut v1::MessageRecord,
    ) -> Result<(), TableError>,
) -> Result<Vec<v1::LeaseRef>, TableError> {
    let mut done = Vec::new();
    for raw in ids {
        let Ok(id) = parse_id(s, &raw) else { continue };
        let Some(mut m) = get::<v1::MessageRecord>(s.tables, Table::Message, id.as_bytes())? else {
            continue;
        };
        change(s, id, &mut m)?;
        put(s.tables, Table::Message, id.as_bytes(), &m);
        s.effects.push(Effect::Message(id));
        done.push(v1::LeaseRef {
            id: raw,
            ..Default::default()
        });
    }
    Ok(done)
}

fn counted(accepted: Vec<v1::LeaseRef>) -> Answer {
    Answer::Counted(v1::Counted {
        effective: u32::try_from(accepted.len()).unwrap_or(u32::MAX),
        accepted,
    })
}

fn names(done: &[v1::LeaseRef]) -> String {
    let ids = done
        .iter()
        .filter_map(|l| sealane_types::MessageId::from_slice(&l.id).ok());
    ids.map(|id| id.to_string()).collect::<Vec<_>>().join(" ")
}

/// Holds messages with a reason, or lets them go on: at once, with the patience of a fresh message for
/// silent relays. Attempts under way end as they end.
pub(crate) fn hold<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::HoldOp,
) -> Result<Answer, TableError> {
    let reason = o.reason;
    let done = each(s, o.ids, |s, id, m| {
        m.hold.clone_from(&reason);
        let (from, to) = if reason.is_empty() {
            (State::Held, State::Waiting)
        } else {
            (State::Waiting, State::Held)
        };
        for (n, mut r) in recipients(s.tables, id, recipient_count(m))?
            .into_iter()
            .enumerate()
        {
            if reason.is_empty() {
                r.lost_holders = 0;
            }
            if r.state() == from {
                r.set_state(to);
                r.due_ms = s.now;
            }
            let key = recipient_key(id, u32::try_from(n).unwrap_or(u32::MAX));
            put(s.tables, Table::Recipient, &key, &r);
        }
        Ok(())
    })?;
    let action = if reason.is_empty() { "release" } else { "hold" };
    audit(s, o.actor, action, names(&done));
    Ok(counted(done))
}

/// Their time is up now. The leader then returns what waits, with its report, in an entry of its own.
pub(crate) fn expire<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::ExpireOp,
) -> Result<Answer, TableError> {
    let done = each(s, o.ids, |s, _, m| {
        m.expires_at_ms = m.expires_at_ms.min(s.now);
        Ok(())
    })?;
    audit(s, o.actor, "expire", names(&done));
    Ok(counted(done))
}
