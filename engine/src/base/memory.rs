//! The base store in memory, for simulation: it survives a crash of the engine on top of it, with
//! what was ingested and without what was only staged.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Base, Cursor, FileLife, FileWriter, KeySpan, ReadView, StagedFile};
use crate::decode::Malformed;
use crate::error::Error;
use crate::id::RangeId;
use crate::key::StoredKey;

type Rows = BTreeMap<Bytes, Bytes>;
type FileRows = Vec<(Bytes, Option<Bytes>)>;

/// The "disk" of an in-memory store. Clones name the same disk; a store on it can be dropped at
/// any point, as in a crash, and opened again.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    inner: Arc<Mutex<Disk>>,
}

/// Where an ingest that was told to crash does so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IngestCrash {
    /// Nothing of it is on the disk.
    Before,
    /// All of it is on the disk, but the caller never learns so.
    After,
}

#[derive(Default)]
struct Disk {
    ingested: Arc<Rows>,
    /// Finished or not: a crash loses these.
    staged: BTreeMap<PathBuf, FileRows>,
    staged_count: u64,
    ingest_crash: Option<IngestCrash>,
    ingests: u64,
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    /// Loses everything that was not ingested. The stores on it must be gone.
    pub fn crash(&self) {
        let mut disk = self.inner.lock();
        disk.staged.clear();
        disk.ingest_crash = None;
    }

    /// Makes the next ingest fail, before or after it has become durable. Whoever sees the error
    /// drops the store, calls [`MemoryDisk::crash`] and opens it again.
    pub fn crash_next_ingest(&self, at: IngestCrash) {
        self.inner.lock().ingest_crash = Some(at);
    }

    /// Finished files that wait to be ingested.
    #[cfg(test)]
    pub(crate) fn staged_files(&self) -> usize {
        self.inner.lock().staged.len()
    }

    /// How often files were ingested.
    pub fn ingests(&self) -> u64 {
        self.inner.lock().ingests
    }

    /// Flips one bit of the value of the `nth` row, counted round from the first: bit rot.
    pub fn rot(&self, nth: usize) {
        let mut disk = self.inner.lock();
        let rows = Arc::make_mut(&mut disk.ingested);
        let count = rows.len().max(1);
        if let Some(value) = rows.values_mut().nth(nth % count) {
            let mut bytes = value.to_vec();
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
            *value = bytes.into();
        }
    }
}

/// The base store on a [`MemoryDisk`].
pub(crate) struct MemoryBase {
    disk: MemoryDisk,
}

impl MemoryBase {
    /// Opens a disk; what was staged on it is lost, as on a real one.
    pub(crate) fn open(disk: &MemoryDisk) -> MemoryBase {
        disk.crash();
        MemoryBase { disk: disk.clone() }
    }
}

fn crashed() -> Error {
    Error::Stopped {
        reason: "the simulated disk has crashed".to_owned(),
    }
}

impl Base for MemoryBase {
    fn view(&self) -> Arc<dyn ReadView> {
        Arc::new(MemoryView {
            rows: self.disk.inner.lock().ingested.clone(),
        })
    }

    fn writer(&self, _: FileLife) -> Result<Box<dyn FileWriter + '_>, Error> {
        Ok(Box::new(MemoryWriter {
            disk: self.disk.clone(),
            rows: Vec::new(),
            bytes: 0,
        }))
    }

    fn discard(&self, files: Vec<StagedFile>) {
        let mut disk = self.disk.inner.lock();
        for file in files {
            disk.staged.remove(&file.path);
        }
    }

    fn ingest(&self, files: Vec<StagedFile>, dropped: &[RangeId]) -> Result<(), Error> {
        let mut disk = self.disk.inner.lock();
        let crash = disk.ingest_crash.take();
        if crash == Some(IngestCrash::Before) {
            return Err(crashed());
        }
        let mut rows = Rows::clone(&disk.ingested);
        if !dropped.is_empty() {
            rows.retain(|key, _| !range_of(key).is_some_and(|range| dropped.contains(&range)));
        }
        for file in files {
            let Some(file_rows) = disk.staged.remove(&file.path) else {
                return Err(crashed());
            };
            for (key, value) in file_rows {
                match value {
                    Some(value) => rows.insert(key, value),
                    None => rows.remove(&key),
                };
            }
        }
        disk.ingested = Arc::new(rows);
        disk.ingests += 1;
        if crash == Some(IngestCrash::After) {
            return Err(crashed());
        }
        Ok(())
    }

    fn drop_hours(&self, end: u32) -> Result<(), Error> {
        let mut disk = self.disk.inner.lock();
        let old = |key: &[u8]| matches!(StoredKey::split(key), Ok(StoredKey::Dedup { hour, .. }) if hour < end);
        let rows = disk.ingested.iter().filter(|(key, _)| !old(key));
        let kept = rows.map(|(key, value)| (key.clone(), value.clone()));
        disk.ingested = Arc::new(kept.collect());
        Ok(())
    }

    fn checkpoint(&self, dir: &Path) -> Result<(), Error> {
        let reason = format!("a store in memory has no checkpoint at {}", dir.display());
        Err(Error::Stopped { reason })
    }

    fn verify(&self, fault: &mut dyn FnMut(Error)) -> Result<(), Error> {
        for key in self.disk.inner.lock().ingested.keys() {
            if let Err(malformed) = StoredKey::split(key) {
                fault(Error::corrupt_row(key, malformed));
            }
        }
        Ok(())
    }

    fn level0_files(&self) -> u64 {
        0
    }

    #[cfg(test)]
    fn direct_rows(&self) -> u64 {
        0
    }

    fn file_bytes(&self) -> u64 {
        bytes_of(self.disk.inner.lock().ingested.iter())
    }

    fn span_bytes(&self, spans: &[KeySpan]) -> Vec<u64> {
        let rows = self.disk.inner.lock().ingested.clone();
        let of_span = |(from, to): &KeySpan| {
            let bounds = (Bound::Included(&from[..]), Bound::Excluded(&to[..]));
            bytes_of(rows.range::<[u8], _>(bounds))
        };
        spans.iter().map(of_span).collect()
    }
}

