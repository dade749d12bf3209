//! Follows one shard's leader for a subscription, from stream to stream.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use mailbox_api::CallError;
use mailbox_api::v1::{ErrorCode, SubscribeRequest, SubscribeResponse, Timeline};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Streaming;

use crate::client::Inner;
use crate::node::Node;
use crate::pending::{Break, Failure};
use crate::retry::{Advice, Backoff, advice};
use crate::subscribe::{SubscribeEvent, Subscription};
use crate::wanted::Wanted;

/// Missed heartbeats after which a stream is given up.
const HEARTBEATS_MISSED_MAX: u32 = 3;

/// Until a timeline is asked for again whose slot was on the move.
const PARKED_WAIT: Duration = Duration::from_millis(100);

/// The requests of one stream. There is one at once: a node opens no stream before it knows the shard.
struct Requests {
    wanted: Arc<Wanted>,
    stream: u64,
    shard: u32,
    begun: bool,
}

impl Stream for Requests {
    type Item = SubscribeRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let request = match self.wanted.poll_request(self.stream, context) {
            // What the stream was begun for is not wanted any more, which is no fault of the node.
            Poll::Pending if !self.begun => Some(SubscribeRequest::default()),
            Poll::Pending => return Poll::Pending,
            Poll::Ready(request) => request,
        };
        self.begun = true;
        Poll::Ready(request.map(|request| SubscribeRequest {
            shard: self.shard,
            ..request
        }))
    }
}

/// The task of one (subscription, shard).
pub(crate) struct Follower {
    pub(crate) client: Arc<Inner>,
    pub(crate) shard: u32,
    pub(crate) wanted: Arc<Wanted>,
    /// The other shards of the subscription.
    pub(crate) subscription: Weak<Subscription>,
    pub(crate) events: mpsc::Sender<SubscribeEvent>,
    /// Greatest term seen: a stream with a smaller one comes from a leader that has been replaced.
    pub(crate) term: u64,
}

