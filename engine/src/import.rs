//! A slot's rows on their way into this shard: staged in a range of their own, which a commit makes the
//! live one. See `slot_move.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fail::fail_point;

use crate::base::{Base, FileLife, FileWriter, ReadView, StagedFile};
use crate::command::{Command, MoveSlot};
use crate::decode::Malformed;
use crate::entry::Entry;
use crate::error::Error;
use crate::export::{ExportMeta, row_digest};
use crate::id::{RangeId, ShardId, SlotId};
use crate::install::{check_row, corrupt};
use crate::key::{NodeKey, StateKey, hour_of};
use crate::range::{RangeRow, RangeState};
use crate::shard::{ApplyEntry, ApplyPayload, Shard};
use crate::slot_move::{ImportWait, SlotStanding, Step};
use crate::snapshot::{SnapshotRow, read_files};
use crate::state::ShardState;
use crate::store::{NodeFile, drop_ranges};
use crate::view::{get_state, seq_value};
use crate::walk::Place;

/// A range that an import fills, by shard and slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StagedRange {
    pub(crate) range: RangeId,
    pub(crate) epoch: u64,
    pub(crate) digest: u128,
    /// Dedup rows of this hour and later are still to be shown.
    pub(crate) floor_hour: u32,
    /// Somebody is changing it: it is not to become live meanwhile.
    pub(crate) busy: bool,
}

/// All staged ranges of a node.
pub(crate) type StagedRanges = BTreeMap<(ShardId, SlotId), StagedRange>;

/// What is staged here for an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagedImport {
    /// The slot.
    pub slot: SlotId,
    /// The import's.
    pub epoch: u64,
    /// Of all its rows.
    pub digest: u128,
}

/// The staged ranges that an entry makes live, and the files with their rows.
#[derive(Default)]
pub(crate) struct ReadyImports {
    ranges: BTreeMap<SlotId, RangeId>,
    files: Option<Arc<dyn ReadView>>,
}

impl ReadyImports {
    pub(crate) fn take(&mut self, slot: SlotId) -> Option<(RangeId, Arc<dyn ReadView>)> {
        Some((self.ranges.remove(&slot)?, self.files.clone()?))
    }
}

impl Shard {
    /// Stages an export's files, given in their order, for an import that is under way here. Durable when it
    /// returns. Whole files take the place of what was staged before; changes change it. What is staged
    /// already is not staged again.
    ///
    /// # Errors
    /// No such import is under way, the slot's last drop here is not flushed, another call stages the same
    /// slot, the changes are of another copy, or a file is corrupt or of another slot: nothing has changed.
    /// Or the base store failed: the replica must stop.
    pub fn stage_slot(
        &self,
        epoch: u64,
        meta: &ExportMeta,
        files: &[PathBuf],
    ) -> Result<(), Error> {
        let (slot, slot_count) = (meta.slot, self.core.options.slot_count);
        if meta.slot_count != slot_count {
            return Err(Error::SlotCount {
                path: PathBuf::from("export"),
                stored: meta.slot_count,
                asked: slot_count,
            });
        }
        self.require_importing(slot, epoch)?;
        let key = (self.id(), slot);
        let before = {
            let mut staged = self.core.staged.lock();
            match staged.get_mut(&key) {
                Some(found) if found.busy => return Err(Error::StagingBusy { slot }),
                Some(found) if (found.epoch, found.digest) == (epoch, meta.digest) => return Ok(()),
                Some(found) => {
                    found.busy = true;
                    Some(*found)
                }
                None => None,
            }
        };
        let done = self.stage_rows(epoch, meta, files, before);
        // Who has marked nothing leaves the mark of another call alone: what that one changes must not become live.
        if let (Err(_), Some(before)) = (&done, before) {
            let mut staged = self.core.staged.lock();
            let marked = staged.get_mut(&key);
            if let Some(found) = marked.filter(|found| found.range == before.range) {
                found.busy = false;
            }
        }
        done
    }

