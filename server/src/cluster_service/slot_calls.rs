//! The calls that move slots between shards: those of operators, and those between nodes.

use std::sync::Arc;
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::{
    self, ErrorCode, MapChange, MoveSlotRequest, MoveSlotResponse, SlotMovesResponse, SlotStands,
    SlotStep, StageSlotRequest, StageSlotResponse, StepSlotRequest, StepSlotResponse,
};
use mailbox_engine::{
    Command, MessageId, MetaCommand, MoveSlot, MoveStage, Reply, ShardId, SlotId, SlotMove,
    SlotStanding,
};
use mailbox_raft::{StageOrder, StageState};

use super::change;
use crate::convert::invalid;
use crate::core::Core;
use crate::status;

/// How long one call waits for rows to be staged. They go on being staged afterwards.
const STAGE_WAIT: Duration = Duration::from_secs(1);

pub(crate) fn slot(number: u32) -> Result<SlotId, CallError> {
    let slot = u16::try_from(number).map(SlotId);
    slot.map_err(|_| invalid(format!("slot {number} is above 65,535")))
}

/// Begins a move, on the leader of the meta shard.
///
/// # Errors
/// Why it cannot be.
pub(super) async fn move_here(
    core: &Arc<Core>,
    call: MoveSlotRequest,
) -> Result<MoveSlotResponse, CallError> {
    let (slot, to) = (slot(call.slot)?, ShardId(call.to));
    let meta = core.shard(ShardId::META.0)?;
    core.barrier(&meta).await?;
    let map = core.read(&meta, mailbox_engine::Shard::cluster_map).await?;
    let map = map.ok_or_else(|| status::unavailable("the cluster has no map yet"))?;
    if slot.0 >= map.slot_count {
        let count = map.slot_count;
        return Err(invalid(format!("the cluster has slots 0 to {}", count - 1)));
    }
    if to == ShardId::META || !map.shards.contains_key(&to) {
        let words = format!("there is no shard {to} that holds slots");
        return Err(CallError::new(ErrorCode::UnknownShard, words));
    }
    let holds = |row: &mailbox_engine::MapShard| {
        let mut spans = row.slots.iter();
        spans.any(|(first, last)| (*first..=*last).contains(&slot))
    };
    let from = map.shards.iter().find(|(_, row)| holds(row));
    let from = from.map_or(ShardId::META, |(shard, _)| *shard);
    if call.dry_run {
        let moves = core.read(&meta, mailbox_engine::Shard::slot_moves).await?;
        if let Some((_, found)) = moves.iter().find(|(moving, _)| *moving == slot) {
            let words = format!("slot {slot} is on its way to shard {}", found.to);
            return Err(CallError::new(ErrorCode::StaleEpoch, words));
        }
        let (from, epoch) = (from.0, map.epoch);
        return Ok(MoveSlotResponse { from, epoch });
    }
    let epoch = change(core, MetaCommand::BeginMove { slot, to }).await?;
    core.slot_moves.look();
    let from = from.0;
    Ok(MoveSlotResponse { from, epoch })
}

/// Gives a move up, on the leader of the meta shard.
///
/// # Errors
/// There is none, or it is past that.
pub(super) async fn abort_here(core: &Arc<Core>, number: u32) -> Result<MapChange, CallError> {
    let slot = slot(number)?;
    let meta = core.shard(ShardId::META.0)?;
    core.barrier(&meta).await?;
    let moves = core.read(&meta, mailbox_engine::Shard::slot_moves).await?;
    let Some((_, found)) = moves.iter().find(|(moving, _)| *moving == slot) else {
        let words = format!("slot {slot} is on no move");
        return Err(CallError::new(ErrorCode::StaleEpoch, words));
    };
    let (epoch, stage) = (found.epoch, MoveStage::Aborting);
    let epoch = change(core, MetaCommand::StepMove { slot, epoch, stage }).await?;
    core.slot_moves.look();
    Ok(MapChange { epoch })
}

