//! What operators do with dead letters.

use uuid::Uuid;

use crate::hlc::Hlc;
use crate::id::{MessageId, Seq, SlotId};

/// Appends a dead letter to its recipient's mailbox, as a new message with [`crate::Flags::REQUEUED`]. Once: a
/// letter that was requeued already is answered with what it became then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequeueDeadLetter {
    /// The caller's UUIDv7.
    pub request_id: Uuid,
    /// Which slot owns the letter.
    pub slot: SlotId,
    /// Its seq in the slot's dead-letter timeline.
    pub seq: Seq,
    /// Assigned by the proposer.
    pub message_id: MessageId,
}

impl RequeueDeadLetter {
    pub(super) fn assign(&mut self, hlc: &mut Hlc, clock_ms: u64) {
        self.message_id = hlc.next(clock_ms, MessageId::ZERO);
    }
}

/// Marks a dead letter as done with: it is requeued no more. It stays where it is until it is trimmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropDeadLetter {
    /// The caller's UUIDv7.
    pub request_id: Uuid,
    /// Which slot owns the letter.
    pub slot: SlotId,
    /// Its seq in the slot's dead-letter timeline.
    pub seq: Seq,
}
