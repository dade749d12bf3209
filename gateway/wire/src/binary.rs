//! The `mailbox.v1.proto` encoding: generated messages to frames and back.

use bytes::Bytes;
use prost::Message as _;
use uuid::Uuid;

use crate::proto::{self, client_frame, destination, server_frame};
use crate::{
    Body, ClientFrame, DecodeError, Destination, Fault, GoAway, Limits, Message, MessageType,
    Position, Push, Reply, Request, Send, Sent, ServerFrame, Sync, Synced, Timeline, UserRef,
    Welcome,
};

/// Encodes a frame of a client.
pub fn encode_client(frame: &ClientFrame) -> Bytes {
    let request = request_to_proto(frame.request.clone());
    proto::ClientFrame {
        id: frame.id,
        request: Some(request),
    }
    .encode_to_vec()
    .into()
}

/// Decodes a frame of a client.
pub fn decode_client(bytes: &Bytes) -> Result<ClientFrame, DecodeError> {
    let frame = proto::ClientFrame::decode(bytes.clone()).map_err(|error| DecodeError {
        id: 0,
        reason: error.to_string(),
    })?;
    let id = frame.id;
    let refuse = |reason: String| DecodeError { id, reason };
    if id == 0 {
        return Err(refuse(
            "id is missing: give each request its own number, from 1".into(),
        ));
    }
    let Some(request) = frame.request else {
        return Err(refuse("it has no request that this gateway knows".into()));
    };
    Ok(ClientFrame {
        id,
        request: request_from_proto(request).map_err(refuse)?,
    })
}

/// Encodes a frame of a gateway.
pub fn encode_server(frame: &ServerFrame) -> Bytes {
    server_to_proto(frame.clone()).encode_to_vec().into()
}

/// Decodes a frame of a gateway.
pub fn decode_server(bytes: &Bytes) -> Result<ServerFrame, DecodeError> {
    let frame = proto::ServerFrame::decode(bytes.clone()).map_err(|error| DecodeError {
        id: 0,
        reason: error.to_string(),
    })?;
    let id = frame.id;
    server_from_proto(frame).map_err(|reason| DecodeError { id, reason })
}

fn request_to_proto(request: Request) -> client_frame::Request {
    use client_frame::Request as P;
    match request {
        Request::Send(send) => P::Send(proto::Send {
            to: Some(send.to.into()),
            client_msg_id: uuid_to_proto(send.client_msg_id),
            r#type: u32::from(send.body.message_type().0),
            body: send.body.into_bytes(),
            shown_message_id: send.shown_message_id,
        }),
        Request::Sync(sync) => P::Sync(proto::Sync {
            key: sync.key,
            limit: sync.limit,
            have: sync.have.into_iter().map(Into::into).collect(),
        }),
        Request::MarkRead {
            conversation,
            seq,
            request_id,
        } => P::MarkRead(proto::MarkRead {
            conversation: Some(conversation.into()),
            seq,
            request_id: uuid_to_proto(request_id),
        }),
        Request::Ack {
            timeline,
            seq,
            request_id,
        } => P::Ack(proto::Ack {
            timeline: Some(timeline.into()),
            seq,
            request_id: uuid_to_proto(request_id),
        }),
        Request::CreateGroup { name, request_id } => P::CreateGroup(proto::CreateGroup {
            name,
            request_id: uuid_to_proto(request_id),
        }),
        Request::JoinGroup { group, request_id } => P::JoinGroup(proto::JoinGroup {
            group,
            request_id: uuid_to_proto(request_id),
        }),
        Request::LeaveGroup { group, request_id } => P::LeaveGroup(proto::LeaveGroup {
            group,
            request_id: uuid_to_proto(request_id),
        }),
        Request::ResolveUser { user } => P::ResolveUser(proto::ResolveUser {
            user: Some(Destination::User(user).into()),
        }),
        Request::RegisterUser { handle, request_id } => P::RegisterUser(proto::RegisterUser {
            handle,
            request_id: uuid_to_proto(request_id),
        }),
        Request::Ping => P::Ping(proto::Ping {}),
    }
}

