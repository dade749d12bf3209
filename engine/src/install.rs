//! Puts a snapshot in the place of a shard's state.
//!
//! The rows go into new ranges, in files that nobody reads yet. One ingest brings them, the map
//! rows that make the new ranges live and the old ones dead, and the applied row: a crash leaves
//! the old state or the new one. The old ranges are dropped afterwards, or at the next open.
//!
//! To read, check and write the rows takes as long as there are many, so it is a step of its own,
//! which changes nothing: flushes of other shards go on beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use fail::fail_point;

use crate::base::{FileLife, StagedFile};
use crate::cluster_map;
use crate::dead_letter;
use crate::decode::Malformed;
use crate::error::Error;
use crate::id::{RangeId, SlotId};
use crate::import::RowFiles;
use crate::key::{DedupKey, NodeKey, StateKey};
use crate::known::KnownKeys;
use crate::lanes::{self, read_lanes};
use crate::memtable::Memtable;
use crate::range::{RangeRow, RangeState, Ranges};
use crate::row::StoredRow;
use crate::shard::Shard;
use crate::snapshot::{SnapshotMeta, SnapshotRow, read_files};
use crate::store::{NodeFile, StoreCore, drop_ranges};
use crate::walk::Place;

/// A snapshot's rows, checked, in files under the keys that they will have. Its files go when it is dropped.
pub struct StagedInstall {
    core: Arc<StoreCore>,
    meta: SnapshotMeta,
    ranges: Ranges,
    files: Vec<StagedFile>,
}

impl Drop for StagedInstall {
    fn drop(&mut self) {
        self.core.base.discard(std::mem::take(&mut self.files));
    }
}

impl Shard {
    /// [`Shard::stage_install`] and [`Shard::install`] in one.
    ///
    /// # Errors
    /// Of either.
    pub fn install_files(&self, meta: &SnapshotMeta, files: &[PathBuf]) -> Result<(), Error> {
        self.install(self.stage_install(meta, files)?)
    }

    /// Makes an install ready: checks a snapshot's files, given in their order, and writes their rows anew. It
    /// changes nothing, and may run beside anything but an apply to this shard.
    ///
    /// # Errors
    /// A file is corrupt, incomplete or of another shard, or the snapshot is older than the last move of a
    /// slot here. Or the base store failed: the replica must stop.
    pub fn stage_install(
        &self,
        meta: &SnapshotMeta,
        files: &[PathBuf],
    ) -> Result<StagedInstall, Error> {
        self.check_meta(meta)?;
        let (old, _) = self.replaced_by(meta)?;
        let mut new = Ranges::default();
        {
            // Ranges rise with the slots: the order of a snapshot's rows is that of their keys.
            let mut counter = self.core.change.lock();
            let slots = old.by_slot().map(|(slot, _)| slot);
            for slot in meta.applied.slots.slots_after(slots) {
                new.insert(slot, counter.next());
            }
        }
        Ok(StagedInstall {
            files: self.stage(&new, files)?,
            core: Arc::clone(&self.core),
            meta: meta.clone(),
            ranges: new,
        })
    }

