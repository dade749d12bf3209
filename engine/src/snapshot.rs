//! Snapshots: a shard's visible rows in files that carry no ranges, and their installation.
//!
//! A snapshot is made from the read view of the last flush, whose applied row names its index: it
//! needs no command and no quorum. Its files are not SST files, because the installing node puts
//! its own ranges in front of every key, and the RocksDB binding has no reader for a loose SST.
//!
//! ```text
//! file:   "MBXROWS1" | format u32 | shard u32 | number u32 (from 1)          front
//!         (length u32 | rows | xxh3-64 of the rows u64)*                      blocks
//!         0 u32 | rows in this file u64 | last file u8 | xxh3-64 of both u64  end
//! row:    slot u16 | space u8 | hour u32 | key length u8 | value length u32 | key | value
//! ```

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use crate::applied::AppliedState;
use crate::base::ReadView;
use crate::decode::{Malformed, Reader};
use crate::error::Error;
use crate::id::{ShardId, SlotId};
use crate::range::Ranges;
use crate::shard::Shard;
use crate::walk::{Place, Unflushed, Walk};

/// The format of snapshot files that this build reads and writes.
/// 2: the meta's applied row carries the cluster options.
pub const SNAPSHOT_FORMAT: u32 = 2;

const MAGIC: &[u8; 8] = b"MBXROWS1";
const FRONT_LEN: usize = 20;
const ROW_FRONT_LEN: usize = 12;
const BLOCK_BYTES: usize = 256 * 1024;
/// A block is closed once it is over `BLOCK_BYTES`, so it holds at most one row more than that.
const BLOCK_BYTES_MAX: u32 = 32 << 20;
const FILE_BYTES: u64 = 64 << 20;
const STATE: u8 = 1;
const DEDUP: u8 = 2;
/// In changes of a slot, see `export.rs`: a row that is no longer there.
const STATE_GONE: u8 = 3;
const DEDUP_GONE: u8 = 4;

/// What a snapshot is of. Travels with the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// Whose rows.
    pub shard: ShardId,
    /// The cluster's slot count.
    pub slot_count: u16,
    /// The applied row of the flush that the rows are from.
    pub applied: AppliedState,
}

impl SnapshotMeta {
    /// The stored form: `format u32 | shard u32 | slot count u16 | applied row`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = SNAPSHOT_FORMAT.to_be_bytes().to_vec();
        out.extend_from_slice(&self.shard.0.to_be_bytes());
        out.extend_from_slice(&self.slot_count.to_be_bytes());
        out.extend_from_slice(&self.applied.encode());
        out
    }

    /// Reads what [`SnapshotMeta::encode`] made.
    ///
    /// # Errors
    /// An unknown format, or bytes that are not what they should be.
    pub fn decode(bytes: &[u8]) -> Result<SnapshotMeta, Malformed> {
        let mut reader = Reader::new("snapshot meta", bytes);
        let format = reader.u32()?;
        if format != SNAPSHOT_FORMAT {
            return Err(reader.unknown(format));
        }
        Ok(SnapshotMeta {
            shard: ShardId(reader.u32()?),
            slot_count: reader.u16()?,
            applied: AppliedState::decode(reader.rest())?,
        })
    }
}

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Where it is.
    pub path: PathBuf,
    /// How long it is.
    pub bytes: u64,
    /// xxh3-64 over all of it.
    pub checksum: u64,
}

/// A shard as it was at its last flush. Holds a read view: drop it when the files are written.
pub struct Snapshot {
    meta: SnapshotMeta,
    files: Arc<dyn ReadView>,
    ranges: Arc<Ranges>,
}

impl Shard {
    /// Takes a snapshot of what was flushed last. Costs nothing until its files are written.
    ///
    /// # Errors
    /// A shard that a fault has stopped.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let state = self.state.read();
        state.check()?;
        let applied = state.flushed.clone();
        let (shard, slot_count) = (self.id(), state.options.slot_count);
        let meta = SnapshotMeta {
            shard,
            slot_count,
            applied,
        };
        Ok(Snapshot {
            meta,
            files: state.files.clone(),
            ranges: state.flushed_ranges.clone(),
        })
    }
}

