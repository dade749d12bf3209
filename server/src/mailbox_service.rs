//! The `Mailbox` service: unary calls here, the two streams in `submit.rs` and `feed.rs`.
//!
//! A unary call that reaches a follower is forwarded to the leader, once.

use std::sync::Arc;

use mailbox_api::CallError;
use mailbox_api::v1::mailbox_server::Mailbox;
use mailbox_api::v1::{self, mark_read_request};
use mailbox_engine::{
    AckCursor, Command, Conversation, CreateGroup, DeviceId, GroupId, JoinGroup, LeaveGroup,
    MarkRead, MessageId, RegisterUser, Reply, Seq, UserId,
};
use mailbox_raft::Shard;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::auth::{Caller, forbidden};
use crate::convert::{self, CheckedSend, Destination};
use crate::core::{Actor, Core, Route, forwarded, unknown_user};
use crate::feed::{self, FeedStream};
use crate::read;
use crate::status;
use crate::submit::{self, SubmitStream};

/// Answers clients, gateways and tools.
pub(crate) struct MailboxService {
    core: Arc<Core>,
}

impl MailboxService {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Who may act, once this node is known to answer itself.
    async fn actor(&self, shard: &Shard, metadata: &MetadataMap) -> Result<Actor, CallError> {
        let caller = self.core.authority.authenticate(metadata)?;
        self.core.actor(shard, caller).await
    }

    fn route(&self, metadata: &MetadataMap, shard: &Shard) -> Result<Route, CallError> {
        // Checked here too: a call is not passed on for someone who may not call.
        self.core.authority.authenticate(metadata)?;
        self.core.route(metadata, shard)
    }

    async fn send_here(
        &self,
        shard: &Shard,
        metadata: &MetadataMap,
        call: v1::SendRequest,
    ) -> Result<v1::SendResponse, CallError> {
        let actor = self.actor(shard, metadata).await?;
        let sender = self
            .core
            .acting_user(shard, actor, "sender", call.sender.clone())
            .await?;
        let body_bytes_max = self.core.cluster.body_bytes_max.as_usize();
        let send = CheckedSend::of(call, v1::user_ref::User::Id(sender.0), body_bytes_max)?;
        let recipient = match &send.destination {
            Destination::User(user) => self.core.resolve(shard, user).await?,
            Destination::Group(_) => UserId(0),
        };
        match self
            .core
            .propose(shard, send.command(sender, recipient))
            .await?
        {
            Reply::Sent {
                timeline,
                seq,
                message_id,
            } => Ok(v1::SendResponse {
                timeline: Some(convert::timeline_out(timeline)),
                seq: seq.0,
                message_id: message_id.0,
            }),
            other => Err(status::wrong_reply(&other)),
        }
    }

    async fn register_here(
        &self,
        shard: &Shard,
        metadata: &MetadataMap,
        call: v1::RegisterUserRequest,
    ) -> Result<v1::RegisterUserResponse, CallError> {
        // A token's own handle need not exist yet: this call makes it.
        match self.core.authority.authenticate(metadata)? {
            Caller::Cluster => {}
            Caller::User(v1::user_ref::User::Handle(own)) if own == call.handle => {}
            Caller::User(_) => return Err(forbidden("the token acts for its own handle only")),
        }
        let request_id = convert::uuid_v7("request_id", &call.request_id)?;
        let command = Command::RegisterUser(RegisterUser {
            request_id,
            handle: call.handle,
        });
        match self.core.propose(shard, command).await? {
            Reply::UserRegistered { user } => Ok(v1::RegisterUserResponse { user: user.0 }),
            other => Err(status::wrong_reply(&other)),
        }
    }

    async fn resolve_here(
        &self,
        shard: &Shard,
        metadata: &MetadataMap,
        call: v1::ResolveUserRequest,
    ) -> Result<v1::ResolveUserResponse, CallError> {
        self.core.authority.authenticate(metadata)?;
        let user = convert::user("user", call.user)?;
        let id = self.core.resolve(shard, &user).await?;
        self.core.barrier(shard).await?;
        let handle = self
            .core
            .read(shard, move |engine| engine.handle_of(id))
            .await?;
        let handle = handle.ok_or_else(|| unknown_user(&user))?;
        Ok(v1::ResolveUserResponse { user: id.0, handle })
    }

    async fn create_group_here(
        &self,
        shard: &Shard,
        metadata: &MetadataMap,
        call: v1::CreateGroupRequest,
    ) -> Result<v1::CreateGroupResponse, CallError> {
        let actor = self.actor(shard, metadata).await?;
        let creator = self
            .core
            .acting_user(shard, actor, "creator", call.creator)
            .await?;
        let request_id = convert::uuid_v7("request_id", &call.request_id)?;
        let command = Command::CreateGroup(CreateGroup {
            request_id,
            creator,
            name: call.name,
            message_id: MessageId::ZERO,
        });
        match self.core.propose(shard, command).await? {
            Reply::GroupCreated { group, seq } => Ok(v1::CreateGroupResponse {
                group: group.0,
                seq: seq.0,
            }),
            other => Err(status::wrong_reply(&other)),
        }
    }

