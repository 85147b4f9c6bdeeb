//! Restoring a backup into a fresh cluster, entry by entry.
//!
//! Every message of a shard names the one before it, and the shard remembers the last one. So a
//! repetition is told from news without a memory of ids: what is not behind the last one is a
//! repetition, what does not name the last one is refused, because something would be left out. A
//! restore that was interrupted goes on from there; a message that was restored, and delivered since,
//! is not restored again.
use crate::{
    apply::{Effect, Step, refused},
    meta,
    records::{clock, get, put, recipient_key},
    shard::{
        check_envelope, count, drop_uploads, exists, fate, parse_id, set_fate, take_body, wait,
    },
    tables::{Table, TableError, WriteTables},
};
use sealane_types::MessageId;
use sealane_wire::v1::{
    self, command_reply::Result as Answer, dedupe_record::Fate, recipient_record::State,
    restore_cluster_op::Step as Phase, restore_op::Step as Do, restore_record::State as Progress,
};

/// Where the restore's record is, in [`Table::Cluster`].
pub(crate) const KEY: &[u8] = b"restore";
/// Octets of the digest that names a backup.
const DIGEST: usize = 32;

fn record<T: WriteTables>(s: &Step<'_, T>) -> Result<Option<v1::RestoreRecord>, TableError> {
    get(s.tables, Table::Cluster, KEY)
}

fn save<T: WriteTables>(s: &mut Step<'_, T>, record: v1::RestoreRecord) -> Answer {
    put(s.tables, Table::Cluster, KEY, &record);
    Answer::Restore(record.into())
}

/// The record of the restore that `backup` belongs to.
fn under_way<T: WriteTables>(
    s: &Step<'_, T>,
    backup: &[u8],
) -> Result<Result<v1::RestoreRecord, Answer>, TableError> {
    Ok(match record(s)? {
        Some(r) if r.backup == backup => Ok(r),
        Some(_) => Err(refused("backup", "another backup was restored here")),
        None => Err(refused("backup", "its restore was not begun here")),
    })
}

/// A new record, or the one that is there if it is of the same restore.
fn begin<T: WriteTables>(
    s: &mut Step<'_, T>,
    backup: bytes::Bytes,
    o: v1::RestoreOpen,
    fresh: Result<(), Answer>,
) -> Result<Answer, TableError> {
    if backup.len() != DIGEST {
        return Ok(refused("backup", format!("needs {DIGEST} octets")));
    }
    if let Some(r) = record(s)? {
        return Ok(if r.backup != backup {
            refused("backup", "another backup was restored here")
        } else if r.hold != o.hold {
            refused("hold", format!("the restore was begun with {:?}", r.hold))
        } else {
            Answer::Restore(r.into())
        });
    }
    if let Err(a) = fresh {
        return Ok(a);
    }
    let record = v1::RestoreRecord {
        backup,
        state: Progress::Restoring.into(),
        source_cluster: o.source_cluster,
        begun_at_ms: s.now,
        hold: o.hold,
        ..Default::default()
    };
    Ok(save(s, record))
}

// ---- group 0

/// A step of the restore of the cluster.
pub(crate) fn cluster<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::RestoreClusterOp,
) -> Result<Answer, TableError> {
    match o.step() {
        Phase::Begin => begin_cluster(s, o),
        Phase::Policy => policy(s, o),
        Phase::End => end_cluster(s, &o),
        Phase::Unspecified => Ok(refused("step", "BEGIN, POLICY or END")),
    }
}

fn begin_cluster<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::RestoreClusterOp,
) -> Result<Answer, TableError> {
    let revision = meta::revision(s)?;
    let fresh = if revision == 0 {
        Ok(())
    } else {
        let why = format!("the cluster is in use: its policy is at revision {revision}");
        Err(refused("cluster", why))
    };
    let known = record(s)?.is_some();
    let what = format!("backup of cluster {}, hold {:?}", o.source_cluster, o.hold);
    let open = v1::RestoreOpen {
        source_cluster: o.source_cluster,
        hold: o.hold,
    };
    let answer = begin(s, o.backup, open, fresh)?;
    if !known && matches!(answer, Answer::Restore(_)) {
        meta::audit(s, &o.actor, "restore.begin", &what);
    }
    Ok(answer)
}