impl Snapshot {
    /// What it is of.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Writes the rows into files in `dir`, in order, and syncs them. `written` is told the bytes
    /// of each block: whoever limits the rate waits in it.
    ///
    /// # Errors
    /// A storage fault on either side.
    pub fn write_files(
        &self,
        dir: &Path,
        written: &mut dyn FnMut(u64),
    ) -> Result<Vec<SnapshotFile>, Error> {
        let mut writer = Writer::new(dir, self.meta.shard, written);
        let unflushed = Unflushed::default();
        let walk = Walk::new(self.files.as_ref(), &self.ranges, &unflushed);
        walk.run(&mut |slot, place, value| writer.add(slot, place, Some(value)))?;
        writer.finish()
    }
}

/// Writes rows into files, as they come.
pub(crate) struct Writer<'a> {
    dir: &'a Path,
    shard: ShardId,
    written: &'a mut dyn FnMut(u64),
    done: Vec<SnapshotFile>,
    open: Option<OpenFile>,
    block: Vec<u8>,
}

struct OpenFile {
    path: PathBuf,
    file: BufWriter<File>,
    hasher: Box<Xxh3Default>,
    bytes: u64,
    rows: u64,
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        operation,
        path,
        source,
    }
}

impl OpenFile {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.hasher.update(bytes);
        self.bytes += u64::try_from(bytes.len()).expect("a usize fits");
        self.file.write_all(bytes).map_err(io("write", &self.path))
    }

    fn end(mut self, last: bool) -> Result<SnapshotFile, Error> {
        let mut end = self.rows.to_be_bytes().to_vec();
        end.push(u8::from(last));
        self.write(&0_u32.to_be_bytes())?;
        self.write(&end)?;
        self.write(&xxh3_64(&end).to_be_bytes())?;
        let path = self.path;
        let file = self.file.into_inner().map_err(|fault| fault.into_error());
        let synced = file.and_then(|file| file.sync_all());
        synced.map_err(io("sync", &path))?;
        Ok(SnapshotFile {
            path,
            bytes: self.bytes,
            checksum: self.hasher.digest(),
        })
    }
}

