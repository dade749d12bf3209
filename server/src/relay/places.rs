//! Where the relay sends things, and how long it waits before it tries again.

use std::time::Duration;

use mailbox_engine::{ShardId, SlotId};

/// Pauses before something is tried again, doubled each time.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

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

/// The pause after so many failures, with jitter: many lanes fail together.
pub(super) fn backoff(failures: u32) -> Duration {
    let step = BACKOFF_MIN * (1 << failures.saturating_sub(1).min(7));
    step.min(BACKOFF_MAX).mul_f64(rand::random_range(0.5..=1.0))
}
