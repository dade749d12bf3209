//! The calls that merge shards: those of operators, and the question of nodes what became of a shard.

use mailbox_api::CallError;
use mailbox_api::v1::{
    self, AbortShardMergeRequest, ErrorCode, MapChange, MergeShardRequest, MergeShardResponse,
    ShardMergesRequest, ShardMergesResponse,
};
use mailbox_engine::{MergeStage, MergeVerdict, MetaCommand, ShardId, ShardMerge, SplitScene};

use super::known_calls::{self, Known};
use super::split_calls::scene;
use super::{change, leads_meta};
use crate::core::Core;
use crate::shard_merges::Left;
use crate::status;

/// Begins a merge, or judges one, on the leader of the meta shard.
///
/// # Errors
/// Why it cannot be.
pub(super) async fn merge_here(
    core: &Core,
    call: MergeShardRequest,
) -> Result<MergeShardResponse, CallError> {
    let (shard, into) = (ShardId(call.shard), ShardId(call.into));
    let judge = |scene: &SplitScene| {
        let verdict = scene.judge_merge(shard, into);
        verdict.map_err(|no| status::refusal(&no))
    };
    let (mut scene, mut epoch) = self::scene(core).await?;
    if judge(&scene)? == MergeVerdict::Begins {
        known_calls::require(core, Known::Merges).await?;
        if !call.dry_run {
            change(core, MetaCommand::BeginMerge { shard, into }).await?;
            core.shard_merges.look();
            (scene, epoch) = self::scene(core).await?;
            if judge(&scene)? == MergeVerdict::Begins {
                return Err(status::unavailable("the merge has not begun"));
            }
        }
    }
    let left = Left::of(&scene, shard);
    Ok(MergeShardResponse {
        epoch,
        slots_left: count(left.slots.len()),
        done: judge(&scene)? == MergeVerdict::Done,
    })
}

/// Gives a merge up, on the leader of the meta shard.
///
/// # Errors
/// There is none, or it is done.
pub(super) async fn abort_here(
    core: &Core,
    call: AbortShardMergeRequest,
) -> Result<MapChange, CallError> {
    let shard = ShardId(call.shard);
    let (scene, _) = scene(core).await?;
    let mut merges = scene.merges.iter();
    let Some((_, found)) = merges.find(|(id, _)| *id == shard) else {
        let words = format!("no merge of shard {shard} is under way: there is nothing to give up");
        return Err(CallError::new(ErrorCode::StaleEpoch, words));
    };
    let epoch = found.epoch;
    let epoch = change(core, MetaCommand::CancelMerge { shard, epoch }).await?;
    tracing::info!(shard = shard.0, "the merge is given up");
    Ok(MapChange { epoch })
}

/// The merges under way, or what became of one shard, on the leader of the meta shard.
///
/// # Errors
/// They cannot be read.
pub(super) async fn merges_here(
    core: &Core,
    call: ShardMergesRequest,
) -> Result<ShardMergesResponse, CallError> {
    let (scene, _) = scene(core).await?;
    let wanted = |(shard, row): &&(ShardId, ShardMerge)| match call.shard {
        Some(asked) => shard.0 == asked,
        None => row.is_moving(),
    };
    let merges = scene.merges.iter().filter(wanted);
    let merges = merges.map(|(shard, row)| merge_out(core, &scene, *shard, row));
    Ok(ShardMergesResponse {
        merges: merges.collect(),
    })
}

fn merge_out(core: &Core, scene: &SplitScene, shard: ShardId, row: &ShardMerge) -> v1::ShardMerge {
    let left = Left::of(scene, shard);
    let out = v1::ShardMerge {
        shard: shard.0,
        into: row.into.0,
        epoch: row.epoch,
        retired: row.stage == MergeStage::Retired,
        slots_left: count(left.slots.len()),
        moves_left: count(left.moves.len()),
        ..v1::ShardMerge::default()
    };
    let Some(note) = core.shard_merges.note_of(shard, row, &left) else {
        return out;
    };
    v1::ShardMerge {
        waits_for: note.waits_for.clone(),
        still_ms: super::slot_calls::millis(note.still()),
        failed_tries: note.failed_tries,
        ..out
    }
}

fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}

/// Whether a shard is gone for ever, by the meta shard's leader behind a read barrier: no map of whatever age can say
/// that, since one that a split has just made is in none either.
///
/// # Errors
/// Nobody says.
pub(crate) async fn is_retired(core: &Core, shard: ShardId) -> Result<bool, CallError> {
    let call = ShardMergesRequest {
        shard: Some(shard.0),
    };
    let answer = if leads_meta(core) {
        merges_here(core, call).await?
    } else {
        let asked = core.ask(ShardId::META, async |address| {
            let request = core.own_call(call)?;
            core.peers.cluster(&address)?.shard_merges(request).await
        });
        let answer = asked.await.map(tonic::Response::into_inner);
        answer.map_err(|status| CallError::from_status(&status))?
    };
    let mut merges = answer.merges.iter();
    Ok(merges.any(|found| found.shard == shard.0 && found.retired))
}
