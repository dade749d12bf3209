//! What came in and what the app has taken of it.
//!
//! Two accounts are kept. The *received* one (`key`, `pushed`, `seen`) says what is in the queue or
//! was: a push fits if it begins where `seen` ends, and a sync asks for what lies beyond. The *taken*
//! one says what the app is done with: it is what the state file holds.
//!
//! ```text
//!   push ──fits?──► queue: [Message, Message, Key, Message …] ──next()──► app
//!   page ─────────►                            └ moves the taken key when it is reached
//! ```

use std::collections::{BTreeMap, HashMap, VecDeque};

use mailbox_wire::{Message, Position, Push, Sync, Synced, Timeline};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::Event;
use crate::state::State;

/// News of the connection queued beyond the messages.
const NEWS_MAX: usize = 64;

/// What became of a push.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// Kept, or known already.
    Kept,
    /// There is a gap, or no room: sync.
    Sync,
}

enum Item {
    Event(Event),
    /// All that a page gave is before this: the key covers it, and these seqs.
    Key(String, Vec<(Timeline, u64)>),
    /// What comes after begins at the start again.
    Reset,
}

/// Nothing can be taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Empty {
    /// Wait.
    ForNow,
    /// The client is closed.
    ForGood,
}

/// What came in and what the app has taken of it.
pub(crate) struct Inbox {
    queue_max: usize,
    inner: Mutex<Inner>,
    /// Something can be taken, or the client is closed.
    pub(crate) filled: Notify,
    /// Something was taken.
    pub(crate) drained: Notify,
}

#[derive(Default)]
struct Inner {
    queue: VecDeque<Item>,
    closed: bool,
    // Received.
    key: String,
    pushed: BTreeMap<Timeline, u64>,
    seen: HashMap<Timeline, u64>,
    // Taken.
    taken: State,
    taken_changed: bool,
    /// Handed to the app, which is done with it when it asks for the next.
    handed: Option<(Timeline, u64)>,
    shown_message_id: u64,
}

impl Inbox {
    /// An inbox that goes on from a state.
    pub(crate) fn new(state: State, queue_max: usize) -> Self {
        let inner = Inner {
            key: state.key.clone(),
            pushed: state.have.clone(),
            seen: state
                .have
                .iter()
                .map(|(timeline, seq)| (*timeline, *seq))
                .collect(),
            taken: state,
            ..Inner::default()
        };
        let (filled, drained) = (Notify::new(), Notify::new());
        Self {
            queue_max: queue_max.max(1),
            inner: Mutex::new(inner),
            filled,
            drained,
        }
    }

    /// Queues news of the connection, unless an app that takes nothing has too many of them.
    pub(crate) fn put(&self, event: Event) {
        let mut inner = self.inner.lock();
        if inner.queue.len() < self.queue_max + NEWS_MAX {
            inner.queue.push_back(Item::Event(event));
        }
        drop(inner);
        self.filled.notify_one();
    }

    /// No more will come.
    pub(crate) fn close(&self) {
        self.inner.lock().closed = true;
        self.filled.notify_one();
    }

    /// Takes a push in, if it goes on where this timeline stands.
    pub(crate) fn take_push(&self, push: Push) -> Fit {
        let mut inner = self.inner.lock();
        let Some(last) = push.messages.last().map(|message| message.seq) else {
            return Fit::Kept;
        };
        let seen = match inner.seen.get(&push.timeline) {
            Some(seen) => *seen,
            // Unknown is not 0: the key may stand anywhere in this timeline.
            None if push.prev_seq == 0 && inner.key.is_empty() => 0,
            None => return Fit::Sync,
        };
        if last <= seen {
            return Fit::Kept;
        }
        if push.prev_seq > seen || inner.queue.len() + push.messages.len() > self.queue_max {
            return Fit::Sync;
        }
        for message in push.messages {
            enqueue(&mut inner, message);
        }
        inner.pushed.insert(push.timeline, last);
        drop(inner);
        self.filled.notify_one();
        Fit::Kept
    }

