//! A queue shard: enqueue, lease, results and what surrounds them.
use crate::{
    apply::{Effect, Step, refused},
    records::{
        clock, decode, get, put, recipient_count, recipient_key, recipients, upload_key, uploads,
    },
    tables::{Table, TableError, WriteTables},
};
use sealane_mutants::{
    Mutant::{M4, M5, M19, M20},
    mutant,
};
use sealane_types::{CHUNK_SIZE, MessageId};
use sealane_wire::v1::{
    self, Outcome, command_reply::Result as Answer, dedupe_record::Fate, recipient_record::State,
};
use std::collections::BTreeMap;

type Kept = Result<(Answer, bool), TableError>;

/// The id of a message that belongs to this group.
pub(crate) fn parse_id<T>(s: &Step<'_, T>, bytes: &[u8]) -> Result<MessageId, Answer> {
    let id = MessageId::from_slice(bytes).map_err(|e| refused("id", e))?;
    if id.shard().group() == s.group {
        return Ok(id);
    }
    Err(refused(
        "id",
        format!("belongs to shard {}, not to {}", id.shard(), s.group),
    ))
}

/// A finished or withdrawn id is remembered for this long after its message was made, milliseconds: a
/// repetition of its enqueue gets the first answer. Relays settle within a minute.
pub const REMEMBER_MS: u64 = 3_600_000;
/// A recipient is held when so many relays went silent while they worked on it: it may be the cause.
pub(crate) const LOST_HOLDERS: u32 = 5;

/// What became of an id that is not (or no longer) a message.
pub(crate) fn fate<T: WriteTables>(
    s: &Step<'_, T>,
    id: MessageId,
) -> Result<Option<v1::DedupeRecord>, TableError> {
    get(s.tables, Table::Dedupe, id.as_bytes())
}

/// An id that nobody asks for any more is not remembered. So the records are those of young ids, and
/// the sweep, which goes through them from old to young, turns back only for a clock that was ahead.
pub(crate) fn set_fate<T: WriteTables>(
    s: &mut Step<'_, T>,
    id: MessageId,
    fate: Fate,
) -> Result<(), TableError> {
    if id.time_ms().saturating_add(REMEMBER_MS) < s.now {
        return Ok(());
    }
    let record = v1::DedupeRecord {
        fate: fate.into(),
        at_ms: s.now,
        log_index: s.index,
    };
    put(s.tables, Table::Dedupe, id.as_bytes(), &record);
    // The sweep was here by a clock that was ahead: it turns back for this one.
    let mut c = clock(s.tables)?;
    if c.swept_to.as_ref() > id.as_bytes().as_slice() {
        c.swept_to = bytes::Bytes::copy_from_slice(id.as_bytes());
        put(s.tables, Table::Clock, b"", &c);
    }
    Ok(())
}

pub(crate) fn count<T: WriteTables>(
    s: &mut Step<'_, T>,
    messages: i64,
    finished: u64,
) -> Result<(), TableError> {
    let mut c = clock(s.tables)?;
    c.messages = c.messages.saturating_add_signed(messages);
    c.finished = c.finished.saturating_add(finished);
    put(s.tables, Table::Clock, b"", &c);
    Ok(())
}

/// Accepts a message once; every repetition gets the first answer.
pub(crate) fn enqueue<T: WriteTables>(s: &mut Step<'_, T>, o: v1::EnqueueOp) -> Kept {
    let id = match parse_id(s, &o.id) {
        Ok(id) => id,
        Err(a) => return Ok((a, false)),
    };
    if let Some(answer) = first_answer(s, id, &o.holder)? {
        return Ok((answer, false));
    }
    if let Err(a) = check_envelope(o.envelope.as_ref()) {
        return Ok((a, false));
    }
    let (body, keeps) = match take_body(s, id, o.size, o.chunks)? {
        Ok(taken) => taken,
        Err(a) => return Ok((a, false)),
    };
    let lease = store_message(s, id, o, body)?;
    let enqueued = v1::Enqueued {
        duplicate: false,
        lease_epoch: lease.map_or(0, |(epoch, _)| epoch),
        lease_until_ms: lease.map_or(0, |(_, until)| until),
    };
    Ok((Answer::Enqueued(enqueued), keeps))
}

