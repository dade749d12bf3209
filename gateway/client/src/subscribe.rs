//! Subscriptions: timelines from a seq, then live, across leaders.

use std::collections::BTreeMap;
use std::sync::Arc;

use mailbox_api::CallError;
use mailbox_api::v1::{ErrorCode, Message, Timeline, TimelineHead};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::client::Inner;
use crate::follow::Follower;
use crate::wanted::Wanted;

/// What a subscription hands over.
#[derive(Debug, Clone, PartialEq)]
pub enum SubscribeEvent {
    /// The next messages of a timeline: contiguous, beginning at the seq after the last one handed
    /// over (or at the `from_seq` asked for).
    Batch {
        /// Whose messages.
        timeline: Timeline,
        /// In seq order, never empty.
        messages: Vec<Message>,
    },
    /// Heads as the leader saw them; the rows up to them may still be on their way.
    Heads(Vec<TimelineHead>),
    /// A timeline's subscription ended for good, for a reason that a repeat would not mend.
    Ended {
        /// Whose subscription.
        timeline: Timeline,
        /// Why.
        error: CallError,
    },
}

/// Adds and removes the timelines of one subscription; dropping the last clone ends it.
#[derive(Clone)]
pub struct SubscribeHandle {
    shared: Arc<Subscription>,
}

/// What the handles of a subscription share.
pub(crate) struct Subscription {
    client: Arc<Inner>,
    runtime: Handle,
    events: mpsc::Sender<SubscribeEvent>,
    shards: Mutex<BTreeMap<u32, Arc<Wanted>>>,
}

/// A subscription without timelines.
pub(crate) fn start(client: Arc<Inner>) -> (SubscribeHandle, mpsc::Receiver<SubscribeEvent>) {
    let (events, receiver) = mpsc::channel(client.options.limits.subscribe_queue_max.max(1));
    let shared = Subscription {
        client,
        runtime: Handle::current(),
        events,
        shards: Mutex::new(BTreeMap::new()),
    };
    (
        SubscribeHandle {
            shared: Arc::new(shared),
        },
        receiver,
    )
}

impl SubscribeHandle {
    /// Subscribes to a timeline from `from_seq` (inclusive, from 1); 0 = only what is appended from
    /// now on. A timeline that is there already starts anew at `from_seq`.
    ///
    /// # Errors
    /// `LimitExceeded` when the subscription holds its greatest number of timelines.
    pub fn add(&self, timeline: Timeline, from_seq: u64) -> Result<(), CallError> {
        let max = self.shared.client.options.limits.subscribed_timelines_max;
        let held: usize = self
            .shared
            .shards
            .lock()
            .values()
            .map(|wanted| wanted.len())
            .sum();
        if held >= max {
            let message = format!("{held} timelines are subscribed to, the limit is {max}");
            return Err(CallError::new(ErrorCode::LimitExceeded, message));
        }
        let here = self.shared.wanted(&timeline);
        // One that its shard has not let go of yet must not come twice.
        for other in self.shared.shards.lock().values() {
            if !Arc::ptr_eq(other, &here) {
                other.remove(&timeline);
            }
        }
        here.add(timeline, from_seq);
        Ok(())
    }

    /// Ends a timeline's subscription; events already queued may still arrive.
    pub fn remove(&self, timeline: Timeline) {
        for wanted in self.shared.shards.lock().values() {
            wanted.remove(&timeline);
        }
    }
}

impl Subscription {
    /// What is wanted of the timeline's shard; the first time, its follower is started.
    pub(crate) fn wanted(self: &Arc<Self>, timeline: &Timeline) -> Arc<Wanted> {
        let map = &self.client.router;
        let shard = map.with_map(|map| map.shard_of_owner(timeline.owner));
        let mut shards = self.shards.lock();
        let wanted = shards.entry(shard).or_insert_with(|| {
            let wanted = Arc::new(Wanted::default());
            let follower = Follower {
                client: Arc::clone(&self.client),
                shard,
                wanted: Arc::clone(&wanted),
                subscription: Arc::downgrade(self),
                events: self.events.clone(),
                term: 0,
            };
            self.runtime.spawn(follower.run());
            wanted
        });
        Arc::clone(wanted)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        for wanted in self.shards.lock().values() {
            wanted.close();
        }
    }
}
