//! One member: a socket, what it has got of the group, and what it has asked for.

use std::time::Instant;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use mailbox_wire::proto::{self, server_frame::Frame};
use mailbox_wire::{
    Body, ClientFrame, Destination, Position, Request, Send, Sync, Timeline, binary,
};
use prost::Message as _;
use uuid::Uuid;

use super::order::Order;
use super::tally::Tally;
use crate::bench::socket::{Scratch, Socket};
use crate::bench::websocket::{Incoming, Opcode};

/// Decodes frames of gateways, each into the place of the one before: the messages of a push lie in a list that is
/// there already, their bodies in what was read.
#[derive(Default)]
pub(super) struct Decoder(proto::ServerFrame);

impl Decoder {
    /// The frame, until the next one is decoded. After a push, one of a kind that is not known looks like a push without
    /// messages.
    pub(super) fn decode(&mut self, bytes: Bytes) -> anyhow::Result<&proto::ServerFrame> {
        self.0.id = 0;
        match &mut self.0.frame {
            Some(Frame::Push(push)) => push.clear(),
            other => *other = None,
        }
        self.0
            .merge(bytes)
            .context("decode a frame of the gateway")?;
        Ok(&self.0)
    }
}

/// A member of the group.
pub(super) struct Member {
    socket: Socket,
    order: Order,
    /// Of the request that was made last.
    request_id: u32,
    /// Of the sync that is under way; 0 = none is.
    sync_id: u32,
}

impl Member {
    /// A member who holds everything up to `head`.
    pub(super) fn new(socket: Socket, head: u64) -> Self {
        Self {
            socket,
            order: Order::from(head),
            request_id: 0,
            sync_id: 0,
        }
    }

    pub(super) fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    pub(super) fn order(&self) -> &Order {
        &self.order
    }

    /// Whether a sync is under way.
    pub(super) fn is_syncing(&self) -> bool {
        self.sync_id != 0
    }

    /// Takes what its socket has, and writes what there is room for.
    ///
    /// # Errors
    /// When the connection broke, or the gateway ended it or broke the protocol.
    pub(super) fn serve(
        &mut self,
        scratch: &mut Scratch,
        decoder: &mut Decoder,
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        loop {
            let before = self.socket.wire_bytes();
            let more = self.socket.read(scratch).context("read from the gateway")?;
            tally.counts.wire_bytes += self.socket.wire_bytes() - before;
            while let Some(incoming) = self.socket.next()? {
                match incoming {
                    Incoming::Message(bytes) => {
                        let frame = decoder.decode(bytes)?;
                        tally.decoded(Instant::now());
                        self.take(frame, tally)?;
                    }
                    Incoming::Ping(payload) => self.socket.put(Opcode::Pong, &payload),
                    Incoming::Close(code) => bail!("the gateway closed the socket, code {code}"),
                }
            }
            if !more {
                break;
            }
        }
        if self.order.is_behind() && !self.is_syncing() {
            self.sync(tally.group);
        }
        self.flush()
    }

    /// Writes what there is room for.
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        self.socket.flush().context("write to the gateway")
    }

    /// Asks for what comes after what it holds.
    pub(super) fn sync(&mut self, group: u64) {
        let held = Position {
            timeline: Timeline::Group(group),
            seq: self.order.held(),
        };
        self.sync_id = self.request(Request::Sync(Sync {
            have: vec![held],
            ..Sync::default()
        }));
    }

    /// Hands a message over to the group.
    pub(super) fn post(&mut self, group: u64, body: Bytes) {
        self.request(Request::Send(Send {
            to: Destination::Group(group),
            client_msg_id: Uuid::now_v7(),
            body: Body::Opaque(body),
            shown_message_id: 0,
        }));
    }

    /// Says that it is there: a gateway ends connections on which it hears nothing.
    pub(super) fn ping(&mut self) {
        self.socket.put(Opcode::Ping, &[]);
    }

    fn request(&mut self, request: Request) -> u32 {
        self.request_id = self.request_id.wrapping_add(1).max(1);
        let id = self.request_id;
        let frame = binary::encode_client(&ClientFrame { id, request });
        self.socket.put(Opcode::Binary, &frame);
        id
    }

    fn take(&mut self, frame: &proto::ServerFrame, tally: &mut Tally) -> anyhow::Result<()> {
        match &frame.frame {
            Some(Frame::Push(push)) => {
                if is_group(push.timeline.as_ref(), tally.group) && !push.messages.is_empty() {
                    tally.counts.pushes += 1;
                    self.order.push(push.prev_seq);
                    for message in &push.messages {
                        if self.order.take(message.seq) {
                            tally.delivered(message);
                        }
                    }
                }
            }
            Some(Frame::Sent(sent)) => tally.acked(sent.seq),
            Some(Frame::Synced(page)) => self.take_page(page, tally),
            Some(Frame::Notify(notify)) => {
                tally.counts.notices += 1;
                let heads = notify.heads.iter();
                for head in heads.filter(|head| is_group(head.timeline.as_ref(), tally.group)) {
                    self.order.told_of(head.seq);
                }
            }
            Some(Frame::Error(error)) => {
                let sync = frame.id == self.sync_id;
                tally.refused(error, sync);
                if sync {
                    self.sync_id = 0;
                }
            }
            Some(Frame::GoAway(go_away)) => bail!("the gateway stops: {}", go_away.reason),
            Some(_) | None => {}
        }
        Ok(())
    }

    fn take_page(&mut self, page: &proto::Synced, tally: &mut Tally) {
        let (group, before) = (tally.group, tally.counts.deliveries);
        let messages = page.messages.iter();
        let mut messages = messages
            .filter(|message| is_group(message.timeline.as_ref(), group))
            .peekable();
        if let Some(first) = messages.peek() {
            self.order.page(first.seq);
        }
        for message in messages {
            if self.order.take(message.seq) {
                tally.delivered(message);
            }
        }
        tally.counts.synced += tally.counts.deliveries - before;
        self.sync_id = 0;
        if page.more {
            self.sync(group);
        }
    }
}