    fn require_importing(&self, slot: SlotId, epoch: u64) -> Result<(), Error> {
        let state = self.state.read();
        state.check()?;
        if state.dropped.iter().any(|(dropped, _)| *dropped == slot) {
            // An import before the drop may not be flushed either: then its range is a staged one in the
            // files, and a replay needs it.
            return Err(Error::DropNotFlushed { slot });
        }
        match state.applied.slots.get(slot) {
            Some((found, SlotStanding::Importing { .. })) if found == epoch => Ok(()),
            Some(_) | None => Err(Error::NotImporting { slot, epoch }),
        }
    }

    /// `before`: what is staged now, marked busy by the caller.
    pub(crate) fn stage_rows(
        &self,
        epoch: u64,
        meta: &ExportMeta,
        files: &[PathBuf],
        before: Option<StagedRange>,
    ) -> Result<(), Error> {
        let slot = meta.slot;
        let base = match (meta.base, before) {
            (None, _) => None,
            (Some(base), Some(found)) if (found.epoch, found.digest) == (epoch, base) => {
                Some(found)
            }
            (Some(_), _) => return Err(Error::OtherCopy { slot }),
        };
        let range = match base {
            Some(found) => found.range,
            None => self.core.change.lock().next(),
        };
        let view = self.core.base.view();
        let mut rows = Staging {
            slot,
            range,
            slot_count: meta.slot_count,
            below: base.is_some().then_some(view.as_ref()),
            digest: base.map_or(0, |found| found.digest),
            floor_ms: None,
            out: RowFiles::new(
                self.core.base.as_ref(),
                self.core.options.install_file_bytes,
            ),
        };
        read_files(meta.from, files, &mut |path, row| rows.add(path, &row))?;
        if rows.digest != meta.digest {
            let path = files.last().map_or(Path::new("export"), PathBuf::as_path);
            let (stored, computed) = (short(meta.digest), short(rows.digest));
            let what = "export";
            return Err(corrupt(
                path,
                Malformed::Checksum {
                    what,
                    stored,
                    computed,
                },
            ));
        }
        let floor_hour = match (rows.floor_ms, base) {
            (None, Some(found)) => found.floor_hour,
            (floor_ms, _) => hour_of(floor_ms.unwrap_or(0)),
        };
        let new = StagedRange {
            range,
            epoch,
            digest: meta.digest,
            floor_hour,
            busy: false,
        };
        let staged = rows.out.finish()?;
        self.ingest_staged(slot, new, before, staged)
    }

    /// The one ingest that brings the rows and says what they are.
    fn ingest_staged(
        &self,
        slot: SlotId,
        new: StagedRange,
        before: Option<StagedRange>,
        mut staged: Vec<StagedFile>,
    ) -> Result<(), Error> {
        let counter = self.core.change.lock();
        self.require_importing(slot, new.epoch)?;
        let key = (self.id(), slot);
        let now = self.core.staged.lock().get(&key).map(|found| found.range);
        let before = before.map(|found| found.range);
        if now != before {
            // Another call has staged the first copy meanwhile.
            return Err(Error::StagingBusy { slot });
        }
        let replaced = before.filter(|found| *found != new.range);
        let row = RangeRow {
            shard: self.id(),
            slot,
            state: RangeState::Staged {
                epoch: new.epoch,
                digest: new.digest,
            },
        };
        let mut rows = NodeFile::default();
        rows.put(NodeKey::Range(new.range), row.encode());
        replaced
            .iter()
            .for_each(|range| rows.delete(NodeKey::Range(*range)));
        rows.put_range_counter(&counter);
        let mut writer = self.core.base.writer(FileLife::Short)?;
        rows.write(writer.as_mut())?;
        staged.push(writer.finish()?);
        fail_point!("before_stage", |_| std::process::abort());
        self.core.base.ingest(staged, replaced.as_slice())?;
        fail_point!("after_stage", |_| std::process::abort());
        self.core.staged.lock().insert(key, new);
        Ok(())
    }

