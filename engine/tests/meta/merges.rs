//! What merges of shards are to be.

use std::collections::BTreeMap;

use mailbox_engine::{
    ClusterMap, Command, MergeStage, MetaCommand, MoveStage, Refusal, Reply, ShardId, ShardMerge,
    SlotId, SlotMove,
};
use proptest::prelude::*;

use crate::moves::{moving, slots_of};
use crate::splits::{Splits, whole};
use crate::{Replica, first};

pub(crate) type Merges = BTreeMap<ShardId, ShardMerge>;

pub(crate) fn command() -> impl Strategy<Value = MetaCommand> {
    // Mostly such as are there, and epochs of merges that begin early: else few of them meet.
    let shard = || prop_oneof![6 => 1..4_u32, 1 => 0..6_u32].prop_map(ShardId);
    prop_oneof![
        3 => (shard(), shard())
            .prop_map(|(shard, into)| MetaCommand::BeginMerge { shard, into }),
        3 => (shard(), 2..6_u64)
            .prop_map(|(shard, epoch)| MetaCommand::EndMerge { shard, epoch }),
        1 => (shard(), 2..6_u64)
            .prop_map(|(shard, epoch)| MetaCommand::CancelMerge { shard, epoch }),
    ]
}

/// Refuses a shard that goes, or that gets the slots of one.
pub(crate) fn stays(merges: &Merges, shard: ShardId, or_gets: bool) -> Result<(), Refusal> {
    let going = merges
        .iter()
        .filter(|(_, row)| row.stage == MergeStage::Moving);
    let mut found = going.filter(|(id, row)| **id == shard || or_gets && row.into == shard);
    found.next().map_or(Ok(()), |(id, row)| {
        Err(Refusal::ShardMerges {
            shard: *id,
            into: row.into,
            epoch: row.epoch,
        })
    })
}

/// Whether one begins that has not begun before.
pub(crate) fn judge(
    map: &mut ClusterMap,
    (moves, splits): (&BTreeMap<SlotId, SlotMove>, &Splits),
    merges: &mut Merges,
    command: &MetaCommand,
) -> Result<bool, Refusal> {
    match *command {
        MetaCommand::BeginMerge { shard, into } => {
            return begin_merge(map, (moves, splits), merges, (shard, into));
        }
        MetaCommand::EndMerge { shard, epoch } => end_merge(map, moves, merges, (shard, epoch))?,
        MetaCommand::CancelMerge { shard, epoch } => cancel_merge(merges, (shard, epoch))?,
        _ => {}
    }
    Ok(false)
}

fn begin_merge(
    map: &ClusterMap,
    (moves, splits): (&BTreeMap<SlotId, SlotMove>, &Splits),
    merges: &mut Merges,
    (shard, into): (ShardId, ShardId),
) -> Result<bool, Refusal> {
    if let Some(found) = merges.get(&shard) {
        if found.into == into {
            return Ok(false);
        }
        stays(merges, shard, false)?;
    }
    for shard in [shard, into] {
        if shard == ShardId::META || !map.shards.contains_key(&shard) {
            return Err(Refusal::UnknownShard { shard });
        }
    }
    if shard == into {
        return Err(Refusal::MergeIntoItself { shard });
    }
    stays(merges, into, false)?;
    stays(merges, shard, true)?;
    let mut ends = [shard, into];
    ends.sort_unstable();
    for shard in ends {
        whole(splits, shard)?;
    }
    if let Some((slot, found)) = moves.iter().find(|(_, row)| row.to == shard) {
        return Err(moving(*slot, found));
    }
    let row = ShardMerge {
        epoch: map.epoch + 1,
        into,
        stage: MergeStage::Moving,
    };
    merges.insert(shard, row);
    Ok(true)
}

fn end_merge(
    map: &mut ClusterMap,
    moves: &BTreeMap<SlotId, SlotMove>,
    merges: &mut Merges,
    (shard, epoch): (ShardId, u64),
) -> Result<(), Refusal> {
    let row = merges.get_mut(&shard).filter(|row| row.epoch == epoch);
    let Some(row) = row.filter(|row| row.stage == MergeStage::Moving) else {
        return Ok(());
    };
    let slots = slots_of(&map.shards[&shard]).len();
    if slots > 0 {
        return Err(Refusal::ShardHasSlots { shard, slots });
    }
    let mut moves = moves.iter();
    if let Some((slot, found)) = moves.find(|(_, row)| row.from == shard || row.to == shard) {
        return Err(moving(*slot, found));
    }
    row.stage = MergeStage::Retired;
    map.shards.remove(&shard);
    assert_eq!(map.check(), Ok(()));
    Ok(())
}

