//! Decisions about splits of shards, in the meta shard: which there are, and the map that comes of each. See
//! `shard_splits.rs`.

use std::collections::BTreeSet;

use crate::cluster_map::MapShard;
use crate::command::{Refusal, Reply};
use crate::error::Error;
use crate::id::{ShardId, SlotId};
use crate::key::StateKey;
use crate::procedure::No;
use crate::procedure::meta::{put_shard_row, raise_epoch, require_map, shard_row, shard_rows};
use crate::procedure::meta_merges::merge_rows;
use crate::procedure::meta_moves::move_rows;
use crate::shard_splits::{ShardSplit, SplitScene, SplitVerdict, slots_of, spans_of};
use crate::state::Context;

/// Begins a split, unless it is under way or its end is how things are.
pub(super) fn begin_split(
    ctx: &mut Context<'_>,
    shard: ShardId,
    slots: &BTreeSet<SlotId>,
) -> Result<Reply, No> {
    let map = require_map(ctx)?;
    let to = match scene(ctx)?.judge(shard, slots)? {
        SplitVerdict::Begins(to) => to,
        SplitVerdict::UnderWay { .. } | SplitVerdict::Apart(_) => {
            return Ok(Reply::Map { epoch: map.epoch });
        }
    };
    let split = ShardSplit {
        epoch: map.epoch + 1,
        to,
        slots: spans_of(slots.iter().copied()),
    };
    let reply = raise_epoch(ctx, map);
    ctx.put(&StateKey::MetaSplit { shard }, split.encode());
    Ok(reply)
}

/// What splits and merges are judged by.
pub(super) fn scene(ctx: &mut Context<'_>) -> Result<SplitScene, Error> {
    Ok(SplitScene {
        shards: shard_rows(ctx)?.into_iter().collect(),
        moves: move_rows(ctx)?,
        splits: split_rows(ctx)?,
        merges: merge_rows(ctx)?,
    })
}

/// Both shards come into the map. A repeat changes nothing.
pub(super) fn end_split(ctx: &mut Context<'_>, shard: ShardId, epoch: u64) -> Result<Reply, No> {
    let map = require_map(ctx)?;
    let split = match split_row(ctx, shard)? {
        Some(split) if split.epoch == epoch => split,
        // Ended before.
        Some(_) | None => return Ok(Reply::Map { epoch: map.epoch }),
    };
    let Some(row) = shard_row(ctx, shard)? else {
        return Err(Refusal::UnknownShard { shard }.into());
    };
    let gone = split.each_slot();
    let stays = slots_of(&row.slots).filter(|slot| !gone.contains(slot));
    let parent = MapShard {
        epoch: row.epoch + 1,
        slots: spans_of(stays),
        replicas: row.replicas.clone(),
    };
    let child = MapShard {
        epoch: 1,
        slots: split.slots,
        replicas: row.replicas,
    };
    put_shard_row(ctx, shard, &parent);
    put_shard_row(ctx, split.to, &child);
    ctx.delete(&StateKey::MetaSplit { shard });
    Ok(raise_epoch(ctx, map))
}

/// Refuses what must not be done to a shard that splits.
pub(super) fn require_whole(ctx: &mut Context<'_>, shard: ShardId) -> Result<(), No> {
    match split_row(ctx, shard)? {
        Some(ShardSplit { to, epoch, .. }) => Err(Refusal::ShardSplits { shard, to, epoch }.into()),
        None => Ok(()),
    }
}

fn split_rows(ctx: &mut Context<'_>) -> Result<Vec<(ShardId, ShardSplit)>, Error> {
    let mut splits = Vec::new();
    for (suffix, value) in ctx.scan_prefix(SlotId::META, &StateKey::meta_splits_prefix())? {
        let corrupt = |malformed| Error::corrupt_row(suffix.as_slice(), malformed);
        let key = StateKey::decode(suffix.as_slice()).map_err(corrupt)?;
        if let StateKey::MetaSplit { shard } = key {
            splits.push((shard, ShardSplit::decode(&value).map_err(corrupt)?));
        }
    }
    Ok(splits)
}

fn split_row(ctx: &mut Context<'_>, shard: ShardId) -> Result<Option<ShardSplit>, Error> {
    let key = StateKey::MetaSplit { shard };
    let value = ctx.get(&key)?;
    let row = value.map(|value| ShardSplit::decode(&value)).transpose();
    row.map_err(|malformed| Error::corrupt_row(key.encode().as_slice(), malformed))
}