/// The body of a message of `size` octets: the entry's own, or `chunks` pieces that came before. And
/// whether the entry's body is it.
pub(crate) fn take_body<T: WriteTables>(
    s: &mut Step<'_, T>,
    id: MessageId,
    size: u64,
    chunks: u32,
) -> Result<Result<(Vec<v1::BodyPart>, bool), Answer>, TableError> {
    if chunks > 0 {
        return Ok(assemble(s, id, size, chunks)?.map(|parts| (parts, false)));
    }
    let length = match inline_length(size, s.body_len) {
        Ok(length) => length,
        Err(a) => return Ok(Err(a)),
    };
    // Pieces of this id, if a relay changed its mind, are swept like those of any given up upload: looking
    // for them here would cost every message a scan.
    let part = v1::BodyPart {
        log_index: s.index,
        length,
    };
    Ok(Ok((vec![part], length > 0)))
}

/// What an enqueue of this id was answered before; `None` if it is new.
fn first_answer<T: WriteTables>(
    s: &Step<'_, T>,
    id: MessageId,
    holder: &str,
) -> Result<Option<Answer>, TableError> {
    if mutant(M5) {
        return Ok(None);
    }
    let Some(m) = get::<v1::MessageRecord>(s.tables, Table::Message, id.as_bytes())? else {
        return Ok(match fate(s, id)?.map(|f| f.fate()) {
            Some(Fate::Aborted) => Some(Answer::Aborted(v1::Aborted {})),
            Some(_) => Some(Answer::Enqueued(duplicate())),
            None => None,
        });
    };
    // The answer that carried the lease may have been lost: its holder still does not know of it.
    let mut answer = duplicate();
    if let Some(r) = first_lease(s, id, &m)?.filter(|r| !holder.is_empty() && r.holder == holder) {
        answer.lease_epoch = r.epoch;
        answer.lease_until_ms = r.lease_until_ms;
    }
    Ok(Some(Answer::Enqueued(answer)))
}

fn duplicate() -> v1::Enqueued {
    v1::Enqueued {
        duplicate: true,
        lease_epoch: 0,
        lease_until_ms: 0,
    }
}

/// The first recipient, if the lease that came with the enqueue still holds all recipients.
fn first_lease<T: WriteTables>(
    s: &Step<'_, T>,
    id: MessageId,
    m: &v1::MessageRecord,
) -> Result<Option<v1::RecipientRecord>, TableError> {
    let all = recipients(s.tables, id, recipient_count(m))?;
    let held = |r: &v1::RecipientRecord| r.state() == State::Leased && r.epoch == m.log_index;
    Ok(if all.iter().all(held) {
        all.into_iter().next()
    } else {
        None
    })
}

pub(crate) fn check_envelope(envelope: Option<&v1::Envelope>) -> Result<(), Answer> {
    let envelope = envelope.ok_or_else(|| refused("envelope", "missing"))?;
    envelope.validate().map_err(|e| refused(e.field, e.reason))
}

/// Octets of a body that rides in the enqueue's own entry.
fn inline_length(size: u64, body_len: usize) -> Result<u32, Answer> {
    match u32::try_from(body_len) {
        Ok(length) if body_len <= CHUNK_SIZE && size == u64::from(length) => Ok(length),
        _ if body_len <= CHUNK_SIZE => Err(refused(
            "size",
            format!("says {size} octets, the body has {body_len}"),
        )),
        _ => Err(refused(
            "size",
            format!("{body_len} octets do not fit one entry"),
        )),
    }
}

/// Forgets the uploaded pieces of an id, with their bodies.
pub(crate) fn drop_uploads<T: WriteTables>(
    s: &mut Step<'_, T>,
    id: MessageId,
) -> Result<(), TableError> {
    for (key, piece) in uploads(s.tables, id)? {
        s.tables.delete(Table::Upload, &key);
        if let Some(p) = piece.part {
            s.tables.release_body(p.log_index);
        }
    }
    Ok(())
}

