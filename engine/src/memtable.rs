//! A shard's applied but not yet flushed rows.
//!
//! Timelines are dense tails of rows whose bodies are slices of their entries. Everything else is
//! in an ordered map with tombstones, a message row that was overwritten after it had left the
//! active tail included, under that row's own key. Dedup rows are looked up by their whole key
//! only, so they are hashed, and sorted once, when the file is built.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::id::{Seq, SlotId, TimelineId};
use crate::key::{DedupKey, KeyBytes, StateKey};
use crate::map::Map;
use crate::row::StoredRow;

/// Rows of one chunk of the arena: no chunk is ever moved, so growing costs no copy.
const CHUNK_ROWS: usize = 1024;
const CHUNK_BYTES: usize = 64 * 1024;
/// What a timeline and its place in the hash map take, besides its rows.
const TIMELINE_BYTES: u64 = 100;
/// What a dedup row and its place in the hash map take, besides its value.
const DEDUP_BYTES: u64 = 96;
/// The end of a chain of dedup rows.
const NONE: u32 = u32::MAX;
/// What an ordered map needs for a row, besides key and value.
const STATE_ROW_BYTES: u64 = 96;

/// A key of the ordered map: the slot, then the key without its range.
pub(crate) type StateRowKey = (SlotId, KeyBytes);

/// One shard's unflushed rows, or those of one flush that is on its way.
#[derive(Default)]
pub(crate) struct Memtable {
    rows: Vec<Vec<StoredRow>>,
    row_count: u32,
    timelines: Vec<(TimelineId, Tail)>,
    timeline_places: Map<TimelineId, u32>,
    state: BTreeMap<StateRowKey, Option<Bytes>>,
    overwrites: usize,
    dedup: Vec<DedupRow>,
    dedup_values: Vec<Vec<u8>>,
    /// By the hash of slot and key: the last of the rows with this hash, each naming the one
    /// before it. The keys are in the rows; here they would be stored twice.
    dedup_places: Map<u64, u32>,
    bytes: u64,
}

/// The rows of a timeline that arrived in this memtable: dense from `first`.
pub(crate) struct Tail {
    slot: SlotId,
    first: Seq,
    len: u32,
    /// Places in the arena: most tails hold a row or two and need no allocation of their own.
    front: [u32; 2],
    /// Boxed, because few have it.
    #[expect(clippy::box_collection, reason = "two words less in every tail")]
    rest: Option<Box<Vec<u32>>>,
    /// Which batch touched it last, and its place in that batch's list of appended rows.
    touched: (u64, u32),
}

impl Tail {
    /// The first seq in this memtable.
    pub(crate) fn first(&self) -> Seq {
        self.first
    }

    /// The last seq in this memtable.
    pub(crate) fn last(&self) -> Seq {
        Seq(self.first.0 + u64::from(self.len) - 1)
    }

    /// The slot that holds the timeline.
    pub(crate) fn slot(&self) -> SlotId {
        self.slot
    }

    fn place(&self, seq: Seq) -> Option<u32> {
        let index = seq.0.checked_sub(self.first.0)?;
        if index >= u64::from(self.len) {
            return None;
        }
        let index = usize::try_from(index).expect("below a u32");
        match self.front.get(index) {
            Some(place) => Some(*place),
            None => self.rest.as_ref()?.get(index - self.front.len()).copied(),
        }
    }

    fn push(&mut self, place: u32) {
        let index = usize::try_from(self.len).expect("a u32 fits");
        match self.front.get_mut(index) {
            Some(front) => *front = place,
            None => self.rest.get_or_insert_default().push(place),
        }
        self.len += 1;
    }
}

/// A dedup row, its value in the arena.
pub(crate) struct DedupRow {
    pub(crate) slot: SlotId,
    pub(crate) key: DedupKey,
    chunk: u32,
    start: u32,
    len: u32,
    before: u32,
}

impl Memtable {
    /// Bytes that it pins: each entry's buffer once, and its own structures.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Counts an entry's buffer, which the rows about to come are slices of.
    pub(crate) fn pin(&mut self, entry: &Bytes) {
        self.bytes += u64::try_from(entry.len()).expect("a usize fits");
    }

    /// Where a timeline is, if rows of it are here.
    pub(crate) fn timeline(&self, timeline: TimelineId) -> Option<TailPlace> {
        self.timeline_places
            .get(&timeline)
            .map(|place| TailPlace(*place))
    }

    /// A timeline's rows.
    pub(crate) fn tail(&self, place: TailPlace) -> &Tail {
        &self.timelines[index(place.0)].1
    }

