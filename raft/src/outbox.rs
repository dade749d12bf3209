//! What a led shard has put into its outboxes, handed to the relay as it is applied.
//!
//! The feed is a copy in memory: what it loses is still in the shard. So it is bounded by dropping everything and
//! saying so; the relay then reads `unacked()` again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mailbox_engine::OutboxItem;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Items that may wait for the relay. A relay that is so far behind reads them from the shard as fast.
const ITEMS_MAX: usize = 64 << 10;

/// The applier's end. Nothing is kept while nobody relays.
#[derive(Default)]
pub(crate) struct OutboxFeed {
    /// Looked at without the lock: most replicas do not lead.
    open: AtomicBool,
    /// Bytes of the shard's unacked items, as of the last applied batch.
    bytes: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Rises with each opening: an `Outbox` that is late to close must not close the next.
    opening: u64,
    waiting: Vec<OutboxItem>,
    reload: bool,
    wake: Option<Arc<Notify>>,
}

impl OutboxFeed {
    /// Right after a batch became visible.
    pub(crate) fn applied(&self, items: Vec<OutboxItem>, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        if items.is_empty() || !self.open.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.state.lock();
        if state.wake.is_none() || state.reload {
            return;
        }
        if state.waiting.len() + items.len() > ITEMS_MAX {
            state.reload = true;
            state.waiting = Vec::new();
        } else if state.waiting.is_empty() {
            state.waiting = items;
        } else {
            state.waiting.extend(items);
        }
        if let Some(wake) = &state.wake {
            wake.notify_one();
        }
    }

    /// A snapshot has replaced the state: what follows does not continue what was handed out.
    pub(crate) fn replaced(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        let mut state = self.state.lock();
        if let Some(wake) = state.wake.clone() {
            state.reload = true;
            state.waiting = Vec::new();
            wake.notify_one();
        }
    }

    /// Bytes of the unacked items, for admission.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// What a relay has not taken yet of one shard's outboxes. One at a time: the last one opened gets the items.
pub struct Outbox {
    feed: Arc<OutboxFeed>,
    opening: u64,
}

/// What waited in an [`Outbox`].
#[derive(Debug, Default)]
pub struct Waiting {
    /// Too much waited, and was dropped: `unacked()` of the shard tells all there is.
    pub reload: bool,
    /// Items applied since the last call, each lane's in lane seq order. Empty if `reload`.
    pub items: Vec<OutboxItem>,
}

impl Outbox {
    pub(crate) fn open(feed: &Arc<OutboxFeed>, wake: Arc<Notify>) -> Outbox {
        let opening = {
            let mut state = feed.state.lock();
            state.opening += 1;
            (state.reload, state.waiting) = (false, Vec::new());
            state.wake = Some(wake);
            state.opening
        };
        feed.open.store(true, Ordering::Release);
        Outbox {
            feed: feed.clone(),
            opening,
        }
    }

    /// Takes what waits.
    pub fn take(&mut self) -> Waiting {
        let mut state = self.feed.state.lock();
        if state.opening != self.opening {
            return Waiting::default();
        }
        Waiting {
            reload: std::mem::take(&mut state.reload),
            items: std::mem::take(&mut state.waiting),
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut state = self.feed.state.lock();
        if state.opening == self.opening {
            (state.reload, state.waiting, state.wake) = (false, Vec::new(), None);
            self.feed.open.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mailbox_engine::{Item, LaneId, SlotId, UserId};

    use super::*;

    fn items(seqs: std::ops::RangeInclusive<u64>) -> Vec<OutboxItem> {
        let item = |seq| OutboxItem {
            lane: LaneId::between(SlotId(1), SlotId(2)),
            seq,
            item: Item::UserMade {
                user: UserId(seq),
                handle: Bytes::new(),
            },
        };
        seqs.map(item).collect()
    }

    fn seqs(waiting: Waiting) -> Vec<u64> {
        assert!(!waiting.reload);
        waiting.items.iter().map(|item| item.seq).collect()
    }

    #[test]
    fn what_is_applied_while_nobody_relays_is_not_kept() {
        let (feed, wake) = (Arc::new(OutboxFeed::default()), Arc::new(Notify::new()));
        feed.applied(items(1..=2), 20);
        let mut outbox = Outbox::open(&feed, wake.clone());
        assert_eq!(seqs(outbox.take()), [0; 0]);
        feed.applied(items(3..=4), 40);
        feed.applied(items(5..=5), 50);
        assert_eq!(feed.bytes(), 50);
        assert_eq!(seqs(outbox.take()), [3, 4, 5]);
        drop(outbox);
        feed.applied(items(6..=6), 60);
        assert!(feed.state.lock().waiting.is_empty());
    }

    #[test]
    fn too_much_is_dropped_and_told_once() {
        let (feed, wake) = (Arc::new(OutboxFeed::default()), Arc::new(Notify::new()));
        let mut outbox = Outbox::open(&feed, wake);
        feed.applied(items(1..=ITEMS_MAX as u64), 1);
        feed.applied(items(1..=1), 1);
        feed.applied(items(2..=2), 1);
        let waiting = outbox.take();
        assert!(waiting.reload && waiting.items.is_empty());
        feed.applied(items(3..=3), 1);
        assert_eq!(seqs(outbox.take()), [3]);
    }

    #[test]
    fn the_last_one_opened_gets_the_items() {
        let (feed, wake) = (Arc::new(OutboxFeed::default()), Arc::new(Notify::new()));
        let mut first = Outbox::open(&feed, wake.clone());
        let mut second = Outbox::open(&feed, wake);
        feed.applied(items(1..=1), 1);
        assert_eq!(seqs(first.take()), [0; 0]);
        drop(first);
        feed.applied(items(2..=2), 1);
        assert_eq!(seqs(second.take()), [1, 2]);
    }
}
