//! What peers call: the server's half of the streams in `peer.proto`.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use mailbox_api::peer::control_request::Request as Ask;
use mailbox_api::peer::control_response::Response as Answer;
use mailbox_api::peer::peer_server::{Peer, PeerServer};
use mailbox_api::peer::snapshot_request::Step;
use mailbox_api::peer::snapshot_response::Step as AnswerStep;
use mailbox_api::{metadata, peer};
use mailbox_engine::ShardId;
use openraft::raft::{AppendEntriesRequest, StreamAppendError};
use parking_lot::RwLock;
use subtle::ConstantTimeEq;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::ballot::Ballot;
use crate::clock::{Clock, wall_us};
use crate::election;
use crate::peer_link::{Credentials, PEER_MESSAGE_BYTES_MAX, PEER_PROTOCOL, UNKNOWN_CALL};
use crate::peers::Peers;
use crate::pulse::Pulse;
use crate::read_barrier::ReadBarrier;
use crate::replica::{Raft, Replica, apply_lag};
use crate::slot_copy::{self, Holder, SlotCopies};
use crate::snapshot::{self, Snapshot, SnapshotData, SnapshotPace, raft_meta};
use crate::state_machine::Applier;
use crate::status::RowsWait;
use crate::types::TypeConfig;
use crate::wire;

/// Control calls of one peer that are worked on at once; more wait in the stream.
const CALLS_AT_ONCE: usize = 512;
/// Entries that a replica may have to apply yet and still take over a leadership: some milliseconds' work.
const LEAD_LAG_MAX: u64 = 256;
/// How long a new stream may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves a node's peers. Wrap it with [`PeerService::into_server`] and mount it.
#[derive(Clone)]
pub struct PeerService {
    core: Arc<Core>,
}

struct Core {
    credentials: Credentials,
    peers: Arc<Peers>,
    replicas: RwLock<BTreeMap<u32, Served>>,
    pace: Arc<SnapshotPace>,
    pulse: Arc<Pulse>,
    clock: Arc<Clock>,
    copies: Arc<SlotCopies>,
    /// The node is about to stop.
    leaving: AtomicBool,
}

/// A replica, as peers reach it.
#[derive(Clone)]
struct Served {
    raft: Raft,
    ballot: Arc<Ballot>,
    barrier: ReadBarrier,
    holder: Holder,
    applier: Arc<Applier>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl PeerService {
    pub(crate) fn new(
        credentials: Credentials,
        peers: Arc<Peers>,
        pace: Arc<SnapshotPace>,
        pulse: Arc<Pulse>,
        clock: Arc<Clock>,
        copies: Arc<SlotCopies>,
    ) -> PeerService {
        PeerService {
            core: Arc::new(Core {
                credentials,
                peers,
                replicas: RwLock::default(),
                pace,
                pulse,
                clock,
                copies,
                leaving: AtomicBool::new(false),
            }),
        }
    }

    /// The tonic service, with its message size limits set.
    pub fn into_server(self) -> PeerServer<PeerService> {
        PeerServer::new(self)
            .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX)
    }

    pub(crate) fn add(&self, replica: &Replica) {
        let served = Served {
            raft: replica.raft.clone(),
            ballot: replica.ballot.clone(),
            barrier: replica.barrier.clone(),
            holder: replica.holder(),
            applier: replica.applier.clone(),
        };
        self.core.replicas.write().insert(replica.id.0, served);
    }

    pub(crate) fn remove(&self, shard: ShardId) {
        self.core.replicas.write().remove(&shard.0);
        self.core.copies.forget(Some(shard));
    }

    /// A replica of this node, for whoever needs its rows.
    pub(crate) fn holder(&self, shard: ShardId) -> Option<Holder> {
        let served = self.core.replicas.read().get(&shard.0).cloned();
        served.map(|served| served.holder)
    }

    /// From now on nobody is to hand a leadership over to this node.
    pub(crate) fn leave(&self) {
        self.core.leaving.store(true, Ordering::Release);
    }

    #[cfg(test)]
    pub(crate) fn takes_part(&self, shard: ShardId) -> bool {
        self.core.elector(shard.0).is_ok()
    }

    pub(crate) fn remove_all(&self) {
        self.core.replicas.write().clear();
        self.core.copies.forget(None);
    }
}

impl Served {
    fn elector(self, shard: u32) -> Result<Raft, Status> {
        match self.ballot.refusal() {
            Some(why) => Err(Status::unavailable(format!(
                "the replica of shard {shard} {why}"
            ))),
            None => Ok(self.raft),
        }
    }

