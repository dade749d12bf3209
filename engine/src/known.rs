//! Which dedup rows the files may hold: lets most look-ups skip the files.
//!
//! Ids carry their time, and a flush brings rows up to the replicated time of its last entry. So
//! an id later than that is in no file, unless a phone's clock was fast: such *early* keys are
//! kept apart, or one of them would send every look-up to the files until time has caught up.
//!
//! `covered_ms` and the early keys together cover every dedup key in ingested files: they take in
//! a file's keys in the publication of its flush or install, and are read from the files at open.

use std::collections::BTreeSet;

use crate::base::ReadView;
use crate::base::rocks::KEYS_END;
use crate::error::Error;
use crate::id::{RangeId, SlotId};
use crate::key::{DedupKey, StoredKey, hour_of};
use crate::memtable::Memtable;
use crate::range::Ranges;

/// Early keys that are kept apart; with more, the time that is covered is raised instead.
const EARLY_MAX: usize = 1 << 16;

/// The dedup keys that files may hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct KnownKeys {
    /// Ids up to this time, inclusive, may be in files.
    covered_ms: u64,
    /// Later ids that are in files.
    early: BTreeSet<(RangeId, DedupKey)>,
}

impl KnownKeys {
    /// Sends every look-up to the files.
    pub(crate) fn everything() -> KnownKeys {
        KnownKeys {
            covered_ms: u64::MAX,
            early: BTreeSet::new(),
        }
    }

    /// Whether files may hold the row. Never false for a row that they hold.
    pub(crate) fn may_hold(&self, range: RangeId, key: &DedupKey) -> bool {
        key.time_ms() <= self.covered_ms || self.early.contains(&(range, *key))
    }

    /// The keys of a memtable that are later than its own time.
    pub(crate) fn early_keys(memtable: &Memtable, time_ms: u64) -> Vec<(SlotId, DedupKey)> {
        let rows = memtable.dedup_rows().iter();
        let early = rows.filter(|row| row.key.time_ms() > time_ms);
        early.map(|row| (row.slot, row.key)).collect()
    }

    /// Takes in a flush: `early` are its keys later than `time_ms`, the time of its last entry.
    pub(crate) fn flushed(
        &mut self,
        time_ms: u64,
        early: impl IntoIterator<Item = (RangeId, DedupKey)>,
    ) {
        self.covered_ms = self.covered_ms.max(time_ms);
        self.early.extend(early);
        let covered_ms = self.covered_ms;
        self.early.retain(|(_, key)| key.time_ms() > covered_ms);
        if self.early.len() > EARLY_MAX {
            let latest = self.early.iter().map(|(_, key)| key.time_ms()).max();
            self.covered_ms = latest.expect("there are more than EARLY_MAX");
            self.early.clear();
        }
    }

    /// Takes in what the files hold of a slot that comes into the shard.
    pub(crate) fn imported(&mut self, of_slot: KnownKeys) {
        self.flushed(of_slot.covered_ms, of_slot.early);
    }

    /// What the files of a shard hold, whose last entry was at `time_ms`.
    pub(crate) fn read(
        files: &dyn ReadView,
        ranges: &Ranges,
        time_ms: u64,
    ) -> Result<KnownKeys, Error> {
        let mut known = KnownKeys {
            covered_ms: time_ms,
            early: BTreeSet::new(),
        };
        let mut found = BTreeSet::new();
        let hour = hour_of(time_ms);
        for (range, _) in ranges.by_range() {
            // In an hour and range, rows are in the order of their ids, which begin with the time.
            let time = time_ms.to_be_bytes();
            let first = stored(hour, range, &time[2..]);
            let end = stored(hour, RangeId(range.0 + 1), &[]);
            early_in(files, &first, &end, ranges, time_ms, &mut found)?;
        }
        // Every id of a later hour is early. Rows of other shards, which may have gone on for long, are passed over.
        let mut later = hour.checked_add(1);
        while let Some(hour) = hour_from(files, later)? {
            for (range, _) in ranges.by_range() {
                let first = stored(hour, range, &[]);
                let end = stored(hour, RangeId(range.0 + 1), &[]);
                early_in(files, &first, &end, ranges, time_ms, &mut found)?;
            }
            later = hour.checked_add(1);
        }
        known.flushed(time_ms, found);
        Ok(known)
    }
}