/// Takes the uploaded pieces: all of them, in order, of the promised size.
fn assemble<T: WriteTables>(
    s: &mut Step<'_, T>,
    id: MessageId,
    size: u64,
    chunks: u32,
) -> Result<Result<Vec<v1::BodyPart>, Answer>, TableError> {
    let pieces = uploads(s.tables, id)?;
    let mut parts = Vec::with_capacity(pieces.len());
    for (n, (key, piece)) in pieces.iter().enumerate() {
        let expected = upload_key(id, u32::try_from(n).unwrap_or(u32::MAX));
        match piece.part {
            Some(p) if key.as_ref() == expected => parts.push(p),
            _ => return Ok(Err(refused("chunks", format!("piece {n} is missing")))),
        }
    }
    let stored: u64 = parts.iter().map(|p| u64::from(p.length)).sum();
    if parts.len() as u64 != u64::from(chunks) {
        return Ok(Err(refused(
            "chunks",
            format!("{chunks} announced, {} stored", parts.len()),
        )));
    }
    if stored != size {
        return Ok(Err(refused(
            "size",
            format!("says {size} octets, the pieces have {stored}"),
        )));
    }
    for (key, _) in pieces {
        s.tables.delete(Table::Upload, &key);
    }
    Ok(Ok(parts))
}

fn store_message<T: WriteTables>(
    s: &mut Step<'_, T>,
    id: MessageId,
    o: v1::EnqueueOp,
    body: Vec<v1::BodyPart>,
) -> Result<Option<(u64, u64)>, TableError> {
    let open = o.envelope.as_ref().map_or(0, |e| e.recipients.len());
    let open = u32::try_from(open).unwrap_or(u32::MAX);
    let mut recipient = v1::RecipientRecord {
        state: State::Waiting.into(),
        due_ms: s.now,
        ..Default::default()
    };
    let lease = (!o.holder.is_empty()).then_some((s.index, o.lease_until_ms));
    if let Some((epoch, until_ms)) = lease {
        // The attempt is counted before it happens.
        recipient.set_state(State::Leased);
        recipient.attempts = 1;
        recipient.epoch = epoch;
        recipient.lease_until_ms = until_ms;
        recipient.holder = o.holder;
    }
    for n in 0..open {
        put(
            s.tables,
            Table::Recipient,
            &recipient_key(id, n),
            &recipient,
        );
    }
    let record = v1::MessageRecord {
        envelope: o.envelope,
        entry: o.entry,
        trace: o.trace,
        body,
        size: o.size,
        sha256: o.sha256,
        enqueued_at_ms: s.latest,
        // As long after its entry as the leader said, whatever its clock showed.
        expires_at_ms: s
            .latest
            .saturating_add(o.expires_at_ms.saturating_sub(s.now)),
        open_recipients: open,
        log_index: s.index,
        hold: String::new(),
    };
    put(s.tables, Table::Message, id.as_bytes(), &record);
    count(s, 1, 0)?;
    s.effects.push(match lease {
        Some((epoch, until_ms)) => Effect::Leased {
            id,
            epoch,
            until_ms,
        },
        None => Effect::Message(id),
    });
    Ok(lease)
}

pub(crate) fn exists<T: WriteTables>(s: &Step<'_, T>, id: MessageId) -> Result<bool, TableError> {
    Ok(s.tables.get(Table::Message, id.as_bytes())?.is_some())
}