fn cancel_merge(merges: &mut Merges, (shard, epoch): (ShardId, u64)) -> Result<(), Refusal> {
    match merges.get(&shard).filter(|row| row.epoch == epoch) {
        Some(row) if row.stage == MergeStage::Retired => Err(Refusal::UnknownShard { shard }),
        Some(_) => {
            merges.remove(&shard);
            Ok(())
        }
        None => Ok(()),
    }
}

/// A move of one slot, decision by decision; the epoch is that after it began.
fn moved(slot: u16, to: ShardId, epoch: u64) -> Vec<MetaCommand> {
    let slot = SlotId(slot);
    let step = |stage| MetaCommand::StepMove { slot, epoch, stage };
    vec![
        MetaCommand::BeginMove { slot, to },
        step(MoveStage::Freezing),
        step(MoveStage::Dropping),
        MetaCommand::EndMove { slot, epoch },
    ]
}

#[test]
fn an_empty_shard_is_retired_and_its_id_is_never_given_again() {
    let (mut replica, shard, into) = (Replica::new(), ShardId(2), ShardId(1));
    let mut one = |command| replica.apply(&[Command::Meta(command)]).remove(0);
    let map = |epoch| Reply::Map { epoch };
    one(MetaCommand::Begin(first(true)));
    let begin = MetaCommand::BeginMerge { shard, into };
    let end = MetaCommand::EndMerge { shard, epoch: 2 };
    assert_eq!(one(begin.clone()), map(2));
    assert_eq!(one(begin.clone()), map(2));
    let has = |slots| Reply::Refused(Refusal::ShardHasSlots { shard, slots });
    assert_eq!(one(end.clone()), has(4));
    // Nothing comes to it meanwhile.
    let back = MetaCommand::BeginMove {
        slot: SlotId(0),
        to: shard,
    };
    let epoch = 2;
    let merges = Refusal::ShardMerges { shard, into, epoch };
    assert_eq!(one(back), Reply::Refused(merges));
    for (slot, epoch) in (4..8).zip([3, 5, 7, 9]) {
        let mut steps = moved(slot, into, epoch);
        let last = steps.pop().unwrap();
        for step in steps {
            assert!(matches!(one(step), Reply::Map { .. }));
        }
        // Not before all replicas have settled, which ends the move.
        assert!(matches!(one(end.clone()), Reply::Refused(_)));
        assert_eq!(one(last), map(epoch + 1));
    }
    assert_eq!(one(end.clone()), map(11));
    for repeat in [begin, end] {
        assert_eq!(one(repeat), map(11));
    }
    let cancel = MetaCommand::CancelMerge { shard, epoch: 2 };
    let gone = Reply::Refused(Refusal::UnknownShard { shard });
    assert_eq!(one(cancel), gone);
    let split = MetaCommand::BeginSplit {
        shard: into,
        slots: [SlotId(7)].into(),
    };
    assert_eq!(one(split), map(12));
    let shard = replica.shard();
    let splits = shard.shard_splits().unwrap();
    assert_eq!(splits[0].1.to, ShardId(3));
    let map = shard.cluster_map().unwrap().unwrap();
    assert!(!map.shards.contains_key(&ShardId(2)));
}

#[test]
fn a_merge_that_is_given_up_leaves_everything_where_it_is() {
    let (mut replica, shard, into) = (Replica::new(), ShardId(2), ShardId(1));
    let mut one = |command| replica.apply(&[Command::Meta(command)]).remove(0);
    one(MetaCommand::Begin(first(true)));
    one(MetaCommand::BeginMerge { shard, into });
    for step in moved(4, into, 3) {
        one(step);
    }
    let cancel = |epoch| MetaCommand::CancelMerge { shard, epoch };
    for epoch in [1, 2, 2] {
        assert_eq!(one(cancel(epoch)), Reply::Map { epoch: 4 });
    }
    // A driver that does not know it does nothing.
    let end = MetaCommand::EndMerge { shard, epoch: 2 };
    assert_eq!(one(end), Reply::Map { epoch: 4 });
    let back = MetaCommand::BeginMove {
        slot: SlotId(4),
        to: shard,
    };
    assert_eq!(one(back), Reply::Map { epoch: 5 });
    let engine = replica.shard();
    assert_eq!(engine.shard_merges().unwrap(), []);
    let map = engine.cluster_map().unwrap().unwrap();
    assert_eq!(slots_of(&map.shards[&shard]), [5, 6, 7]);
}
