//! Decisions about merges of shards, in the meta shard: which there are, and the map that comes of each. See
//! `shard_merges.rs`.

use crate::command::{Refusal, Reply};
use crate::error::Error;
use crate::id::{ShardId, SlotId};
use crate::key::StateKey;
use crate::procedure::No;
use crate::procedure::meta::{raise_epoch, require_map, shard_row};
use crate::procedure::meta_moves::move_rows;
use crate::procedure::meta_splits::scene;
use crate::shard_merges::{MergeStage, MergeVerdict, ShardMerge};
use crate::shard_splits::slots_of;
use crate::state::Context;

/// Begins a merge, unless it is under way or done.
pub(super) fn begin_merge(
    ctx: &mut Context<'_>,
    shard: ShardId,
    into: ShardId,
) -> Result<Reply, No> {
    let map = require_map(ctx)?;
    match scene(ctx)?.judge_merge(shard, into)? {
        MergeVerdict::Begins => {}
        MergeVerdict::UnderWay { .. } | MergeVerdict::Done => {
            return Ok(Reply::Map { epoch: map.epoch });
        }
    }
    let merge = ShardMerge {
        epoch: map.epoch + 1,
        into,
        stage: MergeStage::Moving,
    };
    let reply = raise_epoch(ctx, map);
    ctx.put(&StateKey::MetaMerge { shard }, merge.encode());
    Ok(reply)
}

/// The shard leaves the map for ever. A repeat changes nothing.
pub(super) fn end_merge(ctx: &mut Context<'_>, shard: ShardId, epoch: u64) -> Result<Reply, No> {
    let map = require_map(ctx)?;
    let Some(merge) = under_way(ctx, shard)?.filter(|found| found.epoch == epoch) else {
        // Ended before, or given up.
        return Ok(Reply::Map { epoch: map.epoch });
    };
    let Some(row) = shard_row(ctx, shard)? else {
        return Err(Refusal::UnknownShard { shard }.into());
    };
    let slots = slots_of(&row.slots).count();
    if slots > 0 {
        return Err(Refusal::ShardHasSlots { shard, slots }.into());
    }
    let moves = move_rows(ctx)?;
    let mut moves = moves.iter();
    // Whoever settles what has come from the shard may still need its rows.
    if let Some((slot, found)) = moves.find(|(_, row)| [row.from, row.to].contains(&shard)) {
        return Err(Refusal::SlotMoves {
            slot: *slot,
            epoch: found.epoch,
            to: found.to,
            stage: found.stage,
        }
        .into());
    }
    let retired = ShardMerge {
        stage: MergeStage::Retired,
        ..merge
    };
    ctx.delete(&StateKey::MetaShard { shard });
    ctx.put(&StateKey::MetaMerge { shard }, retired.encode());
    Ok(raise_epoch(ctx, map))
}

/// The shard stays, with the slots that it still has. A repeat changes nothing.
pub(super) fn cancel_merge(ctx: &mut Context<'_>, shard: ShardId, epoch: u64) -> Result<Reply, No> {
    let map = require_map(ctx)?;
    match merge_row(ctx, shard)? {
        Some(found) if found.epoch == epoch => {
            if !found.is_moving() {
                return Err(Refusal::UnknownShard { shard }.into());
            }
            ctx.delete(&StateKey::MetaMerge { shard });
        }
        Some(_) | None => {}
    }
    Ok(Reply::Map { epoch: map.epoch })
}

/// Refuses what must not be done to a shard that goes.
pub(super) fn require_stays(ctx: &mut Context<'_>, shard: ShardId) -> Result<(), No> {
    match under_way(ctx, shard)? {
        Some(found) => Err(found.refusal(shard).into()),
        None => Ok(()),
    }
}

pub(super) fn merge_rows(ctx: &mut Context<'_>) -> Result<Vec<(ShardId, ShardMerge)>, Error> {
    let mut merges = Vec::new();
    for (suffix, value) in ctx.scan_prefix(SlotId::META, &StateKey::merges_prefix())? {
        let corrupt = |malformed| Error::corrupt_row(suffix.as_slice(), malformed);
        let key = StateKey::decode(suffix.as_slice()).map_err(corrupt)?;
        if let StateKey::MetaMerge { shard } = key {
            merges.push((shard, ShardMerge::decode(&value).map_err(corrupt)?));
        }
    }
    Ok(merges)
}

fn under_way(ctx: &mut Context<'_>, shard: ShardId) -> Result<Option<ShardMerge>, Error> {
    let row = merge_row(ctx, shard)?;
    Ok(row.filter(ShardMerge::is_moving))
}

fn merge_row(ctx: &mut Context<'_>, shard: ShardId) -> Result<Option<ShardMerge>, Error> {
    let key = StateKey::MetaMerge { shard };
    let value = ctx.get(&key)?;
    let row = value.map(|value| ShardMerge::decode(&value)).transpose();
    row.map_err(|malformed| Error::corrupt_row(key.encode().as_slice(), malformed))
}