/// Stores a piece of a body before its message. A repetition changes nothing.
pub(crate) fn chunk<T: WriteTables>(s: &mut Step<'_, T>, o: v1::BodyChunkOp) -> Kept {
    let id = match parse_id(s, &o.id) {
        Ok(id) => id,
        Err(a) => return Ok((a, false)),
    };
    if u64::from(o.length) != s.body_len as u64 || s.body_len == 0 || s.body_len > CHUNK_SIZE {
        return Ok((
            refused(
                "length",
                format!("says {}, the body has {}", o.length, s.body_len),
            ),
            false,
        ));
    }
    match fate(s, id)?.map(|f| f.fate()) {
        Some(Fate::Aborted) => return Ok((Answer::Aborted(v1::Aborted {}), false)),
        // A late repetition: the message has this piece already.
        Some(_) => return Ok((Answer::Chunk(v1::ChunkStored {}), false)),
        None if exists(s, id)? => return Ok((Answer::Chunk(v1::ChunkStored {}), false)),
        None => {}
    }
    let key = upload_key(id, o.seq);
    if s.tables.get(Table::Upload, &key)?.is_some() {
        return Ok((Answer::Chunk(v1::ChunkStored {}), false));
    }
    let part = Some(v1::BodyPart {
        log_index: s.index,
        length: o.length,
    });
    put(
        s.tables,
        Table::Upload,
        &key,
        &v1::UploadRecord { part, at_ms: s.now },
    );
    Ok((Answer::Chunk(v1::ChunkStored {}), true))
}

/// Settles an enqueue of unknown outcome: afterwards the id is void, or enqueued for good.
pub(crate) fn abort<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::AbortOp,
) -> Result<Answer, TableError> {
    let id = match parse_id(s, &o.id) {
        Ok(id) => id,
        Err(a) => return Ok(a),
    };
    match get::<v1::MessageRecord>(s.tables, Table::Message, id.as_bytes())? {
        Some(m) => {
            // Nobody began: not leased, or leased with an answer that the asker did not get.
            let untouched = first_lease(s, id, &m)?.is_some_and(|r| r.attempts == 1)
                || recipients(s.tables, id, recipient_count(&m))?
                    .iter()
                    .all(|r| r.state() == State::Waiting && r.attempts == 0);
            if !untouched {
                return Ok(Answer::Enqueued(duplicate()));
            }
            remove_message(s, id)?;
        }
        None => match fate(s, id)?.map(|f| f.fate()) {
            Some(Fate::Aborted) => return Ok(Answer::Aborted(v1::Aborted {})),
            Some(_) => return Ok(Answer::Enqueued(duplicate())),
            None => drop_uploads(s, id)?,
        },
    }
    set_fate(s, id, Fate::Aborted)?;
    Ok(Answer::Aborted(v1::Aborted {}))
}

/// Removes every trace of a message but its fate.
fn remove_message<T: WriteTables>(s: &mut Step<'_, T>, id: MessageId) -> Result<(), TableError> {
    let Some(m) = get::<v1::MessageRecord>(s.tables, Table::Message, id.as_bytes())? else {
        return Ok(());
    };
    let n = m.envelope.map_or(0, |e| e.recipients.len());
    for n in 0..u32::try_from(n).unwrap_or(u32::MAX) {
        s.tables.delete(Table::Recipient, &recipient_key(id, n));
    }
    for part in m.body.iter().filter(|p| p.length > 0) {
        s.tables.release_body(part.log_index);
    }
    s.tables.delete(Table::Message, id.as_bytes());
    count(s, -1, 1)?;
    s.effects.push(Effect::Gone(id));
    Ok(())
}

/// Nobody else is at it.
fn is_free(r: &v1::RecipientRecord) -> bool {
    match r.state() {
        State::Waiting => true,
        State::Leased => mutant(M19) || mutant(M20),
        _ => false,
    }
}

/// Grants what is waiting. The attempt is counted before it happens. Whether it is due the leader decides: what
/// a wrong clock stored as due in ten years must not wait for them.
pub(crate) fn lease<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::LeaseOp,
) -> Result<Answer, TableError> {
    let mut granted = Vec::new();
    for item in o.items {
        let Ok(id) = parse_id(s, &item.id) else {
            continue;
        };
        let mut taken = Vec::new();
        for n in item.recipients {
            let key = recipient_key(id, n);
            let Some(mut r) = get::<v1::RecipientRecord>(s.tables, Table::Recipient, &key)? else {
                continue;
            };
            if !is_free(&r) {
                continue;
            }
            r.set_state(State::Leased);
            r.attempts = r.attempts.saturating_add(1);
            r.epoch = s.index;
            r.lease_until_ms = o.until_ms;
            r.holder.clone_from(&o.holder);
            put(s.tables, Table::Recipient, &key, &r);
            taken.push(n);
        }
        if !taken.is_empty() {
            granted.push(v1::LeaseItem {
                id: item.id,
                recipients: taken,
            });
        }
        s.effects.push(Effect::Message(id));
    }
    Ok(Answer::Leased(v1::Leased {
        epoch: s.index,
        granted,
    }))
}

