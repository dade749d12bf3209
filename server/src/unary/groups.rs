//! Calls that make, join and leave groups.

use mailbox_api::CallError;
use mailbox_api::v1::{
    CreateGroupRequest, CreateGroupResponse, JoinGroupRequest, JoinGroupResponse,
    LeaveGroupRequest, LeaveGroupResponse,
};
use mailbox_engine::{
    Command, CreateGroup, GroupId, JoinGroup, LeaveGroup, MessageId, Refusal, Reply, Seq, ShardId,
    UserId,
};
use mailbox_raft::Shard;

use super::{UnaryCall, acting_user, shard_of_group};
use crate::auth::Caller;
use crate::core::Core;
use crate::directory::Made;
use crate::{convert, status};

impl UnaryCall for CreateGroupRequest {
    const NAME: &'static str = "create_group";
    type Answer = CreateGroupResponse;
    type Acting = UserId;

    async fn place(&self, core: &Core, caller: Caller) -> Result<(ShardId, UserId), CallError> {
        let creator = acting_user(core, caller, "creator", self.creator.as_ref()).await?;
        Ok((core.shard_of_user(creator), creator))
    }

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        creator: UserId,
    ) -> Result<CreateGroupResponse, CallError> {
        let command = Command::CreateGroup(CreateGroup {
            request_id: convert::uuid_v7("request_id", &self.request_id)?,
            creator,
            name: self.name,
            message_id: MessageId::ZERO,
        });
        let (group, seq) = match core.propose(shard, command).await? {
            Reply::GroupCreated { group, seq } => (group, seq),
            other => return Err(status::wrong_reply(&other)),
        };
        core.arrived(Made::Group { group, creator }).await?;
        Ok(CreateGroupResponse {
            group: group.0,
            seq: seq.0,
        })
    }
}

impl UnaryCall for JoinGroupRequest {
    const NAME: &'static str = "join_group";
    type Answer = JoinGroupResponse;
    type Acting = UserId;

    async fn place(&self, core: &Core, caller: Caller) -> Result<(ShardId, UserId), CallError> {
        let user = acting_user(core, caller, "user", self.user.as_ref()).await?;
        Ok((shard_of_group(core, self.group), user))
    }

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        user: UserId,
    ) -> Result<JoinGroupResponse, CallError> {
        // The group's shard cannot tell: the user's row may be in another one.
        core.require_user(user).await?;
        require_room(core, shard, user, GroupId(self.group)).await?;
        let command = Command::JoinGroup(JoinGroup {
            request_id: convert::uuid_v7("request_id", &self.request_id)?,
            group: GroupId(self.group),
            user,
            message_id: MessageId::ZERO,
        });
        match core.propose(shard, command).await? {
            Reply::Joined { join_seq } => {
                listed(core, user, GroupId(self.group), join_seq).await?;
                Ok(JoinGroupResponse {
                    join_seq: join_seq.0,
                })
            }
            other => Err(status::wrong_reply(&other)),
        }
    }
}

/// The user's list has room for the group, or the group in it. Of a list in the group's own shard, apply
/// judges.
async fn require_room(
    core: &Core,
    group_shard: &Shard,
    user: UserId,
    group: GroupId,
) -> Result<(), CallError> {
    let options = group_shard.engine().cluster_options();
    let limits = options.and_then(|options| options.user_limits);
    let Some(limits) = limits.filter(|_| core.shard_of_user(user) != group_shard.id()) else {
        return Ok(());
    };
    let max = limits.groups_max;
    let groups = core.groups_of(user).await?;
    let has_room = u32::try_from(groups.len()).is_ok_and(|count| count < max);
    if has_room || groups.contains(&group) {
        return Ok(());
    }
    Err(status::refusal(&Refusal::TooManyGroups { user, max }))
}

impl UnaryCall for LeaveGroupRequest {
    const NAME: &'static str = "leave_group";
    type Answer = LeaveGroupResponse;
    type Acting = UserId;

    async fn place(&self, core: &Core, caller: Caller) -> Result<(ShardId, UserId), CallError> {
        let user = acting_user(core, caller, "user", self.user.as_ref()).await?;
        Ok((shard_of_group(core, self.group), user))
    }

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        user: UserId,
    ) -> Result<LeaveGroupResponse, CallError> {
        let command = Command::LeaveGroup(LeaveGroup {
            request_id: convert::uuid_v7("request_id", &self.request_id)?,
            group: GroupId(self.group),
            user,
            message_id: MessageId::ZERO,
        });
        match core.propose(shard, command).await? {
            Reply::Left { left_seq } => {
                listed(core, user, GroupId(self.group), left_seq).await?;
                Ok(LeaveGroupResponse {
                    left_seq: left_seq.0,
                })
            }
            other => Err(status::wrong_reply(&other)),
        }
    }
}

/// Waits until the user's own list of groups knows of a join or leave at `seq`: who looks at the list
/// after the reply must not take a former member for one.
async fn listed(core: &Core, user: UserId, group: GroupId, seq: Seq) -> Result<(), CallError> {
    core.arrived(Made::Listed { user, group, seq }).await
}
