//! Our own reader of RocksDB's WAL files. RocksDB ends replay silently at the first bad record; this one
//! reads on behind it.
//!
//! A file is a row of 32 KiB blocks. A record never crosses a block: it is cut into a first, middle and
//! last piece, and the rest of a block that is too small for a header is zero. A piece is
//! `masked crc32c u32 | length u16 | type u8 | log number u32 | bytes`, little-endian, the checksum from
//! the type on. The log number is the file's: a recycled file still holds pieces of its earlier life,
//! under another number.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::crc32c::{crc32c, masked};
use super::row::{BatchRow, batch_of_record};

const BLOCK_LEN: usize = 32 * 1024;
const HEADER_LEN: usize = 11;
/// As much of a record as holds its batch row.
const PREFIX_LEN: usize = 64;

/// Kinds of pieces in a file that may be recycled.
const WHOLE: u8 = 5;
const FIRST: u8 = 6;
const MIDDLE: u8 = 7;
const LAST: u8 = 8;

/// A whole batch in a WAL file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WalBatch {
    /// Its batch row.
    pub(super) row: BatchRow,
    /// Where it begins in the file, in bytes.
    pub(super) position: u64,
    /// Bytes before it, behind the piece before it, belong to no piece: RocksDB would not get here.
    pub(super) behind_damage: bool,
}

/// The WAL files in `dir` in the order in which they were written.
pub(super) fn wal_files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for file in std::fs::read_dir(dir)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "log")
            && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
            && let Ok(number) = stem.parse::<u64>()
        {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files)
}

/// Finds every whole batch of the WAL file `path` with number `log`, in order, damaged stretches skipped.
pub(super) fn scan(path: &Path, log: u64, mut found: impl FnMut(WalBatch)) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut scanner = Scanner {
        log: log as u32,
        block_at: 0,
        damage: false,
        record: None,
    };
    let mut block = vec![0; BLOCK_LEN];
    loop {
        let len = read_full(&mut file, &mut block)?;
        scanner.scan_block(&block[..len], &mut found);
        if len < BLOCK_LEN {
            return Ok(());
        }
        scanner.block_at += BLOCK_LEN as u64;
    }
}

fn read_full(file: &mut File, block: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < block.len() {
        match file.read(&mut block[len..])? {
            0 => break,
            read => len += read,
        }
    }
    Ok(len)
}

struct Scanner {
    /// RocksDB stores the low 32 bits of the log number only.
    log: u32,
    block_at: u64,
    /// Bytes that belong to no piece of this log lie behind the last piece.
    damage: bool,
    /// The record whose first piece was seen and whose last piece was not.
    record: Option<Record>,
}

struct Record {
    position: u64,
    prefix: Vec<u8>,
    behind_damage: bool,
}

impl Scanner {
    fn scan_block(&mut self, block: &[u8], found: &mut impl FnMut(WalBatch)) {
        let written = block
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        let mut at = 0;
        while at + HEADER_LEN <= block.len() {
            let Some((kind, len)) = self.piece(&block[at..]) else {
                if at >= written {
                    // The end of all that was written, or a hole.
                    self.damage = true;
                    self.record = None;
                    return;
                }
                // Behind damage a length cannot be trusted: the next piece is looked for at every byte.
                self.damage = true;
                self.record = None;
                at += 1;
                continue;
            };
            let bytes = &block[at + HEADER_LEN..at + HEADER_LEN + len];
            let position = self.block_at + at as u64;
            self.take(kind, bytes, position, found);
            at += HEADER_LEN + len;
        }
    }

    /// Type and length of a good piece of this log at the start of `bytes`.
    fn piece(&self, bytes: &[u8]) -> Option<(u8, usize)> {
        let (header, _) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let [c0, c1, c2, c3, l0, l1, kind, n0, n1, n2, n3] = *header;
        if !matches!(kind, WHOLE | FIRST | MIDDLE | LAST)
            || u32::from_le_bytes([n0, n1, n2, n3]) != self.log
        {
            return None;
        }
        let len = usize::from(u16::from_le_bytes([l0, l1]));
        let checked = bytes.get(6..HEADER_LEN + len)?;
        let stored = u32::from_le_bytes([c0, c1, c2, c3]);
        (masked(crc32c(checked)) == stored).then_some((kind, len))
    }

    fn take(&mut self, kind: u8, bytes: &[u8], position: u64, found: &mut impl FnMut(WalBatch)) {
        if matches!(kind, WHOLE | FIRST) {
            self.record = Some(Record {
                position,
                prefix: bytes[..bytes.len().min(PREFIX_LEN)].to_vec(),
                behind_damage: self.damage,
            });
            self.damage = false;
        } else if let Some(record) = &mut self.record {
            let more = PREFIX_LEN - record.prefix.len();
            record
                .prefix
                .extend_from_slice(&bytes[..bytes.len().min(more)]);
        } else {
            // A middle or last piece whose first piece is lost.
            self.damage = true;
        }
        if !matches!(kind, WHOLE | LAST) {
            return;
        }
        if let Some(record) = self.record.take()
            && let Some(row) = batch_of_record(&record.prefix)
        {
            found(WalBatch {
                row,
                position: record.position,
                behind_damage: record.behind_damage,
            });
        }
    }
}
