//! Which shard holds which slot.
//!
//! Placement is fixed at bootstrap and every node holds a replica of every shard, so the map is read off the
//! node's own replicas, once. Whoever asks it must live with an answer that is out of date: the shard itself
//! judges in apply, by the slots it holds then (`Refusal::WrongShard`).

use std::sync::Arc;

use mailbox_api::v1::SlotSpan;
use mailbox_engine::{ShardId, SlotId, TimelineId, UserId, slot_of_handle, slot_of_owner};
use mailbox_raft::Node;

use crate::error::Error;

/// Slot → shard, at one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShardMap {
    epoch: u64,
    /// One for each slot.
    shards: Vec<ShardId>,
}

/// The first map of a cluster, which nothing changes yet.
const FIRST_EPOCH: u64 = 1;

impl ShardMap {
    /// The map of a node that holds every shard.
    ///
    /// # Errors
    /// A slot that no shard holds.
    pub(crate) fn of(node: &Node, slot_count: u16) -> Result<Arc<Self>, Error> {
        let held = node.shards();
        let held = held
            .iter()
            .map(|shard| (shard.id(), shard.engine().slots()));
        let map = Self::new(FIRST_EPOCH, slot_count, held);
        map.map(Arc::new)
            .map_err(|slot| Error::Node(format!("no shard holds slot {slot}")))
    }

    /// `Err` names the first slot that no shard holds.
    fn new(
        epoch: u64,
        slot_count: u16,
        held: impl IntoIterator<Item = (ShardId, Vec<SlotId>)>,
    ) -> Result<Self, SlotId> {
        let mut shards: Vec<Option<ShardId>> = vec![None; usize::from(slot_count)];
        for (shard, slots) in held {
            for slot in slots {
                if let Some(of_slot) = shards.get_mut(usize::from(slot.0)) {
                    *of_slot = Some(shard);
                }
            }
        }
        let of_slot = (0..).map(SlotId).zip(shards);
        let shards: Result<_, SlotId> = of_slot.map(|(slot, shard)| shard.ok_or(slot)).collect();
        Ok(Self {
            epoch,
            shards: shards?,
        })
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
        self.of_slot(slot_of_owner(timeline.owner, self.slot_count()))
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
    use super::*;

    fn map(held: &[(u32, &[u16])]) -> Result<ShardMap, SlotId> {
        let held = held.iter().map(|(shard, slots)| {
            let slots = slots.iter().copied().map(SlotId).collect();
            (ShardId(*shard), slots)
        });
        ShardMap::new(1, 6, held)
    }

    fn spans(map: &ShardMap, shard: u32) -> Vec<(u32, u32)> {
        let spans = map.spans(ShardId(shard)).into_iter();
        spans.map(|span| (span.first, span.last)).collect()
    }

    #[test]
    fn slots_are_sets_and_told_as_spans() {
        let map = map(&[(1, &[0, 1, 4]), (2, &[2, 5]), (7, &[3])]).expect("whole");
        assert_eq!(spans(&map, 1), [(0, 1), (4, 4)]);
        assert_eq!(spans(&map, 2), [(2, 2), (5, 5)]);
        assert_eq!(spans(&map, 7), [(3, 3)]);
        assert_eq!(spans(&map, 9), []);
        assert_eq!(map.of_slot(SlotId(4)), ShardId(1));
        assert_eq!(map.slot_count(), 6);
    }

    #[test]
    fn a_slot_that_no_shard_holds_is_named() {
        assert_eq!(map(&[(1, &[0, 1, 2, 4, 5])]), Err(SlotId(3)));
    }

    #[test]
    fn owners_and_handles_go_to_the_shards_of_their_slots() {
        let map = map(&[(1, &[0, 1, 2]), (2, &[3, 4, 5])]).expect("whole");
        for owner in 0..100 {
            let user = UserId(owner);
            assert_eq!(map.of_user(user), map.of_slot(slot_of_owner(owner, 6)));
        }
        let handle = map.of_handle("alice");
        assert_eq!(handle, map.of_slot(slot_of_handle("alice", 6)));
    }
}