impl<'a> Writer<'a> {
    /// `written` is told the bytes of each block.
    pub(crate) fn new(
        dir: &'a Path,
        shard: ShardId,
        written: &'a mut dyn FnMut(u64),
    ) -> Writer<'a> {
        Writer {
            dir,
            shard,
            written,
            done: Vec::new(),
            open: None,
            block: Vec::with_capacity(BLOCK_BYTES + 64 * 1024),
        }
    }

    /// Adds a row; none: it is gone.
    pub(crate) fn add(
        &mut self,
        slot: SlotId,
        place: Place<'_>,
        value: Option<&[u8]>,
    ) -> Result<(), Error> {
        #[cfg(feature = "planted")]
        if mailbox_planted::is("dedup-not-in-snapshot") && matches!(place, Place::Dedup(..)) {
            return Ok(());
        }
        let (space, hour, key) = match (place, value) {
            (Place::State(key), Some(_)) => (STATE, 0, key),
            (Place::Dedup(hour, key), Some(_)) => (DEDUP, hour, key),
            (Place::State(key), None) => (STATE_GONE, 0, key),
            (Place::Dedup(hour, key), None) => (DEDUP_GONE, hour, key),
        };
        let value = value.unwrap_or_default();
        let key_len = u8::try_from(key.len()).expect("keys are far below 256 bytes");
        let value_len = u32::try_from(value.len()).expect("rows are far below 4 GiB");
        self.block.extend_from_slice(&slot.0.to_be_bytes());
        self.block.push(space);
        self.block.extend_from_slice(&hour.to_be_bytes());
        self.block.push(key_len);
        self.block.extend_from_slice(&value_len.to_be_bytes());
        self.block.extend_from_slice(key);
        self.block.extend_from_slice(value);
        self.opened()?.rows += 1;
        if self.block.len() >= BLOCK_BYTES {
            self.end_block()
        } else {
            Ok(())
        }
    }

    fn opened(&mut self) -> Result<&mut OpenFile, Error> {
        if self.open.is_none() {
            let number = u32::try_from(self.done.len() + 1).expect("files are few");
            let path = self.dir.join(format!("{number:06}.rows"));
            let file = File::create(&path).map_err(io("create", &path))?;
            let (file, hasher) = (BufWriter::new(file), Box::default());
            let mut file = OpenFile {
                path,
                file,
                hasher,
                bytes: 0,
                rows: 0,
            };
            file.write(MAGIC)?;
            for field in [SNAPSHOT_FORMAT, self.shard.0, number] {
                file.write(&field.to_be_bytes())?;
            }
            self.open = Some(file);
        }
        Ok(self.open.as_mut().expect("just opened"))
    }

    fn end_block(&mut self) -> Result<(), Error> {
        let block = std::mem::take(&mut self.block);
        let file = self.opened()?;
        file.write(&u32::try_from(block.len()).expect("bounded").to_be_bytes())?;
        file.write(&block)?;
        file.write(&xxh3_64(&block).to_be_bytes())?;
        (self.written)(u64::try_from(block.len()).expect("a usize fits"));
        self.block = block;
        self.block.clear();
        if let Some(file) = self.open.take_if(|file| file.bytes >= FILE_BYTES) {
            self.done.push(file.end(false)?);
        }
        Ok(())
    }

    /// Syncs what is there: one file at least.
    pub(crate) fn finish(mut self) -> Result<Vec<SnapshotFile>, Error> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        self.opened()?;
        if let Some(file) = self.open.take() {
            self.done.push(file.end(true)?);
        }
        File::open(self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(io("sync", self.dir))?;
        Ok(self.done)
    }
}

/// A row read back.
pub(crate) struct SnapshotRow<'a> {
    pub(crate) slot: SlotId,
    pub(crate) place: Place<'a>,
    /// Nothing, if it is gone.
    pub(crate) value: Option<&'a [u8]>,
}

