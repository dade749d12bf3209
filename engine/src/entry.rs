//! The bytes of one Raft entry: made once by the leader's proposer, then only passed on.
//!
//! ```text
//! format u8 = 1 | time, ms u64 | count u32 | commands | xxh3-64 of all before u64
//! command: tag u8 | fields of the tag, big-endian; tags are for ever
//! ```

use bytes::Bytes;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::cluster_options::ClusterOptions;
use crate::command::{
    AckCursor, AckLanes, Command, Conversation, CreateGroup, Deliver, JoinGroup, LeaveGroup,
    MarkRead, RegisterUser, Send, SendGroup, SetClusterOptions,
};
use crate::decode::{Malformed, Reader};
use crate::id::{DeviceId, GroupId, MessageId, Seq, SlotId, TimelineId, TimelineKind, UserId};
use crate::item::{Items, LaneId};
use crate::row::{Flags, MessageType};

const FORMAT: u8 = 1;
const FRONT_LEN: usize = 13;
const CHECKSUM_LEN: usize = 8;

const TAG_SEND: u8 = 1;
const TAG_SEND_GROUP: u8 = 2;
const TAG_REGISTER_USER: u8 = 3;
const TAG_CREATE_GROUP: u8 = 4;
const TAG_JOIN_GROUP: u8 = 5;
const TAG_LEAVE_GROUP: u8 = 6;
const TAG_MARK_READ: u8 = 7;
const TAG_ACK_CURSOR: u8 = 8;
const TAG_CUT: u8 = 9;
const TAG_SET_CLUSTER_OPTIONS: u8 = 10;
const TAG_DELIVER: u8 = 11;
const TAG_ACK_LANES: u8 = 12;

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

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_be_bytes());
}

fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("the proposer bounds entries far below 4 GiB");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// What both kinds of send carry.
struct Content<'a> {
    client_msg_id: Uuid,
    message_id: MessageId,
    kind: MessageType,
    flags: Flags,
    content_crc: u32,
    body: &'a Bytes,
}

impl<'a> From<&'a Send> for Content<'a> {
    fn from(send: &'a Send) -> Content<'a> {
        Content {
            client_msg_id: send.client_msg_id,
            message_id: send.message_id,
            kind: send.kind,
            flags: send.flags,
            content_crc: send.content_crc,
            body: &send.body,
        }
    }
}

impl<'a> From<&'a SendGroup> for Content<'a> {
    fn from(send: &'a SendGroup) -> Content<'a> {
        Content {
            client_msg_id: send.client_msg_id,
            message_id: send.message_id,
            kind: send.kind,
            flags: send.flags,
            content_crc: send.content_crc,
            body: &send.body,
        }
    }
}

fn put_send(tag: u8, sender: UserId, destination: u64, content: &Content<'_>, out: &mut Vec<u8>) {
    out.reserve(51 + content.body.len());
    out.push(tag);
    put_u64(out, sender.0);
    put_u64(out, destination);
    out.extend_from_slice(content.client_msg_id.as_bytes());
    put_u64(out, content.message_id.0);
    out.push(content.kind.0);
    out.push(content.flags.only(Flags::CLIENT).0);
    out.extend_from_slice(&content.content_crc.to_be_bytes());
    put_sized(out, content.body);
}

fn put_request(tag: u8, request_id: Uuid, numbers: &[u64], out: &mut Vec<u8>) {
    out.push(tag);
    out.extend_from_slice(request_id.as_bytes());
    for number in numbers {
        put_u64(out, *number);
    }
}

