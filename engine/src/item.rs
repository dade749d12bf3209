//! What rides a lane: an effect on another slot, which may be in another shard.
//!
//! An item is kept in memory as its fields, its bytes a slice of the entry; it is encoded when it
//! leaves that: by the relay into a frame, or into a row when it outlives its memtable.
//!
//! ```text
//! kind u8 | numbers of the kind, big-endian | bytes | crc u32
//! 1 message:     recipient 8 | home seq 8 | message id 8 | sender 8 | client_msg_id 16 |
//!                sent at, ms 6 | type 1 | flags 1                                  bytes: body
//! 2 refusal:     sender 8 | recipient 8 | message id 8 | home seq 8 | code 1       bytes: none
//! 3 user made:   user 8                                                          bytes: handle
//! 4 group made:  group 8 | creator 8 | message id 8 | sent at, ms 6                bytes: name
//! 5 membership:  user 8 | group 8                                                 bytes: spans
//! ```
//!
//! The crc of a message is its content crc, made by who took the content from the user, continued
//! over what stands before the body: damage since then stays visible. Of the others it is over all
//! before it.

use std::fmt;

use bytes::Bytes;
use crc32fast::Hasher;
use uuid::Uuid;

use crate::decode::{Malformed, Reader};
use crate::id::{GroupId, MessageId, Seq, SlotId, UserId, slot_of_handle, slot_of_owner};
use crate::row::{Flags, MessageType, NewRow, RefusalCode, content_crc};

/// The only incarnation of a slot there is, until a slot is restored from a backup.
pub(crate) const INCARNATION: u32 = 1;

const MESSAGE: u8 = 1;
const REFUSAL: u8 = 2;
const USER_MADE: u8 = 3;
const GROUP_MADE: u8 = 4;
const MEMBERSHIP: u8 = 5;
/// Bytes of a message item besides its body: the most of any kind.
const FRONT_LEN_MAX: usize = 57;
const CRC_LEN: usize = 4;

/// Names a lane: the FIFO link between two slots, in the incarnations that they had when it began.
/// Its text form is `3/1>17/1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId {
    /// Where items come from.
    pub source: SlotId,
    /// Rises when the source is restored from a backup.
    pub source_incarnation: u32,
    /// Where they take effect.
    pub destination: SlotId,
    /// Rises when the destination is restored from a backup.
    pub destination_incarnation: u32,
}

impl LaneId {
    /// The lane between two slots that were never restored.
    pub fn between(source: SlotId, destination: SlotId) -> LaneId {
        LaneId {
            source,
            source_incarnation: INCARNATION,
            destination,
            destination_incarnation: INCARNATION,
        }
    }
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}>{}/{}",
            self.source, self.source_incarnation, self.destination, self.destination_incarnation
        )
    }
}

/// An effect on the destination of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A 1:1 message for the recipient's mailbox. Its row is the sender's, but for the flag and
    /// the correspondent, who is the sender here.
    Message {
        /// Whose mailbox it is for.
        recipient: UserId,
        /// Its seq in the sender's mailbox, for a refusal to name.
        home_seq: Seq,
        /// The message as the recipient's mailbox will hold it.
        row: NewRow,
    },
    /// What a message item is answered with when its recipient does not get it. Is itself never
    /// answered.
    Refusal {
        /// In whose mailbox it is recorded.
        sender: UserId,
        /// Who did not get the message.
        recipient: UserId,
        /// The message's id.
        message_id: MessageId,
        /// Its seq in the sender's mailbox.
        home_seq: Seq,
        /// Why.
        code: RefusalCode,
    },
    /// A handle's directory slot has made a user.
    UserMade {
        /// The new user.
        user: UserId,
        /// The handle: UTF-8.
        handle: Bytes,
    },
    /// A creator's slot has made a group.
    GroupMade {
        /// The new group.
        group: GroupId,
        /// Its creator and first member.
        creator: UserId,
        /// Of the message that says so.
        message_id: MessageId,
        /// Replicated time of the creator's shard.
        sent_at_ms: u64,
        /// The group's name: UTF-8.
        name: Bytes,
    },
    /// A group's slot has changed what a user may read of it.
    Membership {
        /// Whose list of groups has it.
        user: UserId,
        /// The group.
        group: GroupId,
        /// The value of the member's row, see `table.rs`.
        spans: Bytes,
    },
}

/// An item in its place: what a relay ships.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxItem {
    /// Its lane.
    pub lane: LaneId,
    /// Its lane seq: dense from 1.
    pub seq: u64,
    /// The item.
    pub item: Item,
}

