//! Brings replicas and leaders to where they should be.
//!
//! Runs on every node, and does something on the one that leads the meta shard:
//!
//! ```text
//!  map, statuses of all nodes ──▶ State ──▶ mailbox_placement::plan ──▶ steps, several shards at once
//!        ▲                                                                │
//!        └──── map ◀── follow the shards' own memberships ◀── members ◀───┘
//! ```
//!
//! Nothing is kept between two rounds but what nodes were last seen up, so whoever leads the meta shard next
//! goes on where this one ended. That holds because of the order in which a step acts:
//!
//! - A learner is written into the map first (its node makes an empty replica) and then told to the shard.
//! - Whoever leaves, leaves the shard first and the map then (its node drops the replica).
//!
//! So after a crash between the two, the map either names a learner that the shard does not know, which is told
//! to it again, or it names what has left the shard, and follows it. Each change of a shard's members says from
//! which membership it was decided, and each change of the map from which epoch, so a call that comes late
//! changes nothing.
//!
//! Start reading at `executor.rs`; `effects.rs` is everything it can do to a cluster, `live.rs` does it to a
//! real one.

mod brake;
mod effects;
mod executor;
mod follow;
mod journal;
mod live;
mod look;
mod step;

use std::collections::BTreeMap;
use std::sync::Arc;

use mailbox_api::CallError;
use mailbox_engine::{MapReplica, ReplicaRole, ShardId};
use mailbox_placement::{Goals, Loads, Step, plan};
use parking_lot::Mutex;

use crate::config::PlacementConfig;
use crate::convert::invalid;
use crate::core::Core;
use crate::meta_leader::while_leading;
use crate::metrics::PlacementMetrics;
use crate::status;

use effects::Effects as _;
use executor::Executor;
pub(crate) use journal::{Entry, Journal};
use live::Live;
use look::{Liveness, Sight, look};

/// What the placement of one node wants and has done.
pub(crate) struct Placement {
    pub(crate) journal: Arc<Journal>,
    goals: Goals,
    automatic: bool,
    pause_ms: u64,
    liveness: Arc<Mutex<Liveness>>,
    /// What the executor saw last, if it runs here.
    seen: Arc<Mutex<Option<Arc<Sight>>>>,
}

impl Placement {
    pub(crate) fn new(config: &PlacementConfig, metrics: PlacementMetrics) -> Self {
        Self {
            journal: Arc::new(Journal::new(metrics)),
            goals: config.goals(),
            automatic: config.enabled,
            pause_ms: config.pause_ms,
            liveness: Arc::default(),
            seen: Arc::default(),
        }
    }
}

/// Executes whenever this node leads the meta shard, until it stops.
pub(crate) async fn run(core: Arc<Core>) {
    let ended = || {
        core.placement.journal.forget_running();
        *core.placement.seen.lock() = None;
        tracing::info!("another node places replicas and leaders");
    };
    while_leading(&core, || execute(&core), ended).await;
}

/// From gaining the meta shard on.
async fn execute(core: &Arc<Core>) {
    let placement = &core.placement;
    tracing::info!("this node places replicas and leaders");
    *placement.liveness.lock() = Liveness::default();
    let executor = Executor {
        effects: Arc::new(Live::new(Arc::clone(core))),
        goals: placement.goals.clone(),
        automatic: placement.automatic,
        pause_ms: placement.pause_ms,
        journal: Arc::clone(&placement.journal),
        liveness: Arc::clone(&placement.liveness),
        brake: Arc::default(),
        seen: Arc::clone(&placement.seen),
    };
    executor.run().await;
}

/// What the executor saw is good for questions for so long.
const SEEN_MS_MAX: u64 = 5_000;

/// What the cluster looks like now, for a question: nothing is remembered of it. While a node hangs, a look takes
/// longer than who asks would wait, so what the executor saw a moment ago will do, if the map is still the same.
async fn seen(core: &Arc<Core>) -> Result<Sight, CallError> {
    let live = Live::new(Arc::clone(core));
    let last = core.placement.seen.lock().clone();
    if let Some(last) = last {
        let age_ms = live.now_ms().saturating_sub(last.state.now_ms);
        if age_ms <= SEEN_MS_MAX && last.map.epoch == live.map().await?.epoch {
            return Ok((*last).clone());
        }
    }
    let mut liveness = core.placement.liveness.lock().clone();
    look(&live, &mut liveness, &core.placement.journal.busy()).await
}

/// What the shards have, as it was seen a moment ago, and who leads them.
///
/// # Errors
/// Why the cluster could not be looked at.
pub(crate) async fn loads(core: &Arc<Core>) -> Result<(Loads, BTreeMap<ShardId, u64>), CallError> {
    let sight = seen(core).await?;
    let shards = sight.state.shards.iter();
    let leaders = shards.filter_map(|shard| Some((ShardId(shard.id.0), shard.leader?.0)));
    Ok((sight.loads(), leaders.collect()))
}

/// The steps that would be next, with the epoch of the map; as if some nodes were being drained.
///
/// # Errors
/// Why the cluster could not be looked at.
pub(crate) async fn plan_steps(
    core: &Arc<Core>,
    as_if_draining: &[u64],
) -> Result<(u64, Vec<Step>), CallError> {
    let mut sight = seen(core).await?;
    for id in as_if_draining {
        let mut nodes = sight.state.nodes.iter_mut();
        let node = nodes.find(|node| node.id.0 == *id);
        let node = node.ok_or_else(|| invalid(format!("there is no node {id}")))?;
        node.standing = mailbox_placement::Standing::Draining;
    }
    let steps = plan(&sight.state, &core.placement.goals);
    Ok((sight.map.epoch, steps))
}

/// Begins the move of a replica: writes the learner into the map, which the executor then tells to the shard and
/// promotes. Refused if the placement would not carry it on.
///
/// # Errors
/// Why it cannot be, would not last, or could not be written.
pub(crate) async fn move_replica(
    core: &Arc<Core>,
    shard: ShardId,
    (from, to): (u64, u64),
    dry_run: bool,
) -> Result<u64, CallError> {
    let mut sight = seen(core).await?;
    let row = sight.map.shards.get(&shard);
    let row = row.ok_or_else(|| invalid(format!("there is no shard {shard}")))?;
    let (epoch, mut replicas) = (row.epoch, row.replicas.clone());
    let learner = MapReplica {
        node: to,
        role: ReplicaRole::Learner {
            replaces: Some(from),
        },
    };
    if replicas.contains(&learner) {
        // A caller that has not heard the answer asks again.
        return Ok(sight.map.epoch);
    }
    sight
        .judge_move(shard, (from, to), &core.placement.goals)
        .map_err(|refusal| match refusal {
            look::NoMove::Now(words) => status::unavailable(words),
            look::NoMove::Never(words) => invalid(words),
        })?;
    if dry_run {
        return Ok(sight.map.epoch);
    }
    replicas.push(learner);
    tracing::info!(shard = shard.0, from, to, "an operator moves a replica");
    let live = Live::new(Arc::clone(core));
    live.set_replicas(shard, epoch, replicas).await
}

#[cfg(test)]
mod tests;