fn is_group(timeline: Option<&proto::Timeline>, group: u64) -> bool {
    let kind = proto::TimelineKind::Group as i32;
    timeline.is_some_and(|timeline| timeline.kind == kind && timeline.owner == group)
}

#[cfg(test)]
mod tests {
    use mailbox_wire::{Message, MessageType, Push, Reply, Sent, ServerFrame};

    use super::*;

    fn push(seqs: std::ops::RangeInclusive<u64>) -> ServerFrame {
        let timeline = Timeline::Group(65);
        let prev_seq = seqs.start() - 1;
        let message = |seq| Message {
            timeline,
            seq,
            message_id: seq << 16,
            sender: 17,
            recipient: 0,
            sent_at_ms: 1,
            kind: MessageType::OPAQUE,
            flags: 0,
            client_msg_id: Some(Uuid::from_u128(seq.into())),
            body: Bytes::from(vec![7; 100]),
            refused: None,
        };
        ServerFrame::Push(Push {
            timeline,
            prev_seq,
            messages: seqs.map(message).collect(),
        })
    }

    fn seqs(frame: &proto::ServerFrame) -> Vec<u64> {
        let Some(Frame::Push(push)) = &frame.frame else {
            panic!("{frame:?}");
        };
        assert!(is_group(push.timeline.as_ref(), 65));
        push.messages.iter().map(|message| message.seq).collect()
    }

    #[test]
    fn a_frame_is_decoded_as_if_there_had_been_none_before() {
        let mut decoder = Decoder::default();
        let sent = Reply::Sent(Sent {
            timeline: Timeline::Group(65),
            seq: 9,
            message_id: 1,
        });
        let reply = ServerFrame::Reply { id: 3, reply: sent };
        for frame in [push(1..=64), push(65..=65), reply, push(66..=67)] {
            let bytes = binary::encode_server(&frame);
            let fresh = proto::ServerFrame::decode(bytes.clone()).unwrap();
            assert_eq!(*decoder.decode(bytes).unwrap(), fresh);
        }
        // A frame of a kind that this build does not know, field 99, delivers nothing.
        let unknown = Bytes::from_static(&[0x9a, 0x06, 0x00]);
        let frame = decoder.decode(unknown).unwrap();
        let delivers = matches!(&frame.frame, Some(Frame::Push(push))
            if push.timeline.is_some() || !push.messages.is_empty());
        assert!(!delivers, "{frame:?}");
        assert!(decoder.decode(Bytes::from_static(&[0xff])).is_err());
    }

    #[test]
    fn the_messages_of_a_push_are_decoded_into_the_list_of_the_one_before() {
        let mut decoder = Decoder::default();
        let room = |frame: &proto::ServerFrame| match &frame.frame {
            Some(Frame::Push(push)) => (push.messages.as_ptr(), push.messages.capacity()),
            other => panic!("{other:?}"),
        };
        let first = room(
            decoder
                .decode(binary::encode_server(&push(1..=64)))
                .unwrap(),
        );
        let frame = decoder
            .decode(binary::encode_server(&push(65..=80)))
            .unwrap();
        assert_eq!(room(frame), first);
        assert_eq!(seqs(frame), (65..=80).collect::<Vec<u64>>());
    }
}