fn request_from_proto(request: client_frame::Request) -> Result<Request, String> {
    use client_frame::Request as P;
    Ok(match request {
        P::Send(send) => Request::Send(send_from_proto(send)?),
        P::Sync(sync) => Request::Sync(Sync {
            key: sync.key,
            limit: sync.limit,
            have: sync
                .have
                .into_iter()
                .map(position)
                .collect::<Result<_, _>>()?,
        }),
        P::MarkRead(call) => Request::MarkRead {
            conversation: destination(call.conversation, "conversation")?,
            seq: call.seq,
            request_id: uuid(&call.request_id, "request_id")?,
        },
        P::Ack(call) => Request::Ack {
            timeline: timeline(call.timeline)?,
            seq: call.seq,
            request_id: uuid(&call.request_id, "request_id")?,
        },
        P::CreateGroup(call) => Request::CreateGroup {
            name: call.name,
            request_id: uuid(&call.request_id, "request_id")?,
        },
        P::JoinGroup(call) => Request::JoinGroup {
            group: call.group,
            request_id: uuid(&call.request_id, "request_id")?,
        },
        P::LeaveGroup(call) => Request::LeaveGroup {
            group: call.group,
            request_id: uuid(&call.request_id, "request_id")?,
        },
        P::ResolveUser(call) => match destination(call.user, "user")? {
            Destination::User(user) => Request::ResolveUser { user },
            Destination::Group(_) => return Err("user names a group".into()),
        },
        P::RegisterUser(call) => Request::RegisterUser {
            handle: call.handle,
            request_id: uuid(&call.request_id, "request_id")?,
        },
        P::Ping(proto::Ping {}) => Request::Ping,
    })
}

fn send_from_proto(send: proto::Send) -> Result<Send, String> {
    let body = match send.r#type {
        1 => Body::Text(
            String::from_utf8(send.body.into()).map_err(|_| "a text body must be UTF-8")?,
        ),
        2 => Body::Opaque(send.body),
        other => {
            return Err(format!(
                "type is {other}; it must be 1 (text) or 2 (opaque)"
            ));
        }
    };
    Ok(Send {
        to: destination(send.to, "to")?,
        client_msg_id: uuid(&send.client_msg_id, "client_msg_id")?,
        body,
        shown_message_id: send.shown_message_id,
    })
}

fn server_to_proto(frame: ServerFrame) -> proto::ServerFrame {
    use server_frame::Frame as P;
    let (id, frame) = match frame {
        ServerFrame::Welcome(welcome) => (0, P::Welcome(welcome_to_proto(welcome))),
        ServerFrame::Reply { id, reply } => (id, reply_to_proto(reply)),
        ServerFrame::Error { id, fault } => (
            id,
            P::Error(proto::Error {
                code: fault.code.into_owned(),
                message: fault.message,
                retryable: fault.retryable,
                retry_after_ms: fault.retry_after_ms,
            }),
        ),
        ServerFrame::Push(push) => {
            let bare = |message| proto::Message {
                timeline: None,
                ..message_to_proto(message)
            };
            let messages = push.messages.into_iter().map(bare).collect();
            let timeline = Some(push.timeline.into());
            (
                0,
                P::Push(proto::Push {
                    timeline,
                    prev_seq: push.prev_seq,
                    messages,
                }),
            )
        }
        ServerFrame::Notify { heads } => (
            0,
            P::Notify(proto::Notify {
                heads: heads.into_iter().map(Into::into).collect(),
            }),
        ),
        ServerFrame::GoAway(go_away) => (
            0,
            P::GoAway(proto::GoAway {
                reason: go_away.reason,
                after_ms_min: go_away.after_ms_min,
                after_ms_max: go_away.after_ms_max,
            }),
        ),
        ServerFrame::Unknown => return proto::ServerFrame::default(),
    };
    proto::ServerFrame {
        id,
        frame: Some(frame),
    }
}

fn reply_to_proto(reply: Reply) -> server_frame::Frame {
    use server_frame::Frame as P;
    match reply {
        Reply::Sent(sent) => P::Sent(proto::Sent {
            timeline: Some(sent.timeline.into()),
            seq: sent.seq,
            message_id: sent.message_id,
        }),
        Reply::Synced(page) => P::Synced(proto::Synced {
            messages: page.messages.into_iter().map(message_to_proto).collect(),
            key: page.key,
            more: page.more,
            positions: page.positions.into_iter().map(Into::into).collect(),
        }),
        Reply::MarkedRead { seq } => P::MarkedRead(proto::MarkedRead { seq }),
        Reply::Acked { seq } => P::Acked(proto::Acked { seq }),
        Reply::GroupCreated { group, seq } => P::GroupCreated(proto::GroupCreated { group, seq }),
        Reply::JoinedGroup { join_seq } => P::JoinedGroup(proto::JoinedGroup { join_seq }),
        Reply::LeftGroup { left_seq } => P::LeftGroup(proto::LeftGroup { left_seq }),
        Reply::User { user, handle } => P::User(proto::User { user, handle }),
        Reply::UserRegistered { user } => P::UserRegistered(proto::UserRegistered { user }),
        Reply::Pong { server_time_ms } => P::Pong(proto::Pong { server_time_ms }),
    }
}