    /// Why this replica would not lead now. One that has much to apply, or that cannot go on applying, would hold the
    /// leadership and serve nobody.
    fn refusal_to_lead(self, shard: u32) -> Option<String> {
        let wait = *self.applier.rows_wait.lock();
        if let Some(RowsWait { slot, .. }) = wait {
            return Some(format!("it waits for the rows of slot {slot}"));
        }
        let lag = apply_lag(&self.raft, &self.holder.engine);
        if lag > LEAD_LAG_MAX {
            return Some(format!("it has {lag} entries to apply first"));
        }
        let refusal = self.elector(shard).err();
        refusal.map(|status| status.message().to_owned())
    }
}

impl Core {
    fn served(&self, shard: u32) -> Result<Served, Status> {
        let served = self.replicas.read().get(&shard).cloned();
        served.ok_or_else(|| Status::unavailable(format!("shard {shard} does not run here")))
    }

    fn replica(&self, shard: u32) -> Result<Raft, Status> {
        self.served(shard).map(|served| served.raft)
    }

    /// The replica, if it may take part in elections.
    fn elector(&self, shard: u32) -> Result<Raft, Status> {
        let served = self.served(shard)?;
        served.elector(shard)
    }

    /// Why this node would not lead a shard now; nothing if it would.
    fn refusal_to_lead(&self, shard: u32) -> Option<String> {
        if self.leaving.load(Ordering::Acquire) {
            return Some("it is about to stop".to_owned());
        }
        let refusal = match self.served(shard) {
            Ok(served) => served.refusal_to_lead(shard),
            Err(status) => Some(status.message().to_owned()),
        };
        refusal.or_else(|| self.clock.fault().map(|fault| fault.to_string()))
    }

    /// Why this node would not take a snapshot of a shard now; nothing if it would.
    fn refusal_of_snapshot(&self, shard: u32) -> Option<String> {
        match self.served(shard) {
            Ok(_) => self.pace.refusal_to_receive(),
            Err(status) => Some(status.message().to_owned()),
        }
    }

    /// Whether a stream's other end is still one of the nodes.
    fn check_peer(&self, from: u64) -> Result<(), Status> {
        if self.peers.is_peer(from) {
            return Ok(());
        }
        let own = self.credentials.node;
        Err(Status::failed_precondition(format!(
            "node {from} is not a peer of node {own}"
        )))
    }

