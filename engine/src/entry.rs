//! The bytes of one Raft entry: made once by the leader's proposer, then only passed on.
//!
//! ```text
//! format u8 = 1 | time, ms u64 | count u32 | commands | xxh3-64 of all before u64
//! ```

#[cfg(test)]
mod tests;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::command::Command;
use crate::command::encoding::{decode_command, encode_command};
use crate::decode::{Malformed, Reader};

const FORMAT: u8 = 1;
const FRONT_LEN: usize = 13;
const CHECKSUM_LEN: usize = 8;

/// Collects commands into one entry.
#[derive(Debug)]
pub struct EntryBuilder {
    bytes: Vec<u8>,
    count: u32,
}

impl EntryBuilder {
    /// An entry that carries the leader's clock, in milliseconds since the Unix epoch.
    pub fn new(time_ms: u64) -> EntryBuilder {
        let mut bytes = Vec::with_capacity(1024);
        bytes.push(FORMAT);
        bytes.extend_from_slice(&time_ms.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        EntryBuilder { bytes, count: 0 }
    }

    /// Appends a command. Its message id must have been assigned.
    pub fn push(&mut self, command: &Command) {
        self.count += 1;
        encode_command(command, &mut self.bytes);
    }

    /// Bytes so far, the checksum to come included.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len() + CHECKSUM_LEN
    }

    /// Commands so far.
    pub fn count(&self) -> usize {
        usize::try_from(self.count).unwrap_or(usize::MAX)
    }

    /// The entry.
    pub fn finish(mut self) -> Bytes {
        self.bytes[9..FRONT_LEN].copy_from_slice(&self.count.to_be_bytes());
        let checksum = xxh3_64(&self.bytes);
        self.bytes.extend_from_slice(&checksum.to_be_bytes());
        self.bytes.into()
    }
}

/// An entry whose checksum fits. Bodies are slices of its bytes.
#[derive(Clone, Debug)]
pub struct Entry {
    bytes: Bytes,
    time_ms: u64,
    count: u32,
}

impl Entry {
    /// Checks an entry's checksum and front.
    ///
    /// # Errors
    /// Anything that the proposer cannot have made: a fault of whoever holds the bytes.
    pub fn open(bytes: Bytes) -> Result<Entry, Malformed> {
        let what = "entry";
        let Some(covered) = bytes.len().checked_sub(CHECKSUM_LEN) else {
            return Err(Malformed::TooShort {
                what,
                needed: CHECKSUM_LEN,
                left: bytes.len(),
            });
        };
        let stored = Reader::new(what, &bytes[covered..]).u64()?;
        let computed = xxh3_64(&bytes[..covered]);
        if stored != computed {
            return Err(Malformed::Checksum {
                what,
                stored,
                computed,
            });
        }
        let mut reader = Reader::new(what, &bytes[..covered]);
        let format = reader.u8()?;
        if format != FORMAT {
            return Err(reader.unknown(format));
        }
        let time_ms = reader.u64()?;
        let count = reader.u32()?;
        if count == 0 {
            reader.end()?;
        }
        Ok(Entry {
            bytes,
            time_ms,
            count,
        })
    }

    /// The proposer's clock, in milliseconds since the Unix epoch.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// How many commands it holds.
    pub fn count(&self) -> usize {
        usize::try_from(self.count).unwrap_or(usize::MAX)
    }

    /// Bytes that a slice of this entry pins.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The commands, in order. After an error nothing more comes.
    pub fn commands(&self) -> Commands<'_> {
        let end = self.bytes.len() - CHECKSUM_LEN;
        let reader = Reader::new("command", &self.bytes[FRONT_LEN..end]);
        Commands {
            bytes: &self.bytes,
            reader,
            left: self.count,
        }
    }
}

/// Reads an entry's commands one by one.
pub struct Commands<'a> {
    bytes: &'a Bytes,
    reader: Reader<'a>,
    left: u32,
}

impl Iterator for Commands<'_> {
    type Item = Result<Command, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let mut command = decode_command(&mut self.reader, self.bytes);
        if self.left == 0 && command.is_ok() {
            command = self.reader.end().and(command);
        }
        if command.is_err() {
            self.left = 0;
        }
        Some(command)
    }
}