/// Why a stream is over.
enum End {
    /// Nobody listens any more.
    Closed,
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Follower {
    pub(crate) async fn run(mut self) {
        let events = self.events.clone();
        tokio::select! {
            () = events.closed() => self.wanted.close(),
            () = self.follow() => {}
        }
    }

    async fn follow(&mut self) {
        let mut backoff = Backoff::endless(&self.client.options.timeouts);
        while self.wanted.filled().await {
            let node = self.client.router.leader(self.shard);
            let begun = Instant::now();
            let End::Failed(failure) = self.follow_on(&node).await else {
                return;
            };
            tracing::debug!(shard = self.shard, node = node.address(), error = %failure.error,
                "a subscribe stream ended");
            if begun.elapsed() > self.client.options.timeouts.backoff_max * 4 {
                backoff = Backoff::endless(&self.client.options.timeouts);
            }
            if self.client.router.learn(self.shard, &node, &failure).0 == Advice::GiveUp {
                for timeline in self.wanted.remove_all() {
                    let error = failure.error.clone();
                    if self
                        .hand_over(Some(SubscribeEvent::Ended { timeline, error }))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            }
            backoff.wait(&failure.error).await;
            let patience = Instant::now() + self.client.options.timeouts.attempt;
            self.client.learn_map(&node, &failure.error, patience).await;
            self.let_go();
        }
    }

    /// Gives away what the map places elsewhere by now. A shard that was retired says nothing of its timelines any more:
    /// nobody is left who could.
    fn let_go(&self) {
        for timeline in self.wanted.unless(|timeline| self.belongs(timeline)) {
            self.give_away(&timeline);
        }
    }

    /// One stream, until it fails.
    async fn follow_on(&mut self, node: &Node) -> End {
        match self.read_stream(node).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn read_stream(&mut self, node: &Node) -> Result<std::convert::Infallible, End> {
        let timeouts = self.client.options.timeouts.clone();
        let mut responses = self.open(node).await?;
        let mut seen = Instant::now();
        let mut watch = tokio::time::interval(timeouts.heartbeat / 2);
        watch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut parked = tokio::time::interval(PARKED_WAIT);
        parked.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                response = responses.message() => {
                    match response {
                        Ok(Some(response)) => self.take(node, response).await?,
                        Ok(None) if self.wanted.is_closed() => return Err(End::Closed),
                        Ok(None) => return Err(broken(Break::Gone, "the node ended the stream")),
                        Err(status) => return Err(Failure::from_status(&status).into()),
                    }
                    // A slow receiver is no silence of the node.
                    seen = Instant::now();
                }
                _ = parked.tick(), if self.wanted.any_parked() => self.unpark(),
                _ = watch.tick() => {
                    if self.wanted.is_closed() {
                        return Err(End::Closed);
                    }
                    if seen.elapsed() > timeouts.heartbeat * HEARTBEATS_MISSED_MAX {
                        return Err(broken(Break::Silent, "the node missed three heartbeats"));
                    }
                }
            }
        }
    }

    async fn open(&self, node: &Node) -> Result<Streaming<SubscribeResponse>, End> {
        let stream = self.wanted.begin_stream();
        let requests = Requests {
            wanted: Arc::clone(&self.wanted),
            stream,
            shard: self.shard,
            begun: false,
        };
        let mut mailbox = node.mailbox();
        let opened = mailbox.subscribe(requests);
        match tokio::time::timeout(self.client.options.timeouts.attempt, opened).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Failure::from_status(&status).into()),
            Err(_) => Err(broken(Break::Silent, "no stream was opened in time")),
        }
    }

    async fn take(&mut self, node: &Node, response: SubscribeResponse) -> Result<(), End> {
        if response.term < self.term {
            let message = format!("a leader of term {}, before {}", response.term, self.term);
            return Err(Failure::from(CallError::new(ErrorCode::NotLeader, message)).into());
        }
        self.term = response.term;
        for batch in response.batches {
            self.hand_over(self.wanted.accept(batch)).await?;
        }
        let patience = self.client.options.timeouts.heartbeat;
        self.hand_over(
            self.wanted
                .accept_heads(response.heads, Instant::now(), patience),
        )
        .await?;
        // All of them together: the stream's other timelines wait meanwhile.
        let patience = Instant::now() + patience;
        for ended in response.ended {
            let error = CallError(ended.error.unwrap_or_default());
            if error.code() == ErrorCode::WrongShard
                && let Some(timeline) = ended.timeline
            {
                self.move_on(node, timeline, &error, patience).await;
                continue;
            }
            if advice(error.code()) != Advice::GiveUp {
                return Err(Failure::from(error).into());
            }
            if let Some(timeline) = ended.timeline {
                self.hand_over(self.wanted.end(timeline, error)).await?;
            }
        }
        Ok(())
    }

    /// Goes on with a timeline in the shard that the map names by now.
    async fn move_on(&self, node: &Node, timeline: Timeline, error: &CallError, patience: Instant) {
        self.client.learn_map(node, error, patience).await;
        if self.belongs(&timeline) {
            // Its slot is on the way, or one of the two maps is old: the other timelines go on meanwhile.
            self.wanted.park(timeline);
        } else {
            self.give_away(&timeline);
        }
    }

    /// Asks again for timelines whose slot was on the move, here or where the map names it by now.
    fn unpark(&self) {
        for timeline in self.wanted.unpark(|timeline| self.belongs(timeline)) {
            self.give_away(&timeline);
        }
    }

    /// The map that is held names this shard for a timeline.
    fn belongs(&self, timeline: &Timeline) -> bool {
        let map = &self.client.router;
        map.with_map(|map| map.shard_of_owner(timeline.owner)) == self.shard
    }

    fn give_away(&self, timeline: &Timeline) {
        if let Some(next_seq) = self.wanted.take(timeline)
            && let Some(subscription) = self.subscription.upgrade()
        {
            subscription.wanted(timeline).add(*timeline, next_seq);
        }
    }

    async fn hand_over(&self, event: Option<SubscribeEvent>) -> Result<(), End> {
        match event {
            Some(event) => self.events.send(event).await.map_err(|_| End::Closed),
            None => Ok(()),
        }
    }
}

fn broken(why: Break, message: &str) -> End {
    let error = CallError::new(ErrorCode::Unavailable, message);
    End::Failed(Failure {
        error,
        broken: Some(why),
    })
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use mailbox_api::v1::TimelineKind;

    use super::*;

    #[test]
    fn a_stream_names_its_shard_though_nothing_is_wanted_of_it_any_more() {
        let timeline = Timeline {
            kind: TimelineKind::Group as i32,
            owner: 9,
        };
        let wanted = Arc::new(Wanted::default());
        wanted.add(timeline, 1);
        let mut requests = Requests {
            stream: wanted.begin_stream(),
            wanted: Arc::clone(&wanted),
            shard: 3,
            begun: false,
        };
        let mut next = || {
            let mut context = Context::from_waker(Waker::noop());
            Pin::new(&mut requests).poll_next(&mut context)
        };
        wanted.remove(&timeline);
        let empty = SubscribeRequest {
            shard: 3,
            ..SubscribeRequest::default()
        };
        assert_eq!(next(), Poll::Ready(Some(empty)));
        assert_eq!(next(), Poll::Pending, "once is enough");
        wanted.add(timeline, 1);
        let Poll::Ready(Some(request)) = next() else {
            panic!("it is wanted again");
        };
        assert_eq!((request.shard, request.subscribe.len()), (3, 1));
    }
}
