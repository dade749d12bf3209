//! Every refusal and every fault, as the error that a caller gets. No wildcard: a new refusal
//! does not compile until it has a code.
#![deny(clippy::wildcard_enum_match_arm)]

use mailbox_api::CallError;
use mailbox_api::v1::{Error, ErrorCode};
use mailbox_engine::Refusal;
use mailbox_raft::{ChangeError, LeaderHint, ProposeError};

/// How long a caller waits before it tries again, where we know no better.
const RETRY_AFTER_MS: u32 = 50;

/// A *no* of apply. Its words carry the values.
pub(crate) fn refusal(refusal: &Refusal) -> CallError {
    let code = match refusal {
        Refusal::IdReused => ErrorCode::IdReused,
        Refusal::IdExpired { .. } => ErrorCode::IdExpired,
        Refusal::IdFromFuture { .. } => ErrorCode::IdFromFuture,
        Refusal::Corrupt { .. } => ErrorCode::Corrupt,
        Refusal::Retry => ErrorCode::Retry,
        Refusal::UnknownUser { .. } => ErrorCode::UnknownUser,
        Refusal::UnknownGroup { .. } => ErrorCode::UnknownGroup,
        Refusal::NotAMember { .. } => ErrorCode::NotAMember,
        Refusal::AlreadyAMember { .. } => ErrorCode::AlreadyAMember,
        Refusal::HandleTaken { .. } => ErrorCode::HandleTaken,
        Refusal::InvalidHandle { .. } => ErrorCode::InvalidHandle,
        Refusal::GroupFull { .. } => ErrorCode::GroupFull,
        Refusal::TooManyGroups { .. } => ErrorCode::TooManyGroups,
        Refusal::TooManyDevices { .. } => ErrorCode::TooManyDevices,
        Refusal::SeqBeyondHead { .. } => ErrorCode::SeqBeyondHead,
        Refusal::BodyTooLarge { .. } => ErrorCode::BodyTooLarge,
        Refusal::NotReady | Refusal::NoMap => return unavailable(refusal.to_string()),
        Refusal::OptionOutOfBounds { .. }
        | Refusal::ReservedType { .. }
        | Refusal::InvalidMap { .. }
        | Refusal::InvalidGateway { .. }
        | Refusal::GatewayTaken { .. }
        | Refusal::MoveToItself { .. }
        | Refusal::ShardExists { .. }
        | Refusal::SplitSize { .. }
        | Refusal::MergeIntoItself { .. } => ErrorCode::InvalidArgument,
        Refusal::TooManyGateways { .. } => ErrorCode::LimitExceeded,
        Refusal::WrongShard { .. } | Refusal::WrongOwner { .. } => ErrorCode::WrongShard,
        Refusal::NodeTaken { .. } => ErrorCode::NodeTaken,
        Refusal::NodeRemoved { .. } => ErrorCode::NodeRemoved,
        Refusal::StaleDisk { .. } => ErrorCode::StaleDisk,
        Refusal::UnknownNode { .. } => ErrorCode::UnknownNode,
        Refusal::NodeInUse { .. } => ErrorCode::NodeInUse,
        Refusal::UnknownShard { .. } => ErrorCode::UnknownShard,
        Refusal::StaleEpoch { .. }
        | Refusal::SlotStands { .. }
        | Refusal::SlotMoves { .. }
        | Refusal::NoSuchMove { .. }
        | Refusal::ShardSplits { .. }
        | Refusal::ShardMerges { .. }
        | Refusal::ShardHasSlots { .. }
        | Refusal::ShardChanges { .. } => ErrorCode::StaleEpoch,
        Refusal::UnknownDeadLetter { .. } => ErrorCode::UnknownDeadLetter,
        Refusal::DeadLetterResolved { .. } => ErrorCode::DeadLetterResolved,
        // Only relays get these.
        Refusal::UnknownLane { .. } | Refusal::LaneAhead { .. } => ErrorCode::Internal,
    };
    CallError::new(code, refusal.to_string())
}

