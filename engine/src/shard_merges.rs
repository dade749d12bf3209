//! The merges of shards: rows of the meta shard. Whoever leads it carries on those that are under way. A merge is
//! nothing but moves of all slots of a shard (`slot_moves.rs`), and its end.
//!
//! | decision | what its driver does, again if need be |
//! |---|---|
//! | the merge begins: no slot comes to the shard any more, neither of the two splits, the destination stays | moves the slots, some at a time |
//! | the shard is retired: its row leaves the map, once it has no slots and none is on the way | every node drops its replica |
//! | the merge is given up, before that | – : what has moved stays where it is |
//!
//! The row of a retired shard stays for ever, like that of a removed node: it is what a node drops its replica by,
//! and what keeps the id from being given to another shard. A shard that is not in a map may be a split's that is not
//! in it yet, or not in a map that is old; one with such a row is gone in every map to come.

use crate::command::Refusal;
use crate::decode::{Malformed, Reader};
use crate::error::Error;
use crate::id::{ShardId, SlotId};
use crate::key::StateKey;
use crate::shard::Shard;
use crate::shard_splits::SplitScene;

/// Of the row.
const FORMAT: u8 = 1;

/// How far a merge is. Stored: numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MergeStage {
    /// The slots move.
    Moving = 1,
    /// The shard is gone.
    Retired = 2,
}

impl MergeStage {
    fn from_u8(number: u8) -> Option<MergeStage> {
        match number {
            1 => Some(MergeStage::Moving),
            2 => Some(MergeStage::Retired),
            _ => None,
        }
    }
}

/// One merge, by the shard that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardMerge {
    /// Tells it from one that was given up: the map's when it began.
    pub epoch: u64,
    /// Who gets the slots.
    pub into: ShardId,
    /// How far it is.
    pub stage: MergeStage,
}

impl ShardMerge {
    /// It is under way.
    pub fn is_moving(&self) -> bool {
        self.stage == MergeStage::Moving
    }

    /// Why something cannot be done meanwhile.
    pub(crate) fn refusal(&self, shard: ShardId) -> Refusal {
        Refusal::ShardMerges {
            shard,
            into: self.into,
            epoch: self.epoch,
        }
    }

    /// `format u8 | epoch u64 | into u32 | stage u8`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.into.0.to_be_bytes());
        out.push(self.stage as u8);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<ShardMerge, Malformed> {
        let mut reader = Reader::new("shard merge", bytes);
        let format = reader.u8()?;
        if format != FORMAT {
            return Err(reader.unknown(format));
        }
        let (epoch, into, stage) = (reader.u64()?, ShardId(reader.u32()?), reader.u8()?);
        let stage = MergeStage::from_u8(stage).ok_or_else(|| reader.unknown(stage))?;
        reader.end()?;
        Ok(ShardMerge { epoch, into, stage })
    }
}

/// What becomes of a merge that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeVerdict {
    /// It can begin.
    Begins,
    /// It is under way.
    UnderWay {
        /// Its epoch.
        epoch: u64,
    },
    /// The shard was retired so.
    Done,
}

