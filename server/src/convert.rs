//! Between the protocol's messages and the engine's types; what cannot be converted is refused
//! with `InvalidArgument`, naming the field.

use mailbox_api::CallError;
use mailbox_api::v1::{self, ErrorCode, send_request, user_ref};
use mailbox_engine::{
    Command, Flags, GroupId, MessageId, MessageType, RefusalCode, Row, Send, SendGroup, TimelineId,
    TimelineKind, UserId,
};
use uuid::Uuid;

/// A field that cannot be what the caller means.
pub(crate) fn invalid(message: impl Into<String>) -> CallError {
    CallError::new(ErrorCode::InvalidArgument, message)
}

/// 16 bytes of a UUIDv7.
pub(crate) fn uuid_v7(field: &str, bytes: &[u8]) -> Result<Uuid, CallError> {
    let id = Uuid::from_slice(bytes).map_err(|_| {
        invalid(format!(
            "{field} has {} bytes, a UUIDv7 has 16",
            bytes.len()
        ))
    })?;
    if id.get_version_num() != 7 {
        return Err(invalid(format!("{field} {id} is not a UUIDv7")));
    }
    Ok(id)
}

/// A timeline that is named whole.
pub(crate) fn timeline(timeline: Option<&v1::Timeline>) -> Result<TimelineId, CallError> {
    let timeline = timeline.ok_or_else(|| invalid("timeline is missing"))?;
    let kind = match timeline.kind() {
        v1::TimelineKind::Mailbox => TimelineKind::Mailbox,
        v1::TimelineKind::Group => TimelineKind::Group,
        v1::TimelineKind::Unspecified => {
            return Err(invalid(format!(
                "timeline.kind {} is not known",
                timeline.kind
            )));
        }
    };
    Ok(TimelineId {
        kind,
        owner: timeline.owner,
    })
}

/// The protocol's name of a timeline.
pub(crate) fn timeline_out(timeline: TimelineId) -> v1::Timeline {
    let kind = match timeline.kind {
        TimelineKind::Mailbox => v1::TimelineKind::Mailbox,
        TimelineKind::Group => v1::TimelineKind::Group,
        // No call takes one, so none is told of; see `dead_letters.proto`.
        TimelineKind::DeadLetters => v1::TimelineKind::Unspecified,
    };
    v1::Timeline {
        kind: kind as i32,
        owner: timeline.owner,
    }
}

/// Why a message did not arrive.
pub(crate) fn refusal_code(code: RefusalCode) -> ErrorCode {
    match code {
        RefusalCode::UnknownUser => ErrorCode::UnknownUser,
    }
}

/// A row as callers see it.
pub(crate) fn message(row: Row) -> v1::Message {
    let (refused_seq, refusal) = match row.refused {
        Some((seq, code)) => (seq.0, refusal_code(code) as i32),
        None => (0, 0),
    };
    let client_msg_id = if row.client_msg_id.is_nil() {
        bytes::Bytes::new()
    } else {
        bytes::Bytes::copy_from_slice(row.client_msg_id.as_bytes())
    };
    v1::Message {
        seq: row.seq.0,
        message_id: row.message_id.0,
        sender: row.sender.0,
        recipient: row.recipient.0,
        sent_at_ms: row.sent_at_ms,
        r#type: i32::from(row.kind.0),
        flags: u32::from(row.flags.0),
        client_msg_id,
        body: row.body,
        refused_seq,
        refusal,
    }
}

/// Where a send goes, its users not yet looked up.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Destination {
    User(user_ref::User),
    Group(GroupId),
}

/// A send whose fields are well-formed but whose handles are not yet looked up.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CheckedSend {
    pub(crate) sender: user_ref::User,
    pub(crate) destination: Destination,
    client_msg_id: Uuid,
    kind: MessageType,
    content_crc: u32,
    body: bytes::Bytes,
    shown: MessageId,
}

/// The user that a field names.
pub(crate) fn user(field: &str, user: Option<v1::UserRef>) -> Result<user_ref::User, CallError> {
    match user.and_then(|user| user.user) {
        Some(user_ref::User::Id(0)) | None => Err(invalid(format!("{field} is missing"))),
        Some(user) => Ok(user),
    }
}

