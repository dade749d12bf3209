//! Between the store's messages and the clients'.

use bytes::Bytes;
use http::StatusCode;
use mailbox_api::v1::{self, ErrorCode};
use mailbox_client::CallError;
use mailbox_wire::{Destination, Fault, Message, MessageType, Sent, Timeline, UserRef};
use uuid::Uuid;

pub(crate) fn timeline_to_api(timeline: Timeline) -> v1::Timeline {
    let (kind, owner) = match timeline {
        Timeline::Mailbox(user) => (v1::TimelineKind::Mailbox, user),
        Timeline::Group(group) => (v1::TimelineKind::Group, group),
    };
    v1::Timeline {
        kind: kind as i32,
        owner,
    }
}

/// `None` for a kind that this build does not know.
pub(crate) fn timeline_from_api(timeline: Option<&v1::Timeline>) -> Option<Timeline> {
    let timeline = timeline?;
    match v1::TimelineKind::try_from(timeline.kind) {
        Ok(v1::TimelineKind::Mailbox) => Some(Timeline::Mailbox(timeline.owner)),
        Ok(v1::TimelineKind::Group) => Some(Timeline::Group(timeline.owner)),
        Ok(v1::TimelineKind::Unspecified) | Err(_) => None,
    }
}

pub(crate) fn user_to_api(user: UserRef) -> v1::UserRef {
    let user = match user {
        UserRef::Id(id) => v1::user_ref::User::Id(id),
        UserRef::Handle(handle) => v1::user_ref::User::Handle(handle),
    };
    v1::UserRef { user: Some(user) }
}

pub(crate) fn user_id_to_api(id: u64) -> v1::UserRef {
    v1::UserRef {
        user: Some(v1::user_ref::User::Id(id)),
    }
}

pub(crate) fn destination_to_api(to: Destination) -> v1::send_request::Destination {
    match to {
        Destination::User(user) => v1::send_request::Destination::User(user_to_api(user)),
        Destination::Group(group) => v1::send_request::Destination::Group(group),
    }
}

pub(crate) fn uuid_to_api(id: Uuid) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

pub(crate) fn sent_from_api(sent: &v1::SendResponse) -> Result<Sent, Fault> {
    let timeline = timeline_from_api(sent.timeline.as_ref())
        .ok_or_else(|| fault(ErrorCode::Internal, "the store named no timeline"))?;
    Ok(Sent {
        timeline,
        seq: sent.seq,
        message_id: sent.message_id,
    })
}

