//! Keys of what belongs to the node itself.

use super::KeyBytes;
use crate::decode::{Malformed, Reader};
use crate::id::{RangeId, ShardId};

/// A row of the node itself, in range 0: never travels, is not hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKey {
    /// The store's format number and slot count. Written once.
    ///
    /// Key: `1`. Value: `format u32 | slot count u16`.
    Format,
    /// The greatest range ever given out. Raised by the ingest that brings a range's first row.
    ///
    /// Key: `2`. Value: `range u32`.
    RangeCounter,
    /// Whose rows a range holds. Comes with the range's first row, goes when it is dropped.
    ///
    /// Key: `3 | range u32`. Value: shard, slot and state (live, staged, dead), see `range.rs`.
    Range(RangeId),
    /// How far a shard's rows in files go. Overwritten by every flush and install.
    ///
    /// Key: `4 | shard u32`. Value: the applied row, see `applied.rs`.
    Applied(ShardId),
}

impl NodeKey {
    /// The key's bytes, without space and range.
    pub fn encode(&self) -> KeyBytes {
        match self {
            NodeKey::Format => KeyBytes::tag(1),
            NodeKey::RangeCounter => KeyBytes::tag(2),
            NodeKey::Range(range) => KeyBytes::tag(3).u32(range.0),
            NodeKey::Applied(shard) => KeyBytes::tag(4).u32(shard.0),
        }
    }

    /// Reads what [`NodeKey::encode`] made.
    ///
    /// # Errors
    /// An unknown tag or a wrong length.
    pub fn decode(bytes: &[u8]) -> Result<NodeKey, Malformed> {
        let mut reader = Reader::new("node key", bytes);
        let key = match reader.u8()? {
            1 => NodeKey::Format,
            2 => NodeKey::RangeCounter,
            3 => NodeKey::Range(RangeId(reader.u32()?)),
            4 => NodeKey::Applied(ShardId(reader.u32()?)),
            tag => return Err(reader.unknown(tag)),
        };
        reader.end()?;
        Ok(key)
    }
}
