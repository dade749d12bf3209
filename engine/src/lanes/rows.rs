//! The rows of the lanes: written at each freeze, read at open and install.
//!
//! ```text
//! lane table:  (destination - the one before | incarnations of both | sent | sent - acked)*
//! mark table:  (source - the one before | incarnations of both | mark)*           all varints
//! outbox row:  the encoded item, see `item.rs`
//! ```
//!
//! One table row per slot, not one per lane: with random traffic every lane of a shard moves
//! between two flushes, and a million rows of their own would double what a flush writes.

use bytes::Bytes;

use crate::base::ReadView;
use crate::decode::{Malformed, Reader, put_varint};
use crate::error::Error;
use crate::id::{RangeId, SlotId};
use crate::item::{INCARNATION, Item, LaneId};
use crate::key::{KeyBytes, StateKey, StoredKey};
use crate::lanes::{Lanes, is_known};
use crate::memtable::Memtable;
use crate::range::Ranges;
use crate::view::{after_prefix, state_key};

/// What a lane is at its source, as its table row holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    destination: SlotId,
    source_incarnation: u32,
    destination_incarnation: u32,
    sent: u64,
    acked: u64,
}

/// What a lane is at its destination, as its table row holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    source: SlotId,
    source_incarnation: u32,
    destination_incarnation: u32,
    mark: u64,
}

fn put_front(slot: SlotId, before: &mut u16, incarnations: [u32; 2], out: &mut Vec<u8>) {
    put_varint(u64::from(slot.0 - *before), out);
    *before = slot.0;
    for incarnation in incarnations {
        put_varint(u64::from(incarnation), out);
    }
}

fn read_front(reader: &mut Reader<'_>, before: &mut u16) -> Result<(SlotId, [u32; 2]), Malformed> {
    let step = reader.varint()?;
    let slot = u16::try_from(step)
        .ok()
        .and_then(|step| before.checked_add(step));
    *before = slot.ok_or_else(|| reader.unknown(step))?;
    let mut incarnations = [0; 2];
    for incarnation in &mut incarnations {
        let number = reader.varint()?;
        *incarnation = u32::try_from(number).map_err(|_| reader.unknown(number))?;
    }
    Ok((SlotId(*before), incarnations))
}

fn encode_lane_table(lanes: impl Iterator<Item = Sent>) -> Bytes {
    let (mut out, mut before) = (Vec::new(), 0);
    for lane in lanes {
        let incarnations = [lane.source_incarnation, lane.destination_incarnation];
        put_front(lane.destination, &mut before, incarnations, &mut out);
        put_varint(lane.sent, &mut out);
        put_varint(lane.sent - lane.acked, &mut out);
    }
    out.into()
}

fn decode_lane_table(bytes: &[u8]) -> Result<Vec<Sent>, Malformed> {
    let mut reader = Reader::new("lane table", bytes);
    let (mut lanes, mut before) = (Vec::new(), 0);
    while !reader.is_empty() {
        let (destination, incarnations) = read_front(&mut reader, &mut before)?;
        let (sent, unacked) = (reader.varint()?, reader.varint()?);
        let acked = sent
            .checked_sub(unacked)
            .ok_or_else(|| reader.unknown(unacked))?;
        let [source_incarnation, destination_incarnation] = incarnations;
        lanes.push(Sent {
            destination,
            source_incarnation,
            destination_incarnation,
            sent,
            acked,
        });
    }
    Ok(lanes)
}

fn encode_mark_table(marks: impl Iterator<Item = Mark>) -> Bytes {
    let (mut out, mut before) = (Vec::new(), 0);
    for mark in marks {
        let incarnations = [mark.source_incarnation, mark.destination_incarnation];
        put_front(mark.source, &mut before, incarnations, &mut out);
        put_varint(mark.mark, &mut out);
    }
    out.into()
}

fn decode_mark_table(bytes: &[u8]) -> Result<Vec<Mark>, Malformed> {
    let mut reader = Reader::new("mark table", bytes);
    let (mut marks, mut before) = (Vec::new(), 0);
    while !reader.is_empty() {
        let (source, incarnations) = read_front(&mut reader, &mut before)?;
        let [source_incarnation, destination_incarnation] = incarnations;
        marks.push(Mark {
            source,
            source_incarnation,
            destination_incarnation,
            mark: reader.varint()?,
        });
    }
    Ok(marks)
}

