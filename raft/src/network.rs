//! openraft's view of the peers.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use mailbox_api::peer;
use mailbox_api::peer::control_request::Request as Ask;
use mailbox_api::peer::control_response::Response as Answer;
use openraft::error::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::EmptyNode;
use openraft::network::{RPCOption, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use parking_lot::Mutex;

use crate::filling::Filling;
use crate::late_commits::late_commits;
use crate::learner_pace::{Gain, LearnerPace, Way};
use crate::lease::Lease;
use crate::moment::Moment;
use crate::peer_link::Link;
use crate::peers::Peers;
use crate::pulse::Pulse;
use crate::snapshot::{self, Snapshot, SnapshotData, SnapshotPace};
use crate::types::{NodeId, TypeConfig, Vote};
use crate::wire;

/// How long a peer may take to accept a stream, from when it is there.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a stream waits for a peer that is away before it is tried all the same. It is opened as soon as the peer
/// is back; what it holds of a replica that has stopped meanwhile is let go no later than this.
const AWAY_WAIT: Duration = Duration::from_secs(1);

/// Makes the connections of one shard's replica.
pub(crate) struct Network {
    pub(crate) shard: u32,
    pub(crate) peers: Arc<Peers>,
    pub(crate) pace: Arc<SnapshotPace>,
    pub(crate) learner_pace: Arc<LearnerPace>,
    /// Knows who is a learner.
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) filling: Arc<Filling>,
    pub(crate) lease: Arc<Lease>,
}

impl Network {
    fn conn(&self, target: NodeId, heartbeat: bool) -> Conn {
        Conn {
            shard: self.shard,
            target,
            peers: self.peers.clone(),
            heartbeat,
            pace: self.pace.clone(),
            learner_pace: self.learner_pace.clone(),
            pulse: self.pulse.clone(),
            gain: Arc::default(),
            filling: self.filling.clone(),
            lease: self.lease.clone(),
            refused: Mutex::default(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Conn;

    async fn new_client(&mut self, target: NodeId, _: &EmptyNode) -> Conn {
        self.conn(target, false)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, _: &EmptyNode) -> Conn {
        self.conn(target, true)
    }
}

/// One shard's way to one peer.
pub(crate) struct Conn {
    shard: u32,
    target: NodeId,
    peers: Arc<Peers>,
    heartbeat: bool,
    pace: Arc<SnapshotPace>,
    learner_pace: Arc<LearnerPace>,
    pulse: Arc<Pulse>,
    /// Of the peer, while it is a learner.
    gain: Arc<Mutex<Gain>>,
    filling: Arc<Filling>,
    lease: Arc<Lease>,
    /// Why the last append stream was not opened, if it was not: told once, not at each attempt.
    refused: Mutex<Option<String>>,
}

/// Unreachable makes openraft back off; a plain network error is tried again at once, ten times.
fn unreachable(reason: impl std::fmt::Display) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(reason.to_string()))
}

impl Conn {
    /// Asked for at every call: the peer may have moved.
    fn link(&self) -> Result<Arc<Link>, RPCError<TypeConfig>> {
        let link = self.peers.link(self.target);
        link.ok_or_else(|| unreachable(format!("node {} is not known", self.target)))
    }

    async fn call(&self, ask: Ask, option: &RPCOption) -> Result<Answer, RPCError<TypeConfig>> {
        let answer = self.link()?.call(ask, option.hard_ttl()).await;
        answer.map_err(unreachable)
    }

    async fn open_append<S>(
        &self,
        input: S,
    ) -> Result<tonic::Streaming<peer::AppendResponse>, RPCError<TypeConfig>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static,
    {
        let link = self.link()?;
        // It is tried in either case: that there is a control stream proves little, and that there is none less.
        let _ = tokio::time::timeout(AWAY_WAIT, link.connected()).await;
        let hello = peer::AppendRequest {
            hello: Some(link.hello(self.shard)),
            ..peer::AppendRequest::default()
        };
        let messages = link.messages();
        let requests = stream::iter([hello]).chain(input.map(wire::append_out));
        let requests = requests.inspect(move |_| {
            messages.fetch_add(1, Ordering::Relaxed);
        });
        let mut client = link.append_client();
        let opened = client.append(link.sign(requests));
        let refused = match tokio::time::timeout(OPEN_TIMEOUT, opened).await {
            Ok(Ok(answers)) => {
                *self.refused.lock() = None;
                return Ok(answers.into_inner());
            }
            Ok(Err(status)) => status.to_string(),
            Err(_) => format!("node {} accepts no append stream", self.target),
        };
        self.tell(&link, &refused);
        Err(unreachable(refused))
    }