    /// The cluster and its secret, before anything of the stream is read.
    fn check_caller<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let fields = request.metadata();
        let cluster = fields.get(metadata::CLUSTER_ID).map(|id| id.as_bytes());
        if cluster != Some(self.credentials.cluster_id.as_bytes()) {
            return Err(Status::unauthenticated("wrong cluster id"));
        }
        let shown = fields
            .get(metadata::CLUSTER_SECRET)
            .map_or(&b""[..], |secret| secret.as_bytes());
        let same = shown.ct_eq(self.credentials.secret().as_bytes());
        if !bool::from(same) {
            return Err(Status::unauthenticated("wrong cluster secret"));
        }
        Ok(())
    }

    fn check_hello(&self, hello: Option<peer::Hello>) -> Result<peer::Hello, Status> {
        let hello =
            hello.ok_or_else(|| Status::invalid_argument("a stream begins with a hello"))?;
        let (own, from) = (self.credentials.node, hello.from_node);
        if hello.protocol != PEER_PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "peer protocol {}, this node speaks {PEER_PROTOCOL}",
                hello.protocol
            )));
        }
        if hello.cluster_id != self.credentials.cluster_id {
            return Err(Status::unauthenticated("wrong cluster id"));
        }
        if hello.to_node != own {
            return Err(Status::failed_precondition(format!(
                "this is node {own}, not node {}",
                hello.to_node
            )));
        }
        self.check_peer(from)?;
        Ok(hello)
    }

    /// A vote, unless the shard has a leader that lives: then it is refused as a pre-vote is. openraft's own
    /// lease is not asked, see `pulse`.
    async fn vote(&self, call: peer::VoteCall) -> Result<peer::VoteReply, Status> {
        let shard = call.shard;
        let served = self.served(shard)?;
        let ballot = served.ballot.clone();
        let raft = served.elector(shard)?;
        let mut request = wire::vote_request_in(call).map_err(malformed)?;
        let (candidate, term) = (
            request.vote.leader_id.voted_for,
            request.vote.leader_id.term,
        );
        let transfer = request.leadership_transfer;
        let turn = ballot.turn().await;
        let barred = turn.bars(candidate, term, transfer);
        if barred || (!transfer && self.pulse.would_depose(shard, candidate)) {
            return election::answer_pre_vote(&raft, &request, true)
                .await
                .map_err(|error| Status::unavailable(error.to_string()));
        }
        request.leadership_transfer = true;
        let response = raft.vote(request).await;
        let response = response.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(wire::vote_response_out(&response))
    }

    /// Follows a leader, and promises it what this node promises.
    async fn heartbeat(&self, call: peer::Heartbeat) -> Result<peer::AppendResponse, Status> {
        let Served { raft, ballot, .. } = self.served(call.shard)?;
        let previous = call.previous.map(wire::log_id_in);
        let vote = wire::vote_in(call.vote).map_err(malformed)?;
        let request = AppendEntriesRequest {
            vote,
            prev_log_id: previous,
            entries: Vec::new(),
            leader_commit: call.committed.map(wire::log_id_in),
        };
        let mut turn = ballot.turn().await;
        let response = raft.append_entries(request).await;
        let response = response.map_err(|error| Status::unavailable(error.to_string()))?;
        let result = response.into_stream_result(previous, previous);
        let is_followed = !matches!(result, Err(StreamAppendError::HigherVote(_)));
        let leader = vote.leader_id;
        let promise = is_followed.then(|| turn.promise(leader.term, leader.voted_for));
        let promise_ms = promise.flatten().map_or(0, |promise| promise.as_millis());
        Ok(peer::AppendResponse {
            promise_ms: u32::try_from(promise_ms).unwrap_or(u32::MAX),
            ..wire::result_out(result)
        })
    }

    async fn control_call(&self, from: u64, ask: Ask) -> Result<Answer, Status> {
        let fatal = |error: &dyn std::fmt::Display| Status::unavailable(error.to_string());
        Ok(match ask {
            Ask::Hello(_) => return Err(Status::invalid_argument("a second hello")),
            Ask::Pulse(pulse) => Answer::Pulse(self.pulse.take(from, pulse)),
            Ask::Vote(call) => Answer::Vote(self.vote(call).await?),
            Ask::PreVote(call) => {
                let shard = call.shard;
                let served = self.served(shard)?;
                let ballot = served.ballot.clone();
                let raft = served.elector(shard)?;
                let request = wire::vote_request_in(call).map_err(malformed)?;
                let leader = request.vote.leader_id;
                let (candidate, term) = (leader.voted_for, leader.term);
                let barred = ballot.turn().await.bars(candidate, term, false);
                let refuse = barred || self.pulse.would_depose(shard, candidate);
                let reply = election::answer_pre_vote(&raft, &request, refuse).await;
                Answer::Vote(reply.map_err(|error| fatal(&error))?)
            }
            Ask::Heartbeat(call) => Answer::Heartbeat(self.heartbeat(call).await?),
            Ask::Transfer(call) => {
                let raft = self.elector(call.shard)?;
                let request = wire::transfer_in(call).map_err(malformed)?;
                let response = raft
                    .handle_transfer_leader(request)
                    .await
                    .map_err(|error| fatal(&error))?;
                Answer::Transfer(wire::transfer_response_out(response))
            }
            Ask::ReadIndex(peer::ReadIndex { shard }) => {
                let barrier = self.served(shard)?.barrier;
                let passed = barrier.pass().await.map_err(|error| fatal(&error))?;
                Answer::ReadIndex(peer::ReadIndexReply {
                    index: passed.index,
                })
            }
            Ask::MayLead(peer::MayLead { shard }) => Answer::MayLead(peer::MayLeadReply {
                refusal: self.refusal_to_lead(shard).unwrap_or_default(),
            }),
            Ask::TakesSnapshot(peer::TakesSnapshot { shard }) => {
                Answer::TakesSnapshot(peer::TakesSnapshotReply {
                    refusal: self.refusal_of_snapshot(shard).unwrap_or_default(),
                })
            }
            Ask::Clock(peer::ClockProbe {}) => {
                Answer::Clock(peer::ClockReply { wall_us: wall_us() })
            }
        })
    }

    async fn receive(
        &self,
        begin: peer::SnapshotBegin,
        raft: Raft,
        mut steps: Streaming<peer::SnapshotRequest>,
    ) -> Result<peer::Vote, String> {
        let vote = wire::vote_in(begin.vote).map_err(|error| error.to_string())?;
        let received = snapshot::receive(&begin, &mut steps, &self.pace).await?;
        let meta = raft_meta(&received.meta).map_err(|error| error.to_string())?;
        let snapshot = Snapshot {
            meta,
            snapshot: SnapshotData::Received(received),
        };
        let response = raft.install_full_snapshot(vote, snapshot).await;
        let response = response.map_err(|error| error.to_string())?;
        Ok(wire::vote_out(&response.vote))
    }
}

fn malformed(error: wire::Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

async fn first<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    let message = tokio::time::timeout(HELLO_TIMEOUT, stream.message());
    let message = message
        .await
        .map_err(|_| Status::deadline_exceeded("no hello"))??;
    message.ok_or_else(|| Status::invalid_argument("a stream begins with a hello"))
}

