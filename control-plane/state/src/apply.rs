//! One log entry.
use crate::{
    hold, meta, nodes,
    records::{clock, put},
    restore, shard,
    tables::{Table, TableError, WriteTables},
};
use prost::Message;
use sealane_types::{GroupId, MessageId};
use sealane_wire::v1::{self, command::Op, command_reply::Result as Answer};

/// What changed, for those who keep an index of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// This message or its recipients changed: read it again.
    Message(MessageId),
    /// It is new, and leased as a whole by the entry that brought it.
    Leased {
        /// The message.
        id: MessageId,
        /// Index of the entry.
        epoch: u64,
        /// End of the lease, in the group's time.
        until_ms: u64,
    },
    /// It is over: delivered, returned or withdrawn.
    Gone(MessageId),
    /// There is a new policy revision.
    Policy(u64),
    /// The node registry, the placement or what is known of the groups changed.
    Nodes,
    /// The leader says that every member's log holds the entries up to here.
    Settled(u64),
}

impl Effect {
    /// The message that changed, if it was one.
    pub fn message(&self) -> Option<MessageId> {
        match self {
            Effect::Message(id) | Effect::Leased { id, .. } | Effect::Gone(id) => Some(*id),
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
/// Foreign bytes are refused, not an error; [`TableError`] means that storage failed. A refused
/// command changes nothing but the group's clock; undecodable bytes change nothing at all.
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
            settled,
            op: Some(op),
        }) => {
            if settled > 0 {
                effects.push(Effect::Settled(settled));
            }
            let latest = advance_clock(tables, group, now_ms, witness(&op))?;
            let mut step = Step {
                tables,
                group,
                index,
                now: now_ms.min(latest),
                latest,
                body_len,
                effects,
            };
            step.run(op)?
        }
    };
    if body_len > 0 && !keeps_body {
        tables.release_body(index);
    }
    Ok(v1::CommandReply {
        result: Some(answer),
    })
}

/// A leader's stamp may be ahead of a shard's time by this much without confirmation.
const JUMP_MS: u64 = 3_600_000;

/// The group's time after a command that its leader stamped `stamp`: the bound of what a leader may say.
/// It never runs backwards, and one wrong stamp does not push a shard far ahead:
///
/// 1. The first command of a group sets the time.
/// 2. A stamp up to one hour ahead is the new time; one behind leaves the time as it is.
/// 3. A stamp further ahead is a claim. Time advances only as far as the claim agrees with another
///    one: the previous command's claim, or the time within the message id that the command names
///    (the relay's clock). So `new = max(old, min(stamp, max(previous claim, id time)))`.
///
/// No command is held up: until a claim is confirmed commands happen at the old time, and the second
/// of two claims in a row always moves the time. What ran ahead with a wrong clock holds nobody up either:
/// a command happens at its stamp where that is behind ([`Step::now`]). Group 0 takes every stamp that is ahead: it is idle
/// for days, and nothing in it depends on time but the dates of its audit records.
fn advance_clock(
    tables: &mut impl WriteTables,
    group: GroupId,
    stamp: u64,
    witness: u64,
) -> Result<u64, TableError> {
    let before = clock(tables)?;
    let mut record = before.clone();
    let unquestioned = group == GroupId::META || before.now_ms == 0;
    if unquestioned || stamp <= before.now_ms.saturating_add(JUMP_MS) {
        record.now_ms = before.now_ms.max(stamp);
        record.claimed_ms = 0;
    } else {
        let agreed = stamp.min(before.claimed_ms.max(witness));
        record.now_ms = before.now_ms.max(agreed);
        record.claimed_ms = if agreed == stamp { 0 } else { stamp };
    }
    if record != before {
        put(tables, Table::Clock, b"", &record);
    }
    Ok(record.now_ms)
}

/// When the message that enters with `op` was made, by its relay's clock; 0 for other commands.
fn witness(op: &Op) -> u64 {
    let id = match op {
        Op::Enqueue(o) => &o.id,
        Op::Chunk(o) => &o.id,
        Op::Abort(o) => &o.id,
        _ => return 0,
    };
    MessageId::from_slice(id).map_or(0, MessageId::time_ms)
}

/// The entry being applied.
pub(crate) struct Step<'a, T> {
    pub(crate) tables: &'a mut T,
    pub(crate) group: GroupId,
    pub(crate) index: u64,
    /// When the entry happens: its leader's stamp, but no claim that nobody confirmed. It may be behind
    /// that of earlier entries. Whoever waits, waits by it: for a leader whose clock is right again
    /// nothing is due in the future because another clock was ahead.
    pub(crate) now: u64,
    /// The group's time, which never runs backwards. What ends a message's life is counted from it: a clock
    /// that was behind shortens no life.
    pub(crate) latest: u64,
    pub(crate) body_len: usize,
    pub(crate) effects: &'a mut Vec<Effect>,
}

impl<T: WriteTables> Step<'_, T> {
    /// The answer, and whether something refers to the entry's body now.
    fn run(&mut self, op: Op) -> Result<(Answer, bool), TableError> {
        let without_body = |a| Ok((a, false));
        let group = self.group;
        let meta = group == GroupId::META;
        match op {
            Op::InitCluster(o) if meta => without_body(meta::init_cluster(self, o)?),
            Op::AllocateNode(o) if meta => without_body(nodes::allocate(self, o)?),
            Op::ChangeNode(o) if meta => without_body(nodes::change(self, &o)?),
            Op::GroupReport(o) if meta => without_body(nodes::report(self, o)?),
            Op::ForgetReplica(o) if meta => without_body(nodes::forget_replica(self, &o)?),
            Op::ApplyPolicy(o) if meta => without_body(meta::apply_policy(self, o)?),
            Op::RestoreCluster(o) if meta => without_body(restore::cluster(self, o)?),
            Op::Audit(o) if meta => without_body(meta::note(self, &o)),
            Op::Enqueue(o) if !meta => shard::enqueue(self, o),
            Op::Chunk(o) if !meta => shard::chunk(self, o),
            Op::Abort(o) if !meta => without_body(shard::abort(self, o)?),
            Op::Lease(o) if !meta => without_body(shard::lease(self, o)?),
            Op::Renew(o) if !meta => without_body(shard::renew(self, o)?),
            Op::Results(o) if !meta => shard::results(self, o),
            Op::ResultsBatch(o) if !meta => without_body(shard::results_batch(self, o)?),
            Op::Hold(o) if !meta => without_body(hold::hold(self, o)?),
            Op::Expire(o) if !meta => without_body(hold::expire(self, o)?),
            Op::Release(o) if !meta => without_body(shard::release(self, o)?),
            Op::Restore(o) if !meta => restore::shard(self, o),
            Op::Sweep(o) if !meta => without_body(shard::sweep(self, o)?),
            _ => without_body(refused(
                "command.op",
                format!("does not belong to group {group}"),
            )),
        }
    }
}