    /// Begins the tail of a timeline that has no rows here.
    pub(crate) fn begin_tail(
        &mut self,
        timeline: TimelineId,
        slot: SlotId,
        first: Seq,
    ) -> TailPlace {
        let place = u32::try_from(self.timelines.len()).expect("bounded by the budget");
        let tail = Tail {
            slot,
            first,
            len: 0,
            front: [0; 2],
            rest: None,
            touched: (0, 0),
        };
        self.timelines.push((timeline, tail));
        self.timeline_places.insert(timeline, place);
        self.bytes += TIMELINE_BYTES;
        TailPlace(place)
    }

    /// Appends the next row of a timeline.
    pub(crate) fn append(&mut self, place: TailPlace, row: StoredRow) {
        let arena_place = self.row_count;
        self.row_count += 1;
        match self.rows.last_mut() {
            Some(chunk) if chunk.len() < CHUNK_ROWS => chunk.push(row),
            Some(_) | None => {
                let mut chunk = Vec::with_capacity(CHUNK_ROWS);
                chunk.push(row);
                self.rows.push(chunk);
            }
        }
        self.timelines[index(place.0)].1.push(arena_place);
        self.bytes += u64::try_from(size_of::<StoredRow>()).expect("a usize fits") + 4;
    }

    /// Notes that a batch touches a timeline: its place in the batch's list of appended rows, or
    /// `next` if it is not in it yet.
    pub(crate) fn touch(&mut self, place: TailPlace, batch: u64, next: u32) -> Option<u32> {
        let tail = &mut self.timelines[index(place.0)].1;
        if tail.touched.0 == batch {
            return Some(tail.touched.1);
        }
        tail.touched = (batch, next);
        None
    }

    /// A row of a tail.
    pub(crate) fn row(&self, tail: &Tail, seq: Seq) -> Option<&StoredRow> {
        let place = index(tail.place(seq)?);
        Some(&self.rows[place / CHUNK_ROWS][place % CHUNK_ROWS])
    }

    /// Replaces a row, in place if it is in the tail, else under its own key.
    pub(crate) fn overwrite(
        &mut self,
        timeline: TimelineId,
        slot: SlotId,
        seq: Seq,
        row: StoredRow,
    ) {
        let tail_place = self.timeline(timeline);
        if let Some(place) = tail_place.and_then(|place| self.tail(place).place(seq)) {
            let place = index(place);
            self.rows[place / CHUNK_ROWS][place % CHUNK_ROWS] = row;
            return;
        }
        let mut value = Vec::new();
        row.encode(&mut value);
        self.overwrites += 1;
        self.put(
            slot,
            StateKey::Message { timeline, seq }.encode(),
            Some(value.into()),
        );
    }

    /// Holds rows that replace ones below it.
    pub(crate) fn has_overwrites(&self) -> bool {
        self.overwrites > 0
    }

    /// Message rows from `from` to below `end` that were overwritten after they had left their
    /// tail.
    pub(crate) fn overwrites(
        &self,
        timeline: TimelineId,
        slot: SlotId,
        from: Seq,
        end: Seq,
    ) -> impl Iterator<Item = (Seq, &Bytes)> {
        let key = |seq| (slot, StateKey::Message { timeline, seq }.encode());
        let some = self.overwrites > 0 && from < end;
        let rows = some.then(|| self.state.range(key(from)..key(end)));
        rows.into_iter().flatten().filter_map(|((_, key), value)| {
            let (_, seq) = key.as_slice().split_last_chunk()?;
            Some((Seq(u64::from_be_bytes(*seq)), value.as_ref()?))
        })
    }

    /// What is here under a key: a value, a tombstone (`Some(None)`), or nothing.
    pub(crate) fn get(&self, slot: SlotId, key: &KeyBytes) -> Option<&Option<Bytes>> {
        if self.state.is_empty() {
            return None;
        }
        self.state.get(&(slot, key.clone()))
    }

    /// Puts a row, or a tombstone.
    pub(crate) fn put(&mut self, slot: SlotId, key: KeyBytes, value: Option<Bytes>) {
        let value_bytes = value.as_ref().map_or(0, Bytes::len);
        self.bytes += STATE_ROW_BYTES + u64::try_from(value_bytes).expect("a usize fits");
        self.state.insert((slot, key), value);
    }

    /// Rows and tombstones from a key on, in key order.
    pub(crate) fn state_from(
        &self,
        first: StateRowKey,
    ) -> impl Iterator<Item = (&StateRowKey, &Option<Bytes>)> {
        self.state.range(first..)
    }

    /// A dedup row's value.
    pub(crate) fn dedup(&self, slot: SlotId, key: &DedupKey) -> Option<&[u8]> {
        let place = self.dedup_place(self.dedup_places.hash_of(&(slot, *key)), slot, key)?;
        Some(self.dedup_value(&self.dedup[place]))
    }

    fn dedup_place(&self, hash: u64, slot: SlotId, key: &DedupKey) -> Option<usize> {
        let mut place = *self.dedup_places.get(&hash)?;
        while place != NONE {
            let row = &self.dedup[index(place)];
            if row.slot == slot && row.key == *key {
                return Some(index(place));
            }
            place = row.before;
        }
        None
    }

