//! Message rows: what a timeline holds at each seq.
//!
//! ```text
//! message id 8 | correspondent 8 | client_msg_id 16 | sent at, ms 6 | type 1 | flags 1 |
//! body length 3 | body | crc 4                                        all big-endian
//! ```
//!
//! The correspondent is the other side of a 1:1 message, and the sender in a group or of a dead letter; a flag says
//! whether a mailbox's owner sent the message or received it. Timeline and seq are in the key.
//!
//! The crc is crc32 over `client_msg_id | type | body` (the *content crc*, made by who took the
//! content from the user), continued over where the row stands and the rest of its header. So it
//! is extended in apply, never recomputed from content: damage on the way to here stays visible.

use bytes::Bytes;
use crc32fast::Hasher;
use uuid::Uuid;

use crate::decode::{Malformed, Reader};
use crate::id::{MessageId, Seq, TimelineId, TimelineKind, UserId};

/// Bytes before a row's body.
pub(crate) const HEADER_LEN: usize = 43;
/// Bytes of the crc after it.
pub(crate) const CRC_LEN: usize = 4;
/// Longest body that a row can hold; `body_bytes_max` is far below it.
pub(crate) const BODY_BYTES_FORMAT_MAX: usize = 0xFF_FFFF;

/// What a message is. Stored: numbers are for ever. Unknown ones are kept, not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageType(pub u8);

impl MessageType {
    /// UTF-8 text.
    pub const TEXT: MessageType = MessageType(1);
    /// Bytes that only the application understands.
    pub const OPAQUE: MessageType = MessageType(2);
    /// By the store: the group was created; its body is the group's name.
    pub const GROUP_CREATED: MessageType = MessageType(16);
    /// By the store: the sender joined.
    pub const MEMBER_JOINED: MessageType = MessageType(17);
    /// By the store: the sender left.
    pub const MEMBER_LEFT: MessageType = MessageType(18);
    /// By the store, in a sender's mailbox: the recipient did not get an earlier message.
    pub const REFUSAL: MessageType = MessageType(19);

    /// Only the store writes such messages.
    pub fn is_reserved(self) -> bool {
        (16..32).contains(&self.0)
    }
}

/// Marks of a message. Stored: bits are for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u8);

impl Flags {
    /// The bits that clients may set; none has a meaning to the store yet.
    pub const CLIENT: Flags = Flags(0x0F);
    /// In a mailbox: its owner sent the message.
    pub const OUTGOING: Flags = Flags(0x80);
    /// In a recipient's mailbox: the message was a dead letter, and an operator has requeued it. Its sender
    /// was told that it had been refused.
    pub const REQUEUED: Flags = Flags(0x40);

    /// The bits of either.
    #[must_use]
    pub fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// The bits of both.
    #[must_use]
    pub fn only(self, other: Flags) -> Flags {
        Flags(self.0 & other.0)
    }

    /// Has all bits of `other`.
    pub fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Why a recipient did not get a message. Stored: numbers are for ever, and are those of the
/// refusal that a reply would carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RefusalCode {
    /// No such user.
    UnknownUser = 15,
}

impl RefusalCode {
    /// The code with this stored number.
    pub fn from_u8(number: u8) -> Option<RefusalCode> {
        match number {
            15 => Some(RefusalCode::UnknownUser),
            _ => None,
        }
    }
}

/// crc32 over what a client's message says: its id, its type and its body.
pub fn content_crc(client_msg_id: Uuid, kind: MessageType, body: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(client_msg_id.as_bytes());
    hasher.update(&[kind.0]);
    hasher.update(body);
    hasher.finalize()
}

/// A message about to be appended: everything but its seq.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRow {
    /// Assigned by the leader.
    pub message_id: MessageId,
    /// The other side of a 1:1 message; the sender in a group or of a dead letter.
    pub correspondent: UserId,
    /// Nil for messages that the store writes itself.
    pub client_msg_id: Uuid,
    /// Replicated time when it was accepted.
    pub sent_at_ms: u64,
    /// What it is.
    pub kind: MessageType,
    /// The client's, and the store's own.
    pub flags: Flags,
    /// At most [`BODY_BYTES_FORMAT_MAX`] bytes; a slice of the entry's own bytes.
    pub body: Bytes,
    /// As [`content_crc`] makes it.
    pub content_crc: u32,
}