fn server_from_proto(frame: proto::ServerFrame) -> Result<ServerFrame, String> {
    use server_frame::Frame as P;
    let id = frame.id;
    let Some(frame) = frame.frame else {
        return Ok(ServerFrame::Unknown);
    };
    let reply = match frame {
        P::Error(error) => {
            let fault = Fault {
                code: error.code.into(),
                message: error.message,
                retryable: error.retryable,
                retry_after_ms: error.retry_after_ms,
            };
            return Ok(ServerFrame::Error { id, fault });
        }
        P::Welcome(welcome) => return Ok(ServerFrame::Welcome(welcome_from_proto(welcome))),
        P::Push(push) => return push_from_proto(push).map(ServerFrame::Push),
        P::Notify(notify) => {
            let heads = notify
                .heads
                .into_iter()
                .map(position)
                .collect::<Result<_, _>>()?;
            return Ok(ServerFrame::Notify { heads });
        }
        P::GoAway(go_away) => {
            return Ok(ServerFrame::GoAway(GoAway {
                reason: go_away.reason,
                after_ms_min: go_away.after_ms_min,
                after_ms_max: go_away.after_ms_max,
            }));
        }
        P::Sent(sent) => Reply::Sent(Sent {
            timeline: timeline(sent.timeline)?,
            seq: sent.seq,
            message_id: sent.message_id,
        }),
        P::Synced(page) => Reply::Synced(page_from_proto(page)?),
        P::MarkedRead(reply) => Reply::MarkedRead { seq: reply.seq },
        P::Acked(reply) => Reply::Acked { seq: reply.seq },
        P::GroupCreated(reply) => Reply::GroupCreated {
            group: reply.group,
            seq: reply.seq,
        },
        P::JoinedGroup(reply) => Reply::JoinedGroup {
            join_seq: reply.join_seq,
        },
        P::LeftGroup(reply) => Reply::LeftGroup {
            left_seq: reply.left_seq,
        },
        P::User(reply) => Reply::User {
            user: reply.user,
            handle: reply.handle,
        },
        P::UserRegistered(reply) => Reply::UserRegistered { user: reply.user },
        P::Pong(reply) => Reply::Pong {
            server_time_ms: reply.server_time_ms,
        },
    };
    Ok(ServerFrame::Reply { id, reply })
}

fn page_from_proto(page: proto::Synced) -> Result<Synced, String> {
    let messages = page.messages.into_iter().map(|message| {
        let at = timeline(message.timeline)?;
        message_from_proto(message, at)
    });
    Ok(Synced {
        messages: messages.collect::<Result<_, String>>()?,
        key: page.key,
        more: page.more,
        positions: page
            .positions
            .into_iter()
            .map(position)
            .collect::<Result<_, _>>()?,
    })
}

fn push_from_proto(push: proto::Push) -> Result<Push, String> {
    let at = timeline(push.timeline)?;
    let messages = push
        .messages
        .into_iter()
        .map(|message| message_from_proto(message, at));
    Ok(Push {
        timeline: at,
        prev_seq: push.prev_seq,
        messages: messages.collect::<Result<_, _>>()?,
    })
}

fn message_to_proto(message: Message) -> proto::Message {
    let (refused_seq, refusal) = message.refused.unwrap_or_default();
    proto::Message {
        timeline: Some(message.timeline.into()),
        seq: message.seq,
        message_id: message.message_id,
        sender: message.sender,
        recipient: message.recipient,
        sent_at_ms: message.sent_at_ms,
        r#type: u32::from(message.kind.0),
        flags: message.flags,
        client_msg_id: message.client_msg_id.map(uuid_to_proto).unwrap_or_default(),
        body: message.body,
        refused_seq,
        refusal,
    }
}

