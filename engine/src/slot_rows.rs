//! The visible rows of one slot, one by one: what exports compare.
//!
//! The same rows in the same order as a walk over a shard with this one slot gives (`walk.rs`), but pulled
//! rather than pushed, so that two can be gone through side by side.

use crate::base::rocks::KEYS_END;
use crate::base::{Cursor, ReadView};
use crate::error::Error;
use crate::id::{RangeId, SlotId};
use crate::key::{DedupKey, StateKey, StoredKey, TAG_MESSAGE};
use crate::range::Ranges;
use crate::view::{after_prefix, state_key};
use crate::walk::{Hidden, Place, Unflushed, Walk, set};

/// A cursor over the rows of a slot. Holds the row it is on.
pub(crate) struct SlotRows<'a> {
    range: RangeId,
    hidden: Hidden,
    state: Box<dyn Cursor + 'a>,
    dedup: Box<dyn Cursor + 'a>,
    in_state: bool,
    /// Of a dedup row.
    hour: Option<u32>,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl<'a> SlotRows<'a> {
    /// Stands before the first row.
    pub(crate) fn new(
        files: &'a dyn ReadView,
        slot: SlotId,
        range: RangeId,
    ) -> Result<SlotRows<'a>, Error> {
        let mut ranges = Ranges::default();
        ranges.insert(slot, range);
        let hidden = Walk::new(files, &ranges, &Unflushed::default()).hidden(slot, range)?;
        let first = state_key(range, &[]);
        let mut state = files.cursor(&first, &after_prefix(&first));
        state.seek(&first)?;
        Ok(SlotRows {
            range,
            hidden,
            state,
            dedup: files.cursor(&StoredKey::dedup_front(0, RangeId::NODE), &KEYS_END),
            in_state: true,
            hour: None,
            key: Vec::new(),
            value: Vec::new(),
        })
    }

    /// Goes to the next row, if there is one.
    pub(crate) fn next(&mut self) -> Result<bool, Error> {
        if self.in_state {
            if self.next_state()? {
                return Ok(true);
            }
            self.in_state = false;
            self.dedup.seek(&StoredKey::dedup_front(0, self.range))?;
        }
        self.next_dedup()
    }

    fn next_state(&mut self) -> Result<bool, Error> {
        let front = state_key(self.range, &[]).len();
        while let Some((key, value)) = self.state.row() {
            let suffix = &key[front..];
            let mut hides = false;
            if !self.hidden.trim_points.is_empty() && suffix.first() == Some(&TAG_MESSAGE) {
                let decoded = StateKey::decode(suffix);
                let decoded = decoded.map_err(|fault| Error::corrupt_row(key, fault))?;
                hides = self.hidden.hides(&decoded);
            }
            if !hides {
                set(&mut self.key, suffix);
                set(&mut self.value, value);
            }
            self.state.next()?;
            if !hides {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn next_dedup(&mut self) -> Result<bool, Error> {
        loop {
            let Some((key, value)) = self.dedup.row() else {
                return Ok(false);
            };
            let split = StoredKey::split(key).map_err(|fault| Error::corrupt_row(key, fault))?;
            let StoredKey::Dedup {
                hour,
                range,
                suffix,
            } = split
            else {
                return Ok(false);
            };
            if range != self.range {
                // Rows of other slots lie around each hour's.
                let hour = if range < self.range {
                    Some(hour)
                } else {
                    hour.checked_add(1)
                };
                let Some(hour) = hour else { return Ok(false) };
                self.dedup.seek(&StoredKey::dedup_front(hour, self.range))?;
                continue;
            }
            let id = DedupKey::decode(suffix).map_err(|fault| Error::corrupt_row(key, fault))?;
            self.hour = Some(hour);
            set(&mut self.key, suffix);
            set(&mut self.value, value);
            self.dedup.next()?;
            if id.time_ms() >= self.hidden.floor_ms {
                return Ok(true);
            }
        }
    }

    /// What orders the rows of a slot.
    pub(crate) fn order(&self) -> (Option<u32>, &[u8]) {
        (self.hour, &self.key)
    }

    /// The row's place.
    pub(crate) fn place(&self) -> Place<'_> {
        match self.hour {
            None => Place::State(&self.key),
            Some(hour) => Place::Dedup(hour, &self.key),
        }
    }

    /// The row's value.
    pub(crate) fn value(&self) -> &[u8] {
        &self.value
    }
}
