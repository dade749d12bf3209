//! Frames of a client in JSON.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::field::{Base64, U64, quoted, to_bytes};
use crate::{Body, ClientFrame, DecodeError, Destination, Position, Request, Send, Sync, Timeline};

/// The frame: `id` and exactly one request, under its name.
#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct FrameJson {
    #[serde(default)]
    id: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    send: Option<SendJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sync: Option<SyncJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mark_read: Option<MarkReadJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ack: Option<AckJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    create_group: Option<CreateGroupJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    join_group: Option<GroupJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leave_group: Option<GroupJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resolve_user: Option<ResolveUserJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    register_user: Option<RegisterUserJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ping: Option<PingJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SendJson {
    #[serde(with = "quoted")]
    to: Destination,
    #[serde(with = "quoted")]
    client_msg_id: Uuid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<Base64>,
    #[serde(default, skip_serializing_if = "U64::is_zero")]
    shown_message_id: U64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SyncJson {
    #[serde(default)]
    key: String,
    #[serde(default)]
    limit: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    have: Vec<PositionJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PositionJson {
    #[serde(with = "quoted")]
    timeline: Timeline,
    seq: U64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MarkReadJson {
    #[serde(with = "quoted")]
    conversation: Destination,
    seq: U64,
    #[serde(with = "quoted")]
    request_id: Uuid,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AckJson {
    #[serde(with = "quoted")]
    timeline: Timeline,
    seq: U64,
    #[serde(with = "quoted")]
    request_id: Uuid,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateGroupJson {
    name: String,
    #[serde(with = "quoted")]
    request_id: Uuid,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupJson {
    group: U64,
    #[serde(with = "quoted")]
    request_id: Uuid,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResolveUserJson {
    #[serde(with = "quoted")]
    user: crate::UserRef,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegisterUserJson {
    handle: String,
    #[serde(with = "quoted")]
    request_id: Uuid,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PingJson {}

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

/// Encodes a frame of a client.
pub fn encode_client(frame: &ClientFrame) -> Bytes {
    let mut json = FrameJson {
        id: frame.id,
        ..FrameJson::default()
    };
    match frame.request.clone() {
        Request::Send(send) => json.send = Some(SendJson::from(send)),
        Request::Sync(sync) => {
            let have = sync.have.into_iter().map(Into::into).collect();
            json.sync = Some(SyncJson {
                key: sync.key,
                limit: sync.limit,
                have,
            });
        }
        Request::MarkRead {
            conversation,
            seq,
            request_id,
        } => {
            json.mark_read = Some(MarkReadJson {
                conversation,
                seq: U64(seq),
                request_id,
            });
        }
        Request::Ack {
            timeline,
            seq,
            request_id,
        } => {
            json.ack = Some(AckJson {
                timeline,
                seq: U64(seq),
                request_id,
            });
        }
        Request::CreateGroup { name, request_id } => {
            json.create_group = Some(CreateGroupJson { name, request_id });
        }
        Request::JoinGroup { group, request_id } => {
            json.join_group = Some(GroupJson {
                group: U64(group),
                request_id,
            });
        }
        Request::LeaveGroup { group, request_id } => {
            json.leave_group = Some(GroupJson {
                group: U64(group),
                request_id,
            });
        }
        Request::ResolveUser { user } => json.resolve_user = Some(ResolveUserJson { user }),
        Request::RegisterUser { handle, request_id } => {
            json.register_user = Some(RegisterUserJson { handle, request_id });
        }
        Request::Ping => json.ping = Some(PingJson {}),
    }
    to_bytes(&json)
}

/// Decodes a frame of a client. Fields that are not in the protocol are refused.
pub fn decode_client(bytes: &Bytes) -> Result<ClientFrame, DecodeError> {
    let json: FrameJson = serde_json::from_slice(bytes).map_err(|error| DecodeError {
        id: id_of_bad_frame(bytes),
        reason: error.to_string(),
    })?;
    let id = json.id;
    let refuse = |reason: String| DecodeError { id, reason };
    if id == 0 {
        return Err(refuse(
            "id is missing: give each request its own number, from 1".into(),
        ));
    }
    let mut requests = requests(json).map_err(refuse)?;
    match (requests.pop(), requests.is_empty()) {
        (Some(request), true) => Ok(ClientFrame { id, request }),
        (Some(_), false) => Err(refuse("it has more than one request".into())),
        (None, _) => Err(refuse(
            "it has no request, such as \"send\" or \"sync\"".into(),
        )),
    }
}

/// Reads a body of `POST /v1/chat/send`.
pub fn send_from_json(bytes: &[u8]) -> Result<Send, DecodeError> {
    let refuse = |reason: String| DecodeError { id: 0, reason };
    let json: SendJson =
        serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))?;
    Send::try_from(json).map_err(refuse)
}

fn requests(json: FrameJson) -> Result<Vec<Request>, String> {
    let sync = json.sync.map(|sync| {
        let have = sync.have.into_iter().map(Into::into).collect();
        Request::Sync(Sync {
            key: sync.key,
            limit: sync.limit,
            have,
        })
    });
    let mark_read = json.mark_read.map(|call| Request::MarkRead {
        conversation: call.conversation,
        seq: call.seq.0,
        request_id: call.request_id,
    });
    let ack = json.ack.map(|call| Request::Ack {
        timeline: call.timeline,
        seq: call.seq.0,
        request_id: call.request_id,
    });
    let create_group = json.create_group.map(|call| Request::CreateGroup {
        name: call.name,
        request_id: call.request_id,
    });
    let join_group = json.join_group.map(|call| Request::JoinGroup {
        group: call.group.0,
        request_id: call.request_id,
    });
    let leave_group = json.leave_group.map(|call| Request::LeaveGroup {
        group: call.group.0,
        request_id: call.request_id,
    });
    let resolve_user = json
        .resolve_user
        .map(|call| Request::ResolveUser { user: call.user });
    let register_user = json.register_user.map(|call| Request::RegisterUser {
        handle: call.handle,
        request_id: call.request_id,
    });
    let ping = json.ping.map(|PingJson {}| Request::Ping);
    let send = json
        .send
        .map(Send::try_from)
        .transpose()?
        .map(Request::Send);
    let all = [
        send,
        sync,
        mark_read,
        ack,
        create_group,
        join_group,
        leave_group,
        resolve_user,
        register_user,
        ping,
    ];
    Ok(all.into_iter().flatten().collect())
}

/// The id of a frame that is JSON but not of the protocol, so that the error finds its request.
fn id_of_bad_frame(bytes: &[u8]) -> u32 {
    #[derive(Deserialize)]
    struct Id {
        id: u32,
    }
    serde_json::from_slice::<Id>(bytes).map_or(0, |frame| frame.id)
}

impl From<Send> for SendJson {
    fn from(send: Send) -> Self {
        let (text, body) = match send.body {
            Body::Text(text) => (Some(text), None),
            Body::Opaque(bytes) => (None, Some(Base64(bytes))),
        };
        Self {
            to: send.to,
            client_msg_id: send.client_msg_id,
            text,
            body,
            shown_message_id: U64(send.shown_message_id),
        }
    }
}

impl TryFrom<SendJson> for Send {
    type Error = String;

    fn try_from(json: SendJson) -> Result<Self, String> {
        let body = match (json.text, json.body) {
            (Some(text), None) => Body::Text(text),
            (None, Some(bytes)) => Body::Opaque(bytes.0),
            (Some(_), Some(_)) => return Err("it has both \"text\" and \"body\"".into()),
            (None, None) => return Err("it has neither \"text\" nor \"body\"".into()),
        };
        Ok(Self {
            to: json.to,
            client_msg_id: json.client_msg_id,
            body,
            shown_message_id: json.shown_message_id.0,
        })
    }
}