impl CheckedSend {
    /// Checks what can be checked without looking anything up. `sender` is who the caller may
    /// act for, see `auth.rs`; bodies over `body_bytes_max` never reach the log.
    pub(crate) fn of(
        send: v1::SendRequest,
        sender: user_ref::User,
        body_bytes_max: usize,
    ) -> Result<Self, CallError> {
        let destination = match send.destination {
            Some(send_request::Destination::User(to)) => {
                Destination::User(user("destination.user", Some(to))?)
            }
            Some(send_request::Destination::Group(0)) | None => {
                return Err(invalid("destination is missing"));
            }
            Some(send_request::Destination::Group(group)) => Destination::Group(GroupId(group)),
        };
        let kind = match v1::MessageType::try_from(send.r#type) {
            Ok(v1::MessageType::Text) => MessageType::TEXT,
            Ok(v1::MessageType::Opaque) => MessageType::OPAQUE,
            Ok(
                v1::MessageType::Unspecified
                | v1::MessageType::GroupCreated
                | v1::MessageType::MemberJoined
                | v1::MessageType::MemberLeft
                | v1::MessageType::Refusal,
            )
            | Err(_) => {
                return Err(invalid(format!("type {} is not for clients", send.r#type)));
            }
        };
        if send.body.len() > body_bytes_max {
            return Err(CallError::new(
                ErrorCode::BodyTooLarge,
                format!(
                    "the body has {} bytes, {body_bytes_max} at most",
                    send.body.len()
                ),
            ));
        }
        if kind == MessageType::TEXT && std::str::from_utf8(&send.body).is_err() {
            return Err(invalid("body of type TEXT is not UTF-8"));
        }
        Ok(Self {
            sender,
            destination,
            client_msg_id: uuid_v7("client_msg_id", &send.client_msg_id)?,
            kind,
            content_crc: send.content_crc,
            body: send.body,
            shown: MessageId(send.shown_message_id),
        })
    }

    /// The command, once the users are known. `recipient` is unused for a group.
    pub(crate) fn command(self, sender: UserId, recipient: UserId) -> Command {
        match self.destination {
            Destination::User(_) => Command::Send(Send {
                sender,
                recipient,
                client_msg_id: self.client_msg_id,
                message_id: MessageId::ZERO,
                kind: self.kind,
                flags: Flags::default(),
                content_crc: self.content_crc,
                body: self.body,
                shown: self.shown,
            }),
            Destination::Group(group) => Command::SendGroup(SendGroup {
                sender,
                group,
                client_msg_id: self.client_msg_id,
                message_id: MessageId::ZERO,
                kind: self.kind,
                flags: Flags::default(),
                content_crc: self.content_crc,
                body: self.body,
                shown: self.shown,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send() -> v1::SendRequest {
        v1::SendRequest {
            sender: None,
            destination: Some(send_request::Destination::Group(7)),
            client_msg_id: Uuid::now_v7().as_bytes().to_vec().into(),
            r#type: v1::MessageType::Text as i32,
            body: "hello".into(),
            content_crc: 0,
            shown_message_id: 0,
        }
    }

    fn refusal(change: impl FnOnce(&mut v1::SendRequest)) -> CallError {
        let mut request = send();
        change(&mut request);
        CheckedSend::of(request, user_ref::User::Id(1), 16).expect_err("must be refused")
    }

    #[test]
    fn a_well_formed_send_passes() {
        let checked = CheckedSend::of(send(), user_ref::User::Id(1), 16).expect("well-formed");
        assert!(matches!(
            checked.command(UserId(1), UserId(0)),
            Command::SendGroup(_)
        ));
    }

    #[test]
    fn each_malformed_field_is_named() {
        let error = refusal(|send| send.client_msg_id = "short".into());
        assert!(error.0.message.contains("client_msg_id"), "{error}");
        let error =
            refusal(|send| send.client_msg_id = Uuid::from_u128(5).as_bytes().to_vec().into());
        assert!(error.0.message.contains("UUIDv7"), "{error}");
        let error = refusal(|send| send.destination = None);
        assert!(error.0.message.contains("destination"), "{error}");
        let error = refusal(|send| send.r#type = v1::MessageType::MemberLeft as i32);
        assert!(error.0.message.contains("type 18"), "{error}");
        let error = refusal(|send| send.body = vec![0xff].into());
        assert!(error.0.message.contains("UTF-8"), "{error}");
        let error = refusal(|send| send.body = vec![b'x'; 17].into());
        assert_eq!(error.code(), ErrorCode::BodyTooLarge);
        assert!(
            error.0.message.contains("17") && error.0.message.contains("16"),
            "{error}"
        );
    }
}
