//! One device's attachment: turns requests into calls of the store, and results into answers.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use mailbox_api::v1::{self, ErrorCode, mark_read_request};
use mailbox_client::{Client, content_crc};
use mailbox_wire::{
    ClientFrame, DecodeError, Destination, Encoding, Fault, Limits as WireLimits, MessageType,
    Position, Reply, Request, Send as SendFrame, Sent, ServerFrame, Sync as SyncFrame, Timeline,
    UserRef, Welcome,
};
use tracing::{Instrument as _, Span};
use uuid::Uuid;

use crate::Limits;
use crate::convert::{
    destination_to_api, fault, fault_from_call, sent_from_api, timeline_to_api, user_id_to_api,
    user_to_api, uuid_to_api,
};
use crate::dispatch::Dispatch;
use crate::metrics::Metrics;
use crate::sync::{Bounds, Page, compose, starting_key};

/// What answers requests; shared by all connections.
pub(crate) struct Answerer {
    pub(crate) client: Client,
    pub(crate) dispatch: Arc<Dispatch>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
}

/// The `user` of a session whose token names a handle that is not registered yet.
pub(crate) const NOBODY: u64 = 0;

/// One device's attachment.
pub(crate) struct Session {
    pub(crate) user: u64,
    /// The token's handle, if the connection was made to register it.
    pub(crate) own_handle: Option<Box<str>>,
    pub(crate) device: Box<str>,
    pub(crate) encoding: Encoding,
    pub(crate) answerer: Arc<Answerer>,
}

impl Session {
    /// What a client is told first.
    pub(crate) fn welcome(&self) -> ServerFrame {
        let limits = &self.answerer.limits;
        let bound = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        ServerFrame::Welcome(Welcome {
            user: self.user,
            device: self.device.to_string(),
            server_time_ms: self.answerer.client.server_time_ms(),
            limits: WireLimits {
                body_bytes_max: bound(limits.body_bytes_max),
                frame_bytes_max: bound(limits.frame_bytes_max),
                in_flight_max: bound(limits.in_flight_max),
                sync_messages_max: limits.sync_messages_max,
                idle_ms_max: bound(limits.idle_timeout.as_millis() as usize),
            },
        })
    }

    /// The answer to a request, encoded. Nothing happens before it is polled.
    pub(crate) fn answer(
        self: &Arc<Self>,
        frame: ClientFrame,
    ) -> Pin<Box<dyn Future<Output = Bytes> + Send>> {
        let session = Arc::clone(self);
        let span = request_span(&frame);
        let answer = async move {
            let id = frame.id;
            let frame = match session.reply(frame.request).await {
                Ok(reply) => {
                    trace_reply(&reply);
                    ServerFrame::Reply { id, reply }
                }
                Err(fault) => session.answerer.refusal(id, fault),
            };
            session.encoding.encode_server(&frame)
        };
        // A span is a part of the future only where somebody looks at it.
        if span.is_disabled() {
            Box::pin(answer)
        } else {
            Box::pin(answer.instrument(span))
        }
    }

    /// The answer to what is no request, encoded.
    pub(crate) fn malformed(&self, error: &DecodeError) -> Bytes {
        let fault = fault(ErrorCode::InvalidArgument, error.to_string());
        self.encoding
            .encode_server(&self.answerer.refusal(error.id, fault))
    }

    async fn reply(&self, request: Request) -> Result<Reply, Fault> {
        let answerer = &self.answerer;
        answerer
            .metrics
            .requests
            .get_or_create(&[("request", kind(&request))])
            .inc();
        let open_to_nobody = matches!(request, Request::RegisterUser { .. } | Request::Ping);
        if self.user == NOBODY && !open_to_nobody {
            let message = "the token's handle is not registered: register_user, then connect anew";
            return Err(fault(ErrorCode::Unauthenticated, message));
        }
        match request {
            Request::Send(send) => answerer.send(self.user, send).await.map(Reply::Sent),
            Request::Sync(sync) => answerer
                .sync(self.user, sync)
                .await
                .map(|page| Reply::Synced(page.synced)),
            Request::MarkRead {
                conversation,
                seq,
                request_id,
            } => {
                answerer
                    .mark_read(self.user, conversation, seq, request_id)
                    .await
            }
            Request::Ack {
                timeline,
                seq,
                request_id,
            } => {
                let position = Position { timeline, seq };
                answerer
                    .ack(self.user, &self.device, position, request_id)
                    .await
            }
            Request::CreateGroup { name, request_id } => {
                answerer.create_group(self.user, name, request_id).await
            }
            Request::JoinGroup { group, request_id } => {
                answerer.join_group(self.user, group, request_id).await
            }
            Request::LeaveGroup { group, request_id } => {
                answerer.leave_group(self.user, group, request_id).await
            }
            Request::ResolveUser { user } => answerer.resolve_user(user).await,
            Request::RegisterUser { handle, request_id } => {
                self.check_own(&handle)?;
                answerer.register_user(handle, request_id).await
            }
            Request::Ping => Ok(Reply::Pong {
                server_time_ms: answerer.client.server_time_ms(),
            }),
        }
    }
}

