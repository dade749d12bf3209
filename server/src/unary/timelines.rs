//! Calls that write to timelines, read them and move their marks.

use mailbox_api::CallError;
use mailbox_api::v1::{
    AckCursorRequest, AckCursorResponse, HeadsRequest, HeadsResponse, MarkReadRequest,
    MarkReadResponse, SendRequest, SendResponse, SyncRequest, SyncResponse, mark_read_request,
    user_ref,
};
use mailbox_engine::{
    AckCursor, Command, Conversation, DeviceId, GroupId, MarkRead, Reply, Seq, UserId,
};
use mailbox_raft::Shard;

use super::{UnaryCall, acting_user};
use crate::auth::Caller;
use crate::convert::{self, CheckedSend, Destination};
use crate::core::Core;
use crate::{read, status};

impl UnaryCall for SendRequest {
    const NAME: &'static str = "send";
    type Answer = SendResponse;

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        caller: Caller,
    ) -> Result<SendResponse, CallError> {
        let sender = acting_user(core, shard, caller, "sender", self.sender.clone()).await?;
        let body_bytes_max = core.cluster.body_bytes_max.as_usize();
        let send = CheckedSend::of(self, user_ref::User::Id(sender.0), body_bytes_max)?;
        let recipient = match &send.destination {
            Destination::User(user) => core.resolve(shard, user).await?,
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

    fn shard(&self, core: &Core) -> Result<Shard, CallError> {
        core.shard(self.shard)
    }

    fn is_stale(&self) -> bool {
        self.stale
    }

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        caller: Caller,
    ) -> Result<SyncResponse, CallError> {
        let actor = core.actor(shard, caller).await?;
        read::sync(core, shard, actor, self).await
    }
}

impl UnaryCall for HeadsRequest {
    const NAME: &'static str = "heads";
    type Answer = HeadsResponse;

    fn shard(&self, core: &Core) -> Result<Shard, CallError> {
        core.shard(self.shard)
    }

    fn is_stale(&self) -> bool {
        self.stale
    }

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        caller: Caller,
    ) -> Result<HeadsResponse, CallError> {
        let actor = core.actor(shard, caller).await?;
        read::heads(core, shard, actor, self).await
    }
}

impl UnaryCall for MarkReadRequest {
    const NAME: &'static str = "mark_read";
    type Answer = MarkReadResponse;

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        caller: Caller,
    ) -> Result<MarkReadResponse, CallError> {
        let user = acting_user(core, shard, caller, "user", self.user).await?;
        let conversation = match self.conversation {
            Some(mark_read_request::Conversation::Peer(peer)) => {
                let peer = convert::user("peer", Some(peer))?;
                Conversation::Peer(core.resolve(shard, &peer).await?)
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

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        caller: Caller,
    ) -> Result<AckCursorResponse, CallError> {
        let user = acting_user(core, shard, caller, "user", self.user).await?;
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