impl NewRow {
    /// Gives the row its place in a timeline.
    pub fn at(self, timeline: TimelineId, seq: Seq) -> StoredRow {
        let mut row = StoredRow { new: self, crc: 0 };
        row.crc = row.computed_crc(timeline, seq, row.new.content_crc);
        row
    }
}

/// A row as the memtable keeps it: not encoded, its body in the entry's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRow {
    new: NewRow,
    crc: u32,
}

impl StoredRow {
    /// The row without its place, for another one.
    pub(crate) fn into_new(self) -> NewRow {
        self.new
    }

    /// Bytes of the encoded row.
    pub fn encoded_len(&self) -> usize {
        HEADER_LEN + self.new.body.len() + CRC_LEN
    }

    /// Appends the row as files hold it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let row = &self.new;
        out.reserve(self.encoded_len());
        out.extend_from_slice(&row.message_id.0.to_be_bytes());
        out.extend_from_slice(&row.correspondent.0.to_be_bytes());
        out.extend_from_slice(row.client_msg_id.as_bytes());
        out.extend_from_slice(&self.last_header_fields());
        out.extend_from_slice(&row.body);
        out.extend_from_slice(&self.crc.to_be_bytes());
    }

    /// Reads a row from a file and checks its crc.
    ///
    /// # Errors
    /// A wrong length, or a crc that does not fit the row in this place.
    pub fn decode(timeline: TimelineId, seq: Seq, bytes: &Bytes) -> Result<StoredRow, Malformed> {
        let mut reader = Reader::new("message row", bytes);
        let message_id = MessageId(reader.u64()?);
        let correspondent = UserId(reader.u64()?);
        let client_msg_id = Uuid::from_bytes(reader.array()?);
        let sent_at_ms = reader.u48()?;
        let kind = MessageType(reader.u8()?);
        let flags = Flags(reader.u8()?);
        let body_len = usize::try_from(reader.u24()?).unwrap_or(usize::MAX);
        let body = bytes.slice_ref(reader.take(body_len)?);
        let crc = reader.u32()?;
        reader.end()?;
        let content_crc = content_crc(client_msg_id, kind, &body);
        let new = NewRow {
            message_id,
            correspondent,
            client_msg_id,
            sent_at_ms,
            kind,
            flags,
            body,
            content_crc,
        };
        let row = StoredRow { new, crc };
        row.check(timeline, seq)?;
        Ok(row)
    }

    /// Compares the crc with the content and the place.
    ///
    /// # Errors
    /// [`Malformed::Checksum`] if they differ.
    pub fn check(&self, timeline: TimelineId, seq: Seq) -> Result<(), Malformed> {
        let row = &self.new;
        let content = content_crc(row.client_msg_id, row.kind, &row.body);
        let computed = self.computed_crc(timeline, seq, content);
        if computed == self.crc {
            return Ok(());
        }
        let (stored, computed) = (u64::from(self.crc), u64::from(computed));
        Err(Malformed::Checksum {
            what: "message row",
            stored,
            computed,
        })
    }

    /// The row as readers see it. Its body stays a slice of the entry or of the file's block;
    /// what outlives its memtable must copy it, see [`Row::detach`].
    ///
    /// # Errors
    /// A refusal row whose body is not one.
    pub fn to_row(&self, timeline: TimelineId, seq: Seq) -> Result<Row, Malformed> {
        let row = &self.new;
        let correspondent = row.correspondent;
        let (sender, recipient) = match timeline.kind {
            TimelineKind::Group | TimelineKind::DeadLetters => (correspondent, UserId(0)),
            TimelineKind::Mailbox if row.flags.has(Flags::OUTGOING) => {
                (UserId(timeline.owner), correspondent)
            }
            TimelineKind::Mailbox => (correspondent, UserId(timeline.owner)),
        };
        let refused = (row.kind == MessageType::REFUSAL).then(|| read_refusal(&row.body));
        let refused = refused.transpose()?;
        Ok(Row {
            seq,
            message_id: row.message_id,
            sender,
            recipient,
            sent_at_ms: row.sent_at_ms,
            kind: row.kind,
            flags: row.flags,
            client_msg_id: row.client_msg_id,
            body: if refused.is_some() {
                Bytes::new()
            } else {
                row.body.clone()
            },
            refused,
        })
    }

    /// sent at 6 | type 1 | flags 1 | body length 3.
    fn last_header_fields(&self) -> [u8; 11] {
        let row = &self.new;
        let body_len = u32::try_from(row.body.len()).expect("apply bounds bodies");
        let mut fields = [0; 11];
        fields[..6].copy_from_slice(&row.sent_at_ms.to_be_bytes()[2..]);
        fields[6] = row.kind.0;
        fields[7] = row.flags.0;
        fields[8..].copy_from_slice(&body_len.to_be_bytes()[1..]);
        fields
    }

    fn computed_crc(&self, timeline: TimelineId, seq: Seq, content_crc: u32) -> u32 {
        let mut place = [0; 44];
        place[0] = timeline.kind as u8;
        place[1..9].copy_from_slice(&timeline.owner.to_be_bytes());
        place[9..17].copy_from_slice(&seq.0.to_be_bytes());
        place[17..25].copy_from_slice(&self.new.message_id.0.to_be_bytes());
        place[25..33].copy_from_slice(&self.new.correspondent.0.to_be_bytes());
        place[33..].copy_from_slice(&self.last_header_fields());
        let mut hasher = Hasher::new_with_initial(content_crc);
        hasher.update(&place);
        hasher.finalize()
    }
}