/// The first hour from this one on that has rows, of whatever range.
fn hour_from(files: &dyn ReadView, hour: Option<u32>) -> Result<Option<u32>, Error> {
    let Some(hour) = hour else { return Ok(None) };
    let first = stored(hour, RangeId::NODE, &[]);
    let mut cursor = files.cursor(&first, &KEYS_END);
    cursor.seek(&first)?;
    let Some((key, _)) = cursor.row() else {
        return Ok(None);
    };
    let split = StoredKey::split(key).map_err(|malformed| Error::corrupt_row(key, malformed))?;
    Ok(match split {
        StoredKey::Dedup { hour, .. } => Some(hour),
        StoredKey::State { .. } => None,
    })
}

fn stored(hour: u32, range: RangeId, suffix: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(16);
    StoredKey::Dedup {
        hour,
        range,
        suffix,
    }
    .encode(&mut key);
    key
}

fn early_in(
    files: &dyn ReadView,
    first: &[u8],
    end: &[u8],
    ranges: &Ranges,
    time_ms: u64,
    found: &mut BTreeSet<(RangeId, DedupKey)>,
) -> Result<(), Error> {
    let mut cursor = files.cursor(first, end);
    cursor.seek(first)?;
    while let Some((key, _)) = cursor.row() {
        let corrupt = |malformed| Error::corrupt_row(key, malformed);
        if let StoredKey::Dedup { range, suffix, .. } = StoredKey::split(key).map_err(corrupt)? {
            let dedup = DedupKey::decode(suffix).map_err(corrupt)?;
            if ranges.slot_of(range).is_some() && dedup.time_ms() > time_ms {
                found.insert((range, dedup));
            }
        }
        cursor.next()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::id::UserId;
    use crate::key::Destination;

    fn key(time_ms: u64, number: u64) -> DedupKey {
        let id = Uuid::from_u128(u128::from(time_ms) << 80 | u128::from(number));
        DedupKey {
            id,
            sender: UserId(1),
            destination: Destination::NEW_GROUP,
        }
    }

    #[test]
    fn an_early_key_is_known_until_time_has_covered_it() {
        let (one, two) = (RangeId(1), RangeId(2));
        let mut known = KnownKeys::default();
        known.flushed(100, [(one, key(150, 1))]);
        assert!(known.may_hold(one, &key(100, 9)));
        assert!(!known.may_hold(one, &key(101, 9)));
        assert!(known.may_hold(one, &key(150, 1)));
        assert!(!known.may_hold(two, &key(150, 1)));
        known.flushed(120, []);
        assert!(known.may_hold(one, &key(150, 1)));
        assert!(!known.may_hold(one, &key(149, 1)));
        known.flushed(150, []);
        assert!(known.may_hold(one, &key(150, 1)) && known.early.is_empty());
        known.flushed(10, []);
        assert_eq!(known.covered_ms, 150);
    }

    #[test]
    fn too_many_early_keys_raise_what_is_covered() {
        let mut known = KnownKeys::default();
        let early = u64::try_from(EARLY_MAX).unwrap() + 1;
        known.flushed(
            10,
            (0..early).map(|number| (RangeId(1), key(1000 + number, number))),
        );
        assert!(known.early.is_empty());
        assert!((0..early).all(|number| known.may_hold(RangeId(1), &key(1000 + number, number))));
        assert!(!known.may_hold(RangeId(1), &key(1000 + early, 0)));
    }
}