impl Session {
    /// A token registers the handle that it names and no other.
    fn check_own(&self, handle: &str) -> Result<(), Fault> {
        let message = match self.own_handle.as_deref() {
            Some(own) if own == handle => return Ok(()),
            Some(own) => format!("the token is for @{own}: it registers that handle only"),
            None => "connect with ?register=true to register".to_owned(),
        };
        Err(fault(ErrorCode::Forbidden, message))
    }
}

impl Answerer {
    /// Appends a message.
    pub(crate) async fn send(&self, user: u64, send: SendFrame) -> Result<Sent, Fault> {
        let (len, max) = (send.body.len(), self.limits.body_bytes_max);
        if len > max {
            let message = format!("the body has {len} bytes, the limit (body_bytes_max) is {max}");
            return Err(fault(ErrorCode::BodyTooLarge, message));
        }
        let kind = match send.body.message_type() {
            MessageType::OPAQUE => v1::MessageType::Opaque,
            _ => v1::MessageType::Text,
        };
        let body = send.body.into_bytes();
        let id = uuid_to_api(check_v7(send.client_msg_id, "client_msg_id")?);
        let request = v1::SendRequest {
            sender: Some(user_id_to_api(user)),
            content_crc: content_crc(&id, kind, &body),
            client_msg_id: id,
            r#type: kind as i32,
            body,
            shown_message_id: send.shown_message_id,
            destination: Some(destination_to_api(send.to)),
        };
        let begun = Instant::now();
        let sent = self.client.send(request).await.map_err(fault_from_call)?;
        self.metrics
            .send_seconds
            .observe(begun.elapsed().as_secs_f64());
        sent_from_api(&sent)
    }

    /// Reads a page.
    pub(crate) async fn sync(&self, user: u64, sync: SyncFrame) -> Result<Page, Fault> {
        let start = starting_key(user, &sync.key, &sync.have)?;
        let max = self.limits.sync_messages_max;
        let messages_max = if sync.limit == 0 {
            max
        } else {
            sync.limit.min(max)
        };
        let bounds = Bounds {
            messages_max,
            bytes_max: self.limits.sync_bytes_max,
        };
        let page = compose(&self.client, user, start, bounds).await?;
        self.dispatch.update_groups(user, &page.memberships);
        Ok(page)
    }

    /// An error frame, counted.
    pub(crate) fn refusal(&self, id: u32, fault: Fault) -> ServerFrame {
        self.count_fault(&fault);
        ServerFrame::Error { id, fault }
    }

    /// Counts an answer that says no.
    pub(crate) fn count_fault(&self, fault: &Fault) {
        // Codes come from the protocol's fixed list, so they are borrowed; any other is `Internal`.
        let code = match &fault.code {
            std::borrow::Cow::Borrowed(code) => code,
            std::borrow::Cow::Owned(_) => ErrorCode::Internal.name(),
        };
        tracing::debug!(code, "refused");
        self.metrics.errors.get_or_create(&[("code", code)]).inc();
    }

    async fn mark_read(
        &self,
        user: u64,
        conversation: Destination,
        seq: u64,
        request_id: Uuid,
    ) -> Result<Reply, Fault> {
        let conversation = match conversation {
            Destination::User(peer) => mark_read_request::Conversation::Peer(user_to_api(peer)),
            Destination::Group(group) => mark_read_request::Conversation::Group(group),
        };
        let request = v1::MarkReadRequest {
            request_id: request_id_to_api(request_id)?,
            user: Some(user_id_to_api(user)),
            seq,
            conversation: Some(conversation),
        };
        let marked = self
            .client
            .mark_read(request)
            .await
            .map_err(fault_from_call)?;
        Ok(Reply::MarkedRead {
            seq: marked.read_mark,
        })
    }

    async fn ack(
        &self,
        user: u64,
        device: &str,
        position: Position,
        request_id: Uuid,
    ) -> Result<Reply, Fault> {
        if let Timeline::Mailbox(owner) = position.timeline
            && owner != user
        {
            let message = format!("mailbox:{owner} is not yours: yours is mailbox:{user}");
            return Err(fault(ErrorCode::Forbidden, message));
        }
        let request = v1::AckCursorRequest {
            request_id: request_id_to_api(request_id)?,
            user: Some(user_id_to_api(user)),
            device: device.to_owned(),
            timeline: Some(timeline_to_api(position.timeline)),
            seq: position.seq,
        };
        let acked = self
            .client
            .ack_cursor(request)
            .await
            .map_err(fault_from_call)?;
        Ok(Reply::Acked { seq: acked.cursor })
    }