/// Checks the value of a row of a lane, for scrubs and installs.
pub(crate) fn check_row(key: &StateKey, value: &Bytes) -> Result<(), Malformed> {
    match key {
        StateKey::LaneTable { .. } => decode_lane_table(value).map(|_| ()),
        StateKey::MarkTable { .. } => decode_mark_table(value).map(|_| ()),
        StateKey::Outbox { .. } => Item::decode(value).map(|_| ()),
        _ => Ok(()),
    }
}

/// Takes a row, or a tombstone.
type Put<'a> = dyn FnMut(SlotId, KeyBytes, Option<Bytes>) + 'a;

fn outbox_key(lane: LaneId, seq: u64) -> KeyBytes {
    StateKey::Outbox { lane, seq }.encode()
}

impl Lanes {
    /// Writes into a memtable, about to be frozen, what has changed since the last freeze.
    pub(crate) fn freeze(&mut self, memtable: &mut Memtable) {
        self.changed_tables(&mut |slot, key, value| memtable.put(slot, key, value));
        for source in std::mem::take(&mut self.changed_sources) {
            let lanes = &mut self.sources[usize::from(source.0)];
            lanes.changed = false;
            for (destination, lane) in lanes.iter() {
                let (mut place, mut seq) = (lane.first, lane.acked);
                while place != 0 {
                    seq += 1;
                    let node = self.items.node(place);
                    if !node.written {
                        node.written = true;
                        let item = node.item.as_mut().expect("a place in a list is in use");
                        let key = outbox_key(LaneId::between(source, destination), seq);
                        memtable.put(source, key, Some(item.detach()));
                    }
                    place = node.next;
                }
            }
        }
        for slot in std::mem::take(&mut self.changed_marks) {
            self.marks[usize::from(slot.0)].changed = false;
        }
        self.gone = Vec::new();
    }

    /// What [`Lanes::freeze`] would write now, for a hash of what is not frozen.
    pub(crate) fn unfrozen(&self, put: &mut Put<'_>) {
        self.changed_tables(put);
        self.each_unacked(|lane, seq, node| {
            if !node.written {
                let mut encoded = Vec::new();
                let item = node.item.as_ref().expect("a place in a list is in use");
                item.encode(&mut encoded);
                put(lane.source, outbox_key(lane, seq), Some(encoded.into()));
            }
        });
    }

    fn changed_tables(&self, put: &mut Put<'_>) {
        for slot in self.changed_sources.iter().copied() {
            let lanes = self.sources[usize::from(slot.0)].iter();
            let used = lanes.filter(|(_, lane)| lane.sent > 0);
            let table = encode_lane_table(used.map(|(destination, lane)| Sent {
                destination,
                source_incarnation: INCARNATION,
                destination_incarnation: INCARNATION,
                sent: lane.sent,
                acked: lane.acked,
            }));
            put(slot, StateKey::LaneTable { slot }.encode(), Some(table));
        }
        for slot in self.changed_marks.iter().copied() {
            let marks = self.marks[usize::from(slot.0)].iter();
            let used = marks.filter(|(_, mark)| *mark > 0);
            let table = encode_mark_table(used.map(|(source, mark)| Mark {
                source,
                source_incarnation: INCARNATION,
                destination_incarnation: INCARNATION,
                mark,
            }));
            put(slot, StateKey::MarkTable { slot }.encode(), Some(table));
        }
        for (lane, seq) in &self.gone {
            put(lane.source, outbox_key(*lane, *seq), None);
        }
    }
}

/// The lanes of a shard as its files hold them.
pub(crate) fn read_lanes(
    files: &dyn ReadView,
    ranges: &Ranges,
    slot_count: u16,
) -> Result<Lanes, Error> {
    let mut reading = Reading {
        lanes: Lanes::default(),
        slot_count,
        sent: Vec::new(),
    };
    for (range, slot) in ranges.by_range() {
        reading.slot(files, range, slot)?;
    }
    Ok(reading.lanes)
}

/// Adds the lanes of a slot that comes into the shard, as files hold them.
pub(crate) fn read_slot(
    lanes: &mut Lanes,
    files: &dyn ReadView,
    (range, slot): (RangeId, SlotId),
    slot_count: u16,
) -> Result<(), Error> {
    let mut reading = Reading {
        lanes: std::mem::take(lanes),
        slot_count,
        sent: Vec::new(),
    };
    let read = reading.slot(files, range, slot);
    *lanes = reading.lanes;
    read
}

