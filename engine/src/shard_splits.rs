//! The splits of shards that are under way: rows of the meta shard. Whoever leads it carries them on; what a split
//! does to the shard itself is in `split.rs`.
//!
//! | decision | what its driver does, again if need be |
//! |---|---|
//! | the split begins: the new shard has its id, and the shard is left alone by moves and placement | the shard splits; the new one gets a leader, who commits |
//! | the split ends, and the map has both shards | – |
//!
//! The first decision is not taken back: when the shard's own log has the split, nobody can know that it has not.
//! Nothing of it can be refused later, for all that it depends on is kept as it was while the row stands. The map
//! changes with the second. Until then clients that ask the shard for what has gone are told to look at the map
//! again; so the driver hurries.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster_map::{MapShard, ReplicaRole};
use crate::command::Refusal;
use crate::decode::{Malformed, Reader};
use crate::error::Error;
use crate::id::{ShardId, SlotId};
use crate::key::StateKey;
use crate::shard::Shard;
use crate::shard_merges::ShardMerge;
use crate::slot_moves::SlotMove;

/// Of the row.
const FORMAT: u8 = 1;

/// One split under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSplit {
    /// Above that of every earlier move or split of the slots: the map's when it began.
    pub epoch: u64,
    /// The new shard.
    pub to: ShardId,
    /// What goes, both ends of each span included; sorted and disjoint.
    pub slots: Vec<(SlotId, SlotId)>,
}

impl ShardSplit {
    /// The slots that go, one by one.
    pub fn each_slot(&self) -> BTreeSet<SlotId> {
        slots_of(&self.slots).collect()
    }

    /// `format u8 | epoch u64 | to u32 | spans (first u16 | last u16)*`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.to.0.to_be_bytes());
        for (first, last) in &self.slots {
            out.extend_from_slice(&first.0.to_be_bytes());
            out.extend_from_slice(&last.0.to_be_bytes());
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<ShardSplit, Malformed> {
        let mut reader = Reader::new("shard split", bytes);
        let format = reader.u8()?;
        if format != FORMAT {
            return Err(reader.unknown(format));
        }
        let (epoch, to) = (reader.u64()?, ShardId(reader.u32()?));
        let mut slots: Vec<(SlotId, SlotId)> = Vec::new();
        while !reader.is_empty() {
            let (first, last) = (SlotId(reader.u16()?), SlotId(reader.u16()?));
            let follows = slots.last().is_none_or(|(_, end)| *end < first);
            if !follows || last < first {
                return Err(reader.unknown(first.0));
            }
            slots.push((first, last));
        }
        Ok(ShardSplit { epoch, to, slots })
    }
}

/// What splits and merges are judged by: rows of the meta shard, of one moment.
#[derive(Clone, Debug, Default)]
pub struct SplitScene {
    /// All shards of the map.
    pub shards: BTreeMap<ShardId, MapShard>,
    /// All moves of slots under way.
    pub moves: Vec<(SlotId, SlotMove)>,
    /// All splits under way.
    pub splits: Vec<(ShardId, ShardSplit)>,
    /// All merges, those that are done included.
    pub merges: Vec<(ShardId, ShardMerge)>,
}

/// What becomes of a split that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitVerdict {
    /// It can begin, and makes this shard.
    Begins(ShardId),
    /// It is under way.
    UnderWay {
        /// What it makes.
        to: ShardId,
        /// Its epoch.
        epoch: u64,
    },
    /// The slots are all that this shard has.
    Apart(ShardId),
}

