//! A queue shard: enqueue, lease, results and what surrounds them.
use crate::{
    apply::{Effect, Step, refused},
    records::{clock, get, put, recipient_key, recipients, upload_key, uploads},
    tables::{Table, TableError, WriteTables},
};
use bytes::Bytes;
use sealane_types::MessageId;
use sealane_wire::v1::{
    self, Outcome, command_reply::Result as Answer, dedupe_record::Fate, recipient_record::State,
};

type Kept = Result<(Answer, bool), TableError>;

fn parse_id(bytes: &[u8]) -> Result<MessageId, Answer> {
    MessageId::from_slice(bytes).map_err(|e| refused("id", e))
}

fn fate<T: WriteTables>(
    s: &Step<'_, T>,
    id: MessageId,
) -> Result<Option<v1::DedupeRecord>, TableError> {
    get(s.tables, Table::Dedupe, id.as_bytes())
}

fn set_fate<T: WriteTables>(s: &mut Step<'_, T>, id: MessageId, fate: Fate) {
    let record = v1::DedupeRecord {
        fate: fate.into(),
        at_ms: s.now,
        log_index: s.index,
    };
    put(s.tables, Table::Dedupe, id.as_bytes(), &record);
}

fn count<T: WriteTables>(
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
    let id = match parse_id(&o.id) {
        Ok(id) => id,
        Err(a) => return Ok((a, false)),
    };
    match fate(s, id)?.map(|f| f.fate()) {
        Some(Fate::Aborted) => return Ok((Answer::Aborted(v1::Aborted {}), false)),
        Some(_) => return Ok((Answer::Enqueued(v1::Enqueued { duplicate: true }), false)),
        None => {}
    }
    let envelope = match &o.envelope {
        None => return Ok((refused("envelope", "missing"), false)),
        Some(e) => e,
    };
    if let Err(e) = envelope.validate() {
        return Ok((refused(e.field, e.reason), false));
    }
    let (body, keeps) = if o.chunks == 0 {
        if o.size != s.body_len as u64 {
            return Ok((
                refused(
                    "size",
                    format!("says {} octets, the body has {}", o.size, s.body_len),
                ),
                false,
            ));
        }
        let length = u32::try_from(s.body_len).unwrap_or(u32::MAX);
        (
            vec![v1::BodyPart {
                log_index: s.index,
                length,
            }],
            s.body_len > 0,
        )
    } else {
        match assemble(s, id, &o)? {
            Ok(parts) => (parts, false),
            Err(a) => return Ok((a, false)),
        }
    };
    store_message(s, id, o, body)?;
    Ok((Answer::Enqueued(v1::Enqueued { duplicate: false }), keeps))
}

