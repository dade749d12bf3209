//! What moves of slots are to be.

use std::collections::BTreeMap;

use mailbox_engine::{ClusterMap, MapShard, MoveStage, Refusal, ShardId, SlotId, SlotMove};

use crate::merges::{Merges, stays};
use crate::splits::{Splits, whole};

pub(crate) fn moving(slot: SlotId, found: &SlotMove) -> Refusal {
    let SlotMove {
        epoch, to, stage, ..
    } = *found;
    Refusal::SlotMoves {
        slot,
        epoch,
        to,
        stage,
    }
}

pub(crate) fn slots_of(row: &MapShard) -> Vec<u16> {
    let spans = row.slots.iter();
    spans.flat_map(|(first, last)| first.0..=last.0).collect()
}

/// Whether one begins that has not begun before.
pub(crate) fn begin_move(
    map: &ClusterMap,
    moves: &mut BTreeMap<SlotId, SlotMove>,
    (splits, merges): (&Splits, &Merges),
    (slot, to): (SlotId, ShardId),
) -> Result<bool, Refusal> {
    if to == ShardId::META || !map.shards.contains_key(&to) {
        return Err(Refusal::UnknownShard { shard: to });
    }
    if let Some(found) = moves.get(&slot) {
        if found.to == to && found.stage != MoveStage::Aborting {
            return Ok(false);
        }
        return Err(moving(slot, found));
    }
    let mut rows = map.shards.iter();
    let holder = rows.find(|(_, row)| slots_of(row).contains(&slot.0));
    let (from, _) = holder.ok_or(Refusal::WrongShard { slot })?;
    if *from == to {
        return Ok(false);
    }
    whole(splits, *from)?;
    whole(splits, to)?;
    stays(merges, to, false)?;
    let row = SlotMove {
        epoch: map.epoch + 1,
        from: *from,
        to,
        stage: MoveStage::Copying,
    };
    moves.insert(slot, row);
    Ok(true)
}

pub(crate) fn end_move(
    moves: &mut BTreeMap<SlotId, SlotMove>,
    slot: SlotId,
    epoch: u64,
) -> Result<(), Refusal> {
    let found = moves.get(&slot).filter(|found| found.epoch == epoch);
    match found.map(|found| found.stage) {
        None => {}
        Some(MoveStage::Dropping | MoveStage::Aborting) => {
            moves.remove(&slot);
        }
        Some(_) => return Err(moving(slot, found.unwrap())),
    }
    Ok(())
}

pub(crate) fn step_move(
    map: &mut ClusterMap,
    moves: &mut BTreeMap<SlotId, SlotMove>,
    (slot, epoch): (SlotId, u64),
    stage: MoveStage,
) -> Result<(), Refusal> {
    use MoveStage::{Aborting, Copying, Dropping, Freezing};
    let row = moves.get_mut(&slot);
    let row = row.ok_or(Refusal::NoSuchMove { slot, epoch })?;
    if row.epoch != epoch {
        return Err(moving(slot, row));
    }
    match (row.stage, stage) {
        (before, now) if before == now => return Ok(()),
        (Copying, Freezing | Aborting) => {}
        (Freezing, Dropping) => {
            for (shard, comes) in [(row.from, false), (row.to, true)] {
                let held = map.shards.get_mut(&shard).unwrap();
                let mut slots = slots_of(held);
                slots.retain(|held| *held != slot.0);
                slots.extend(comes.then_some(slot.0));
                slots.sort_unstable();
                held.slots.clear();
                for slot in slots {
                    match held.slots.last_mut() {
                        Some((_, last)) if last.0 + 1 == slot => last.0 = slot,
                        _ => held.slots.push((SlotId(slot), SlotId(slot))),
                    }
                }
                held.epoch += 1;
            }
            assert_eq!(map.check(), Ok(()));
        }
        _ => return Err(moving(slot, row)),
    }
    row.stage = stage;
    Ok(())
}
