//! Reads of one moment: memtables laid over the files of the last flush.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::base::ReadView;
use crate::decode::{Malformed, Reader};
use crate::error::Error;
use crate::id::{RangeId, Seq, SlotId, TimelineId};
use crate::key::{KeyBytes, StateKey, StoredKey};
use crate::memtable::Memtable;
use crate::row::{Row, StoredRow};
use crate::state::ShardState;

/// Rows by key; `None` is a tombstone, which hides what lies below.
pub(crate) type Overlay = BTreeMap<KeyBytes, Option<Bytes>>;

/// The stored key of a state row.
pub(crate) fn state_key(range: RangeId, suffix: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(5 + suffix.len());
    StoredKey::State { range, suffix }.encode(&mut key);
    key
}

/// The least key above all that begin with `prefix`.
pub(crate) fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xFF {
            end.push(last + 1);
            return end;
        }
    }
    vec![0xFF; prefix.len() + 1]
}

/// A state row of the files.
pub(crate) fn get_state(
    files: &dyn ReadView,
    range: RangeId,
    key: &KeyBytes,
) -> Result<Option<Bytes>, Error> {
    files.get(&state_key(range, key.as_slice()))
}

/// A row's value that is one seq; an absent row is seq 0.
pub(crate) fn seq_value(value: Option<Bytes>, key: &StateKey) -> Result<Seq, Error> {
    let Some(value) = value else {
        return Ok(Seq::ZERO);
    };
    let mut reader = Reader::new("seq", &value);
    let seq = reader.u64().and_then(|seq| reader.end().map(|()| Seq(seq)));
    seq.map_err(|malformed| Error::corrupt_row(key.encode().as_slice(), malformed))
}

/// The last seq of a timeline in files, or 0.
pub(crate) fn last_seq(
    files: &dyn ReadView,
    range: RangeId,
    timeline: TimelineId,
) -> Result<Seq, Error> {
    let first = state_key(range, StateKey::messages_prefix(timeline).as_slice());
    let mut cursor = files.cursor(&first, &after_prefix(&first));
    cursor.seek_to_last()?;
    match cursor.row() {
        None => Ok(Seq::ZERO),
        Some((key, _)) => message_seq(key),
    }
}

fn message_seq(key: &[u8]) -> Result<Seq, Error> {
    let decoded = StoredKey::split(key).and_then(|split| match split {
        StoredKey::State { suffix, .. } | StoredKey::Dedup { suffix, .. } => {
            StateKey::decode(suffix)
        }
    });
    match decoded {
        Ok(StateKey::Message { seq, .. }) => Ok(seq),
        Ok(_) => Err(Error::corrupt_row(
            key,
            Malformed::Unknown {
                what: "message key",
                number: 0,
            },
        )),
        Err(malformed) => Err(Error::corrupt_row(key, malformed)),
    }
}

