//! The values of the log's rows.
//!
//! An entry's value is `crc u32 | entry`, where the checksum runs over the row's whole key and the
//! entry's bytes: an entry that lands under another shard or index is as wrong as one with a flipped
//! byte.

use bytes::Bytes;

use super::key::{ENTRY_KEY_LEN, Key, entry_key};
use crate::types::{Entry, decode_entry, entry_len, put_entry};

/// Bytes that the row adds to an encoded entry.
const CRC_LEN: usize = 4;
/// Bytes of a batch row's value.
pub(super) const BATCH_LEN: usize = 16;

/// Which store wrote a batch, and its number. The store's id keeps bytes that a client smuggled into a
/// body from passing for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchRow {
    pub(super) store: u64,
    pub(super) number: u64,
}

impl BatchRow {
    pub(super) fn encode(self) -> [u8; BATCH_LEN] {
        let mut out = [0; BATCH_LEN];
        out[..8].copy_from_slice(&self.store.to_be_bytes());
        out[8..].copy_from_slice(&self.number.to_be_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<BatchRow> {
        let bytes = <&[u8; BATCH_LEN]>::try_from(bytes).ok()?;
        let (store, number) = bytes.split_first_chunk::<8>()?;
        Some(BatchRow {
            store: u64::from_be_bytes(*store),
            number: u64::from_be_bytes(number.try_into().ok()?),
        })
    }
}

/// Bytes that an entry's row takes, key and value.
pub(super) fn row_len(entry: &Entry) -> usize {
    ENTRY_KEY_LEN + CRC_LEN + entry_len(entry)
}

/// Writes the entry's value into `out`, emptied first.
pub(super) fn put_row(out: &mut Vec<u8>, key: &[u8; ENTRY_KEY_LEN], entry: &Entry) {
    out.clear();
    out.extend_from_slice(&[0; CRC_LEN]);
    put_entry(out, entry);
    let crc = checksum(key, &out[CRC_LEN..]);
    out[..CRC_LEN].copy_from_slice(&crc.to_be_bytes());
}

/// Decodes and verifies the row of (`shard`, `index`). The error says what is wrong, not where.
pub(super) fn decode_row(shard: u32, index: u64, value: &[u8]) -> Result<Entry, String> {
    let Some((crc, body)) = value.split_first_chunk::<CRC_LEN>() else {
        return Err(format!("{} bytes are too few for a row", value.len()));
    };
    let stored = u32::from_be_bytes(*crc);
    let found = checksum(&entry_key(shard, index), body);
    if stored != found {
        return Err(format!("checksum {found:08x}, stored {stored:08x}"));
    }
    let entry = decode_entry(Bytes::copy_from_slice(body)).map_err(|error| error.to_string())?;
    if entry.log_id.index != index {
        return Err(format!("the entry says index {}", entry.log_id.index));
    }
    Ok(entry)
}

fn checksum(key: &[u8; ENTRY_KEY_LEN], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}

/// The first row of a WAL record, if that is a batch row: what RocksDB calls a write batch is
/// `sequence u64 | count u32 | { 1 | key length | key | value length | value } …`, little-endian.
pub(super) fn batch_of_record(record: &[u8]) -> Option<BatchRow> {
    const HEADER: usize = 12;
    const TAG_PUT: u8 = 1;
    let key = Key::Batch.encode();
    let row = record.get(HEADER..)?.strip_prefix(&[TAG_PUT])?;
    let row = row.strip_prefix(&[1])?.strip_prefix(key.as_slice())?;
    let value = row.strip_prefix(&[BATCH_LEN as u8])?.get(..BATCH_LEN)?;
    BatchRow::decode(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Cmd, log_id};
    use openraft::EntryPayload;

    fn entry(index: u64, body: &[u8]) -> Entry {
        Entry {
            log_id: log_id(3, index),
            payload: EntryPayload::Normal(Cmd(Bytes::copy_from_slice(body))),
        }
    }

    #[test]
    fn a_row_is_found_damaged_wherever_a_bit_flips_or_it_lies() {
        let (mut value, key) = (Vec::new(), entry_key(7, 42));
        put_row(&mut value, &key, &entry(42, b"hello"));
        assert_eq!(value.len() + key.len(), row_len(&entry(42, b"hello")));
        let back = decode_row(7, 42, &value).unwrap();
        assert_eq!(back.log_id, log_id(3, 42));
        assert!(decode_row(8, 42, &value).is_err());
        assert!(decode_row(7, 41, &value).is_err());
        for bit in 0..value.len() * 8 {
            let mut bad = value.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_row(7, 42, &bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_batch_row_is_found_in_rocksdbs_own_bytes() {
        let row = BatchRow {
            store: 0x1234_5678_9abc_def0,
            number: 77,
        };
        let mut batch = rocksdb::WriteBatch::default();
        batch.put(Key::Batch.encode(), row.encode());
        batch.put(b"other", b"row");
        assert_eq!(batch_of_record(batch.data()), Some(row));
        assert_eq!(batch_of_record(&batch.data()[..20]), None);
        let mut filler = rocksdb::WriteBatch::default();
        filler.put_log_data(vec![1; 64]);
        assert_eq!(batch_of_record(filler.data()), None);
    }
}
