//! Who waits for which answer.
use sealane_types::MessageId;
use sealane_wire::{message_id, v1};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};
use tokio::sync::mpsc;

/// Answers that wait for one message's settlement. More are never outstanding: one per stream and frame.
const PENDING: usize = 32;

/// An answer, and the stream it came over.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) generation: u64,
    pub(crate) outcome: v1::SubmitOutcome,
}

/// One message, or one piece of one (pieces are numbered from 0, as on the wire).
type Key = (MessageId, u32);

/// Answers to their askers.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<HashMap<Key, mpsc::Sender<Answer>>>);

impl Answers {
    /// Until the registration is dropped, answers about `id` and `seq` go to it.
    pub(crate) fn register(&self, id: MessageId, seq: u32) -> Registration<'_> {
        let (tx, answers) = mpsc::channel(PENDING);
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((id, seq), tx);
        Registration {
            table: self,
            key: (id, seq),
            answers,
        }
    }

    /// How many messages and pieces wait for their answer.
    pub(crate) fn waiting(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// An answer that nobody waits for (any more) is dropped.
    pub(crate) fn deliver(&self, generation: u64, outcome: v1::SubmitOutcome) {
        let Ok(id) = message_id("outcome.id", &outcome.id) else {
            return;
        };
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tx) = table.get(&(id, outcome.seq))
            && tx
                .try_send(Answer {
                    generation,
                    outcome,
                })
                .is_err()
        {
            tracing::warn!(message.id = %id, "more answers than questions");
        }
    }
}

/// A place in the table.
#[derive(Debug)]
pub(crate) struct Registration<'a> {
    table: &'a Answers,
    key: Key,
    pub(crate) answers: mpsc::Receiver<Answer>,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.table
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}