    /// The next sync, if there is room for a page of some use.
    pub(crate) fn next_sync(&self, messages_max: u32) -> Option<Sync> {
        let inner = self.inner.lock();
        let room = self.queue_max.saturating_sub(inner.queue.len());
        if room * 2 < self.queue_max {
            return None;
        }
        let have = inner.pushed.iter();
        let have = have.map(|(timeline, seq)| Position {
            timeline: *timeline,
            seq: *seq,
        });
        let limit = messages_max
            .min(u32::try_from(room).unwrap_or(u32::MAX))
            .max(1);
        Some(Sync {
            key: inner.key.clone(),
            limit,
            have: have.collect(),
        })
    }

    /// Takes in the page that answers `asked`.
    pub(crate) fn take_page(&self, asked: &Sync, page: Synced) {
        let mut inner = self.inner.lock();
        let mut covered: BTreeMap<Timeline, u64> = BTreeMap::new();
        for have in &asked.have {
            covered.insert(have.timeline, have.seq);
        }
        for message in page.messages {
            covered.insert(message.timeline, message.seq);
            enqueue(&mut inner, message);
        }
        for position in page.positions {
            let seen = inner.seen.entry(position.timeline).or_default();
            *seen = position.seq.max(*seen);
        }
        // The new key says all that the question said; what was pushed meanwhile it may not.
        inner
            .pushed
            .retain(|timeline, seq| covered.get(timeline).is_none_or(|held| held < seq));
        inner.key.clone_from(&page.key);
        inner
            .queue
            .push_back(Item::Key(page.key, covered.into_iter().collect()));
        drop(inner);
        self.filled.notify_one();
    }

    /// The key is unusable: begins at the start again.
    pub(crate) fn reset(&self, reason: String) {
        let mut inner = self.inner.lock();
        inner.key.clear();
        inner.pushed.clear();
        inner.seen.clear();
        inner.queue.push_back(Item::Event(Event::Resync { reason }));
        inner.queue.push_back(Item::Reset);
        drop(inner);
        self.filled.notify_one();
    }

    /// The next thing for the app.
    pub(crate) fn take(&self) -> Result<Event, Empty> {
        let mut inner = self.inner.lock();
        if let Some((timeline, seq)) = inner.handed.take() {
            inner.taken.have.insert(timeline, seq);
            inner.taken_changed = true;
        }
        loop {
            match inner.queue.pop_front() {
                Some(Item::Event(event)) => {
                    if let Event::Message(message) = &event {
                        inner.handed = Some((message.timeline, message.seq));
                        inner.shown_message_id = inner.shown_message_id.max(message.message_id);
                    }
                    self.drained.notify_one();
                    return Ok(event);
                }
                Some(Item::Key(key, covered)) => {
                    for (timeline, seq) in covered {
                        if inner
                            .taken
                            .have
                            .get(&timeline)
                            .is_some_and(|taken| *taken <= seq)
                        {
                            inner.taken.have.remove(&timeline);
                        }
                    }
                    inner.taken.key = key;
                    inner.taken_changed = true;
                }
                Some(Item::Reset) => {
                    inner.taken = State::default();
                    inner.taken_changed = true;
                }
                None => {
                    self.drained.notify_one();
                    return Err(if inner.closed {
                        Empty::ForGood
                    } else {
                        Empty::ForNow
                    });
                }
            }
        }
    }

    /// Greatest message id that the app has seen.
    pub(crate) fn shown_message_id(&self) -> u64 {
        self.inner.lock().shown_message_id
    }

    /// The app has seen this message id otherwise: as the ack of a send.
    pub(crate) fn show(&self, message_id: u64) {
        let mut inner = self.inner.lock();
        inner.shown_message_id = inner.shown_message_id.max(message_id);
    }

    /// What the app is done with, if that has changed since the last call.
    pub(crate) fn changed_state(&self) -> Option<State> {
        let mut inner = self.inner.lock();
        std::mem::take(&mut inner.taken_changed).then(|| inner.taken.clone())
    }
}