fn message_from_proto(message: proto::Message, timeline: Timeline) -> Result<Message, String> {
    let kind = u8::try_from(message.r#type)
        .map_err(|_| format!("type is {}; it must fit in a byte", message.r#type))?;
    let client_msg_id = if message.client_msg_id.is_empty() {
        None
    } else {
        Some(uuid(&message.client_msg_id, "client_msg_id")?)
    };
    Ok(Message {
        timeline,
        seq: message.seq,
        message_id: message.message_id,
        sender: message.sender,
        recipient: message.recipient,
        sent_at_ms: message.sent_at_ms,
        kind: MessageType(kind),
        flags: message.flags,
        client_msg_id,
        body: message.body,
        refused: (message.refused_seq != 0).then_some((message.refused_seq, message.refusal)),
    })
}

fn welcome_to_proto(welcome: Welcome) -> proto::Welcome {
    let limits = welcome.limits;
    proto::Welcome {
        user: welcome.user,
        device: welcome.device,
        server_time_ms: welcome.server_time_ms,
        limits: Some(proto::Limits {
            body_bytes_max: limits.body_bytes_max,
            frame_bytes_max: limits.frame_bytes_max,
            in_flight_max: limits.in_flight_max,
            sync_messages_max: limits.sync_messages_max,
            idle_ms_max: limits.idle_ms_max,
        }),
    }
}

fn welcome_from_proto(welcome: proto::Welcome) -> Welcome {
    let limits = welcome.limits.unwrap_or_default();
    Welcome {
        user: welcome.user,
        device: welcome.device,
        server_time_ms: welcome.server_time_ms,
        limits: Limits {
            body_bytes_max: limits.body_bytes_max,
            frame_bytes_max: limits.frame_bytes_max,
            in_flight_max: limits.in_flight_max,
            sync_messages_max: limits.sync_messages_max,
            idle_ms_max: limits.idle_ms_max,
        },
    }
}

impl From<Destination> for proto::Destination {
    fn from(destination: Destination) -> Self {
        let destination = match destination {
            Destination::User(UserRef::Id(user)) => destination::Destination::User(user),
            Destination::User(UserRef::Handle(name)) => destination::Destination::Handle(name),
            Destination::Group(group) => destination::Destination::Group(group),
        };
        Self {
            destination: Some(destination),
        }
    }
}

impl From<Timeline> for proto::Timeline {
    fn from(timeline: Timeline) -> Self {
        let (kind, owner) = match timeline {
            Timeline::Mailbox(user) => (proto::TimelineKind::Mailbox, user),
            Timeline::Group(group) => (proto::TimelineKind::Group, group),
        };
        Self {
            kind: kind as i32,
            owner,
        }
    }
}

impl From<Position> for proto::Position {
    fn from(position: Position) -> Self {
        Self {
            timeline: Some(position.timeline.into()),
            seq: position.seq,
        }
    }
}

fn destination(
    destination: Option<proto::Destination>,
    field: &str,
) -> Result<Destination, String> {
    use destination::Destination as P;
    match destination.and_then(|destination| destination.destination) {
        Some(P::User(user)) => Ok(Destination::User(UserRef::Id(user))),
        Some(P::Handle(handle)) => Ok(Destination::User(UserRef::Handle(handle))),
        Some(P::Group(group)) => Ok(Destination::Group(group)),
        None => Err(format!(
            "{field} is missing: name a user, a handle or a group"
        )),
    }
}

fn timeline(timeline: Option<proto::Timeline>) -> Result<Timeline, String> {
    let timeline = timeline.ok_or("timeline is missing")?;
    match proto::TimelineKind::try_from(timeline.kind) {
        Ok(proto::TimelineKind::Mailbox) => Ok(Timeline::Mailbox(timeline.owner)),
        Ok(proto::TimelineKind::Group) => Ok(Timeline::Group(timeline.owner)),
        Ok(proto::TimelineKind::Unspecified) | Err(_) => Err(format!(
            "timeline kind is {}; it must be 1 (mailbox) or 2 (group)",
            timeline.kind
        )),
    }
}

fn position(position: proto::Position) -> Result<Position, String> {
    Ok(Position {
        timeline: timeline(position.timeline)?,
        seq: position.seq,
    })
}

fn uuid_to_proto(id: Uuid) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

fn uuid(bytes: &Bytes, field: &str) -> Result<Uuid, String> {
    Uuid::from_slice(bytes).map_err(|_| {
        format!(
            "{field} has {} bytes; it must be a UUIDv7 of 16",
            bytes.len()
        )
    })
}
