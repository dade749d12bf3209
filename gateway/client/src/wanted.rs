//! The timelines that a subscription wants from one shard, and how far each has come.
//!
//! What is wanted and what the current stream was told are kept apart: a new stream is told
//! everything from its next seq, so that nothing is skipped whatever was lost with the old one.

use std::collections::{HashMap, HashSet};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::{
    Message, SubscribeFrom, SubscribeRequest, Timeline, TimelineBatch, TimelineHead,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::subscribe::SubscribeEvent;

/// Timelines in one request of a stream.
const REQUEST_TIMELINES_MAX: usize = 10_000;

/// Shared between the handles, the stream's requests and the task that reads its responses.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    timelines: HashMap<Timeline, Progress>,
    /// To be told to the stream.
    to_subscribe: HashSet<Timeline>,
    to_unsubscribe: HashSet<Timeline>,
    /// Ended by the stream for as long as their slot moves: wanted, and told again a little later.
    parked: HashSet<Timeline>,
    /// Counts streams: the requests of an earlier one take nothing more.
    stream: u64,
    waker: Option<Waker>,
    closed: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// First seq not yet handed over; 0 = whatever is appended first.
    next_seq: u64,
    /// Whether the current stream was told.
    on_stream: bool,
    /// Since when a head has shown rows from this next seq on that did not come.
    waits: Option<(u64, Instant)>,
}

impl Wanted {
    pub(crate) fn len(&self) -> usize {
        self.state.lock().timelines.len()
    }

    pub(crate) fn add(&self, timeline: Timeline, from_seq: u64) {
        let mut state = self.state.lock();
        let progress = Progress {
            next_seq: from_seq,
            ..Progress::default()
        };
        let before = state.timelines.insert(timeline, progress);
        if before.is_some_and(|before| before.on_stream) {
            state.to_unsubscribe.insert(timeline);
        }
        state.parked.remove(&timeline);
        state.to_subscribe.insert(timeline);
        state.wake();
    }

    /// True if the timeline was there.
    pub(crate) fn remove(&self, timeline: &Timeline) -> bool {
        let mut state = self.state.lock();
        let Some(before) = state.forget(timeline) else {
            return false;
        };
        if before.on_stream {
            state.to_unsubscribe.insert(*timeline);
            state.wake();
        }
        true
    }

    /// Takes out a timeline that the stream has ended; the first seq not yet handed over.
    pub(crate) fn take(&self, timeline: &Timeline) -> Option<u64> {
        let before = self.state.lock().forget(timeline)?;
        Some(before.next_seq)
    }

    /// Keeps a timeline that the stream has ended because its slot is on the move, to be told again later.
    pub(crate) fn park(&self, timeline: Timeline) {
        let mut state = self.state.lock();
        let Some(progress) = state.timelines.get_mut(&timeline) else {
            return;
        };
        progress.on_stream = false;
        progress.waits = None;
        state.to_unsubscribe.remove(&timeline);
        state.to_subscribe.remove(&timeline);
        state.parked.insert(timeline);
    }

    pub(crate) fn any_parked(&self) -> bool {
        !self.state.lock().parked.is_empty()
    }

    /// Tells the stream of the parked timelines that still belong to it; returns the others.
    pub(crate) fn unpark(&self, belongs: impl Fn(&Timeline) -> bool) -> Vec<Timeline> {
        let mut state = self.state.lock();
        let parked = std::mem::take(&mut state.parked);
        let (here, elsewhere): (Vec<_>, Vec<_>) = parked.into_iter().partition(belongs);
        state.to_subscribe.extend(here);
        state.wake();
        elsewhere
    }

    /// The timelines that do not belong here.
    pub(crate) fn unless(&self, belongs: impl Fn(&Timeline) -> bool) -> Vec<Timeline> {
        let state = self.state.lock();
        let wanted = state.timelines.keys().copied();
        wanted.filter(|timeline| !belongs(timeline)).collect()
    }

