//! The map of the cluster. Only the meta shard has it, and only what is here changes it.
//!
//! Who votes is decided by each shard's own log; whoever changes that tells the map afterwards. So nothing
//! here is a decision about a shard: the map is what nodes and clients go by until they are told better.

use crate::cluster_map::{
    ClusterMap, MapFault, MapNode, MapReplica, MapRow, MapShard, Standing, check_replicas,
    judge_node,
};
use crate::command::{LogReport, MetaCommand, PutNode, Refusal, Reply};
use crate::error::Error;
use crate::id::{ShardId, SlotId};
use crate::key::StateKey;
use crate::procedure::meta_gateways::{forget_gateway, put_gateway, sweep_gateways};
use crate::procedure::meta_merges::{begin_merge, cancel_merge, end_merge};
use crate::procedure::meta_moves::{begin_move, end_move, step_move};
use crate::procedure::meta_splits::{begin_split, end_split, require_whole};
use crate::procedure::{No, number};
use crate::state::Context;
use crate::table;

/// Changes the map. Every repeat gets the reply of the first call, and leaves the epoch as it is.
pub(crate) fn meta(ctx: &mut Context<'_>, call: &MetaCommand) -> Result<Reply, No> {
    match call {
        MetaCommand::Begin(map) => begin(ctx, map),
        MetaCommand::PutNode(call) => put_node(ctx, call),
        MetaCommand::ReportLogs(reports) => report_logs(ctx, reports),
        MetaCommand::SetStanding { node, standing } => set_standing(ctx, *node, *standing),
        MetaCommand::RemoveNode { node } => remove_node(ctx, *node),
        MetaCommand::SetReplicas {
            shard,
            expect_epoch,
            replicas,
        } => set_replicas(ctx, *shard, *expect_epoch, replicas),
        MetaCommand::BeginMove { slot, to } => begin_move(ctx, *slot, *to),
        MetaCommand::StepMove { slot, epoch, stage } => step_move(ctx, *slot, *epoch, *stage),
        MetaCommand::EndMove { slot, epoch } => end_move(ctx, *slot, *epoch),
        MetaCommand::BeginSplit { shard, slots } => begin_split(ctx, *shard, slots),
        MetaCommand::EndSplit { shard, epoch } => end_split(ctx, *shard, *epoch),
        MetaCommand::BeginMerge { shard, into } => begin_merge(ctx, *shard, *into),
        MetaCommand::EndMerge { shard, epoch } => end_merge(ctx, *shard, *epoch),
        MetaCommand::CancelMerge { shard, epoch } => cancel_merge(ctx, *shard, *epoch),
        MetaCommand::PutGateway(call) => put_gateway(ctx, call),
        MetaCommand::ForgetGateway { gateway, run } => forget_gateway(ctx, gateway, *run),
        MetaCommand::SweepGateways { missed } => sweep_gateways(ctx, missed),
    }
}

/// A new leader cannot know whether the one before it got as far, and repeats it; the first one counts.
fn begin(ctx: &mut Context<'_>, map: &ClusterMap) -> Result<Reply, No> {
    if let Some(row) = map_row(ctx)? {
        return Ok(Reply::Map { epoch: row.epoch });
    }
    check(map.check())?;
    if map.slot_count != ctx.slot_count() {
        check(Err(MapFault::Slots))?;
    }
    for (node, row) in &map.nodes {
        put_node_row(ctx, *node, row);
    }
    for (shard, row) in &map.shards {
        put_shard_row(ctx, *shard, row);
    }
    let row = MapRow {
        epoch: 1,
        slot_count: map.slot_count,
        shard_count: map.shard_count,
    };
    ctx.put(&StateKey::MetaMap, row.encode());
    Ok(Reply::Map { epoch: row.epoch })
}

/// Takes a node in, or what it tells of itself now. Its id stays bound to the directory that used it first:
/// another one with the same id has not promised what that one has.
fn put_node(ctx: &mut Context<'_>, call: &PutNode) -> Result<Reply, No> {
    let PutNode {
        node,
        ref row,
        log_batch,
    } = *call;
    let map = require_map(ctx)?;
    check(row.check())?;
    if node == 0 || row.incarnation == 0 {
        check(Err(MapFault::Node))?;
    }
    let known = node_row(ctx, node)?;
    let log = StateKey::MetaLog { node };
    let recorded = number(ctx, &log)?;
    let standing = judge_node(node, known.as_ref(), recorded, row.incarnation, log_batch)?;
    if log_batch > recorded {
        ctx.put(&log, table::encode_u64(log_batch));
    }
    let row = MapNode {
        standing,
        ..row.clone()
    };
    if known.as_ref() == Some(&row) {
        return Ok(Reply::Map { epoch: map.epoch });
    }
    put_node_row(ctx, node, &row);
    Ok(raise_epoch(ctx, map))
}

/// Notes how far logs have got. It is no change of the map: nobody but the node itself is judged by it. A report
/// of another directory than the one that has the id is not one of this node.
fn report_logs(ctx: &mut Context<'_>, reports: &[LogReport]) -> Result<Reply, No> {
    let map = require_map(ctx)?;
    for report in reports {
        let node = report.node;
        let Some(row) = node_row(ctx, node)? else {
            continue;
        };
        let log = StateKey::MetaLog { node };
        if row.incarnation == report.incarnation && report.log_batch > number(ctx, &log)? {
            ctx.put(&log, table::encode_u64(report.log_batch));
        }
    }
    Ok(Reply::Map { epoch: map.epoch })
}

