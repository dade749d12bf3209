//! `Subscribe`: timelines of one shard from a given seq, then live. The first request names the
//! shard, and may want nothing yet; the stream is served by its leader and ends with its term.
//!
//! ```text
//!              ┌── behind: pages from the store ──┐
//!  subscribe ──┤                                  ├──▶ answer queue ──▶ caller
//!              └── live: the tail of each apply ──┘
//! ```
//!
//! A subscription keeps its next seq. A row of the tail below it is dropped (the store gave it
//! already); a row above it, or a tail that this stream was too slow to take, makes the
//! subscription *behind*: it reads the store until it has caught up. Rows are visible in the store
//! before their tail is published, so nothing falls between the two.
//!
//! One task for each stream. While the caller does not read, the task waits and tails are missed,
//! not queued: memory is bounded by the answer queue.

mod subscriptions;

use std::sync::Arc;
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::{
    ErrorCode, SubscribeFrom, SubscribeRequest, SubscribeResponse, SubscriptionEnd, Timeline,
    TimelineHead,
};
use mailbox_engine::{GroupId, Row, Seq, SlotId, TimelineId, TimelineKind};
use mailbox_raft::{AppliedTail, Leadership, Shard};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use crate::convert;
use crate::core::{Actor, Core};
use crate::read::not_a_member;
use crate::status;
use subscriptions::{Pending, Subscriptions};

/// Time between two signs of life; a caller that misses three of its own (1 s each) subscribes
/// anew.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long a caller may take to say which shard a stream is for.
const FIRST_REQUEST_WAIT: Duration = Duration::from_secs(5);
/// Answers that wait for the caller to read them.
const ANSWERS_QUEUED_MAX: usize = 8;
/// Heads in one heartbeat; with more subscriptions they take turns.
const HEADS_PER_HEARTBEAT_MAX: usize = 256;
/// Timelines that one turn of catching up reads.
const CATCH_UP_TIMELINES_MAX: usize = 64;
/// Rows and bytes that one turn of catching up reads from one timeline.
const CATCH_UP_ROWS_MAX: usize = 512;
const CATCH_UP_BYTES_MAX: usize = 256 << 10;

pub(crate) type FeedStream = ReceiverStream<Result<SubscribeResponse, Status>>;

/// Accepts a stream, once this replica may serve reads.
pub(crate) async fn open(
    core: Arc<Core>,
    request: Request<Streaming<SubscribeRequest>>,
) -> Result<Response<FeedStream>, Status> {
    let caller = core.authority.authenticate(request.metadata())?;
    let mut inbound = request.into_inner();
    let first = tokio::time::timeout(FIRST_REQUEST_WAIT, inbound.message()).await;
    let first = match first {
        Ok(first) => first?.ok_or_else(|| convert::invalid("a stream begins with a request"))?,
        Err(_) => {
            let waited = FIRST_REQUEST_WAIT.as_millis();
            let message = format!("no request came on the stream within {waited} ms");
            return Err(convert::invalid(message).into());
        }
    };
    let shard = core.shard(first.shard)?;
    // Tails are taken from before the barrier on: what it waits for may be published meanwhile.
    let tails = shard.subscribe_applied();
    let leadership = shard.watch_leadership();
    let term = core.require_leader(&shard)?;
    core.barrier(&shard).await?;
    let actor = core.actor(caller).await?;
    let (answers, stream) = mpsc::channel(ANSWERS_QUEUED_MAX);
    let span = tracing::debug_span!("subscribe", shard = shard.id().0, term);
    let feed = Feed {
        subscriptions: Subscriptions::of(match actor {
            Actor::Cluster => None,
            Actor::User(user) => Some(user),
        }),
        pending: Pending::default(),
        served: Vec::new(),
        core,
        shard,
        actor,
        term,
        answers,
    };
    tokio::spawn(feed.run(first, inbound, tails, leadership).instrument(span));
    Ok(Response::new(ReceiverStream::new(stream)))
}

/// Why a stream ends.
enum End {
    /// The caller went away or said so.
    Caller,
    /// The caller is told why.
    Told(CallError),
}

impl From<CallError> for End {
    fn from(error: CallError) -> Self {
        Self::Told(error)
    }
}

