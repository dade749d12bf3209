//! Unary calls: one path for all of them, and in `unary/` what each does at the leader.
//!
//! A call goes to the shard in which it is judged, whichever node it was sent to, and to that shard's leader:
//!
//! ```text
//!  who calls ──▶ whom it names ──▶ the shard ──▶ led here: done
//!                (directory.rs)        │        └▶ forwarded to its leader, once
//!                                      └──▶ not here: passed to whoever has it (forward.rs)
//! ```
//!
//! | call | shard |
//! |---|---|
//! | `send` to a user, `mark_read` of a peer, `create_group` | the acting user's |
//! | `send` to a group, `join_group`, `leave_group`, `mark_read` of a group | the group's |
//! | `ack_cursor` | the timeline's |
//! | `register_user`, `resolve_user` by handle | the handle's place in the directory |
//! | `resolve_user` by id | the user's |
//! | `sync`, `heads` | the one named |
//!
//! `sync` and `heads` with a bound on staleness are answered by any replica that keeps it, and go to the leader
//! otherwise, see `consistency.rs`.
//!
//! What such a call makes in another shard travels there; a reply that promises it waits until it is there.

mod groups;
mod timelines;
mod users;

use mailbox_api::CallError;
use mailbox_api::v1::mailbox_client::MailboxClient;
use mailbox_api::v1::{ErrorCode, UserRef};
use mailbox_engine::{GroupId, ShardId, UserId};
use mailbox_raft::Shard;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::auth::Caller;
use crate::consistency::Consistency;
use crate::core::{Core, Route, forwarded};
use crate::status;

/// A call with one answer, given by the leader of its shard.
pub(crate) trait UnaryCall: Clone + Send + Sync + Sized {
    /// As the metrics name it.
    const NAME: &'static str;
    /// What the caller gets.
    type Answer: Send;
    /// For whom the call is done: what finding its shard has found out.
    type Acting: Send;

    /// The shard that answers, and for whom.
    fn place(
        &self,
        core: &Core,
        caller: Caller,
    ) -> impl Future<Output = Result<(ShardId, Self::Acting), CallError>> + Send;

    /// What the caller wants of the answer.
    fn consistency(&self) -> Result<Consistency, CallError> {
        Ok(Consistency::Linearizable)
    }

    /// Does the call on this replica.
    fn answer(
        self,
        core: &Core,
        shard: &Shard,
        acting: Self::Acting,
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
    F: Fn(MailboxClient<Channel>, Request<C>) -> Answered + Sync,
    Answered: Future<Output = Result<Response<C::Answer>, Status>> + Send,
{
    let (metadata, _, call) = request.into_parts();
    let done = async {
        // Checked by a follower too: a call is not passed on for someone who may not call.
        let caller = core.authority.authenticate(&metadata)?;
        let (shard, acting) = call.place(core, caller).await?;
        let Some(shard) = core.node.shard(shard) else {
            return pass_on(core, &metadata, shard, &call, &forward).await;
        };
        match call.consistency()? {
            Consistency::Linearizable => {
                if let Route::There(leader) = core.route(&metadata, &shard)? {
                    return forward(leader, forwarded(&metadata, call)).await;
                }
            }
            Consistency::Within(_) => {
                let answer = call.clone().answer(core, &shard, acting).await;
                let Err(error) = &answer else {
                    return Ok(Response::new(answer?));
                };
                // The leader lacks nothing.
                return match core.route(&metadata, &shard) {
                    Ok(Route::There(leader)) if error.code() == ErrorCode::TooStale => {
                        forward(leader, forwarded(&metadata, call)).await
                    }
                    Ok(_) | Err(_) => Ok(Response::new(answer?)),
                };
            }
            Consistency::Unbounded => {}
        }
        Ok(Response::new(call.answer(core, &shard, acting).await?))
    };
    let done = done.await;
    core.metrics.count_call(C::NAME, done.as_ref().err());
    done
}

/// Passes a call to the leader of a shard that has no replica here.
async fn pass_on<C, F, Answered>(
    core: &Core,
    metadata: &MetadataMap,
    shard: ShardId,
    call: &C,
    forward: &F,
) -> Result<Response<C::Answer>, Status>
where
    C: UnaryCall,
    F: Fn(MailboxClient<Channel>, Request<C>) -> Answered + Sync,
    Answered: Future<Output = Result<Response<C::Answer>, Status>> + Send,
{
    if core.stopping.is_cancelled() {
        return Err(status::unavailable("the node is shutting down").into());
    }
    if metadata.get(mailbox_api::metadata::FORWARDED).is_some() {
        // Whoever passed it here goes by another map than this node: no two of them play ball with a call.
        return Err(core.not_here(shard).into());
    }
    let asked = core.ask(shard, |address| {
        let peer = core.peers.mailbox(&address);
        let answer = peer.map(|peer| forward(peer, forwarded(metadata, call.clone())));
        async move { answer?.await }
    });
    asked.await
}

/// The user that a call acts for, named in its field `field` or by the token.
async fn acting_user(
    core: &Core,
    caller: Caller,
    field: &str,
    named: Option<&UserRef>,
) -> Result<UserId, CallError> {
    let actor = core.actor(caller).await?;
    core.acting_user(actor, field, named.cloned()).await
}

/// The shard that holds a group.
fn shard_of_group(core: &Core, group: u64) -> ShardId {
    core.shard_of_timeline(GroupId(group).timeline())
}
