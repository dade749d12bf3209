//! The hot path: batches of sends on one stream.
//!
//! ```text
//!  frame ──▶ check fields ──▶ look handles up ──▶ one propose() ──▶ one answer frame
//! ```
//!
//! One task for each stream, none for a message. A frame is for one shard, and its sends go to that
//! shard's proposer together and in order; who names handles that this node has to ask others for
//! makes the whole frame wait. While `submit_frames_in_flight_max` frames are unanswered, the next one stays in the
//! socket; a caller that does not read its answers is held back the same way.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use mailbox_api::CallError;
use mailbox_api::v1::submit_result::Result as Outcome;
use mailbox_api::v1::{
    ErrorCode, SendResponse, SubmitRequest, SubmitResponse, SubmitResult, user_ref,
};
use mailbox_engine::{Command, Reply, UserId};
use mailbox_raft::Shard;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use crate::convert::{self, CheckedSend, Destination};
use crate::core::{Actor, Core};
use crate::shard_map::ShardMap;
use crate::status;

/// Answer frames that wait for the caller to read them.
const ANSWERS_QUEUED_MAX: usize = 16;

pub(crate) type SubmitStream = ReceiverStream<Result<SubmitResponse, Status>>;

/// Accepts a stream; its calls are answered until the caller ends it or the node stops.
pub(crate) async fn open(
    core: Arc<Core>,
    request: Request<Streaming<SubmitRequest>>,
) -> Result<Response<SubmitStream>, Status> {
    let caller = core.authority.authenticate(request.metadata())?;
    let actor = core.actor(caller).await?;
    let (answers, stream) = mpsc::channel(ANSWERS_QUEUED_MAX);
    let inbound = request.into_inner();
    let span = tracing::debug_span!("submit");
    tokio::spawn(serve(core, actor, inbound, answers).instrument(span));
    Ok(Response::new(ReceiverStream::new(stream)))
}

async fn serve(
    core: Arc<Core>,
    actor: Actor,
    mut inbound: Streaming<SubmitRequest>,
    answers: mpsc::Sender<Result<SubmitResponse, Status>>,
) {
    let _open = core.metrics.submit_streams.guard();
    let frames_max = core.limits.submit_frames_in_flight_max as usize;
    let mut in_flight = FuturesUnordered::new();
    let mut ended = false;
    while !ended || !in_flight.is_empty() {
        tokio::select! {
            Some(results) = in_flight.next(), if !in_flight.is_empty() => {
                let mut response = SubmitResponse { results };
                // Frames that were applied together are answered together.
                while let Some(Some(more)) = in_flight.next().now_or_never() {
                    response.results.extend(more);
                }
                if answers.send(Ok(response)).await.is_err() {
                    return;
                }
            }
            frame = inbound.message(), if !ended && in_flight.len() < frames_max => match frame {
                Ok(Some(frame)) => match check_frame(&core, &frame) {
                    Ok(()) => {
                        let (shard, sends) = (frame.shard, frame.calls.len());
                        let span = tracing::debug_span!("frame", shard, sends);
                        in_flight.push(answer(&core, actor, frame).instrument(span));
                    }
                    Err(error) => {
                        // Nobody waits for it: the stream ends with the reason or is gone.
                        let _ = answers.send(Err(error.to_status())).await;
                        return;
                    }
                },
                Ok(None) | Err(_) => ended = true,
            },
            () = core.stopping.cancelled(), if !ended => ended = true,
        }
    }
}

fn check_frame(core: &Core, frame: &SubmitRequest) -> Result<(), CallError> {
    let max = core.limits.submit_calls_per_frame_max as usize;
    if frame.calls.len() > max {
        let (max, sent) = (max as u64, frame.calls.len() as u64);
        return Err(status::limit(
            "limits.submit_calls_per_frame_max",
            max,
            sent,
        ));
    }
    Ok(())
}

/// A frame's sends, answered; one result for each, in any order.
async fn answer(core: &Core, actor: Actor, frame: SubmitRequest) -> Vec<SubmitResult> {
    core.metrics.submit_frames.inc();
    core.metrics.submit_sends.inc_by(frame.calls.len() as u64);
    let _in_flight = core.metrics.submit_in_flight.guard_by(frame.calls.len());
    let shard = match core.shard(frame.shard) {
        Ok(shard) => shard,
        Err(error) => return refuse_all(frame.calls.iter().map(|call| call.tag), &error),
    };
    if let Err(error) = core.require_leader(&shard) {
        return refuse_all(frame.calls.iter().map(|call| call.tag), &error);
    }
    let mut results = Vec::with_capacity(frame.calls.len());
    let mut sends = Vec::with_capacity(frame.calls.len());
    for call in frame.calls {
        match check(core, actor, call.send) {
            Ok(send) => sends.push((call.tag, send)),
            Err(error) => results.push(refused(call.tag, error)),
        }
    }
    let users = core.resolve_all(unknown_handles(core, &sends)).await;
    let view = core.maps.now();
    let frame = Frame {
        core,
        map: &view.shards,
        shard: &shard,
        actor,
        users,
    };
    let mut batch = Batch::default();
    for (tag, send) in sends {
        match frame.command(send) {
            Ok(command) => {
                batch.tags.push(tag);
                batch.commands.push(command);
            }
            Err(error) => results.push(refused(tag, error)),
        }
    }
    tracing::debug!(
        proposed = batch.tags.len(),
        refused = results.len(),
        "checked"
    );
    batch.propose(core, &shard, &mut results).await;
    core.metrics.count_results(&results);
    results
}

