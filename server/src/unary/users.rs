//! Calls about users.

use mailbox_api::CallError;
use mailbox_api::v1::{
    RegisterUserRequest, RegisterUserResponse, ResolveUserRequest, ResolveUserResponse, user_ref,
};
use mailbox_engine::{Command, RegisterUser, Reply};
use mailbox_raft::Shard;

use super::UnaryCall;
use crate::auth::{Caller, forbidden};
use crate::core::{Core, unknown_user};
use crate::{convert, status};

impl UnaryCall for RegisterUserRequest {
    const NAME: &'static str = "register_user";
    type Answer = RegisterUserResponse;

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        caller: Caller,
    ) -> Result<RegisterUserResponse, CallError> {
        // A token's own handle need not exist yet: this call makes it.
        match caller {
            Caller::Cluster => {}
            Caller::User(user_ref::User::Handle(own)) if own == self.handle => {}
            Caller::User(_) => return Err(forbidden("the token acts for its own handle only")),
        }
        let command = Command::RegisterUser(RegisterUser {
            request_id: convert::uuid_v7("request_id", &self.request_id)?,
            handle: self.handle,
        });
        match core.propose(shard, command).await? {
            Reply::UserRegistered { user } => Ok(RegisterUserResponse { user: user.0 }),
            other => Err(status::wrong_reply(&other)),
        }
    }
}

impl UnaryCall for ResolveUserRequest {
    const NAME: &'static str = "resolve_user";
    type Answer = ResolveUserResponse;

    async fn answer(
        self,
        core: &Core,
        shard: &Shard,
        _: Caller,
    ) -> Result<ResolveUserResponse, CallError> {
        let user = convert::user("user", self.user)?;
        let id = core.resolve(shard, &user).await?;
        core.barrier(shard).await?;
        let handle = core
            .read(shard, move |engine| engine.handle_of(id))
            .await?
            .ok_or_else(|| unknown_user(&user))?;
        Ok(ResolveUserResponse { user: id.0, handle })
    }
}
