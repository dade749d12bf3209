//! Where the relay sends things.

use mailbox_engine::{ShardId, SlotId};

/// The node that is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) node: u64,
    pub(super) address: String,
}

/// Where things are, as far as this node knows. A wrong answer costs a round trip.
pub(super) trait Places {
    /// The shard that holds a slot.
    fn shard_of(&self, slot: SlotId) -> ShardId;
    /// The leader of a shard.
    fn leader_of(&self, shard: ShardId) -> Option<Place>;
    /// A node does not lead a shard, and does not know who does.
    fn not_led_by(&self, shard: ShardId, node: u64);
}