struct Feed {
    core: Arc<Core>,
    shard: Shard,
    actor: Actor,
    /// The term that the stream belongs to; it ends with it.
    term: u64,
    subscriptions: Subscriptions,
    /// The slots of the shard when it was last looked at.
    served: Vec<SlotId>,
    pending: Pending,
    answers: mpsc::Sender<Result<SubscribeResponse, Status>>,
}

impl Feed {
    async fn run(
        mut self,
        first: SubscribeRequest,
        inbound: Streaming<SubscribeRequest>,
        tails: broadcast::Receiver<Arc<AppliedTail>>,
        leadership: watch::Receiver<Leadership>,
    ) {
        let core = Arc::clone(&self.core);
        let _open = core.metrics.feed_streams.guard();
        let end = match self.change(first).await {
            Ok(()) => self.serve(inbound, tails, leadership).await,
            Err(end) => Err(end),
        };
        core.metrics
            .feed_subscriptions
            .add(-(self.subscriptions.len() as i64));
        if let Err(End::Told(error)) = end {
            tracing::debug!(%error, "subscription stream ends");
            // The caller may be gone; then there is nobody to tell.
            let _ = self.answers.send(Err(error.to_status())).await;
        }
    }

    async fn serve(
        &mut self,
        mut inbound: Streaming<SubscribeRequest>,
        mut tails: broadcast::Receiver<Arc<AppliedTail>>,
        mut leadership: watch::Receiver<Leadership>,
    ) -> Result<(), End> {
        let core = Arc::clone(&self.core);
        let answers = self.answers.clone();
        let mut ticks = tokio::time::interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = core.stopping.cancelled() => {
                    return Err(status::unavailable("the node is shutting down").into());
                }
                () = answers.closed() => return Err(End::Caller),
                changed = leadership.changed() => {
                    if changed.is_err() {
                        return Err(status::unavailable("the replica has stopped").into());
                    }
                    self.check_term(&leadership.borrow_and_update())?;
                }
                request = inbound.message() => match request {
                    Ok(Some(request)) => self.change(request).await?,
                    Ok(None) | Err(_) => return Err(End::Caller),
                },
                tail = tails.recv() => {
                    self.take_tail(tail)?;
                    while !self.pending.is_full() && let Some(tail) = next_now(&mut tails) {
                        self.take_tail(tail)?;
                    }
                }
                _ = ticks.tick() => self.heartbeat().await?,
                // Last, so that it never keeps tails waiting.
                () = std::future::ready(()), if self.subscriptions.any_behind() => {
                    self.catch_up().await?;
                }
            }
            self.flush().await?;
        }
    }

    /// The stream belongs to one term of this node's leadership.
    fn check_term(&self, leadership: &Leadership) -> Result<(), CallError> {
        match leadership {
            Leadership::Leader { term, .. } if *term == self.term => Ok(()),
            Leadership::Leader { .. } => Err(status::unavailable("a new term began")),
            Leadership::Follower { leader, .. } => {
                Err(status::not_leader(self.shard.id().0, leader.clone()))
            }
        }
    }

    /// Subscribes and unsubscribes as the caller asks.
    async fn change(&mut self, request: SubscribeRequest) -> Result<(), End> {
        for timeline in &request.unsubscribe {
            let timeline = convert::timeline(Some(timeline))?;
            if self.subscriptions.remove(timeline) {
                self.core.metrics.feed_subscriptions.dec();
            }
        }
        if request.subscribe.is_empty() {
            return Ok(());
        }
        let max = self.core.limits.subscriptions_per_stream_max as usize;
        for (wanted, place) in self.places(request.subscribe).await? {
            let ended = match place {
                Ok((timeline, next)) if self.subscriptions.len() < max => {
                    if self.subscriptions.add(timeline, next) {
                        self.core.metrics.feed_subscriptions.inc();
                    }
                    continue;
                }
                Ok(_) => {
                    let (max, sent) = (max as u64, max as u64 + 1);
                    status::limit("limits.subscriptions_per_stream_max", max, sent)
                }
                Err(error) => error,
            };
            self.pending.end(SubscriptionEnd {
                timeline: wanted,
                error: Some(ended.0),
            });
        }
        Ok(())
    }

    /// Where each wanted subscription begins, or why it may not.
    #[allow(
        clippy::type_complexity,
        reason = "what was asked, and its place or refusal"
    )]
    async fn places(
        &self,
        wanted: Vec<SubscribeFrom>,
    ) -> Result<Vec<(Option<Timeline>, Result<(TimelineId, Seq), CallError>)>, CallError> {
        let actor = self.actor;
        let core = Arc::clone(&self.core);
        let shard = self.shard.clone();
        self.core
            .read(&self.shard, move |engine| {
                let mut places = Vec::with_capacity(wanted.len());
                let view = core.maps.now();
                for from in wanted {
                    let timeline = convert::timeline(from.timeline.as_ref());
                    let here = timeline.and_then(|timeline| {
                        core.check_shard(&view.shards, &shard, timeline)?;
                        Ok(timeline)
                    });
                    let place =
                        match here.map(|timeline| place(engine, actor, timeline, from.from_seq)) {
                            Ok(placed) => core.elsewhere(placed)?.and_then(|place| place),
                            Err(error) => Err(error),
                        };
                    places.push((from.timeline, place));
                }
                Ok(places)
            })
            .await
    }

    fn take_tail(
        &mut self,
        tail: Result<Arc<AppliedTail>, broadcast::error::RecvError>,
    ) -> Result<(), CallError> {
        match tail {
            Ok(tail) => {
                // A caller that reads slowly must not pin the entries of its rows.
                let detach = self.answers.capacity() < ANSWERS_QUEUED_MAX / 2;
                let rows = self
                    .subscriptions
                    .take(&tail.appended, detach, &mut self.pending);
                self.core.metrics.feed_rows.inc_by(rows);
                Ok(())
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {
                self.core.metrics.feed_rereads.inc();
                self.subscriptions.all_behind();
                Ok(())
            }
            Err(broadcast::error::RecvError::Closed) => {
                Err(status::unavailable("the replica has stopped"))
            }
        }
    }

    /// Ends the subscriptions of slots that have left the shard: the caller makes them anew by the map.
    fn end_moved(&mut self) {
        let served = self.shard.engine().slots();
        if served == self.served {
            return;
        }
        let slot_count = self.core.cluster.slot_count;
        let is_served = |timeline: TimelineId| {
            let slot = timeline.slot(slot_count);
            served.binary_search(&slot).is_ok()
        };
        for timeline in self.subscriptions.remove_unless(is_served) {
            self.core.metrics.feed_subscriptions.dec();
            let words = format!("{timeline} has left shard {}", self.shard.id());
            self.tell_end(timeline, self.core.wrong_shard(words));
        }
        self.served = served;
    }

    /// Ends the subscription of one timeline, the others go on.
    fn end(&mut self, timeline: TimelineId, error: CallError) {
        if self.subscriptions.remove(timeline) {
            self.core.metrics.feed_subscriptions.dec();
        }
        self.tell_end(timeline, error);
    }

    fn tell_end(&mut self, timeline: TimelineId, error: CallError) {
        self.pending.end(SubscriptionEnd {
            timeline: Some(convert::timeline_out(timeline)),
            error: Some(error.0),
        });
    }

    /// Reads the next pages of some subscriptions that are behind.
    async fn catch_up(&mut self) -> Result<(), CallError> {
        self.end_moved();
        let behind = self.subscriptions.next_behind(CATCH_UP_TIMELINES_MAX);
        let core = Arc::clone(&self.core);
        let pages = self
            .core
            .read(&self.shard, move |engine| {
                let mut pages = Vec::with_capacity(behind.len());
                for (timeline, next) in behind {
                    pages.push((timeline, core.elsewhere(page(engine, timeline, next))?));
                }
                Ok(pages)
            })
            .await?;
        for (timeline, page) in pages {
            let (head, page) = match page {
                Ok(page) => page,
                Err(error) => {
                    self.end(timeline, error);
                    continue;
                }
            };
            self.core.metrics.feed_rows.inc_by(page.len() as u64);
            if self
                .subscriptions
                .caught_up(timeline, head, page, &mut self.pending)
            {
                let timeline = Some(convert::timeline_out(timeline));
                self.pending.head(TimelineHead {
                    timeline,
                    head: head.0,
                });
            }
            if self.pending.is_full() {
                self.flush_call().await?;
            }
        }
        Ok(())
    }

    /// A sign of life, given only while a majority still follows this leader: the node's pulse knows, so that
    /// nobody need be asked.
    async fn heartbeat(&mut self) -> Result<(), End> {
        self.check_term(&self.shard.leadership())?;
        self.end_moved();
        for timeline in self.subscriptions.next_heads(HEADS_PER_HEARTBEAT_MAX) {
            let head = self.core.elsewhere(self.shard.engine().head(timeline));
            match head.map_err(|error| status::engine_fault(&error))? {
                Ok(head) => self.pending.head(TimelineHead {
                    timeline: Some(convert::timeline_out(timeline)),
                    head: head.0,
                }),
                Err(error) => self.end(timeline, error),
            }
        }
        self.pending.touch();
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), End> {
        let Some(mut response) = self.pending.take() else {
            return Ok(());
        };
        self.core
            .metrics
            .feed_subscriptions
            .add(-std::mem::take(&mut self.pending.ended_by_leaving));
        response.term = self.term;
        self.answers
            .send(Ok(response))
            .await
            .map_err(|_| End::Caller)
    }

    async fn flush_call(&mut self) -> Result<(), CallError> {
        match self.flush().await {
            Ok(()) => Ok(()),
            Err(End::Told(error)) => Err(error),
            Err(End::Caller) => Err(CallError::new(ErrorCode::Unavailable, "the caller is gone")),
        }
    }
}

