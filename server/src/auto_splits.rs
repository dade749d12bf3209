//! Has shards split that store too much, or have too much written to them; off by default.
//!
//! Runs on every node where a limit is set, and does something on the one that leads the meta shard: it looks at all
//! shards every so often, by what the placement saw of them last, and lets `mailbox_placement` judge
//! (`placement/src/split.rs`). Of the one that is to be split it asks the leader what every slot has, and then begins
//! the split as an operator's call would, with all that is checked there: `shard_splits.rs` carries it on, and the
//! placement evens out afterwards.
//!
//! What was seen is in memory only. Whoever leads the meta shard next looks anew, and splits the later for that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::{
    NoSplit, SlotLoad, SplitShardRequest, StatusRequest, StatusResponse, UnsplitShard,
};
use mailbox_engine::{ShardId, SlotId, spans_of};
use mailbox_placement::{
    self as placement, Hindrance, Load, Measure, OverLimit, SPLIT_LOOKS, SplitGoals, SplitWatch,
};
use parking_lot::Mutex;

use crate::admin_service;
use crate::cluster_service::split_calls;
use crate::config::PlacementConfig;
use crate::core::Core;
use crate::meta_leader::while_leading;
use crate::metrics::AutoSplitMetrics;
use crate::placement::loads;
use crate::status;

/// How long a shard's leader may take to say what every slot has.
const ASK_WAIT: Duration = Duration::from_secs(10);

/// What one node wants of shards, and has seen that cannot be had.
pub(crate) struct AutoSplits {
    goals: SplitGoals,
    metrics: AutoSplitMetrics,
    /// One of each shard at most.
    unsplit: Mutex<Vec<UnsplitShard>>,
}

impl AutoSplits {
    pub(crate) fn new(config: &PlacementConfig, metrics: AutoSplitMetrics) -> Self {
        Self {
            goals: config.split_goals(),
            metrics,
            unsplit: Mutex::default(),
        }
    }

    /// Shards over a limit that cannot be split, as of the last look.
    pub(crate) fn unsplit(&self) -> Vec<UnsplitShard> {
        self.unsplit.lock().clone()
    }

    /// Keeps what was seen of these; says what is new of it, once.
    fn note_unsplit(&self, now: Vec<UnsplitShard>) {
        self.metrics.set_unsplit(now.len());
        let before = std::mem::replace(&mut *self.unsplit.lock(), now.clone());
        let is_known = |found: &UnsplitShard| {
            let mut before = before.iter();
            before.any(|known| (known.shard, known.why) == (found.shard, found.why))
        };
        for found in now.iter().filter(|found| !is_known(found)) {
            let UnsplitShard {
                shard, limit, has, ..
            } = *found;
            let option = found.option.as_str();
            match found.why() {
                NoSplit::ShardsMax => tracing::warn!(
                    shard,
                    has,
                    limit,
                    option,
                    shards_max = found.shards_max,
                    "a shard is over a limit and not split: there are placement.shards_max shards"
                ),
                NoSplit::OneSlot | NoSplit::Unspecified => tracing::warn!(
                    shard,
                    has,
                    limit,
                    option,
                    "a shard is over a limit and cannot be split further: it has one slot"
                ),
            }
        }
    }
}

/// Splits whenever this node leads the meta shard, until it stops.
pub(crate) async fn run(core: Arc<Core>) {
    let goals = &core.auto_splits.goals;
    if goals.are_off() {
        return;
    }
    let pause = Duration::from_millis(goals.pause_ms) / SPLIT_LOOKS;
    let looking = || {
        let core = Arc::clone(&core);
        async move {
            let mut watch = SplitWatch::default();
            loop {
                tokio::time::sleep(pause).await;
                if let Err(error) = look(&core, &mut watch).await {
                    tracing::debug!(%error, "the shards' sizes cannot be looked at");
                }
            }
        }
    };
    let ended = || core.auto_splits.note_unsplit(Vec::new());
    while_leading(&core, looking, ended).await;
}

