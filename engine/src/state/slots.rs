//! What apply does when a slot leaves the shard or comes into it.

use std::sync::Arc;

use crate::applied::AppliedState;
use crate::command::{MoveSlot, Refusal, SplitShard};
use crate::dead_letter;
use crate::error::Error;
use crate::id::SlotId;
use crate::key::StateKey;
use crate::known::KnownKeys;
use crate::lanes;
use crate::range::{RangeRow, RangeState, Ranges};
use crate::slot_move::{SlotStanding, SlotTable, Step, StepContext};
use crate::split::{Handover, SplitContext};
use crate::state::{Context, ShardState};

impl ShardState {
    /// What a step of a slot's move is judged by, besides the table.
    pub(crate) fn step_context(
        &self,
        shard: crate::ShardId,
        slot: SlotId,
        index: u64,
    ) -> StepContext {
        StepContext {
            shard,
            slot_count: self.options.slot_count,
            index,
            time_ms: self.applied.time_ms,
            last_message_id: self.applied.last_message_id,
            has_rows: self.ranges.of_slot(slot).is_some(),
        }
    }
}

impl Context<'_> {
    /// This shard serves the slot.
    pub(crate) fn holds(&self, slot: SlotId) -> bool {
        #[cfg(feature = "planted")]
        if mailbox_planted::is("two-slot-owners") {
            return self.state.ranges.of_slot(slot).is_some();
        }
        self.state.ranges.of_slot(slot).is_some() && !self.state.applied.slots.is_frozen(slot)
    }

    /// A refusal that says whom to ask instead, unless this shard serves the slot.
    pub(crate) fn require_held(&self, slot: SlotId) -> Result<(), Refusal> {
        if self.holds(slot) {
            Ok(())
        } else {
            Err(self.state.applied.slots.refusal(slot))
        }
    }

    /// Takes a step of a slot's move in the table, if it is due.
    pub(crate) fn step_slot(&mut self, call: &MoveSlot) -> Result<Step, Refusal> {
        let (shard, index) = (self.shard, self.log_id.index);
        let at = self.state.step_context(shard, call.slot(), index);
        self.state.applied.slots.step(call, &at)
    }

    /// Epoch and standing of a slot that has moved.
    pub(crate) fn slot_standing(&self, slot: SlotId) -> (u64, SlotStanding) {
        let found = self.state.applied.slots.get(slot);
        found.unwrap_or((0, SlotStanding::Held))
    }

    /// Counts the dead letters of a slot that is about to go no more.
    fn forget_letters(&mut self, slot: SlotId) -> Result<(), Error> {
        // The row may be in a memtable: it is read before its range goes.
        let key = StateKey::DeadLetterTotals { slot };
        let letters = dead_letter::totals_value(&key, self.get(&key)?)?;
        self.state.letters.subtract(letters);
        Ok(())
    }

    /// Forgets a slot. Its range is dead in the flush that carries this.
    pub(crate) fn drop_slot(&mut self, slot: SlotId) -> Result<(), Error> {
        self.forget_letters(slot)?;
        let mut ranges = Ranges::clone(&self.state.ranges);
        let range = ranges
            .remove(slot)
            .expect("a frozen slot has its rows here");
        self.state.ranges = Arc::new(ranges);
        self.note_range(slot, range, RangeState::Dead);
        self.state.dropped.push((slot, range));
        self.state.lanes.remove_slot(slot);
        Ok(())
    }

    /// Makes the staged range of a slot its live one. `time_ms`: of the shard that it comes from.
    pub(crate) fn adopt_slot(&mut self, slot: SlotId, time_ms: u64) -> Result<(), Error> {
        let Some((range, files)) = self.imports.take(slot) else {
            let reason =
                format!("the rows of slot {slot} were here before the entry, and are gone");
            return Err(Error::Stopped { reason });
        };
        let slot_count = self.slot_count();
        let state = &mut *self.state;
        let mut alone = Ranges::default();
        alone.insert(slot, range);
        let letters = dead_letter::read_totals(files.as_ref(), &alone)?;
        state.letters.add(letters);
        let known = KnownKeys::read(files.as_ref(), &alone, time_ms)?;
        state.known.imported(known);
        lanes::read_slot(&mut state.lanes, files.as_ref(), (range, slot), slot_count)?;
        // Of the shard's own ranges it shows what the view before shows, and at most what memtables lie over.
        state.hidden_hours.opened(&files);
        state.files = files;
        let mut ranges = Ranges::clone(&state.ranges);
        ranges.insert(slot, range);
        state.ranges = Arc::new(ranges);
        let unacked = state.lanes.unacked(|source| source == slot);
        self.effects.outbox.extend(unacked);
        self.note_range(slot, range, RangeState::Live);
        Ok(())
    }

    /// Judges a split, and takes it in the table if it is due.
    pub(crate) fn judge_split(&mut self, call: &SplitShard) -> Result<Step, Refusal> {
        let at = SplitContext {
            shard: self.shard,
            slot_count: self.slot_count(),
            ranges: &self.state.ranges,
        };
        self.state.applied.slots.split(call, &at)
    }

    /// Forgets slots that become a shard of their own with the flush of this memtable, which ends with this
    /// entry.
    pub(crate) fn hand_over(&mut self, call: &SplitShard) -> Result<(), Error> {
        for slot in call.slots.iter().copied() {
            self.forget_letters(slot)?;
        }
        let log_id = Some(self.log_id);
        let state = &mut *self.state;
        // All that has changed of the lanes is in rows now, those of the slots that go among them.
        state.lanes.freeze(&mut state.active);
        let mut ranges = Ranges::clone(&state.ranges);
        let mut of_child = Ranges::default();
        for slot in call.slots.iter().copied() {
            let range = ranges
                .remove(slot)
                .expect("a slot that is held has its rows here");
            of_child.insert(slot, range);
            // Until the flush the memtables have rows of it, which are nobody's here.
            state.dropped.push((slot, range));
            state.lanes.remove_slot(slot);
        }
        state.ranges = Arc::new(ranges);
        let applied = AppliedState {
            log_id,
            last_install: log_id,
            slots: SlotTable::of_child(call),
            ..state.applied.clone()
        };
        let handover = Handover::new(call.to, of_child, applied);
        state.handovers.push(handover);
        Ok(())
    }

    fn note_range(&mut self, slot: SlotId, range: crate::RangeId, state: RangeState) {
        let shard = self.shard;
        let row = RangeRow { shard, slot, state };
        self.state.map_changes.insert(range, row);
    }
}