    /// Adds a dedup row.
    pub(crate) fn put_dedup(&mut self, slot: SlotId, key: DedupKey, value: &[u8]) {
        let full = |chunk: &Vec<u8>| chunk.capacity() - chunk.len() < value.len();
        if self.dedup_values.last().is_none_or(full) {
            self.dedup_values
                .push(Vec::with_capacity(CHUNK_BYTES.max(value.len())));
        }
        let chunk = self.dedup_values.len() - 1;
        let start = self.dedup_values[chunk].len();
        self.dedup_values[chunk].extend_from_slice(value);
        let short = |number: usize| u32::try_from(number).expect("bounded by the budget");
        let (chunk, start, len) = (short(chunk), short(start), short(value.len()));
        self.bytes += DEDUP_BYTES + u64::from(len);
        let hash = self.dedup_places.hash_of(&(slot, key));
        if let Some(place) = self.dedup_place(hash, slot, &key) {
            let before = self.dedup[place].before;
            self.dedup[place] = DedupRow {
                slot,
                key,
                chunk,
                start,
                len,
                before,
            };
            return;
        }
        let place = short(self.dedup.len());
        let before = self.dedup_places.insert(hash, place).unwrap_or(NONE);
        self.dedup.push(DedupRow {
            slot,
            key,
            chunk,
            start,
            len,
            before,
        });
    }

    /// The value of one of the rows of [`Memtable::dedup_rows`].
    pub(crate) fn dedup_value(&self, row: &DedupRow) -> &[u8] {
        let start = index(row.start);
        &self.dedup_values[index(row.chunk)][start..start + index(row.len)]
    }

    /// All dedup rows, as they came.
    pub(crate) fn dedup_rows(&self) -> &[DedupRow] {
        &self.dedup
    }

    /// All timelines with rows here, as they came.
    pub(crate) fn timelines(&self) -> &[(TimelineId, Tail)] {
        &self.timelines
    }
}

/// Names a tail of one memtable.
#[derive(Clone, Copy)]
pub(crate) struct TailPlace(u32);

fn index(place: u32) -> usize {
    usize::try_from(place).expect("a u32 fits")
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::id::UserId;
    use crate::key::Destination;

    fn key(number: u128) -> DedupKey {
        let (sender, destination) = (UserId(1), Destination::NEW_GROUP);
        DedupKey {
            id: Uuid::from_u128(number),
            sender,
            destination,
        }
    }

    #[test]
    fn dedup_rows_are_found_by_slot_and_key_and_replaced() {
        let mut memtable = Memtable::default();
        for number in 0..1000 {
            memtable.put_dedup(SlotId(1), key(number), &number.to_be_bytes());
        }
        memtable.put_dedup(SlotId(2), key(5), b"other slot");
        memtable.put_dedup(SlotId(1), key(7), b"again");
        assert_eq!(memtable.dedup_rows().len(), 1001);
        assert_eq!(
            memtable.dedup(SlotId(1), &key(5)),
            Some(5_u128.to_be_bytes().as_slice())
        );
        assert_eq!(
            memtable.dedup(SlotId(2), &key(5)),
            Some(b"other slot".as_slice())
        );
        assert_eq!(
            memtable.dedup(SlotId(1), &key(7)),
            Some(b"again".as_slice())
        );
        assert_eq!(memtable.dedup(SlotId(2), &key(6)), None);
        assert_eq!(memtable.dedup(SlotId(1), &key(1000)), None);
    }

    #[test]
    fn rows_with_one_hash_form_a_chain() {
        let mut memtable = Memtable::default();
        for number in 0..3 {
            memtable.put_dedup(SlotId(1), key(number), &[u8::try_from(number).unwrap()]);
        }
        // All three under the hash of the last one.
        let hash = memtable.dedup_places.hash_of(&(SlotId(1), key(2)));
        memtable.dedup[2].before = 1;
        memtable.dedup[1].before = 0;
        for number in 0..3 {
            let place = memtable.dedup_place(hash, SlotId(1), &key(number));
            assert_eq!(place, Some(usize::try_from(number).unwrap()));
        }
        assert_eq!(memtable.dedup_place(hash, SlotId(1), &key(3)), None);
    }

    #[test]
    fn long_tails_are_dense() {
        let mut tail = Tail {
            slot: SlotId(0),
            first: Seq(5),
            len: 0,
            front: [0; 2],
            rest: None,
            touched: (0, 0),
        };
        for place in 10..20 {
            tail.push(place);
        }
        assert_eq!(tail.last(), Seq(14));
        assert_eq!(tail.place(Seq(4)), None);
        assert_eq!(tail.place(Seq(15)), None);
        for seq in 5..15 {
            assert_eq!(tail.place(Seq(seq)).map(u64::from), Some(seq + 5));
        }
    }
}
