//! Which shard holds which slot.
//!
//! Whoever asks must live with an answer that is out of date: the shard itself judges in apply, by the slots it
//! holds then (`Refusal::WrongShard`).

use mailbox_api::v1::SlotSpan;
use mailbox_engine::{ClusterMap, ShardId, SlotId, TimelineId, UserId, slot_of_handle};

/// Slot → shard, at one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShardMap {
    epoch: u64,
    /// One for each slot.
    shards: Vec<ShardId>,
}

impl ShardMap {
    /// Of a map that has been checked: every slot is in a shard.
    pub(crate) fn of(map: &ClusterMap) -> Self {
        // The meta shard has no slots, so a slot that is in none would be refused there.
        let mut shards = vec![ShardId::META; usize::from(map.slot_count)];
        for (shard, row) in &map.shards {
            for (first, last) in &row.slots {
                let (first, last) = (usize::from(first.0), usize::from(last.0));
                for of_slot in shards.iter_mut().take(last + 1).skip(first) {
                    *of_slot = *shard;
                }
            }
        }
        Self {
            epoch: map.epoch,
            shards,
        }
    }

    /// Rises with every change.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn slot_count(&self) -> u16 {
        u16::try_from(self.shards.len()).expect("made of a slot count")
    }

    /// The shard of a slot below the slot count.
    pub(crate) fn of_slot(&self, slot: SlotId) -> ShardId {
        self.shards[usize::from(slot.0)]
    }

    pub(crate) fn of_timeline(&self, timeline: TimelineId) -> ShardId {
        self.of_slot(timeline.slot(self.slot_count()))
    }

    /// Where a user's mailbox, row and list of groups are.
    pub(crate) fn of_user(&self, user: UserId) -> ShardId {
        self.of_timeline(user.mailbox())
    }

    /// Where the directory keeps a handle.
    pub(crate) fn of_handle(&self, handle: &str) -> ShardId {
        self.of_slot(slot_of_handle(handle, self.slot_count()))
    }

    /// A shard's slots as sorted spans.
    pub(crate) fn spans(&self, shard: ShardId) -> Vec<SlotSpan> {
        let mut spans: Vec<SlotSpan> = Vec::new();
        for (slot, of_slot) in (0..).zip(&self.shards) {
            if *of_slot != shard {
                continue;
            }
            match spans.last_mut() {
                Some(span) if span.last + 1 == slot => span.last = slot,
                _ => spans.push(SlotSpan {
                    first: slot,
                    last: slot,
                }),
            }
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use mailbox_engine::MapShard;

    use super::*;

    fn map(held: &[(u32, &[(u16, u16)])]) -> ShardMap {
        let shards = held.iter().map(|(shard, spans)| {
            let slots = spans.iter();
            let slots = slots.map(|(first, last)| (SlotId(*first), SlotId(*last)));
            let row = MapShard {
                epoch: 1,
                slots: slots.collect(),
                replicas: Vec::new(),
            };
            (ShardId(*shard), row)
        });
        ShardMap::of(&ClusterMap {
            epoch: 1,
            slot_count: 6,
            shards: shards.collect(),
            ..ClusterMap::default()
        })
    }

    fn spans(map: &ShardMap, shard: u32) -> Vec<(u32, u32)> {
        let spans = map.spans(ShardId(shard)).into_iter();
        spans.map(|span| (span.first, span.last)).collect()
    }

    #[test]
    fn slots_are_sets_and_told_as_spans() {
        let map = map(&[
            (0, &[]),
            (1, &[(0, 1), (4, 4)]),
            (2, &[(2, 2), (5, 5)]),
            (7, &[(3, 3)]),
        ]);
        assert_eq!(spans(&map, 0), []);
        assert_eq!(spans(&map, 1), [(0, 1), (4, 4)]);
        assert_eq!(spans(&map, 2), [(2, 2), (5, 5)]);
        assert_eq!(spans(&map, 7), [(3, 3)]);
        assert_eq!(spans(&map, 9), []);
        assert_eq!(map.of_slot(SlotId(4)), ShardId(1));
        assert_eq!(map.slot_count(), 6);
    }

    #[test]
    fn owners_and_handles_go_to_the_shards_of_their_slots() {
        let map = map(&[(1, &[(0, 2)]), (2, &[(3, 5)])]);
        for owner in 0..100 {
            let user = UserId(owner);
            assert_eq!(
                map.of_user(user),
                map.of_slot(mailbox_engine::slot_of_owner(owner, 6))
            );
        }
        let handle = map.of_handle("alice");
        assert_eq!(handle, map.of_slot(slot_of_handle("alice", 6)));
    }
}
