//! Carries merges of shards on.
//!
//! Runs on every node, and does something on the one that leads the meta shard, where a row says of each merge that it
//! has begun (`engine/src/shard_merges.rs`). It only begins moves of slots, some at a time, and leaves them to those
//! who carry moves on (`slot_moves.rs`). When no slot is left and no move stands, every replica of the destination has
//! what it needs, and the shard is retired. Nothing is kept here that must last: whoever leads the meta shard next
//! looks at the same rows.
//!
//! ```text
//!  1  meta: BeginMove of the shard's slots, some at a time
//!  2  they move                                                 (slot_moves.rs)
//!  3  meta: EndMerge, once nothing is left                      the shard is in no map any more
//!  4  every node drops its replica                              (cluster_map/hosting.rs)
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_engine::{MetaCommand, ShardId, ShardMerge, SlotId, SlotMove, SplitScene};
use tokio::sync::Notify;

use crate::cluster_service::change;
use crate::cluster_service::split_calls::scene;
use crate::core::Core;
use crate::meta_leader::while_leading;
use crate::metrics::ShardMergeMetrics;
use crate::notes::{Note, Notes};

/// Moves of one merge that stand at once. Those that only wait for a replica count too: rows of the source that are
/// kept for it are not to pile up.
const MOVES_AT_ONCE: usize = 8;
/// How often the rows are looked at when nobody has said that there is something new.
const LOOK: Duration = Duration::from_secs(1);
/// The same while there is a merge.
const LOOK_MERGING: Duration = Duration::from_millis(200);

/// How far a merge is: its epoch, the slots and the moves that are left.
type Stage = (u64, usize, usize);

/// What the driver of one node has seen.
pub(crate) struct ShardMerges {
    metrics: ShardMergeMetrics,
    notes: Notes<ShardId, Stage>,
    wake: Notify,
}

impl ShardMerges {
    pub(crate) fn new(metrics: ShardMergeMetrics) -> Self {
        Self {
            metrics,
            notes: Notes::default(),
            wake: Notify::new(),
        }
    }

    /// There is a new row.
    pub(crate) fn look(&self) {
        self.wake.notify_one();
    }

    /// What was seen of a merge since it is so far.
    pub(crate) fn note_of(
        &self,
        shard: ShardId,
        row: &ShardMerge,
        left: &Left,
    ) -> Option<Note<Stage>> {
        self.notes.of(shard, &left.stage(row))
    }
}

/// What is left of a shard that goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// The slots that it has.
    pub(crate) slots: Vec<SlotId>,
    /// The moves that it takes part in.
    pub(crate) moves: Vec<(SlotId, SlotMove)>,
}

impl Left {
    pub(crate) fn of(scene: &SplitScene, shard: ShardId) -> Self {
        let of_shard = |(_, row): &&(SlotId, SlotMove)| [row.from, row.to].contains(&shard);
        Self {
            slots: scene.slots(shard),
            moves: scene.moves.iter().filter(of_shard).copied().collect(),
        }
    }

    fn is_over(&self) -> bool {
        self.slots.is_empty() && self.moves.is_empty()
    }

    /// The slots to begin to move now.
    fn due(&self) -> Vec<SlotId> {
        let room = MOVES_AT_ONCE.saturating_sub(self.moves.len());
        let moves = |slot: &&SlotId| self.moves.iter().any(|(moving, _)| moving == *slot);
        let stays = self.slots.iter().filter(|slot| !moves(slot));
        stays.take(room).copied().collect()
    }

    fn stage(&self, row: &ShardMerge) -> Stage {
        (row.epoch, self.slots.len(), self.moves.len())
    }
}

/// Carries on whenever this node leads the meta shard, until it stops.
pub(crate) async fn run(core: Arc<Core>) {
    let carrying = || {
        let core = Arc::clone(&core);
        async move { carry_all(&core).await }
    };
    let ended = || {
        core.shard_merges.notes.clear();
        core.shard_merges.metrics.set_running(0, 0);
    };
    while_leading(&core, carrying, ended).await;
}

