//! The calls that split shards: those of operators, and those between nodes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use mailbox_api::CallError;
use mailbox_api::v1::{
    self, ErrorCode, MembershipRequest, ShardSplitsResponse, SlotSpan, SplitShardRequest,
    SplitShardResponse, StepSplitRequest, StepSplitResponse,
};
use mailbox_engine::{
    Command, MetaCommand, Refusal, ReplicaRole, Reply, ShardId, ShardSplit, SlotId, SlotStanding,
    SplitScene, SplitShard, SplitVerdict, spans_of,
};
use mailbox_raft::Shard;

use super::{change, members};
use crate::convert::invalid;
use crate::core::Core;
use crate::meta_leader::leads;
use crate::shard_splits;
use crate::status;

/// How long a node may take to say how far it is.
const ASK_WAIT: Duration = Duration::from_secs(2);
/// A voter that is further behind has its part in the split late, and whoever waits for it waits long.
const LAG_MAX: u64 = 1_000;

/// Begins a split, or judges one, on the leader of the meta shard.
///
/// # Errors
/// Why it cannot be.
pub(crate) async fn split_here(
    core: &Arc<Core>,
    call: SplitShardRequest,
) -> Result<SplitShardResponse, CallError> {
    let shard = ShardId(call.shard);
    if call.slots.is_empty() && !call.dry_run {
        return Err(invalid("a split names the slots that go"));
    }
    let (scene, epoch) = scene(core).await?;
    let held = scene.slots(shard);
    let slots = match &call.slots[..] {
        [] => held[held.len() - held.len() / 2..]
            .iter()
            .copied()
            .collect(),
        spans => slots_in(spans)?,
    };
    let answer = |to: ShardId, epoch, done| SplitShardResponse {
        to: to.0,
        slots: spans_out(&spans_of(slots.iter().copied())),
        epoch,
        done,
    };
    match scene
        .judge(shard, &slots)
        .map_err(|no| refused(&no, shard))?
    {
        SplitVerdict::UnderWay { to, epoch } => return Ok(answer(to, epoch, false)),
        SplitVerdict::Apart(to) => return Ok(answer(to, epoch, true)),
        SplitVerdict::Begins(to) => {
            require_ready(core, shard).await?;
            if call.dry_run {
                return Ok(answer(to, epoch, false));
            }
        }
    }
    let command = MetaCommand::BeginSplit {
        shard,
        slots: slots.clone(),
    };
    change(core, command).await?;
    core.shard_splits.look();
    let (scene, epoch) = self::scene(core).await?;
    match scene
        .judge(shard, &slots)
        .map_err(|no| refused(&no, shard))?
    {
        SplitVerdict::UnderWay { to, epoch } => Ok(answer(to, epoch, false)),
        SplitVerdict::Apart(to) => Ok(answer(to, epoch, true)),
        SplitVerdict::Begins(_) => Err(status::unavailable("the split has not begun")),
    }
}

/// What splits and merges are judged by, as it is now, with the map's epoch.
///
/// # Errors
/// This node does not lead the meta shard, or there is no map yet.
pub(crate) async fn scene(core: &Core) -> Result<(SplitScene, u64), CallError> {
    let meta = core.shard(ShardId::META.0)?;
    core.barrier(&meta).await?;
    let read = |meta: &mailbox_engine::Shard| {
        let map = meta.cluster_map()?;
        let splits = (meta.shard_splits(), meta.shard_merges());
        Ok(map.map(|map| (map, meta.slot_moves(), splits)))
    };
    let read = core.read(&meta, read).await?;
    let (map, moves, (splits, merges)) =
        read.ok_or_else(|| status::unavailable("the cluster has no map yet"))?;
    let fault = |error| status::engine_fault(&error);
    let scene = SplitScene {
        shards: map.shards,
        moves: moves.map_err(fault)?,
        splits: splits.map_err(fault)?,
        merges: merges.map_err(fault)?,
    };
    Ok((scene, map.epoch))
}

/// A refusal of the meta shard, in the words of who asked for a split.
fn refused(refusal: &Refusal, shard: ShardId) -> CallError {
    match refusal {
        // Of a slot that is asked for in the wrong place, the caller would look elsewhere.
        Refusal::WrongShard { slot } => invalid(format!("slot {slot} is not in shard {shard}")),
        other => status::refusal(other),
    }
}