/// One look at all shards, and the split that is due, if one is.
async fn look(core: &Arc<Core>, watch: &mut SplitWatch) -> Result<(), CallError> {
    let AutoSplits { goals, metrics, .. } = &core.auto_splits;
    let (mut seen, leaders) = loads(core).await?;
    let (scene, _) = split_calls::scene(core).await?;
    seen.splitting = !scene.splits.is_empty();
    for shard in &mut seen.shards {
        let mut moves = scene.moves.iter();
        shard.busy |= moves.any(|(_, row)| [row.from.0, row.to.0].contains(&shard.id.0));
        let mut merges = scene.merges.iter().filter(|(_, row)| row.is_moving());
        shard.busy |= merges.any(|(from, row)| [from.0, row.into.0].contains(&shard.id.0));
    }
    let verdict = watch.look(&seen, goals);
    let unsplit = verdict.over.iter();
    let unsplit = unsplit.filter_map(|over| unsplit_out(over, goals));
    core.auto_splits.note_unsplit(unsplit.collect());
    metrics.looks.inc();
    let Some(over) = verdict.split else {
        return Ok(());
    };
    match split(core, &over, &leaders).await {
        Ok(true) => {
            metrics.begun.inc();
            watch.began(over.shard, seen.now_ms);
        }
        Ok(false) => watch.put_off(over.shard),
        Err(error) => {
            metrics.put_off.inc();
            watch.put_off(over.shard);
            let (shard, reason) = (over.shard.0, error.to_string());
            tracing::info!(
                shard,
                reason,
                "a shard is over a limit and cannot split now"
            );
        }
    }
    Ok(())
}

/// Begins a split. False: the shard is not over the limit any more.
async fn split(
    core: &Arc<Core>,
    over: &OverLimit,
    leaders: &BTreeMap<ShardId, u64>,
) -> Result<bool, CallError> {
    let (shard, goals) = (ShardId(over.shard.0), &core.auto_splits.goals);
    let leader = leaders.get(&shard).copied();
    let leader = leader.ok_or_else(|| status::unavailable("nobody leads the shard"))?;
    let asked = tokio::time::timeout(ASK_WAIT, slots_by(core, leader, shard)).await;
    let slots = asked.map_err(|_| status::unavailable(format!("no answer of node {leader}")))??;
    let Some(gone) = placement::cut(&slots, over.measure, goals) else {
        return Ok(false);
    };
    let slots = spans_of(gone.iter().map(|slot| SlotId(slot.slot)));
    let call = SplitShardRequest {
        shard: shard.0,
        slots: split_calls::spans_out(&slots),
        dry_run: false,
    };
    let begun = split_calls::split_here(core, call).await?;
    tracing::info!(
        shard = shard.0,
        to = begun.to,
        stored_bytes = over.load.stored_bytes,
        writes_per_s = over.load.writes_per_s,
        limit = goals.limit(over.measure),
        option = option(over.measure),
        "a shard is over a limit and splits by itself"
    );
    Ok(true)
}

/// What every slot of a shard has, by the node that leads it.
async fn slots_by(
    core: &Arc<Core>,
    node: u64,
    shard: ShardId,
) -> Result<Vec<placement::SlotLoad>, CallError> {
    let slots = if node == core.node_id {
        admin_service::slots_of(core, shard).await?
    } else {
        let view = core.maps.now();
        let place = view.cluster.nodes.get(&node);
        let place = place.ok_or_else(|| status::unavailable("its leader is not in the map"))?;
        let request = core.own_call(StatusRequest {
            slots_of: shard.0,
            ..StatusRequest::default()
        })?;
        let answer = core.peers.admin(&place.address)?.status(request).await;
        let answer = answer.map_err(|status| CallError::from_status(&status))?;
        of_shard(answer.into_inner(), shard)
    };
    let mut slots = slots
        .into_iter()
        .map(slot_in)
        .collect::<Result<Vec<_>, _>>()?;
    slots.sort_by_key(|slot| slot.slot);
    Ok(slots)
}