    async fn create_group(
        &self,
        user: u64,
        name: String,
        request_id: Uuid,
    ) -> Result<Reply, Fault> {
        let request = v1::CreateGroupRequest {
            request_id: request_id_to_api(request_id)?,
            creator: Some(user_id_to_api(user)),
            name,
        };
        let created = self
            .client
            .create_group(request)
            .await
            .map_err(fault_from_call)?;
        self.dispatch.joined(user, created.group, created.seq);
        Ok(Reply::GroupCreated {
            group: created.group,
            seq: created.seq,
        })
    }

    async fn join_group(&self, user: u64, group: u64, request_id: Uuid) -> Result<Reply, Fault> {
        let request = v1::JoinGroupRequest {
            request_id: request_id_to_api(request_id)?,
            group,
            user: Some(user_id_to_api(user)),
        };
        let joined = self
            .client
            .join_group(request)
            .await
            .map_err(fault_from_call)?;
        self.dispatch.joined(user, group, joined.join_seq);
        Ok(Reply::JoinedGroup {
            join_seq: joined.join_seq,
        })
    }

    async fn leave_group(&self, user: u64, group: u64, request_id: Uuid) -> Result<Reply, Fault> {
        let request = v1::LeaveGroupRequest {
            request_id: request_id_to_api(request_id)?,
            group,
            user: Some(user_id_to_api(user)),
        };
        let left = self
            .client
            .leave_group(request)
            .await
            .map_err(fault_from_call)?;
        self.dispatch.leaves(user, group, left.left_seq);
        Ok(Reply::LeftGroup {
            left_seq: left.left_seq,
        })
    }

    async fn register_user(&self, handle: String, request_id: Uuid) -> Result<Reply, Fault> {
        let request = v1::RegisterUserRequest {
            request_id: request_id_to_api(request_id)?,
            handle,
        };
        let made = self
            .client
            .register_user(request)
            .await
            .map_err(fault_from_call)?;
        Ok(Reply::UserRegistered { user: made.user })
    }

    async fn resolve_user(&self, user: UserRef) -> Result<Reply, Fault> {
        let request = v1::ResolveUserRequest {
            user: Some(user_to_api(user)),
        };
        let found = self
            .client
            .resolve_user(request)
            .await
            .map_err(fault_from_call)?;
        Ok(Reply::User {
            user: found.user,
            handle: found.handle,
        })
    }
}

fn check_v7(id: Uuid, field: &str) -> Result<Uuid, Fault> {
    if id.get_version_num() == 7 {
        return Ok(id);
    }
    let message =
        format!("{field} {id} is not a UUIDv7: its time bounds how long a repeat is known");
    Err(fault(ErrorCode::InvalidArgument, message))
}

fn request_id_to_api(id: Uuid) -> Result<Bytes, Fault> {
    check_v7(id, "request_id").map(uuid_to_api)
}

/// What a request is about, in a trace: never a body, a name or a key.
fn request_span(frame: &ClientFrame) -> Span {
    let id = frame.id;
    let request = kind(&frame.request);
    match &frame.request {
        Request::Send(send) => {
            tracing::debug_span!("request", request, id, to = %send.to, client_msg_id = %send.client_msg_id)
        }
        Request::Ack { timeline, .. } => tracing::debug_span!("request", request, id, %timeline),
        Request::MarkRead { conversation, .. } => {
            tracing::debug_span!("request", request, id, to = %conversation)
        }
        Request::JoinGroup { group, .. } | Request::LeaveGroup { group, .. } => {
            let timeline = Timeline::Group(*group);
            tracing::debug_span!("request", request, id, %timeline)
        }
        Request::Sync(_)
        | Request::CreateGroup { .. }
        | Request::ResolveUser { .. }
        | Request::RegisterUser { .. }
        | Request::Ping => tracing::debug_span!("request", request, id),
    }
}

/// Says where an answer lies, inside its request's span.
fn trace_reply(reply: &Reply) {
    match reply {
        Reply::Sent(sent) => tracing::debug!(timeline = %sent.timeline, seq = sent.seq, "answered"),
        Reply::Synced(page) => {
            tracing::debug!(messages = page.messages.len(), more = page.more, "answered");
        }
        _ => tracing::debug!("answered"),
    }
}

/// The request's name, for the metric.
pub(crate) fn kind(request: &Request) -> &'static str {
    match request {
        Request::Send(_) => "send",
        Request::Sync(_) => "sync",
        Request::MarkRead { .. } => "mark_read",
        Request::Ack { .. } => "ack",
        Request::CreateGroup { .. } => "create_group",
        Request::JoinGroup { .. } => "join_group",
        Request::LeaveGroup { .. } => "leave_group",
        Request::ResolveUser { .. } => "resolve_user",
        Request::RegisterUser { .. } => "register_user",
        Request::Ping => "ping",
    }
}
