//! The relay: ships what the shards led here have put into their outboxes, and acks what arrived.
//!
//! ```text
//!  applier ──▶ Outbox (memory) ──▶ Outgoing ──▶ Link ──▶ Lanes.Deliver at the destination's leader
//!              acks with the next entry ◀── marks ◀──────┘
//! ```
//!
//! One task for each node. It holds nothing that is not in the shards: whoever gains a leadership
//! begins with `unacked()`, whoever loses one forgets. Two nodes may relay the same outbox for a
//! moment; the destination's mark makes that harmless.

mod delayed;
mod destination;
mod link;
mod outgoing;
mod places;
mod source;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mailbox_engine::{AckLanes, Command, LaneId, Refusal, Reply, ShardId, SlotId};
use mailbox_raft::{Leadership, Outbox, Shard};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cluster_map::View;
use crate::core::Core;
use link::{EVENTS_QUEUED_MAX, Link, LinkEvent, LinkEventKind};
use outgoing::Outgoing;
use places::{Place, Places};

pub(crate) use destination::{FRAME_ENCODED_MAX, LanesService};

/// How often the age of the oldest unacked item is looked up while there is one.
const AGE_LOOK: Duration = Duration::from_secs(1);

/// A shard that this node leads and relays.
struct Led {
    term: u64,
    outbox: Outbox,
}

struct Relay {
    core: Arc<Core>,
    shards: Vec<Shard>,
    map: Map,
    led: BTreeMap<ShardId, Led>,
    outgoing: Outgoing,
    links: HashMap<u64, Link>,
    last_link: u64,
    /// Rung by outboxes, and by changes of leadership, of the map and of the replicas here.
    wake: Arc<Notify>,
    changed: Arc<AtomicBool>,
    events: mpsc::Sender<LinkEvent>,
    /// Watchers of leaderships and what need not be waited for.
    tasks: JoinSet<()>,
    age_at: Option<Instant>,
}

/// Relays until the node stops.
pub(crate) async fn run(core: Arc<Core>) {
    let (events, inbox) = mpsc::channel(EVENTS_QUEUED_MAX);
    let (wake, changed) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(true)));
    let mut tasks = JoinSet::new();
    for mut moved in [
        Moved::Shards(core.node.watch_shards()),
        Moved::Map(core.maps.watch()),
    ] {
        let (wake, changed) = (Arc::clone(&wake), Arc::clone(&changed));
        tasks.spawn(async move {
            while moved.changed().await {
                changed.store(true, Ordering::Release);
                wake.notify_one();
            }
        });
    }
    let stopping = core.stopping.clone();
    let relay = Relay {
        outgoing: Outgoing::new(core.metrics.lanes.clone()),
        map: Map {
            view: core.maps.now(),
            core: Arc::clone(&core),
        },
        core,
        shards: Vec::new(),
        led: BTreeMap::new(),
        links: HashMap::new(),
        last_link: 0,
        wake,
        changed,
        events,
        tasks,
        age_at: None,
    };
    relay.run(inbox, &stopping).await;
}

impl Relay {
    async fn run(mut self, mut inbox: mpsc::Receiver<LinkEvent>, stopping: &CancellationToken) {
        let wake = Arc::clone(&self.wake);
        loop {
            let changed = self.changed.swap(false, Ordering::AcqRel);
            // One look serves all items of this round. In this order: a map that comes in between is looked at again.
            self.map.view = self.core.maps.now();
            if changed {
                self.follow_leaderships();
            }
            self.take_outboxes();
            let now = Instant::now();
            for node in self.outgoing.overdue(now) {
                tracing::warn!(node, "no answer to a shipment: the stream is made anew");
                self.give_up(node);
            }
            self.send_frames();
            self.do_effects();
            let deadline = self.deadline(now);
            tokio::select! {
                () = wake.notified() => {}
                event = inbox.recv() => {
                    let mut next = event;
                    while let Some(event) = next {
                        self.take_event(event);
                        next = inbox.try_recv().ok();
                    }
                }
                () = sleep_until(deadline) => {}
                () = stopping.cancelled() => return,
            }
        }
    }

