//! Calls about users.

use mailbox_api::CallError;
use mailbox_api::v1::{
    RegisterUserRequest, RegisterUserResponse, ResolveUserRequest, ResolveUserResponse, user_ref,
};
use mailbox_engine::{Command, RegisterUser, Reply};
use mailbox_raft::Shard;

use super::UnaryCall;
use crate::auth::{Caller, forbidden};
use crate::core::Core;
use crate::{convert, status};

impl UnaryCall for RegisterUserRequest {
    const NAME: &'static str = "register_user";
    type Answer = RegisterUserResponse;
    type Acting = ();

    async fn place(&self, core: &Core, caller: Caller) -> Result<(Shard, ()), CallError> {
        // A token's own handle need not exist yet: this call makes it.
        match caller {
            Caller::Cluster => {}
            Caller::User(user_ref::User::Handle(own)) if own == self.handle => {}
            Caller::User(_) => return Err(forbidden("the token acts for its own handle only")),
        }
        Ok((core.shard_of_handle(&self.handle)?, ()))
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
        let home = core.shard_of_user(user)?;
        let is_there = |engine: &mailbox_engine::Shard| Ok(engine.handle_of(user)?.is_some());
        core.arrived(&home, &format!("user {user}"), is_there)
            .await?;
        Ok(RegisterUserResponse { user: user.0 })
    }
}

impl UnaryCall for ResolveUserRequest {
    const NAME: &'static str = "resolve_user";
    type Answer = ResolveUserResponse;
    type Acting = user_ref::User;

    async fn place(&self, core: &Core, _: Caller) -> Result<(Shard, user_ref::User), CallError> {
        let user = convert::user("user", self.user.clone())?;
        Ok((core.shard_of_ref(&user)?, user))
    }

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        user: user_ref::User,
    ) -> Result<ResolveUserResponse, CallError> {
        let (id, handle) = core.find_as_leader(shard, &user).await?;
        Ok(ResolveUserResponse { user: id.0, handle })
    }
}
