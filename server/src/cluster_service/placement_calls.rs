//! The calls that move replicas and leaders, and those that show what the placement does.

use std::sync::Arc;

use mailbox_api::CallError;
use mailbox_api::v1::change_membership_request::Change;
use mailbox_api::v1::placement_step::Step as StepOut;
use mailbox_api::v1::{
    self, AddLearnerStep, ChangeMembershipRequest, MembershipResponse, MoveReplicaRequest,
    MoveReplicaResponse, PlacementStep, PlanStepsResponse, PromoteReplaceStep, RemoveReplicaStep,
    StepsResponse, TransferLeaderRequest, TransferLeaderStep,
};
use mailbox_engine::ShardId;
use mailbox_placement::Step;
use mailbox_raft::MembershipChange;

use crate::convert::invalid;
use crate::core::Core;
use crate::placement::{self, Entry};
use crate::status;

/// Changes the members of a shard that this node leads.
///
/// # Errors
/// See [`mailbox_raft::ChangeError`].
pub(crate) async fn change_here(
    core: &Core,
    call: ChangeMembershipRequest,
) -> Result<MembershipResponse, CallError> {
    let shard = core.shard(call.shard)?;
    core.require_leader(&shard)?;
    let change = match call.change {
        Some(Change::AddLearner(change)) => MembershipChange::AddLearner(change.node),
        Some(Change::RemoveLearner(change)) => MembershipChange::RemoveLearner(change.node),
        Some(Change::ChangeVoters(change)) => MembershipChange::Voters {
            add: change.add.into_iter().collect(),
            remove: change.remove.into_iter().collect(),
        },
        None => return Err(invalid("no change is named")),
    };
    let changed = shard.change_membership_from(call.from_index, change).await;
    changed.map_err(|error| status::change(call.shard, error))?;
    super::members(core, call.shard).await
}

/// Lets another voter lead a shard, from any node.
///
/// # Errors
/// See [`mailbox_raft::ChangeError`].
pub(crate) async fn transfer(core: &Core, call: TransferLeaderRequest) -> Result<(), CallError> {
    let named = core.named(call.shard)?;
    if let Some(shard) = core.node.shard(named)
        && core.require_leader(&shard).is_ok()
    {
        return transfer_here(core, call).await;
    }
    let asked = core.ask(named, async |address| {
        let request = core.own_call(call)?;
        core.peers.cluster(&address)?.transfer_leader(request).await
    });
    let done = asked.await.map(|_| ());
    done.map_err(|status| CallError::from_status(&status))
}

/// Lets another voter lead a shard that this node leads.
///
/// # Errors
/// See [`mailbox_raft::ChangeError`].
pub(super) async fn transfer_here(
    core: &Core,
    call: TransferLeaderRequest,
) -> Result<(), CallError> {
    let shard = core.shard(call.shard)?;
    core.require_leader(&shard)?;
    let moved = shard.transfer_leader(call.to).await;
    moved.map_err(|error| status::change(call.shard, error))
}

/// Begins a move, on the leader of the meta shard.
///
/// # Errors
/// Why it cannot be, or would not last.
pub(super) async fn move_here(
    core: &Arc<Core>,
    call: MoveReplicaRequest,
) -> Result<MoveReplicaResponse, CallError> {
    let shard = core.named(call.shard)?;
    let ends = (call.from, call.to);
    let epoch = placement::move_replica(core, shard, ends, call.dry_run).await?;
    Ok(MoveReplicaResponse { epoch })
}

/// What would be next, on the leader of the meta shard.
///
/// # Errors
/// Why the cluster could not be looked at.
pub(super) async fn plan_here(
    core: &Arc<Core>,
    call: v1::PlanStepsRequest,
) -> Result<PlanStepsResponse, CallError> {
    let (epoch, steps) = placement::plan_steps(core, &call.as_if_draining).await?;
    let steps = steps.iter().map(step_out).collect();
    Ok(PlanStepsResponse { epoch, steps })
}

/// What is under way and what was done, on the leader of the meta shard.
pub(super) fn steps_here(core: &Core) -> StepsResponse {
    let journal = core.placement.journal.read();
    StepsResponse {
        running: journal.running.iter().map(entry_out).collect(),
        done: journal.done.iter().map(entry_out).collect(),
        fault: journal.fault.unwrap_or_default(),
        following: journal.following.iter().map(|shard| shard.0).collect(),
    }
}

fn entry_out(entry: &Entry) -> PlacementStep {
    PlacementStep {
        fault: entry.fault.clone(),
        began_ms: entry.began_ms,
        ended_ms: entry.ended_ms,
        ..step_out(&entry.step)
    }
}

fn step_out(step: &Step) -> PlacementStep {
    let out = match *step {
        Step::AddLearner { node, replaces, .. } => StepOut::AddLearner(AddLearnerStep {
            node: node.0,
            replaces: replaces.map_or(0, |node| node.0),
        }),
        Step::PromoteReplace {
            learner, replaced, ..
        } => StepOut::PromoteReplace(PromoteReplaceStep {
            learner: learner.0,
            replaced: replaced.map_or(0, |node| node.0),
        }),
        Step::TransferLeader { from, to, .. } => StepOut::TransferLeader(TransferLeaderStep {
            from: from.0,
            to: to.0,
        }),
        Step::RemoveReplica { node, .. } => {
            StepOut::RemoveReplica(RemoveReplicaStep { node: node.0 })
        }
    };
    PlacementStep {
        step: Some(out),
        shard: ShardId(step.shard().0).0,
        epoch: step.epoch(),
        ..PlacementStep::default()
    }
}
