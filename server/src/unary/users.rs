//! Calls about users.

use mailbox_api::CallError;
use mailbox_api::v1::{
    RegisterUserRequest, RegisterUserResponse, ResolveUserRequest, ResolveUserResponse, user_ref,
};
use mailbox_engine::{Command, RegisterUser, Reply, ShardId};
use mailbox_raft::Shard;

use super::UnaryCall;
use crate::auth::{Caller, forbidden};
use crate::core::Core;
use crate::directory::Made;
use crate::{convert, status};

impl UnaryCall for RegisterUserRequest {
    const NAME: &'static str = "register_user";
    type Answer = RegisterUserResponse;
    type Acting = ();

    async fn place(&self, core: &Core, caller: Caller) -> Result<(ShardId, ()), CallError> {
        // A token's own handle need not exist yet: this call makes it.
        match caller {
            Caller::Cluster => {}
            Caller::User(user_ref::User::Handle(own)) if own == self.handle => {}
            Caller::User(_) => return Err(forbidden("the token acts for its own handle only")),
        }
        Ok((core.shard_of_handle(&self.handle), ()))
    }

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        (): (),
    ) -> Result<RegisterUserResponse, CallError> {
        let command = Command::RegisterUser(RegisterUser {
            request_id: convert::uuid_v7("request_id", &self.request_id)?,
            handle: self.handle,
        });
        let user = match core.propose(shard, command).await? {
            Reply::UserRegistered { user } => user,
            other => return Err(status::wrong_reply(&other)),
        };
        core.arrived(Made::User(user)).await?;
        Ok(RegisterUserResponse { user: user.0 })
    }
}

impl UnaryCall for ResolveUserRequest {
    const NAME: &'static str = "resolve_user";
    type Answer = ResolveUserResponse;
    type Acting = user_ref::User;

    async fn place(&self, core: &Core, _: Caller) -> Result<(ShardId, user_ref::User), CallError> {
        let user = convert::user("user", self.user.clone())?;
        Ok((core.shard_of_ref(&user), user))
    }

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        user: user_ref::User,
    ) -> Result<ResolveUserResponse, CallError> {
        let (id, handle) = core.find_as_leader(shard, &user).await?;
        if let user_ref::User::Handle(_) = user {
            core.arrived(Made::User(id)).await?;
        }
        Ok(ResolveUserResponse { user: id.0, handle })
    }
}
