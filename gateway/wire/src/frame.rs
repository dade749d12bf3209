//! The frames of the client protocol, after decoding and before encoding.

use std::borrow::Cow;

use bytes::Bytes;
use uuid::Uuid;

use crate::{Body, Destination, Message, Position, Timeline, UserRef};

/// How frames are written on a connection: the WebSocket subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Encoding {
    /// `mailbox.v1.json`, in WebSocket text messages.
    #[default]
    Json,
    /// `mailbox.v1.proto`, in WebSocket binary messages.
    Proto,
}

impl Encoding {
    /// The WebSocket subprotocol's name.
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::Json => "mailbox.v1.json",
            Self::Proto => "mailbox.v1.proto",
        }
    }

    /// The encoding that a subprotocol's name asks for.
    pub fn from_subprotocol(name: &str) -> Option<Self> {
        [Self::Json, Self::Proto]
            .into_iter()
            .find(|encoding| encoding.subprotocol() == name)
    }

    /// Encodes a frame of a client.
    pub fn encode_client(self, frame: &ClientFrame) -> Bytes {
        match self {
            Self::Json => crate::json::encode_client(frame),
            Self::Proto => crate::binary::encode_client(frame),
        }
    }

    /// Decodes a frame of a client; a good one is valid as far as a gateway can tell by itself.
    pub fn decode_client(self, bytes: &Bytes) -> Result<ClientFrame, DecodeError> {
        match self {
            Self::Json => crate::json::decode_client(bytes),
            Self::Proto => crate::binary::decode_client(bytes),
        }
    }

    /// Encodes a frame of a gateway.
    pub fn encode_server(self, frame: &ServerFrame) -> Bytes {
        match self {
            Self::Json => crate::json::encode_server(frame),
            Self::Proto => crate::binary::encode_server(frame),
        }
    }

    /// Decodes a frame of a gateway. What is new in it is skipped: a gateway may be newer.
    pub fn decode_server(self, bytes: &Bytes) -> Result<ServerFrame, DecodeError> {
        match self {
            Self::Json => crate::json::decode_server(bytes),
            Self::Proto => crate::binary::decode_server(bytes),
        }
    }
}

/// A frame that cannot be read, in words for the developer of the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame: {reason}")]
pub struct DecodeError {
    /// The frame's request id, where that much could be read; else 0.
    pub id: u32,
    /// What is wrong with it.
    pub reason: String,
}

/// From a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFrame {
    /// Chosen by the client, not 0, unique among its unanswered requests.
    pub id: u32,
    /// What it asks.
    pub request: Request,
}

/// What a client asks. Each is answered once, with the [`Reply`] named, or with a [`Fault`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Append a message → [`Reply::Sent`].
    Send(Send),
    /// Read on from a sync key → [`Reply::Synced`].
    Sync(Sync),
    /// Raise a read mark → [`Reply::MarkedRead`].
    MarkRead {
        /// The conversation.
        conversation: Destination,
        /// Greatest seq read, inclusive.
        seq: u64,
        /// A UUIDv7; a retry carries the same one.
        request_id: Uuid,
    },
    /// Raise this device's cursor → [`Reply::Acked`].
    Ack {
        /// One's own mailbox or a group.
        timeline: Timeline,
        /// Greatest seq kept by this device, inclusive.
        seq: u64,
        /// A UUIDv7; a retry carries the same one.
        request_id: Uuid,
    },
    /// Create a group and join it → [`Reply::GroupCreated`].
    CreateGroup {
        /// Its name.
        name: String,
        /// A UUIDv7; a retry carries the same one.
        request_id: Uuid,
    },
    /// Join a group → [`Reply::JoinedGroup`].
    JoinGroup {
        /// Its id.
        group: u64,
        /// A UUIDv7; a retry carries the same one.
        request_id: Uuid,
    },
    /// Leave a group → [`Reply::LeftGroup`].
    LeaveGroup {
        /// Its id.
        group: u64,
        /// A UUIDv7; a retry carries the same one.
        request_id: Uuid,
    },
    /// Who is this? → [`Reply::User`].
    ResolveUser {
        /// By id or handle.
        user: UserRef,
    },
    /// Register the handle that the token names → [`Reply::UserRegistered`].
    RegisterUser {
        /// The handle, without the leading `@`.
        handle: String,
        /// A UUIDv7; a retry carries the same one.
        request_id: Uuid,
    },
    /// → [`Reply::Pong`].
    Ping,
}

