//! What waits to be written to one connection: a bounded queue that degrades to a hint.
//!
//! Pushes beyond the bounds are dropped, and the timelines they were of are remembered with their
//! heads; once what is queued has been taken, one `notify` names them and the client syncs. Answers
//! and `go_away` are always taken in: their number is bounded by the requests in flight. An idle
//! queue holds no heap memory.

use std::collections::{BTreeMap, VecDeque};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use mailbox_wire::{Position, Timeline};
use parking_lot::Mutex;

/// Why a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Close {
    /// Nothing was heard for too long.
    Idle,
    /// The peer takes nothing: no farewell can be written either.
    WriteStall,
    /// The gateway stops, or the user's subscription ended: connect anew.
    GoingAway,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Write these frames.
    Frames(VecDeque<Bytes>),
    /// Tell the client to sync these.
    Notify(Vec<Position>),
    /// End the connection.
    Close(Close),
}

/// The queue of one connection. One task takes; any may put.
#[derive(Debug)]
pub(crate) struct Queue {
    frames_max: usize,
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// Timelines whose pushes were dropped since the last `notify`, with their heads.
    behind: BTreeMap<Timeline, u64>,
    close: Option<Close>,
    waker: Option<Waker>,
}

impl Queue {
    /// An empty queue with these bounds on pushes.
    pub(crate) fn new(frames_max: usize, bytes_max: usize) -> Self {
        Self {
            frames_max,
            bytes_max,
            state: Mutex::default(),
        }
    }

    /// Queues a push whose last message is `head`; `false` if it was dropped.
    pub(crate) fn push(&self, frame: Bytes, head: Position) -> bool {
        let mut state = self.state.lock();
        let full =
            state.frames.len() >= self.frames_max || state.bytes + frame.len() > self.bytes_max;
        // Once one push of a timeline is dropped the next ones are of no use before a sync.
        let behind = state.behind.contains_key(&head.timeline);
        if full || behind {
            fall_behind(&mut state, head);
        } else {
            state.bytes += frame.len();
            state.frames.push_back(frame);
        }
        wake(state);
        !(full || behind)
    }

    /// Queues a frame that must not be dropped.
    pub(crate) fn put(&self, frame: Bytes) {
        let mut state = self.state.lock();
        state.bytes += frame.len();
        state.frames.push_back(frame);
        wake(state);
    }

    /// Ends the connection; the first reason stands.
    pub(crate) fn close(&self, reason: Close) {
        let mut state = self.state.lock();
        state.close.get_or_insert(reason);
        wake(state);
    }

    /// What is to be done next: frames, then the hint, then the end.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Next> {
        let mut state = self.state.lock();
        if state.close == Some(Close::WriteStall) {
            return Poll::Ready(Next::Close(Close::WriteStall));
        }
        if !state.frames.is_empty() {
            state.bytes = 0;
            return Poll::Ready(Next::Frames(std::mem::take(&mut state.frames)));
        }
        if !state.behind.is_empty() {
            return Poll::Ready(Next::Notify(heads(std::mem::take(&mut state.behind))));
        }
        if let Some(reason) = state.close {
            return Poll::Ready(Next::Close(reason));
        }
        remember(&mut state, cx);
        Poll::Pending
    }

    /// The frames that are queued now.
    pub(crate) fn take_frames(&self) -> VecDeque<Bytes> {
        let mut state = self.state.lock();
        state.bytes = 0;
        std::mem::take(&mut state.frames)
    }

    /// The hint, if it is its turn: nothing is queued before it.
    pub(crate) fn take_behind(&self) -> Option<Vec<Position>> {
        let mut state = self.state.lock();
        if state.behind.is_empty() || !state.frames.is_empty() {
            return None;
        }
        Some(heads(std::mem::take(&mut state.behind)))
    }

    /// Ready when the connection must end at once, even in the middle of a write.
    pub(crate) fn poll_stalled(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.close == Some(Close::WriteStall) {
            return Poll::Ready(());
        }
        remember(&mut state, cx);
        Poll::Pending
    }
}

fn heads(behind: BTreeMap<Timeline, u64>) -> Vec<Position> {
    let behind = behind.into_iter();
    behind
        .map(|(timeline, seq)| Position { timeline, seq })
        .collect()
}

fn fall_behind(state: &mut State, head: Position) {
    let seq = state.behind.entry(head.timeline).or_default();
    *seq = head.seq.max(*seq);
}

fn remember(state: &mut State, cx: &mut Context<'_>) {
    match &state.waker {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        Some(_) | None => state.waker = Some(cx.waker().clone()),
    }
}

/// Wakes the taker after the lock is released, so that it does not run into it.
fn wake(mut state: parking_lot::MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(seq: u64) -> Position {
        Position {
            timeline: Timeline::Mailbox(17),
            seq,
        }
    }

    fn next(queue: &Queue) -> Option<Next> {
        let mut cx = Context::from_waker(Waker::noop());
        match queue.poll_next(&mut cx) {
            Poll::Ready(next) => Some(next),
            Poll::Pending => None,
        }
    }

    #[test]
    fn over_the_bound_pushes_become_one_notify() {
        let queue = Queue::new(2, 1000);
        assert!(queue.push(Bytes::from_static(b"1"), head(1)));
        assert!(queue.push(Bytes::from_static(b"2"), head(2)));
        assert!(!queue.push(Bytes::from_static(b"3"), head(3)));
        let other = Position {
            timeline: Timeline::Group(65),
            seq: 9,
        };
        assert!(!queue.push(Bytes::from_static(b"4"), other));
        assert!(matches!(next(&queue), Some(Next::Frames(frames)) if frames.len() == 2));
        // There is room again, but the mailbox lacks 3: 4 would be of no use.
        assert!(!queue.push(Bytes::from_static(b"5"), head(4)));
        assert_eq!(next(&queue), Some(Next::Notify(vec![head(4), other])));
        assert_eq!(next(&queue), None);
        assert!(queue.push(Bytes::from_static(b"6"), head(5)));
    }

    #[test]
    fn bytes_bound_pushes_but_not_answers() {
        let queue = Queue::new(32, 10);
        assert!(!queue.push(Bytes::from_static(b"eleven byte"), head(1)));
        queue.put(Bytes::from_static(b"an answer of any length"));
        assert!(matches!(next(&queue), Some(Next::Frames(_))));
        assert!(matches!(next(&queue), Some(Next::Notify(_))));
    }

    #[test]
    fn a_farewell_comes_last_but_a_stall_ends_at_once() {
        let queue = Queue::new(2, 10);
        queue.put(Bytes::from_static(b"bye"));
        queue.close(Close::GoingAway);
        assert!(matches!(next(&queue), Some(Next::Frames(_))));
        assert_eq!(next(&queue), Some(Next::Close(Close::GoingAway)));
        let queue = Queue::new(2, 10);
        queue.put(Bytes::from_static(b"stuck"));
        queue.close(Close::WriteStall);
        assert_eq!(next(&queue), Some(Next::Close(Close::WriteStall)));
    }
}