    async fn join_group_here(
        &self,
        shard: &Shard,
        metadata: &MetadataMap,
        call: v1::JoinGroupRequest,
    ) -> Result<v1::JoinGroupResponse, CallError> {
        let actor = self.actor(shard, metadata).await?;
        let user = self
            .core
            .acting_user(shard, actor, "user", call.user)
            .await?;
        let request_id = convert::uuid_v7("request_id", &call.request_id)?;
        let group = GroupId(call.group);
        let command = Command::JoinGroup(JoinGroup {
            request_id,
            group,
            user,
            message_id: MessageId::ZERO,
        });
        match self.core.propose(shard, command).await? {
            Reply::Joined { join_seq } => Ok(v1::JoinGroupResponse {
                join_seq: join_seq.0,
            }),
            other => Err(status::wrong_reply(&other)),
        }
    }

    async fn leave_group_here(
        &self,
        shard: &Shard,
        metadata: &MetadataMap,
        call: v1::LeaveGroupRequest,
    ) -> Result<v1::LeaveGroupResponse, CallError> {
        let actor = self.actor(shard, metadata).await?;
        let user = self
            .core
            .acting_user(shard, actor, "user", call.user)
            .await?;
        let request_id = convert::uuid_v7("request_id", &call.request_id)?;
        let group = GroupId(call.group);
        let command = Command::LeaveGroup(LeaveGroup {
            request_id,
            group,
            user,
            message_id: MessageId::ZERO,
        });
        match self.core.propose(shard, command).await? {
            Reply::Left { left_seq } => Ok(v1::LeaveGroupResponse {
                left_seq: left_seq.0,
            }),
            other => Err(status::wrong_reply(&other)),
        }
    }

    async fn mark_read_here(
        &self,
        shard: &Shard,
        metadata: &MetadataMap,
        call: v1::MarkReadRequest,
    ) -> Result<v1::MarkReadResponse, CallError> {
        let actor = self.actor(shard, metadata).await?;
        let user = self
            .core
            .acting_user(shard, actor, "user", call.user)
            .await?;
        let conversation = match call.conversation {
            Some(mark_read_request::Conversation::Peer(peer)) => {
                let peer = convert::user("peer", Some(peer))?;
                Conversation::Peer(self.core.resolve(shard, &peer).await?)
            }
            Some(mark_read_request::Conversation::Group(group)) => {
                Conversation::Group(GroupId(group))
            }
            None => return Err(convert::invalid("conversation is missing")),
        };
        let request_id = convert::uuid_v7("request_id", &call.request_id)?;
        let command = Command::MarkRead(MarkRead {
            request_id,
            user,
            conversation,
            seq: Seq(call.seq),
        });
        match self.core.propose(shard, command).await? {
            Reply::ReadMark { seq } => Ok(v1::MarkReadResponse { read_mark: seq.0 }),
            other => Err(status::wrong_reply(&other)),
        }
    }

    async fn ack_cursor_here(
        &self,
        shard: &Shard,
        metadata: &MetadataMap,
        call: v1::AckCursorRequest,
    ) -> Result<v1::AckCursorResponse, CallError> {
        let actor = self.actor(shard, metadata).await?;
        let user = self
            .core
            .acting_user(shard, actor, "user", call.user)
            .await?;
        let device =
            DeviceId::new(&call.device).map_err(|error| convert::invalid(error.to_string()))?;
        let timeline = convert::timeline(call.timeline.as_ref())?;
        let request_id = convert::uuid_v7("request_id", &call.request_id)?;
        let command = Command::AckCursor(AckCursor {
            request_id,
            user,
            device,
            timeline,
            seq: Seq(call.seq),
        });
        match self.core.propose(shard, command).await? {
            Reply::Cursor { seq } => Ok(v1::AckCursorResponse { cursor: seq.0 }),
            other => Err(status::wrong_reply(&other)),
        }
    }
}

/// A unary call: answered here by the leader, forwarded once by a follower, and counted.
macro_rules! unary {
    ($self:ident, $request:ident, $shard:expr, $name:ident, $here:expr) => {{
        let (metadata, _, call) = $request.into_parts();
        let done = async {
            let shard = $shard(&*$self.core, &call)?;
            match $self.route(&metadata, &shard)? {
                Route::There(mut leader) => leader.$name(forwarded(&metadata, call)).await,
                Route::Here => $here(shard, metadata, call).await,
            }
        };
        let done: Result<Response<_>, Status> = done.await;
        $self
            .core
            .metrics
            .count_call(stringify!($name), done.as_ref().err());
        done
    }};
}

#[tonic::async_trait]
impl Mailbox for MailboxService {
    type SubmitStream = SubmitStream;
    type SubscribeStream = FeedStream;

    async fn submit(
        &self,
        request: Request<Streaming<v1::SubmitRequest>>,
    ) -> Result<Response<SubmitStream>, Status> {
        let done = submit::open(Arc::clone(&self.core), request).await;
        self.core.metrics.count_call("submit", done.as_ref().err());
        done
    }

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<FeedStream>, Status> {
        let done = feed::open(Arc::clone(&self.core), request).await;
        self.core
            .metrics
            .count_call("subscribe", done.as_ref().err());
        done
    }

