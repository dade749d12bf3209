//! The Submit stream to one node: sends that wait leave together in one frame.
//!
//! HTTP/2 pulls frames when it has room, and a frame takes what waits at that moment: at low load
//! one send leaves at once, under load frames grow by themselves, without a timer. There is also a bound of unanswered
//! frames for each shard: what has left can grow no more, and a node that falls behind by a moment would be left with
//! thousands of small frames in its sockets, each of which costs it about as much as one with a hundred sends. (Seen
//! while one of three nodes led nothing after a restart: the others answered in 1.6 s, for 12 s, with cores idle, until
//! they led less.) When the stream
//! breaks or falls silent, every send that waits or is on its way fails here and is repeated by its
//! caller, on whichever node leads by then.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::Stream;
use mailbox_api::CallError;
use mailbox_api::v1::mailbox_client::MailboxClient;
use mailbox_api::v1::{
    ErrorCode, SendRequest, SubmitCall, SubmitRequest, SubmitResponse, SubmitResult, submit_result,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::channel::AuthChannel;
use crate::options::{ClientOptions, Limits};
use crate::pending::{Answer, Break, Failure, Pending};

/// How often the stream looks for silence and for sends whose caller has given up.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// A send and who waits for its answer.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) request: SendRequest,
    pub(crate) deadline: Instant,
    pub(crate) answer: Answer,
}

/// The sends for one node. They are bounded by the client's in-flight limits.
#[derive(Debug)]
pub(crate) struct SubmitQueue {
    state: Mutex<State>,
    limits: Limits,
}

#[derive(Debug, Default)]
struct State {
    queues: Vec<ShardQueue>,
    /// The last tag of each unanswered frame, and whose queue it is from: a frame is answered as a whole.
    unanswered: HashMap<u64, usize>,
    /// The queue that comes next.
    turn: usize,
    pending: Pending,
    /// Counts streams: frames of an earlier one take nothing more.
    stream: u64,
    /// Since when the node owes an answer.
    owes_since: Option<Instant>,
    waker: Option<Waker>,
    closed: bool,
}

/// Sends for one shard: a frame is for one.
#[derive(Debug)]
struct ShardQueue {
    shard: u32,
    waiting: VecDeque<Waiting>,
    /// Frames on their way.
    unanswered: usize,
}

