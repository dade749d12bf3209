//! Commands of the meta shard, and their bytes.

use std::collections::BTreeSet;

use crate::cluster_map::{
    ClusterMap, MapNode, MapReplica, MapShard, Standing, put_replicas, read_replicas,
};
use crate::command::split::{put_slots, read_slots};
use crate::decode::{Malformed, Reader};
use crate::gateways::{GatewayFacts, GatewayId};
use crate::id::{ShardId, SlotId};
use crate::slot_moves::MoveStage;

/// A call that changes the map of the cluster. All do nothing the second time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaCommand {
    /// The first map, unless there is one: what every new leader of a new cluster's meta shard proposes.
    Begin(ClusterMap),
    /// A node joins, or tells anew who it is.
    PutNode(PutNode),
    /// How far logs have got.
    ReportLogs(Vec<LogReport>),
    /// What operators want of a node.
    SetStanding {
        /// The node.
        node: u64,
        /// Not [`Standing::Removed`].
        standing: Standing,
    },
    /// A node that holds nothing leaves for ever.
    RemoveNode {
        /// The node.
        node: u64,
    },
    /// The replicas of a shard.
    SetReplicas {
        /// The shard.
        shard: ShardId,
        /// The shard's epoch by which the call was made.
        expect_epoch: u64,
        /// All of them.
        replicas: Vec<MapReplica>,
    },
    /// A slot is to move.
    BeginMove {
        /// The slot.
        slot: SlotId,
        /// Where to.
        to: ShardId,
    },
    /// The next decision about a move.
    StepMove {
        /// The slot.
        slot: SlotId,
        /// The move's.
        epoch: u64,
        /// What is decided.
        stage: MoveStage,
    },
    /// A move is over: all of its last stage is done.
    EndMove {
        /// The slot.
        slot: SlotId,
        /// The move's.
        epoch: u64,
    },
    /// A shard is to split: the slots become a shard of their own, whose id is the first free one.
    BeginSplit {
        /// The shard.
        shard: ShardId,
        /// What goes.
        slots: BTreeSet<SlotId>,
    },
    /// A split is over: the new shard serves.
    EndSplit {
        /// The shard that has split.
        shard: ShardId,
        /// The split's.
        epoch: u64,
    },
    /// A shard is to merge into another: all its slots are to move there.
    BeginMerge {
        /// The shard that goes.
        shard: ShardId,
        /// Who gets its slots.
        into: ShardId,
    },
    /// A merge is over: the shard has nothing left, and is retired.
    EndMerge {
        /// The shard.
        shard: ShardId,
        /// The merge's.
        epoch: u64,
    },
    /// A merge is given up: what has moved stays where it is.
    CancelMerge {
        /// The shard.
        shard: ShardId,
        /// The merge's.
        epoch: u64,
    },
    /// A gateway is there, or tells anew who and where it is.
    PutGateway(PutGateway),
    /// A gateway is gone, or not wanted.
    ForgetGateway {
        /// The gateway.
        gateway: GatewayId,
        /// Only if this run of it has the row.
        run: Option<u64>,
    },
    /// Nothing was heard of these gateways; and those that have been silent for long go.
    SweepGateways {
        /// Each with the run that was missed; at most [`crate::GATEWAYS_SWEPT_MAX`].
        missed: Vec<(GatewayId, u64)>,
    },
}

/// What a gateway tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutGateway {
    /// Its id.
    pub gateway: GatewayId,
    /// Who and where it is.
    pub facts: GatewayFacts,
    /// It sends its clients away, and goes.
    pub draining: bool,
}

/// What a node tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutNode {
    /// Its id.
    pub node: u64,
    /// Where it is. Of its standing, the map's own counts.
    pub row: MapNode,
    /// The greatest batch that its log has synced.
    pub log_batch: u64,
}

/// How far the log of a node has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogReport {
    /// The node.
    pub node: u64,
    /// Of the directory that the log is in.
    pub incarnation: u64,
    /// The greatest batch that it has synced.
    pub log_batch: u64,
}

