//! A command's bytes inside an entry.
//!
//! ```text
//! tag u8 | fields of the tag, big-endian; tags are for ever
//! ```

use bytes::Bytes;
use uuid::Uuid;

use crate::cluster_options::ClusterOptions;
use crate::command::{
    AckCursor, AckLanes, Command, Conversation, CreateGroup, Deliver, DropDeadLetter, JoinGroup,
    LeaveGroup, MarkRead, RegisterUser, RequeueDeadLetter, Send, SendGroup, SetClusterOptions,
};
use crate::command::{meta, slot, split};
use crate::decode::{Malformed, Reader};
use crate::id::{DeviceId, GroupId, MessageId, Seq, SlotId, TimelineId, TimelineKind, UserId};
use crate::item::{Items, LaneId};
use crate::row::{Flags, MessageType};

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
const TAG_META: u8 = 13;
const TAG_REQUEUE_DEAD_LETTER: u8 = 14;
const TAG_DROP_DEAD_LETTER: u8 = 15;
const TAG_MOVE_SLOT: u8 = 16;
const TAG_SPLIT_SHARD: u8 = 17;

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

/// Appends a command.
pub(crate) fn encode_command(command: &Command, out: &mut Vec<u8>) {
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
        Command::AckLanes(call) => put_acks(call, out),
        Command::SetClusterOptions(call) => put_options(call, out),
        Command::Meta(call) => {
            out.push(TAG_META);
            meta::encode(call, out);
        }
        Command::MoveSlot(call) => {
            out.push(TAG_MOVE_SLOT);
            slot::encode(call, out);
        }
        Command::SplitShard(call) => {
            out.push(TAG_SPLIT_SHARD);
            split::encode(call, out);
        }
        Command::RequeueDeadLetter(call) => put_requeue(call, out),
        Command::DropDeadLetter(call) => put_drop(call, out),
        Command::Cut => out.push(TAG_CUT),
    }
}

fn put_options(SetClusterOptions { options, if_absent }: &SetClusterOptions, out: &mut Vec<u8>) {
    out.extend_from_slice(&[TAG_SET_CLUSTER_OPTIONS, u8::from(*if_absent)]);
    let mut encoded = Vec::new();
    options.encode(&mut encoded);
    put_sized(out, &encoded);
}

fn put_requeue(call: &RequeueDeadLetter, out: &mut Vec<u8>) {
    put_request(TAG_REQUEUE_DEAD_LETTER, call.request_id, &[], out);
    out.extend_from_slice(&call.slot.0.to_be_bytes());
    put_u64(out, call.seq.0);
    put_u64(out, call.message_id.0);
}

fn put_drop(call: &DropDeadLetter, out: &mut Vec<u8>) {
    put_request(TAG_DROP_DEAD_LETTER, call.request_id, &[], out);
    out.extend_from_slice(&call.slot.0.to_be_bytes());
    put_u64(out, call.seq.0);
}

fn put_acks(AckLanes { acks }: &AckLanes, out: &mut Vec<u8>) {
    out.reserve(5 + 20 * acks.len());
    out.push(TAG_ACK_LANES);
    let count = u32::try_from(acks.len()).expect("there are fewer lanes");
    out.extend_from_slice(&count.to_be_bytes());
    for (lane, acked) in acks {
        put_lane(*lane, out);
        put_u64(out, *acked);
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

/// Reads the next command. Its body is a slice of the entry's bytes.
pub(crate) fn decode_command(reader: &mut Reader<'_>, entry: &Bytes) -> Result<Command, Malformed> {
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
        TAG_META => meta::decode(reader).map(Command::Meta),
        TAG_MOVE_SLOT => slot::decode(reader).map(Command::MoveSlot),
        TAG_SPLIT_SHARD => split::decode(reader).map(Command::SplitShard),
        TAG_REQUEUE_DEAD_LETTER => decode_requeue(reader).map(Command::RequeueDeadLetter),
        TAG_DROP_DEAD_LETTER => decode_drop(reader).map(Command::DropDeadLetter),
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

fn decode_requeue(reader: &mut Reader<'_>) -> Result<RequeueDeadLetter, Malformed> {
    Ok(RequeueDeadLetter {
        request_id: read_id(reader)?,
        slot: SlotId(reader.u16()?),
        seq: Seq(reader.u64()?),
        message_id: MessageId(reader.u64()?),
    })
}

fn decode_drop(reader: &mut Reader<'_>) -> Result<DropDeadLetter, Malformed> {
    Ok(DropDeadLetter {
        request_id: read_id(reader)?,
        slot: SlotId(reader.u16()?),
        seq: Seq(reader.u64()?),
    })
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
        kind @ TimelineKind::DeadLetters => return Err(reader.unknown(kind as u8)),
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
