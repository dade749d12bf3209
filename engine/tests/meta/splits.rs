//! What splits of shards are to be.

use std::collections::{BTreeMap, BTreeSet};

use mailbox_engine::{
    ClusterMap, Command, MapShard, MetaCommand, Refusal, ReplicaRole, Reply, ShardId, ShardSplit,
    SlotId, SlotMove,
};

use crate::merges::{Merges, stays};
use crate::moves::{moving, slots_of};
use crate::{Replica, first};

pub(crate) type Splits = BTreeMap<ShardId, ShardSplit>;

fn spans_of(slots: impl IntoIterator<Item = u16>) -> Vec<(SlotId, SlotId)> {
    let mut spans: Vec<(SlotId, SlotId)> = Vec::new();
    for slot in slots {
        match spans.last_mut() {
            Some((_, last)) if last.0 + 1 == slot => last.0 = slot,
            _ => spans.push((SlotId(slot), SlotId(slot))),
        }
    }
    spans
}

pub(crate) fn whole(splits: &Splits, shard: ShardId) -> Result<(), Refusal> {
    match splits.get(&shard) {
        None => Ok(()),
        Some(ShardSplit { to, epoch, .. }) => Err(Refusal::ShardSplits {
            shard,
            to: *to,
            epoch: *epoch,
        }),
    }
}

/// Whether one begins that has not begun before.
pub(crate) fn begin_split(
    map: &ClusterMap,
    moves: &BTreeMap<SlotId, SlotMove>,
    (splits, merges): (&mut Splits, &Merges),
    shard: ShardId,
    slots: &BTreeSet<SlotId>,
) -> Result<bool, Refusal> {
    let row = map.shards.get(&shard).filter(|_| shard != ShardId::META);
    let row = row.ok_or(Refusal::UnknownShard { shard })?;
    let wanted: Vec<u16> = slots.iter().map(|slot| slot.0).collect();
    if let Some(found) = splits.get(&shard) {
        if found.slots == spans_of(wanted) {
            return Ok(false);
        }
        return whole(splits, shard).map(|()| false);
    }
    let mut others = map.shards.iter().filter(|(id, _)| **id != shard);
    if !wanted.is_empty() && others.any(|(_, other)| slots_of(other) == wanted) {
        return Ok(false);
    }
    stays(merges, shard, true)?;
    let held = slots_of(row);
    if let Some(slot) = wanted.iter().find(|slot| !held.contains(slot)) {
        return Err(Refusal::WrongShard {
            slot: SlotId(*slot),
        });
    }
    if wanted.is_empty() || wanted == held {
        return Err(Refusal::SplitSize {
            taken: wanted.len(),
            held: held.len(),
        });
    }
    if row
        .replicas
        .iter()
        .any(|one| one.role != ReplicaRole::Voter)
    {
        return Err(Refusal::ShardChanges { shard });
    }
    let mut moves = moves.iter();
    if let Some((slot, found)) = moves.find(|(_, row)| row.from == shard || row.to == shard) {
        return Err(moving(*slot, found));
    }
    let ids = map.shards.keys().copied();
    let ids = ids.chain(splits.values().map(|split| split.to));
    let greatest = ids.chain(merges.keys().copied()).max();
    let split = ShardSplit {
        epoch: map.epoch + 1,
        to: ShardId(greatest.unwrap().0 + 1),
        slots: spans_of(wanted),
    };
    splits.insert(shard, split);
    Ok(true)
}

pub(crate) fn end_split(map: &mut ClusterMap, splits: &mut Splits, shard: ShardId, epoch: u64) {
    let Some(split) = splits.remove(&shard) else {
        return;
    };
    if split.epoch != epoch {
        splits.insert(shard, split);
        return;
    }
    let row = map.shards.get_mut(&shard).unwrap();
    let gone = split.each_slot();
    let stays = slots_of(row);
    row.slots = spans_of(
        stays
            .into_iter()
            .filter(|slot| !gone.contains(&SlotId(*slot))),
    );
    row.epoch += 1;
    let child = MapShard {
        epoch: 1,
        slots: split.slots,
        replicas: row.replicas.clone(),
    };
    assert!(map.shards.insert(split.to, child).is_none());
    assert_eq!(map.check(), Ok(()));
}

#[test]
fn a_shard_whose_members_change_does_not_split() {
    let (mut replica, shard) = (Replica::new(), ShardId(1));
    let mut replicas = first(true).shards[&shard].replicas.clone();
    let voters = replicas.clone();
    replicas[2].role = ReplicaRole::Learner { replaces: None };
    let set = |expect_epoch, replicas| MetaCommand::SetReplicas {
        shard,
        expect_epoch,
        replicas,
    };
    let split = MetaCommand::BeginSplit {
        shard,
        slots: [SlotId(3)].into(),
    };
    let (to, epoch) = (ShardId(3), 4);
    let steps = [
        (MetaCommand::Begin(first(true)), Reply::Map { epoch: 1 }),
        (set(1, replicas.clone()), Reply::Map { epoch: 2 }),
        (
            split.clone(),
            Reply::Refused(Refusal::ShardChanges { shard }),
        ),
        (set(2, voters), Reply::Map { epoch: 3 }),
        (split, Reply::Map { epoch: 4 }),
        // Nor do they change while it splits.
        (
            set(3, replicas),
            Reply::Refused(Refusal::ShardSplits { shard, to, epoch }),
        ),
    ];
    for (command, reply) in steps {
        assert_eq!(replica.apply(&[Command::Meta(command)]), [reply]);
    }
}
