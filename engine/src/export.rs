//! A slot's rows on their way to another shard.
//!
//! An export is made from the read view of a flush, like a snapshot (`snapshot.rs`), and written into files
//! of the same form. A whole one holds every visible row of the slot; *changes* hold what differs between
//! two exports, rows that are gone included. They are found by going through both side by side: that reads
//! the slot twice and sends only what changed, and is right whatever changed and why, overwritten messages,
//! risen floors and trim points included. Whoever has lost the first export (its node was started anew, or
//! another one leads) sends the whole: slower, and as right. A flush that has the freeze always gives the
//! same rows, on whatever replica.
//!
//! The digest is a sum over the rows, so that changes move it by what they change, and the destination
//! need not read again what it has. It guards against mistakes, not against a forger.

use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3Default;

use crate::applied::LogId;
use crate::base::ReadView;
use crate::decode::{Malformed, Reader};
use crate::error::Error;
use crate::id::{RangeId, ShardId, SlotId};
use crate::shard::Shard;
use crate::slot_move::SlotStanding;
use crate::slot_rows::SlotRows;
use crate::snapshot::{SnapshotFile, Writer};
use crate::walk::Place;

/// The format of exports that this build makes and takes.
pub const EXPORT_FORMAT: u32 = 1;

/// What an export's files are of. Travels with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportMeta {
    /// The shard that made the files.
    pub from: ShardId,
    /// The slot.
    pub slot: SlotId,
    /// The cluster's slot count.
    pub slot_count: u16,
    /// Of all rows of the slot, those not in the files included.
    pub digest: u128,
    /// Of changes: the digest of what they change.
    pub base: Option<u128>,
}

impl ExportMeta {
    /// `format u32 | shard u32 | slot u16 | slot count u16 | digest u128 | 0, or 1 and the base's`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = EXPORT_FORMAT.to_be_bytes().to_vec();
        out.extend_from_slice(&self.from.0.to_be_bytes());
        out.extend_from_slice(&self.slot.0.to_be_bytes());
        out.extend_from_slice(&self.slot_count.to_be_bytes());
        out.extend_from_slice(&self.digest.to_be_bytes());
        out.push(u8::from(self.base.is_some()));
        if let Some(base) = self.base {
            out.extend_from_slice(&base.to_be_bytes());
        }
        out
    }

    /// Reads what [`ExportMeta::encode`] made.
    ///
    /// # Errors
    /// An unknown format, or bytes that are not what they should be.
    pub fn decode(bytes: &[u8]) -> Result<ExportMeta, Malformed> {
        let mut reader = Reader::new("export meta", bytes);
        let format = reader.u32()?;
        if format != EXPORT_FORMAT {
            return Err(reader.unknown(format));
        }
        let meta = ExportMeta {
            from: ShardId(reader.u32()?),
            slot: SlotId(reader.u16()?),
            slot_count: reader.u16()?,
            digest: reader.u128()?,
            base: match reader.u8()? {
                0 => None,
                1 => Some(reader.u128()?),
                number => return Err(reader.unknown(number)),
            },
        };
        reader.end()?;
        Ok(meta)
    }
}

/// A slot as it was at one flush. Holds a read view: drop it when it has served.
pub struct SlotExport {
    from: ShardId,
    slot: SlotId,
    slot_count: u16,
    range: RangeId,
    files: Arc<dyn ReadView>,
    applied: Option<LogId>,
    frozen: Option<u64>,
}

impl Shard {
    /// A slot's rows as of the last flush. Costs nothing until its files are written.
    ///
    /// # Errors
    /// That flush has no rows of the slot here; a stopped shard.
    pub fn export_slot(&self, slot: SlotId) -> Result<SlotExport, Error> {
        let state = self.state.read();
        state.check()?;
        let range = state.flushed_ranges.of_slot(slot);
        let range = range.ok_or(Error::UnknownSlot { slot })?;
        let frozen = match state.flushed.slots.get(slot) {
            Some((epoch, SlotStanding::Frozen { .. })) => Some(epoch),
            Some(_) | None => None,
        };
        Ok(SlotExport {
            from: self.id(),
            slot,
            slot_count: state.options.slot_count,
            range,
            files: state.files.clone(),
            applied: state.flushed.log_id,
            frozen,
        })
    }

    /// The rows that an import under this epoch has staged here, for a peer without them. Changes are made
    /// against nothing of it: only whole files.
    ///
    /// # Errors
    /// There are none, or they are being changed; a stopped shard.
    pub fn export_staged(&self, slot: SlotId, epoch: u64) -> Result<SlotExport, Error> {
        self.state.read().check()?;
        // Whoever changes a staged range holds this: the rows are those of the digest.
        let _change = self.core.change.lock();
        let staged = self.staged(slot, epoch);
        let staged = staged.ok_or(Error::NotImporting { slot, epoch })?;
        let files = self.core.base.view();
        // Whatever becomes of the import: no hour leaves this view while it is held.
        self.state.write().hidden_hours.opened(&files);
        Ok(SlotExport {
            from: self.id(),
            slot,
            slot_count: self.core.options.slot_count,
            range: staged.range,
            files,
            applied: None,
            frozen: None,
        })
    }
}