/// Calls `change` on every recipient that is leased under the named epoch; counts leases with at least one.
fn each_leased<T: WriteTables>(
    s: &mut Step<'_, T>,
    leases: Vec<v1::LeaseRef>,
    change: impl Fn(&mut v1::MessageRecord, &mut v1::RecipientRecord, u64) -> bool,
) -> Result<Answer, TableError> {
    let mut accepted = Vec::new();
    for l in leases {
        let Ok(id) = parse_id(s, &l.id) else { continue };
        let Some(mut m) = get::<v1::MessageRecord>(s.tables, Table::Message, id.as_bytes())? else {
            continue;
        };
        let before = m.hold.clone();
        let mut any = false;
        let all = recipients(s.tables, id, recipient_count(&m))?;
        for (n, mut r) in all.into_iter().enumerate() {
            let named = l.until_ms == 0 || l.until_ms == r.lease_until_ms;
            if r.state() == State::Leased
                && r.epoch == l.epoch
                && named
                && change(&mut m, &mut r, s.now)
            {
                put(
                    s.tables,
                    Table::Recipient,
                    &recipient_key(id, u32::try_from(n).unwrap_or(u32::MAX)),
                    &r,
                );
                any = true;
            }
        }
        if m.hold != before {
            put(s.tables, Table::Message, id.as_bytes(), &m);
        }
        if any {
            s.effects.push(Effect::Message(id));
            accepted.push(l);
        }
    }
    let effective = u32::try_from(accepted.len()).unwrap_or(u32::MAX);
    Ok(Answer::Counted(v1::Counted {
        effective,
        accepted,
    }))
}

/// A recipient waits again, or is held if its message is.
pub(crate) fn wait(m: &v1::MessageRecord, r: &mut v1::RecipientRecord, due_ms: u64) {
    r.set_state(if m.hold.is_empty() {
        State::Waiting
    } else {
        State::Held
    });
    r.due_ms = due_ms;
    r.holder.clear();
    r.lease_until_ms = 0;
}

/// Prolongs leases of their holder, but not beyond the time of their message: nothing is worked on for ever.
pub(crate) fn renew<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::RenewOp,
) -> Result<Answer, TableError> {
    let (holder, until) = (o.holder, o.until_ms);
    each_leased(s, o.leases, |m, r, now| {
        let held = r.holder == holder && m.expires_at_ms > now;
        if held {
            // Always another one: by this the leader sees that it was prolonged, and a take-back that was
            // decided before does not fit any more.
            r.lease_until_ms = r.lease_until_ms.saturating_add(1).max(until);
        }
        held
    })
}

/// Leases given or taken back: due again at once.
pub(crate) fn release<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::ReleaseOp,
) -> Result<Answer, TableError> {
    each_leased(s, o.leases, |m, r, now| {
        if o.expired {
            r.lost_holders = r.lost_holders.saturating_add(1);
            if r.lost_holders >= LOST_HOLDERS && m.hold.is_empty() {
                m.hold = format!(
                    "quarantined: {LOST_HOLDERS} relays went silent while they delivered it"
                );
            }
        } else {
            r.attempts = r.attempts.saturating_sub(1);
        }
        wait(m, r, now);
        true
    })
}

