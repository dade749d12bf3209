//! Frames of a gateway in JSON.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::field::{Base64, U64, quoted, to_bytes};
use crate::{
    DecodeError, Fault, GoAway, Limits, Message, MessageType, Position, Push, Reply, Sent,
    ServerFrame, Synced, Timeline, Welcome,
};

/// The frame: one part under its name, and `id` if it is an answer.
#[derive(Serialize, Deserialize, Default)]
struct FrameJson {
    #[serde(default, skip_serializing_if = "is_zero")]
    id: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    welcome: Option<WelcomeJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<ErrorJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sent: Option<SentJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    synced: Option<SyncedJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    marked_read: Option<SeqJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    acked: Option<SeqJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group_created: Option<GroupCreatedJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    joined_group: Option<JoinedGroupJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left_group: Option<LeftGroupJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<UserJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user_registered: Option<UserRegisteredJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pong: Option<PongJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    push: Option<PushJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    notify: Option<NotifyJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    go_away: Option<GoAwayJson>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's `skip_serializing_if` passes a reference
fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[derive(Serialize, Deserialize)]
struct WelcomeJson {
    user: U64,
    device: String,
    server_time_ms: U64,
    limits: LimitsJson,
}

#[derive(Serialize, Deserialize)]
struct LimitsJson {
    body_bytes_max: u32,
    frame_bytes_max: u32,
    in_flight_max: u32,
    sync_messages_max: u32,
    idle_ms_max: u32,
}

#[derive(Serialize, Deserialize)]
struct ErrorJson {
    code: String,
    message: String,
    retryable: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    retry_after_ms: u32,
}

#[derive(Serialize, Deserialize)]
struct SentJson {
    #[serde(with = "quoted")]
    timeline: Timeline,
    seq: U64,
    message_id: U64,
}

#[derive(Serialize, Deserialize)]
struct SyncedJson {
    messages: Vec<MessageJson>,
    key: String,
    more: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    positions: Vec<PositionJson>,
}

#[derive(Serialize, Deserialize)]
struct PositionJson {
    #[serde(with = "quoted")]
    timeline: Timeline,
    seq: U64,
}

impl From<Position> for PositionJson {
    fn from(position: Position) -> Self {
        Self {
            timeline: position.timeline,
            seq: U64(position.seq),
        }
    }
}

impl From<PositionJson> for Position {
    fn from(position: PositionJson) -> Self {
        Self {
            timeline: position.timeline,
            seq: position.seq.0,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct MessageJson {
    #[serde(with = "quoted")]
    timeline: Timeline,
    seq: U64,
    message_id: U64,
    sender: U64,
    #[serde(default, skip_serializing_if = "U64::is_zero")]
    recipient: U64,
    sent_at_ms: U64,
    /// A name, or the number of a type that the gateway does not know.
    r#type: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    flags: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_msg_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<Base64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused_seq: Option<U64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct SeqJson {
    seq: U64,
}

#[derive(Serialize, Deserialize)]
struct GroupCreatedJson {
    group: U64,
    seq: U64,
}

#[derive(Serialize, Deserialize)]
struct JoinedGroupJson {
    join_seq: U64,
}

#[derive(Serialize, Deserialize)]
struct LeftGroupJson {
    left_seq: U64,
}

#[derive(Serialize, Deserialize)]
struct UserJson {
    user: U64,
    handle: String,
}

#[derive(Serialize, Deserialize)]
struct UserRegisteredJson {
    user: U64,
}

#[derive(Serialize, Deserialize)]
struct PongJson {
    server_time_ms: U64,
}

#[derive(Serialize, Deserialize)]
struct PushJson {
    #[serde(with = "quoted")]
    timeline: Timeline,
    prev_seq: U64,
    messages: Vec<MessageJson>,
}

#[derive(Serialize, Deserialize)]
struct NotifyJson {
    heads: Vec<PositionJson>,
}

#[derive(Serialize, Deserialize)]
struct GoAwayJson {
    reason: String,
    after_ms_min: u32,
    after_ms_max: u32,
}

/// Encodes a frame of a gateway.
pub fn encode_server(frame: &ServerFrame) -> Bytes {
    let mut json = FrameJson::default();
    match frame {
        ServerFrame::Welcome(welcome) => json.welcome = Some(WelcomeJson::from(welcome)),
        ServerFrame::Reply { id, reply } => {
            json.id = *id;
            put_reply(&mut json, reply);
        }
        ServerFrame::Error { id, fault } => {
            json.id = *id;
            json.error = Some(ErrorJson::from(fault));
        }
        ServerFrame::Push(push) => {
            json.push = Some(PushJson {
                timeline: push.timeline,
                prev_seq: U64(push.prev_seq),
                messages: push.messages.iter().map(MessageJson::from).collect(),
            });
        }
        ServerFrame::Notify { heads } => {
            let heads = heads.iter().map(|head| PositionJson::from(*head)).collect();
            json.notify = Some(NotifyJson { heads });
        }
        ServerFrame::GoAway(go_away) => {
            json.go_away = Some(GoAwayJson {
                reason: go_away.reason.clone(),
                after_ms_min: go_away.after_ms_min,
                after_ms_max: go_away.after_ms_max,
            });
        }
        ServerFrame::Unknown => {}
    }
    to_bytes(&json)
}

fn put_reply(json: &mut FrameJson, reply: &Reply) {
    match reply {
        Reply::Sent(sent) => json.sent = Some(SentJson::from(sent)),
        Reply::Synced(page) => json.synced = Some(SyncedJson::from(page)),
        Reply::MarkedRead { seq } => json.marked_read = Some(SeqJson { seq: U64(*seq) }),
        Reply::Acked { seq } => json.acked = Some(SeqJson { seq: U64(*seq) }),
        Reply::GroupCreated { group, seq } => {
            json.group_created = Some(GroupCreatedJson {
                group: U64(*group),
                seq: U64(*seq),
            });
        }
        Reply::JoinedGroup { join_seq } => {
            json.joined_group = Some(JoinedGroupJson {
                join_seq: U64(*join_seq),
            });
        }
        Reply::LeftGroup { left_seq } => {
            json.left_group = Some(LeftGroupJson {
                left_seq: U64(*left_seq),
            });
        }
        Reply::User { user, handle } => {
            json.user = Some(UserJson {
                user: U64(*user),
                handle: handle.clone(),
            });
        }
        Reply::UserRegistered { user } => {
            json.user_registered = Some(UserRegisteredJson { user: U64(*user) });
        }
        Reply::Pong { server_time_ms } => {
            json.pong = Some(PongJson {
                server_time_ms: U64(*server_time_ms),
            });
        }
    }
}

/// Decodes a frame of a gateway.
pub fn decode_server(bytes: &Bytes) -> Result<ServerFrame, DecodeError> {
    let json: FrameJson = serde_json::from_slice(bytes).map_err(|error| DecodeError {
        id: 0,
        reason: error.to_string(),
    })?;
    let id = json.id;
    let refuse = |reason: String| DecodeError { id, reason };
    if let Some(error) = json.error {
        return Ok(ServerFrame::Error {
            id,
            fault: error.into(),
        });
    }
    if let Some(welcome) = json.welcome {
        return Ok(ServerFrame::Welcome(welcome.into()));
    }
    if let Some(push) = json.push {
        let messages = push.messages.into_iter().map(Message::try_from);
        return Ok(ServerFrame::Push(Push {
            timeline: push.timeline,
            prev_seq: push.prev_seq.0,
            messages: messages.collect::<Result<_, _>>().map_err(refuse)?,
        }));
    }
    if let Some(notify) = json.notify {
        let heads = notify.heads.into_iter().map(Into::into).collect();
        return Ok(ServerFrame::Notify { heads });
    }
    if let Some(go_away) = json.go_away {
        return Ok(ServerFrame::GoAway(GoAway {
            reason: go_away.reason,
            after_ms_min: go_away.after_ms_min,
            after_ms_max: go_away.after_ms_max,
        }));
    }
    let reply = take_reply(json).map_err(refuse)?;
    Ok(
        reply.map_or(ServerFrame::Unknown, |reply| ServerFrame::Reply {
            id,
            reply,
        }),
    )
}

fn take_reply(json: FrameJson) -> Result<Option<Reply>, String> {
    Ok(if let Some(sent) = json.sent {
        Some(Reply::Sent(Sent {
            timeline: sent.timeline,
            seq: sent.seq.0,
            message_id: sent.message_id.0,
        }))
    } else if let Some(page) = json.synced {
        let messages = page.messages.into_iter().map(Message::try_from);
        Some(Reply::Synced(Synced {
            messages: messages.collect::<Result<_, _>>()?,
            key: page.key,
            more: page.more,
            positions: page.positions.into_iter().map(Into::into).collect(),
        }))
    } else if let Some(reply) = json.marked_read {
        Some(Reply::MarkedRead { seq: reply.seq.0 })
    } else if let Some(reply) = json.acked {
        Some(Reply::Acked { seq: reply.seq.0 })
    } else if let Some(reply) = json.group_created {
        Some(Reply::GroupCreated {
            group: reply.group.0,
            seq: reply.seq.0,
        })
    } else if let Some(reply) = json.joined_group {
        Some(Reply::JoinedGroup {
            join_seq: reply.join_seq.0,
        })
    } else if let Some(reply) = json.left_group {
        Some(Reply::LeftGroup {
            left_seq: reply.left_seq.0,
        })
    } else if let Some(reply) = json.user {
        Some(Reply::User {
            user: reply.user.0,
            handle: reply.handle,
        })
    } else if let Some(reply) = json.user_registered {
        Some(Reply::UserRegistered { user: reply.user.0 })
    } else {
        json.pong.map(|reply| Reply::Pong {
            server_time_ms: reply.server_time_ms.0,
        })
    })
}

/// The answer to `POST /v1/chat/send`.
pub fn sent_to_json(sent: &Sent) -> Bytes {
    to_bytes(&SentJson::from(sent))
}

/// The answer to `GET /v1/chat/sync`.
pub fn synced_to_json(page: &Synced) -> Bytes {
    to_bytes(&SyncedJson::from(page))
}

/// The body of an HTTP answer that says no: `{"error":{…}}`.
pub fn fault_to_json(fault: &Fault) -> Bytes {
    to_bytes(&FrameJson {
        error: Some(ErrorJson::from(fault)),
        ..FrameJson::default()
    })
}

impl From<&Sent> for SentJson {
    fn from(sent: &Sent) -> Self {
        Self {
            timeline: sent.timeline,
            seq: U64(sent.seq),
            message_id: U64(sent.message_id),
        }
    }
}

impl From<&Synced> for SyncedJson {
    fn from(page: &Synced) -> Self {
        Self {
            messages: page.messages.iter().map(MessageJson::from).collect(),
            key: page.key.clone(),
            more: page.more,
            positions: page
                .positions
                .iter()
                .map(|position| (*position).into())
                .collect(),
        }
    }
}

impl From<&Fault> for ErrorJson {
    fn from(fault: &Fault) -> Self {
        Self {
            code: fault.code.to_string(),
            message: fault.message.clone(),
            retryable: fault.retryable,
            retry_after_ms: fault.retry_after_ms,
        }
    }
}

impl From<ErrorJson> for Fault {
    fn from(error: ErrorJson) -> Self {
        Self {
            code: error.code.into(),
            message: error.message,
            retryable: error.retryable,
            retry_after_ms: error.retry_after_ms,
        }
    }
}

impl From<&Welcome> for WelcomeJson {
    fn from(welcome: &Welcome) -> Self {
        let limits = welcome.limits;
        Self {
            user: U64(welcome.user),
            device: welcome.device.clone(),
            server_time_ms: U64(welcome.server_time_ms),
            limits: LimitsJson {
                body_bytes_max: limits.body_bytes_max,
                frame_bytes_max: limits.frame_bytes_max,
                in_flight_max: limits.in_flight_max,
                sync_messages_max: limits.sync_messages_max,
                idle_ms_max: limits.idle_ms_max,
            },
        }
    }
}

impl From<WelcomeJson> for Welcome {
    fn from(json: WelcomeJson) -> Self {
        let limits = json.limits;
        Self {
            user: json.user.0,
            device: json.device,
            server_time_ms: json.server_time_ms.0,
            limits: Limits {
                body_bytes_max: limits.body_bytes_max,
                frame_bytes_max: limits.frame_bytes_max,
                in_flight_max: limits.in_flight_max,
                sync_messages_max: limits.sync_messages_max,
                idle_ms_max: limits.idle_ms_max,
            },
        }
    }
}

impl From<&Message> for MessageJson {
    fn from(message: &Message) -> Self {
        let text = message.text().map(str::to_owned);
        let body =
            (text.is_none() && !message.body.is_empty()).then(|| Base64(message.body.clone()));
        let kind = message.kind;
        Self {
            timeline: message.timeline,
            seq: U64(message.seq),
            message_id: U64(message.message_id),
            sender: U64(message.sender),
            recipient: U64(message.recipient),
            sent_at_ms: U64(message.sent_at_ms),
            r#type: kind
                .name()
                .map_or_else(|| kind.0.to_string(), str::to_owned),
            flags: message.flags,
            client_msg_id: message.client_msg_id.map(|id| id.to_string()),
            text,
            body,
            refused_seq: message.refused.as_ref().map(|(seq, _)| U64(*seq)),
            refusal: message.refused.as_ref().map(|(_, code)| code.clone()),
        }
    }
}

impl TryFrom<MessageJson> for Message {
    type Error = String;

    fn try_from(json: MessageJson) -> Result<Self, String> {
        let kind = MessageType::from_name(&json.r#type)
            .or_else(|| json.r#type.parse().ok().map(MessageType))
            .ok_or_else(|| format!("unknown message type {:?}", json.r#type))?;
        let body = match (json.text, json.body) {
            (Some(text), _) => Bytes::from(text),
            (None, Some(bytes)) => bytes.0,
            (None, None) => Bytes::new(),
        };
        let client_msg_id = match json.client_msg_id {
            Some(text) => Some(text.parse::<Uuid>().map_err(|error| error.to_string())?),
            None => None,
        };
        Ok(Self {
            timeline: json.timeline,
            seq: json.seq.0,
            message_id: json.message_id.0,
            sender: json.sender.0,
            recipient: json.recipient.0,
            sent_at_ms: json.sent_at_ms.0,
            kind,
            flags: json.flags,
            client_msg_id,
            body,
            refused: json
                .refused_seq
                .map(|seq| (seq.0, json.refusal.unwrap_or_default())),
        })
    }
}
