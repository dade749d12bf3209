//! The moves of slots that are under way: rows of the meta shard. Whoever leads it carries them on; what each of
//! the two shards knows of a move is in `slot_move.rs`.
//!
//! | stage | what its driver does | and then decides |
//! |---|---|---|
//! | copying | the destination begins its import; every voter of it stages a copy | freezing, or aborting |
//! | freezing | the source freezes; the voters stage what has changed since; the destination commits | dropping |
//! | dropping | every replica of the destination settles; the source drops | the move is over |
//! | aborting | the destination aborts its import | the move is over |
//!
//! A decision is one entry of the meta shard, and all of a stage may be done again. Nothing is frozen before
//! *freezing* is decided, and nothing is aborted after: so a driver that has been replaced and does not know it
//! does no harm. The map changes with the decision for *dropping*.

use crate::decode::{Malformed, Reader};
use crate::error::Error;
use crate::id::{ShardId, SlotId};
use crate::key::StateKey;
use crate::shard::Shard;

/// Of the row.
const FORMAT: u8 = 1;

/// What is decided of a move. Stored: numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MoveStage {
    /// The source serves; a copy of the slot goes to the destination. May be given up.
    Copying = 1,
    /// The source is to freeze, and the destination to commit. Goes on whatever happens.
    Freezing = 2,
    /// The destination serves; the source is to drop its rows.
    Dropping = 3,
    /// It was given up.
    Aborting = 4,
}

impl MoveStage {
    /// The stage with this stored number.
    pub fn from_u8(number: u8) -> Option<MoveStage> {
        match number {
            1 => Some(MoveStage::Copying),
            2 => Some(MoveStage::Freezing),
            3 => Some(MoveStage::Dropping),
            4 => Some(MoveStage::Aborting),
            _ => None,
        }
    }

    /// The decision may follow this one.
    pub(crate) fn may_become(self, next: MoveStage) -> bool {
        matches!(
            (self, next),
            (
                MoveStage::Copying,
                MoveStage::Freezing | MoveStage::Aborting
            ) | (MoveStage::Freezing, MoveStage::Dropping)
        )
    }
}

impl std::fmt::Display for MoveStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            MoveStage::Copying => "copying",
            MoveStage::Freezing => "freezing",
            MoveStage::Dropping => "dropping",
            MoveStage::Aborting => "aborting",
        })
    }
}

/// One move under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotMove {
    /// Above that of every earlier move of the slot: the map's when it began.
    pub epoch: u64,
    /// The source.
    pub from: ShardId,
    /// The destination.
    pub to: ShardId,
    /// What is decided.
    pub stage: MoveStage,
}

impl SlotMove {
    /// `format u8 | epoch u64 | from u32 | to u32 | stage u8`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.from.0.to_be_bytes());
        out.extend_from_slice(&self.to.0.to_be_bytes());
        out.push(self.stage as u8);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<SlotMove, Malformed> {
        let mut reader = Reader::new("slot move", bytes);
        let format = reader.u8()?;
        if format != FORMAT {
            return Err(reader.unknown(format));
        }
        let (epoch, from, to) = (
            reader.u64()?,
            ShardId(reader.u32()?),
            ShardId(reader.u32()?),
        );
        let stage = reader.u8()?;
        let stage = MoveStage::from_u8(stage).ok_or_else(|| reader.unknown(stage))?;
        reader.end()?;
        Ok(SlotMove {
            epoch,
            from,
            to,
            stage,
        })
    }
}

/// Takes a slot out of sorted spans.
pub(crate) fn without(spans: &[(SlotId, SlotId)], slot: SlotId) -> Vec<(SlotId, SlotId)> {
    let mut left = Vec::with_capacity(spans.len() + 1);
    for &(first, last) in spans {
        if slot < first || last < slot {
            left.push((first, last));
            continue;
        }
        if first < slot {
            left.push((first, SlotId(slot.0 - 1)));
        }
        if slot < last {
            left.push((SlotId(slot.0 + 1), last));
        }
    }
    left
}

/// Puts a slot that is in none of them into sorted spans.
pub(crate) fn with(spans: &[(SlotId, SlotId)], slot: SlotId) -> Vec<(SlotId, SlotId)> {
    let mut all = spans.to_vec();
    all.push((slot, slot));
    all.sort_unstable();
    let mut joined: Vec<(SlotId, SlotId)> = Vec::with_capacity(all.len());
    for (first, last) in all {
        match joined.last_mut() {
            Some((_, end)) if u32::from(end.0) + 1 == u32::from(first.0) => *end = last,
            _ => joined.push((first, last)),
        }
    }
    joined
}

impl Shard {
    /// The moves of slots that are under way, by slot; none in every shard but the meta shard.
    ///
    /// # Errors
    /// A storage fault, or a shard that a fault has stopped.
    pub fn slot_moves(&self) -> Result<Vec<(SlotId, SlotMove)>, Error> {
        if self.id() != ShardId::META {
            return Ok(Vec::new());
        }
        let mut moves = Vec::new();
        for (suffix, value) in self.scan_prefix(SlotId::META, &StateKey::meta_moves_prefix())? {
            let corrupt = |malformed| Error::corrupt_row(suffix.as_slice(), malformed);
            let key = StateKey::decode(suffix.as_slice()).map_err(corrupt)?;
            if let StateKey::MetaMove { slot } = key {
                moves.push((slot, SlotMove::decode(&value).map_err(corrupt)?));
            }
        }
        Ok(moves)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spans(slots: &[u16]) -> Vec<(SlotId, SlotId)> {
        let none = Vec::new();
        let slots = slots.iter().map(|slot| SlotId(*slot));
        slots.fold(none, |spans, slot| with(&spans, slot))
    }

    #[test]
    fn slots_join_spans_and_leave_them() {
        let (a, b) = (SlotId(3), SlotId(7));
        assert_eq!(spans(&[5, 3, 4, 7, 6]), [(a, b)]);
        let left = without(&[(a, b)], SlotId(5));
        assert_eq!(left, [(a, SlotId(4)), (SlotId(6), b)]);
        assert_eq!(with(&left, SlotId(5)), [(a, b)]);
        assert_eq!(without(&[(a, a)], a), []);
        assert_eq!(without(&[(a, b)], SlotId(8)), [(a, b)]);
        let end = SlotId(u16::MAX);
        assert_eq!(without(&[(end, end)], end), []);
        assert_eq!(
            with(&[(end, end)], SlotId(u16::MAX - 1)),
            [(SlotId(u16::MAX - 1), end)]
        );
    }

    proptest! {
        #[test]
        fn moves_are_read_as_written(epoch: u64, from: u32, to: u32, stage in 1..=4_u8) {
            let stage = MoveStage::from_u8(stage).unwrap();
            let row = SlotMove { epoch, from: ShardId(from), to: ShardId(to), stage };
            prop_assert_eq!(SlotMove::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            if let Ok(row) = SlotMove::decode(&bytes) {
                prop_assert_eq!(row.encode(), bytes);
            }
        }
    }

    #[test]
    fn the_encoding_never_changes() {
        let row = SlotMove {
            epoch: 5,
            from: ShardId(2),
            to: ShardId(3),
            stage: MoveStage::Freezing,
        };
        let text: String = row
            .encode()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let fields = "01 0000000000000005 00000002 00000003 02";
        assert_eq!(text, fields.replace(' ', ""));
    }
}
