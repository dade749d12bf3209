//! Walks a shard's visible rows, without their ranges: what hashes, snapshots and scrubs have in
//! common.
//!
//! First the state rows, slot by slot; then the dedup rows, hour by hour and in an hour slot by
//! slot: the order in which a snapshot's rows can be written into new ranges, which rise with the
//! slots. Rows at or below a trim point or before a floor are absent, here or not.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::base::rocks::KEYS_END;
use crate::base::{Cursor, FileWriter, ReadView, StagedFile};
use crate::decode::{Malformed, Reader};
use crate::error::Error;
use crate::id::{RangeId, Seq, SlotId, TimelineId};
use crate::key::{DedupKey, StateKey, StoredKey, TAG_MESSAGE};
use crate::range::Ranges;
use crate::view::{after_prefix, seq_value, state_key};

/// A row without its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// A row of the state space, by its key without space and range.
    State(&'a [u8]),
    /// A row of the dedup space, by its key without space, hour and range.
    Dedup(u32, &'a [u8]),
}

impl Place<'_> {
    /// Writes the row's stored key in a range.
    pub(crate) fn stored(&self, range: RangeId, key: &mut Vec<u8>) {
        key.clear();
        match *self {
            Place::State(suffix) => StoredKey::State { range, suffix }.encode(key),
            Place::Dedup(hour, suffix) => StoredKey::Dedup {
                hour,
                range,
                suffix,
            }
            .encode(key),
        }
    }
}

/// Takes the rows of a walk.
pub(crate) type Sink<'a> = dyn FnMut(SlotId, Place<'_>, &[u8]) -> Result<(), Error> + 'a;

/// Unflushed rows under their stored keys, as a flush would write them.
#[derive(Default)]
pub(crate) struct Unflushed {
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Unflushed {
    /// Lays a row, or a tombstone, over what is here.
    pub(crate) fn lay(&mut self, key: Vec<u8>, value: Option<Bytes>) {
        self.rows.insert(key, value.map(Into::into));
    }
}

impl FileWriter for &mut Unflushed {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.rows.insert(key.to_vec(), Some(value.to_vec()));
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), Error> {
        self.rows.insert(key.to_vec(), None);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<StagedFile, Error> {
        Err(Error::Stopped {
            reason: "unflushed rows are no file".to_owned(),
        })
    }
}

/// What a walk goes over.
pub(crate) struct Walk<'a> {
    files: &'a dyn ReadView,
    ranges: &'a Ranges,
    unflushed: &'a Unflushed,
}

/// What hides rows of a slot.
#[derive(Default)]
pub(crate) struct Hidden {
    pub(crate) trim_points: BTreeMap<TimelineId, Seq>,
    pub(crate) floor_ms: u64,
}