/// The moves under way, on the leader of the meta shard.
///
/// # Errors
/// They cannot be read.
pub(super) async fn moves_here(core: &Arc<Core>) -> Result<SlotMovesResponse, CallError> {
    let meta = core.shard(ShardId::META.0)?;
    core.barrier(&meta).await?;
    let moves = core.read(&meta, mailbox_engine::Shard::slot_moves).await?;
    let moves = moves.iter().map(|(slot, row)| {
        let Some(note) = core.slot_moves.note_of(*slot, row) else {
            return move_out(*slot, row);
        };
        v1::SlotMove {
            still_ms: millis(note.still()),
            failed_tries: note.failed_tries,
            done_nodes: note.done.into_iter().collect(),
            waits_for: note.waits_for,
            ..move_out(*slot, row)
        }
    });
    Ok(SlotMovesResponse {
        moves: moves.collect(),
    })
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn move_out(slot: SlotId, row: &SlotMove) -> v1::SlotMove {
    let stage = match row.stage {
        MoveStage::Copying => v1::SlotMoveStage::Copying,
        MoveStage::Freezing => v1::SlotMoveStage::Freezing,
        MoveStage::Dropping => v1::SlotMoveStage::Dropping,
        MoveStage::Aborting => v1::SlotMoveStage::Aborting,
    };
    v1::SlotMove {
        slot: slot.0.into(),
        epoch: row.epoch,
        from: row.from.0,
        to: row.to.0,
        stage: stage.into(),
        ..v1::SlotMove::default()
    }
}

/// The protocol's form of a step.
pub(crate) fn step_out(shard: ShardId, call: &MoveSlot) -> StepSlotRequest {
    let mut out = StepSlotRequest {
        shard: shard.0,
        slot: call.slot().0.into(),
        epoch: call.epoch(),
        ..StepSlotRequest::default()
    };
    let step = match *call {
        MoveSlot::Freeze { to, .. } => {
            out.other = to.0;
            SlotStep::Freeze
        }
        MoveSlot::Drop { .. } => SlotStep::Drop,
        MoveSlot::BeginImport { from, .. } => {
            out.other = from.0;
            SlotStep::BeginImport
        }
        MoveSlot::AbortImport { from, .. } => {
            out.other = from.0;
            SlotStep::AbortImport
        }
        MoveSlot::CommitImport {
            digest,
            time_ms,
            last_message_id,
            ..
        } => {
            out.digest = digest.to_be_bytes().to_vec().into();
            (out.time_ms, out.last_message_id) = (time_ms, last_message_id.0);
            SlotStep::CommitImport
        }
        // Nothing is frozen before the move is past giving up.
        MoveSlot::Unfreeze { .. } => SlotStep::Unspecified,
    };
    out.step = step.into();
    out
}

fn step_in(call: &StepSlotRequest) -> Result<MoveSlot, CallError> {
    let (slot, epoch, other) = (slot(call.slot)?, call.epoch, ShardId(call.other));
    Ok(match call.step() {
        SlotStep::Freeze => MoveSlot::Freeze {
            slot,
            epoch,
            to: other,
        },
        SlotStep::Drop => MoveSlot::Drop { slot, epoch },
        SlotStep::BeginImport => MoveSlot::BeginImport {
            slot,
            epoch,
            from: other,
        },
        SlotStep::AbortImport => MoveSlot::AbortImport {
            slot,
            epoch,
            from: other,
        },
        SlotStep::CommitImport => MoveSlot::CommitImport {
            slot,
            epoch,
            digest: digest_in(&call.digest).ok_or_else(|| invalid("a digest has 16 bytes"))?,
            time_ms: call.time_ms,
            last_message_id: MessageId(call.last_message_id),
        },
        SlotStep::Unspecified => return Err(invalid(format!("step {} is not known", call.step))),
    })
}

/// A digest, if it is one.
pub(crate) fn digest_in(bytes: &[u8]) -> Option<u128> {
    bytes.try_into().ok().map(u128::from_be_bytes)
}

fn stands(standing: SlotStanding) -> SlotStands {
    match standing {
        SlotStanding::Held => SlotStands::Held,
        SlotStanding::Frozen { .. } => SlotStands::Frozen,
        SlotStanding::Gone { .. } => SlotStands::Gone,
        SlotStanding::Importing { .. } => SlotStands::Importing,
    }
}

/// Takes a step in a shard that this node leads.
///
/// # Errors
/// The refusal, or what became of the proposal.
pub(crate) async fn step_here(
    core: &Core,
    call: StepSlotRequest,
) -> Result<StepSlotResponse, CallError> {
    let step = step_in(&call)?;
    let shard = core.shard(call.shard)?;
    core.require_leader(&shard)?;
    match core.propose(&shard, Command::MoveSlot(step)).await? {
        Reply::SlotMoved {
            epoch, standing, ..
        } => {
            let (time_ms, last_message_id) = match standing {
                SlotStanding::Frozen {
                    time_ms,
                    last_message_id,
                    ..
                } => (time_ms, last_message_id.0),
                _ => (0, 0),
            };
            Ok(StepSlotResponse {
                epoch,
                stands: stands(standing).into(),
                time_ms,
                last_message_id,
            })
        }
        other => Err(status::wrong_reply(&other)),
    }
}

/// Has a replica here stage rows, or settle what has moved in.
///
/// # Errors
/// There is no such replica here, or it failed.
pub(crate) async fn stage_here(
    core: &Core,
    call: StageSlotRequest,
) -> Result<StageSlotResponse, CallError> {
    let (slot, epoch) = (slot(call.slot)?, call.epoch);
    let shard = core.shard(call.shard)?;
    let mut answer = StageSlotResponse::default();
    if call.settle {
        let settled = shard.settle_import(slot, epoch).await;
        answer.settled =
            settled.map_err(|error| status::unavailable(status::with_causes(&error)))?;
    } else {
        let order = StageOrder {
            shard: shard.id(),
            slot,
            epoch,
            from: ShardId(call.from),
            node: call.node,
            frozen: call.frozen,
        };
        match core.node.stage_slot(order, STAGE_WAIT).await {
            StageState::Running => {}
            StageState::Staged { digest } => answer.digest = digest.to_be_bytes().to_vec().into(),
            StageState::Failed { reason } => answer.fault = reason,
        }
    }
    if let Some((epoch, standing)) = shard.engine().applied().slots.get(slot) {
        (answer.epoch, answer.stands) = (epoch, stands(standing).into());
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_as_written() {
        let (slot, epoch, shard) = (SlotId(5), 9, ShardId(2));
        let steps = [
            MoveSlot::Freeze {
                slot,
                epoch,
                to: ShardId(3),
            },
            MoveSlot::Drop { slot, epoch },
            MoveSlot::BeginImport {
                slot,
                epoch,
                from: ShardId(3),
            },
            MoveSlot::AbortImport {
                slot,
                epoch,
                from: ShardId(3),
            },
            MoveSlot::CommitImport {
                slot,
                epoch,
                digest: u128::MAX - 3,
                time_ms: 4,
                last_message_id: MessageId(6),
            },
        ];
        for step in steps {
            assert_eq!(step_in(&step_out(shard, &step)), Ok(step));
        }
        let unfreeze = MoveSlot::Unfreeze { slot, epoch };
        assert!(step_in(&step_out(shard, &unfreeze)).is_err());
    }
}