fn set_standing(ctx: &mut Context<'_>, node: u64, standing: Standing) -> Result<Reply, No> {
    if standing == Standing::Removed {
        return remove_node(ctx, node);
    }
    let map = require_map(ctx)?;
    let row = require_node(ctx, node)?;
    if row.standing == Standing::Removed {
        return Err(Refusal::NodeRemoved { node }.into());
    }
    if row.standing == standing {
        return Ok(Reply::Map { epoch: map.epoch });
    }
    put_node_row(ctx, node, &MapNode { standing, ..row });
    Ok(raise_epoch(ctx, map))
}

/// The row stays, so that the id is never given to another directory.
fn remove_node(ctx: &mut Context<'_>, node: u64) -> Result<Reply, No> {
    let map = require_map(ctx)?;
    let row = require_node(ctx, node)?;
    if row.standing == Standing::Removed {
        return Ok(Reply::Map { epoch: map.epoch });
    }
    for (shard, held) in shard_rows(ctx)? {
        if held.replica(node).is_some() {
            return Err(Refusal::NodeInUse { node, shard }.into());
        }
    }
    let standing = Standing::Removed;
    put_node_row(ctx, node, &MapNode { standing, ..row });
    Ok(raise_epoch(ctx, map))
}

/// Replaces a shard's replicas. A repeat finds what it asked for, under a later epoch.
fn set_replicas(
    ctx: &mut Context<'_>,
    shard: ShardId,
    expect_epoch: u64,
    replicas: &[MapReplica],
) -> Result<Reply, No> {
    let map = require_map(ctx)?;
    let Some(row) = shard_row(ctx, shard)? else {
        return Err(Refusal::UnknownShard { shard }.into());
    };
    if row.replicas == replicas {
        return Ok(Reply::Map { epoch: map.epoch });
    }
    require_whole(ctx, shard)?;
    if row.epoch != expect_epoch {
        return Err(Refusal::StaleEpoch {
            shard,
            expected: expect_epoch,
            found: row.epoch,
        }
        .into());
    }
    check(check_replicas(replicas))?;
    for node in replicas.iter().map(|replica| replica.node) {
        if require_node(ctx, node)?.standing == Standing::Removed {
            return Err(Refusal::NodeRemoved { node }.into());
        }
    }
    let row = MapShard {
        epoch: row.epoch + 1,
        slots: row.slots,
        replicas: replicas.to_vec(),
    };
    put_shard_row(ctx, shard, &row);
    Ok(raise_epoch(ctx, map))
}

/// All shards of the map.
pub(super) fn shard_rows(ctx: &mut Context<'_>) -> Result<Vec<(ShardId, MapShard)>, Error> {
    let mut rows = Vec::new();
    for (suffix, value) in ctx.scan_prefix(SlotId::META, &StateKey::meta_shards_prefix())? {
        let corrupt = |malformed| Error::corrupt_row(suffix.as_slice(), malformed);
        let key = StateKey::decode(suffix.as_slice()).map_err(corrupt)?;
        if let StateKey::MetaShard { shard } = key {
            rows.push((shard, MapShard::decode(&value).map_err(corrupt)?));
        }
    }
    Ok(rows)
}

fn check(done: Result<(), MapFault>) -> Result<(), Refusal> {
    done.map_err(|fault| Refusal::InvalidMap { fault })
}

pub(super) fn raise_epoch(ctx: &mut Context<'_>, map: MapRow) -> Reply {
    let row = MapRow {
        epoch: map.epoch + 1,
        ..map
    };
    ctx.put(&StateKey::MetaMap, row.encode());
    Reply::Map { epoch: row.epoch }
}

pub(super) fn require_map(ctx: &mut Context<'_>) -> Result<MapRow, No> {
    map_row(ctx)?.ok_or_else(|| Refusal::NoMap.into())
}

fn map_row(ctx: &mut Context<'_>) -> Result<Option<MapRow>, Error> {
    let key = StateKey::MetaMap;
    let value = ctx.get(&key)?;
    let row = value.map(|value| MapRow::decode(&value)).transpose();
    row.map_err(|malformed| Error::corrupt_row(key.encode().as_slice(), malformed))
}

fn require_node(ctx: &mut Context<'_>, node: u64) -> Result<MapNode, No> {
    node_row(ctx, node)?.ok_or_else(|| Refusal::UnknownNode { node }.into())
}

fn node_row(ctx: &mut Context<'_>, node: u64) -> Result<Option<MapNode>, Error> {
    let key = StateKey::MetaNode { node };
    let value = ctx.get(&key)?;
    let row = value.map(|value| MapNode::decode(&value)).transpose();
    row.map_err(|malformed| Error::corrupt_row(key.encode().as_slice(), malformed))
}

pub(super) fn shard_row(ctx: &mut Context<'_>, shard: ShardId) -> Result<Option<MapShard>, Error> {
    let key = StateKey::MetaShard { shard };
    let value = ctx.get(&key)?;
    let row = value.map(|value| MapShard::decode(&value)).transpose();
    row.map_err(|malformed| Error::corrupt_row(key.encode().as_slice(), malformed))
}

fn put_node_row(ctx: &mut Context<'_>, node: u64, row: &MapNode) {
    let mut value = Vec::new();
    row.encode(&mut value);
    ctx.put(&StateKey::MetaNode { node }, value);
}

pub(super) fn put_shard_row(ctx: &mut Context<'_>, shard: ShardId, row: &MapShard) {
    let mut value = Vec::new();
    row.encode(&mut value);
    ctx.put(&StateKey::MetaShard { shard }, value);
}