/// Lays what the memtables hold under a prefix into `rows`.
pub(crate) fn overlay_prefix(
    state: &ShardState,
    slot: SlotId,
    prefix: &KeyBytes,
    rows: &mut Overlay,
) {
    for memtable in state.memtables() {
        for ((row_slot, key), value) in memtable.state_from((slot, prefix.clone())) {
            if *row_slot != slot || !key.as_slice().starts_with(prefix.as_slice()) {
                break;
            }
            // The newest memtable comes first.
            rows.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
}

/// Adds what the files hold under a prefix, below what is in `rows`.
pub(crate) fn add_prefix(
    files: &dyn ReadView,
    range: RangeId,
    prefix: &KeyBytes,
    rows: &mut Overlay,
) -> Result<(), Error> {
    let first = state_key(range, prefix.as_slice());
    let front = first.len() - prefix.as_slice().len();
    let mut cursor = files.cursor(&first, &after_prefix(&first));
    cursor.seek(&first)?;
    while let Some((key, value)) = cursor.row() {
        let suffix = KeyBytes::from(&key[front..]);
        rows.entry(suffix)
            .or_insert_with(|| Some(Bytes::copy_from_slice(value)));
        cursor.next()?;
    }
    Ok(())
}

/// How many rows the files hold under a prefix that `rows` does not lie over; `enough` at most.
pub(crate) fn count_below(
    files: &dyn ReadView,
    range: RangeId,
    prefix: &KeyBytes,
    rows: &Overlay,
    enough: usize,
) -> Result<usize, Error> {
    let first = state_key(range, prefix.as_slice());
    let front = first.len() - prefix.as_slice().len();
    let mut cursor = files.cursor(&first, &after_prefix(&first));
    cursor.seek(&first)?;
    let mut count = 0;
    while let Some((key, _)) = cursor.row() {
        count += usize::from(!rows.contains_key(&KeyBytes::from(&key[front..])));
        if count == enough {
            break;
        }
        cursor.next()?;
    }
    Ok(count)
}

/// The rows that are no tombstones.
pub(crate) fn present(rows: Overlay) -> Vec<(KeyBytes, Bytes)> {
    rows.into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
}

/// What a scan takes out of memory under the lock.
pub(crate) struct TimelineTail {
    /// The first seq that is in memory; all from there to the head are.
    pub(crate) first: Option<Seq>,
    /// Rows from memory, dense, if the scan gets that far.
    rows: Vec<(Seq, StoredRow)>,
    /// Rows overwritten after they had left their tail.
    overwrites: BTreeMap<Seq, Bytes>,
}

/// A page of a timeline: where it begins and how much it may hold.
#[derive(Clone, Copy)]
pub(crate) struct Page {
    pub(crate) timeline: TimelineId,
    /// Inclusive.
    pub(crate) from: Seq,
    pub(crate) rows_max: usize,
    /// Of bodies; the first row comes whatever its length.
    pub(crate) bytes_max: usize,
}

impl Page {
    fn end(&self) -> Seq {
        let rows = u64::try_from(self.rows_max).unwrap_or(u64::MAX);
        Seq(self.from.0.saturating_add(rows))
    }
}

/// Takes what memory holds of a page. Cheap: rows share their entry's bytes.
pub(crate) fn take_tail(state: &ShardState, slot: SlotId, page: &Page) -> TimelineTail {
    let memtables: Vec<&Memtable> = state.memtables().collect();
    let mut tail = TimelineTail {
        first: None,
        rows: Vec::new(),
        overwrites: BTreeMap::new(),
    };
    let mut bytes = 0;
    for memtable in memtables.into_iter().rev() {
        for (seq, value) in memtable.overwrites(page.timeline, slot, page.from, page.end()) {
            tail.overwrites.insert(seq, value.clone());
        }
        let Some(place) = memtable.timeline(page.timeline) else {
            continue;
        };
        let rows = memtable.tail(place);
        tail.first.get_or_insert(rows.first());
        let mut seq = rows.first().max(page.from);
        while seq <= rows.last() && seq < page.end() {
            if bytes >= page.bytes_max && !tail.rows.is_empty() {
                break;
            }
            let row = memtable
                .row(rows, seq)
                .expect("seq is between first and last");
            bytes += row.encoded_len();
            tail.rows.push((seq, row.clone()));
            seq = seq.next();
        }
    }
    tail
}

/// A page that fills up, row by row.
pub(crate) struct PageRows {
    page: Page,
    pub(crate) rows: Vec<Row>,
    bytes: usize,
}

impl PageRows {
    pub(crate) fn new(page: Page) -> PageRows {
        PageRows {
            page,
            rows: Vec::new(),
            bytes: 0,
        }
    }

    /// The seq that comes next.
    pub(crate) fn next(&self) -> Seq {
        self.rows
            .last()
            .map_or(self.page.from, |row| row.seq.next())
    }

    pub(crate) fn is_full(&self) -> bool {
        let has_one = !self.rows.is_empty();
        self.rows.len() >= self.page.rows_max || (has_one && self.bytes >= self.page.bytes_max)
    }

    /// Adds a row, unless the page would hold too many bytes: then it is full.
    pub(crate) fn push(&mut self, row: Row) {
        let bytes = self.bytes + row.body.len();
        if bytes > self.page.bytes_max && !self.rows.is_empty() {
            self.bytes = usize::MAX;
            return;
        }
        self.bytes = bytes;
        self.rows.push(row);
    }

    /// Adds a row from the cache, if it is the next; false if no more are wanted.
    pub(crate) fn push_cached(&mut self, row: &Row) -> bool {
        if self.is_full() || row.seq != self.next() {
            return false;
        }
        self.push(row.clone());
        !self.is_full()
    }

    /// Adds rows of the files below `end`, overwritten ones as memory has them.
    pub(crate) fn add_files(
        &mut self,
        files: &dyn ReadView,
        range: RangeId,
        end: Option<Seq>,
        tail: &TimelineTail,
    ) -> Result<(), Error> {
        let timeline = self.page.timeline;
        let message = |seq| {
            state_key(
                range,
                StateKey::Message { timeline, seq }.encode().as_slice(),
            )
        };
        let first = message(self.next());
        let end = match end {
            Some(end) => message(end),
            None => after_prefix(&state_key(
                range,
                StateKey::messages_prefix(timeline).as_slice(),
            )),
        };
        let mut cursor = files.cursor(&first, &end);
        cursor.seek(&first)?;
        while let Some((key, value)) = cursor.row() {
            if self.is_full() {
                return Ok(());
            }
            let (seq, expected) = (message_seq(key)?, self.next());
            if seq != expected {
                return Err(Error::MissingRow {
                    timeline,
                    seq: expected,
                    found: seq,
                });
            }
            let overwritten = tail.overwrites.get(&seq).cloned();
            let value = overwritten.unwrap_or_else(|| Bytes::copy_from_slice(value));
            let row = StoredRow::decode(timeline, seq, &value)
                .and_then(|stored| stored.to_row(timeline, seq))
                .map_err(|malformed| Error::corrupt_row(key, malformed))?;
            self.push(row);
            cursor.next()?;
        }
        Ok(())
    }

    /// Adds the rows that memory held.
    pub(crate) fn add_tail(&mut self, range: RangeId, tail: TimelineTail) -> Result<(), Error> {
        let timeline = self.page.timeline;
        for (seq, stored) in tail.rows {
            if self.is_full() {
                return Ok(());
            }
            if seq != self.next() {
                continue;
            }
            let row = match tail.overwrites.get(&seq) {
                Some(value) => StoredRow::decode(timeline, seq, value),
                None => stored.check(timeline, seq).map(|()| stored),
            };
            let row = row.and_then(|stored| stored.to_row(timeline, seq));
            self.push(row.map_err(|malformed| {
                let key = StateKey::Message { timeline, seq }.encode();
                Error::corrupt_row(&state_key(range, key.as_slice()), malformed)
            })?);
        }
        Ok(())
    }
}
