//! Unary calls: one path for all of them, and in `unary/` what each does at the leader.
//!
//! A call that reaches a follower is forwarded to the leader, once.

mod groups;
mod timelines;
mod users;

use mailbox_api::CallError;
use mailbox_api::v1::UserRef;
use mailbox_api::v1::mailbox_client::MailboxClient;
use mailbox_engine::UserId;
use mailbox_raft::Shard;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::auth::Caller;
use crate::core::{Core, Route, forwarded};

/// A call with one answer, given by the leader of its shard.
pub(crate) trait UnaryCall: Send + Sized {
    /// As the metrics name it.
    const NAME: &'static str;
    /// What the caller gets.
    type Answer: Send;

    /// The shard that answers: while one holds every slot, a call need not name it.
    fn shard(&self, core: &Core) -> Result<Shard, CallError> {
        core.only_shard()
    }

    /// Whether the caller wants what this replica has, whoever leads.
    fn is_stale(&self) -> bool {
        false
    }

    /// Does the call on this replica.
    fn answer(
        self,
        core: &Core,
        shard: &Shard,
        caller: Caller,
    ) -> impl Future<Output = Result<Self::Answer, CallError>> + Send;
}

/// Answers a call, or passes it on by `forward`, and counts it.
pub(crate) async fn serve<C, F, Answered>(
    core: &Core,
    request: Request<C>,
    forward: F,
) -> Result<Response<C::Answer>, Status>
where
    C: UnaryCall,
    F: FnOnce(MailboxClient<Channel>, Request<C>) -> Answered,
    Answered: Future<Output = Result<Response<C::Answer>, Status>>,
{
    let (metadata, _, call) = request.into_parts();
    let done = async {
        // Checked by a follower too: a call is not passed on for someone who may not call.
        let caller = core.authority.authenticate(&metadata)?;
        let shard = call.shard(core)?;
        if !call.is_stale()
            && let Route::There(leader) = core.route(&metadata, &shard)?
        {
            return forward(leader, forwarded(&metadata, call)).await;
        }
        Ok(Response::new(call.answer(core, &shard, caller).await?))
    };
    let done = done.await;
    core.metrics.count_call(C::NAME, done.as_ref().err());
    done
}

/// The user that a call acts for, named in its field `field` or by the token.
async fn acting_user(
    core: &Core,
    shard: &Shard,
    caller: Caller,
    field: &str,
    named: Option<UserRef>,
) -> Result<UserId, CallError> {
    let actor = core.actor(shard, caller).await?;
    core.acting_user(shard, actor, field, named).await
}