impl<'a> Walk<'a> {
    /// `unflushed` lies over the files.
    pub(crate) fn new(
        files: &'a dyn ReadView,
        ranges: &'a Ranges,
        unflushed: &'a Unflushed,
    ) -> Walk<'a> {
        Walk {
            files,
            ranges,
            unflushed,
        }
    }

    /// Gives every visible row to `sink`.
    pub(crate) fn run(&self, sink: &mut Sink<'_>) -> Result<(), Error> {
        let mut floors = BTreeMap::new();
        for (slot, range) in self.ranges.by_slot() {
            let hidden = self.hidden(slot, range)?;
            floors.insert(slot, hidden.floor_ms);
            self.state_rows(slot, range, &hidden, sink)?;
        }
        self.dedup_rows(&floors, sink)
    }

    /// What hides rows of a slot.
    pub(crate) fn hidden(&self, slot: SlotId, range: RangeId) -> Result<Hidden, Error> {
        let mut hidden = Hidden::default();
        let key = StateKey::DedupFloor { slot };
        let stored = state_key(range, key.encode().as_slice());
        let value = match self.unflushed.rows.get(&stored) {
            Some(value) => value.clone().map(Into::into),
            None => self.files.get(&stored)?,
        };
        hidden.floor_ms = seq_value(value, &key)?.0;
        let first = state_key(range, &[StateKey::TRIM_POINT_TAG]);
        let mut rows = self.rows(&first, &after_prefix(&first));
        rows.seek(&first)?;
        while rows.next()? {
            let suffix = &rows.key[first.len() - 1..];
            let key = StateKey::decode(suffix).map_err(|fault| rows.corrupt(fault))?;
            if let StateKey::TrimPoint { timeline } = key {
                let seq = Reader::new("trim point", &rows.value).u64();
                let seq = seq.map_err(|fault| rows.corrupt(fault))?;
                hidden.trim_points.insert(timeline, Seq(seq));
            }
        }
        Ok(hidden)
    }

    fn state_rows(
        &self,
        slot: SlotId,
        range: RangeId,
        hidden: &Hidden,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error> {
        let first = state_key(range, &[]);
        let mut rows = self.rows(&first, &after_prefix(&first));
        rows.seek(&first)?;
        while rows.next()? {
            let suffix = &rows.key[first.len()..];
            if !hidden.trim_points.is_empty() && suffix.first() == Some(&TAG_MESSAGE) {
                let key = StateKey::decode(suffix).map_err(|fault| rows.corrupt(fault))?;
                if hidden.hides(&key) {
                    continue;
                }
            }
            sink(slot, Place::State(suffix), &rows.value)?;
        }
        Ok(())
    }

    fn dedup_rows(&self, floors: &BTreeMap<SlotId, u64>, sink: &mut Sink<'_>) -> Result<(), Error> {
        let mut hour = 0;
        while let Some(next) = self.next_hour(hour)? {
            hour = next;
            self.hour_rows(hour, floors, sink)?;
            let Some(after) = hour.checked_add(1) else {
                return Ok(());
            };
            hour = after;
        }
        Ok(())
    }

    /// The first hour at or after `hour` with a row of any shard.
    fn next_hour(&self, hour: u32) -> Result<Option<u32>, Error> {
        let first = StoredKey::dedup_front(hour, RangeId::NODE);
        let mut rows = self.rows(&first, &KEYS_END);
        rows.seek(&first)?;
        if !rows.next()? {
            return Ok(None);
        }
        match StoredKey::split(&rows.key).map_err(|fault| rows.corrupt(fault))? {
            StoredKey::Dedup { hour, .. } => Ok(Some(hour)),
            StoredKey::State { .. } => Ok(None),
        }
    }

    fn hour_rows(
        &self,
        hour: u32,
        floors: &BTreeMap<SlotId, u64>,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error> {
        let front = StoredKey::dedup_front(hour, RangeId::NODE).len();
        let end = hour
            .checked_add(1)
            .map(|after| StoredKey::dedup_front(after, RangeId::NODE));
        let end = end.unwrap_or_else(|| KEYS_END.to_vec());
        let mut rows = self.rows(&StoredKey::dedup_front(hour, RangeId::NODE), &end);
        let mut more = false;
        let mut before = None;
        for (slot, range) in self.ranges.by_slot() {
            let first = StoredKey::dedup_front(hour, range);
            // Ranges mostly rise with the slots: then the row after the last range's is at hand,
            // and if it lies behind this range, the range has no rows in this hour.
            let rises = before.replace(range).is_some_and(|before| before < range);
            if !rises || (more && rows.key < first) {
                rows.seek(&first)?;
                more = rows.next()?;
            }
            while more && rows.key.starts_with(&first) {
                let key = DedupKey::decode(&rows.key[front..]);
                let key = key.map_err(|fault| rows.corrupt(fault))?;
                if key.time_ms() >= floors[&slot] {
                    sink(slot, Place::Dedup(hour, &rows.key[front..]), &rows.value)?;
                }
                more = rows.next()?;
            }
        }
        Ok(())
    }

    fn rows(&self, lower: &[u8], upper: &[u8]) -> MergedRows<'a> {
        MergedRows {
            cursor: self.files.cursor(lower, upper),
            unflushed: self.unflushed,
            next_unflushed: Bound::Included(lower.to_vec()),
            upper: upper.to_vec(),
            key: Vec::new(),
            value: Vec::new(),
        }
    }
}

impl Hidden {
    pub(crate) fn hides(&self, key: &StateKey) -> bool {
        match key {
            StateKey::Message { timeline, seq } => self
                .trim_points
                .get(timeline)
                .is_some_and(|trimmed| seq <= trimmed),
            _ => false,
        }
    }
}

/// Rows of the files with the unflushed ones over them. Holds the row it is on.
struct MergedRows<'a> {
    cursor: Box<dyn Cursor + 'a>,
    unflushed: &'a Unflushed,
    next_unflushed: Bound<Vec<u8>>,
    upper: Vec<u8>,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl MergedRows<'_> {
    /// Stands before the first row at or after `key`.
    fn seek(&mut self, key: &[u8]) -> Result<(), Error> {
        self.next_unflushed = Bound::Included(key.to_vec());
        self.cursor.seek(key)
    }

    /// Goes to the next row, if there is one.
    fn next(&mut self) -> Result<bool, Error> {
        loop {
            let bounds = (
                self.next_unflushed.clone(),
                Bound::Excluded(self.upper.clone()),
            );
            let over = if self.unflushed.rows.is_empty() {
                None
            } else {
                self.unflushed.rows.range(bounds).next()
            };
            let below = self.cursor.row();
            let from_files = match (over, below) {
                (None, None) => return Ok(false),
                (Some((over, _)), Some((below, _))) => below < over.as_slice(),
                (None, Some(_)) => true,
                (Some(_), None) => false,
            };
            if from_files {
                let (key, value) = below.expect("the files' row is the smaller one");
                set(&mut self.key, key);
                set(&mut self.value, value);
                self.cursor.next()?;
                return Ok(true);
            }
            let (key, value) = over.expect("the unflushed row is the smaller one");
            let hides_one = below.is_some_and(|(below, _)| below == key.as_slice());
            set(&mut self.key, key);
            self.next_unflushed = Bound::Excluded(key.clone());
            if hides_one {
                self.cursor.next()?;
            }
            if let Some(value) = value {
                set(&mut self.value, value);
                return Ok(true);
            }
        }
    }

    fn corrupt(&self, malformed: Malformed) -> Error {
        Error::corrupt_row(&self.key, malformed)
    }
}

pub(crate) fn set(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(bytes);
}