pub(crate) fn message_from_api(message: v1::Message, timeline: Timeline) -> Message {
    let refused = (message.refused_seq != 0).then(|| {
        let code = message.refusal();
        (message.refused_seq, code.name().to_owned())
    });
    Message {
        timeline,
        seq: message.seq,
        message_id: message.message_id,
        sender: message.sender,
        recipient: message.recipient,
        sent_at_ms: message.sent_at_ms,
        kind: MessageType(u8::try_from(message.r#type).unwrap_or(0)),
        flags: message.flags,
        client_msg_id: Uuid::from_slice(&message.client_msg_id).ok(),
        body: message.body,
        refused,
    }
}

/// A *no* of the gateway itself.
pub(crate) fn fault(code: ErrorCode, message: impl Into<String>) -> Fault {
    Fault {
        code: code.name().into(),
        message: message.into(),
        retryable: code.is_retryable(),
        retry_after_ms: 0,
    }
}

/// A *no* of the store.
pub(crate) fn fault_from_call(error: CallError) -> Fault {
    let code = error.code();
    Fault {
        code: code.name().into(),
        retryable: code.is_retryable(),
        retry_after_ms: error.0.retry_after_ms,
        message: error.0.message,
    }
}

/// The HTTP status that fits a fault.
pub(crate) fn http_status(fault: &Fault) -> StatusCode {
    ALL_CODES
        .into_iter()
        .find(|code| code.name() == fault.code)
        .map_or(StatusCode::INTERNAL_SERVER_ERROR, status_of_code)
}

const ALL_CODES: [ErrorCode; 40] = [
    ErrorCode::Unspecified,
    ErrorCode::Unavailable,
    ErrorCode::NotLeader,
    ErrorCode::Retry,
    ErrorCode::Busy,
    ErrorCode::DiskFull,
    ErrorCode::ClockSkew,
    ErrorCode::WrongShard,
    ErrorCode::IdReused,
    ErrorCode::IdExpired,
    ErrorCode::IdFromFuture,
    ErrorCode::Corrupt,
    ErrorCode::BodyTooLarge,
    ErrorCode::UnknownUser,
    ErrorCode::UnknownGroup,
    ErrorCode::NotAMember,
    ErrorCode::HandleTaken,
    ErrorCode::InvalidHandle,
    ErrorCode::GroupFull,
    ErrorCode::AlreadyAMember,
    ErrorCode::Resync,
    ErrorCode::SeqBeyondHead,
    ErrorCode::TooManyGroups,
    ErrorCode::TooManyDevices,
    ErrorCode::Unauthenticated,
    ErrorCode::Forbidden,
    ErrorCode::InvalidArgument,
    ErrorCode::LimitExceeded,
    ErrorCode::WrongCluster,
    ErrorCode::Internal,
    ErrorCode::NodeTaken,
    ErrorCode::NodeRemoved,
    ErrorCode::StaleDisk,
    ErrorCode::UnknownNode,
    ErrorCode::UnknownShard,
    ErrorCode::NodeInUse,
    ErrorCode::StaleEpoch,
    ErrorCode::UnknownDeadLetter,
    ErrorCode::DeadLetterResolved,
    ErrorCode::TooStale,
];

#[deny(clippy::wildcard_enum_match_arm)]
fn status_of_code(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::Unavailable
        | ErrorCode::NotLeader
        | ErrorCode::Retry
        | ErrorCode::ClockSkew
        | ErrorCode::WrongShard
        | ErrorCode::TooStale => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Busy | ErrorCode::LimitExceeded => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        ErrorCode::IdReused
        | ErrorCode::HandleTaken
        | ErrorCode::AlreadyAMember
        | ErrorCode::GroupFull
        | ErrorCode::TooManyGroups
        | ErrorCode::TooManyDevices => StatusCode::CONFLICT,
        ErrorCode::IdExpired | ErrorCode::IdFromFuture | ErrorCode::SeqBeyondHead => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        ErrorCode::Corrupt | ErrorCode::InvalidHandle | ErrorCode::InvalidArgument => {
            StatusCode::BAD_REQUEST
        }
        ErrorCode::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::UnknownUser | ErrorCode::UnknownGroup => StatusCode::NOT_FOUND,
        ErrorCode::NotAMember | ErrorCode::Forbidden => StatusCode::FORBIDDEN,
        ErrorCode::Resync => StatusCode::GONE,
        ErrorCode::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorCode::Unspecified
        | ErrorCode::WrongCluster
        | ErrorCode::Internal
        // No call of a gateway is answered with these.
        | ErrorCode::NodeTaken
        | ErrorCode::NodeRemoved
        | ErrorCode::StaleDisk
        | ErrorCode::UnknownNode
        | ErrorCode::UnknownShard
        | ErrorCode::NodeInUse
        | ErrorCode::StaleEpoch
        | ErrorCode::UnknownDeadLetter
        | ErrorCode::DeadLetterResolved => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_finds_its_status() {
        // By number, so that a code added to the protocol and forgotten above shows up.
        for code in (0..256).filter_map(|number| ErrorCode::try_from(number).ok()) {
            assert!(ALL_CODES.contains(&code), "{code:?}");
            assert_eq!(http_status(&fault(code, "")), status_of_code(code));
        }
    }
}