/// A split begins only while all that it needs is there: nothing stops it once it has begun.
async fn require_ready(core: &Core, shard: ShardId) -> Result<(), CallError> {
    let not_now = |words: String| CallError::new(ErrorCode::StaleEpoch, words);
    let found = members_of(core, shard).await?;
    if found.changing || !found.learners.is_empty() {
        return Err(status::refusal(&Refusal::ShardChanges { shard }));
    }
    let call = StepSplitRequest {
        shard: shard.0,
        ..StepSplitRequest::default()
    };
    let asked = found.voters.iter().map(async |node| {
        let said = tokio::time::timeout(ASK_WAIT, ask_node(core, *node, call.clone())).await;
        let said = said.unwrap_or_else(|_| Err(status::unavailable("no answer")));
        said.map_err(|error| not_now(format!("node {node} does not take part: {error}")))
    });
    require_known(core, &call).await?;
    let said: Vec<StepSplitResponse> = join_all(asked)
        .await
        .into_iter()
        .collect::<Result<_, _>>()?;
    let last = said.iter().map(|said| said.last_index).max().unwrap_or(0);
    for (node, said) in found.voters.iter().zip(said) {
        let lag = last.saturating_sub(said.applied_index);
        if lag > LAG_MAX {
            let words = format!("node {node} is {lag} entries behind in shard {shard}");
            return Err(not_now(words));
        }
    }
    Ok(())
}

/// A member of the meta shard that does not know splits would stop at the decision to make one.
async fn require_known(core: &Core, call: &StepSplitRequest) -> Result<(), CallError> {
    let meta = members_of(core, ShardId::META).await?;
    let call = StepSplitRequest {
        shard: ShardId::META.0,
        ..call.clone()
    };
    let asked = meta.voters.iter().chain(&meta.learners).map(async |node| {
        let said = tokio::time::timeout(ASK_WAIT, ask_node(core, *node, call.clone())).await;
        let said = said.unwrap_or_else(|_| Err(status::unavailable("no answer")));
        said.map_err(|error| {
            let words = format!("node {node}, of the meta shard, does not take part: {error}");
            CallError::new(ErrorCode::StaleEpoch, words)
        })
    });
    let said: Result<Vec<StepSplitResponse>, _> = join_all(asked).await.into_iter().collect();
    said.map(|_| ())
}

async fn members_of(core: &Core, shard: ShardId) -> Result<v1::MembershipResponse, CallError> {
    if leads(core, shard) {
        return members(core, shard.0).await;
    }
    let asked = core.ask(shard, async |address| {
        let mut request = core.own_call(MembershipRequest { shard: shard.0 })?;
        request.set_timeout(ASK_WAIT);
        core.peers.cluster(&address)?.membership(request).await
    });
    let answer = asked.await.map(tonic::Response::into_inner);
    answer.map_err(|status| CallError::from_status(&status))
}

/// The nodes that vote in a shard, by the map.
///
/// # Errors
/// There is no such shard in it.
pub(crate) fn voters(core: &Core, shard: ShardId) -> Result<Vec<u64>, CallError> {
    let view = core.maps.now();
    let row = view.cluster.shards.get(&shard);
    let row = row.ok_or_else(|| status::unavailable("the shard is not in the map"))?;
    let voters = row.replicas.iter();
    let voters = voters.filter(|held| held.role == ReplicaRole::Voter);
    Ok(voters.map(|held| held.node).collect())
}

/// The splits under way, on the leader of the meta shard.
///
/// # Errors
/// They cannot be read.
pub(super) async fn splits_here(core: &Core) -> Result<ShardSplitsResponse, CallError> {
    let splits = shard_splits::splits(core).await?;
    let splits = splits.iter().map(|(shard, row)| {
        let out = v1::ShardSplit {
            shard: shard.0,
            to: row.to.0,
            epoch: row.epoch,
            slots: spans_out(&row.slots),
            ..v1::ShardSplit::default()
        };
        let Some(note) = core.shard_splits.note_of(*shard, row) else {
            return out;
        };
        v1::ShardSplit {
            still_ms: super::slot_calls::millis(note.still()),
            failed_tries: note.failed_tries,
            done_nodes: note.done.into_iter().collect(),
            waits_for: note.waits_for,
            ..out
        }
    });
    Ok(ShardSplitsResponse {
        splits: splits.collect(),
        unsplit: core.auto_splits.unsplit(),
    })
}

/// What nodes are asked about a split.
pub(crate) fn step_out(shard: ShardId, row: &ShardSplit) -> StepSplitRequest {
    StepSplitRequest {
        shard: shard.0,
        to: row.to.0,
        epoch: row.epoch,
        slots: spans_out(&row.slots),
        ..StepSplitRequest::default()
    }
}