/// All documents at once, under the revision that they had: what messages say of it stays true.
fn policy<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::RestoreClusterOp,
) -> Result<Answer, TableError> {
    let mut r = match under_way(s, &o.backup)? {
        Ok(r) => r,
        Err(a) => return Ok(a),
    };
    if r.policy {
        return Ok(Answer::Restore(r.into()));
    }
    let revision = meta::revision(s)?;
    if revision != 0 {
        let why = format!("was changed during the restore, to revision {revision}");
        return Ok(refused("policy", why));
    }
    if o.policy_revision == 0 && !o.documents.is_empty() {
        return Ok(refused("policy_revision", "0, but there are documents"));
    }
    let mut keys = Vec::with_capacity(o.documents.len());
    for (n, d) in o.documents.iter().enumerate() {
        match meta::document_key(d) {
            Some(key) => keys.push(key),
            None => {
                return Ok(refused(
                    &format!("documents[{n}].kind"),
                    "missing or unknown",
                ));
            }
        }
    }
    for (key, d) in keys.iter().zip(&o.documents) {
        put(s.tables, Table::Policy, key.as_bytes(), d);
    }
    if o.policy_revision > 0 {
        let revision = o.policy_revision.to_be_bytes();
        s.tables.put(Table::Policy, b"", &revision);
        s.effects.push(Effect::Policy(o.policy_revision));
    }
    meta::audit(s, &o.actor, "restore.policy", &keys.join(" "));
    r.policy = true;
    Ok(save(s, r))
}

fn end_cluster<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: &v1::RestoreClusterOp,
) -> Result<Answer, TableError> {
    let mut r = match under_way(s, &o.backup)? {
        Ok(r) => r,
        Err(a) => return Ok(a),
    };
    if !r.policy {
        return Ok(refused("step", "the policy is not restored yet"));
    }
    if r.state() != Progress::Restored {
        r.set_state(Progress::Restored);
        r.ended_at_ms = s.now;
        r.messages = o.messages;
        let what = format!("{} messages of cluster {}", o.messages, r.source_cluster);
        meta::audit(s, &o.actor, "restore.end", &what);
    }
    Ok(save(s, r))
}

// ---- shards

/// A step of the restore of a shard; the answer says how far it is.
pub(crate) fn shard<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::RestoreOp,
) -> Result<(Answer, bool), TableError> {
    let step = match o.step {
        Some(Do::Open(open)) => {
            let c = clock(s.tables)?;
            let fresh = if c.messages == 0 && c.finished == 0 {
                Ok(())
            } else {
                let all = c.messages.saturating_add(c.finished);
                let why = format!("shard {} is in use: it had {all} messages", s.group);
                Err(refused("shard", why))
            };
            return Ok((begin(s, o.backup, open, fresh)?, false));
        }
        Some(step) => step,
        None => return Ok((refused("restore.step", "missing or unknown"), false)),
    };
    let r = match under_way(s, &o.backup)? {
        Ok(r) => r,
        Err(a) => return Ok((a, false)),
    };
    match step {
        Do::Message(m) => message(s, r, m),
        Do::Fates(f) => Ok((fates(s, r, f)?, false)),
        Do::Close(c) => Ok((close(s, r, &c), false)),
        Do::Open(_) => Ok((Answer::Restore(r.into()), false)),
    }
}

/// Ids that are over stay over: who still asks for them gets the first answer.
fn fates<T: WriteTables>(
    s: &mut Step<'_, T>,
    r: v1::RestoreRecord,
    f: v1::RestoredFates,
) -> Result<Answer, TableError> {
    for (ids, kind) in [(f.aborted, Fate::Aborted), (f.finished, Fate::Finished)] {
        for raw in ids {
            let id = match parse_id(s, &raw) {
                Ok(id) => id,
                Err(a) => return Ok(a),
            };
            if !exists(s, id)? && fate(s, id)?.is_none() {
                set_fate(s, id, kind)?;
            }
        }
    }
    Ok(Answer::Restore(r.into()))
}