fn enqueue(inner: &mut Inner, message: Message) {
    let seen = inner.seen.entry(message.timeline).or_default();
    if message.seq > *seen {
        *seen = message.seq;
        inner.queue.push_back(Item::Event(Event::Message(message)));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mailbox_wire::MessageType;

    use super::*;

    const MINE: Timeline = Timeline::Mailbox(17);

    fn message(seq: u64) -> Message {
        Message {
            timeline: MINE,
            seq,
            message_id: seq << 16,
            sender: 18,
            recipient: 17,
            sent_at_ms: 0,
            kind: MessageType::TEXT,
            flags: 0,
            client_msg_id: None,
            body: Bytes::new(),
            refused: None,
        }
    }

    fn push(seqs: std::ops::RangeInclusive<u64>) -> Push {
        let prev_seq = seqs.start() - 1;
        Push {
            timeline: MINE,
            prev_seq,
            messages: seqs.map(message).collect(),
        }
    }

    fn page(seqs: std::ops::RangeInclusive<u64>, key: &str) -> Synced {
        let positions = vec![Position {
            timeline: MINE,
            seq: *seqs.end(),
        }];
        Synced {
            messages: seqs.map(message).collect(),
            key: key.into(),
            more: false,
            positions,
        }
    }

    fn taken(inbox: &Inbox) -> Vec<u64> {
        let mut seqs = Vec::new();
        while let Ok(event) = inbox.take() {
            if let Event::Message(message) = event {
                seqs.push(message.seq);
            }
        }
        seqs
    }

    #[test]
    fn pushes_fit_or_ask_for_a_sync() {
        let inbox = Inbox::new(State::default(), 100);
        let asked = inbox.next_sync(500).unwrap();
        inbox.take_page(&asked, page(1..=3, "k3"));
        assert_eq!(inbox.take_push(push(4..=5)), Fit::Kept);
        assert_eq!(inbox.take_push(push(7..=7)), Fit::Sync);
        assert_eq!(inbox.take_push(push(5..=6)), Fit::Kept); // overlaps: 5 is known
        assert_eq!(inbox.take_push(push(2..=4)), Fit::Kept); // all known
        assert_eq!(taken(&inbox), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_sync_says_what_was_pushed_and_its_answer_repeats_nothing() {
        let inbox = Inbox::new(State::default(), 100);
        let asked = inbox.next_sync(500).unwrap();
        inbox.take_page(&asked, page(1..=1, "k1"));
        inbox.take_push(push(2..=2));
        let asked = inbox.next_sync(500).unwrap();
        assert_eq!((asked.key.as_str(), asked.have[0].seq), ("k1", 2));
        inbox.take_push(push(3..=3)); // while the sync is on its way
        inbox.take_page(&asked, page(3..=4, "k4"));
        assert_eq!(taken(&inbox), [1, 2, 3, 4]);
        assert_eq!(inbox.next_sync(500).unwrap().have, []);
    }

    #[test]
    fn the_state_covers_what_was_taken_and_no_more() {
        let inbox = Inbox::new(State::default(), 100);
        let asked = inbox.next_sync(500).unwrap();
        inbox.take_page(&asked, page(1..=2, "k2"));
        inbox.take_push(push(3..=3));
        inbox.take().unwrap();
        assert_eq!(
            inbox.changed_state(),
            None,
            "handed over is not yet done with"
        );
        inbox.take().unwrap();
        let state = inbox.changed_state().unwrap();
        assert_eq!((state.key.as_str(), state.have.get(&MINE)), ("", Some(&1)));
        inbox.take().unwrap();
        let state = inbox.changed_state().unwrap();
        assert_eq!((state.key.as_str(), state.have.get(&MINE)), ("k2", None));
        assert_eq!(inbox.take(), Err(Empty::ForNow));
        let state = inbox.changed_state().unwrap();
        assert_eq!(
            (state.key.as_str(), state.have.get(&MINE)),
            ("k2", Some(&3))
        );
        // A restart goes on from there.
        let inbox = Inbox::new(state, 100);
        assert_eq!(inbox.take_push(push(3..=4)), Fit::Kept);
        assert_eq!(taken(&inbox), [4]);
    }

    #[test]
    fn a_full_queue_leaves_pushes_to_a_later_sync() {
        let inbox = Inbox::new(State::default(), 4);
        inbox.take_push(push(1..=4));
        assert_eq!(inbox.take_push(push(5..=5)), Fit::Sync);
        assert_eq!(inbox.next_sync(500), None);
        inbox.take().unwrap();
        inbox.take().unwrap();
        assert_eq!(inbox.next_sync(500).unwrap().limit, 2);
    }
}
