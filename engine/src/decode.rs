//! Reads stored bytes front to back; every fault in them is an error, never a panic.

use thiserror::Error;

/// What is wrong with stored bytes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The bytes end inside a field.
    #[error("{what} ends early: {needed} more bytes expected, {left} left")]
    TooShort {
        /// What was being read.
        what: &'static str,
        /// Bytes that the field needs.
        needed: usize,
        /// Bytes that are there.
        left: usize,
    },
    /// Bytes are left over after the last field.
    #[error("{what} has {left} bytes too many")]
    TooLong {
        /// What was being read.
        what: &'static str,
        /// Bytes left over.
        left: usize,
    },
    /// A tag, kind or code that this build does not know.
    #[error("{what} has the unknown number {number}")]
    Unknown {
        /// What was being read.
        what: &'static str,
        /// The number found.
        number: u64,
    },
    /// Text that is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotUtf8 {
        /// What was being read.
        what: &'static str,
    },
    /// A checksum does not fit what it covers.
    #[error("{what} has checksum {stored:016x}, its bytes have {computed:016x}")]
    Checksum {
        /// What was being read.
        what: &'static str,
        /// The checksum beside the bytes.
        stored: u64,
        /// The checksum of the bytes.
        computed: u64,
    },
}

/// A position in bytes that hold one `what`.
pub(crate) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Reader<'a> {
        Reader { what, rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else {
            return Err(Malformed::TooShort {
                what: self.what,
                needed: len,
                left: self.rest.len(),
            });
        };
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    /// Three bytes.
    pub(crate) fn u24(&mut self) -> Result<u32, Malformed> {
        self.array()
            .map(|[a, b, c]| u32::from_be_bytes([0, a, b, c]))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// Six bytes: a time in milliseconds.
    pub(crate) fn u48(&mut self) -> Result<u64, Malformed> {
        self.array()
            .map(|[a, b, c, d, e, f]| u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn u128(&mut self) -> Result<u128, Malformed> {
        self.array().map(u128::from_be_bytes)
    }

    /// Seven bits at a time, the low ones first: what `put_varint` made.
    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.u8()?;
            let part = u64::from(byte & 0x7F);
            if part << shift >> shift != part || (part == 0 && shift > 0 && byte == 0) {
                return Err(self.unknown(byte));
            }
            number |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.unknown(number))
    }

    /// A four-byte length and that many bytes.
    pub(crate) fn sized(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u32()?;
        self.take(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn text(&self, bytes: &'a [u8]) -> Result<&'a str, Malformed> {
        std::str::from_utf8(bytes).map_err(|_| Malformed::NotUtf8 { what: self.what })
    }

    pub(crate) fn unknown(&self, number: impl Into<u64>) -> Malformed {
        Malformed::Unknown {
            what: self.what,
            number: number.into(),
        }
    }

    /// Nothing may be left.
    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(Malformed::TooLong {
            what: self.what,
            left: self.rest.len(),
        })
    }
}

/// Appends a number in as few bytes of seven bits as it needs.
pub(crate) fn put_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        let [low, ..] = number.to_le_bytes();
        out.push(low | 0x80);
        number >>= 7;
    }
    let [low, ..] = number.to_le_bytes();
    out.push(low);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn varints_are_read_as_written(number: u64, shift in 0..64_u32) {
            let number = number >> shift;
            let mut bytes = Vec::new();
            put_varint(number, &mut bytes);
            let mut reader = Reader::new("number", &bytes);
            prop_assert_eq!(reader.varint(), Ok(number));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn any_bytes_are_a_varint_or_refused(bytes: Vec<u8>) {
            let mut reader = Reader::new("number", &bytes);
            if let Ok(number) = reader.varint() {
                let mut again = Vec::new();
                put_varint(number, &mut again);
                prop_assert!(bytes.starts_with(&again));
            }
        }
    }
}