impl Item {
    /// The lane that it rides: slots are functions of ids, not of placement, so that all messages
    /// of a sender to a recipient keep their order.
    pub fn lane(&self, slot_count: u16) -> LaneId {
        let owner = |owner: u64| slot_of_owner(owner, slot_count);
        let (source, destination) = match self {
            Item::Message { recipient, row, .. } => {
                (owner(row.correspondent.0), owner(recipient.0))
            }
            Item::Refusal {
                sender, recipient, ..
            } => (owner(recipient.0), owner(sender.0)),
            Item::UserMade { user, handle } => {
                let handle = std::str::from_utf8(handle).unwrap_or_default();
                (slot_of_handle(handle, slot_count), owner(user.0))
            }
            Item::GroupMade { group, creator, .. } => (owner(creator.0), owner(group.0)),
            Item::Membership { user, group, .. } => (owner(group.0), owner(user.0)),
        };
        LaneId::between(source, destination)
    }

    /// Bytes of the encoded item.
    pub fn encoded_len(&self) -> usize {
        self.front_len() + self.tail().map_or(0, Bytes::len) + CRC_LEN
    }

    fn front_len(&self) -> usize {
        match self {
            Item::Message { .. } => FRONT_LEN_MAX,
            Item::Refusal { .. } => 34,
            Item::UserMade { .. } => 9,
            Item::GroupMade { .. } => 31,
            Item::Membership { .. } => 17,
        }
    }

    /// What has no fixed length.
    fn tail(&self) -> Option<&Bytes> {
        match self {
            Item::Message { row, .. } => Some(&row.body),
            Item::Refusal { .. } => None,
            Item::UserMade { handle, .. } => Some(handle),
            Item::GroupMade { name, .. } => Some(name),
            Item::Membership { spans, .. } => Some(spans),
        }
    }

    fn tail_mut(&mut self) -> Option<&mut Bytes> {
        match self {
            Item::Message { row, .. } => Some(&mut row.body),
            Item::Refusal { .. } => None,
            Item::UserMade { handle, .. } => Some(handle),
            Item::GroupMade { name, .. } => Some(name),
            Item::Membership { spans, .. } => Some(spans),
        }
    }

    /// Appends the encoded item.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.reserve(self.encoded_len());
        match self {
            Item::Message {
                recipient,
                home_seq,
                row,
            } => {
                out.push(MESSAGE);
                put_all(
                    &[
                        recipient.0,
                        home_seq.0,
                        row.message_id.0,
                        row.correspondent.0,
                    ],
                    out,
                );
                out.extend_from_slice(row.client_msg_id.as_bytes());
                put_u48(row.sent_at_ms, out);
                out.extend_from_slice(&[row.kind.0, row.flags.0]);
            }
            Item::Refusal {
                sender,
                recipient,
                message_id,
                home_seq,
                code,
            } => {
                out.push(REFUSAL);
                put_all(&[sender.0, recipient.0, message_id.0, home_seq.0], out);
                out.push(*code as u8);
            }
            Item::UserMade { user, .. } => {
                out.push(USER_MADE);
                put_all(&[user.0], out);
            }
            Item::GroupMade {
                group,
                creator,
                message_id,
                sent_at_ms,
                ..
            } => {
                out.push(GROUP_MADE);
                put_all(&[group.0, creator.0, message_id.0], out);
                put_u48(*sent_at_ms, out);
            }
            Item::Membership { user, group, .. } => {
                out.push(MEMBERSHIP);
                put_all(&[user.0, group.0], out);
            }
        }
        let front = &out[start..];
        debug_assert_eq!(front.len(), self.front_len(), "each kind has its length");
        let crc = match self {
            Item::Message { row, .. } => extended(row.content_crc, front),
            other => {
                let tail = other.tail().map_or(&[][..], Bytes::as_ref);
                extended(extended(0, front), tail)
            }
        };
        if let Some(tail) = self.tail() {
            out.extend_from_slice(tail);
        }
        out.extend_from_slice(&crc.to_be_bytes());
    }

    /// The encoded item, into which this one then points: it pins no entry any more.
    pub(crate) fn detach(&mut self) -> Bytes {
        let mut encoded = Vec::new();
        self.encode(&mut encoded);
        let (encoded, front) = (Bytes::from(encoded), self.front_len());
        if let Some(tail) = self.tail_mut() {
            *tail = encoded.slice(front..front + tail.len());
        }
        encoded
    }

    /// Reads what [`Item::encode`] made and checks its crc. What it holds stays a slice of it.
    ///
    /// # Errors
    /// An unknown kind, a wrong length, text that is not UTF-8, a crc that does not fit.
    pub fn decode(bytes: &Bytes) -> Result<Item, Malformed> {
        Item::decode_in(bytes, bytes)
    }

    /// As [`Item::decode`], of a part of some bytes, without making a `Bytes` of the part.
    pub(crate) fn decode_in(whole: &Bytes, part: &[u8]) -> Result<Item, Malformed> {
        let what = "lane item";
        let Some((covered, stored)) = part.split_last_chunk::<CRC_LEN>() else {
            let (needed, left) = (CRC_LEN, part.len());
            return Err(Malformed::TooShort { what, needed, left });
        };
        let mut reader = Reader::new(what, covered);
        let item = read(&mut reader, whole)?;
        let front = &covered[..item.front_len()];
        let computed = match &item {
            Item::Message { row, .. } => extended(row.content_crc, front),
            _ => extended(0, covered),
        };
        let stored = u32::from_be_bytes(*stored);
        if stored == computed {
            return Ok(item);
        }
        let (stored, computed) = (u64::from(stored), u64::from(computed));
        Err(Malformed::Checksum {
            what,
            stored,
            computed,
        })
    }
}