impl SplitScene {
    /// Judges a merge of a shard into another.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn judge_merge(&self, shard: ShardId, into: ShardId) -> Result<MergeVerdict, Refusal> {
        let mut merges = self.merges.iter();
        match merges.find(|(id, _)| *id == shard) {
            Some((_, found)) if found.into == into => {
                return Ok(match found.stage {
                    MergeStage::Moving => MergeVerdict::UnderWay { epoch: found.epoch },
                    MergeStage::Retired => MergeVerdict::Done,
                });
            }
            Some((_, found)) if found.is_moving() => return Err(found.refusal(shard)),
            Some(_) | None => {}
        }
        for shard in [shard, into] {
            if shard == ShardId::META || !self.shards.contains_key(&shard) {
                return Err(Refusal::UnknownShard { shard });
            }
        }
        if shard == into {
            return Err(Refusal::MergeIntoItself { shard });
        }
        let away = self.merge_of(into, false);
        if let Some((id, found)) = away.or_else(|| self.merge_of(shard, true)) {
            return Err(found.refusal(id));
        }
        let mut splits = self.splits.iter();
        if let Some((shard, found)) = splits.find(|(id, _)| [shard, into].contains(id)) {
            return Err(Refusal::ShardSplits {
                shard: *shard,
                to: found.to,
                epoch: found.epoch,
            });
        }
        let mut moves = self.moves.iter();
        match moves.find(|(_, row)| row.to == shard) {
            Some((slot, found)) => Err(Refusal::SlotMoves {
                slot: *slot,
                epoch: found.epoch,
                to: found.to,
                stage: found.stage,
            }),
            None => Ok(MergeVerdict::Begins),
        }
    }

    /// The merge under way that takes a shard away or, if that counts too, gives it slots.
    pub(crate) fn merge_of(&self, shard: ShardId, or_into: bool) -> Option<(ShardId, &ShardMerge)> {
        let mut under_way = self.merges.iter().filter(|(_, row)| row.is_moving());
        let found = under_way.find(|(id, row)| *id == shard || (or_into && row.into == shard));
        found.map(|(id, row)| (*id, row))
    }
}