/// Lanes on their way out of files.
struct Reading {
    lanes: Lanes,
    slot_count: u16,
    /// Of the slot that is read: what its outbox rows must add up to.
    sent: Vec<(SlotId, u64)>,
}

impl Reading {
    fn slot(&mut self, files: &dyn ReadView, range: RangeId, slot: SlotId) -> Result<(), Error> {
        let first = state_key(range, &[StateKey::LANE_TAGS[0]]);
        let end = after_prefix(&state_key(range, &[StateKey::LANE_TAGS[1]]));
        let mut cursor = files.cursor(&first, &end);
        cursor.seek(&first)?;
        while let Some((key, value)) = cursor.row() {
            self.row(slot, key, value)
                .map_err(|malformed| Error::corrupt_row(key, malformed))?;
            cursor.next()?;
        }
        self.end_slot(slot)
            .map_err(|malformed| Error::corrupt_row(&first, malformed))
    }

    /// Rows come in key order: a slot's tables, then its items, lane by lane in seq order.
    fn row(&mut self, slot: SlotId, key: &[u8], value: &[u8]) -> Result<(), Malformed> {
        let suffix = match StoredKey::split(key)? {
            StoredKey::State { suffix, .. } | StoredKey::Dedup { suffix, .. } => suffix,
        };
        match StateKey::decode(suffix)? {
            StateKey::LaneTable { .. } => {
                for lane in decode_lane_table(value)? {
                    let incarnations = [lane.source_incarnation, lane.destination_incarnation];
                    self.known(slot, lane.destination, incarnations)?;
                    let (source, destination) = (slot, lane.destination);
                    self.lanes.set_acked(source, destination, lane.acked);
                    self.sent.push((destination, lane.sent));
                }
            }
            StateKey::MarkTable { .. } => {
                for mark in decode_mark_table(value)? {
                    let incarnations = [mark.source_incarnation, mark.destination_incarnation];
                    self.known(mark.source, slot, incarnations)?;
                    self.lanes.set_mark(mark.source, slot, mark.mark);
                }
            }
            StateKey::Outbox { lane, seq } => {
                let incarnations = [lane.source_incarnation, lane.destination_incarnation];
                self.known(lane.source, lane.destination, incarnations)?;
                let item = Item::decode(&Bytes::copy_from_slice(value))?;
                if self.lanes.put_back(lane.source, lane.destination, item) != seq {
                    return Err(missing(seq));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn known(
        &self,
        source: SlotId,
        destination: SlotId,
        [source_incarnation, destination_incarnation]: [u32; 2],
    ) -> Result<(), Malformed> {
        let lane = LaneId {
            source,
            source_incarnation,
            destination,
            destination_incarnation,
        };
        let (what, number) = ("lane", u64::from(destination.0));
        let unknown = Malformed::Unknown { what, number };
        is_known(lane, self.slot_count).then_some(()).ok_or(unknown)
    }

    /// An outbox is dense: none of its rows may have got lost.
    fn end_slot(&mut self, slot: SlotId) -> Result<(), Malformed> {
        for (destination, sent) in self.sent.drain(..) {
            if self.lanes.sent_and_acked(slot, destination).0 != sent {
                return Err(missing(sent));
            }
        }
        Ok(())
    }
}

fn missing(seq: u64) -> Malformed {
    let (what, number) = ("seq of an outbox row", seq);
    Malformed::Unknown { what, number }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tables_are_read_as_written(rows: std::collections::BTreeMap<u16, (u32, u32, u64, u64)>) {
            let lanes: Vec<Sent> = rows
                .iter()
                .map(|(slot, (one, two, a, b))| Sent {
                    destination: SlotId(*slot),
                    source_incarnation: *one,
                    destination_incarnation: *two,
                    sent: *a.max(b),
                    acked: *a.min(b),
                })
                .collect();
            let table = encode_lane_table(lanes.iter().copied());
            prop_assert_eq!(decode_lane_table(&table), Ok(lanes));
            let marks: Vec<Mark> = rows
                .iter()
                .map(|(slot, (one, two, mark, _))| Mark {
                    source: SlotId(*slot),
                    source_incarnation: *one,
                    destination_incarnation: *two,
                    mark: *mark,
                })
                .collect();
            let table = encode_mark_table(marks.iter().copied());
            prop_assert_eq!(decode_mark_table(&table), Ok(marks));
        }

        #[test]
        fn any_bytes_are_a_table_or_refused(bytes: Vec<u8>) {
            let _ = decode_lane_table(&bytes);
            let _ = decode_mark_table(&bytes);
        }
    }
}