    /// Replaces everything that this replica has by a snapshot. Durable when it returns. The same snapshot may
    /// be staged and installed again.
    ///
    /// The caller has made sure that every append and truncation queued for this shard's log
    /// before is synced, and that nothing was applied since the snapshot was staged.
    ///
    /// # Errors
    /// The snapshot is of another shard, or the replica was removed meanwhile: nothing has changed. Or the base
    /// store failed: the replica must stop.
    pub fn install(&self, mut staged: StagedInstall) -> Result<(), Error> {
        let meta = &staged.meta;
        self.check_meta(meta)?;
        let (old, dropped) = self.replaced_by(meta)?;
        let old: Vec<(SlotId, RangeId)> = old.by_slot().chain(dropped).collect();
        let (new, files) = (
            std::mem::take(&mut staged.ranges),
            std::mem::take(&mut staged.files),
        );
        self.switch(&staged.meta, &old, new, files)?;
        fail_point!("after_install", |_| std::process::abort());
        {
            let _change = self.core.change.lock();
            let dropped: Vec<RangeId> = old.iter().map(|(_, range)| *range).collect();
            drop_ranges(self.core.base.as_ref(), &dropped)?;
        }
        self.drop_stale_imports()?;
        self.counters.installs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The ranges whose place a snapshot takes: those in use, and those of slots that were dropped.
    #[allow(clippy::type_complexity, reason = "both are as the state has them")]
    fn replaced_by(
        &self,
        meta: &SnapshotMeta,
    ) -> Result<(Arc<Ranges>, Vec<(SlotId, RangeId)>), Error> {
        let state = self.state.read();
        if state.retired {
            state.check()?;
        }
        if state.applied.slots.is_ahead_of(&meta.applied.slots) {
            // Which slots it is of nobody could tell. Logs do not go back, so there is none such.
            let reason = "a snapshot from before a slot's move".to_owned();
            return Err(Error::Stopped { reason });
        }
        Ok((state.ranges.clone(), state.dropped.clone()))
    }

    fn check_meta(&self, meta: &SnapshotMeta) -> Result<(), Error> {
        let slot_count = self.core.options.slot_count;
        if meta.shard != self.id() {
            return Err(Error::UnknownShard { shard: meta.shard });
        }
        if meta.slot_count != slot_count {
            let path = PathBuf::from("snapshot");
            return Err(Error::SlotCount {
                path,
                stored: meta.slot_count,
                asked: slot_count,
            });
        }
        if meta.applied.log_id.is_none() {
            return Err(Error::Stopped {
                reason: "a snapshot of nothing".to_owned(),
            });
        }
        Ok(())
    }

    /// Checks every row and writes it under its new key.
    fn stage(&self, ranges: &Ranges, files: &[PathBuf]) -> Result<Vec<StagedFile>, Error> {
        let slot_count = self.core.options.slot_count;
        let bytes_max = self.core.options.install_file_bytes;
        let mut out = RowFiles::new(self.core.base.as_ref(), bytes_max);
        let mut key = Vec::new();
        read_files(self.id(), files, &mut |path, row| {
            check_row(path, slot_count, &row)?;
            let range = ranges
                .of_slot(row.slot)
                .ok_or(Error::UnknownSlot { slot: row.slot })?;
            if row.value.is_none() {
                let (what, number) = ("missing snapshot row", u64::from(row.slot.0));
                return Err(corrupt(path, Malformed::Unknown { what, number }));
            }
            row.place.stored(range, &mut key);
            out.add(path, &key, row.value)
        })?;
        out.finish()
    }

    /// The one ingest, and its publication.
    fn switch(
        &self,
        meta: &SnapshotMeta,
        old: &[(SlotId, RangeId)],
        new: Ranges,
        mut staged: Vec<StagedFile>,
    ) -> Result<(), Error> {
        let mut applied = meta.applied.clone();
        applied.last_install = applied.log_id;
        let counter = self.core.change.lock();
        let mut rows = NodeFile::default();
        let mut map = |slot: SlotId, range, state| {
            let row = RangeRow {
                shard: self.id(),
                slot,
                state,
            };
            rows.put(NodeKey::Range(range), row.encode());
        };
        old.iter()
            .for_each(|(slot, range)| map(*slot, *range, RangeState::Dead));
        new.by_slot()
            .for_each(|(slot, range)| map(slot, range, RangeState::Live));
        rows.put_range_counter(&counter);
        rows.put(NodeKey::Applied(self.id()), applied.encode());
        let mut writer = self.core.base.writer(FileLife::Short)?;
        rows.write(writer.as_mut())?;
        staged.push(writer.finish()?);

        // The memtables go first: what was built from them must never follow the snapshot.
        let mut state = self.state.write();
        state.generation += 1;
        let thrown = (
            std::mem::take(&mut state.active),
            std::mem::take(&mut state.frozen),
        );
        state.fault = Some("an install has failed".to_owned());
        fail_point!("before_install", |_| std::process::abort());
        self.core.base.ingest(staged, &[])?;
        let files = self.core.base.view();
        state.hidden_hours.opened(&files);
        state.files = files;
        state.known = KnownKeys::read(state.files.as_ref(), &new, applied.time_ms)?;
        let slot_count = state.options.slot_count;
        state.lanes = read_lanes(state.files.as_ref(), &new, slot_count)?;
        state.letters = dead_letter::read_totals(state.files.as_ref(), &new)?;
        state.ranges = Arc::new(new);
        state.flushed_ranges = state.ranges.clone();
        state.map_changes.clear();
        state.dropped.clear();
        state.flushed = applied.clone();
        state.applied = applied;
        state.cut = None;
        state.cut_hash = None;
        state.floors = Default::default();
        state.rewrites += 1;
        state.active = Memtable::default();
        state.fault = None;
        self.count_memtables(&state);
        self.tails.lock().clear();
        drop(state);
        drop(thrown);
        self.measure();
        Ok(())
    }
}

pub(crate) fn corrupt(path: &Path, malformed: Malformed) -> Error {
    Error::CorruptSnapshot {
        path: path.to_owned(),
        malformed,
    }
}

/// A row must be what a replica could have made: its key decodes, lies in its slot, and a message
/// or a dead letter fits its checksum.
pub(crate) fn check_row(path: &Path, slot_count: u16, row: &SnapshotRow<'_>) -> Result<(), Error> {
    let fault = |malformed| corrupt(path, malformed);
    let (what, number) = ("slot of a snapshot row", u64::from(row.slot.0));
    match row.place {
        Place::State(suffix) => {
            let key = StateKey::decode(suffix).map_err(fault)?;
            if key.slot(slot_count) != row.slot {
                return Err(fault(Malformed::Unknown { what, number }));
            }
            let Some(value) = row.value.map(Bytes::copy_from_slice) else {
                return Ok(());
            };
            if let StateKey::Message { timeline, seq } = key {
                StoredRow::decode(timeline, seq, &value).map_err(fault)?;
            }
            cluster_map::check_row(&key, &value).map_err(fault)?;
            lanes::check_row(&key, &value).map_err(fault)?;
            dead_letter::check_row(&key, &value).map_err(fault)?;
        }
        Place::Dedup(hour, suffix) => {
            let key = DedupKey::decode(suffix).map_err(fault)?;
            if key.hour() != hour {
                let (what, number) = ("hour of a snapshot row", u64::from(hour));
                return Err(fault(Malformed::Unknown { what, number }));
            }
        }
    }
    Ok(())
}
