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

/// What a slot has instead of a letter that was named.
pub(super) fn unknown(slot: SlotId, seq: Seq, trim_point: Seq, head: Seq) -> String {
    if head <= trim_point {
        return format!("slot {slot} has no dead letter {seq}: it has none");
    }
    let first = trim_point.next();
    format!("slot {slot} has no dead letter {seq}: it has {first} to {head}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Refusal;

    #[test]
    fn who_names_no_letter_is_told_which_there_are() {
        let words = |trim_point, head| {
            let (slot, seq) = (SlotId(3), Seq(5));
            let (trim_point, head) = (Seq(trim_point), Seq(head));
            let refusal = Refusal::UnknownDeadLetter {
                slot,
                seq,
                trim_point,
                head,
            };
            refusal.to_string()
        };
        assert_eq!(words(0, 0), "slot 3 has no dead letter 5: it has none");
        assert_eq!(words(6, 9), "slot 3 has no dead letter 5: it has 7 to 9");
    }
}
