//! Values of the state rows, see `key.rs` for which row holds which.

use bytes::Bytes;

use crate::decode::{Malformed, Reader};
use crate::id::{GroupId, Seq, UserId};

/// Spans that a member's row keeps. A member who joins more often loses sight of the oldest.
pub const SPANS_MAX: usize = 64;

/// What a member may read of a group's timeline, both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where the user joined.
    pub join: Seq,
    /// Where the user left; `Seq::ZERO` while still a member.
    pub left: Seq,
}

impl Span {
    /// The user has not left.
    pub fn is_open(self) -> bool {
        self.left == Seq::ZERO
    }
}

/// A user's place in one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The group.
    pub group: GroupId,
    /// Oldest first, at least one, at most [`SPANS_MAX`]; only the last can be open.
    pub spans: Vec<Span>,
    /// Greatest seq that the user has read in it.
    pub read_mark: Seq,
}

impl Membership {
    /// The user has not left.
    pub fn is_member(&self) -> bool {
        is_member(&self.spans)
    }
}

/// The last of a user's spans is open.
pub(crate) fn is_member(spans: &[Span]) -> bool {
    spans.last().is_some_and(|span| span.is_open())
}

/// What a group's row holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupRow {
    pub(crate) creator: UserId,
    /// How many users are members now.
    pub(crate) members: u32,
    pub(crate) name: String,
}

impl GroupRow {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(12 + self.name.len());
        out.extend_from_slice(&self.creator.0.to_be_bytes());
        out.extend_from_slice(&self.members.to_be_bytes());
        out.extend_from_slice(self.name.as_bytes());
        out.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<GroupRow, Malformed> {
        let mut reader = Reader::new("group row", bytes);
        let creator = UserId(reader.u64()?);
        let members = reader.u32()?;
        let name = reader.rest();
        let name = reader.text(name)?.to_owned();
        Ok(GroupRow {
            creator,
            members,
            name,
        })
    }
}

/// The value of a member's row.
pub(crate) fn encode_spans(spans: &[Span]) -> Bytes {
    let numbers = spans.iter().flat_map(|span| [span.join.0, span.left.0]);
    numbers
        .flat_map(u64::to_be_bytes)
        .collect::<Vec<u8>>()
        .into()
}

/// Reads the value of a member's row.
pub(crate) fn decode_spans(bytes: &[u8]) -> Result<Vec<Span>, Malformed> {
    let mut reader = Reader::new("member row", bytes);
    let mut spans = Vec::with_capacity(bytes.len() / 16);
    while !reader.is_empty() {
        spans.push(Span {
            join: Seq(reader.u64()?),
            left: Seq(reader.u64()?),
        });
    }
    Ok(spans)
}

/// The value of a row that holds one number.
pub(crate) fn encode_u64(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

/// Reads the value of a row that holds one number.
pub(crate) fn decode_u64(bytes: &[u8]) -> Result<u64, Malformed> {
    let mut reader = Reader::new("number row", bytes);
    let number = reader.u64()?;
    reader.end()?;
    Ok(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn groups_are_read_as_written(creator: u64, members: u32, name: String) {
            let row = GroupRow { creator: UserId(creator), members, name };
            prop_assert_eq!(GroupRow::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn spans_are_read_as_written(numbers: Vec<(u64, u64)>) {
            let span = |(join, left)| Span { join: Seq(join), left: Seq(left) };
            let spans: Vec<Span> = numbers.into_iter().map(span).collect();
            prop_assert_eq!(decode_spans(&encode_spans(&spans)), Ok(spans));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = GroupRow::decode(&bytes);
            prop_assert_eq!(decode_spans(&bytes).is_ok(), bytes.len() % 16 == 0);
            prop_assert_eq!(decode_u64(&bytes).is_ok(), bytes.len() == 8);
        }
    }
}