impl SubmitQueue {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            state: Mutex::new(State::default()),
            limits,
        }
    }

    pub(crate) fn push(&self, shard: u32, sends: impl IntoIterator<Item = Waiting>) {
        let mut state = self.state.lock();
        state.queue_of(shard).extend(sends);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends the stream's task; what still waits fails.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits for a first send; false when closed.
    async fn filled(&self) -> bool {
        std::future::poll_fn(|context| {
            let mut state = self.state.lock();
            if state.closed {
                return Poll::Ready(false);
            }
            if state.queues.iter().any(|queue| !queue.waiting.is_empty()) {
                return Poll::Ready(true);
            }
            state.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn answer(&self, results: Vec<SubmitResult>) {
        tracing::debug!(sends = results.len(), "a frame is answered");
        let mut answers = Vec::with_capacity(results.len());
        let mut state = self.state.lock();
        for result in results {
            if let Some(index) = state.unanswered.remove(&result.tag) {
                state.queues[index].unanswered -= 1;
            }
            if let Some(answer) = state.pending.remove(result.tag) {
                answers.push((answer, result.result));
            }
        }
        state.owes_since = (!state.pending.is_empty()).then(Instant::now);
        let waker = match state.next(&self.limits) {
            Some(_) => state.waker.take(),
            None => None,
        };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        for (answer, result) in answers {
            let result = match result {
                Some(submit_result::Result::Sent(sent)) => Ok(sent),
                Some(submit_result::Result::Error(error)) => Err(CallError(error).into()),
                None => Err(unavailable("the node answered with neither yes nor no").into()),
            };
            // A caller that has gone needs no answer.
            let _ = answer.send(result);
        }
    }

    /// Fails everything that waits or is on its way.
    fn fail_all(&self, failure: &Failure) {
        let mut state = self.state.lock();
        state.stream += 1;
        state.owes_since = None;
        let mut answers = state.pending.remove_all();
        state.unanswered.clear();
        for queue in &mut state.queues {
            queue.unanswered = 0;
            answers.extend(queue.waiting.drain(..).map(|waiting| waiting.answer));
        }
        drop(state);
        fail(answers, failure);
    }

    /// Fails the sends whose deadline has passed; true when the node has been silent for too long.
    fn watch(&self, now: Instant, silence_max: Duration) -> bool {
        let mut state = self.state.lock();
        let mut expired = state.pending.remove_expired(now);
        for queue in &mut state.queues {
            let queue = &mut queue.waiting;
            while queue.front().is_some_and(|waiting| waiting.deadline <= now) {
                expired.extend(queue.pop_front().map(|waiting| waiting.answer));
            }
        }
        let silent = state
            .owes_since
            .is_some_and(|since| now - since >= silence_max);
        drop(state);
        fail(
            expired,
            &unavailable("the deadline passed without an answer").into(),
        );
        silent
    }
}

fn fail(answers: Vec<Answer>, failure: &Failure) {
    for answer in answers {
        let _ = answer.send(Err(failure.clone()));
    }
}

fn unavailable(message: &str) -> CallError {
    CallError::new(ErrorCode::Unavailable, message)
}

impl State {
    fn queue_of(&mut self, shard: u32) -> &mut VecDeque<Waiting> {
        let found = self.queues.iter().position(|of| of.shard == shard);
        let index = found.unwrap_or_else(|| {
            self.queues.push(ShardQueue {
                shard,
                waiting: VecDeque::new(),
                unanswered: 0,
            });
            self.queues.len() - 1
        });
        &mut self.queues[index].waiting
    }

    /// The queue whose sends may leave next: the shards in turn.
    fn next(&self, limits: &Limits) -> Option<usize> {
        let (count, frames_max) = (self.queues.len(), limits.shard_frames_max.max(1));
        let mut turns = (0..count).map(|step| (self.turn + step) % count);
        turns.find(|index| {
            let queue = &self.queues[*index];
            !queue.waiting.is_empty() && queue.unanswered < frames_max
        })
    }

    /// The next frame.
    fn take_frame(&mut self, limits: &Limits) -> Option<SubmitRequest> {
        let index = self.next(limits)?;
        self.turn = index + 1;
        let of = &mut self.queues[index];
        let queue = &mut of.waiting;
        let mut calls = Vec::with_capacity(queue.len().min(limits.frame_sends_max));
        let mut bytes = 0;
        while let Some(waiting) = queue.front() {
            let next = waiting.request.body.len();
            let full =
                calls.len() >= limits.frame_sends_max || bytes + next > limits.frame_bytes_max;
            if full && !calls.is_empty() {
                break;
            }
            bytes += next;
            let Some(Waiting {
                request,
                deadline,
                answer,
            }) = queue.pop_front()
            else {
                break;
            };
            let tag = self.pending.insert(deadline, answer);
            calls.push(SubmitCall {
                tag,
                send: Some(request),
            });
        }
        if let Some(SubmitCall { tag, .. }) = calls.last() {
            of.unanswered += 1;
            self.unanswered.insert(*tag, index);
        }
        self.owes_since.get_or_insert_with(Instant::now);
        Some(SubmitRequest {
            shard: of.shard,
            calls,
        })
    }
}

/// The frames of one stream.
struct Frames {
    queue: Arc<SubmitQueue>,
    stream: u64,
}

impl Stream for Frames {
    type Item = SubmitRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SubmitRequest>> {
        let mut state = self.queue.state.lock();
        if state.stream != self.stream || state.closed {
            return Poll::Ready(None);
        }
        if let Some(frame) = state.take_frame(&self.queue.limits) {
            drop(state);
            tracing::debug!(
                shard = frame.shard,
                sends = frame.calls.len(),
                "submit a frame"
            );
            return Poll::Ready(Some(frame));
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// Keeps a stream to the node while there is something to send; ends when the queue is closed.
pub(crate) async fn run(
    queue: Arc<SubmitQueue>,
    node: MailboxClient<AuthChannel>,
    options: Arc<ClientOptions>,
) {
    while queue.filled().await {
        let failure = run_stream(&queue, node.clone(), &options).await;
        tracing::debug!(error = %failure.error, "a submit stream ended");
        queue.fail_all(&failure);
    }
    queue.fail_all(&unavailable("the client was closed").into());
}

async fn run_stream(
    queue: &Arc<SubmitQueue>,
    mut node: MailboxClient<AuthChannel>,
    options: &ClientOptions,
) -> Failure {
    let stream = queue.state.lock().stream;
    let frames = Frames {
        queue: Arc::clone(queue),
        stream,
    };
    let silence_max = options.timeouts.attempt;
    let opened = tokio::time::timeout(silence_max, node.submit(frames)).await;
    let mut responses = match opened {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Failure::from_status(&status),
        Err(_) => return silent(unavailable("no stream was opened in time")),
    };
    let mut watch = tokio::time::interval(WATCH_INTERVAL.min(silence_max));
    loop {
        tokio::select! {
            biased;
            response = responses.message() => match response {
                Ok(Some(SubmitResponse { results })) => queue.answer(results),
                Ok(None) => return gone(unavailable("the node ended the stream")),
                Err(status) => return Failure::from_status(&status),
            },
            _ = watch.tick() => {
                if queue.watch(Instant::now(), silence_max) {
                    return silent(unavailable("the node fell silent"));
                }
            }
        }
    }
}

fn gone(error: CallError) -> Failure {
    Failure {
        error,
        broken: Some(Break::Gone),
    }
}

fn silent(error: CallError) -> Failure {
    Failure {
        error,
        broken: Some(Break::Silent),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _};
    use mailbox_api::v1::SendResponse;
    use tokio::sync::oneshot;

    use super::*;

    type Waits = oneshot::Receiver<Result<SendResponse, Failure>>;

    fn waiting(body_bytes: usize, deadline: Instant) -> (Waiting, Waits) {
        let (answer, waits) = oneshot::channel();
        let request = SendRequest {
            body: vec![0; body_bytes].into(),
            ..SendRequest::default()
        };
        (
            Waiting {
                request,
                deadline,
                answer,
            },
            waits,
        )
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn queue(frame_sends_max: usize, frame_bytes_max: usize) -> Arc<SubmitQueue> {
        Arc::new(SubmitQueue::new(Limits {
            frame_sends_max,
            frame_bytes_max,
            ..Limits::default()
        }))
    }

    fn push(queue: &SubmitQueue, shard: u32, bodies: &[usize], deadline: Instant) -> Vec<Waits> {
        let (sends, waits): (Vec<_>, Vec<_>) =
            bodies.iter().map(|bytes| waiting(*bytes, deadline)).unzip();
        queue.push(shard, sends);
        waits
    }

    #[tokio::test]
    async fn with_enough_frames_on_their_way_sends_wait_for_an_answer() {
        let queue = Arc::new(SubmitQueue::new(Limits {
            shard_frames_max: 2,
            ..Limits::default()
        }));
        let mut frames = Frames {
            queue: Arc::clone(&queue),
            stream: 0,
        };
        let mut waits = Vec::new();
        let mut sent = Vec::new();
        for _ in 0..2 {
            waits.extend(push(&queue, 7, &[1, 1], soon()));
            sent.push(frames.next().await.unwrap());
        }
        waits.extend(push(&queue, 7, &[1], soon()));
        waits.extend(push(&queue, 7, &[1, 1], soon()));
        assert!(frames.next().now_or_never().is_none(), "two are unanswered");
        waits.extend(push(&queue, 8, &[1], soon()));
        assert_eq!(
            frames.next().await.unwrap().shard,
            8,
            "another shard's leave"
        );
        let result = |call: &SubmitCall| SubmitResult {
            tag: call.tag,
            result: Some(submit_result::Result::Sent(SendResponse::default())),
        };
        queue.answer(vec![result(&sent[0].calls[0])]);
        assert!(
            frames.next().now_or_never().is_none(),
            "not the whole frame"
        );
        let next = tokio::spawn(async move { frames.next().await.unwrap().calls.len() });
        tokio::task::yield_now().await;
        queue.answer(vec![result(&sent[0].calls[1])]);
        assert_eq!(next.await.unwrap(), 3, "all that came meanwhile, in one");
        queue.fail_all(&unavailable("the stream broke").into());
        let state = queue.state.lock();
        assert!(state.unanswered.is_empty());
        assert!(state.queues.iter().all(|queue| queue.unanswered == 0));
    }

    #[tokio::test]
    async fn what_waits_leaves_in_one_frame_up_to_its_limits() {
        let queue = queue(3, 100);
        let _waits = push(&queue, 0, &[10, 10, 10, 10, 95, 10, 500], soon());
        let mut frames = Frames {
            queue: Arc::clone(&queue),
            stream: 0,
        };
        let mut lengths = Vec::new();
        for _ in 0..5 {
            lengths.push(frames.next().await.unwrap().calls.len());
        }
        assert_eq!(lengths, [3, 1, 1, 1, 1], "an oversized send goes alone");
    }

    #[tokio::test]
    async fn shards_take_turns() {
        let queue = queue(1, 100);
        let _a = push(&queue, 0, &[1, 1], soon());
        let _b = push(&queue, 5, &[1], soon());
        let mut frames = Frames {
            queue: Arc::clone(&queue),
            stream: 0,
        };
        let mut shards = Vec::new();
        for _ in 0..3 {
            shards.push(frames.next().await.unwrap().shard);
        }
        assert_eq!(shards, [0, 5, 0]);
    }

    #[tokio::test]
    async fn answers_find_their_senders_in_any_order() {
        let queue = queue(10, 100);
        let waits = push(&queue, 0, &[1, 1], soon());
        let mut frames = Frames {
            queue: Arc::clone(&queue),
            stream: 0,
        };
        let frame = frames.next().await.unwrap();
        let mut results = Vec::new();
        for (call, seq) in frame.calls.iter().zip(1..) {
            let sent = SendResponse {
                seq,
                ..SendResponse::default()
            };
            let result = Some(submit_result::Result::Sent(sent));
            results.push(SubmitResult {
                tag: call.tag,
                result,
            });
        }
        results.reverse();
        queue.answer(results);
        for (waits, seq) in waits.into_iter().zip(1..) {
            assert_eq!(waits.await.unwrap().unwrap().seq, seq);
        }
    }

    #[tokio::test]
    async fn a_broken_stream_fails_what_waits_and_what_is_on_its_way() {
        let queue = queue(1, 100);
        let waits = push(&queue, 0, &[1, 1], soon());
        let mut frames = Frames {
            queue: Arc::clone(&queue),
            stream: 0,
        };
        let sent = frames.next().await.unwrap();
        queue.fail_all(&gone(unavailable("gone")));
        for waits in waits {
            assert!(waits.await.unwrap().unwrap_err().broken.is_some());
        }
        let _later = push(&queue, 0, &[1], soon());
        assert!(
            frames.next().await.is_none(),
            "the old stream takes nothing more"
        );
        let late = SubmitResult {
            tag: sent.calls[0].tag,
            result: None,
        };
        queue.answer(vec![late]);
    }

    #[tokio::test]
    async fn silence_is_noticed_only_while_an_answer_is_owed() {
        let queue = queue(10, 100);
        let silence_max = Duration::from_secs(60);
        let start = Instant::now();
        assert!(!queue.watch(start + silence_max * 10, silence_max));
        let _waits = push(&queue, 0, &[1], start + silence_max * 100);
        let mut frames = Frames {
            queue: Arc::clone(&queue),
            stream: 0,
        };
        let frame = frames.next().await.unwrap();
        assert!(!queue.watch(start + silence_max / 2, silence_max));
        assert!(queue.watch(start + silence_max * 2, silence_max));
        queue.answer(vec![SubmitResult {
            tag: frame.calls[0].tag,
            result: None,
        }]);
        assert!(!queue.watch(start + silence_max * 2, silence_max));
    }

    #[tokio::test]
    async fn a_send_past_its_deadline_fails_though_others_are_answered() {
        let queue = queue(1, 100);
        let deadline = Instant::now() + Duration::from_secs(10);
        let waits = push(&queue, 0, &[1, 1], deadline);
        let mut frames = Frames {
            queue: Arc::clone(&queue),
            stream: 0,
        };
        frames.next().await.unwrap();
        queue.watch(deadline, Duration::from_secs(3600));
        for waits in waits {
            let failure = waits.await.unwrap().unwrap_err();
            assert_eq!(failure.error.code(), ErrorCode::Unavailable);
        }
    }
}