/// All merges that are under way, for ever. A step is a few decisions, so none holds another up.
async fn carry_all(core: &Core) {
    loop {
        let pause = match carry_each(core).await {
            Ok(0) => LOOK,
            Ok(_) => LOOK_MERGING,
            Err(error) => {
                tracing::debug!(%error, "merges of shards cannot be read");
                LOOK
            }
        };
        tokio::select! {
            () = core.shard_merges.wake.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One step of each; how many there are.
async fn carry_each(core: &Core) -> Result<usize, CallError> {
    let (scene, _) = scene(core).await?;
    let merges = scene.merges.iter().filter(|(_, row)| row.is_moving());
    let merges: Vec<_> = merges
        .map(|(shard, row)| (*shard, *row, Left::of(&scene, *shard)))
        .collect();
    let slots = merges.iter().map(|(_, _, left)| left.slots.len()).sum();
    core.shard_merges.metrics.set_running(merges.len(), slots);
    for (shard, row, left) in &merges {
        let stage = left.stage(row);
        core.shard_merges.notes.begin(*shard, stage);
        if let Err(error) = carry(core, *shard, row, left).await {
            let reason = error.to_string();
            if core.shard_merges.notes.fail(*shard, stage, &reason) {
                say_that_it_waits(*shard, row, &reason);
            }
        }
    }
    Ok(merges.len())
}

fn say_that_it_waits(shard: ShardId, row: &ShardMerge, waits_for: &str) {
    let epoch = row.epoch;
    tracing::info!(shard = shard.0, epoch, waits_for, "the merge waits");
}

/// One step of one merge.
async fn carry(
    core: &Core,
    shard: ShardId,
    row: &ShardMerge,
    left: &Left,
) -> Result<(), CallError> {
    let (into, epoch) = (row.into, row.epoch);
    if left.is_over() {
        fail::fail_point!("shard_merge_empty", |_| std::process::abort());
        change(core, MetaCommand::EndMerge { shard, epoch }).await?;
        fail::fail_point!("shard_merge_retired", |_| std::process::abort());
        core.shard_merges.notes.forget(shard);
        core.shard_merges.metrics.done.inc();
        tracing::info!(shard = shard.0, into = into.0, epoch, "a shard is retired");
        return Ok(());
    }
    fail::fail_point!("shard_merge_begun", |_| std::process::abort());
    for slot in left.due() {
        change(core, MetaCommand::BeginMove { slot, to: into }).await?;
        core.slot_moves.look();
        fail::fail_point!("shard_merge_moving", |_| std::process::abort());
    }
    // What a move waits for, the merge waits for.
    let waits = left.moves.iter().find_map(|(slot, found)| {
        let note = core.slot_moves.note_of(*slot, found)?;
        (!note.waits_for.is_empty()).then(|| format!("slot {slot}: {}", note.waits_for))
    });
    let waits = waits.unwrap_or_default();
    let (notes, stage) = (&core.shard_merges.notes, left.stage(row));
    if notes.note(shard, stage, BTreeSet::new(), &waits) {
        say_that_it_waits(shard, row, &waits);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mailbox_engine::{MapShard, MoveStage};

    use super::*;

    fn scene(slots: &[(u16, u16)], moves: &[(u16, u32, u32)]) -> SplitScene {
        let spans = slots.iter();
        let row = MapShard {
            epoch: 1,
            slots: spans
                .map(|(first, last)| (SlotId(*first), SlotId(*last)))
                .collect(),
            replicas: Vec::new(),
        };
        let moves = moves.iter().map(|(slot, from, to)| {
            let row = SlotMove {
                epoch: 1,
                from: ShardId(*from),
                to: ShardId(*to),
                stage: MoveStage::Copying,
            };
            (SlotId(*slot), row)
        });
        SplitScene {
            shards: [(ShardId(1), row)].into(),
            moves: moves.collect(),
            ..SplitScene::default()
        }
    }

    fn due(slots: &[(u16, u16)], moves: &[(u16, u32, u32)]) -> Vec<u16> {
        let left = Left::of(&scene(slots, moves), ShardId(1));
        left.due().iter().map(|slot| slot.0).collect()
    }

    #[test]
    fn some_slots_move_at_once_and_none_twice() {
        assert_eq!(due(&[(3, 4)], &[]), [3, 4]);
        assert_eq!(due(&[(0, 20)], &[]), [0, 1, 2, 3, 4, 5, 6, 7]);
        // One is in the map already and waits for a replica, one has been moved elsewhere by hand.
        let moves = [(0, 1, 2), (1, 1, 7), (30, 1, 2), (40, 2, 3)];
        assert_eq!(due(&[(0, 20)], &moves), [2, 3, 4, 5, 6]);
        assert_eq!(due(&[], &[(30, 1, 2)]), [0; 0]);
    }

    #[test]
    fn a_shard_is_empty_when_nothing_of_it_is_on_its_way() {
        let is_over = |slots: &[(u16, u16)], moves: &[(u16, u32, u32)]| {
            Left::of(&scene(slots, moves), ShardId(1)).is_over()
        };
        assert!(is_over(&[], &[]));
        assert!(is_over(&[], &[(5, 2, 3)]));
        assert!(!is_over(&[], &[(5, 1, 2)]));
        assert!(!is_over(&[], &[(5, 2, 1)]));
        assert!(!is_over(&[(5, 5)], &[]));
    }
}