    /// Begins to relay what is led here since, and ends what no longer is.
    fn follow_leaderships(&mut self) {
        self.outgoing.look_again(&self.map);
        self.follow_shards();
        for shard in &self.shards {
            let id = shard.id();
            let led = match shard.leadership() {
                Leadership::Leader { term, ready: true } => Some(term),
                Leadership::Leader { .. } | Leadership::Follower { .. } => None,
            };
            if self.led.get(&id).map(|led| led.term) == led {
                continue;
            }
            self.led.remove(&id);
            self.outgoing.drop_source(id);
            if let Some(term) = led {
                // In this order: what is applied in between comes twice, not never.
                let outbox = shard.outbox(Arc::clone(&self.wake));
                self.led.insert(id, Led { term, outbox });
                load(&mut self.outgoing, shard, &self.map);
            }
        }
    }

    /// Takes up replicas that have come since, and lets those go that have left.
    fn follow_shards(&mut self) {
        let held = self.core.node.shards();
        let is_held = |shard: &Shard| held.iter().any(|held| is_same(held, shard));
        let (kept, gone): (Vec<Shard>, Vec<Shard>) = std::mem::take(&mut self.shards)
            .into_iter()
            .partition(is_held);
        for shard in gone {
            self.led.remove(&shard.id());
            self.outgoing.drop_source(shard.id());
        }
        for shard in &held {
            if kept.iter().any(|kept| is_same(kept, shard)) {
                continue;
            }
            let (wake, changed) = (Arc::clone(&self.wake), Arc::clone(&self.changed));
            let mut leadership = shard.watch_leadership();
            self.tasks.spawn(async move {
                while leadership.changed().await.is_ok() {
                    changed.store(true, Ordering::Release);
                    wake.notify_one();
                }
            });
        }
        self.shards = held;
    }

    fn take_outboxes(&mut self) {
        for shard in &self.shards {
            let Some(led) = self.led.get_mut(&shard.id()) else {
                continue;
            };
            let waiting = led.outbox.take();
            let now = Instant::now();
            let whole = !waiting.reload
                && (waiting.items.is_empty()
                    || self
                        .outgoing
                        .push(shard.id(), waiting.items, now, &self.map)
                        .is_ok());
            if !whole {
                tracing::debug!(shard = shard.id().0, "the outbox is loaded again");
                load(&mut self.outgoing, shard, &self.map);
            }
        }
    }

    fn send_frames(&mut self) {
        let now = Instant::now();
        loop {
            let frames = self.outgoing.frames(now, &self.map);
            if frames.is_empty() {
                return;
            }
            for (place, frame) in frames {
                let node = place.node;
                if self
                    .links
                    .get(&node)
                    .is_some_and(|link| !link.goes_to(&place))
                {
                    // What the old one carries is lost with it, this frame too: all goes again.
                    self.give_up(node);
                    continue;
                }
                let last = &mut self.last_link;
                let link = self.links.entry(node).or_insert_with(|| {
                    *last += 1;
                    Link::start(&self.core, *last, &place, self.events.clone())
                });
                fail::fail_point!("relay_send", |_| std::process::abort());
                if !link.send(frame) {
                    tracing::debug!(node, "the stream takes no more frames");
                    self.give_up(node);
                }
            }
        }
    }

    fn give_up(&mut self, node: u64) {
        self.links.remove(&node);
        self.outgoing.lost(node, Instant::now(), &self.map);
    }

    fn take_event(&mut self, event: LinkEvent) {
        let node = event.node;
        if self
            .links
            .get(&node)
            .is_none_or(|link| link.id != event.link)
        {
            return;
        }
        match event.kind {
            LinkEventKind::Answered(reply) => {
                self.outgoing.answered(reply, Instant::now(), &self.map);
            }
            LinkEventKind::Ended(reason) => {
                tracing::debug!(node, reason, "the stream of shipments has ended");
                self.core.leaders.forget_node(node);
                self.give_up(node);
            }
        }
    }