fn bytes_of<'a>(rows: impl Iterator<Item = (&'a Bytes, &'a Bytes)>) -> u64 {
    let bytes: usize = rows.map(|(key, value)| key.len() + value.len()).sum();
    u64::try_from(bytes).expect("a usize fits")
}

fn range_of(key: &[u8]) -> Option<RangeId> {
    match StoredKey::split(key) {
        Ok(StoredKey::State { range, .. } | StoredKey::Dedup { range, .. }) => Some(range),
        Err(
            Malformed::TooShort { .. }
            | Malformed::TooLong { .. }
            | Malformed::Unknown { .. }
            | Malformed::NotUtf8 { .. }
            | Malformed::Checksum { .. },
        ) => None,
    }
}

struct MemoryWriter {
    disk: MemoryDisk,
    rows: FileRows,
    bytes: u64,
}

impl MemoryWriter {
    fn push(&mut self, key: &[u8], value: Option<&[u8]>) {
        if let Some((last, _)) = self.rows.last() {
            assert!(last.as_ref() < key, "a file's keys rise");
        }
        let len = key.len() + value.map_or(0, <[u8]>::len);
        self.bytes += u64::try_from(len).expect("a usize fits");
        self.rows.push((
            Bytes::copy_from_slice(key),
            value.map(Bytes::copy_from_slice),
        ));
    }
}

impl FileWriter for MemoryWriter {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.push(key, Some(value));
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), Error> {
        self.push(key, None);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<StagedFile, Error> {
        assert!(!self.rows.is_empty(), "a file has at least one row");
        let mut disk = self.disk.inner.lock();
        disk.staged_count += 1;
        let path = PathBuf::from(format!("{:06}", disk.staged_count));
        disk.staged.insert(path.clone(), self.rows);
        Ok(StagedFile {
            path,
            bytes: self.bytes,
        })
    }
}

struct MemoryView {
    rows: Arc<Rows>,
}

impl ReadView for MemoryView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        Ok(self.rows.get(key).cloned())
    }

    fn cursor<'a>(&'a self, lower: &[u8], upper: &[u8]) -> Box<dyn Cursor + 'a> {
        let (lower, upper) = (Bytes::copy_from_slice(lower), Bytes::copy_from_slice(upper));
        Box::new(MemoryCursor {
            rows: &self.rows,
            lower,
            upper,
            at: None,
        })
    }
}

struct MemoryCursor<'a> {
    rows: &'a Rows,
    lower: Bytes,
    upper: Bytes,
    at: Option<(&'a Bytes, &'a Bytes)>,
}

impl MemoryCursor<'_> {
    fn first_in(&mut self, from: Bound<Bytes>) {
        let above = match &from {
            Bound::Included(key) | Bound::Excluded(key) => *key >= self.upper,
            Bound::Unbounded => false,
        };
        self.at = if above {
            None
        } else {
            self.rows
                .range((from, Bound::Excluded(self.upper.clone())))
                .next()
        };
    }
}

impl Cursor for MemoryCursor<'_> {
    fn seek(&mut self, key: &[u8]) -> Result<(), Error> {
        let from = Bytes::copy_from_slice(key).max(self.lower.clone());
        self.first_in(Bound::Included(from));
        Ok(())
    }

    fn seek_to_last(&mut self) -> Result<(), Error> {
        let empty = self.upper <= self.lower;
        let rows = (!empty).then(|| self.rows.range(self.lower.clone()..self.upper.clone()));
        self.at = rows.and_then(|mut rows| rows.next_back());
        Ok(())
    }

    fn next(&mut self) -> Result<(), Error> {
        if let Some((key, _)) = self.at {
            self.first_in(Bound::Excluded(key.clone()));
        }
        Ok(())
    }

    fn row(&self) -> Option<(&[u8], &[u8])> {
        self.at.map(|(key, value)| (key.as_ref(), value.as_ref()))
    }
}
