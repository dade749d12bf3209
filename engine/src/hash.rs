//! The state hash: equal on replicas that have applied the same entries, whatever their ranges,
//! flushes and compactions.

use std::collections::BTreeMap;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3Default;

use crate::applied::LogId;
use crate::base::ReadView;
use crate::error::Error;
use crate::flush::write_rows;
use crate::id::SlotId;
use crate::range::Ranges;
use crate::shard::Shard;
use crate::slot_move::SlotTable;
use crate::view::state_key;
use crate::walk::{Place, Unflushed, Walk};

/// What two replicas compare, at equal `applied` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHash {
    /// The last entry in the state that was hashed.
    pub applied: LogId,
    /// xxh3-128 over the visible rows.
    pub hash: u128,
    /// How many they are.
    pub rows: u64,
}

impl Shard {
    /// The hash at a cut: of the flush that the cut with this index ended, or of the last such
    /// flush. `None` if it has not been flushed since this process began, or a later cut has.
    ///
    /// # Errors
    /// A storage fault.
    pub fn state_hash(&self, cut: Option<u64>) -> Result<Option<StateHash>, Error> {
        let wanted = |applied: LogId| cut.is_none_or(|cut| cut == applied.index);
        let (files, ranges, applied, slots) = {
            let state = self.state.read();
            state.check()?;
            let Some(cut) = &state.cut else {
                return Ok(state.cut_hash.filter(|hash| wanted(hash.applied)));
            };
            let Some(applied) = cut.applied.log_id.filter(|log_id| wanted(*log_id)) else {
                return Ok(None);
            };
            let slots = cut.applied.slots.clone();
            (cut.files.clone(), cut.ranges.clone(), applied, slots)
        };
        let hash = hash_rows(&files, &ranges, &Unflushed::default(), applied, &slots)?;
        let mut state = self.state.write();
        let is_last = |log_id: Option<LogId>| log_id == Some(applied);
        if state
            .cut
            .as_ref()
            .is_some_and(|cut| is_last(cut.applied.log_id))
        {
            // The read view has served: it would keep overwritten rows from being compacted away.
            state.cut = None;
            state.cut_hash = Some(hash);
        }
        Ok(Some(hash))
    }

    /// The hash of everything applied, flushed or not. Apply and flushes wait meanwhile: for
    /// tools that have the store to themselves. `None` if nothing was applied yet.
    ///
    /// # Errors
    /// A storage fault.
    pub fn state_hash_now(&self) -> Result<Option<StateHash>, Error> {
        let state = self.state.read();
        state.check()?;
        let Some(applied) = state.applied.log_id else {
            return Ok(None);
        };
        let mut unflushed = Unflushed::default();
        let dropped = state.dropped_slots();
        for frozen in &state.frozen {
            write_rows(
                &frozen.memtable,
                &state.ranges,
                &dropped,
                &mut &mut unflushed,
            )?;
        }
        write_rows(&state.active, &state.ranges, &dropped, &mut &mut unflushed)?;
        state.lanes.unfrozen(&mut |slot, key, value| {
            if let Some(range) = state.ranges.of_slot(slot) {
                unflushed.lay(state_key(range, key.as_slice()), value);
            }
        });
        let slots = &state.applied.slots;
        hash_rows(&state.files, &state.ranges, &unflushed, applied, slots).map(Some)
    }
}

/// One hash per slot over its rows in key order, then one over those in the order of the slots, and over
/// the table of the slots that have moved, if any has.
fn hash_rows(
    files: &Arc<dyn ReadView>,
    ranges: &Ranges,
    unflushed: &Unflushed,
    applied: LogId,
    moved: &SlotTable,
) -> Result<StateHash, Error> {
    let mut slots: BTreeMap<SlotId, Box<Xxh3Default>> = BTreeMap::new();
    let mut rows = 0_u64;
    Walk::new(files.as_ref(), ranges, unflushed).run(&mut |slot, place, value| {
        let hasher = slots.entry(slot).or_default();
        let (space, hour, key) = match place {
            Place::State(key) => (1_u8, 0, key),
            Place::Dedup(hour, key) => (2, hour, key),
        };
        let mut front = [0; 9];
        front[0] = space;
        front[1..5].copy_from_slice(&hour.to_be_bytes());
        front[5..].copy_from_slice(&length(key).to_be_bytes());
        hasher.update(&front);
        hasher.update(key);
        hasher.update(&length(value).to_be_bytes());
        hasher.update(value);
        rows += 1;
        Ok(())
    })?;
    let mut all = Xxh3Default::new();
    for (slot, hasher) in slots {
        all.update(&slot.0.to_be_bytes());
        all.update(&hasher.digest128().to_be_bytes());
    }
    let mut table = Vec::new();
    moved.encode(&mut table);
    all.update(&table);
    Ok(StateHash {
        applied,
        hash: all.digest128(),
        rows,
    })
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("rows are bounded far below 4 GiB")
}