fn encode_command(command: &Command, out: &mut Vec<u8>) {
    match command {
        Command::Send(send) => {
            put_send(TAG_SEND, send.sender, send.recipient.0, &send.into(), out);
        }
        Command::SendGroup(send) => {
            put_send(TAG_SEND_GROUP, send.sender, send.group.0, &send.into(), out);
        }
        Command::RegisterUser(RegisterUser { request_id, handle }) => {
            put_request(TAG_REGISTER_USER, *request_id, &[], out);
            put_sized(out, handle.as_bytes());
        }
        Command::CreateGroup(call) => {
            let numbers = [call.creator.0, call.message_id.0];
            put_request(TAG_CREATE_GROUP, call.request_id, &numbers, out);
            put_sized(out, call.name.as_bytes());
        }
        Command::JoinGroup(call) => {
            let numbers = [call.group.0, call.user.0, call.message_id.0];
            put_request(TAG_JOIN_GROUP, call.request_id, &numbers, out);
        }
        Command::LeaveGroup(call) => {
            let numbers = [call.group.0, call.user.0, call.message_id.0];
            put_request(TAG_LEAVE_GROUP, call.request_id, &numbers, out);
        }
        Command::MarkRead(call) => {
            let timeline = match call.conversation {
                Conversation::Peer(peer) => peer.mailbox(),
                Conversation::Group(group) => group.timeline(),
            };
            let numbers = [call.user.0, timeline.owner, call.seq.0];
            put_request(TAG_MARK_READ, call.request_id, &numbers, out);
            out.push(timeline.kind as u8);
        }
        Command::AckCursor(call) => {
            let numbers = [call.user.0, call.timeline.owner, call.seq.0];
            put_request(TAG_ACK_CURSOR, call.request_id, &numbers, out);
            out.push(call.timeline.kind as u8);
            put_sized(out, call.device.as_str().as_bytes());
        }
        Command::Deliver(Deliver {
            lane,
            first_seq,
            items,
        }) => {
            out.reserve(25 + items.as_bytes().len());
            out.push(TAG_DELIVER);
            put_lane(*lane, out);
            put_u64(out, *first_seq);
            put_sized(out, items.as_bytes());
        }
        Command::AckLanes(AckLanes { acks }) => {
            out.reserve(5 + 20 * acks.len());
            out.push(TAG_ACK_LANES);
            let count = u32::try_from(acks.len()).expect("there are fewer lanes");
            out.extend_from_slice(&count.to_be_bytes());
            for (lane, acked) in acks {
                put_lane(*lane, out);
                put_u64(out, *acked);
            }
        }
        Command::SetClusterOptions(SetClusterOptions { options, if_absent }) => {
            out.extend_from_slice(&[TAG_SET_CLUSTER_OPTIONS, u8::from(*if_absent)]);
            let mut encoded = Vec::new();
            options.encode(&mut encoded);
            put_sized(out, &encoded);
        }
        Command::Cut => out.push(TAG_CUT),
    }
}

fn put_lane(lane: LaneId, out: &mut Vec<u8>) {
    out.extend_from_slice(&lane.source.0.to_be_bytes());
    out.extend_from_slice(&lane.source_incarnation.to_be_bytes());
    out.extend_from_slice(&lane.destination.0.to_be_bytes());
    out.extend_from_slice(&lane.destination_incarnation.to_be_bytes());
}

fn read_lane(reader: &mut Reader<'_>) -> Result<LaneId, Malformed> {
    Ok(LaneId {
        source: SlotId(reader.u16()?),
        source_incarnation: reader.u32()?,
        destination: SlotId(reader.u16()?),
        destination_incarnation: reader.u32()?,
    })
}

fn read_id(reader: &mut Reader<'_>) -> Result<Uuid, Malformed> {
    reader.array().map(Uuid::from_bytes)
}

fn read_kind(reader: &mut Reader<'_>) -> Result<TimelineKind, Malformed> {
    let kind = reader.u8()?;
    TimelineKind::from_u8(kind).ok_or_else(|| reader.unknown(kind))
}

fn read_text(reader: &mut Reader<'_>) -> Result<String, Malformed> {
    let bytes = reader.sized()?;
    reader.text(bytes).map(str::to_owned)
}

fn decode_command(reader: &mut Reader<'_>, entry: &Bytes) -> Result<Command, Malformed> {
    match reader.u8()? {
        TAG_SEND => decode_send(reader, entry).map(Command::Send),
        TAG_SEND_GROUP => {
            let send = decode_send(reader, entry)?;
            Ok(Command::SendGroup(SendGroup {
                sender: send.sender,
                group: GroupId(send.recipient.0),
                client_msg_id: send.client_msg_id,
                message_id: send.message_id,
                kind: send.kind,
                flags: send.flags,
                content_crc: send.content_crc,
                body: send.body,
                shown: MessageId::ZERO,
            }))
        }
        TAG_REGISTER_USER => Ok(Command::RegisterUser(RegisterUser {
            request_id: read_id(reader)?,
            handle: read_text(reader)?,
        })),
        TAG_CREATE_GROUP => Ok(Command::CreateGroup(CreateGroup {
            request_id: read_id(reader)?,
            creator: UserId(reader.u64()?),
            message_id: MessageId(reader.u64()?),
            name: read_text(reader)?,
        })),
        TAG_JOIN_GROUP => Ok(Command::JoinGroup(JoinGroup {
            request_id: read_id(reader)?,
            group: GroupId(reader.u64()?),
            user: UserId(reader.u64()?),
            message_id: MessageId(reader.u64()?),
        })),
        TAG_LEAVE_GROUP => Ok(Command::LeaveGroup(LeaveGroup {
            request_id: read_id(reader)?,
            group: GroupId(reader.u64()?),
            user: UserId(reader.u64()?),
            message_id: MessageId(reader.u64()?),
        })),
        TAG_MARK_READ => decode_mark_read(reader).map(Command::MarkRead),
        TAG_ACK_CURSOR => decode_ack_cursor(reader).map(Command::AckCursor),
        TAG_DELIVER => Ok(Command::Deliver(Deliver {
            lane: read_lane(reader)?,
            first_seq: reader.u64()?,
            items: Items::from_bytes(entry.slice_ref(reader.sized()?)),
        })),
        TAG_ACK_LANES => decode_ack_lanes(reader).map(Command::AckLanes),
        TAG_CUT => Ok(Command::Cut),
        TAG_SET_CLUSTER_OPTIONS => {
            let if_absent = match reader.u8()? {
                0 => false,
                1 => true,
                number => return Err(reader.unknown(number)),
            };
            let options = ClusterOptions::decode(reader.sized()?)?;
            Ok(Command::SetClusterOptions(SetClusterOptions {
                options,
                if_absent,
            }))
        }
        tag => Err(reader.unknown(tag)),
    }
}