impl SlotExport {
    /// The last entry in the flush.
    pub fn applied(&self) -> Option<LogId> {
        self.applied
    }

    /// The move that the slot is frozen for in this flush: then these are its last rows, and their digest is
    /// what the import's commit names.
    pub fn frozen(&self) -> Option<u64> {
        self.frozen
    }

    /// Writes all rows into files in `dir`, in order, and syncs them. `written` is told the bytes of each
    /// block: whoever limits the rate waits in it.
    ///
    /// # Errors
    /// A storage fault on either side.
    pub fn write_files(
        &self,
        dir: &Path,
        written: &mut dyn FnMut(u64),
    ) -> Result<(ExportMeta, Vec<SnapshotFile>), Error> {
        self.write(None, dir, written)
    }

    /// As [`SlotExport::write_files`], but what has changed since an earlier export of the slot only.
    ///
    /// # Errors
    /// A storage fault on either side; the other export is of another slot.
    pub fn write_changes(
        &self,
        since: &SlotExport,
        dir: &Path,
        written: &mut dyn FnMut(u64),
    ) -> Result<(ExportMeta, Vec<SnapshotFile>), Error> {
        if since.slot != self.slot {
            return Err(Error::UnknownSlot { slot: since.slot });
        }
        self.write(Some(since), dir, written)
    }

    fn write(
        &self,
        since: Option<&SlotExport>,
        dir: &Path,
        written: &mut dyn FnMut(u64),
    ) -> Result<(ExportMeta, Vec<SnapshotFile>), Error> {
        let mut writer = Writer::new(dir, self.from, written);
        let slot = self.slot;
        let mut new = Side::begin(Some(self))?;
        let mut old = Side::begin(since)?;
        while let Some(side) = first(&old, &new) {
            match side {
                Which::Old => {
                    writer.add(slot, old.rows()?.place(), None)?;
                    old.next()?;
                }
                Which::New => {
                    let rows = new.rows()?;
                    writer.add(slot, rows.place(), Some(rows.value()))?;
                    new.next()?;
                }
                Which::Both => {
                    let rows = new.rows()?;
                    if old.rows()?.value() != rows.value() {
                        writer.add(slot, rows.place(), Some(rows.value()))?;
                    }
                    old.next()?;
                    new.next()?;
                }
            }
        }
        let meta = ExportMeta {
            from: self.from,
            slot,
            slot_count: self.slot_count,
            digest: new.digest,
            base: since.map(|_| old.digest),
        };
        Ok((meta, writer.finish()?))
    }
}

/// One of two exports that are gone through side by side, and the digest of what has been passed.
struct Side<'a> {
    /// On a row; nothing behind the last.
    rows: Option<SlotRows<'a>>,
    digest: u128,
}

impl<'a> Side<'a> {
    fn begin(export: Option<&'a SlotExport>) -> Result<Side<'a>, Error> {
        let rows =
            export.map(|export| SlotRows::new(export.files.as_ref(), export.slot, export.range));
        let mut side = Side {
            rows: rows.transpose()?,
            digest: 0,
        };
        side.next()?;
        Ok(side)
    }

    fn next(&mut self) -> Result<(), Error> {
        if let Some(rows) = &mut self.rows {
            if rows.next()? {
                self.digest = self
                    .digest
                    .wrapping_add(row_digest(rows.place(), rows.value()));
            } else {
                self.rows = None;
            }
        }
        Ok(())
    }

    fn rows(&self) -> Result<&SlotRows<'a>, Error> {
        self.rows.as_ref().ok_or_else(|| Error::Stopped {
            reason: "an export is read beyond its end".to_owned(),
        })
    }
}

enum Which {
    Old,
    New,
    Both,
}

/// Which side has the row that comes first.
fn first(old: &Side<'_>, new: &Side<'_>) -> Option<Which> {
    match (&old.rows, &new.rows) {
        (None, None) => None,
        (Some(_), None) => Some(Which::Old),
        (None, Some(_)) => Some(Which::New),
        (Some(old), Some(new)) => Some(match old.order().cmp(&new.order()) {
            std::cmp::Ordering::Less => Which::Old,
            std::cmp::Ordering::Equal => Which::Both,
            std::cmp::Ordering::Greater => Which::New,
        }),
    }
}

/// A row's part of its slot's digest.
pub(crate) fn row_digest(place: Place<'_>, value: &[u8]) -> u128 {
    let (space, hour, key) = match place {
        Place::State(key) => (1, 0, key),
        Place::Dedup(hour, key) => (2, hour, key),
    };
    let mut front = [space; 9];
    front[1..5].copy_from_slice(&hour.to_be_bytes());
    let len = u32::try_from(key.len()).expect("keys are far below 4 GiB");
    front[5..].copy_from_slice(&len.to_be_bytes());
    let mut hasher = Xxh3Default::new();
    hasher.update(&front);
    hasher.update(key);
    hasher.update(value);
    hasher.digest128()
}