/// The stream's requests until it ends; a malformed one ends it, and so does a peer that is none any more.
fn append_requests(
    core: Arc<Core>,
    from: u64,
    stream: Streaming<peer::AppendRequest>,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static {
    stream::unfold((core, stream), move |(core, mut stream)| async move {
        match stream.message().await {
            Ok(Some(_)) if !core.peers.is_peer(from) => None,
            Ok(Some(message)) => match wire::append_in(message) {
                Ok(request) => Some((request, (core, stream))),
                Err(error) => {
                    tracing::warn!(%error, "append stream dropped");
                    None
                }
            },
            Ok(None) => None,
            Err(status) => {
                tracing::debug!(%status, "append stream broke");
                None
            }
        }
    })
}

#[tonic::async_trait]
impl Peer for PeerService {
    type ControlStream = Answers<peer::ControlResponse>;
    type AppendStream = Answers<peer::AppendResponse>;
    type SnapshotStream = Answers<peer::SnapshotResponse>;
    type SlotRowsStream = Answers<peer::SnapshotRequest>;

    async fn control(
        &self,
        request: Request<Streaming<peer::ControlRequest>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        self.core.check_caller(&request)?;
        let mut calls = request.into_inner();
        let hello = match first(&mut calls).await?.request {
            Some(Ask::Hello(hello)) => Some(hello),
            _ => None,
        };
        let from = self.core.check_hello(hello)?.from_node;
        let core = self.core.clone();
        let answers = calls
            .map(move |message| {
                let core = core.clone();
                async move {
                    let peer::ControlRequest { call, request } = message?;
                    core.check_peer(from)?;
                    let answer = match request {
                        Some(ask) => core.control_call(from, ask).await,
                        None => Err(Status::unimplemented(UNKNOWN_CALL)),
                    };
                    let answer =
                        answer.unwrap_or_else(|status| Answer::Error(status.message().to_owned()));
                    Ok(peer::ControlResponse {
                        call,
                        response: Some(answer),
                    })
                }
            })
            .buffer_unordered(CALLS_AT_ONCE);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn append(
        &self,
        request: Request<Streaming<peer::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        self.core.check_caller(&request)?;
        let mut requests = request.into_inner();
        let hello = self.core.check_hello(first(&mut requests).await?.hello)?;
        let raft = self.core.replica(hello.shard)?;
        let requests = append_requests(self.core.clone(), hello.from_node, requests);
        let results = raft.stream_append(requests);
        let answers = results.map(|result| match result {
            Ok(result) => Ok(wire::result_out(result)),
            Err(fatal) => Err(Status::unavailable(fatal.to_string())),
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<peer::SnapshotRequest>>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.core.check_caller(&request)?;
        let mut steps = request.into_inner();
        let Some(Step::Begin(mut begin)) = first(&mut steps).await?.step else {
            return Err(Status::invalid_argument(
                "a snapshot begins with its description",
            ));
        };
        let hello = self.core.check_hello(begin.hello.take())?;
        let raft = self.core.replica(hello.shard)?;
        let (answers, outgoing) = mpsc::channel(2);
        let resume = AnswerStep::Resume(peer::SnapshotResume {
            bytes: vec![0; begin.files.len()],
        });
        let core = self.core.clone();
        tokio::spawn(async move {
            let answer = |step| peer::SnapshotResponse { step: Some(step) };
            if answers.send(Ok(answer(resume))).await.is_err() {
                return;
            }
            let installed = core.receive(begin, raft, steps).await;
            let last = match installed {
                Ok(vote) => Ok(answer(AnswerStep::Installed(vote))),
                Err(reason) => {
                    tracing::warn!(
                        shard = hello.shard,
                        peer = hello.from_node,
                        reason,
                        "snapshot not taken"
                    );
                    Err(Status::aborted(reason))
                }
            };
            // A sender that has gone starts again.
            let _ = answers.send(last).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn slot_rows(
        &self,
        request: Request<peer::SlotRowsRequest>,
    ) -> Result<Response<Self::SlotRowsStream>, Status> {
        self.core.check_caller(&request)?;
        let mut ask = request.into_inner();
        let hello = self.core.check_hello(ask.hello.take())?;
        let ask = slot_copy::Ask::decode(hello.shard, &ask).map_err(Status::invalid_argument)?;
        let holder = self.core.served(hello.shard)?.holder;
        let (steps, outgoing) = mpsc::channel(2);
        let core = self.core.clone();
        tokio::spawn(async move {
            let (copies, pace) = (&core.copies, &core.pace);
            let sent = slot_copy::send(&holder, copies, pace, ask, steps.clone()).await;
            if let Err(reason) = sent {
                tracing::debug!(
                    shard = hello.shard,
                    slot = ask.slot.0,
                    reason,
                    "rows not sent"
                );
                // A caller that has gone asks again.
                let _ = steps.send(Err(Status::aborted(reason))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}