    async fn send(
        &self,
        request: Request<v1::SendRequest>,
    ) -> Result<Response<v1::SendResponse>, Status> {
        unary!(
            self,
            request,
            only_shard,
            send,
            async |shard, metadata, call| {
                Ok(Response::new(
                    self.send_here(&shard, &metadata, call).await?,
                ))
            }
        )
    }

    async fn sync(
        &self,
        request: Request<v1::SyncRequest>,
    ) -> Result<Response<v1::SyncResponse>, Status> {
        let shard = |core: &Core, call: &v1::SyncRequest| core.shard(call.shard);
        if request.get_ref().stale {
            // A stale read is for this replica, whoever leads.
            let shard = shard(&self.core, request.get_ref())?;
            let actor = self.actor(&shard, request.metadata()).await?;
            let answer = read::sync(&self.core, &shard, actor, request.into_inner()).await;
            return Ok(Response::new(answer?));
        }
        unary!(self, request, shard, sync, async |shard, metadata, call| {
            let actor = self.actor(&shard, &metadata).await?;
            Ok(Response::new(
                read::sync(&self.core, &shard, actor, call).await?,
            ))
        })
    }

    async fn heads(
        &self,
        request: Request<v1::HeadsRequest>,
    ) -> Result<Response<v1::HeadsResponse>, Status> {
        let shard = |core: &Core, call: &v1::HeadsRequest| core.shard(call.shard);
        if request.get_ref().stale {
            let shard = shard(&self.core, request.get_ref())?;
            let actor = self.actor(&shard, request.metadata()).await?;
            let answer = read::heads(&self.core, &shard, actor, request.into_inner()).await;
            return Ok(Response::new(answer?));
        }
        unary!(
            self,
            request,
            shard,
            heads,
            async |shard, metadata, call| {
                let actor = self.actor(&shard, &metadata).await?;
                Ok(Response::new(
                    read::heads(&self.core, &shard, actor, call).await?,
                ))
            }
        )
    }

    async fn register_user(
        &self,
        request: Request<v1::RegisterUserRequest>,
    ) -> Result<Response<v1::RegisterUserResponse>, Status> {
        unary!(
            self,
            request,
            only_shard,
            register_user,
            async |shard, metadata, call| {
                Ok(Response::new(
                    self.register_here(&shard, &metadata, call).await?,
                ))
            }
        )
    }

    async fn resolve_user(
        &self,
        request: Request<v1::ResolveUserRequest>,
    ) -> Result<Response<v1::ResolveUserResponse>, Status> {
        unary!(
            self,
            request,
            only_shard,
            resolve_user,
            async |shard, metadata, call| {
                Ok(Response::new(
                    self.resolve_here(&shard, &metadata, call).await?,
                ))
            }
        )
    }

    async fn create_group(
        &self,
        request: Request<v1::CreateGroupRequest>,
    ) -> Result<Response<v1::CreateGroupResponse>, Status> {
        unary!(
            self,
            request,
            only_shard,
            create_group,
            async |shard, metadata, call| {
                Ok(Response::new(
                    self.create_group_here(&shard, &metadata, call).await?,
                ))
            }
        )
    }

    async fn join_group(
        &self,
        request: Request<v1::JoinGroupRequest>,
    ) -> Result<Response<v1::JoinGroupResponse>, Status> {
        unary!(
            self,
            request,
            only_shard,
            join_group,
            async |shard, metadata, call| {
                Ok(Response::new(
                    self.join_group_here(&shard, &metadata, call).await?,
                ))
            }
        )
    }

    async fn leave_group(
        &self,
        request: Request<v1::LeaveGroupRequest>,
    ) -> Result<Response<v1::LeaveGroupResponse>, Status> {
        unary!(
            self,
            request,
            only_shard,
            leave_group,
            async |shard, metadata, call| {
                Ok(Response::new(
                    self.leave_group_here(&shard, &metadata, call).await?,
                ))
            }
        )
    }

    async fn mark_read(
        &self,
        request: Request<v1::MarkReadRequest>,
    ) -> Result<Response<v1::MarkReadResponse>, Status> {
        unary!(
            self,
            request,
            only_shard,
            mark_read,
            async |shard, metadata, call| {
                Ok(Response::new(
                    self.mark_read_here(&shard, &metadata, call).await?,
                ))
            }
        )
    }

    async fn ack_cursor(
        &self,
        request: Request<v1::AckCursorRequest>,
    ) -> Result<Response<v1::AckCursorResponse>, Status> {
        unary!(
            self,
            request,
            only_shard,
            ack_cursor,
            async |shard, metadata, call| {
                Ok(Response::new(
                    self.ack_cursor_here(&shard, &metadata, call).await?,
                ))
            }
        )
    }
}

/// Calls that name no shard: while one shard holds every slot, it is that one.
fn only_shard<T>(core: &Core, _: &T) -> Result<Shard, CallError> {
    core.only_shard()
}
