//! The only key to a 250 after DATA.
use sealane_types::MessageId;

/// Proof that a message is fsynced on a majority of its shard's replicas. Made only where the
/// queue's acknowledgement arrives; the server session says 250 to nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durable(MessageId);

impl Durable {
    /// The queue acknowledged `id` as durable.
    pub fn acknowledged(id: MessageId) -> Self {
        Self(id)
    }
    /// Which message.
    pub fn id(&self) -> MessageId {
        self.0
    }
}
