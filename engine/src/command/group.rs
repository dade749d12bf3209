//! Commands of groups.

use uuid::Uuid;

use crate::id::{GroupId, MessageId, UserId};

/// A new group, with its creator as the first member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateGroup {
    /// The caller's UUIDv7.
    pub request_id: Uuid,
    /// Who creates it.
    pub creator: UserId,
    /// Shown to members; at most `body_bytes_max` bytes.
    pub name: String,
    /// Assigned by the proposer.
    pub message_id: MessageId,
}

/// A user joins a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinGroup {
    /// The caller's UUIDv7.
    pub request_id: Uuid,
    /// The group.
    pub group: GroupId,
    /// Who joins.
    pub user: UserId,
    /// Assigned by the proposer.
    pub message_id: MessageId,
}

/// A user leaves a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaveGroup {
    /// The caller's UUIDv7.
    pub request_id: Uuid,
    /// The group.
    pub group: GroupId,
    /// Who leaves.
    pub user: UserId,
    /// Assigned by the proposer.
    pub message_id: MessageId,
}
