//! The hot path: batches of sends on one stream.
//!
//! ```text
//!  frame ──▶ check fields ──▶ look handles up ──▶ one propose() ──▶ one answer frame
//! ```
//!
//! One task for each stream, none for a message. A frame's sends go to the proposer together and in
//! order. While `submit_frames_in_flight_max` frames are unanswered, the next one stays in the
//! socket; a caller that does not read its answers is held back the same way.

use std::sync::Arc;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use mailbox_api::CallError;
use mailbox_api::v1::submit_result::Result as Outcome;
use mailbox_api::v1::{SendResponse, SubmitRequest, SubmitResponse, SubmitResult, user_ref};
use mailbox_engine::{Command, Reply, UserId};
use mailbox_raft::Shard;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use crate::convert::{self, CheckedSend, Destination};
use crate::core::{Actor, Core, unknown_user};
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
    let actor = core.actor(&core.only_shard()?, caller).await?;
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
        match check(core, &shard, actor, call.send) {
            Ok(send) => sends.push((call.tag, send)),
            Err(error) => results.push(refused(call.tag, error)),
        }
    }
    let mut batch = Batch::default();
    let unknown = batch.resolve(core, &shard, sends, &mut results, false);
    if !unknown.is_empty() {
        // *No such handle* is a read like any other: it needs the barrier.
        match core.barrier(&shard).await {
            Ok(()) => {
                batch.resolve(core, &shard, unknown, &mut results, true);
            }
            Err(error) => {
                results.extend(
                    unknown
                        .into_iter()
                        .map(|(tag, _)| refused(tag, error.clone())),
                );
            }
        }
    }
    tracing::debug!(
        proposed = batch.tags.len(),
        refused = results.len(),
        "checked"
    );
    batch.propose(&shard, &mut results).await;
    core.metrics.count_results(&results);
    results
}

fn check(
    core: &Core,
    shard: &Shard,
    actor: Actor,
    send: Option<mailbox_api::v1::SendRequest>,
) -> Result<CheckedSend, CallError> {
    let send = send.ok_or_else(|| convert::invalid("send is missing"))?;
    let sender = match (actor, send.sender.clone().and_then(|user| user.user)) {
        (Actor::User(id), None) => user_ref::User::Id(id.0),
        (Actor::User(id), Some(user)) => {
            if core.lookup(shard, &user)? != Some(id) {
                let message = format!("the token acts for user {id} only");
                return Err(crate::auth::forbidden(message));
            }
            user_ref::User::Id(id.0)
        }
        (Actor::Cluster, _) => convert::user("sender", send.sender.clone())?,
    };
    CheckedSend::of(send, sender, core.cluster.body_bytes_max.as_usize())
}

/// The commands of one frame and the tags they answer to, in the frame's order.
#[derive(Default)]
struct Batch {
    tags: Vec<u64>,
    commands: Vec<Command>,
}

impl Batch {
    /// Takes in the sends whose users are known and returns the others; with `last`, those are
    /// refused instead.
    fn resolve(
        &mut self,
        core: &Core,
        shard: &Shard,
        sends: Vec<(u64, CheckedSend)>,
        results: &mut Vec<SubmitResult>,
        last: bool,
    ) -> Vec<(u64, CheckedSend)> {
        let mut unknown = Vec::new();
        for (tag, send) in sends {
            match users_of(core, shard, &send) {
                Ok(Ok((sender, recipient))) => {
                    self.tags.push(tag);
                    self.commands.push(send.command(sender, recipient));
                }
                Ok(Err(error)) if last => results.push(refused(tag, error)),
                Ok(Err(_)) => unknown.push((tag, send)),
                Err(error) => results.push(refused(tag, error)),
            }
        }
        unknown
    }

    async fn propose(self, shard: &Shard, results: &mut Vec<SubmitResult>) {
        if self.commands.is_empty() {
            return;
        }
        match shard.propose(self.commands).await {
            Ok(replies) => {
                debug_assert_eq!(replies.len(), self.tags.len());
                let answered = self.tags.into_iter().zip(replies);
                results.extend(answered.map(|(tag, reply)| result_of(tag, reply)));
            }
            Err(error) => {
                let error = status::propose(shard.id().0, error);
                results.extend(refuse_all(self.tags.into_iter(), &error));
            }
        }
    }
}

/// Sender and recipient (0 for a group); the inner error is a handle that nobody has.
#[allow(
    clippy::type_complexity,
    reason = "a fault and an unknown handle part ways at once"
)]
fn users_of(
    core: &Core,
    shard: &Shard,
    send: &CheckedSend,
) -> Result<Result<(UserId, UserId), CallError>, CallError> {
    let Some(sender) = core.lookup(shard, &send.sender)? else {
        return Ok(Err(unknown_user(&send.sender)));
    };
    let recipient = match &send.destination {
        Destination::Group(_) => UserId(0),
        Destination::User(user) => match core.lookup(shard, user)? {
            Some(id) => id,
            None => return Ok(Err(unknown_user(user))),
        },
    };
    Ok(Ok((sender, recipient)))
}

fn result_of(tag: u64, reply: Reply) -> SubmitResult {
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
        Reply::Refused(refusal) => refused(tag, status::refusal(&refusal)),
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