/// The head of a timeline, then the rows from `next` on: so that what is appended meanwhile is in later tails.
fn page(
    engine: &mailbox_engine::Shard,
    timeline: TimelineId,
    next: Seq,
) -> Result<(Seq, Vec<Row>), mailbox_engine::Error> {
    let head = engine.head(timeline)?;
    if next > head {
        return Ok((head, Vec::new()));
    }
    let rows = engine.scan(timeline, next, CATCH_UP_ROWS_MAX, CATCH_UP_BYTES_MAX)?;
    Ok((head, rows))
}

/// A tail that is there already.
fn next_now(
    tails: &mut broadcast::Receiver<Arc<AppliedTail>>,
) -> Option<Result<Arc<AppliedTail>, broadcast::error::RecvError>> {
    use broadcast::error::{RecvError, TryRecvError};
    match tails.try_recv() {
        Ok(tail) => Some(Ok(tail)),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Lagged(missed)) => Some(Err(RecvError::Lagged(missed))),
        Err(TryRecvError::Closed) => Some(Err(RecvError::Closed)),
    }
}

/// First seq that a subscription gives; `from` 0 = after the head.
#[allow(
    clippy::type_complexity,
    reason = "a storage fault and a refusal part ways at once"
)]
fn place(
    engine: &mailbox_engine::Shard,
    actor: Actor,
    timeline: TimelineId,
    from: u64,
) -> Result<Result<(TimelineId, Seq), CallError>, mailbox_engine::Error> {
    let head = engine.head(timeline)?;
    let mut first = if from == 0 { head.next() } else { Seq(from) };
    if first > head.next() {
        let message = format!("seq {first} of {timeline} is beyond the head {head}");
        return Ok(Err(CallError::new(ErrorCode::SeqBeyondHead, message)));
    }
    let trim_point = engine.trim_point(timeline)?;
    if first <= trim_point {
        let message = format!("{timeline} is trimmed up to seq {trim_point}");
        return Ok(Err(CallError::new(ErrorCode::Resync, message)));
    }
    if let Actor::User(user) = actor {
        match timeline.kind {
            TimelineKind::Mailbox if timeline.owner == user.0 => {}
            TimelineKind::Mailbox | TimelineKind::DeadLetters => {
                let message = format!("{timeline} is not the mailbox of user {user}");
                return Ok(Err(crate::auth::forbidden(message)));
            }
            TimelineKind::Group => {
                let group = engine.membership(GroupId(timeline.owner), user)?;
                let open = group.and_then(|group| group.spans.last().copied());
                match open.filter(|span| span.is_open()) {
                    Some(span) => first = first.max(span.join),
                    None => return Ok(Err(not_a_member(user, timeline))),
                }
            }
        }
    }
    Ok(Ok((timeline, first)))
}
