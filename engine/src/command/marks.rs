//! Commands that note how far somebody has got.

use uuid::Uuid;

use crate::id::{DeviceId, GroupId, Seq, TimelineId, UserId};

/// What a user has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversation {
    /// With another user, in one's own mailbox.
    Peer(UserId),
    /// In a group.
    Group(GroupId),
}

/// A user has read a conversation up to `seq`, inclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkRead {
    /// The caller's UUIDv7.
    pub request_id: Uuid,
    /// Who read.
    pub user: UserId,
    /// What.
    pub conversation: Conversation,
    /// Of one's own mailbox, or of the group's timeline.
    pub seq: Seq,
}

/// A device holds a timeline up to `seq`, inclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckCursor {
    /// The caller's UUIDv7.
    pub request_id: Uuid,
    /// Whose device.
    pub user: UserId,
    /// Which one.
    pub device: DeviceId,
    /// One's own mailbox, or the timeline of a group that one has joined.
    pub timeline: TimelineId,
    /// Greatest seq that the device has stored.
    pub seq: Seq,
}
