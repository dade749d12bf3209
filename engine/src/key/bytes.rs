//! The bytes of one key, short ones without an allocation.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;

use crate::id::TimelineId;

const INLINE_MAX: usize = 30;

/// The bytes of a key; short ones, which is all but handles and cursors, without an allocation.
#[derive(Clone)]
pub enum KeyBytes {
    /// Up to 30 bytes.
    Inline(u8, [u8; INLINE_MAX]),
    /// More than that.
    Heap(Box<[u8]>),
}

impl KeyBytes {
    pub(super) fn tag(tag: u8) -> KeyBytes {
        let mut bytes = [0; INLINE_MAX];
        bytes[0] = tag;
        KeyBytes::Inline(1, bytes)
    }

    pub(super) fn timeline(tag: u8, timeline: TimelineId) -> KeyBytes {
        KeyBytes::tag(tag)
            .bytes(&[timeline.kind as u8])
            .u64(timeline.owner)
    }

    pub(super) fn u16(self, number: u16) -> KeyBytes {
        self.bytes(&number.to_be_bytes())
    }

    pub(super) fn u32(self, number: u32) -> KeyBytes {
        self.bytes(&number.to_be_bytes())
    }

    pub(super) fn u64(self, number: u64) -> KeyBytes {
        self.bytes(&number.to_be_bytes())
    }

    pub(super) fn bytes(mut self, more: &[u8]) -> KeyBytes {
        if let KeyBytes::Inline(len, bytes) = &mut self {
            let end = usize::from(*len) + more.len();
            if end <= INLINE_MAX {
                bytes[usize::from(*len)..end].copy_from_slice(more);
                *len = u8::try_from(end).expect("at most INLINE_MAX");
                return self;
            }
        }
        KeyBytes::Heap([self.as_slice(), more].concat().into())
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            KeyBytes::Inline(len, bytes) => &bytes[..usize::from(*len)],
            KeyBytes::Heap(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for KeyBytes {
    fn from(bytes: &[u8]) -> KeyBytes {
        KeyBytes::Inline(0, [0; INLINE_MAX]).bytes(bytes)
    }
}

impl Borrow<[u8]> for KeyBytes {
    fn borrow(&self) -> &[u8] {
        self.as_slice()
    }
}

impl PartialEq for KeyBytes {
    fn eq(&self, other: &KeyBytes) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for KeyBytes {}

impl PartialOrd for KeyBytes {
    fn partial_cmp(&self, other: &KeyBytes) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for KeyBytes {
    fn cmp(&self, other: &KeyBytes) -> Ordering {
        self.as_slice().cmp(other.as_slice())
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