/// A message to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// Where it goes.
    pub to: Destination,
    /// Its identity, together with sender and destination: a UUIDv7.
    pub client_msg_id: Uuid,
    /// The content.
    pub body: Body,
    /// Greatest message id that this device has shown; 0 if none.
    pub shown_message_id: u64,
}

/// A wish to read on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sync {
    /// From the last [`Synced`]; empty at first.
    pub key: String,
    /// Messages wanted; 0 = the gateway's default.
    pub limit: u32,
    /// What was pushed and kept since `key` was given.
    pub have: Vec<Position>,
}

/// From a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerFrame {
    /// First frame of a connection.
    Welcome(Welcome),
    /// Answers request `id`.
    Reply {
        /// The request's id.
        id: u32,
        /// The answer.
        reply: Reply,
    },
    /// Answers request `id` with a *no*.
    Error {
        /// The request's id; 0 if it could not be read.
        id: u32,
        /// Why.
        fault: Fault,
    },
    /// New messages.
    Push(Push),
    /// There is something new that was not pushed: sync.
    Notify {
        /// The heads of the timelines to sync.
        heads: Vec<Position>,
    },
    /// This gateway is about to stop.
    GoAway(GoAway),
    /// A frame that this build does not know; to be skipped.
    Unknown,
}

/// What a gateway tells a client first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Welcome {
    /// Who the token says the client is.
    pub user: u64,
    /// The device's name.
    pub device: String,
    /// The gateway's clock: make ids on it.
    pub server_time_ms: u64,
    /// What the gateway allows.
    pub limits: Limits,
}

/// What a gateway allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Greatest body, in bytes.
    pub body_bytes_max: u32,
    /// Greatest frame that the gateway reads, in bytes.
    pub frame_bytes_max: u32,
    /// Requests unanswered at once, beyond which the gateway stops reading.
    pub in_flight_max: u32,
    /// Messages in one page of sync.
    pub sync_messages_max: u32,
    /// A connection on which nothing was heard for so long is closed.
    pub idle_ms_max: u32,
}

/// Answers to requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The message is durable.
    Sent(Sent),
    /// A page.
    Synced(Synced),
    /// The read mark after the call.
    MarkedRead {
        /// Inclusive.
        seq: u64,
    },
    /// The cursor after the call.
    Acked {
        /// Inclusive.
        seq: u64,
    },
    /// The group is there and the caller its first member.
    GroupCreated {
        /// Its id.
        group: u64,
        /// Seq of its first message.
        seq: u64,
    },
    /// The caller is a member.
    JoinedGroup {
        /// First seq that the member may read.
        join_seq: u64,
    },
    /// The caller is no longer a member.
    LeftGroup {
        /// Last seq that the member may read.
        left_seq: u64,
    },
    /// A user.
    User {
        /// Their id.
        user: u64,
        /// Their handle, without `@`.
        handle: String,
    },
    /// The token's handle is a user now.
    UserRegistered {
        /// Their id.
        user: u64,
    },
    /// The gateway is there.
    Pong {
        /// Its clock.
        server_time_ms: u64,
    },
}

/// Where a message was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// The message's home timeline.
    pub timeline: Timeline,
    /// Its seq there.
    pub seq: u64,
    /// Its id.
    pub message_id: u64,
}

/// A page of sync.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Synced {
    /// In seq order within each timeline.
    pub messages: Vec<Message>,
    /// To be sent with the next sync.
    pub key: String,
    /// Whether there is more right now.
    pub more: bool,
    /// What `key` says, readable.
    pub positions: Vec<Position>,
}

/// New messages of one timeline; to be kept only if `prev_seq` is what the client holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Which timeline.
    pub timeline: Timeline,
    /// The seq before the first one.
    pub prev_seq: u64,
    /// Contiguous.
    pub messages: Vec<Message>,
}

/// This gateway is about to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoAway {
    /// For people.
    pub reason: String,
    /// Connect anew at a random time from here,
    pub after_ms_min: u32,
    /// to here.
    pub after_ms_max: u32,
}

/// A *no*, or a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The stable name, such as `IdReused`.
    pub code: Cow<'static, str>,
    /// For people: names the limit, its value and what was sent, or the fix.
    pub message: String,
    /// Whether the same request, with the same id inside, may succeed later.
    pub retryable: bool,
    /// If so, not before; 0 = at the client's choice.
    pub retry_after_ms: u32,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}
