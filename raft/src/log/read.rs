//! Reading a shard's entries: the newest from memory, older ones from RocksDB, every one verified.

use std::path::Path;

use rocksdb::{DB, DBRawIterator, ReadOptions};

use super::cache::Budget;
use super::core::Core;
use super::error::Error;
use super::key::{Key, entry_key};
use super::row::decode_row;
use super::state::ShardState;
use crate::types::Entry;

/// Reads the entries `start..end` that the log has, from the first of them on and without a hole, until
/// `bytes_max` is reached; at least one if it has any.
pub(super) fn read(
    core: &Core,
    shard: &ShardState,
    start: u64,
    end: u64,
    bytes_max: usize,
) -> Result<Vec<Entry>, Error> {
    let db = core.db()?;
    let (mut entries, mut recent) = (Vec::new(), Vec::new());
    let on_disk = {
        let state = shard.state.lock();
        let (start, end) = (start.max(state.first), end.min(state.end()));
        if start >= end {
            return Ok(entries);
        }
        let cached = state.cache.first().unwrap_or(state.end());
        if start >= cached {
            state
                .cache
                .read(start, end, &mut Budget::new(bytes_max), &mut entries);
            return Ok(entries);
        }
        // Both halves are taken under the lock: the iterator reads the database as of now, and below
        // the cache that is this log.
        state
            .cache
            .read(cached, end, &mut Budget::new(bytes_max), &mut recent);
        DiskEntries::new(&core.dir, &db, shard.shard, start, cached.min(end))
    };
    let mut budget = Budget::new(bytes_max);
    for entry in on_disk {
        let entry = entry?;
        if !budget.take(&entry) {
            return Ok(entries);
        }
        entries.push(entry);
    }
    entries.extend(recent.into_iter().take_while(|entry| budget.take(entry)));
    Ok(entries)
}

/// The entries `next..end` in RocksDB, all of which must be there.
pub(super) struct DiskEntries<'a> {
    dir: &'a Path,
    rows: DBRawIterator<'a>,
    shard: u32,
    next: u64,
    end: u64,
}

impl<'a> DiskEntries<'a> {
    pub(super) fn new(
        dir: &'a Path,
        db: &'a DB,
        shard: u32,
        start: u64,
        end: u64,
    ) -> DiskEntries<'a> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(entry_key(shard, start));
        options.set_iterate_upper_bound(entry_key(shard, end));
        options.fill_cache(false);
        let mut rows = db.raw_iterator_opt(options);
        rows.seek_to_first();
        DiskEntries {
            dir,
            rows,
            shard,
            next: start,
            end,
        }
    }

    fn read_next(&mut self) -> Result<Entry, Error> {
        let damaged = |reason: String| Error::Entry {
            path: self.dir.to_owned(),
            shard: self.shard,
            index: self.next,
            reason,
        };
        let Some((key, value)) = self.rows.item() else {
            self.rows
                .status()
                .map_err(|error| damaged(error.into_string()))?;
            return Err(damaged("missing".to_owned()));
        };
        if Key::decode(key) != Some(Key::Entry(self.shard, self.next)) {
            return Err(damaged("missing, others follow".to_owned()));
        }
        decode_row(self.shard, self.next, value).map_err(damaged)
    }
}

impl Iterator for DiskEntries<'_> {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let entry = self.read_next();
        if entry.is_ok() {
            self.rows.next();
            self.next += 1;
        } else {
            self.end = self.next;
        }
        Some(entry)
    }
}
