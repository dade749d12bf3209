//! The commands that send a message.

use bytes::Bytes;
use uuid::Uuid;

use crate::id::{GroupId, MessageId, UserId};
use crate::row::{Flags, MessageType};

/// A 1:1 message: appended to the sender's mailbox, its home, and to the recipient's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// Who sends.
    pub sender: UserId,
    /// To whom.
    pub recipient: UserId,
    /// The sender's own id for this message: a UUIDv7.
    pub client_msg_id: Uuid,
    /// Assigned by the proposer.
    pub message_id: MessageId,
    /// What it is; types that only the store writes are not for clients.
    pub kind: MessageType,
    /// Bits of [`Flags::CLIENT`]; others are cleared.
    pub flags: Flags,
    /// crc32 over `client_msg_id`, `kind` and `body`.
    pub content_crc: u32,
    /// What it says.
    pub body: Bytes,
    /// Greatest message id that the sending device has shown. For the proposer only: it is
    /// neither replicated nor part of what was asked.
    pub shown: MessageId,
}

/// A message to a group: appended once, to the group's timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendGroup {
    /// Who sends.
    pub sender: UserId,
    /// To which group.
    pub group: GroupId,
    /// The sender's own id for this message: a UUIDv7.
    pub client_msg_id: Uuid,
    /// Assigned by the proposer.
    pub message_id: MessageId,
    /// What it is; types that only the store writes are not for clients.
    pub kind: MessageType,
    /// Bits of [`Flags::CLIENT`]; others are cleared.
    pub flags: Flags,
    /// crc32 over `client_msg_id`, `kind` and `body`.
    pub content_crc: u32,
    /// What it says.
    pub body: Bytes,
    /// Greatest message id that the sending device has shown. For the proposer only: it is
    /// neither replicated nor part of what was asked.
    pub shown: MessageId,
}
