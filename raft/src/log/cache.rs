//! The newest entries of one shard, in memory: replication and apply read these and not RocksDB.

use std::collections::VecDeque;

use super::row::row_len;
use crate::types::Entry;

/// Bytes that an entry costs beside its row.
const ENTRY_OVERHEAD: usize = 96;

/// A gapless run of entries that ends at the log's last one.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: VecDeque<Entry>,
    bytes: usize,
}

fn cost(entry: &Entry) -> usize {
    row_len(entry) + ENTRY_OVERHEAD
}

impl Cache {
    /// Index of the first entry here.
    pub(super) fn first(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.log_id.index)
    }

    /// The entry must follow the last one.
    pub(super) fn push(&mut self, entry: Entry) {
        debug_assert!(
            self.entries
                .back()
                .is_none_or(|last| last.log_id.index + 1 == entry.log_id.index)
        );
        self.bytes += cost(&entry);
        self.entries.push_back(entry);
    }

    /// Entries from `start`, which must be here, below `end`, until `bytes` are reached.
    pub(super) fn read(&self, start: u64, end: u64, bytes: &mut Budget, out: &mut Vec<Entry>) {
        let Some(first) = self.first() else { return };
        let from = usize::try_from(start.saturating_sub(first)).unwrap_or(usize::MAX);
        for entry in self.entries.iter().skip(from) {
            if entry.log_id.index >= end || !bytes.take(entry) {
                return;
            }
            out.push(entry.clone());
        }
    }

    /// Drops the entries behind `last`.
    pub(super) fn truncate_after(&mut self, last: Option<u64>) {
        while let Some(entry) = self.entries.back()
            && last.is_none_or(|last| entry.log_id.index > last)
        {
            self.bytes -= cost(entry);
            self.entries.pop_back();
        }
    }

    /// Drops the entries up to `upto`.
    pub(super) fn purge(&mut self, upto: u64) {
        while self.first().is_some_and(|first| first <= upto) {
            self.pop_front();
        }
    }

    /// Drops the oldest entries until at most `bytes_max` remain, but none from `written_end` on: those
    /// are nowhere else yet.
    pub(super) fn evict(&mut self, bytes_max: usize, written_end: u64) {
        while self.bytes > bytes_max && self.first().is_some_and(|first| first < written_end) {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= cost(&entry);
        }
    }
}

/// How many bytes of entries one read may still return.
#[derive(Debug)]
pub(super) struct Budget {
    left: usize,
    taken: bool,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Budget {
            left: bytes,
            taken: false,
        }
    }

    /// Whether the entry may be returned as well. The first one always may.
    pub(super) fn take(&mut self, entry: &Entry) -> bool {
        let len = row_len(entry);
        if self.taken && len > self.left {
            return false;
        }
        self.taken = true;
        self.left = self.left.saturating_sub(len);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::log_id;
    use openraft::EntryPayload;

    fn entry(index: u64) -> Entry {
        Entry {
            log_id: log_id(1, index),
            payload: EntryPayload::Blank,
        }
    }

    fn filled(indexes: std::ops::Range<u64>) -> Cache {
        let mut cache = Cache::default();
        indexes.for_each(|index| cache.push(entry(index)));
        cache
    }

    fn indexes(cache: &Cache, start: u64, end: u64, bytes: usize) -> Vec<u64> {
        let mut out = Vec::new();
        cache.read(start, end, &mut Budget::new(bytes), &mut out);
        out.iter().map(|entry| entry.log_id.index).collect()
    }

    #[test]
    fn reads_stop_at_the_range_and_at_the_bytes_but_return_one() {
        let cache = filled(5..10);
        assert_eq!(indexes(&cache, 6, 9, usize::MAX), [6, 7, 8]);
        assert_eq!(indexes(&cache, 5, 20, usize::MAX), [5, 6, 7, 8, 9]);
        assert_eq!(indexes(&cache, 6, 9, 0), [6]);
        assert_eq!(indexes(&cache, 6, 9, 2 * row_len(&entry(6))), [6, 7]);
    }

    #[test]
    fn what_is_not_written_is_not_evicted() {
        let mut cache = filled(5..10);
        cache.evict(0, 7);
        assert_eq!(cache.first(), Some(7));
        cache.truncate_after(Some(8));
        assert_eq!(indexes(&cache, 7, 20, usize::MAX), [7, 8]);
        cache.purge(7);
        assert_eq!(cache.first(), Some(8));
        cache.truncate_after(None);
        assert_eq!((cache.first(), cache.bytes), (None, 0));
    }
}
