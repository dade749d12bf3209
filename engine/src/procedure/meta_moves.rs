//! Decisions about moves of slots, in the meta shard: which there are, how far each has got, and the map that
//! comes of it. See `slot_moves.rs`.

use crate::cluster_map::MapShard;
use crate::command::{Refusal, Reply};
use crate::error::Error;
use crate::id::{ShardId, SlotId};
use crate::key::StateKey;
use crate::procedure::No;
use crate::procedure::meta::{put_shard_row, raise_epoch, require_map, shard_row, shard_rows};
use crate::procedure::meta_merges::require_stays;
use crate::procedure::meta_splits::require_whole;
use crate::slot_moves::{MoveStage, SlotMove, with, without};
use crate::state::Context;

/// Begins a move, unless it is under way or its end is where the slot is.
pub(super) fn begin_move(ctx: &mut Context<'_>, slot: SlotId, to: ShardId) -> Result<Reply, No> {
    let map = require_map(ctx)?;
    if to == ShardId::META || shard_row(ctx, to)?.is_none() {
        return Err(Refusal::UnknownShard { shard: to }.into());
    }
    if let Some(found) = move_row(ctx, slot)? {
        if found.to == to && found.stage != MoveStage::Aborting {
            return Ok(Reply::Map { epoch: map.epoch });
        }
        return Err(moving(slot, &found));
    }
    let holds = |row: &MapShard| {
        let mut spans = row.slots.iter();
        spans.any(|(first, last)| (*first..=*last).contains(&slot))
    };
    let rows = shard_rows(ctx)?;
    let Some((from, _)) = rows.iter().find(|(_, row)| holds(row)) else {
        return Err(Refusal::WrongShard { slot }.into());
    };
    if *from == to {
        return Ok(Reply::Map { epoch: map.epoch });
    }
    require_whole(ctx, *from)?;
    require_whole(ctx, to)?;
    require_stays(ctx, to)?;
    let reply = raise_epoch(ctx, map);
    let row = SlotMove {
        epoch: map.epoch + 1,
        from: *from,
        to,
        stage: MoveStage::Copying,
    };
    ctx.put(&StateKey::MetaMove { slot }, row.encode());
    Ok(reply)
}

/// Takes the next decision about a move. A repeat changes nothing.
pub(super) fn step_move(
    ctx: &mut Context<'_>,
    slot: SlotId,
    epoch: u64,
    stage: MoveStage,
) -> Result<Reply, No> {
    let map = require_map(ctx)?;
    let Some(row) = move_row(ctx, slot)? else {
        return Err(Refusal::NoSuchMove { slot, epoch }.into());
    };
    if row.epoch != epoch {
        return Err(moving(slot, &row));
    }
    if row.stage == stage {
        return Ok(Reply::Map { epoch: map.epoch });
    }
    if !row.stage.may_become(stage) {
        return Err(moving(slot, &row));
    }
    ctx.put(
        &StateKey::MetaMove { slot },
        SlotMove { stage, ..row }.encode(),
    );
    if stage != MoveStage::Dropping {
        return Ok(Reply::Map { epoch: map.epoch });
    }
    for (shard, comes) in [(row.from, false), (row.to, true)] {
        let Some(held) = shard_row(ctx, shard)? else {
            return Err(Refusal::UnknownShard { shard }.into());
        };
        let slots = if comes {
            with(&held.slots, slot)
        } else {
            without(&held.slots, slot)
        };
        let row = MapShard {
            epoch: held.epoch + 1,
            slots,
            replicas: held.replicas,
        };
        put_shard_row(ctx, shard, &row);
    }
    Ok(raise_epoch(ctx, map))
}

/// Forgets a move that is done, or was given up.
pub(super) fn end_move(ctx: &mut Context<'_>, slot: SlotId, epoch: u64) -> Result<Reply, No> {
    let map = require_map(ctx)?;
    match move_row(ctx, slot)? {
        Some(row) if row.epoch == epoch => {
            if !matches!(row.stage, MoveStage::Dropping | MoveStage::Aborting) {
                return Err(moving(slot, &row));
            }
            ctx.delete(&StateKey::MetaMove { slot });
        }
        // Forgotten before.
        Some(_) | None => {}
    }
    Ok(Reply::Map { epoch: map.epoch })
}

/// All moves that are under way.
pub(super) fn move_rows(ctx: &mut Context<'_>) -> Result<Vec<(SlotId, SlotMove)>, Error> {
    let mut moves = Vec::new();
    for (suffix, value) in ctx.scan_prefix(SlotId::META, &StateKey::meta_moves_prefix())? {
        let corrupt = |malformed| Error::corrupt_row(suffix.as_slice(), malformed);
        let key = StateKey::decode(suffix.as_slice()).map_err(corrupt)?;
        if let StateKey::MetaMove { slot } = key {
            moves.push((slot, SlotMove::decode(&value).map_err(corrupt)?));
        }
    }
    Ok(moves)
}

fn moving(slot: SlotId, row: &SlotMove) -> No {
    Refusal::SlotMoves {
        slot,
        epoch: row.epoch,
        to: row.to,
        stage: row.stage,
    }
    .into()
}

fn move_row(ctx: &mut Context<'_>, slot: SlotId) -> Result<Option<SlotMove>, Error> {
    let key = StateKey::MetaMove { slot };
    let value = ctx.get(&key)?;
    let row = value.map(|value| SlotMove::decode(&value)).transpose();
    row.map_err(|malformed| Error::corrupt_row(key.encode().as_slice(), malformed))
}
