//! Reading a verified backup at any place.
use crate::{
    BackupError,
    catalog::{Catalog, Group},
    frame::{self, Kind, damaged},
    rows::{self, Row, rank},
};
use bytes::Bytes;
use sealane_state::Table;
use sealane_types::MessageId;
use sealane_wire::v1;
use std::{
    collections::VecDeque,
    io::{Read, Seek, SeekFrom},
    sync::Arc,
};

/// Frames kept in memory: bodies are wanted in about the order that they stand in.
const KEPT: usize = 3;

/// A verified backup and a place to read it from. Every frame is checked again when it is read.
#[derive(Debug)]
pub struct Archive<F> {
    file: F,
    catalog: Arc<Catalog>,
    kept: VecDeque<(u64, Bytes)>,
}

/// A message as it was, with everything about it but its body.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// Envelope, entry record, body references.
    pub record: v1::MessageRecord,
    /// One per recipient of the envelope.
    pub recipients: Vec<v1::RecipientRecord>,
}

impl Message {
    /// The pieces of its body that have octets, in order.
    pub fn parts(&self) -> Vec<v1::BodyPart> {
        let parts = self.record.body.iter();
        parts.filter(|p| p.length > 0).copied().collect()
    }
}

fn inconsistent(group: u32, what: impl ToString) -> BackupError {
    BackupError::Inconsistent {
        group,
        what: what.to_string(),
    }
}

impl<F: Read + Seek> Archive<F> {
    /// `file` is what `catalog` was read from.
    pub fn new(file: F, catalog: Arc<Catalog>) -> Self {
        Self {
            file,
            catalog,
            kept: VecDeque::new(),
        }
    }

    /// What is in it.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn group(&self, group: u32) -> Result<&Group, BackupError> {
        let place = usize::try_from(group).unwrap_or(usize::MAX);
        self.catalog
            .groups
            .get(place)
            .ok_or_else(|| inconsistent(group, "is not in this backup"))
    }

    /// Records of a frame of the catalog.
    fn records(&mut self, at: u64) -> Result<Bytes, BackupError> {
        if let Some((_, payload)) = self.kept.iter().find(|(kept, _)| *kept == at) {
            return Ok(payload.clone());
        }
        self.file.seek(SeekFrom::Start(at))?;
        let f = frame::read(&mut self.file, at)?
            .filter(|f| f.kind == Kind::Records)
            .ok_or_else(|| damaged(at, "it changed since it was verified"))?;
        if self.kept.len() >= KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((at, f.payload.clone()));
        Ok(f.payload)
    }

    /// Records of a table, from `start` on.
    pub fn scan(
        &self,
        group: u32,
        table: Option<Table>,
        start: &[u8],
    ) -> Result<Scan, BackupError> {
        Ok(Scan {
            group,
            table,
            start: Bytes::copy_from_slice(start),
            frame: self.group(group)?.frame_of(table, start),
            rest: Bytes::new(),
            ended: false,
        })
    }

    /// The stored octets of a log entry's body.
    fn body(&mut self, group: u32, log_index: u64) -> Result<Bytes, BackupError> {
        let key = log_index.to_be_bytes();
        let mut scan = self.scan(group, None, &key)?;
        match scan.next(self)? {
            Some(row) if row.key == key.as_slice() => Ok(row.value),
            _ => Err(inconsistent(group, format!("body {log_index} is missing"))),
        }
    }

    /// One piece of a message's body: of the length that its record says.
    pub fn piece(&mut self, id: MessageId, part: &v1::BodyPart) -> Result<Bytes, BackupError> {
        let group = id.shard().get();
        let piece = self.body(group, part.log_index)?;
        if piece.len() as u64 == u64::from(part.length) {
            return Ok(piece);
        }
        let what = format!("a piece of message {id} has another length");
        Err(inconsistent(group, what))
    }

    /// The messages of a shard, by id.
    pub fn messages(&self, shard: u32) -> Result<Messages, BackupError> {
        Ok(Messages {
            shard,
            rows: self.scan(shard, Some(Table::Message), b"")?,
            recipients: self.scan(shard, Some(Table::Recipient), b"")?,
        })
    }
}

fn decode<M: prost::Message + Default>(group: u32, row: &Row) -> Result<M, BackupError> {
    row.decode().map_err(|e| inconsistent(group, e))
}

/// A place in a table: asks the archive for its frames, one at a time.
#[derive(Debug)]
pub struct Scan {
    group: u32,
    table: Option<Table>,
    start: Bytes,
    frame: usize,
    /// Records of the current frame that were not looked at yet.
    rest: Bytes,
    ended: bool,
}

impl Scan {
    /// The next record.
    pub fn next<F: Read + Seek>(
        &mut self,
        archive: &mut Archive<F>,
    ) -> Result<Option<Row>, BackupError> {
        while !self.ended {
            let row = rows::next(&mut self.rest).map_err(|what| inconsistent(self.group, what))?;
            let Some(row) = row else {
                let Some(f) = archive.group(self.group)?.frames.get(self.frame) else {
                    self.ended = true;
                    break;
                };
                let at = f.at;
                self.frame += 1;
                self.rest = archive.records(at)?;
                continue;
            };
            if row.place().0 > rank(self.table) {
                self.ended = true;
            } else if row.place() >= (rank(self.table), self.start.as_ref()) {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }
}

/// The messages of a shard with their recipients.
#[derive(Debug)]
pub struct Messages {
    shard: u32,
    rows: Scan,
    recipients: Scan,
}

impl Messages {
    /// The next message.
    pub fn next<F: Read + Seek>(
        &mut self,
        archive: &mut Archive<F>,
    ) -> Result<Option<Message>, BackupError> {
        let Some(row) = self.rows.next(archive)? else {
            return match self.recipients.next(archive)? {
                None => Ok(None),
                Some(_) => Err(inconsistent(self.shard, "a recipient without its message")),
            };
        };
        let id = MessageId::from_slice(&row.key).map_err(|e| inconsistent(self.shard, e))?;
        if id.shard().get() != self.shard {
            let what = format!("message {id} belongs to shard {}", id.shard());
            return Err(inconsistent(self.shard, what));
        }
        let record: v1::MessageRecord = decode(self.shard, &row)?;
        let named = record.envelope.as_ref().map_or(0, |e| e.recipients.len());
        let mut recipients = Vec::new();
        // Both tables stand in the order of ids, recipients in the order of their numbers.
        for n in 0..named {
            let number = u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
            let row = self.recipients.next(archive)?;
            let right = |r: &Row| {
                (r.key.strip_prefix(id.as_bytes().as_slice())).is_some_and(|rest| rest == number)
            };
            let row = row.filter(right).ok_or_else(|| {
                inconsistent(
                    self.shard,
                    format!("recipient {n} of message {id} is missing"),
                )
            })?;
            recipients.push(decode(self.shard, &row)?);
        }
        Ok(Some(Message {
            id,
            record,
            recipients,
        }))
    }
}
