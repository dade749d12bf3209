//! Calls that make, join and leave groups.

use mailbox_api::CallError;
use mailbox_api::v1::{
    CreateGroupRequest, CreateGroupResponse, JoinGroupRequest, JoinGroupResponse,
    LeaveGroupRequest, LeaveGroupResponse,
};
use mailbox_engine::{Command, CreateGroup, GroupId, JoinGroup, LeaveGroup, MessageId, Reply};
use mailbox_raft::Shard;

use super::{UnaryCall, acting_user};
use crate::auth::Caller;
use crate::core::Core;
use crate::{convert, status};

impl UnaryCall for CreateGroupRequest {
    const NAME: &'static str = "create_group";
    type Answer = CreateGroupResponse;

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        caller: Caller,
    ) -> Result<CreateGroupResponse, CallError> {
        let creator = acting_user(core, shard, caller, "creator", self.creator).await?;
        let command = Command::CreateGroup(CreateGroup {
            request_id: convert::uuid_v7("request_id", &self.request_id)?,
            creator,
            name: self.name,
            message_id: MessageId::ZERO,
        });
        match core.propose(shard, command).await? {
            Reply::GroupCreated { group, seq } => Ok(CreateGroupResponse {
                group: group.0,
                seq: seq.0,
            }),
            other => Err(status::wrong_reply(&other)),
        }
    }
}

impl UnaryCall for JoinGroupRequest {
    const NAME: &'static str = "join_group";
    type Answer = JoinGroupResponse;

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        caller: Caller,
    ) -> Result<JoinGroupResponse, CallError> {
        let user = acting_user(core, shard, caller, "user", self.user).await?;
        let command = Command::JoinGroup(JoinGroup {
            request_id: convert::uuid_v7("request_id", &self.request_id)?,
            group: GroupId(self.group),
            user,
            message_id: MessageId::ZERO,
        });
        match core.propose(shard, command).await? {
            Reply::Joined { join_seq } => Ok(JoinGroupResponse {
                join_seq: join_seq.0,
            }),
            other => Err(status::wrong_reply(&other)),
        }
    }
}

impl UnaryCall for LeaveGroupRequest {
    const NAME: &'static str = "leave_group";
    type Answer = LeaveGroupResponse;

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        caller: Caller,
    ) -> Result<LeaveGroupResponse, CallError> {
        let user = acting_user(core, shard, caller, "user", self.user).await?;
        let command = Command::LeaveGroup(LeaveGroup {
            request_id: convert::uuid_v7("request_id", &self.request_id)?,
            group: GroupId(self.group),
            user,
            message_id: MessageId::ZERO,
        });
        match core.propose(shard, command).await? {
            Reply::Left { left_seq } => Ok(LeaveGroupResponse {
                left_seq: left_seq.0,
            }),
            other => Err(status::wrong_reply(&other)),
        }
    }
}