impl Shard {
    /// The merges of shards, those that are done included, by the shard that goes; none in every shard but the meta
    /// shard.
    ///
    /// # Errors
    /// A storage fault, or a shard that a fault has stopped.
    pub fn shard_merges(&self) -> Result<Vec<(ShardId, ShardMerge)>, Error> {
        if self.id() != ShardId::META {
            return Ok(Vec::new());
        }
        let mut merges = Vec::new();
        for (suffix, value) in self.scan_prefix(SlotId::META, &StateKey::merges_prefix())? {
            let corrupt = |malformed| Error::corrupt_row(suffix.as_slice(), malformed);
            let key = StateKey::decode(suffix.as_slice()).map_err(corrupt)?;
            if let StateKey::MetaMerge { shard } = key {
                merges.push((shard, ShardMerge::decode(&value).map_err(corrupt)?));
            }
        }
        Ok(merges)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::cluster_map::{MapReplica, MapShard, ReplicaRole};
    use crate::shard_splits::{ShardSplit, SplitVerdict};
    use crate::slot_moves::{MoveStage, SlotMove};

    proptest! {
        #[test]
        fn rows_are_read_as_written(epoch: u64, into: u32, stage in 1..=2_u8) {
            let stage = MergeStage::from_u8(stage).unwrap();
            let row = ShardMerge { epoch, into: ShardId(into), stage };
            prop_assert_eq!(ShardMerge::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            if let Ok(row) = ShardMerge::decode(&bytes) {
                prop_assert_eq!(row.encode(), bytes);
            }
        }
    }

    #[test]
    fn the_encoding_never_changes() {
        let bytes = merge(3, MergeStage::Retired).encode();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "0100000000000000090000000302");
    }

    fn merge(into: u32, stage: MergeStage) -> ShardMerge {
        ShardMerge {
            epoch: 9,
            into: ShardId(into),
            stage,
        }
    }

    /// Shards 0 to 3, of which 1 to 3 have four slots each.
    fn scene() -> SplitScene {
        let row = |shard: u16| MapShard {
            epoch: 1,
            slots: match shard {
                0 => Vec::new(),
                shard => vec![(SlotId(shard * 4 - 4), SlotId(shard * 4 - 1))],
            },
            replicas: vec![MapReplica {
                node: 1,
                role: ReplicaRole::Voter,
            }],
        };
        let shards = (0..=3).map(|shard| (ShardId(shard.into()), row(shard)));
        SplitScene {
            shards: shards.collect(),
            ..SplitScene::default()
        }
    }

    fn judged(scene: &SplitScene, shard: u32, into: u32) -> Result<MergeVerdict, Refusal> {
        scene.judge_merge(ShardId(shard), ShardId(into))
    }

    #[test]
    fn a_merge_needs_two_shards_with_slots() {
        let scene = scene();
        assert_eq!(judged(&scene, 1, 2), Ok(MergeVerdict::Begins));
        let unknown = |shard| {
            Err(Refusal::UnknownShard {
                shard: ShardId(shard),
            })
        };
        for (shard, into, none) in [(0, 1, 0), (1, 0, 0), (7, 1, 7), (1, 7, 7)] {
            assert_eq!(judged(&scene, shard, into), unknown(none));
        }
        let shard = ShardId(1);
        let itself = Err(Refusal::MergeIntoItself { shard });
        assert_eq!(judged(&scene, 1, 1), itself);
    }

    #[test]
    fn one_that_is_under_way_or_done_is_found_and_keeps_others_out() {
        let mut scene = scene();
        scene.merges = vec![(ShardId(1), merge(2, MergeStage::Moving))];
        let under_way = MergeVerdict::UnderWay { epoch: 9 };
        assert_eq!(judged(&scene, 1, 2), Ok(under_way));
        let found = Err(merge(2, MergeStage::Moving).refusal(ShardId(1)));
        // Another way; the destination, away; into the shard that goes.
        for (shard, into) in [(1, 3), (2, 3), (3, 1), (2, 1)] {
            assert_eq!(judged(&scene, shard, into), found);
        }
        assert_eq!(judged(&scene, 3, 2), Ok(MergeVerdict::Begins));
        scene.merges = vec![(ShardId(1), merge(2, MergeStage::Retired))];
        scene.shards.remove(&ShardId(1));
        assert_eq!(judged(&scene, 1, 2), Ok(MergeVerdict::Done));
        let gone = Refusal::UnknownShard { shard: ShardId(1) };
        assert_eq!(judged(&scene, 1, 3), Err(gone.clone()));
        assert_eq!(judged(&scene, 3, 1), Err(gone));
        assert_eq!(judged(&scene, 2, 3), Ok(MergeVerdict::Begins));
    }

    #[test]
    fn splits_and_slots_on_their_way_to_the_shard_come_first() {
        let mut scene = scene();
        let (slot, stage) = (SlotId(4), MoveStage::Copying);
        let row = |from, to| SlotMove {
            epoch: 5,
            from: ShardId(from),
            to: ShardId(to),
            stage,
        };
        scene.moves = vec![(slot, row(2, 3))];
        // What leaves the shard, or comes to the destination, is in nobody's way.
        assert_eq!(judged(&scene, 2, 1), Ok(MergeVerdict::Begins));
        assert_eq!(judged(&scene, 1, 3), Ok(MergeVerdict::Begins));
        let (to, epoch) = (ShardId(3), 5);
        let moves = Refusal::SlotMoves {
            slot,
            epoch,
            to,
            stage,
        };
        assert_eq!(judged(&scene, 3, 1), Err(moves));
        scene.moves.clear();
        let split = ShardSplit {
            epoch: 5,
            to: ShardId(4),
            slots: vec![(SlotId(5), SlotId(5))],
        };
        scene.splits = vec![(ShardId(2), split)];
        let splits = Err(Refusal::ShardSplits {
            shard: ShardId(2),
            to: ShardId(4),
            epoch,
        });
        assert_eq!(judged(&scene, 2, 1), splits);
        assert_eq!(judged(&scene, 1, 2), splits);
        assert_eq!(judged(&scene, 1, 3), Ok(MergeVerdict::Begins));
    }

    #[test]
    fn neither_end_of_a_merge_splits_and_no_id_comes_twice() {
        let mut scene = scene();
        let split = |scene: &SplitScene, shard: u32| {
            let slots: BTreeSet<SlotId> = [SlotId(shard as u16 * 4 - 1)].into();
            scene.judge(ShardId(shard), &slots)
        };
        scene.merges = vec![(ShardId(1), merge(2, MergeStage::Moving))];
        let found = Err(merge(2, MergeStage::Moving).refusal(ShardId(1)));
        assert_eq!(split(&scene, 1), found);
        assert_eq!(split(&scene, 2), found);
        assert_eq!(split(&scene, 3), Ok(SplitVerdict::Begins(ShardId(4))));
        // The greatest id was that of a shard which is gone.
        scene.merges = vec![(ShardId(8), merge(2, MergeStage::Retired))];
        assert_eq!(split(&scene, 2), Ok(SplitVerdict::Begins(ShardId(9))));
    }
}