/// Where the leader was last seen.
pub(crate) fn not_leader(shard: u32, leader: Option<LeaderHint>) -> CallError {
    let (message, node, address) = match leader {
        Some(LeaderHint { node, address }) => (
            format!("node {node} at {address} leads shard {shard}"),
            node,
            address,
        ),
        None => (
            format!("shard {shard} has no leader that this node knows"),
            0,
            String::new(),
        ),
    };
    CallError(Error {
        code: ErrorCode::NotLeader as i32,
        message,
        retry_after_ms: if node == 0 { RETRY_AFTER_MS } else { 0 },
        leader_node: node,
        leader_address: address,
        ..Error::default()
    })
}

/// A proposal or a read barrier that did not go through.
pub(crate) fn propose(shard: u32, error: ProposeError) -> CallError {
    let words = error.to_string();
    let code = match error {
        ProposeError::NotLeader { leader } => return not_leader(shard, leader),
        ProposeError::Unavailable { .. } => return unavailable(words),
        ProposeError::Busy { .. } | ProposeError::OutboxFull { .. } => ErrorCode::Busy,
        ProposeError::DiskFull { .. } => ErrorCode::DiskFull,
        ProposeError::ClockSkew(_) => ErrorCode::ClockSkew,
        ProposeError::EntryTooLarge { .. } => ErrorCode::LimitExceeded,
    };
    let retry_after_ms = if code.is_retryable() {
        RETRY_AFTER_MS
    } else {
        0
    };
    CallError(Error {
        code: code as i32,
        message: words,
        retry_after_ms,
        ..Error::default()
    })
}

/// A change of a shard's members, or a transfer of its leadership, that did not go through.
pub(crate) fn change(shard: u32, error: ChangeError) -> CallError {
    let words = format!("shard {shard}: {error}");
    let code = match error {
        ChangeError::NotLeader { leader } => return not_leader(shard, leader),
        ChangeError::Changing | ChangeError::Unavailable { .. } => return unavailable(words),
        ChangeError::Moved { .. } => ErrorCode::StaleEpoch,
        ChangeError::UnknownNode { .. } => ErrorCode::UnknownNode,
        ChangeError::NotLearner { .. }
        | ChangeError::IsVoter { .. }
        | ChangeError::NotVoter { .. }
        | ChangeError::NoVoters => ErrorCode::InvalidArgument,
    };
    CallError::new(code, words)
}

/// A retryable *not now*.
pub(crate) fn unavailable(message: impl Into<String>) -> CallError {
    CallError(Error {
        code: ErrorCode::Unavailable as i32,
        message: message.into(),
        retry_after_ms: RETRY_AFTER_MS,
        ..Error::default()
    })
}

/// Over a limit: which, its value, and what was sent.
pub(crate) fn limit(name: &str, limit: u64, sent: u64) -> CallError {
    CallError::new(
        ErrorCode::LimitExceeded,
        format!("{name} is {limit}, got {sent}"),
    )
}

/// The slot is not in this replica: it may not have come here yet, or have left since.
pub(crate) fn is_elsewhere(error: &mailbox_engine::Error) -> bool {
    use mailbox_engine::Error;
    matches!(error, Error::UnknownSlot { .. } | Error::WrongOwner { .. })
}

/// A row that cannot be read. The words name file or key; the replica goes on with other rows. Or one of a
/// slot that has left the shard: to be asked for elsewhere.
pub(crate) fn engine_fault(error: &mailbox_engine::Error) -> CallError {
    if let mailbox_engine::Error::WrongOwner { .. } = error {
        return CallError::new(ErrorCode::WrongShard, error.to_string());
    }
    CallError::new(ErrorCode::Internal, with_causes(error))
}

/// A reply that does not belong to the command: our own bug.
pub(crate) fn wrong_reply(reply: &mailbox_engine::Reply) -> CallError {
    CallError::new(
        ErrorCode::Internal,
        format!("a reply of another procedure: {reply:?}"),
    )
}

/// An error with all its causes in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