    /// Takes out all timelines.
    pub(crate) fn remove_all(&self) -> Vec<Timeline> {
        let mut state = self.state.lock();
        state.to_subscribe.clear();
        state.parked.clear();
        state
            .timelines
            .drain()
            .map(|(timeline, _)| timeline)
            .collect()
    }

    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.wake();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Waits until something is wanted; false when closed.
    pub(crate) async fn filled(&self) -> bool {
        std::future::poll_fn(|context| {
            let mut state = self.state.lock();
            if state.closed || !state.timelines.is_empty() {
                return Poll::Ready(!state.closed);
            }
            state.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Begins a stream, which is to be told everything; returns its number.
    pub(crate) fn begin_stream(&self) -> u64 {
        let mut state = self.state.lock();
        state.stream += 1;
        let State {
            timelines,
            to_subscribe,
            to_unsubscribe,
            parked,
            ..
        } = &mut *state;
        to_unsubscribe.clear();
        to_subscribe.clear();
        parked.clear();
        for (timeline, progress) in timelines {
            *progress = Progress {
                next_seq: progress.next_seq,
                ..Progress::default()
            };
            to_subscribe.insert(*timeline);
        }
        state.stream
    }

    /// The next request of a stream; `None` when the stream is over.
    pub(crate) fn poll_request(
        &self,
        stream: u64,
        context: &mut Context<'_>,
    ) -> Poll<Option<SubscribeRequest>> {
        let mut state = self.state.lock();
        if state.closed || state.stream != stream {
            return Poll::Ready(None);
        }
        // A timeline that starts anew is in both sets: its end is told first, on its own.
        let unsubscribe = take_some(&mut state.to_unsubscribe);
        if !unsubscribe.is_empty() {
            return Poll::Ready(Some(SubscribeRequest {
                unsubscribe,
                ..SubscribeRequest::default()
            }));
        }
        let mut subscribe = Vec::new();
        for timeline in take_some(&mut state.to_subscribe) {
            if let Some(progress) = state.timelines.get_mut(&timeline) {
                progress.on_stream = true;
                let from_seq = progress.next_seq;
                subscribe.push(SubscribeFrom {
                    timeline: Some(timeline),
                    from_seq,
                });
            }
        }
        if !subscribe.is_empty() {
            return Poll::Ready(Some(SubscribeRequest {
                subscribe,
                ..SubscribeRequest::default()
            }));
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// What of a batch is new; a gap makes the timeline start anew at its next seq.
    pub(crate) fn accept(&self, batch: TimelineBatch) -> Option<SubscribeEvent> {
        let timeline = batch.timeline?;
        let mut state = self.state.lock();
        let progress = state.timelines.get_mut(&timeline)?;
        let (messages, gap) = progress.accept(batch.messages);
        if gap {
            tracing::warn!(
                ?timeline,
                next_seq = progress.next_seq,
                "a batch left a gap"
            );
            state.start_anew(timeline);
        }
        drop(state);
        (!messages.is_empty()).then_some(SubscribeEvent::Batch { timeline, messages })
    }

    /// Keeps the heads of wanted timelines. Rows that a head shows but that do not come for
    /// `patience` are asked for anew.
    pub(crate) fn accept_heads(
        &self,
        heads: Vec<TimelineHead>,
        now: Instant,
        patience: Duration,
    ) -> Option<SubscribeEvent> {
        let mut state = self.state.lock();
        let mut kept = Vec::with_capacity(heads.len());
        for head in heads {
            let Some(timeline) = head.timeline else {
                continue;
            };
            let Some(progress) = state.timelines.get_mut(&timeline) else {
                continue;
            };
            if progress.is_stuck(head.head, now, patience) {
                tracing::warn!(
                    ?timeline,
                    head = head.head,
                    "rows below the head do not come"
                );
                state.start_anew(timeline);
            }
            kept.push(head);
        }
        (!kept.is_empty()).then_some(SubscribeEvent::Heads(kept))
    }

    /// A timeline that the node ended for good.
    pub(crate) fn end(&self, timeline: Timeline, error: CallError) -> Option<SubscribeEvent> {
        self.state.lock().forget(&timeline)?;
        Some(SubscribeEvent::Ended { timeline, error })
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn forget(&mut self, timeline: &Timeline) -> Option<Progress> {
        self.to_subscribe.remove(timeline);
        self.parked.remove(timeline);
        self.timelines.remove(timeline)
    }

    fn start_anew(&mut self, timeline: Timeline) {
        if let Some(progress) = self.timelines.get_mut(&timeline) {
            progress.waits = None;
        }
        self.to_unsubscribe.insert(timeline);
        self.to_subscribe.insert(timeline);
        self.wake();
    }
}

impl Progress {
    /// The rows from the next seq on, up to the first that is out of turn; and whether one was.
    fn accept(&mut self, messages: Vec<Message>) -> (Vec<Message>, bool) {
        let mut taken = Vec::with_capacity(messages.len());
        for message in messages {
            if self.next_seq == 0 {
                self.next_seq = message.seq;
            }
            if message.seq > self.next_seq {
                return (taken, true);
            }
            if message.seq == self.next_seq {
                self.next_seq += 1;
                taken.push(message);
            }
        }
        (taken, false)
    }

    fn is_stuck(&mut self, head: u64, now: Instant, patience: Duration) -> bool {
        if self.next_seq == 0 {
            // The first head after the subscription says where it began.
            self.next_seq = head + 1;
        }
        if head < self.next_seq {
            self.waits = None;
            return false;
        }
        match self.waits {
            Some((next_seq, since)) if next_seq == self.next_seq => now - since >= patience,
            Some(_) | None => {
                self.waits = Some((self.next_seq, now));
                false
            }
        }
    }
}

fn take_some(set: &mut HashSet<Timeline>) -> Vec<Timeline> {
    if set.len() <= REQUEST_TIMELINES_MAX {
        return set.drain().collect();
    }
    let some: Vec<_> = set.iter().take(REQUEST_TIMELINES_MAX).copied().collect();
    for timeline in &some {
        set.remove(timeline);
    }
    some
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use mailbox_api::v1::{ErrorCode, TimelineKind};

    use super::*;

    fn group(owner: u64) -> Timeline {
        Timeline {
            kind: TimelineKind::Group as i32,
            owner,
        }
    }

    fn batch(owner: u64, seqs: RangeInclusive<u64>) -> TimelineBatch {
        let messages = seqs
            .map(|seq| Message {
                seq,
                ..Message::default()
            })
            .collect();
        TimelineBatch {
            timeline: Some(group(owner)),
            messages,
        }
    }

    fn request(wanted: &Wanted, stream: u64) -> Option<SubscribeRequest> {
        let mut context = Context::from_waker(Waker::noop());
        match wanted.poll_request(stream, &mut context) {
            Poll::Ready(request) => request,
            Poll::Pending => None,
        }
    }

    fn from_seqs(request: &SubscribeRequest) -> Vec<u64> {
        request.subscribe.iter().map(|from| from.from_seq).collect()
    }

    fn seqs(event: Option<SubscribeEvent>) -> Vec<u64> {
        match event {
            Some(SubscribeEvent::Batch { messages, .. }) => {
                messages.iter().map(|message| message.seq).collect()
            }
            Some(other) => panic!("no batch: {other:?}"),
            None => Vec::new(),
        }
    }

    #[test]
    fn a_new_stream_goes_on_at_the_next_seq_and_repeats_nothing() {
        let wanted = Wanted::default();
        wanted.add(group(1), 1);
        let first = wanted.begin_stream();
        assert_eq!(from_seqs(&request(&wanted, first).unwrap()), [1]);
        assert_eq!(seqs(wanted.accept(batch(1, 1..=3))), [1, 2, 3]);
        let second = wanted.begin_stream();
        assert_eq!(
            request(&wanted, first),
            None,
            "the old stream takes nothing more"
        );
        assert_eq!(from_seqs(&request(&wanted, second).unwrap()), [4]);
        assert_eq!(seqs(wanted.accept(batch(1, 2..=5))), [4, 5]);
    }

    #[test]
    fn a_gap_is_never_handed_over() {
        let wanted = Wanted::default();
        wanted.add(group(1), 1);
        let stream = wanted.begin_stream();
        request(&wanted, stream);
        assert_eq!(seqs(wanted.accept(batch(1, 1..=2))), [1, 2]);
        assert_eq!(seqs(wanted.accept(batch(1, 4..=5))), Vec::<u64>::new());
        assert_eq!(request(&wanted, stream).unwrap().unsubscribe, [group(1)]);
        assert_eq!(from_seqs(&request(&wanted, stream).unwrap()), [3]);
        assert_eq!(seqs(wanted.accept(batch(1, 3..=6))), [3, 4, 5, 6]);
    }

    #[test]
    fn rows_that_a_head_shows_but_that_do_not_come_are_asked_for_anew() {
        let wanted = Wanted::default();
        let patience = Duration::from_secs(1);
        wanted.add(group(1), 5);
        let stream = wanted.begin_stream();
        request(&wanted, stream);
        let heads = || {
            vec![TimelineHead {
                timeline: Some(group(1)),
                head: 7,
            }]
        };
        let now = Instant::now();
        wanted.accept_heads(heads(), now, patience);
        assert_eq!(request(&wanted, stream), None, "they may be on their way");
        wanted.accept_heads(heads(), now + patience, patience);
        assert_eq!(request(&wanted, stream).unwrap().unsubscribe, [group(1)]);
        assert_eq!(from_seqs(&request(&wanted, stream).unwrap()), [5]);
    }

    #[test]
    fn from_now_on_goes_on_after_the_first_head() {
        let wanted = Wanted::default();
        wanted.add(group(1), 0);
        wanted.begin_stream();
        let head = TimelineHead {
            timeline: Some(group(1)),
            head: 9,
        };
        wanted.accept_heads(vec![head], Instant::now(), Duration::from_secs(1));
        let stream = wanted.begin_stream();
        assert_eq!(from_seqs(&request(&wanted, stream).unwrap()), [10]);
    }

    #[test]
    fn a_parked_timeline_is_told_again_from_its_next_seq_or_found_to_belong_elsewhere() {
        let wanted = Wanted::default();
        wanted.add(group(1), 1);
        wanted.add(group(2), 1);
        let stream = wanted.begin_stream();
        request(&wanted, stream);
        wanted.accept(batch(1, 1..=3));
        wanted.park(group(1));
        wanted.park(group(2));
        assert!(wanted.any_parked());
        assert_eq!(request(&wanted, stream), None, "a parked one waits");
        assert_eq!(wanted.unpark(|timeline| *timeline == group(1)), [group(2)]);
        assert!(!wanted.any_parked());
        assert_eq!(from_seqs(&request(&wanted, stream).unwrap()), [4]);
        assert_eq!(wanted.take(&group(2)), Some(1));
    }

    #[test]
    fn a_parked_timeline_that_is_no_longer_wanted_stays_away() {
        let wanted = Wanted::default();
        wanted.add(group(1), 1);
        let stream = wanted.begin_stream();
        request(&wanted, stream);
        wanted.park(group(1));
        assert!(wanted.remove(&group(1)));
        wanted.park(group(1));
        assert!(!wanted.any_parked());
        assert_eq!(wanted.unpark(|_| true), []);
        assert_eq!(request(&wanted, stream), None);
    }

    #[test]
    fn a_timeline_that_starts_anew_ends_first() {
        let wanted = Wanted::default();
        wanted.add(group(1), 8);
        let stream = wanted.begin_stream();
        request(&wanted, stream);
        wanted.add(group(1), 2);
        assert_eq!(request(&wanted, stream).unwrap().unsubscribe, [group(1)]);
        assert_eq!(from_seqs(&request(&wanted, stream).unwrap()), [2]);
    }

    #[test]
    fn what_is_no_longer_wanted_is_not_handed_over() {
        let wanted = Wanted::default();
        wanted.add(group(1), 1);
        wanted.add(group(2), 1);
        let stream = wanted.begin_stream();
        request(&wanted, stream);
        wanted.remove(&group(1));
        wanted.remove(&group(1));
        assert_eq!(wanted.accept(batch(1, 1..=1)), None);
        let error = CallError::new(ErrorCode::NotAMember, "");
        assert!(wanted.end(group(2), error.clone()).is_some());
        assert!(wanted.end(group(2), error).is_none());
        assert_eq!(request(&wanted, stream).unwrap().unsubscribe, [group(1)]);
        assert_eq!(request(&wanted, stream), None);
    }
}
