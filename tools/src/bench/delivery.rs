//! How long a message takes to its recipient's mailbox.
//!
//! A sample of the users is subscribed to, as a gateway does for those who are online. Of the sends to one of
//! them, the time from hand-over to arrival on the subscription is kept; everyone else costs nothing. In one
//! shard a message arrives with its ack, between two it rides a lane first.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use mailbox_client::v1::{SendRequest, Timeline, TimelineKind, send_request, user_ref};
use mailbox_client::{Client, SubscribeEvent, SubscribeHandle};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::load;

/// One user in so many is subscribed to.
const SAMPLED_ONE_IN: usize = 100;
/// At least and at most so many are.
const SAMPLED_MIN: usize = 64;
const SAMPLED_MAX: usize = 2000;
/// How long the last messages may take after the run.
const DRAIN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// The deliveries of a run.
pub(super) struct Delivery {
    sampled: HashSet<u64>,
    state: Mutex<State>,
    /// Kept for as long as arrivals are wanted.
    _subscription: SubscribeHandle,
}

struct State {
    /// Sends on their way, by `client_msg_id`.
    sent: HashMap<Bytes, Sent>,
    latencies_us: Histogram<u64>,
}

#[derive(Clone, Copy)]
struct Sent {
    at: Instant,
    /// Whether the ack came: only then must it arrive.
    acked: bool,
}

/// A send whose arrival is waited for.
pub(super) struct Watched {
    delivery: Arc<Delivery>,
    id: Bytes,
}

/// What came of the deliveries.
pub(super) struct Delivered {
    /// Acked and not arrived in time.
    pub(super) undelivered: u64,
    pub(super) latencies_us: Histogram<u64>,
}

impl Delivery {
    /// Subscribes to a sample of the users' mailboxes, each from its end.
    pub(super) async fn start(
        client: &Client,
        users: impl Iterator<Item = u64>,
    ) -> anyhow::Result<Arc<Self>> {
        let users: Vec<u64> = users.collect();
        let wanted = (users.len() / SAMPLED_ONE_IN).clamp(SAMPLED_MIN, SAMPLED_MAX);
        let step = (users.len() / wanted).max(1);
        // The users come shard by shard: every shard is in the sample.
        let sampled: HashSet<u64> = users.into_iter().step_by(step).take(SAMPLED_MAX).collect();
        let (subscription, events) = client.subscribe();
        let kind = TimelineKind::Mailbox as i32;
        for owner in &sampled {
            // New users: their mailboxes are empty.
            let owner = *owner;
            subscription.add(Timeline { kind, owner }, 1)?;
        }
        let delivery = Arc::new(Self {
            sampled,
            state: Mutex::new(State {
                sent: HashMap::new(),
                latencies_us: load::histogram(),
            }),
            _subscription: subscription,
        });
        tokio::spawn(arrivals(Arc::downgrade(&delivery), events));
        Ok(delivery)
    }

    /// Begins to wait for a send that is handed over now, if its recipient is in the sample.
    pub(super) fn watch(self: &Arc<Self>, request: &SendRequest) -> Option<Watched> {
        let Some(send_request::Destination::User(to)) = &request.destination else {
            return None;
        };
        match to.user {
            Some(user_ref::User::Id(id)) if self.sampled.contains(&id) => {}
            Some(_) | None => return None,
        }
        let id = request.client_msg_id.clone();
        let sent = Sent {
            at: Instant::now(),
            acked: false,
        };
        self.state.lock().sent.insert(id.clone(), sent);
        Some(Watched {
            delivery: Arc::clone(self),
            id,
        })
    }

    fn arrived(&self, id: &Bytes) {
        let mut state = self.state.lock();
        if let Some(sent) = state.sent.remove(id) {
            let us = u64::try_from(sent.at.elapsed().as_micros()).unwrap_or(u64::MAX);
            state.latencies_us.saturating_record(us);
        }
    }

    fn undelivered(&self) -> u64 {
        let state = self.state.lock();
        state.sent.values().filter(|sent| sent.acked).count() as u64
    }

    /// Waits for what is acked and not there yet.
    pub(super) async fn finish(&self) -> Delivered {
        let until = Instant::now() + DRAIN;
        while self.undelivered() > 0 && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        Delivered {
            undelivered: self.undelivered(),
            latencies_us: self.state.lock().latencies_us.clone(),
        }
    }
}

impl Watched {
    /// The send's ack came, or did not.
    pub(super) fn answered(self, acked: bool) {
        // What has arrived already is no longer there.
        if let Some(sent) = self.delivery.state.lock().sent.get_mut(&self.id) {
            sent.acked = acked;
        }
    }
}

async fn arrivals(delivery: std::sync::Weak<Delivery>, mut events: mpsc::Receiver<SubscribeEvent>) {
    while let Some(event) = events.recv().await {
        let Some(delivery) = delivery.upgrade() else {
            return;
        };
        match event {
            SubscribeEvent::Batch { timeline, messages } => {
                // A sender's own copy is no delivery.
                let delivered = messages
                    .iter()
                    .filter(|row| row.recipient == timeline.owner);
                for message in delivered {
                    delivery.arrived(&message.client_msg_id);
                }
            }
            SubscribeEvent::Heads(_) => {}
            SubscribeEvent::Ended { timeline, error } => {
                tracing::error!(owner = timeline.owner, %error, "a subscription ended");
            }
        }
    }
}