/// Whether a result counts: its recipient is leased under its epoch. Epoch 0 is the leader's own
/// verdict, which can only be that the time of a waiting recipient ran out; the group's time decides
/// that, not the leader's clock.
fn is_current(
    now: u64,
    m: &v1::MessageRecord,
    r: &v1::RecipientRecord,
    epoch: u64,
    result: &v1::RecipientResult,
) -> bool {
    match r.state() {
        State::Leased => {
            epoch != 0
                && (r.epoch == epoch || mutant(M4))
                && result.outcome() != Outcome::Unspecified
        }
        State::Waiting | State::Held => {
            epoch == 0
                && result.outcome() == Outcome::Failed
                && result.expired
                && m.expires_at_ms <= now
        }
        _ => false,
    }
}

/// Why the report that rides with results cannot be stored.
fn check_report<T: WriteTables>(
    s: &Step<'_, T>,
    dsn: &v1::EnqueueOp,
) -> Result<Result<(), Answer>, TableError> {
    let id = match parse_id(s, &dsn.id) {
        Ok(id) => id,
        Err(a) => return Ok(Err(a)),
    };
    if fate(s, id)?.is_some() || exists(s, id)? {
        return Ok(Err(refused("dsn.id", "is taken")));
    }
    if dsn.chunks != 0 {
        return Ok(Err(refused("dsn.chunks", "a report rides in one entry")));
    }
    Ok(check_envelope(dsn.envelope.as_ref())
        .and_then(|()| inline_length(dsn.size, s.body_len).map(drop)))
}

/// Records outcomes under a current epoch, with the report that the failures cause, atomically.
///
/// A report is stored exactly if a failure takes effect; if it cannot be stored, nothing is recorded,
/// for a failure without its report would be lost mail. Under epoch 0, where the leader decides anew
/// at once, all results take effect or none: a recipient that was leased meanwhile is not reported.
pub(crate) fn results<T: WriteTables>(s: &mut Step<'_, T>, o: v1::ResultsOp) -> Kept {
    let id = match parse_id(s, &o.id) {
        Ok(id) => id,
        Err(a) => return Ok((a, false)),
    };
    let counted = |effective| {
        Answer::Counted(v1::Counted {
            effective,
            accepted: Vec::new(),
        })
    };
    let Some(mut m) = get::<v1::MessageRecord>(s.tables, Table::Message, id.as_bytes())? else {
        return Ok((counted(0), false));
    };
    let offered = o.results.len();
    let mut current = BTreeMap::new();
    for result in o.results {
        let n = result.recipient;
        let r = get::<v1::RecipientRecord>(s.tables, Table::Recipient, &recipient_key(id, n))?;
        if let Some(r) = r.filter(|r| is_current(s.now, &m, r, o.epoch, &result)) {
            current.entry(n).or_insert((r, result));
        }
    }
    if current.is_empty() || (o.epoch == 0 && current.len() < offered) {
        return Ok((counted(0), false));
    }
    let failed = current
        .values()
        .any(|(_, result)| result.outcome() == Outcome::Failed);
    let dsn = o.dsn.filter(|_| failed);
    if let Some(Err(a)) = dsn.as_ref().map(|dsn| check_report(s, dsn)).transpose()? {
        return Ok((a, false));
    }
    let effective = u32::try_from(current.len()).unwrap_or(u32::MAX);
    for (n, (mut r, result)) in current {
        record_result(s.now, &m, &mut r, result);
        if !matches!(r.state(), State::Waiting | State::Held) {
            m.open_recipients = m.open_recipients.saturating_sub(1);
        }
        put(s.tables, Table::Recipient, &recipient_key(id, n), &r);
    }
    if m.open_recipients == 0 {
        remove_message(s, id)?;
        set_fate(s, id, Fate::Finished)?;
    } else {
        put(s.tables, Table::Message, id.as_bytes(), &m);
        s.effects.push(Effect::Message(id));
    }
    let keeps = match dsn {
        Some(dsn) => enqueue(s, dsn)?.1,
        None => false,
    };
    Ok((counted(effective), keeps))
}

