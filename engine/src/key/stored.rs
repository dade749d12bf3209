//! Whole keys, as the base store has them: the space, the range, and the row's own key.

use crate::decode::{Malformed, Reader};
use crate::id::RangeId;

/// First byte of every state key.
const STATE_SPACE: u8 = 1;
/// First byte of every dedup key.
const DEDUP_SPACE: u8 = 2;

/// Splits a stored key of either space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredKey<'a> {
    /// `0x01 | range | suffix`: decode the suffix with [`StateKey`], or [`NodeKey`] in range 0.
    State {
        /// Whose rows.
        range: RangeId,
        /// The key without space and range.
        suffix: &'a [u8],
    },
    /// `0x02 | hour | range | suffix`: decode the suffix with [`DedupKey`].
    Dedup {
        /// Whole hours of the id's time.
        hour: u32,
        /// Whose rows.
        range: RangeId,
        /// The key without space, hour and range.
        suffix: &'a [u8],
    },
}

impl<'a> StoredKey<'a> {
    /// What the keys of all state rows of a range begin with.
    pub(crate) fn state_front(range: RangeId) -> Vec<u8> {
        let mut key = Vec::with_capacity(5);
        StoredKey::State { range, suffix: &[] }.encode(&mut key);
        key
    }

    /// What the keys of all dedup rows of an hour and range begin with.
    pub(crate) fn dedup_front(hour: u32, range: RangeId) -> Vec<u8> {
        let (mut key, suffix) = (Vec::with_capacity(9), &[]);
        StoredKey::Dedup {
            hour,
            range,
            suffix,
        }
        .encode(&mut key);
        key
    }

    /// Reads the front of a stored key.
    ///
    /// # Errors
    /// An unknown space, or too few bytes.
    pub fn split(bytes: &'a [u8]) -> Result<StoredKey<'a>, Malformed> {
        let mut reader = Reader::new("stored key", bytes);
        match reader.u8()? {
            STATE_SPACE => {
                let range = RangeId(reader.u32()?);
                Ok(StoredKey::State {
                    range,
                    suffix: reader.rest(),
                })
            }
            DEDUP_SPACE => {
                let hour = reader.u32()?;
                let range = RangeId(reader.u32()?);
                Ok(StoredKey::Dedup {
                    hour,
                    range,
                    suffix: reader.rest(),
                })
            }
            space => Err(reader.unknown(space)),
        }
    }

    /// Appends the stored form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            StoredKey::State { range, suffix } => {
                out.push(STATE_SPACE);
                out.extend_from_slice(&range.0.to_be_bytes());
                out.extend_from_slice(suffix);
            }
            StoredKey::Dedup {
                hour,
                range,
                suffix,
            } => {
                out.push(DEDUP_SPACE);
                out.extend_from_slice(&hour.to_be_bytes());
                out.extend_from_slice(&range.0.to_be_bytes());
                out.extend_from_slice(suffix);
            }
        }
    }
}
