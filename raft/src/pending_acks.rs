//! Acks of lanes that wait for an entry to ride with: no ack is worth one of its own while others are written.

use std::time::Duration;

use mailbox_engine::LaneId;
use tokio::time::Instant;

/// How long an ack waits for company.
const DELAY: Duration = Duration::from_millis(100);
/// Acks that are worth an entry.
const COUNT_FULL: usize = 4096;

/// Lanes, each with a mark that its destination has reported.
#[derive(Default)]
pub(crate) struct PendingAcks {
    acks: Vec<(LaneId, u64)>,
    due_at: Option<Instant>,
}

impl PendingAcks {
    pub(crate) fn extend(&mut self, acks: impl IntoIterator<Item = (LaneId, u64)>, now: Instant) {
        self.acks.extend(acks);
        if self.acks.is_empty() {
            return;
        }
        let first = *self.due_at.get_or_insert(now + DELAY);
        if self.acks.len() >= COUNT_FULL && first > now {
            self.due_at = Some(now);
        }
    }

    /// When they have waited long enough; `None` if there are none.
    pub(crate) fn is_due_at(&self) -> Option<Instant> {
        self.due_at
    }

    /// All of them, each lane once.
    pub(crate) fn take(&mut self) -> Vec<(LaneId, u64)> {
        self.due_at = None;
        let mut acks = std::mem::take(&mut self.acks);
        // The greatest mark of a lane comes first and stays.
        acks.sort_unstable_by(|left, right| right.cmp(left));
        acks.dedup_by_key(|(lane, _)| *lane);
        acks
    }
}

#[cfg(test)]
mod tests {
    use mailbox_engine::SlotId;

    use super::*;

    fn lane(destination: u16) -> LaneId {
        LaneId::between(SlotId(1), SlotId(destination))
    }

    #[test]
    fn a_lane_is_acked_once_at_its_greatest_mark() {
        let (mut pending, now) = (PendingAcks::default(), Instant::now());
        pending.extend([(lane(1), 3), (lane(2), 9)], now);
        pending.extend([(lane(1), 7), (lane(1), 5)], now);
        assert_eq!(pending.take(), [(lane(2), 9), (lane(1), 7)]);
        assert_eq!((pending.is_due_at(), pending.take()), (None, vec![]));
    }

    #[test]
    fn they_are_due_after_a_while_or_at_once_when_many() {
        let (mut pending, now) = (PendingAcks::default(), Instant::now());
        pending.extend([], now);
        assert_eq!(pending.is_due_at(), None);
        pending.extend([(lane(1), 1)], now);
        let later = now + DELAY / 2;
        pending.extend([(lane(1), 2)], later);
        assert_eq!(pending.is_due_at(), Some(now + DELAY));
        pending.extend((0..COUNT_FULL as u64).map(|seq| (lane(1), seq)), later);
        assert_eq!(pending.is_due_at(), Some(later));
    }
}
