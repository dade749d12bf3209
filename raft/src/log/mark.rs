//! The mark file: the number of a batch that is known to have been synced.
//!
//! It may lag, it never leads: a log that ends below its mark has lost synced batches, and its node must
//! not vote with it. Two slots in two blocks are overwritten in turn, so that a write that was cut off
//! leaves the mark before it, and so that a mark costs one fdatasync and no change of the directory.
//!
//! Slot: `"MBXLOG\0\0" | format u32 | store u64 | batch u64 | crc32 u32`, big-endian.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::error::Error;

/// The file's name in the log's directory.
pub(crate) const MARK_FILE: &str = "MARK";
/// Format number of the log: its rows, its keys and this file.
pub(crate) const LOG_FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"MBXLOG\0\0";
const SLOT_LEN: usize = 32;
const SLOT_STEP: u64 = 4096;
const SLOTS: u64 = 2;

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// Random name of this log, in every batch row.
    pub(super) store: u64,
    /// A synced batch; 0 before the first.
    pub(super) batch: u64,
}

#[derive(Debug)]
pub(super) struct MarkFile {
    file: File,
    path: PathBuf,
    mark: Mark,
    next_slot: u64,
}

impl MarkFile {
    pub(super) fn path(dir: &Path) -> PathBuf {
        dir.join(MARK_FILE)
    }

    /// Creates the file with batch 0 and makes it and its name durable.
    pub(super) fn create(dir: &Path, store: u64) -> Result<MarkFile, Error> {
        let path = Self::path(dir);
        let mark = Mark { store, batch: 0 };
        let mut blocks = vec![0; (SLOT_STEP * SLOTS) as usize];
        blocks[..SLOT_LEN].copy_from_slice(&encode(mark));
        let write = || {
            // Written aside and renamed: a name with half a file behind it must never be seen.
            let aside = dir.join("MARK.new");
            std::fs::write(&aside, &blocks)?;
            File::open(&aside)?.sync_all()?;
            std::fs::rename(&aside, &path)?;
            File::open(dir)?.sync_all()?;
            OpenOptions::new().read(true).write(true).open(&path)
        };
        let file = write().map_err(|error| Error::file(&path, "create", &error))?;
        Ok(MarkFile {
            file,
            path,
            mark,
            next_slot: 1,
        })
    }

    /// `None` if there is no such file. A file without a valid slot is damaged.
    pub(super) fn open(dir: &Path, writable: bool) -> Result<Option<MarkFile>, Error> {
        let path = Self::path(dir);
        let file = match OpenOptions::new().read(true).write(writable).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file(&path, "open", &error)),
        };
        let mut newest: Option<(u64, Mark)> = None;
        for slot in 0..SLOTS {
            let mut bytes = [0; SLOT_LEN];
            file.read_exact_at(&mut bytes, slot * SLOT_STEP)
                .map_err(|error| Error::file(&path, "read", &error))?;
            match decode(&bytes) {
                Slot::Invalid => {}
                Slot::Format(found) => {
                    return Err(Error::Format {
                        path,
                        found,
                        known: LOG_FORMAT,
                    });
                }
                Slot::Valid(mark) => {
                    if newest.is_none_or(|(_, best)| best.batch < mark.batch) {
                        newest = Some((slot, mark));
                    }
                }
            }
        }
        let Some((slot, mark)) = newest else {
            return Err(Error::MarkDamaged { path });
        };
        Ok(Some(MarkFile {
            file,
            path,
            mark,
            next_slot: (slot + 1) % SLOTS,
        }))
    }

    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    /// Makes `batch` the mark, durably. The caller has synced that batch. A lower number than the mark
    /// changes nothing.
    pub(super) fn advance(&mut self, batch: u64) -> Result<(), Error> {
        if batch <= self.mark.batch {
            return Ok(());
        }
        let mark = Mark { batch, ..self.mark };
        self.file
            .write_all_at(&encode(mark), self.next_slot * SLOT_STEP)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| Error::file(&self.path, "write", &error))?;
        self.mark = mark;
        self.next_slot = (self.next_slot + 1) % SLOTS;
        Ok(())
    }
}

fn encode(mark: Mark) -> [u8; SLOT_LEN] {
    let mut out = [0; SLOT_LEN];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&LOG_FORMAT.to_be_bytes());
    out[12..20].copy_from_slice(&mark.store.to_be_bytes());
    out[20..28].copy_from_slice(&mark.batch.to_be_bytes());
    let crc = crc32fast::hash(&out[..28]);
    out[28..].copy_from_slice(&crc.to_be_bytes());
    out
}

enum Slot {
    Invalid,
    Format(u32),
    Valid(Mark),
}

fn decode(bytes: &[u8; SLOT_LEN]) -> Slot {
    let word =
        |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let long = |at: usize| (u64::from(word(at)) << 32) | u64::from(word(at + 4));
    if &bytes[..8] != MAGIC || crc32fast::hash(&bytes[..28]) != word(28) {
        return Slot::Invalid;
    }
    if word(8) != LOG_FORMAT {
        return Slot::Format(word(8));
    }
    Slot::Valid(Mark {
        store: long(12),
        batch: long(20),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_survives_and_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        assert!(MarkFile::open(dir.path(), true).unwrap().is_none());
        let mut file = MarkFile::create(dir.path(), 9).unwrap();
        for batch in [5, 3, 8, 8, 11] {
            file.advance(batch).unwrap();
        }
        let file = MarkFile::open(dir.path(), true).unwrap().unwrap();
        assert_eq!(
            file.mark(),
            Mark {
                store: 9,
                batch: 11
            }
        );
    }

    #[test]
    fn a_cut_off_write_leaves_the_mark_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = MarkFile::create(dir.path(), 9).unwrap();
        file.advance(5).unwrap();
        let torn = file.next_slot * SLOT_STEP;
        file.file.write_all_at(&[7; 20], torn).unwrap();
        let mut file = MarkFile::open(dir.path(), true).unwrap().unwrap();
        assert_eq!(file.mark().batch, 5);
        file.advance(6).unwrap();
        let file = MarkFile::open(dir.path(), true).unwrap().unwrap();
        assert_eq!(file.mark().batch, 6);
    }

    #[test]
    fn damage_and_unknown_formats_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = MarkFile::path(dir.path());
        MarkFile::create(dir.path(), 9).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[21] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(
            MarkFile::open(dir.path(), true),
            Err(Error::MarkDamaged { .. })
        ));
        bytes[21] ^= 1;
        bytes[8..12].copy_from_slice(&2u32.to_be_bytes());
        let crc = crc32fast::hash(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_be_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let error = MarkFile::open(dir.path(), true).unwrap_err().to_string();
        assert!(error.contains("format 2"), "{error}");
    }
}