const TAG_BEGIN: u8 = 1;
const TAG_PUT_NODE: u8 = 2;
const TAG_REPORT_LOGS: u8 = 3;
const TAG_SET_STANDING: u8 = 4;
const TAG_REMOVE_NODE: u8 = 5;
const TAG_SET_REPLICAS: u8 = 6;
const TAG_BEGIN_MOVE: u8 = 7;
const TAG_STEP_MOVE: u8 = 8;
const TAG_END_MOVE: u8 = 9;
const TAG_BEGIN_SPLIT: u8 = 16;
const TAG_END_SPLIT: u8 = 17;
const TAG_PUT_GATEWAY: u8 = 18;
const TAG_FORGET_GATEWAY: u8 = 19;
const TAG_SWEEP_GATEWAYS: u8 = 20;
const TAG_BEGIN_MERGE: u8 = 21;
const TAG_END_MERGE: u8 = 22;
const TAG_CANCEL_MERGE: u8 = 23;

fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_be_bytes());
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_be_bytes());
}

fn put_row(out: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>)) {
    let mut row = Vec::new();
    encode(&mut row);
    put_count(out, row.len());
    out.extend_from_slice(&row);
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    put_u32(out, u32::try_from(count).expect("a map is far smaller"));
}

/// `kind u8 | fields of the kind`; rows of the map each with their length, u32, before them.
pub(super) fn encode(command: &MetaCommand, out: &mut Vec<u8>) {
    match command {
        MetaCommand::Begin(map) => {
            out.push(TAG_BEGIN);
            put_u64(out, map.epoch);
            out.extend_from_slice(&map.slot_count.to_be_bytes());
            out.extend_from_slice(&map.shard_count.to_be_bytes());
            put_count(out, map.nodes.len());
            for (node, row) in &map.nodes {
                put_u64(out, *node);
                put_row(out, |out| row.encode(out));
            }
            put_count(out, map.shards.len());
            for (shard, row) in &map.shards {
                put_u32(out, shard.0);
                put_row(out, |out| row.encode(out));
            }
        }
        MetaCommand::PutNode(PutNode {
            node,
            row,
            log_batch,
        }) => {
            out.push(TAG_PUT_NODE);
            put_u64(out, *node);
            put_u64(out, *log_batch);
            put_row(out, |out| row.encode(out));
        }
        MetaCommand::ReportLogs(reports) => {
            out.push(TAG_REPORT_LOGS);
            put_count(out, reports.len());
            for report in reports {
                for number in [report.node, report.incarnation, report.log_batch] {
                    put_u64(out, number);
                }
            }
        }
        MetaCommand::SetStanding { node, standing } => {
            out.push(TAG_SET_STANDING);
            put_u64(out, *node);
            out.push(*standing as u8);
        }
        MetaCommand::RemoveNode { node } => {
            out.push(TAG_REMOVE_NODE);
            put_u64(out, *node);
        }
        MetaCommand::SetReplicas {
            shard,
            expect_epoch,
            replicas,
        } => {
            out.push(TAG_SET_REPLICAS);
            put_u32(out, shard.0);
            put_u64(out, *expect_epoch);
            put_replicas(replicas, out);
        }
        MetaCommand::BeginMove { .. }
        | MetaCommand::StepMove { .. }
        | MetaCommand::EndMove { .. }
        | MetaCommand::BeginSplit { .. }
        | MetaCommand::EndSplit { .. }
        | MetaCommand::BeginMerge { .. }
        | MetaCommand::EndMerge { .. }
        | MetaCommand::CancelMerge { .. } => encode_decision(command, out),
        MetaCommand::PutGateway(_)
        | MetaCommand::ForgetGateway { .. }
        | MetaCommand::SweepGateways { .. } => encode_gateway(command, out),
    }
}