    /// What is staged here, by slot.
    pub fn staged_imports(&self) -> Vec<StagedImport> {
        let staged = self.core.staged.lock();
        let of_shard = staged.iter().filter(|((shard, _), _)| *shard == self.id());
        let imports = of_shard.map(|((_, slot), found)| StagedImport {
            slot: *slot,
            epoch: found.epoch,
            digest: found.digest,
        });
        imports.collect()
    }

    /// Just these rows are staged here, and nobody is changing them: the commit that names them does not wait.
    pub fn is_staged(&self, slot: SlotId, epoch: u64, digest: u128) -> bool {
        let found = self.staged(slot, epoch);
        found.is_some_and(|found| found.digest == digest)
    }

    /// A staged range that nobody is changing.
    pub(crate) fn staged(&self, slot: SlotId, epoch: u64) -> Option<StagedRange> {
        let staged = self.core.staged.lock();
        let found = staged.get(&(self.id(), slot)).copied();
        found.filter(|found| found.epoch == epoch && !found.busy)
    }

    /// Removes what was staged for imports that are over: aborted, or brought by a snapshot. To be called now
    /// and then; an open does the same. Gives how many there were.
    ///
    /// # Errors
    /// The base store failed: the replica must stop.
    pub fn drop_stale_imports(&self) -> Result<usize, Error> {
        let _change = self.core.change.lock();
        let applied = self.applied().slots;
        let stale: Vec<RangeId> = {
            let mut staged = self.core.staged.lock();
            let over = staged.extract_if(.., |(shard, slot), found| {
                *shard == self.id() && !found.busy && applied.import_is_over(*slot, found.epoch)
            });
            over.map(|(_, found)| found.range).collect()
        };
        drop_ranges(self.core.base.as_ref(), &stale)?;
        Ok(stale.len())
    }

    /// What the commits in an entry need, taken from what is staged; or what they wait for. Nothing of the
    /// entry has been applied.
    pub(crate) fn ready_imports(
        &self,
        state: &ShardState,
        entry: &ApplyEntry,
    ) -> Result<ReadyImports, ImportWait> {
        let mut ready = ReadyImports::default();
        let ApplyPayload::Commands(bytes) = &entry.payload else {
            return Ok(ready);
        };
        // A commit counts only if its import had begun before the entry.
        if !state.applied.slots.is_importing() {
            return Ok(ready);
        }
        let wanted = self.wanted(state, entry.log_id.index, bytes);
        if wanted.is_empty() {
            return Ok(ready);
        }
        let mut staged = self.core.staged.lock();
        for (slot, epoch, digest) in &wanted {
            let (slot, epoch, digest) = (*slot, *epoch, *digest);
            if state.dropped.iter().any(|(dropped, _)| *dropped == slot) {
                return Err(ImportWait::Flush { slot });
            }
            match staged.get(&(self.id(), slot)) {
                Some(found)
                    if (found.epoch, found.digest, found.busy) == (epoch, digest, false) =>
                {
                    ready.ranges.insert(slot, found.range);
                }
                Some(_) | None => {
                    return Err(ImportWait::Rows {
                        slot,
                        epoch,
                        digest,
                    });
                }
            }
        }
        for (slot, ..) in wanted {
            staged.remove(&(self.id(), slot));
        }
        drop(staged);
        ready.files = Some(self.core.base.view());
        Ok(ready)
    }

    /// The imports that an entry will commit: the table decides, as it will in apply.
    fn wanted(
        &self,
        state: &ShardState,
        index: u64,
        bytes: &bytes::Bytes,
    ) -> Vec<(SlotId, u64, u128)> {
        let mut wanted = Vec::new();
        // A damaged entry is a fault, which apply meets and names.
        let Ok(entry) = Entry::open(bytes.clone()) else {
            return wanted;
        };
        let mut table = state.applied.slots.clone();
        for command in entry.commands() {
            let Ok(Command::MoveSlot(call)) = command else {
                continue;
            };
            let at = state.step_context(self.id(), call.slot(), index);
            let step = table.step(&call, &at);
            if let (
                Ok(Step::Done),
                MoveSlot::CommitImport {
                    slot,
                    epoch,
                    digest,
                    ..
                },
            ) = (step, call)
            {
                wanted.push((slot, epoch, digest));
            }
        }
        wanted
    }
}

