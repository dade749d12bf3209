//! Takes a shard's replica off this node.
//!
//! One ingest removes every row of its ranges, their map rows and its applied row: a crash leaves
//! the whole replica or nothing of it. Its ranges are never used again, so a shard that comes back
//! later begins in fresh ones.

use fail::fail_point;

use crate::base::FileLife;
use crate::dead_letter::DeadLetterTotals;
use crate::error::Error;
use crate::id::{RangeId, ShardId};
use crate::key::NodeKey;
use crate::lanes::Lanes;
use crate::shard::Shard;
use crate::store::{NodeFile, Store};

impl Store {
    /// Removes a shard's replica, durably. Gives whether there was one. Handles on it stay, and
    /// refuse everything from now on, be it here or failed half-way.
    ///
    /// The caller has made sure that nothing of it is applied, flushed or installed any more.
    ///
    /// # Errors
    /// The base store failed: the replica is gone for its readers, and at the next open it is
    /// there whole or not at all.
    pub fn drop_shard(&self, shard: ShardId) -> Result<bool, Error> {
        let _change = self.core.change.lock();
        let Some(dropped) = self.shard(shard) else {
            return Ok(false);
        };
        let mut ranges = dropped.retire();
        ranges.extend(self.take_staged(shard));
        let mut rows = NodeFile::default();
        for range in &ranges {
            rows.delete(NodeKey::Range(*range));
        }
        rows.delete(NodeKey::Applied(shard));
        let mut writer = self.core.base.writer(FileLife::Short)?;
        rows.write(writer.as_mut())?;
        let file = writer.finish()?;
        fail_point!("before_drop", |_| std::process::abort());
        self.core.base.ingest(vec![file], &ranges)?;
        fail_point!("after_drop", |_| std::process::abort());
        self.forget(shard);
        Ok(true)
    }
}

impl Store {
    fn take_staged(&self, shard: ShardId) -> Vec<RangeId> {
        let mut staged = self.core.staged.lock();
        let of_shard = staged.extract_if(.., |(other, _), _| *other == shard);
        of_shard.map(|(_, found)| found.range).collect()
    }
}

impl Shard {
    /// Ends this handle's life: nothing is read or applied through it any more, and what was built
    /// from its memtables is void. Gives its ranges, those that only a flush would have made dead included.
    fn retire(&self) -> Vec<RangeId> {
        let mut state = self.state.write();
        state.fault = Some("its replica was removed from this node".to_owned());
        state.generation += 1;
        let thrown = (
            std::mem::take(&mut state.active),
            std::mem::take(&mut state.frozen),
        );
        state.retired = true;
        state.cut = None;
        state.cut_hash = None;
        state.lanes = Lanes::default();
        state.letters = DeadLetterTotals::default();
        let dropped = std::mem::take(&mut state.dropped);
        let live = state.ranges.by_range().map(|(range, _)| range);
        let ranges = live
            .chain(dropped.into_iter().map(|(_, range)| range))
            .collect();
        state.map_changes.clear();
        self.tails.lock().clear();
        drop(state);
        drop(thrown);
        ranges
    }
}