    fn way(&self) -> Way<impl Fn() -> bool + Send + Sync + 'static> {
        let (pulse, shard, target) = (self.pulse.clone(), self.shard, self.target);
        Way {
            pace: self.learner_pace.clone(),
            is_to_learner: move || pulse.has_learner(shard, target),
            gain: self.gain.clone(),
        }
    }

    /// That a peer is away is told by its link; this is of one that is there and does not take this shard's entries.
    fn tell(&self, link: &Link, refused: &str) {
        let mut last = self.refused.lock();
        if link.is_connected() && last.as_deref() != Some(refused) {
            let (peer, shard) = (self.target, self.shard);
            tracing::info!(peer, shard, refused, "the peer takes no entries yet");
            *last = Some(refused.to_owned());
        }
    }
}

fn unexpected(answer: &Answer) -> RPCError<TypeConfig> {
    unreachable(format!("unexpected answer {answer:?}"))
}

impl RaftNetworkV2<TypeConfig> for Conn {
    type SnapshotData = SnapshotData;

    /// A shard's own heartbeat: asked for by a read, or by a leader that was quiet for long. Entries go through
    /// [`Self::stream_append`].
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        if !request.entries.is_empty() {
            return Err(unreachable("entries travel on the append stream"));
        }
        let call = peer::Heartbeat {
            shard: self.shard,
            vote: Some(wire::vote_out(&request.vote)),
            previous: request.prev_log_id.map(wire::log_id_out),
            committed: request.leader_commit.map(wire::log_id_out),
        };
        // What the answer promises is counted from before the question is on its way.
        let sent_at = Moment::now();
        match self.call(Ask::Heartbeat(call), &option).await? {
            Answer::Heartbeat(answer) => {
                let promise = Duration::from_millis(answer.promise_ms.into());
                let result = wire::result_in(answer).map_err(unreachable)?;
                let is_followed = !matches!(result, Err(StreamAppendError::HigherVote(_)));
                if is_followed && !promise.is_zero() {
                    let term = request.vote.leader_id.term;
                    self.lease.promised(self.target, term, sent_at, promise);
                }
                Ok(result.into())
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Many requests in flight; HTTP/2's windows are the credit.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.heartbeat {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let mut input = input;
            // openraft waits out its backoff in the request stream: a stream that is opened before it
            // is read would be opened again and again, without a pause, while the peer is away.
            let Some(first) = input.next().await else {
                return Ok(stream::empty().boxed());
            };
            let requests = stream::iter([first]).chain(late_commits(input));
            let requests = self.way().paced(requests.boxed());
            let answers = self.open_append(requests).await?;
            let results = answers.map(|answer| match answer {
                Ok(answer) => wire::result_in(answer).map_err(unreachable),
                Err(status) => Err(unreachable(status)),
            });
            Ok(results.boxed())
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let call = wire::vote_request_out(self.shard, &request);
        match self.call(Ask::Vote(call), &option).await? {
            Answer::Vote(reply) => wire::vote_response_in(reply).map_err(unreachable),
            other => Err(unexpected(&other)),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let call = wire::vote_request_out(self.shard, &request);
        match self.call(Ask::PreVote(call), &option).await? {
            Answer::Vote(reply) => wire::vote_response_in(reply).map_err(unreachable),
            other => Err(unexpected(&other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let Some(link) = self.peers.link(self.target) else {
            let reason = format!("node {} is not known", self.target);
            return Err(Unreachable::from_string(reason).into());
        };
        let sending = self.filling.begin(self.target);
        let sent = snapshot::send(&link, self.shard, vote, snapshot, &self.pace);
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = sent => match sent {
                Ok(vote) => {
                    sending.installed();
                    Ok(SnapshotResponse::new(vote))
                }
                Err(reason) => {
                    tracing::warn!(peer = self.target, shard = self.shard, %reason, "snapshot not sent");
                    Err(Unreachable::from_string(reason).into())
                }
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let call = wire::transfer_out(self.shard, &request);
        match self.call(Ask::Transfer(call), &option).await? {
            Answer::Transfer(reply) => {
                wire::transfer_response_in(&request, reply).map_err(unreachable)
            }
            other => Err(unexpected(&other)),
        }
    }
}
