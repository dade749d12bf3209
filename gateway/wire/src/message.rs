//! A message of a timeline, and what a client puts into one.

use bytes::Bytes;
use uuid::Uuid;

use crate::Timeline;

/// What kind of message it is. Numbers are for ever; unknown ones (of a newer store) are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageType(pub u8);

impl MessageType {
    /// UTF-8 text.
    pub const TEXT: Self = Self(1);
    /// Bytes that only the application understands.
    pub const OPAQUE: Self = Self(2);
    /// Written by the store: first message of a group's timeline; the body is the group's name.
    pub const GROUP_CREATED: Self = Self(16);
    /// Written by the store: `sender` joined the group.
    pub const MEMBER_JOINED: Self = Self(17);
    /// Written by the store: `sender` left the group.
    pub const MEMBER_LEFT: Self = Self(18);
    /// Written by the store into a sender's mailbox: message `refused_seq` was not delivered.
    pub const REFUSAL: Self = Self(19);

    const NAMES: [(Self, &'static str); 6] = [
        (Self::TEXT, "text"),
        (Self::OPAQUE, "opaque"),
        (Self::GROUP_CREATED, "group_created"),
        (Self::MEMBER_JOINED, "member_joined"),
        (Self::MEMBER_LEFT, "member_left"),
        (Self::REFUSAL, "refusal"),
    ];

    /// The name in JSON, or none for a number that this build does not know.
    pub fn name(self) -> Option<&'static str> {
        Self::NAMES
            .iter()
            .find(|(kind, _)| *kind == self)
            .map(|(_, name)| *name)
    }

    /// The type of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(kind, _)| *kind)
    }
}

/// What a client sends: the two types that are not the store's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// UTF-8 text.
    Text(String),
    /// Bytes that only the application understands.
    Opaque(Bytes),
}

impl Body {
    /// The stored type.
    pub fn message_type(&self) -> MessageType {
        match self {
            Self::Text(_) => MessageType::TEXT,
            Self::Opaque(_) => MessageType::OPAQUE,
        }
    }

    /// The stored bytes.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Text(text) => Bytes::from(text),
            Self::Opaque(bytes) => bytes,
        }
    }

    /// Length of the stored bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Opaque(bytes) => bytes.len(),
        }
    }

    /// Whether nothing would be stored beside the header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<&str> for Body {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// One item of a timeline, as a device sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it is.
    pub timeline: Timeline,
    /// Its position there, dense from 1.
    pub seq: u64,
    /// Its place in the order between timelines: sort by (message id, timeline, seq).
    pub message_id: u64,
    /// User id of who sent it, or whom it is about.
    pub sender: u64,
    /// In a mailbox: user id of whom it was sent to. 0 in a group's timeline.
    pub recipient: u64,
    /// Milliseconds since 1970, on the store's clock.
    pub sent_at_ms: u64,
    /// What kind of message it is.
    pub kind: MessageType,
    /// Set by the store; 0 for now.
    pub flags: u32,
    /// The sender's id of it; none for messages that the store wrote itself.
    pub client_msg_id: Option<Uuid>,
    /// The content.
    pub body: Bytes,
    /// Of a refusal only: the refused message's seq in this mailbox, and the error code's name.
    pub refused: Option<(u64, String)>,
}

impl Message {
    /// The body as text, if it is text (or a group's name) and valid UTF-8.
    pub fn text(&self) -> Option<&str> {
        let textual = matches!(self.kind, MessageType::TEXT | MessageType::GROUP_CREATED);
        if textual {
            std::str::from_utf8(&self.body).ok()
        } else {
            None
        }
    }
}