fn check(
    core: &Core,
    actor: Actor,
    send: Option<mailbox_api::v1::SendRequest>,
) -> Result<CheckedSend, CallError> {
    let send = send.ok_or_else(|| convert::invalid("send is missing"))?;
    let sender = match (actor, send.sender.clone().and_then(|user| user.user)) {
        (Actor::User(id), None) => user_ref::User::Id(id.0),
        (Actor::User(_), Some(user)) => user,
        (Actor::Cluster, _) => convert::user("sender", send.sender.clone())?,
    };
    CheckedSend::of(send, sender, core.cluster.body_bytes_max.as_usize())
}

/// The handles of a frame that this node does not know, each once.
fn unknown_handles(core: &Core, sends: &[(u64, CheckedSend)]) -> HashSet<String> {
    let mut unknown = HashSet::new();
    let users = sends.iter().flat_map(|(_, send)| {
        let recipient = match &send.destination {
            Destination::User(user) => Some(user),
            Destination::Group(_) => None,
        };
        std::iter::once(&send.sender).chain(recipient)
    });
    for user in users {
        // What cannot be read here is asked of others, or refused when it is needed.
        if let user_ref::User::Handle(handle) = user
            && !unknown.contains(handle)
            && !matches!(core.known(handle), Ok(Some(_)))
        {
            unknown.insert(handle.clone());
        }
    }
    unknown
}

/// What the sends of a frame have in common.
struct Frame<'a> {
    core: &'a Core,
    map: &'a ShardMap,
    shard: &'a Shard,
    actor: Actor,
    /// The handles that were asked of others.
    users: HashMap<String, Result<UserId, CallError>>,
}

impl Frame<'_> {
    /// A send's command, if its sender may send and its home timeline is in this shard.
    fn command(&self, send: CheckedSend) -> Result<Command, CallError> {
        let sender = self.user(&send.sender)?;
        if let Actor::User(own) = self.actor
            && own != sender
        {
            let message = format!("the token acts for user {own} only");
            return Err(crate::auth::forbidden(message));
        }
        let (home, recipient) = match &send.destination {
            Destination::Group(group) => (group.timeline(), UserId(0)),
            Destination::User(user) => (sender.mailbox(), self.user(user)?),
        };
        self.core.check_shard(self.map, self.shard, home)?;
        Ok(send.command(sender, recipient))
    }

    fn user(&self, user: &user_ref::User) -> Result<UserId, CallError> {
        match user {
            user_ref::User::Id(id) => Ok(UserId(*id)),
            user_ref::User::Handle(handle) => match self.users.get(handle) {
                Some(asked) => asked.clone(),
                // It was known when the frame came, and has left the cache since, or the node its slot.
                None => self.core.known(handle)?.ok_or_else(|| {
                    let message = format!("handle {handle:?} is looked up again: repeat the send");
                    CallError::new(ErrorCode::Retry, message)
                }),
            },
        }
    }
}

/// The commands of one frame and the tags they answer to, in the frame's order.
#[derive(Default)]
struct Batch {
    tags: Vec<u64>,
    commands: Vec<Command>,
}

impl Batch {
    async fn propose(self, core: &Core, shard: &Shard, results: &mut Vec<SubmitResult>) {
        if self.commands.is_empty() {
            return;
        }
        match shard.propose(self.commands).await {
            Ok(replies) => {
                debug_assert_eq!(replies.len(), self.tags.len());
                let answered = self.tags.into_iter().zip(replies);
                results.extend(answered.map(|(tag, reply)| result_of(core, tag, reply)));
            }
            Err(error) => {
                let error = status::propose(shard.id().0, error);
                results.extend(refuse_all(self.tags.into_iter(), &error));
            }
        }
    }
}

fn result_of(core: &Core, tag: u64, reply: Reply) -> SubmitResult {
    match reply {
        Reply::Sent {
            timeline,
            seq,
            message_id,
        } => SubmitResult {
            tag,
            result: Some(Outcome::Sent(SendResponse {
                timeline: Some(convert::timeline_out(timeline)),
                seq: seq.0,
                message_id: message_id.0,
            })),
        },
        Reply::Refused(refusal) => refused(tag, core.refusal(&refusal)),
        other => refused(tag, status::wrong_reply(&other)),
    }
}

fn refused(tag: u64, error: CallError) -> SubmitResult {
    SubmitResult {
        tag,
        result: Some(Outcome::Error(error.0)),
    }
}

fn refuse_all(tags: impl Iterator<Item = u64>, error: &CallError) -> Vec<SubmitResult> {
    tags.map(|tag| refused(tag, error.clone())).collect()
}