fn short(digest: u128) -> u64 {
    u64::try_from(digest & u128::from(u64::MAX)).expect("64 bits")
}

/// The hour of a range's dedup floor, by its files.
pub(crate) fn floor_hour(files: &dyn ReadView, slot: SlotId, range: RangeId) -> Result<u32, Error> {
    let key = StateKey::DedupFloor { slot };
    let value = get_state(files, range, &key.encode())?;
    Ok(hour_of(seq_value(value, &key)?.0))
}

/// Rows of an export on their way into a range.
struct Staging<'a> {
    slot: SlotId,
    range: RangeId,
    slot_count: u16,
    /// Of changes: what they change.
    below: Option<&'a dyn ReadView>,
    digest: u128,
    floor_ms: Option<u64>,
    out: RowFiles<'a>,
}

impl Staging<'_> {
    fn add(&mut self, path: &Path, row: &SnapshotRow<'_>) -> Result<(), Error> {
        check_row(path, self.slot_count, row)?;
        let (what, number) = ("slot of an export's row", u64::from(row.slot.0));
        if row.slot != self.slot || (row.value.is_none() && self.below.is_none()) {
            return Err(corrupt(path, Malformed::Unknown { what, number }));
        }
        let mut key = Vec::with_capacity(64);
        row.place.stored(self.range, &mut key);
        if let Some(below) = self.below
            && let Some(old) = below.get(&key)?
        {
            self.digest = self.digest.wrapping_sub(row_digest(row.place, &old));
        }
        if let Some(value) = row.value {
            self.digest = self.digest.wrapping_add(row_digest(row.place, value));
        }
        let floor = StateKey::DedupFloor { slot: self.slot };
        if row.place == Place::State(floor.encode().as_slice()) {
            let value = row.value.map(bytes::Bytes::copy_from_slice);
            self.floor_ms = Some(seq_value(value, &floor)?.0);
        }
        self.out.add(path, &key, row.value)
    }
}

/// Rows with rising keys on their way into files of a bounded size.
pub(crate) struct RowFiles<'a> {
    base: &'a dyn Base,
    bytes_max: u64,
    done: Vec<StagedFile>,
    open: Option<(Box<dyn FileWriter + 'a>, u64)>,
    last: Vec<u8>,
}

impl<'a> RowFiles<'a> {
    pub(crate) fn new(base: &'a dyn Base, bytes_max: u64) -> RowFiles<'a> {
        RowFiles {
            base,
            bytes_max,
            done: Vec::new(),
            open: None,
            last: Vec::new(),
        }
    }

    /// Adds a row read from the file at `path`, or a tombstone.
    pub(crate) fn add(
        &mut self,
        path: &Path,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), Error> {
        if key <= self.last.as_slice() {
            let (what, number) = ("order of rows", 0);
            return Err(corrupt(path, Malformed::Unknown { what, number }));
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        let (mut writer, mut bytes) = match self.open.take() {
            Some(open) => open,
            None => (self.base.writer(FileLife::Long)?, 0),
        };
        match value {
            Some(value) => writer.put(key, value)?,
            None => writer.delete(key)?,
        }
        let len = key.len() + value.map_or(0, <[u8]>::len);
        bytes += u64::try_from(len).expect("a usize fits");
        if bytes >= self.bytes_max {
            self.done.push(writer.finish()?);
        } else {
            self.open = Some((writer, bytes));
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Vec<StagedFile>, Error> {
        if let Some((writer, _)) = self.open.take() {
            self.done.push(writer.finish()?);
        }
        Ok(self.done)
    }
}
