//! About how many bytes the rows of a shard and of its slots take in files.
//!
//! The base store says it of spans of keys, from the indices of its files and without reading a row. So a size is as
//! coarse as a block (16 KiB), and counts what was written over or removed until compaction has been there. Counted are
//! state rows: messages, and the tables beside them. Dedup rows lie by hour first, in as many places as the window has
//! hours; they go by themselves, and no split makes them fewer. What is in memtables is counted once it is flushed.
//!
//! A shard is measured where its files change, by a flush or an install, and the figure is kept: to ask for it costs
//! nothing. What compaction takes off is seen at the next flush.

use std::sync::atomic::Ordering;

use crate::base::KeySpan;
use crate::id::{RangeId, SlotId};
use crate::key::StoredKey;
use crate::shard::Shard;

impl Shard {
    /// About how many bytes the rows of the shard take in files, as of its last flush or install, or since it was last
    /// measured.
    pub fn stored_bytes(&self) -> u64 {
        self.counters.stored_bytes.load(Ordering::Relaxed)
    }

    /// About how many bytes the rows of each slot of the shard take in files, in the order of the slots. Measured now,
    /// and the shard with it. Indices of files may have to be read: not for a thread that must not wait.
    pub fn slot_bytes(&self) -> Vec<(SlotId, u64)> {
        let ranges = self.state.read().ranges.clone();
        let spans: Vec<KeySpan> = ranges
            .by_slot()
            .map(|(_, range)| span(range, range))
            .collect();
        let sizes = self.core.base.span_bytes(&spans);
        self.keep_size(&sizes);
        let slots = ranges.by_slot().map(|(slot, _)| slot);
        slots.zip(sizes).collect()
    }

    /// To be called when the files have changed that the shard's rows are in.
    pub(crate) fn measure(&self) {
        let ranges = self.state.read().ranges.clone();
        // As few spans as there are: of a shard that was made whole, its ranges follow each other.
        let mut runs: Vec<(RangeId, RangeId)> = Vec::new();
        for (range, _) in ranges.by_range() {
            match runs.last_mut() {
                Some((_, last)) if last.0 + 1 == range.0 => *last = range,
                _ => runs.push((range, range)),
            }
        }
        let spans: Vec<KeySpan> = runs
            .iter()
            .map(|(first, last)| span(*first, *last))
            .collect();
        self.keep_size(&self.core.base.span_bytes(&spans));
    }

    fn keep_size(&self, parts: &[u64]) {
        let bytes = parts.iter().sum();
        self.counters.stored_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// The state rows of some ranges, both ends included.
fn span(first: RangeId, last: RangeId) -> KeySpan {
    let after = RangeId(last.0.saturating_add(1));
    (StoredKey::state_front(first), StoredKey::state_front(after))
}