fn read(reader: &mut Reader<'_>, bytes: &Bytes) -> Result<Item, Malformed> {
    let item = match reader.u8()? {
        MESSAGE => {
            let (recipient, home_seq) = (UserId(reader.u64()?), Seq(reader.u64()?));
            let (message_id, sender) = (MessageId(reader.u64()?), UserId(reader.u64()?));
            let client_msg_id = Uuid::from_bytes(reader.array()?);
            let sent_at_ms = reader.u48()?;
            let (kind, flags) = (MessageType(reader.u8()?), Flags(reader.u8()?));
            let body = bytes.slice_ref(reader.rest());
            let row = NewRow {
                message_id,
                correspondent: sender,
                client_msg_id,
                sent_at_ms,
                kind,
                flags,
                content_crc: content_crc(client_msg_id, kind, &body),
                body,
            };
            Item::Message {
                recipient,
                home_seq,
                row,
            }
        }
        REFUSAL => {
            let (sender, recipient) = (UserId(reader.u64()?), UserId(reader.u64()?));
            let (message_id, home_seq) = (MessageId(reader.u64()?), Seq(reader.u64()?));
            let code = reader.u8()?;
            Item::Refusal {
                sender,
                recipient,
                message_id,
                home_seq,
                code: RefusalCode::from_u8(code).ok_or_else(|| reader.unknown(code))?,
            }
        }
        USER_MADE => Item::UserMade {
            user: UserId(reader.u64()?),
            handle: read_text(reader, bytes)?,
        },
        GROUP_MADE => Item::GroupMade {
            group: GroupId(reader.u64()?),
            creator: UserId(reader.u64()?),
            message_id: MessageId(reader.u64()?),
            sent_at_ms: reader.u48()?,
            name: read_text(reader, bytes)?,
        },
        MEMBERSHIP => {
            let (user, group) = (UserId(reader.u64()?), GroupId(reader.u64()?));
            let spans = bytes.slice_ref(reader.rest());
            crate::table::decode_spans(&spans)?;
            Item::Membership { user, group, spans }
        }
        kind => return Err(reader.unknown(kind)),
    };
    reader.end()?;
    Ok(item)
}

fn read_text(reader: &mut Reader<'_>, bytes: &Bytes) -> Result<Bytes, Malformed> {
    let text = reader.rest();
    reader.text(text)?;
    Ok(bytes.slice_ref(text))
}

fn put_all(numbers: &[u64], out: &mut Vec<u8>) {
    for number in numbers {
        out.extend_from_slice(&number.to_be_bytes());
    }
}

fn put_u48(ms: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&ms.to_be_bytes()[2..]);
}

fn extended(crc: u32, bytes: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial(crc);
    hasher.update(bytes);
    hasher.finalize()
}

/// Encoded items in a row, as a frame and an entry carry them: `(length u32 | item)*`. Each is
/// encoded once, by the source's relay, and decoded once, in the destination's apply.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Items {
    bytes: Bytes,
}

impl Items {
    /// Takes bytes as they are: apply judges each item, so damage cannot stop a replica.
    pub fn from_bytes(bytes: Bytes) -> Items {
        Items { bytes }
    }