/// Reads a snapshot's files in order, checks every block, and gives every row to `take`.
pub(crate) fn read_files(
    shard: ShardId,
    paths: &[PathBuf],
    take: &mut dyn FnMut(&Path, SnapshotRow<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    for (index, path) in paths.iter().enumerate() {
        let number = u32::try_from(index + 1).expect("files are few");
        let last = read_file(shard, number, path, take)?;
        if last != (index + 1 == paths.len()) {
            let (what, number) = ("place of the last snapshot file", u64::from(number));
            return Err(corrupt(path, Malformed::Unknown { what, number }));
        }
    }
    if paths.is_empty() {
        return Err(Error::Stopped {
            reason: "a snapshot has at least one file".to_owned(),
        });
    }
    Ok(())
}

fn corrupt(path: &Path, malformed: Malformed) -> Error {
    Error::CorruptSnapshot {
        path: path.to_owned(),
        malformed,
    }
}

/// Gives whether this is the last file.
fn read_file(
    shard: ShardId,
    number: u32,
    path: &Path,
    take: &mut dyn FnMut(&Path, SnapshotRow<'_>) -> Result<(), Error>,
) -> Result<bool, Error> {
    let mut file = BufReader::new(File::open(path).map_err(io("open", path))?);
    let mut read = |len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact(&mut bytes)
            .map_err(io("read", path))
            .map(|()| bytes)
    };
    check_front(shard, number, path, &read(FRONT_LEN)?)?;
    let mut rows = 0_u64;
    loop {
        let length = read(4)?;
        let length = Reader::new("block length", &length).u32();
        match length.map_err(|fault| corrupt(path, fault))? {
            0 => break,
            length if length > BLOCK_BYTES_MAX => {
                let (what, number) = ("block length", u64::from(length));
                return Err(corrupt(path, Malformed::Unknown { what, number }));
            }
            length => {
                let block = read(usize::try_from(length).expect("bounded"))?;
                check(path, &block, &read(8)?)?;
                rows += read_block(path, &Bytes::from(block), take)?;
            }
        }
    }
    let end = read(9)?;
    check(path, &end, &read(8)?)?;
    let mut end = Reader::new("end of a snapshot file", &end);
    let fields = end.u64().and_then(|counted| Ok((counted, end.u8()?)));
    let (counted, last) = fields.map_err(|fault| corrupt(path, fault))?;
    if counted != rows {
        let what = "rows of a snapshot file";
        return Err(corrupt(
            path,
            Malformed::Checksum {
                what,
                stored: counted,
                computed: rows,
            },
        ));
    }
    Ok(last == 1)
}

fn check_front(shard: ShardId, number: u32, path: &Path, front: &[u8]) -> Result<(), Error> {
    let mut reader = Reader::new("front of a snapshot file", front);
    let fields = (|| {
        Ok((
            reader.array::<8>()?,
            reader.u32()?,
            reader.u32()?,
            reader.u32()?,
        ))
    })();
    let (magic, format, of_shard, of_number) = fields.map_err(|fault| corrupt(path, fault))?;
    if format != SNAPSHOT_FORMAT && magic == *MAGIC {
        let (what, supported) = ("the snapshot file", SNAPSHOT_FORMAT);
        return Err(Error::UnknownFormat {
            what,
            path: path.to_owned(),
            found: format,
            supported,
        });
    }
    if magic != *MAGIC || of_shard != shard.0 || of_number != number {
        let what = "front of a snapshot file";
        return Err(corrupt(
            path,
            Malformed::Unknown {
                what,
                number: u64::from(of_number),
            },
        ));
    }
    Ok(())
}

fn check(path: &Path, bytes: &[u8], checksum: &[u8]) -> Result<(), Error> {
    let stored = Reader::new("snapshot block", checksum).u64();
    let stored = stored.map_err(|fault| corrupt(path, fault))?;
    let computed = xxh3_64(bytes);
    if stored == computed {
        return Ok(());
    }
    Err(corrupt(
        path,
        Malformed::Checksum {
            what: "snapshot block",
            stored,
            computed,
        },
    ))
}

fn read_block(
    path: &Path,
    block: &Bytes,
    take: &mut dyn FnMut(&Path, SnapshotRow<'_>) -> Result<(), Error>,
) -> Result<u64, Error> {
    let mut reader = Reader::new("snapshot row", block);
    let mut rows = 0;
    while !reader.is_empty() {
        let row = read_row(&mut reader).map_err(|fault| corrupt(path, fault))?;
        take(path, row)?;
        rows += 1;
    }
    Ok(rows)
}

fn read_row<'a>(reader: &mut Reader<'a>) -> Result<SnapshotRow<'a>, Malformed> {
    let mut front = Reader::new("snapshot row", reader.take(ROW_FRONT_LEN)?);
    let (slot, space, hour) = (SlotId(front.u16()?), front.u8()?, front.u32()?);
    let key_len = usize::from(front.u8()?);
    let value_len = usize::try_from(front.u32()?).unwrap_or(usize::MAX);
    let key = reader.take(key_len)?;
    let value = reader.take(value_len)?;
    let place = match space {
        STATE | STATE_GONE => Place::State(key),
        DEDUP | DEDUP_GONE => Place::Dedup(hour, key),
        space => return Err(reader.unknown(space)),
    };
    let value = [STATE, DEDUP].contains(&space).then_some(value);
    Ok(SnapshotRow { slot, place, value })
}