fn close<T: WriteTables>(
    s: &mut Step<'_, T>,
    mut r: v1::RestoreRecord,
    c: &v1::RestoreClose,
) -> Answer {
    if r.last != c.after {
        return refused("close.after", "is not the last message restored");
    }
    if r.state() != Progress::Restored {
        r.set_state(Progress::Restored);
        r.ended_at_ms = s.now;
    }
    save(s, r)
}

fn message<T: WriteTables>(
    s: &mut Step<'_, T>,
    mut r: v1::RestoreRecord,
    m: v1::RestoredMessage,
) -> Result<(Answer, bool), TableError> {
    let id = match parse_id(s, &m.id) {
        Ok(id) => id,
        Err(a) => return Ok((a, false)),
    };
    if m.id <= r.last {
        drop_uploads(s, id)?;
        return Ok((Answer::Restore(r.into()), false));
    }
    if r.state() == Progress::Restored {
        return Ok((refused("restore", "of this shard is over"), false));
    }
    if m.after != r.last {
        return Ok((
            refused("message.after", "is not the last one restored"),
            false,
        ));
    }
    r.last = m.id.clone();
    if exists(s, id)? || fate(s, id)?.is_some() {
        // Its relay brought it to this cluster already, or settled that it never will be accepted.
        drop_uploads(s, id)?;
        return Ok((save(s, r), false));
    }
    let mut record = match check(m.record, &m.recipients) {
        Ok(record) => record,
        Err(a) => return Ok((a, false)),
    };
    let (body, keeps) = match take_body(s, id, record.size, m.chunks)? {
        Ok(taken) => taken,
        Err(a) => return Ok((a, false)),
    };
    record.body = body;
    record.log_index = s.index;
    if record.hold.is_empty() {
        record.hold.clone_from(&r.hold);
    }
    store(s, id, record, m.recipients, !r.hold.is_empty());
    count(s, 1, 0)?;
    s.effects.push(Effect::Message(id));
    r.messages = r.messages.saturating_add(1);
    Ok((save(s, r), keeps))
}

/// A record that fits its recipients, of whom at least one is open.
fn check(
    record: Option<v1::MessageRecord>,
    recipients: &[v1::RecipientRecord],
) -> Result<v1::MessageRecord, Answer> {
    let record = record.ok_or_else(|| refused("message.record", "missing"))?;
    check_envelope(record.envelope.as_ref())?;
    let named = record.envelope.as_ref().map_or(0, |e| e.recipients.len());
    if recipients.len() != named {
        let why = format!("{}, but the envelope has {named}", recipients.len());
        return Err(refused("message.recipients", why));
    }
    if let Some(n) = (recipients.iter()).position(|r| r.state() == State::Unspecified) {
        return Err(refused(
            &format!("message.recipients[{n}].state"),
            "missing or unknown",
        ));
    }
    if !recipients.iter().any(is_open) {
        return Err(refused("message.recipients", "none is open"));
    }
    Ok(record)
}

fn is_open(r: &v1::RecipientRecord) -> bool {
    matches!(r.state(), State::Waiting | State::Leased | State::Held)
}

fn store<T: WriteTables>(
    s: &mut Step<'_, T>,
    id: MessageId,
    mut record: v1::MessageRecord,
    recipients: Vec<v1::RecipientRecord>,
    holds: bool,
) {
    let open = recipients.iter().filter(|r| is_open(r)).count();
    record.open_recipients = u32::try_from(open).unwrap_or(u32::MAX);
    for (mut r, n) in recipients.into_iter().zip(0..) {
        match r.state() {
            // Its attempt is counted; how it ended nobody will say.
            State::Leased => wait(&record, &mut r, s.now),
            State::Waiting if holds => r.set_state(State::Held),
            _ => {}
        }
        // Epochs are positions in the log of another cluster.
        r.epoch = 0;
        r.holder.clear();
        r.lease_until_ms = 0;
        put(s.tables, Table::Recipient, &recipient_key(id, n), &r);
    }
    put(s.tables, Table::Message, id.as_bytes(), &record);
}