    /// Encodes items.
    pub fn new<'a>(items: impl IntoIterator<Item = &'a Item>) -> Items {
        let mut bytes = Vec::new();
        for item in items {
            Items::push(item, &mut bytes);
        }
        Items {
            bytes: bytes.into(),
        }
    }

    /// Appends one item to the bytes of [`Items::from_bytes`].
    pub fn push(item: &Item, out: &mut Vec<u8>) {
        let len = u32::try_from(item.encoded_len()).expect("apply bounds bodies");
        out.reserve(4 + item.encoded_len());
        out.extend_from_slice(&len.to_be_bytes());
        item.encode(out);
    }

    /// All of them, encoded.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// How many there are, good or not.
    #[cfg(feature = "planted")]
    pub fn count(&self) -> usize {
        self.iter().count()
    }

    /// Each encoded item; after one whose length does not fit, nothing more comes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<&[u8], Malformed>> {
        let mut reader = Reader::new("lane items", &self.bytes);
        let mut broken = false;
        std::iter::from_fn(move || {
            if broken || reader.is_empty() {
                return None;
            }
            let item = reader.sized();
            broken = item.is_err();
            Some(item)
        })
    }
}

impl fmt::Debug for Items {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Items({} B)", self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item() -> impl Strategy<Value = Item> {
        let numbers = any::<(u64, u64, u64, u64, u128)>();
        let rest = (0..5_u8, 0..1_u64 << 48, any::<(u8, u8)>());
        (
            numbers,
            rest,
            any::<Vec<u8>>(),
            "\\PC{0,16}",
            any::<Vec<u128>>(),
        )
            .prop_map(
                |((a, b, c, d, id), (which, ms, (kind, flags)), body, text, spans)| match which {
                    0 => {
                        let (id, kind) = (Uuid::from_u128(id), MessageType(kind));
                        let row = NewRow {
                            message_id: MessageId(a),
                            correspondent: UserId(b),
                            client_msg_id: id,
                            sent_at_ms: ms,
                            kind,
                            flags: Flags(flags),
                            content_crc: content_crc(id, kind, &body),
                            body: body.into(),
                        };
                        Item::Message {
                            recipient: UserId(c),
                            home_seq: Seq(d),
                            row,
                        }
                    }
                    1 => Item::Refusal {
                        sender: UserId(a),
                        recipient: UserId(b),
                        message_id: MessageId(c),
                        home_seq: Seq(d),
                        code: RefusalCode::UnknownUser,
                    },
                    2 => Item::UserMade {
                        user: UserId(a),
                        handle: text.into(),
                    },
                    3 => Item::GroupMade {
                        group: GroupId(a),
                        creator: UserId(b),
                        message_id: MessageId(c),
                        sent_at_ms: ms,
                        name: text.into(),
                    },
                    _ => Item::Membership {
                        user: UserId(a),
                        group: GroupId(b),
                        spans: spans
                            .into_iter()
                            .flat_map(u128::to_be_bytes)
                            .collect::<Vec<u8>>()
                            .into(),
                    },
                },
            )
    }

    fn encoded(item: &Item) -> Bytes {
        let mut out = Vec::new();
        item.encode(&mut out);
        assert_eq!(out.len(), item.encoded_len());
        out.into()
    }

    proptest! {
        #[test]
        fn items_are_read_as_written(item in item()) {
            prop_assert_eq!(Item::decode(&encoded(&item)), Ok(item));
        }

        #[test]
        fn a_flipped_bit_is_noticed(item in item(), bit: proptest::sample::Index) {
            let mut bytes = encoded(&item).to_vec();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Item::decode(&bytes.into()).is_err());
        }

        #[test]
        fn damage_before_the_encoding_stays_visible(item in item()) {
            if let Item::Message { recipient, home_seq, mut row } = item {
                row.content_crc ^= 1;
                let item = Item::Message { recipient, home_seq, row };
                prop_assert!(Item::decode(&encoded(&item)).is_err());
            }
        }

        #[test]
        fn any_bytes_are_an_item_or_refused(bytes: Vec<u8>) {
            let _ = Item::decode(&bytes.clone().into());
            let items = Items::from_bytes(bytes.into());
            let read: Vec<_> = items.iter().collect();
            prop_assert!(read.iter().rev().skip(1).all(Result::is_ok));
        }

        #[test]
        fn items_in_a_row_are_read_as_written(items in proptest::collection::vec(item(), 0..5)) {
            let packed = Items::new(&items);
            let read: Result<Vec<Item>, Malformed> =
                packed.iter().map(|item| Item::decode_in(packed.as_bytes(), item?)).collect();
            prop_assert_eq!(read, Ok(items));
        }

        #[test]
        fn a_detached_item_is_the_same(item in item()) {
            let mut detached = item.clone();
            let bytes = detached.detach();
            prop_assert_eq!(&bytes, &encoded(&item));
            let inside = |tail: &Bytes| {
                tail.is_empty() || bytes.as_ptr_range().contains(&tail.as_ptr())
            };
            prop_assert!(detached.tail().is_none_or(inside));
            prop_assert_eq!(detached, item);
        }
    }

    #[test]
    fn items_stay_small() {
        assert!(size_of::<Item>() <= 104);
    }
}