fn decode_send(reader: &mut Reader<'_>, entry: &Bytes) -> Result<Send, Malformed> {
    Ok(Send {
        sender: UserId(reader.u64()?),
        recipient: UserId(reader.u64()?),
        client_msg_id: read_id(reader)?,
        message_id: MessageId(reader.u64()?),
        kind: MessageType(reader.u8()?),
        flags: Flags(reader.u8()?).only(Flags::CLIENT),
        content_crc: reader.u32()?,
        body: entry.slice_ref(reader.sized()?),
        shown: MessageId::ZERO,
    })
}

fn decode_mark_read(reader: &mut Reader<'_>) -> Result<MarkRead, Malformed> {
    let request_id = read_id(reader)?;
    let user = UserId(reader.u64()?);
    let owner = reader.u64()?;
    let seq = Seq(reader.u64()?);
    let conversation = match read_kind(reader)? {
        TimelineKind::Mailbox => Conversation::Peer(UserId(owner)),
        TimelineKind::Group => Conversation::Group(GroupId(owner)),
    };
    Ok(MarkRead {
        request_id,
        user,
        conversation,
        seq,
    })
}

fn decode_ack_cursor(reader: &mut Reader<'_>) -> Result<AckCursor, Malformed> {
    let request_id = read_id(reader)?;
    let user = UserId(reader.u64()?);
    let owner = reader.u64()?;
    let seq = Seq(reader.u64()?);
    let timeline = TimelineId {
        kind: read_kind(reader)?,
        owner,
    };
    let bytes = reader.sized()?;
    let device = DeviceId::new(reader.text(bytes)?).map_err(|invalid| Malformed::TooLong {
        what: "device",
        left: invalid.len,
    })?;
    Ok(AckCursor {
        request_id,
        user,
        device,
        timeline,
        seq,
    })
}