fn record_result(
    now: u64,
    m: &v1::MessageRecord,
    r: &mut v1::RecipientRecord,
    result: v1::RecipientResult,
) {
    match result.outcome() {
        Outcome::Delivered => r.set_state(State::Delivered),
        Outcome::Failed if result.expired => r.set_state(State::Expired),
        Outcome::Failed => r.set_state(State::Failed),
        // `is_current` lets nothing else through.
        Outcome::Deferred | Outcome::Unspecified => wait(m, r, result.retry_at_ms.max(now)),
    }
    // Its holder spoke.
    r.lost_holders = 0;
    r.last_reply = result.reply;
    r.last_tls = result.tls;
    r.holder.clear();
    r.lease_until_ms = 0;
}

/// Records outcomes of several messages; names those that took effect.
pub(crate) fn results_batch<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::ResultsBatchOp,
) -> Result<Answer, TableError> {
    let mut accepted = Vec::with_capacity(o.items.len());
    for item in o.items {
        let lease = v1::LeaseRef {
            id: item.id.clone(),
            epoch: item.epoch,
            until_ms: 0,
        };
        let item = v1::ResultsOp { dsn: None, ..item };
        if let (Answer::Counted(c), _) = results(s, item)?
            && c.effective > 0
        {
            accepted.push(lease);
        }
    }
    let effective = u32::try_from(accepted.len()).unwrap_or(u32::MAX);
    Ok(Answer::Counted(v1::Counted {
        effective,
        accepted,
    }))
}

/// Forgets what is old: uploads without message, fates of finished and aborted ids. The cut-offs
/// never are later than the group's time, whatever the leader's clock says. Looks at `limit` uploads
/// and `limit` fates, oldest ids first.
pub(crate) fn sweep<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::SweepOp,
) -> Result<Answer, TableError> {
    let limit = usize::try_from(o.limit).unwrap_or(usize::MAX);
    let uploads = sweep_uploads(s, o.upload_before_ms.min(s.now), limit)?;
    let fates = sweep_fates(s, o.dedupe_before_ms.min(s.now), limit)?;
    let effective = uploads.saturating_add(fates);
    Ok(Answer::Counted(v1::Counted {
        effective,
        accepted: Vec::new(),
    }))
}

fn sweep_uploads<T: WriteTables>(
    s: &mut Step<'_, T>,
    before_ms: u64,
    limit: usize,
) -> Result<u32, TableError> {
    let mut effective = 0;
    for (key, value) in s.tables.scan(Table::Upload, b"", b"", limit)? {
        let record: v1::UploadRecord = decode(Table::Upload, value)?;
        if record.at_ms >= before_ms {
            continue;
        }
        s.tables.delete(Table::Upload, &key);
        if let Some(p) = record.part {
            s.tables.release_body(p.log_index);
        }
        // The rest of this upload can never complete. An id that has a fate keeps it.
        if let Some(Ok(id)) = key.get(..16).map(MessageId::from_slice)
            && fate(s, id)?.is_none()
            && !exists(s, id)?
        {
            set_fate(s, id, Fate::Aborted)?;
        }
        effective += 1;
    }
    Ok(effective)
}

/// Ids begin with their time, and no record is made of an id that is older than the cut-off: each
/// sweep goes on where the last one stopped and never passes over what was deleted.
fn sweep_fates<T: WriteTables>(
    s: &mut Step<'_, T>,
    before_ms: u64,
    limit: usize,
) -> Result<u32, TableError> {
    let before_ms = before_ms.min(s.now.saturating_sub(REMEMBER_MS));
    let start = clock(s.tables)?.swept_to;
    let mut last = None;
    let mut effective = 0;
    for (key, _) in s.tables.scan(Table::Dedupe, &start, b"", limit)? {
        let id = MessageId::from_slice(&key).map_err(|e| TableError {
            table: Table::Dedupe,
            reason: e.to_string(),
        })?;
        if id.time_ms() >= before_ms {
            break;
        }
        s.tables.delete(Table::Dedupe, &key);
        effective += 1;
        last = Some(key);
    }
    if let Some(key) = last {
        let mut record = clock(s.tables)?;
        // The first key behind the last one deleted.
        record.swept_to = [key.as_ref(), &[0]].concat().into();
        put(s.tables, Table::Clock, b"", &record);
    }
    Ok(effective)
}