/// Of slots that go elsewhere: moves, splits and merges.
fn encode_decision(command: &MetaCommand, out: &mut Vec<u8>) {
    match command {
        MetaCommand::BeginMove { slot, to } => {
            put_move(out, TAG_BEGIN_MOVE, *slot);
            put_u32(out, to.0);
        }
        MetaCommand::StepMove { slot, epoch, stage } => {
            put_move(out, TAG_STEP_MOVE, *slot);
            put_u64(out, *epoch);
            out.push(*stage as u8);
        }
        MetaCommand::EndMove { slot, epoch } => {
            put_move(out, TAG_END_MOVE, *slot);
            put_u64(out, *epoch);
        }
        MetaCommand::BeginSplit { shard, slots } => {
            out.push(TAG_BEGIN_SPLIT);
            put_u32(out, shard.0);
            put_slots(slots, out);
        }
        MetaCommand::EndSplit { shard, epoch } => {
            out.push(TAG_END_SPLIT);
            put_u32(out, shard.0);
            put_u64(out, *epoch);
        }
        MetaCommand::BeginMerge { shard, into } => {
            out.push(TAG_BEGIN_MERGE);
            put_u32(out, shard.0);
            put_u32(out, into.0);
        }
        MetaCommand::EndMerge { shard, epoch } => {
            out.push(TAG_END_MERGE);
            put_u32(out, shard.0);
            put_u64(out, *epoch);
        }
        MetaCommand::CancelMerge { shard, epoch } => {
            out.push(TAG_CANCEL_MERGE);
            put_u32(out, shard.0);
            put_u64(out, *epoch);
        }
        _ => unreachable!("encoded above"),
    }
}

/// Of the registry of gateways.
fn encode_gateway(command: &MetaCommand, out: &mut Vec<u8>) {
    let put_id = |out: &mut Vec<u8>, gateway: &GatewayId| {
        put_row(out, |out| {
            out.extend_from_slice(gateway.as_str().as_bytes())
        });
    };
    match command {
        MetaCommand::PutGateway(PutGateway {
            gateway,
            facts,
            draining,
        }) => {
            out.push(TAG_PUT_GATEWAY);
            put_id(out, gateway);
            out.push(u8::from(*draining));
            put_row(out, |out| facts.encode(out));
        }
        MetaCommand::ForgetGateway { gateway, run } => {
            out.push(TAG_FORGET_GATEWAY);
            put_id(out, gateway);
            // No run has the number 0.
            put_u64(out, run.unwrap_or(0));
        }
        MetaCommand::SweepGateways { missed } => {
            out.push(TAG_SWEEP_GATEWAYS);
            put_count(out, missed.len());
            for (gateway, run) in missed {
                put_id(out, gateway);
                put_u64(out, *run);
            }
        }
        _ => unreachable!("encoded above"),
    }
}

fn read_gateway(reader: &mut Reader<'_>) -> Result<GatewayId, Malformed> {
    let name = reader.sized()?;
    let gateway = GatewayId::new(reader.text(name)?);
    gateway.map_err(|_| reader.unknown(TAG_PUT_GATEWAY))
}

fn decode_gateway(kind: u8, reader: &mut Reader<'_>) -> Result<MetaCommand, Malformed> {
    match kind {
        TAG_PUT_GATEWAY => {
            let gateway = read_gateway(reader)?;
            let draining = match reader.u8()? {
                0 => false,
                1 => true,
                other => return Err(reader.unknown(other)),
            };
            let facts = GatewayFacts::decode(reader.sized()?)?;
            Ok(MetaCommand::PutGateway(PutGateway {
                gateway,
                facts,
                draining,
            }))
        }
        TAG_FORGET_GATEWAY => {
            let (gateway, run) = (read_gateway(reader)?, reader.u64()?);
            let run = (run != 0).then_some(run);
            Ok(MetaCommand::ForgetGateway { gateway, run })
        }
        TAG_SWEEP_GATEWAYS => {
            let mut missed = Vec::new();
            for _ in 0..reader.u32()? {
                missed.push((read_gateway(reader)?, reader.u64()?));
            }
            Ok(MetaCommand::SweepGateways { missed })
        }
        kind => Err(reader.unknown(kind)),
    }
}

fn put_move(out: &mut Vec<u8>, tag: u8, slot: SlotId) {
    out.push(tag);
    out.extend_from_slice(&slot.0.to_be_bytes());
}