/// The body of a refusal row: `refused seq u64 | code u8`.
pub(crate) fn refusal_body(refused: Seq, code: RefusalCode) -> Bytes {
    let mut body = Vec::with_capacity(9);
    body.extend_from_slice(&refused.0.to_be_bytes());
    body.push(code as u8);
    body.into()
}

fn read_refusal(body: &[u8]) -> Result<(Seq, RefusalCode), Malformed> {
    let mut reader = Reader::new("refusal row", body);
    let seq = Seq(reader.u64()?);
    let code = reader.u8()?;
    let code = RefusalCode::from_u8(code).ok_or_else(|| reader.unknown(code))?;
    reader.end()?;
    Ok((seq, code))
}

/// A message as readers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Position in the timeline.
    pub seq: Seq,
    /// Assigned by the leader of the home timeline's shard.
    pub message_id: MessageId,
    /// Who sent it.
    pub sender: UserId,
    /// To whom; 0 in groups.
    pub recipient: UserId,
    /// Replicated time when it was accepted, in milliseconds since the Unix epoch.
    pub sent_at_ms: u64,
    /// What it is.
    pub kind: MessageType,
    /// Its marks.
    pub flags: Flags,
    /// The sender's own id for it; nil for messages that the store wrote itself.
    pub client_msg_id: Uuid,
    /// What it says.
    pub body: Bytes,
    /// Of a refusal: the refused message's seq in this mailbox, and why.
    pub refused: Option<(Seq, RefusalCode)>,
}

