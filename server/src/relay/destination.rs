//! Where items arrive: shipments of other nodes' relays, and of this node's own, into commands.
//!
//! Nothing is decided here: the mark of a lane is looked at in apply only. A shipment is proposed
//! as one call, so that it is in one entry and costs one answer.

use std::sync::Arc;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use mailbox_api::CallError;
use mailbox_api::peer::lanes_server::Lanes;
use mailbox_api::peer::{
    DeliverFrame, DeliverReply, LaneRun, RunRefusal, Shipment, ShipmentFault, ShipmentReply,
};
use mailbox_api::v1::ErrorCode;
use mailbox_engine::{Command, Deliver, Items, LaneId, Reply, SlotId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::outgoing::{FRAME_BYTES_FULL, FRAME_ITEMS_MAX};
use crate::convert;
use crate::core::Core;
use crate::status;

/// Shipments of one stream that are not answered yet; more are not read from the socket.
const SHIPMENTS_IN_FLIGHT_MAX: usize = 256;
/// Answers that wait for the relay to read them.
const ANSWERS_QUEUED_MAX: usize = 64;
/// Bytes of one item at most: a relay's frame may be over its limit by one.
const ITEM_BYTES_MAX: usize = 2 << 20;
/// Greatest frame that is read from a socket.
pub(crate) const FRAME_ENCODED_MAX: usize = 4 << 20;

const _: () = assert!(FRAME_BYTES_FULL + ITEM_BYTES_MAX + FRAME_ITEMS_MAX * 64 < FRAME_ENCODED_MAX);

/// The service that relays of other nodes call.
pub(crate) struct LanesService {
    core: Arc<Core>,
}

impl LanesService {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl Lanes for LanesService {
    type DeliverStream = ReceiverStream<Result<DeliverReply, Status>>;

    async fn deliver(
        &self,
        request: Request<Streaming<DeliverFrame>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let authority = &self.core.authority;
        let proven = authority.require_cluster(request.metadata());
        proven.map_err(|error| error.to_status())?;
        let (answers, stream) = mpsc::channel(ANSWERS_QUEUED_MAX);
        let (core, frames) = (Arc::clone(&self.core), request.into_inner());
        tokio::spawn(async move {
            if let Some(error) = serve(core, frames, answers.clone(), Ok).await {
                // Nobody waits for it: the stream ends with the reason or is gone.
                let _ = answers.send(Err(error.to_status())).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Takes frames until they end or the node stops. Gives what was wrong with the last one.
pub(super) async fn serve<T>(
    core: Arc<Core>,
    mut frames: impl Stream<Item = Result<DeliverFrame, Status>> + Unpin,
    answers: mpsc::Sender<T>,
    answer: impl Fn(DeliverReply) -> T,
) -> Option<CallError> {
    let mut in_flight = FuturesUnordered::new();
    let mut stopped = std::pin::pin!(core.stopping.cancelled());
    let mut ended = false;
    while !ended || !in_flight.is_empty() {
        tokio::select! {
            Some(reply) = in_flight.next(), if !in_flight.is_empty() => {
                let mut shipments = vec![reply];
                // What was applied together is answered together.
                while let Some(Some(more)) = in_flight.next().now_or_never() {
                    shipments.push(more);
                }
                if answers.send(answer(DeliverReply { shipments })).await.is_err() {
                    return None;
                }
            }
            frame = frames.next(), if !ended && in_flight.len() < SHIPMENTS_IN_FLIGHT_MAX => match frame {
                Some(Ok(frame)) => {
                    if let Err(error) = check(&frame) {
                        return Some(error);
                    }
                    for shipment in frame.shipments {
                        in_flight.push(deliver(&core, shipment));
                    }
                }
                Some(Err(_)) => return None,
                // What came before the end is still answered.
                None => ended = true,
            },
            () = &mut stopped => {
                return Some(status::unavailable("the node is shutting down"));
            }
        }
    }
    None
}

/// What no relay of ours sends.
fn check(frame: &DeliverFrame) -> Result<(), CallError> {
    let runs = || frame.shipments.iter().flat_map(|shipment| &shipment.runs);
    let bytes: usize = runs().map(|run| run.items.len()).sum();
    for (name, max, sent) in [
        ("runs of a frame", FRAME_ITEMS_MAX, runs().count()),
        (
            "shipments of a frame",
            FRAME_ITEMS_MAX,
            frame.shipments.len(),
        ),
        (
            "bytes of a frame's items",
            FRAME_BYTES_FULL + ITEM_BYTES_MAX,
            bytes,
        ),
    ] {
        if sent > max {
            return Err(status::limit(name, max as u64, sent as u64));
        }
    }
    Ok(())
}

/// Proposes a shipment and tells the marks.
async fn deliver(core: &Core, shipment: Shipment) -> ShipmentReply {
    let id = shipment.id;
    #[cfg(feature = "planted")]
    if let Some(early) = planted_answer(core, &shipment).await {
        return early;
    }
    fail::fail_point!("delivery_propose", |_| std::process::abort());
    let replies = propose(core, shipment).await;
    fail::fail_point!("delivery_answer", |_| std::process::abort());
    match replies {
        Ok(replies) => answer_of(id, replies),
        Err(CallError(error)) => ShipmentReply {
            id,
            fault: Some(ShipmentFault {
                code: code(error.code),
                message: error.message,
                leader_node: error.leader_node,
                leader_address: error.leader_address,
            }),
            ..ShipmentReply::default()
        },
    }
}

/// A slow shipment, which a later one overtakes; or an answer to one that is not in the log yet.
#[cfg(feature = "planted")]
async fn planted_answer(core: &Core, shipment: &Shipment) -> Option<ShipmentReply> {
    if mailbox_planted::is_now_and_then("lane-retry-in-parallel", 100) {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    if !mailbox_planted::is("lane-mark-early") {
        return None;
    }
    let marks = shipment.runs.iter().map(|run| {
        let items = Items::from_bytes(run.items.clone());
        run.first_seq + (items.count() as u64) - 1
    });
    let marks = marks.collect();
    let shard = core.shard(shipment.shard).ok()?;
    let commands: Option<Vec<Command>> = shipment.runs.iter().cloned().map(command).collect();
    tokio::spawn(async move { shard.propose_lanes(commands?).await.ok() });
    Some(ShipmentReply {
        id: shipment.id,
        marks,
        ..ShipmentReply::default()
    })
}

async fn propose(core: &Core, shipment: Shipment) -> Result<Vec<Reply>, CallError> {
    let shard = core.shard(shipment.shard)?;
    let commands: Option<Vec<Command>> = shipment.runs.into_iter().map(command).collect();
    let commands = commands.ok_or_else(|| convert::invalid("a slot is above 65,535"))?;
    let proposed = shard.propose_lanes(commands).await;
    proposed.map_err(|error| status::propose(shipment.shard, error))
}

fn command(run: LaneRun) -> Option<Command> {
    let slot = |slot: u32| u16::try_from(slot).ok().map(SlotId);
    Some(Command::Deliver(Deliver {
        lane: LaneId {
            source: slot(run.source)?,
            source_incarnation: run.source_incarnation,
            destination: slot(run.destination)?,
            destination_incarnation: run.destination_incarnation,
        },
        first_seq: run.first_seq,
        items: Items::from_bytes(run.items),
    }))
}

fn answer_of(id: u64, replies: Vec<Reply>) -> ShipmentReply {
    let mut answer = ShipmentReply {
        id,
        marks: Vec::with_capacity(replies.len()),
        ..ShipmentReply::default()
    };
    for (run, reply) in (0_u32..).zip(replies) {
        let mut refuse = |code: i32, message| {
            let code = self::code(code);
            let refusal = RunRefusal { run, code, message };
            answer.refused.push(refusal);
        };
        let mark = match reply {
            Reply::Delivered { mark, corrupt, .. } => {
                if corrupt.is_some() {
                    answer.corrupt.push(run);
                }
                mark
            }
            Reply::Refused(refusal) => {
                let CallError(error) = status::refusal(&refusal);
                refuse(error.code, error.message);
                0
            }
            other => {
                let CallError(error) = status::wrong_reply(&other);
                refuse(error.code, error.message);
                0
            }
        };
        answer.marks.push(mark);
    }
    answer
}

fn code(code: i32) -> u32 {
    u32::try_from(code).unwrap_or(ErrorCode::Internal as u32)
}
