//! The keys of the log's rows: one enum is the schema. Tags are stored; none is ever reused.
//!
//! All numbers are big-endian, so that a shard's entries lie in index order.

/// Bytes of an encoded entry key.
pub(super) const ENTRY_KEY_LEN: usize = 13;

const TAG_BATCH: u8 = 1;
const TAG_VOTE: u8 = 2;
const TAG_COMMITTED: u8 = 3;
const TAG_PURGED: u8 = 4;
const TAG_FILLER: u8 = 5;
const TAG_LIFE: u8 = 6;
const TAG_ENTRY: u8 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// Number of the batch, and the store that wrote it: first row of every batch, overwritten by the
    /// next.
    /// Key: `1`      Value: `store u64 | batch u64`
    Batch,
    /// Vote of a shard's replica.
    /// Key: `2 shard(4)`      Value: vote
    Vote(u32),
    /// Last committed log id that this node has seen; may lag.
    /// Key: `3 shard(4)`      Value: log id
    Committed(u32),
    /// Last purged log id; entries up to it are absent whether or not they are still there.
    /// Key: `4 shard(4)`      Value: log id
    Purged(u32),
    /// Means nothing: written to make RocksDB begin another WAL file.
    /// Key: `5`      Value: empty
    Filler,
    /// How a shard's replica came to this node or left it, see `life.rs`; absent for one that the cluster's
    /// bootstrap made. Outlives the replica, as its vote does.
    /// Key: `6 shard(4)`      Value: life
    Life(u32),
    /// An entry.
    /// Key: `16 shard(4) index(8)`      Value: `crc u32 | entry`, see `row.rs`
    Entry(u32, u64),
}

impl Key {
    /// Writes the key into `out`, emptied first.
    pub(super) fn put(self, out: &mut Vec<u8>) {
        out.clear();
        let (tag, shard) = match self {
            Key::Batch => {
                out.push(TAG_BATCH);
                return;
            }
            Key::Filler => {
                out.push(TAG_FILLER);
                return;
            }
            Key::Vote(shard) => (TAG_VOTE, shard),
            Key::Committed(shard) => (TAG_COMMITTED, shard),
            Key::Purged(shard) => (TAG_PURGED, shard),
            Key::Life(shard) => (TAG_LIFE, shard),
            Key::Entry(shard, index) => {
                out.extend_from_slice(&entry_key(shard, index));
                return;
            }
        };
        out.push(tag);
        out.extend_from_slice(&shard.to_be_bytes());
    }

    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ENTRY_KEY_LEN);
        self.put(&mut out);
        out
    }

    /// `None` for bytes that are no key of this schema.
    pub(super) fn decode(bytes: &[u8]) -> Option<Key> {
        let (tag, rest) = bytes.split_first()?;
        if *tag == TAG_BATCH {
            return rest.is_empty().then_some(Key::Batch);
        }
        if *tag == TAG_FILLER {
            return rest.is_empty().then_some(Key::Filler);
        }
        let (shard, rest) = rest.split_first_chunk::<4>()?;
        let shard = u32::from_be_bytes(*shard);
        match *tag {
            TAG_VOTE => rest.is_empty().then_some(Key::Vote(shard)),
            TAG_COMMITTED => rest.is_empty().then_some(Key::Committed(shard)),
            TAG_PURGED => rest.is_empty().then_some(Key::Purged(shard)),
            TAG_LIFE => rest.is_empty().then_some(Key::Life(shard)),
            TAG_ENTRY => {
                let index = <[u8; 8]>::try_from(rest).ok()?;
                Some(Key::Entry(shard, u64::from_be_bytes(index)))
            }
            _ => None,
        }
    }
}

pub(super) fn entry_key(shard: u32, index: u64) -> [u8; ENTRY_KEY_LEN] {
    let mut out = [0; ENTRY_KEY_LEN];
    out[0] = TAG_ENTRY;
    out[1..5].copy_from_slice(&shard.to_be_bytes());
    out[5..].copy_from_slice(&index.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_survive_encoding_and_sort_by_index(shard: u32, a: u64, b: u64) {
            for key in [Key::Batch, Key::Filler, Key::Vote(shard), Key::Committed(shard), Key::Purged(shard), Key::Life(shard), Key::Entry(shard, a)] {
                prop_assert_eq!(Key::decode(&key.encode()), Some(key));
            }
            prop_assert_eq!(entry_key(shard, a).cmp(&entry_key(shard, b)), a.cmp(&b));
        }

        #[test]
        fn other_bytes_are_no_key(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Some(key) = Key::decode(&bytes) {
                prop_assert_eq!(key.encode(), bytes);
            }
        }
    }
}
