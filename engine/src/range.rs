//! Ranges: node-local names for one (shard, slot) replica's rows.
//!
//! A range is never reused. A snapshot's rows go into new ranges, and one ingest makes those the
//! live ones and the former ones dead, so that a crash leaves either the one state or the other.

use std::collections::BTreeMap;

use crate::decode::{Malformed, Reader};
use crate::id::{RangeId, ShardId, SlotId};

/// What a range's rows are to their slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RangeState {
    /// Reads and commands use it.
    Live,
    /// It holds all that an import has brought so far: see `slot_move.rs`.
    Staged {
        /// The import's.
        epoch: u64,
        /// Of all its rows, see `export.rs`.
        digest: u128,
    },
    /// Nobody reads it any more; to be dropped.
    Dead,
}

/// The value of a range's map row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RangeRow {
    pub(crate) shard: ShardId,
    pub(crate) slot: SlotId,
    pub(crate) state: RangeState,
}

impl RangeRow {
    /// `shard u32 | slot u16 | state u8 | epoch u64 and digest u128 of a staged one`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(15);
        out.extend_from_slice(&self.shard.0.to_be_bytes());
        out.extend_from_slice(&self.slot.0.to_be_bytes());
        match self.state {
            RangeState::Live => out.push(1),
            RangeState::Staged { epoch, digest } => {
                out.push(2);
                out.extend_from_slice(&epoch.to_be_bytes());
                out.extend_from_slice(&digest.to_be_bytes());
            }
            RangeState::Dead => out.push(3),
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<RangeRow, Malformed> {
        let mut reader = Reader::new("range row", bytes);
        let shard = ShardId(reader.u32()?);
        let slot = SlotId(reader.u16()?);
        let state = match reader.u8()? {
            1 => RangeState::Live,
            2 => RangeState::Staged {
                epoch: reader.u64()?,
                digest: reader.u128()?,
            },
            3 => RangeState::Dead,
            number => return Err(reader.unknown(number)),
        };
        reader.end()?;
        Ok(RangeRow { shard, slot, state })
    }
}

/// The live ranges of one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// Indexed by slot; range 0, which is the node's, where the shard does not hold the slot.
    by_slot: Vec<RangeId>,
    by_range: BTreeMap<RangeId, SlotId>,
}

impl Ranges {
    pub(crate) fn insert(&mut self, slot: SlotId, range: RangeId) {
        let index = usize::from(slot.0);
        if self.by_slot.len() <= index {
            self.by_slot.resize(index + 1, RangeId::NODE);
        }
        self.by_slot[index] = range;
        self.by_range.insert(range, slot);
    }

    /// Takes a slot out; gives its range.
    pub(crate) fn remove(&mut self, slot: SlotId) -> Option<RangeId> {
        let range = self.of_slot(slot)?;
        self.by_slot[usize::from(slot.0)] = RangeId::NODE;
        self.by_range.remove(&range);
        Some(range)
    }

    /// The live range of a slot, if this shard holds the slot.
    pub(crate) fn of_slot(&self, slot: SlotId) -> Option<RangeId> {
        self.by_slot
            .get(usize::from(slot.0))
            .copied()
            .filter(|range| *range != RangeId::NODE)
    }

    /// The slot of a live range, if it is this shard's.
    pub(crate) fn slot_of(&self, range: RangeId) -> Option<SlotId> {
        self.by_range.get(&range).copied()
    }

    /// The slots of this shard, in their order: a set, not all from the first to the last.
    pub(crate) fn slots(&self) -> Vec<SlotId> {
        self.by_slot().map(|(slot, _)| slot).collect()
    }

    /// Slots and their ranges, in the order of the slots.
    pub(crate) fn by_slot(&self) -> impl Iterator<Item = (SlotId, RangeId)> {
        (0..)
            .map(SlotId)
            .zip(&self.by_slot)
            .filter_map(|(slot, range)| (*range != RangeId::NODE).then_some((slot, *range)))
    }

    /// Ranges and their slots, in the order of the ranges, which is that of the files.
    pub(crate) fn by_range(&self) -> impl Iterator<Item = (RangeId, SlotId)> {
        self.by_range.iter().map(|(range, slot)| (*range, *slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_rows_are_read_as_written() {
        for state in [
            RangeState::Live,
            RangeState::Staged {
                epoch: 7,
                digest: 1 << 99,
            },
            RangeState::Dead,
        ] {
            let row = RangeRow {
                shard: ShardId(3),
                slot: SlotId(1000),
                state,
            };
            assert_eq!(RangeRow::decode(&row.encode()), Ok(row));
        }
        assert!(RangeRow::decode(&[0, 0, 0, 1, 0, 1, 9]).is_err());
    }
}