fn of_shard(answer: StatusResponse, shard: ShardId) -> Vec<SlotLoad> {
    let mut shards = answer.shards.into_iter();
    let found = shards.find(|found| found.shard == shard.0);
    found.map_or_else(Vec::new, |found| found.slots)
}

fn slot_in(slot: SlotLoad) -> Result<placement::SlotLoad, CallError> {
    let wrong = |_| status::unavailable(format!("there is no slot {}", slot.slot));
    Ok(placement::SlotLoad {
        slot: u16::try_from(slot.slot).map_err(wrong)?,
        load: Load {
            stored_bytes: slot.stored_bytes,
            writes_per_s: slot.writes_per_s,
        },
    })
}

/// As operators are told of it, if something hinders its split.
fn unsplit_out(over: &OverLimit, goals: &SplitGoals) -> Option<UnsplitShard> {
    let why = match over.hindrance? {
        Hindrance::OneSlot => NoSplit::OneSlot,
        Hindrance::ShardsMax => NoSplit::ShardsMax,
    };
    Some(UnsplitShard {
        shard: over.shard.0,
        why: why.into(),
        option: option(over.measure).to_owned(),
        limit: goals.limit(over.measure).unwrap_or(0),
        has: match over.measure {
            Measure::Bytes => over.load.stored_bytes,
            Measure::Writes => over.load.writes_per_s.ceil() as u64,
        },
        shards_max: u32::try_from(goals.shards_max).unwrap_or(u32::MAX),
    })
}

fn option(measure: Measure) -> &'static str {
    match measure {
        Measure::Bytes => "placement.split_bytes",
        Measure::Writes => "placement.split_writes_per_second",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(shard: u32, measure: Measure, hindrance: Option<Hindrance>) -> OverLimit {
        OverLimit {
            shard: placement::ShardId(shard),
            measure,
            load: Load {
                stored_bytes: 2_000_000,
                writes_per_s: 10.5,
            },
            hindrance,
        }
    }

    #[test]
    fn what_hinders_a_split_is_told_with_its_limit() {
        let config = PlacementConfig {
            split_bytes: crate::config::ByteSize::mib(1),
            split_writes_per_second: 10,
            shards_max: 7,
            ..PlacementConfig::default()
        };
        let splits = AutoSplits::new(&config, AutoSplitMetrics::default());
        let out = |over: &OverLimit| unsplit_out(over, &splits.goals);
        assert_eq!(out(&over(1, Measure::Bytes, None)), None);
        let one = out(&over(1, Measure::Bytes, Some(Hindrance::OneSlot))).unwrap();
        assert_eq!((one.shard, one.why()), (1, NoSplit::OneSlot));
        assert_eq!(one.option, "placement.split_bytes");
        assert_eq!((one.limit, one.has), (1 << 20, 2_000_000));
        let full = out(&over(2, Measure::Writes, Some(Hindrance::ShardsMax))).unwrap();
        assert_eq!((full.why(), full.shards_max), (NoSplit::ShardsMax, 7));
        assert_eq!(full.option, "placement.split_writes_per_second");
        assert_eq!((full.limit, full.has), (10, 11));
        splits.note_unsplit(vec![one, full]);
        assert_eq!(splits.unsplit().len(), 2);
        splits.note_unsplit(Vec::new());
        assert_eq!(splits.unsplit(), []);
    }

    #[test]
    fn a_slot_that_cannot_be_is_refused() {
        let slot = |slot| SlotLoad {
            slot,
            stored_bytes: 5,
            writes_per_s: 0.5,
        };
        let load = Load {
            stored_bytes: 5,
            writes_per_s: 0.5,
        };
        let slot_load = placement::SlotLoad { slot: 9, load };
        assert_eq!(slot_in(slot(9)), Ok(slot_load));
        assert!(slot_in(slot(65_536)).is_err());
    }
}
