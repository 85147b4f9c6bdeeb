//! One log entry.
use crate::{
    meta,
    records::{clock, put},
    shard,
    tables::{Table, TableError, WriteTables},
};
use prost::Message;
use sealane_types::{GroupId, MessageId};
use sealane_wire::v1::{self, command::Op, command_reply::Result as Answer};

/// What changed, for those who keep an index of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// This message, its recipients or its existence changed: read it again.
    Message(MessageId),
    /// There is a new policy revision.
    Policy(u64),
    /// The node registry changed.
    Nodes,
}

impl Effect {
    /// The message that changed, if it was one.
    pub fn message(&self) -> Option<MessageId> {
        match self {
            Effect::Message(id) => Some(*id),
            _ => None,
        }
    }
}

/// A refusal: the precondition failed, nothing changed.
pub(crate) fn refused(field: &str, reason: impl ToString) -> Answer {
    Answer::Refused(v1::Refused {
        field: field.to_owned(),
        reason: reason.to_string(),
        revision_conflict: false,
    })
}

/// Applies the entry at `index`. `header` is an encoded [`v1::Command`]; `body_len` octets are stored under `index`.
///
/// Foreign bytes are refused, not an error; [`TableError`] means that storage failed.
pub fn apply(
    tables: &mut impl WriteTables,
    group: GroupId,
    index: u64,
    header: &[u8],
    body_len: usize,
    effects: &mut Vec<Effect>,
) -> Result<v1::CommandReply, TableError> {
    let (answer, keeps_body) = match v1::Command::decode(header) {
        Err(e) => (refused("command", e), false),
        Ok(v1::Command { op: None, .. }) => (refused("command.op", "missing or unknown"), false),
        Ok(v1::Command {
            now_ms,
            op: Some(op),
        }) => {
            let now = advance_clock(tables, now_ms)?;
            let mut step = Step {
                tables,
                index,
                now,
                body_len,
                effects,
            };
            step.run(group, op)?
        }
    };
    if body_len > 0 && !keeps_body {
        tables.release_body(index);
    }
    Ok(v1::CommandReply {
        result: Some(answer),
    })
}

/// Time never runs backwards in the log, whatever the leaders' clocks do.
fn advance_clock(tables: &mut impl WriteTables, now_ms: u64) -> Result<u64, TableError> {
    let mut record = clock(tables)?;
    if now_ms > record.now_ms {
        record.now_ms = now_ms;
        put(tables, Table::Clock, b"", &record);
    }
    Ok(record.now_ms)
}

/// The entry being applied.
pub(crate) struct Step<'a, T> {
    pub(crate) tables: &'a mut T,
    pub(crate) index: u64,
    pub(crate) now: u64,
    pub(crate) body_len: usize,
    pub(crate) effects: &'a mut Vec<Effect>,
}

impl<T: WriteTables> Step<'_, T> {
    /// The answer, and whether something refers to the entry's body now.
    fn run(&mut self, group: GroupId, op: Op) -> Result<(Answer, bool), TableError> {
        let without_body = |a| Ok((a, false));
        let meta = group == GroupId::META;
        match op {
            Op::InitCluster(o) if meta => without_body(meta::init_cluster(self, o)?),
            Op::AllocateNode(o) if meta => without_body(meta::allocate_node(self, o)?),
            Op::ApplyPolicy(o) if meta => without_body(meta::apply_policy(self, o)?),
            Op::Enqueue(o) if !meta => shard::enqueue(self, o),
            Op::Chunk(o) if !meta => shard::chunk(self, o),
            Op::Abort(o) if !meta => without_body(shard::abort(self, o)?),
            Op::Lease(o) if !meta => without_body(shard::lease(self, o)?),
            Op::Renew(o) if !meta => without_body(shard::renew(self, o)?),
            Op::Results(o) if !meta => shard::results(self, o),
            Op::Release(o) if !meta => without_body(shard::release(self, o)?),
            Op::Sweep(o) if !meta => without_body(shard::sweep(self, o)?),
            _ => without_body(refused(
                "command.op",
                format!("does not belong to group {group}"),
            )),
        }
    }
}