impl SplitScene {
    /// Judges a split of a shard that gives these slots up.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn judge(&self, shard: ShardId, slots: &BTreeSet<SlotId>) -> Result<SplitVerdict, Refusal> {
        let row = self.shards.get(&shard).filter(|_| shard != ShardId::META);
        let row = row.ok_or(Refusal::UnknownShard { shard })?;
        let spans = spans_of(slots.iter().copied());
        let mut splits = self.splits.iter();
        if let Some((_, found)) = splits.find(|(id, _)| *id == shard) {
            let (to, epoch) = (found.to, found.epoch);
            if found.slots == spans {
                return Ok(SplitVerdict::UnderWay { to, epoch });
            }
            return Err(Refusal::ShardSplits { shard, to, epoch });
        }
        let mut others = self.shards.iter().filter(|(id, _)| **id != shard);
        if let Some((id, _)) = others.find(|(_, row)| !spans.is_empty() && row.slots == spans) {
            return Ok(SplitVerdict::Apart(*id));
        }
        if let Some((id, found)) = self.merge_of(shard, true) {
            return Err(found.refusal(id));
        }
        let held: BTreeSet<SlotId> = slots_of(&row.slots).collect();
        if let Some(slot) = slots.difference(&held).next() {
            return Err(Refusal::WrongShard { slot: *slot });
        }
        let (taken, held) = (slots.len(), held.len());
        if taken == 0 || taken == held {
            return Err(Refusal::SplitSize { taken, held });
        }
        let votes = |held: &crate::MapReplica| held.role == ReplicaRole::Voter;
        if !row.replicas.iter().all(votes) {
            return Err(Refusal::ShardChanges { shard });
        }
        let mut moves = self.moves.iter();
        if let Some((slot, found)) = moves.find(|(_, row)| [row.from, row.to].contains(&shard)) {
            return Err(Refusal::SlotMoves {
                slot: *slot,
                epoch: found.epoch,
                to: found.to,
                stage: found.stage,
            });
        }
        Ok(SplitVerdict::Begins(self.next_id()))
    }

    /// The row of a shard goes only when a merge leaves one for ever, and a split under way ends in one: so no id
    /// comes again.
    fn next_id(&self) -> ShardId {
        let under_way = self.splits.iter().map(|(_, split)| split.to);
        let merged = self.merges.iter().map(|(shard, _)| *shard);
        let ids = self.shards.keys().copied().chain(under_way).chain(merged);
        ShardId(ids.max().unwrap_or(ShardId::META).0 + 1)
    }

    /// The slots of a shard; none if there is no such shard.
    pub fn slots(&self, shard: ShardId) -> Vec<SlotId> {
        let row = self.shards.get(&shard);
        row.map_or_else(Vec::new, |row| slots_of(&row.slots).collect())
    }
}

/// The slots of spans, in order.
pub(crate) fn slots_of(spans: &[(SlotId, SlotId)]) -> impl Iterator<Item = SlotId> {
    let spans = spans.iter();
    spans.flat_map(|(first, last)| (first.0..=last.0).map(SlotId))
}

/// Slots as the fewest spans.
pub fn spans_of(slots: impl IntoIterator<Item = SlotId>) -> Vec<(SlotId, SlotId)> {
    let mut spans: Vec<(SlotId, SlotId)> = Vec::new();
    let sorted: BTreeSet<SlotId> = slots.into_iter().collect();
    for slot in sorted {
        match spans.last_mut() {
            Some((_, end)) if u32::from(end.0) + 1 == u32::from(slot.0) => *end = slot,
            _ => spans.push((slot, slot)),
        }
    }
    spans
}

impl Shard {
    /// The splits of shards that are under way, by the shard that splits; none in every shard but the meta shard.
    ///
    /// # Errors
    /// A storage fault, or a shard that a fault has stopped.
    pub fn shard_splits(&self) -> Result<Vec<(ShardId, ShardSplit)>, Error> {
        if self.id() != ShardId::META {
            return Ok(Vec::new());
        }
        let mut splits = Vec::new();
        for (suffix, value) in self.scan_prefix(SlotId::META, &StateKey::meta_splits_prefix())? {
            let corrupt = |malformed| Error::corrupt_row(suffix.as_slice(), malformed);
            let key = StateKey::decode(suffix.as_slice()).map_err(corrupt)?;
            if let StateKey::MetaSplit { shard } = key {
                splits.push((shard, ShardSplit::decode(&value).map_err(corrupt)?));
            }
        }
        Ok(splits)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_are_read_as_written(
            epoch in any::<u64>(),
            to in any::<u32>(),
            slots in prop::collection::btree_set(0..40_u16, 0..30),
        ) {
            let slots: BTreeSet<SlotId> = slots.into_iter().map(SlotId).collect();
            let split = ShardSplit { epoch, to: ShardId(to), slots: spans_of(slots.clone()) };
            prop_assert_eq!(split.each_slot(), slots);
            let bytes = split.encode();
            prop_assert_eq!(ShardSplit::decode(&bytes).unwrap(), split);
            prop_assert!(ShardSplit::decode(&bytes[..12]).is_err());
        }
    }

    #[test]
    fn spans_are_sorted_and_whole() {
        let row = |spans: &[u16]| {
            let mut bytes = vec![FORMAT];
            bytes.extend_from_slice(&[0; 12]);
            for slot in spans {
                bytes.extend_from_slice(&slot.to_be_bytes());
            }
            ShardSplit::decode(&bytes)
        };
        assert!(row(&[1, 2, 4, 4]).is_ok());
        for bad in [&[2, 1][..], &[1, 3, 3, 4], &[3, 4, 1, 1], &[3]] {
            assert!(row(bad).is_err(), "{bad:?}");
        }
        let end = SlotId(u16::MAX);
        assert_eq!(
            spans_of([end, SlotId(u16::MAX - 1)]),
            [(SlotId(u16::MAX - 1), end)]
        );
    }
}
