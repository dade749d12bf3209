//! What the database says about one shard.

use std::collections::BTreeSet;
use std::path::Path;

use mailbox_engine::ShardId;
use rocksdb::{DB, ReadOptions};

use super::error::Error;
use super::key::{Key, entry_key};
use super::life::Life;
use super::row::decode_row;
use crate::types::{DecodeError, Entry, LogId, Vote, decode_log_id, decode_vote};

/// A shard's rows, entries aside.
#[derive(Debug)]
pub(super) struct StoredShard {
    pub(super) purged: Option<LogId>,
    /// First index not purged.
    pub(super) first: u64,
    /// The last entry, or the last purged one.
    pub(super) last: Option<LogId>,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) life: Option<Life>,
}

impl StoredShard {
    /// There is, or was, a replica of the shard here.
    pub(super) fn is_known(&self) -> bool {
        self.life.is_some() || self.last.is_some() || self.vote.is_some()
    }

    /// Reads the shard's rows, verifies the last entry, and sees that the first one is there.
    pub(super) fn read(dir: &Path, db: &DB, shard: u32) -> Result<StoredShard, Error> {
        let purged = row(dir, db, Key::Purged(shard), decode_log_id)?;
        let from = purged.map_or(0, |purged| purged.index + 1);
        let (first, last) = match ends(dir, db, shard, from)? {
            Some((first, last)) => (first, Some(last.log_id)),
            None => (from, purged),
        };
        if purged.is_some() && first != from {
            return Err(Error::Entry {
                path: dir.to_owned(),
                shard,
                index: from,
                reason: format!("missing: the log goes on at index {first}"),
            });
        }
        Ok(StoredShard {
            purged,
            first,
            last,
            vote: row(dir, db, Key::Vote(shard), decode_vote)?,
            committed: row(dir, db, Key::Committed(shard), decode_log_id)?,
            life: row(dir, db, Key::Life(shard), Life::decode)?,
        })
    }
}

/// The shards that have rows in the log, in order.
pub(super) fn shards(dir: &Path, db: &DB) -> Result<BTreeSet<ShardId>, Error> {
    let mut options = ReadOptions::default();
    options.set_total_order_seek(true);
    let mut rows = db.raw_iterator_opt(options);
    let mut shards = BTreeSet::new();
    rows.seek_to_first();
    while let Some(bytes) = rows.key() {
        let key = Key::decode(bytes).ok_or_else(|| Error::Row {
            path: dir.to_owned(),
            row: format!("{bytes:02x?}"),
            reason: "no key of this format".to_owned(),
        })?;
        match key {
            Key::Batch | Key::Filler => rows.next(),
            Key::Vote(shard) | Key::Committed(shard) | Key::Purged(shard) | Key::Life(shard) => {
                shards.insert(ShardId(shard));
                rows.next();
            }
            Key::Entry(shard, _) => {
                shards.insert(ShardId(shard));
                rows.seek(Key::Entry(shard, u64::MAX).encode());
            }
        }
    }
    rows.status()
        .map_err(|error| Error::storage(dir, "read", error))?;
    Ok(shards)
}

fn row<T>(
    dir: &Path,
    db: &DB,
    key: Key,
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<Option<T>, Error> {
    db.get_pinned(key.encode())
        .map_err(|error| Error::storage(dir, "read", error))?
        .map(|value| decode(&value))
        .transpose()
        .map_err(|error| Error::row(dir, &format!("{key:?}"), &error))
}

/// Index of the shard's first entry and its last entry, of those from index `from` on.
fn ends(dir: &Path, db: &DB, shard: u32, from: u64) -> Result<Option<(u64, Entry)>, Error> {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(entry_key(shard, from));
    // The bound is exclusive; no log ever reaches the last index.
    options.set_iterate_upper_bound(entry_key(shard, u64::MAX));
    let mut rows = db.raw_iterator_opt(options);
    rows.seek_to_first();
    let first = rows.key().and_then(Key::decode);
    rows.seek_to_last();
    let last = rows.item().map(|(key, value)| (Key::decode(key), value));
    let found = match (first, last) {
        (Some(Key::Entry(_, first)), Some((Some(Key::Entry(_, last)), value))) => {
            let entry = decode_row(shard, last, value).map_err(|reason| Error::Entry {
                path: dir.to_owned(),
                shard,
                index: last,
                reason,
            })?;
            Some((first, entry))
        }
        (_, _) => None,
    };
    rows.status()
        .map_err(|error| Error::storage(dir, "read", error))?;
    Ok(found)
}
