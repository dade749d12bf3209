//! Lanes that wait for their time before they are shipped again.

use std::collections::BTreeMap;
use std::time::Instant;

use mailbox_engine::{LaneId, ShardId};

use super::places::Places;

/// A lane of a source in one of its leaderships.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    pub(super) source: ShardId,
    pub(super) generation: u64,
    pub(super) lane: LaneId,
    /// Where its slot was when it was queued last.
    pub(super) to: ShardId,
}

impl Waiting {
    /// Its slot is elsewhere now: what kept it waiting where it was says nothing of there.
    pub(super) fn has_moved(&self, places: &impl Places) -> bool {
        places.shard_of(self.lane.destination) != self.to
    }
}

/// By their time. A lane is here once at most, and then in no queue: wherever it goes from here, its items go in order.
#[derive(Debug, Default)]
pub(super) struct Delayed {
    lanes: BTreeMap<(Instant, u64), Waiting>,
}

impl Delayed {
    /// `number` tells those of one moment apart.
    pub(super) fn insert(&mut self, until: Instant, number: u64, waiting: Waiting) {
        self.lanes.insert((until, number), waiting);
    }

    /// Takes out one whose time has come.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Waiting> {
        let first = self.lanes.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// Takes out those whose slots are elsewhere now.
    pub(super) fn take_moved(&mut self, places: &impl Places) -> Vec<Waiting> {
        let mut moved = Vec::new();
        self.lanes.retain(|_, waiting| {
            let has_moved = waiting.has_moved(places);
            if has_moved {
                moved.push(*waiting);
            }
            !has_moved
        });
        moved
    }

    /// When the first one is due.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.lanes.keys().next().map(|(at, _)| *at)
    }
}
