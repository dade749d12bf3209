//! Splitting a shard in place: some of its slots become a new shard on the same nodes. No row is copied.
//!
//! One entry of the parent's log, the *seed*, says it all ([`SplitShard`](crate::SplitShard)). From its apply
//! on the parent serves nothing of the slots, and says who has them. The memtable ends with that entry, so its
//! flush has the last rows of the slots; the ingest that carries the parent's applied row hands their ranges
//! over, in their map rows, and brings the child's applied row: applied up to the seed, with the parent's
//! membership, options, replicated time and last message id, as if a snapshot of the seed had just been
//! installed. Whoever owns the store then begins a log behind the seed and opens the replica.
//!
//! Every row of a slot goes with its range: timelines, dedup rows, floors, dead letters, lanes, marks, outbox.
//! Lanes are named by slots, so they go on at both ends; only what was delivered in the same apply, since both
//! ends were in one shard, rides from now on.
//!
//! *Crashes.* Before the ingest there is the parent alone, and its log replays the seed. After it there are
//! both. There is no state between, and the child has done nothing before.
//!
//! *Who takes no part.* A node may not want the child: it was no member at the seed, or it has held the child
//! before and replays an old log. Then it [refuses](crate::FrozenFlush::refuse_child), and so does the engine if
//! there is a replica of the child already: the ranges are dead in the same ingest. A replica that gets the
//! parent by a snapshot from behind the seed has no rows of the slots; an install over an unflushed seed loses
//! them. In all these cases the child comes by a snapshot of its own, if it comes. The state of the parent, and
//! its hash, is the same.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::applied::AppliedState;
use crate::command::{Refusal, SplitShard};
use crate::id::{RangeId, ShardId, SlotId};
use crate::range::Ranges;
use crate::slot_move::{SlotStanding, SlotTable, Step};
use crate::store::{Store, new_shard};

/// What a memtable that ends with a seed hands over when it is flushed.
pub(crate) struct Handover {
    pub(crate) child: ShardId,
    pub(crate) ranges: Ranges,
    pub(crate) applied: AppliedState,
    /// This node has no use for the child. Only rises, and not between build and ingest.
    refused: AtomicBool,
}

impl Handover {
    pub(crate) fn new(child: ShardId, ranges: Ranges, applied: AppliedState) -> Handover {
        Handover {
            child,
            ranges,
            applied,
            refused: AtomicBool::new(false),
        }
    }

    pub(crate) fn refuse(&self) {
        self.refused.store(true, Ordering::Release);
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire)
    }

    /// What becomes of its ranges: dead if the child is refused.
    pub(crate) fn dead(&self) -> impl Iterator<Item = (RangeId, SlotId)> {
        let refused = self.is_refused();
        self.ranges.by_range().filter(move |_| refused)
    }
}

/// Which shards have replicas on this node, those included that a flush has just made.
#[derive(Default)]
pub(crate) struct Replicas {
    pub(crate) ids: BTreeSet<ShardId>,
    /// Made by a flush and not opened yet.
    pub(crate) born: Vec<(ShardId, Ranges, AppliedState)>,
}

impl Replicas {
    /// After the ingest of a flush.
    pub(crate) fn add_child(&mut self, handover: &Handover) {
        self.ids.insert(handover.child);
        let (ranges, applied) = (handover.ranges.clone(), handover.applied.clone());
        self.born.push((handover.child, ranges, applied));
    }
}

impl Store {
    /// Opens the replicas that flushes have made. [`Store::ingest`] has done so; whoever calls
    /// [`Shard::ingest`](crate::Shard::ingest) does it afterwards.
    pub fn open_children(&self) {
        let born = std::mem::take(&mut self.core.replicas.lock().born);
        for (child, ranges, applied) in born {
            let opened = new_shard(&self.core, child, self.core.base.view(), ranges, applied);
            self.insert(Arc::new(opened));
        }
    }
}

/// What a split is judged by, besides the table.
pub(crate) struct SplitContext<'a> {
    /// The shard that judges.
    pub(crate) shard: ShardId,
    /// Of the cluster.
    pub(crate) slot_count: u16,
    /// The slots that the shard has rows of.
    pub(crate) ranges: &'a Ranges,
}

impl SlotTable {
    /// Judges a split, and takes it if it is due. A function of table, call and context alone.
    pub(crate) fn split(
        &mut self,
        call: &SplitShard,
        at: &SplitContext<'_>,
    ) -> Result<Step, Refusal> {
        let SplitShard { to, epoch, slots } = call;
        let gone = (*epoch, SlotStanding::Gone { to: *to });
        if !slots.is_empty() && slots.iter().all(|slot| self.get(*slot) == Some(gone)) {
            return Ok(Step::Repeat);
        }
        for slot in slots.iter().copied() {
            self.require_splittable(slot, *epoch, at)?;
        }
        if [at.shard, ShardId::META].contains(to) || self.names(*to) {
            return Err(Refusal::ShardExists { shard: *to });
        }
        let held = at.ranges.slots().len();
        if slots.is_empty() || slots.len() >= held {
            let taken = slots.len();
            return Err(Refusal::SplitSize { taken, held });
        }
        for slot in slots {
            self.set(*slot, *epoch, SlotStanding::Gone { to: *to });
        }
        Ok(Step::Done)
    }

    fn require_splittable(
        &self,
        slot: SlotId,
        epoch: u64,
        at: &SplitContext<'_>,
    ) -> Result<(), Refusal> {
        if slot.0 >= at.slot_count {
            return Err(Refusal::WrongShard { slot });
        }
        match self.get(slot) {
            None if at.ranges.of_slot(slot).is_none() => Err(Refusal::WrongShard { slot }),
            None if epoch > 0 => Ok(()),
            Some((before, SlotStanding::Held)) if epoch > before => Ok(()),
            found => {
                let (epoch, standing) = found.unwrap_or((0, SlotStanding::Held));
                Err(Refusal::SlotStands {
                    slot,
                    epoch,
                    standing,
                })
            }
        }
    }

    /// Some slot has come from a shard, or gone to it.
    fn names(&self, shard: ShardId) -> bool {
        self.iter().any(|(_, _, standing)| match standing {
            SlotStanding::Held => false,
            SlotStanding::Frozen { to, .. } | SlotStanding::Gone { to } => to == shard,
            SlotStanding::Importing { from, .. } => from == shard,
        })
    }

    /// What a child begins with.
    pub(crate) fn of_child(call: &SplitShard) -> SlotTable {
        let mut table = SlotTable::default();
        for slot in &call.slots {
            table.set(*slot, call.epoch, SlotStanding::Held);
        }
        table
    }
}