fn decode_step(reader: &mut Reader<'_>) -> Result<MetaCommand, Malformed> {
    let (slot, epoch, stage) = (SlotId(reader.u16()?), reader.u64()?, reader.u8()?);
    let stage = MoveStage::from_u8(stage).ok_or_else(|| reader.unknown(stage))?;
    Ok(MetaCommand::StepMove { slot, epoch, stage })
}

pub(super) fn decode(reader: &mut Reader<'_>) -> Result<MetaCommand, Malformed> {
    let kind = reader.u8()?;
    match kind {
        TAG_BEGIN => decode_map(reader).map(MetaCommand::Begin),
        TAG_PUT_NODE => {
            let (node, log_batch) = (reader.u64()?, reader.u64()?);
            let row = MapNode::decode(reader.sized()?)?;
            Ok(MetaCommand::PutNode(PutNode {
                node,
                row,
                log_batch,
            }))
        }
        TAG_REPORT_LOGS => {
            let mut reports = Vec::new();
            for _ in 0..reader.u32()? {
                reports.push(LogReport {
                    node: reader.u64()?,
                    incarnation: reader.u64()?,
                    log_batch: reader.u64()?,
                });
            }
            Ok(MetaCommand::ReportLogs(reports))
        }
        TAG_SET_STANDING => {
            let (node, standing) = (reader.u64()?, reader.u8()?);
            let standing = Standing::from_u8(standing).ok_or_else(|| reader.unknown(standing))?;
            Ok(MetaCommand::SetStanding { node, standing })
        }
        TAG_REMOVE_NODE => Ok(MetaCommand::RemoveNode {
            node: reader.u64()?,
        }),
        TAG_SET_REPLICAS => Ok(MetaCommand::SetReplicas {
            shard: ShardId(reader.u32()?),
            expect_epoch: reader.u64()?,
            replicas: read_replicas(reader)?,
        }),
        TAG_BEGIN_MOVE => Ok(MetaCommand::BeginMove {
            slot: SlotId(reader.u16()?),
            to: ShardId(reader.u32()?),
        }),
        TAG_STEP_MOVE => decode_step(reader),
        TAG_END_MOVE => Ok(MetaCommand::EndMove {
            slot: SlotId(reader.u16()?),
            epoch: reader.u64()?,
        }),
        TAG_BEGIN_SPLIT => Ok(MetaCommand::BeginSplit {
            shard: ShardId(reader.u32()?),
            slots: read_slots(reader)?,
        }),
        TAG_END_SPLIT => Ok(MetaCommand::EndSplit {
            shard: ShardId(reader.u32()?),
            epoch: reader.u64()?,
        }),
        TAG_BEGIN_MERGE | TAG_END_MERGE | TAG_CANCEL_MERGE => decode_merge(kind, reader),
        kind => decode_gateway(kind, reader),
    }
}

fn decode_merge(kind: u8, reader: &mut Reader<'_>) -> Result<MetaCommand, Malformed> {
    let shard = ShardId(reader.u32()?);
    if kind == TAG_BEGIN_MERGE {
        let into = ShardId(reader.u32()?);
        return Ok(MetaCommand::BeginMerge { shard, into });
    }
    let epoch = reader.u64()?;
    Ok(match kind {
        TAG_END_MERGE => MetaCommand::EndMerge { shard, epoch },
        _ => MetaCommand::CancelMerge { shard, epoch },
    })
}

fn decode_map(reader: &mut Reader<'_>) -> Result<ClusterMap, Malformed> {
    let mut map = ClusterMap {
        epoch: reader.u64()?,
        slot_count: reader.u16()?,
        shard_count: reader.u16()?,
        ..ClusterMap::default()
    };
    for _ in 0..reader.u32()? {
        let node = reader.u64()?;
        map.nodes.insert(node, MapNode::decode(reader.sized()?)?);
    }
    for _ in 0..reader.u32()? {
        let shard = ShardId(reader.u32()?);
        map.shards.insert(shard, MapShard::decode(reader.sized()?)?);
    }
    Ok(map)
}