impl Row {
    /// A copy whose body pins no entry: for whatever outlives the memtable's flush.
    #[must_use]
    pub fn detach(&self) -> Row {
        Row {
            body: Bytes::copy_from_slice(&self.body),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::GroupId;

    fn new_row() -> impl Strategy<Value = NewRow> {
        let numbers = (any::<u64>(), any::<u64>(), any::<u128>(), 0..1_u64 << 48);
        let marks = (any::<u8>(), any::<u8>());
        (
            numbers,
            marks,
            proptest::collection::vec(any::<u8>(), 0..300),
        )
            .prop_map(
                |((message_id, correspondent, id, sent_at_ms), (kind, flags), body)| {
                    let (id, kind) = (Uuid::from_u128(id), MessageType(kind));
                    NewRow {
                        message_id: MessageId(message_id),
                        correspondent: UserId(correspondent),
                        client_msg_id: id,
                        sent_at_ms,
                        kind,
                        flags: Flags(flags),
                        content_crc: content_crc(id, kind, &body),
                        body: body.into(),
                    }
                },
            )
    }

    fn encoded(row: &StoredRow) -> Bytes {
        let mut out = Vec::new();
        row.encode(&mut out);
        out.into()
    }

    proptest! {
        #[test]
        fn rows_are_read_as_written(new in new_row(), owner: u64, seq: u64) {
            let (timeline, seq) = (UserId(owner).mailbox(), Seq(seq));
            let row = new.at(timeline, seq);
            let bytes = encoded(&row);
            prop_assert_eq!(bytes.len(), row.encoded_len());
            prop_assert_eq!(StoredRow::decode(timeline, seq, &bytes), Ok(row));
        }

        #[test]
        fn a_flipped_bit_is_noticed(new in new_row(), bit: proptest::sample::Index) {
            let (timeline, seq) = (UserId(7).mailbox(), Seq(8));
            let mut bytes = encoded(&new.at(timeline, seq)).to_vec();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(StoredRow::decode(timeline, seq, &bytes.into()).is_err());
        }

        #[test]
        fn a_row_in_another_place_is_noticed(new in new_row(), owner: u64, seq: u64) {
            let (timeline, at) = (UserId(7).mailbox(), Seq(8));
            let bytes = encoded(&new.at(timeline, at));
            let other = UserId(owner).mailbox();
            let same = (other, Seq(seq)) == (timeline, at);
            prop_assert_eq!(StoredRow::decode(other, Seq(seq), &bytes).is_ok(), same);
            prop_assert!(StoredRow::decode(GroupId(7).timeline(), at, &bytes).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = StoredRow::decode(UserId(7).mailbox(), Seq(8), &bytes.into());
        }

        #[test]
        fn damaged_content_stays_visible(mut new in new_row()) {
            new.content_crc ^= 1;
            prop_assert!(new.at(UserId(7).mailbox(), Seq(8)).check(UserId(7).mailbox(), Seq(8)).is_err());
        }
    }

    fn row_in(timeline: TimelineId, flags: Flags, kind: MessageType, body: Bytes) -> Row {
        let new = NewRow {
            message_id: MessageId(1),
            correspondent: UserId(2),
            client_msg_id: Uuid::nil(),
            sent_at_ms: 3,
            kind,
            flags,
            content_crc: content_crc(Uuid::nil(), kind, &body),
            body,
        };
        new.at(timeline, Seq(1)).to_row(timeline, Seq(1)).unwrap()
    }

    #[test]
    fn sender_and_recipient_follow_from_the_place() {
        let (mailbox, text) = (UserId(7).mailbox(), MessageType::TEXT);
        let sent = row_in(mailbox, Flags::OUTGOING, text, Bytes::new());
        assert_eq!((sent.sender, sent.recipient), (UserId(7), UserId(2)));
        let received = row_in(mailbox, Flags::default(), text, Bytes::new());
        assert_eq!(
            (received.sender, received.recipient),
            (UserId(2), UserId(7))
        );
        let grouped = row_in(GroupId(7).timeline(), Flags::default(), text, Bytes::new());
        assert_eq!((grouped.sender, grouped.recipient), (UserId(2), UserId(0)));
    }

    #[test]
    fn a_refusal_names_its_message() {
        let body = refusal_body(Seq(5), RefusalCode::UnknownUser);
        let row = row_in(
            UserId(7).mailbox(),
            Flags::OUTGOING,
            MessageType::REFUSAL,
            body,
        );
        assert_eq!(row.refused, Some((Seq(5), RefusalCode::UnknownUser)));
        assert!(row.body.is_empty());
    }

    #[test]
    fn headers_stay_within_their_budget() {
        const { assert!(HEADER_LEN + CRC_LEN <= 48) };
        assert!(size_of::<StoredRow>() <= 88);
    }
}