/// Asks a node, which may be this one.
///
/// # Errors
/// It has no replica of the shard, or is out of reach.
pub(crate) async fn ask_node(
    core: &Core,
    node: u64,
    call: StepSplitRequest,
) -> Result<StepSplitResponse, CallError> {
    if node == core.node_id {
        return step_here(core, call).await;
    }
    let view = core.maps.now();
    let place = view.cluster.nodes.get(&node);
    let place = place.ok_or_else(|| status::unavailable("it is not in the map"))?;
    let request = core.own_call(call)?;
    let mut client = core.peers.cluster(&place.address)?;
    let answer = client.step_split(request).await;
    let answer = answer.map(tonic::Response::into_inner);
    answer.map_err(|status| CallError::from_status(&status))
}

/// Has a shard that this node leads split, or says how far this node is with that.
///
/// # Errors
/// There is no replica of the shard here, or the refusal, or what became of the proposal.
pub(crate) async fn step_here(
    core: &Core,
    call: StepSplitRequest,
) -> Result<StepSplitResponse, CallError> {
    let (to, epoch) = (ShardId(call.to), call.epoch);
    let slots = slots_in(&call.slots)?;
    let shard = core.shard(call.shard)?;
    let some = slots.first().copied();
    if call.propose {
        core.require_leader(&shard)?;
        let command = SplitShard { to, epoch, slots };
        match core.propose(&shard, Command::SplitShard(command)).await? {
            Reply::ShardSplit { .. } => {}
            other => return Err(status::wrong_reply(&other)),
        }
    }
    let standings = shard.engine().applied().slots;
    let standing = some.and_then(|slot| standings.get(slot));
    let state = shard.status();
    let mut answer = StepSplitResponse {
        applied: standing == Some((epoch, SlotStanding::Gone { to })),
        applied_index: state.applied_index,
        last_index: state.last_index,
        ..StepSplitResponse::default()
    };
    if answer.applied && !call.propose {
        make_up_for_lost_part(core, &shard, to);
    }
    let child = core.node.shard(to).filter(|_| to != ShardId::META);
    if let Some(child) = child {
        answer.runs = some.is_some_and(|slot| child.engine().serves(slot));
        answer.leads = child.leadership().is_ready();
        if call.hasten && leads(core, shard.id()) {
            child.hasten_election();
        }
    }
    Ok(answer)
}

/// Where the parent came by a snapshot from behind the split, or the node had held the child before, no part of the
/// child is here: then an empty replica comes, which votes for whoever has the rows. Not before the split is
/// flushed: until then the part is on its way. Once the map names the child, whoever follows the map does it.
fn make_up_for_lost_part(core: &Core, parent: &Shard, child: ShardId) {
    let gone = |(_, _, standing)| standing == SlotStanding::Gone { to: child };
    if core.node.shard(child).is_some()
        || core.maps.now().cluster.shards.contains_key(&child)
        || !parent.engine().flushed_slots().iter().any(gone)
    {
        return;
    }
    let Some(turn) = core.shard_splits.host(child) else {
        return;
    };
    let node = Arc::clone(&core.node);
    tokio::spawn(async move {
        // Nobody waits for it: this node may lead the parent, and has told already how far that is.
        if let Err(error) = node.host(child).await {
            let error = status::with_causes(&error);
            tracing::warn!(shard = child.0, error, "a split's shard is not hosted");
        }
        drop(turn);
    });
}

pub(crate) fn spans_out(spans: &[(SlotId, SlotId)]) -> Vec<SlotSpan> {
    let span = |(first, last): &(SlotId, SlotId)| SlotSpan {
        first: first.0.into(),
        last: last.0.into(),
    };
    spans.iter().map(span).collect()
}

fn slots_in(spans: &[SlotSpan]) -> Result<BTreeSet<SlotId>, CallError> {
    let mut slots = BTreeSet::new();
    for span in spans {
        let (first, last) = (
            super::slot_calls::slot(span.first)?,
            super::slot_calls::slot(span.last)?,
        );
        if last < first {
            return Err(invalid(format!("slots {first}-{last} are none")));
        }
        slots.extend((first.0..=last.0).map(SlotId));
    }
    Ok(slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_read_as_written() {
        let slots: BTreeSet<SlotId> = [0, 1, 5, 9, 10, 65_535].map(SlotId).into();
        let spans = spans_out(&spans_of(slots.iter().copied()));
        assert_eq!(spans.len(), 4);
        assert_eq!(slots_in(&spans), Ok(slots));
        for (first, last) in [(5, 4), (0, 65_536), (65_536, 65_536)] {
            assert!(slots_in(&[SlotSpan { first, last }]).is_err());
        }
    }

    #[test]
    fn a_slot_of_another_shard_is_not_looked_for_elsewhere() {
        let refusal = Refusal::WrongShard { slot: SlotId(5) };
        let error = refused(&refusal, ShardId(2));
        assert!(!error.is_retryable());
        assert_eq!(error.0.message, "slot 5 is not in shard 2");
    }
}
