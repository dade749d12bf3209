//! Calls that write to timelines, read them and move their marks.

use mailbox_api::CallError;
use mailbox_api::v1::{
    AckCursorRequest, AckCursorResponse, HeadsRequest, HeadsResponse, MarkReadRequest,
    MarkReadResponse, SendRequest, SendResponse, SyncRequest, SyncResponse, mark_read_request,
    send_request, user_ref,
};
use mailbox_engine::{
    AckCursor, Command, Conversation, DeviceId, GroupId, MarkRead, Reply, Seq, ShardId, UserId,
};
use mailbox_raft::Shard;

use super::{UnaryCall, acting_user, shard_of_group};
use crate::auth::Caller;
use crate::consistency::Consistency;
use crate::convert::{self, CheckedSend, Destination};
use crate::core::{Actor, Core};
use crate::{read, status};

impl UnaryCall for SendRequest {
    const NAME: &'static str = "send";
    type Answer = SendResponse;
    type Acting = UserId;

    async fn place(&self, core: &Core, caller: Caller) -> Result<(ShardId, UserId), CallError> {
        let sender = acting_user(core, caller, "sender", self.sender.as_ref()).await?;
        let shard = match self.destination {
            Some(send_request::Destination::Group(group)) => shard_of_group(core, group),
            Some(send_request::Destination::User(_)) | None => core.shard_of_user(sender),
        };
        Ok((shard, sender))
    }

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        sender: UserId,
    ) -> Result<SendResponse, CallError> {
        let body_bytes_max = core.cluster.body_bytes_max.as_usize();
        let send = CheckedSend::of(self, user_ref::User::Id(sender.0), body_bytes_max)?;
        let recipient = match &send.destination {
            Destination::User(user) => core.resolve(user).await?,
            Destination::Group(_) => UserId(0),
        };
        match core.propose(shard, send.command(sender, recipient)).await? {
            Reply::Sent {
                timeline,
                seq,
                message_id,
            } => Ok(SendResponse {
                timeline: Some(convert::timeline_out(timeline)),
                seq: seq.0,
                message_id: message_id.0,
            }),
            other => Err(status::wrong_reply(&other)),
        }
    }
}

impl UnaryCall for SyncRequest {
    const NAME: &'static str = "sync";
    type Answer = SyncResponse;
    type Acting = Actor;

    async fn place(&self, core: &Core, caller: Caller) -> Result<(ShardId, Actor), CallError> {
        Ok((core.placed(self.shard)?, core.actor(caller).await?))
    }

    fn consistency(&self) -> Result<Consistency, CallError> {
        Consistency::of(self.stale, self.max_staleness_ms)
    }

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        actor: Actor,
    ) -> Result<SyncResponse, CallError> {
        read::sync(core, shard, actor, self).await
    }
}

impl UnaryCall for HeadsRequest {
    const NAME: &'static str = "heads";
    type Answer = HeadsResponse;
    type Acting = Actor;

    async fn place(&self, core: &Core, caller: Caller) -> Result<(ShardId, Actor), CallError> {
        Ok((core.placed(self.shard)?, core.actor(caller).await?))
    }

    fn consistency(&self) -> Result<Consistency, CallError> {
        Consistency::of(self.stale, self.max_staleness_ms)
    }

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        actor: Actor,
    ) -> Result<HeadsResponse, CallError> {
        read::heads(core, shard, actor, self).await
    }
}

impl UnaryCall for MarkReadRequest {
    const NAME: &'static str = "mark_read";
    type Answer = MarkReadResponse;
    type Acting = UserId;

    async fn place(&self, core: &Core, caller: Caller) -> Result<(ShardId, UserId), CallError> {
        let user = acting_user(core, caller, "user", self.user.as_ref()).await?;
        let shard = match self.conversation {
            Some(mark_read_request::Conversation::Group(group)) => shard_of_group(core, group),
            Some(mark_read_request::Conversation::Peer(_)) | None => core.shard_of_user(user),
        };
        Ok((shard, user))
    }

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        user: UserId,
    ) -> Result<MarkReadResponse, CallError> {
        let conversation = match self.conversation {
            Some(mark_read_request::Conversation::Peer(peer)) => {
                let peer = convert::user("peer", Some(peer))?;
                Conversation::Peer(core.resolve(&peer).await?)
            }
            Some(mark_read_request::Conversation::Group(group)) => {
                Conversation::Group(GroupId(group))
            }
            None => return Err(convert::invalid("conversation is missing")),
        };
        let command = Command::MarkRead(MarkRead {
            request_id: convert::uuid_v7("request_id", &self.request_id)?,
            user,
            conversation,
            seq: Seq(self.seq),
        });
        match core.propose(shard, command).await? {
            Reply::ReadMark { seq } => Ok(MarkReadResponse { read_mark: seq.0 }),
            other => Err(status::wrong_reply(&other)),
        }
    }
}

impl UnaryCall for AckCursorRequest {
    const NAME: &'static str = "ack_cursor";
    type Answer = AckCursorResponse;
    type Acting = UserId;

    async fn place(&self, core: &Core, caller: Caller) -> Result<(ShardId, UserId), CallError> {
        let user = acting_user(core, caller, "user", self.user.as_ref()).await?;
        let timeline = convert::timeline(self.timeline.as_ref())?;
        Ok((core.shard_of_timeline(timeline), user))
    }

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        user: UserId,
    ) -> Result<AckCursorResponse, CallError> {
        let device =
            DeviceId::new(&self.device).map_err(|error| convert::invalid(error.to_string()))?;
        let timeline = convert::timeline(self.timeline.as_ref())?;
        let command = Command::AckCursor(AckCursor {
            request_id: convert::uuid_v7("request_id", &self.request_id)?,
            user,
            device,
            timeline,
            seq: Seq(self.seq),
        });
        match core.propose(shard, command).await? {
            Reply::Cursor { seq } => Ok(AckCursorResponse { cursor: seq.0 }),
            other => Err(status::wrong_reply(&other)),
        }
    }
}