/// Takes the uploaded pieces: all of them, in order, of the promised size.
fn assemble<T: WriteTables>(
    s: &mut Step<'_, T>,
    id: MessageId,
    o: &v1::EnqueueOp,
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
    let size: u64 = parts.iter().map(|p| u64::from(p.length)).sum();
    if parts.len() as u64 != u64::from(o.chunks) {
        return Ok(Err(refused(
            "chunks",
            format!("{} announced, {} stored", o.chunks, parts.len()),
        )));
    }
    if size != o.size {
        return Ok(Err(refused(
            "size",
            format!("says {} octets, the pieces have {size}", o.size),
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
) -> Result<(), TableError> {
    let open = o.envelope.as_ref().map_or(0, |e| e.recipients.len());
    let open = u32::try_from(open).unwrap_or(u32::MAX);
    for n in 0..open {
        let record = v1::RecipientRecord {
            state: State::Waiting.into(),
            due_ms: s.now,
            ..Default::default()
        };
        put(s.tables, Table::Recipient, &recipient_key(id, n), &record);
    }
    let record = v1::MessageRecord {
        envelope: o.envelope,
        entry: o.entry,
        trace: o.trace,
        body,
        size: o.size,
        sha256: o.sha256,
        enqueued_at_ms: s.now,
        expires_at_ms: o.expires_at_ms.max(s.now),
        open_recipients: open,
        log_index: s.index,
    };
    put(s.tables, Table::Message, id.as_bytes(), &record);
    set_fate(s, id, Fate::Enqueued);
    count(s, 1, 0)?;
    s.effects.push(Effect::Message(id));
    Ok(())
}

/// Stores a piece of a body before its message. A repetition changes nothing.
pub(crate) fn chunk<T: WriteTables>(s: &mut Step<'_, T>, o: v1::BodyChunkOp) -> Kept {
    let id = match parse_id(&o.id) {
        Ok(id) => id,
        Err(a) => return Ok((a, false)),
    };
    if u64::from(o.length) != s.body_len as u64 || s.body_len == 0 {
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
    let id = match parse_id(&o.id) {
        Ok(id) => id,
        Err(a) => return Ok(a),
    };
    match fate(s, id)?.map(|f| f.fate()) {
        Some(Fate::Aborted) => return Ok(Answer::Aborted(v1::Aborted {})),
        Some(Fate::Finished) => return Ok(Answer::Enqueued(v1::Enqueued { duplicate: true })),
        Some(_) => {
            let untouched = recipients(s.tables, id)?
                .iter()
                .all(|r| r.state() == State::Waiting && r.attempts == 0);
            if !untouched {
                return Ok(Answer::Enqueued(v1::Enqueued { duplicate: true }));
            }
            remove_message(s, id)?;
        }
        None => {
            for (key, piece) in uploads(s.tables, id)? {
                s.tables.delete(Table::Upload, &key);
                if let Some(p) = piece.part {
                    s.tables.release_body(p.log_index);
                }
            }
        }
    }
    set_fate(s, id, Fate::Aborted);
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
    s.effects.push(Effect::Message(id));
    Ok(())
}

/// Grants what is waiting and due. The attempt is counted before it happens.
pub(crate) fn lease<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::LeaseOp,
) -> Result<Answer, TableError> {
    let mut granted = Vec::new();
    for item in o.items {
        let Ok(id) = parse_id(&item.id) else { continue };
        let mut taken = Vec::new();
        for n in item.recipients {
            let key = recipient_key(id, n);
            let Some(mut r) = get::<v1::RecipientRecord>(s.tables, Table::Recipient, &key)? else {
                continue;
            };
            if r.state() != State::Waiting || r.due_ms > s.now {
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
    change: impl Fn(&mut v1::RecipientRecord, u64) -> bool,
) -> Result<Answer, TableError> {
    let mut accepted = Vec::new();
    for l in leases {
        let Ok(id) = parse_id(&l.id) else { continue };
        let mut any = false;
        for (n, mut r) in recipients(s.tables, id)?.into_iter().enumerate() {
            if r.state() == State::Leased && r.epoch == l.epoch && change(&mut r, s.now) {
                put(
                    s.tables,
                    Table::Recipient,
                    &recipient_key(id, u32::try_from(n).unwrap_or(u32::MAX)),
                    &r,
                );
                any = true;
            }
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

/// Prolongs leases of their holder.
pub(crate) fn renew<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::RenewOp,
) -> Result<Answer, TableError> {
    let (holder, until) = (o.holder, o.until_ms);
    each_leased(s, o.leases, |r, _| {
        let held = r.holder == holder;
        if held {
            r.lease_until_ms = r.lease_until_ms.max(until);
        }
        held
    })
}

/// Leases given or taken back: due again at once.
pub(crate) fn release<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::ReleaseOp,
) -> Result<Answer, TableError> {
    each_leased(s, o.leases, |r, now| {
        r.set_state(State::Waiting);
        r.due_ms = now;
        r.holder.clear();
        r.lease_until_ms = 0;
        true
    })
}

/// Records outcomes under a current epoch, with the report that the failures cause, atomically.
pub(crate) fn results<T: WriteTables>(s: &mut Step<'_, T>, o: v1::ResultsOp) -> Kept {
    let id = match parse_id(&o.id) {
        Ok(id) => id,
        Err(a) => return Ok((a, false)),
    };
    let Some(mut m) = get::<v1::MessageRecord>(s.tables, Table::Message, id.as_bytes())? else {
        return Ok((Answer::Counted(v1::Counted::default()), false));
    };
    let (mut effective, mut failed) = (0, 0);
    for result in o.results {
        let key = recipient_key(id, result.recipient);
        let Some(mut r) = get::<v1::RecipientRecord>(s.tables, Table::Recipient, &key)? else {
            continue;
        };
        let current = match r.state() {
            State::Leased => o.epoch != 0 && r.epoch == o.epoch,
            State::Waiting => o.epoch == 0,
            _ => false,
        };
        if !current {
            continue;
        }
        match result.outcome() {
            Outcome::Delivered => r.set_state(State::Delivered),
            Outcome::Failed if result.expired => r.set_state(State::Expired),
            Outcome::Failed => r.set_state(State::Failed),
            Outcome::Deferred => {
                r.set_state(State::Waiting);
                r.due_ms = result.retry_at_ms.max(s.now);
            }
            Outcome::Unspecified => continue,
        }
        if matches!(r.state(), State::Failed | State::Expired) {
            failed += 1;
        }
        if r.state() != State::Waiting {
            m.open_recipients = m.open_recipients.saturating_sub(1);
        }
        r.last_reply = result.reply;
        r.last_tls = result.tls;
        r.holder.clear();
        r.lease_until_ms = 0;
        put(s.tables, Table::Recipient, &key, &r);
        effective += 1;
    }
    let answer = Answer::Counted(v1::Counted {
        effective,
        accepted: Vec::new(),
    });
    if effective == 0 {
        return Ok((answer, false));
    }
    if m.open_recipients == 0 {
        remove_message(s, id)?;
        set_fate(s, id, Fate::Finished);
    } else {
        put(s.tables, Table::Message, id.as_bytes(), &m);
        s.effects.push(Effect::Message(id));
    }
    let keeps = match o.dsn {
        Some(dsn) if failed > 0 => enqueue(s, dsn)?.1,
        _ => false,
    };
    Ok((answer, keeps))
}

/// Forgets what is old: fates of finished and aborted ids, uploads without message.
pub(crate) fn sweep<T: WriteTables>(
    s: &mut Step<'_, T>,
    o: v1::SweepOp,
) -> Result<Answer, TableError> {
    let limit = usize::try_from(o.limit).unwrap_or(usize::MAX);
    let mut effective = 0;
    for (key, value) in s.tables.scan(Table::Upload, b"", b"", limit)? {
        let record: v1::UploadRecord = crate::records::decode(Table::Upload, value)?;
        if record.at_ms < o.upload_before_ms {
            s.tables.delete(Table::Upload, &key);
            if let Some(p) = record.part {
                s.tables.release_body(p.log_index);
            }
            // The rest of this upload can never complete.
            if let Some(Ok(id)) = key.get(..16).map(MessageId::from_slice) {
                set_fate(s, id, Fate::Aborted);
            }
            effective += 1;
        }
    }
    // Ids begin with their time: the oldest come first, and the scan stops at the first that is young.
    let rows: Vec<(Bytes, Bytes)> = s.tables.scan(Table::Dedupe, b"", b"", limit)?;
    for (key, value) in rows {
        let record: v1::DedupeRecord = crate::records::decode(Table::Dedupe, value)?;
        if record.at_ms < o.dedupe_before_ms && record.fate() != Fate::Enqueued {
            s.tables.delete(Table::Dedupe, &key);
            effective += 1;
        }
    }
    Ok(Answer::Counted(v1::Counted {
        effective,
        accepted: Vec::new(),
    }))
}