    fn do_effects(&mut self) {
        let effects = self.outgoing.take_effects();
        for (source, acks) in effects.acks {
            if let Some(shard) = self.core.node.shard(source) {
                shard.ack_lanes(acks);
            }
        }
        for source in effects.damaged {
            if let Some(shard) = self.core.node.shard(source) {
                tracing::error!(
                    shard = source.0,
                    "a row of this replica is damaged: it must not lead"
                );
                self.tasks
                    .spawn(async move { shard.give_leadership_away().await });
            }
        }
        for (source, lane, mark) in effects.ahead {
            if let Some(shard) = self.core.node.shard(source) {
                self.tasks.spawn(ack_ahead(shard, lane, mark));
            }
        }
        while self.tasks.try_join_next().is_some() {}
    }

    /// When to look again though nothing has happened.
    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let age_at = match (self.outgoing.is_empty(), self.age_at) {
            (true, None) => None,
            (true, Some(_)) => {
                self.core.metrics.lanes.set_oldest(Duration::ZERO);
                None
            }
            (false, Some(at)) if at > now => Some(at),
            (false, _) => {
                let oldest = self.outgoing.oldest(now).unwrap_or_default();
                self.core.metrics.lanes.set_oldest(oldest);
                Some(now + AGE_LOOK)
            }
        };
        self.age_at = age_at;
        let deadline = self.outgoing.deadline(now);
        [deadline, age_at].into_iter().flatten().min()
    }
}

/// Both are the same replica, not one that was dropped and one that came later.
fn is_same(one: &Shard, other: &Shard) -> bool {
    Arc::ptr_eq(one.engine(), other.engine())
}

/// What makes the relay look at everything again.
enum Moved {
    Shards(watch::Receiver<u64>),
    Map(watch::Receiver<Arc<View>>),
}

impl Moved {
    /// False once the node has stopped.
    async fn changed(&mut self) -> bool {
        let changed = match self {
            Moved::Shards(shards) => shards.changed().await,
            Moved::Map(maps) => maps.changed().await,
        };
        changed.is_ok()
    }
}

fn load(outgoing: &mut Outgoing, shard: &Shard, map: &Map) {
    let items = shard.engine().unacked();
    tracing::debug!(shard = shard.id().0, items = items.len(), "outbox loaded");
    outgoing.load(shard.id(), items, Instant::now(), map);
}

/// A destination that has more than this leader ever sent is either told of by a later leader, or
/// this shard has lost state. Only an entry of its own tells which.
async fn ack_ahead(shard: Shard, lane: LaneId, mark: u64) {
    let acks = vec![(lane, mark)];
    let command = Command::AckLanes(AckLanes { acks });
    let replies = shard.propose_lanes(vec![command]).await;
    if let Ok([Reply::Refused(refusal @ Refusal::LaneAhead { .. })]) = replies.as_deref() {
        let shard = shard.id().0;
        tracing::error!(shard, %refusal, "this shard has lost state: it must be restored");
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Where things are, as this node's map, its own replicas and the answers of others know.
struct Map {
    core: Arc<Core>,
    view: Arc<View>,
}

impl Places for Map {
    fn shard_of(&self, slot: SlotId) -> ShardId {
        self.view.shards.of_slot(slot)
    }

    fn leader_of(&self, shard: ShardId) -> Option<Place> {
        if let Some(replica) = self.core.node.shard(shard)
            && let Leadership::Leader { .. } = replica.leadership()
        {
            return Some(Place {
                node: self.core.node_id,
                address: String::new(),
            });
        }
        let leader = self.core.leader_elsewhere(shard, &[])?;
        Some(Place {
            node: leader.node,
            address: leader.address,
        })
    }

    fn not_led_by(&self, shard: ShardId, node: u64) {
        self.core.leaders.forget(shard, node);
    }
}