fn decode_ack_lanes(reader: &mut Reader<'_>) -> Result<AckLanes, Malformed> {
    let count = reader.u32()?;
    let mut acks = Vec::new();
    for _ in 0..count {
        acks.push((read_lane(reader)?, reader.u64()?));
    }
    Ok(AckLanes { acks })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn send() -> impl Strategy<Value = Send> {
        let numbers = (
            any::<u64>(),
            any::<u64>(),
            any::<u128>(),
            any::<u64>(),
            any::<u32>(),
        );
        (numbers, any::<(u8, u8)>(), any::<Vec<u8>>()).prop_map(
            |((sender, recipient, id, message_id, content_crc), (kind, flags), body)| Send {
                sender: UserId(sender),
                recipient: UserId(recipient),
                client_msg_id: Uuid::from_u128(id),
                message_id: MessageId(message_id),
                kind: MessageType(kind),
                flags: Flags(flags).only(Flags::CLIENT),
                content_crc,
                body: body.into(),
                shown: MessageId::ZERO,
            },
        )
    }

    fn send_group() -> impl Strategy<Value = SendGroup> {
        send().prop_map(|send| SendGroup {
            sender: send.sender,
            group: GroupId(send.recipient.0),
            client_msg_id: send.client_msg_id,
            message_id: send.message_id,
            kind: send.kind,
            flags: send.flags,
            content_crc: send.content_crc,
            body: send.body,
            shown: MessageId::ZERO,
        })
    }

    fn request() -> impl Strategy<Value = Command> {
        let numbers = any::<(u128, u64, u64, u64)>();
        (0..8_u8, numbers, any::<bool>(), "\\PC{1,16}").prop_map(
            |(which, (id, first, second, third), flag, text)| {
                let request_id = Uuid::from_u128(id);
                let (user, group) = (UserId(first), GroupId(second));
                let (message_id, seq) = (MessageId(third), Seq(third));
                match which {
                    0 => Command::RegisterUser(RegisterUser {
                        request_id,
                        handle: text,
                    }),
                    1 => Command::CreateGroup(CreateGroup {
                        request_id,
                        creator: user,
                        name: text,
                        message_id,
                    }),
                    2 => Command::JoinGroup(JoinGroup {
                        request_id,
                        group,
                        user,
                        message_id,
                    }),
                    3 => Command::LeaveGroup(LeaveGroup {
                        request_id,
                        group,
                        user,
                        message_id,
                    }),
                    4 => {
                        let peer = Conversation::Peer(UserId(second));
                        let conversation = if flag {
                            Conversation::Group(group)
                        } else {
                            peer
                        };
                        Command::MarkRead(MarkRead {
                            request_id,
                            user,
                            conversation,
                            seq,
                        })
                    }
                    5 => {
                        let device = DeviceId::new(&text).unwrap();
                        let timeline = group.timeline();
                        Command::AckCursor(AckCursor {
                            request_id,
                            user,
                            device,
                            timeline,
                            seq,
                        })
                    }
                    6 => Command::SetClusterOptions(SetClusterOptions {
                        options: ClusterOptions {
                            dedup_window_ms: first,
                            ..ClusterOptions::default()
                        },
                        if_absent: flag,
                    }),
                    _ => Command::Cut,
                }
            },
        )
    }

    fn lane() -> impl Strategy<Value = LaneId> {
        any::<(u16, u32, u16, u32)>().prop_map(|(source, one, destination, two)| LaneId {
            source: SlotId(source),
            source_incarnation: one,
            destination: SlotId(destination),
            destination_incarnation: two,
        })
    }

    fn command() -> impl Strategy<Value = Command> {
        prop_oneof![
            send().prop_map(Command::Send),
            send_group().prop_map(Command::SendGroup),
            request(),
            (lane(), any::<u64>(), any::<Vec<u8>>()).prop_map(|(lane, first_seq, items)| {
                let items = Items::from_bytes(items.into());
                Command::Deliver(Deliver {
                    lane,
                    first_seq,
                    items,
                })
            }),
            proptest::collection::vec((lane(), any::<u64>()), 0..5)
                .prop_map(|acks| Command::AckLanes(AckLanes { acks })),
        ]
    }

    fn entry_of(time_ms: u64, commands: &[Command]) -> Bytes {
        let mut builder = EntryBuilder::new(time_ms);
        for command in commands {
            builder.push(command);
        }
        let len = builder.len_bytes();
        let bytes = builder.finish();
        assert_eq!(bytes.len(), len);
        bytes
    }

    proptest! {
        #[test]
        fn entries_are_read_as_written(
            time_ms: u64,
            commands in proptest::collection::vec(command(), 0..20),
        ) {
            let entry = Entry::open(entry_of(time_ms, &commands)).unwrap();
            prop_assert_eq!(entry.time_ms(), time_ms);
            prop_assert_eq!(entry.count(), commands.len());
            let read: Result<Vec<Command>, Malformed> = entry.commands().collect();
            prop_assert_eq!(read, Ok(commands));
        }

        #[test]
        fn a_flipped_bit_is_noticed(
            commands in proptest::collection::vec(command(), 0..4),
            bit: proptest::sample::Index,
        ) {
            let mut bytes = entry_of(1, &commands).to_vec();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Entry::open(bytes.into()).is_err());
        }

        // A proposer of another build may make these: the checksum fits, the commands do not.
        #[test]
        fn any_bytes_with_a_checksum_are_read_or_refused(count: u8, mut body: Vec<u8>) {
            let mut bytes = vec![FORMAT];
            bytes.extend_from_slice(&[0; 11]);
            bytes.push(count);
            bytes.append(&mut body);
            let checksum = xxh3_64(&bytes);
            bytes.extend_from_slice(&checksum.to_be_bytes());
            let Ok(entry) = Entry::open(bytes.into()) else { return Ok(()) };
            let read: Vec<Result<Command, Malformed>> = entry.commands().collect();
            prop_assert!(read.len() <= usize::from(count));
            prop_assert!(read.iter().rev().skip(1).all(Result::is_ok));
        }
    }

    #[test]
    fn bodies_are_slices_of_the_entry() {
        let body = Bytes::from_static(b"hello");
        let command = Command::Send(Send {
            sender: UserId(1),
            recipient: UserId(2),
            client_msg_id: Uuid::nil(),
            message_id: MessageId(3),
            kind: MessageType::TEXT,
            flags: Flags(0xFF),
            content_crc: 4,
            body,
            shown: MessageId(5),
        });
        let bytes = entry_of(1, &[command]);
        let entry = Entry::open(bytes.clone()).unwrap();
        let Some(Ok(Command::Send(send))) = entry.commands().next() else {
            panic!("one send")
        };
        assert!(bytes.as_ptr_range().contains(&send.body.as_ptr()));
        assert_eq!((send.flags, send.shown), (Flags::CLIENT, MessageId::ZERO));
    }
}
