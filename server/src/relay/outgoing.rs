//! What goes where, and when: the relay without its sockets.
//!
//! ```text
//!  outbox ──▶ lane ──▶ ready queue of the destination shard ──▶ shipment ┐
//!  outbox ──▶ lane ──▶ ready queue of another one ──▶ shipment ──────────┴▶ frame for their leader
//! ```
//!
//! A frame takes all that is ready for one node, up to its limits, and goes at once while fewer
//! than [`FRAMES_MAX`] of that node are unanswered: what becomes ready meanwhile makes the next.
//! A shard that does not answer holds up no other: it has [`SHIPMENTS_MAX`] shipments at most, and
//! a frame that has been out for [`FRAME_HOLD`] no longer counts.
//!
//! Nothing here decides what has been delivered: marks come from the destination's apply, so a
//! shipment that is lost, repeated or answered twice costs time only.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mailbox_api::peer::{
    DeliverFrame, DeliverReply, LaneRun, Shipment, ShipmentFault, ShipmentReply,
};
use mailbox_engine::{LaneId, OutboxItem, ShardId};

use super::delayed::{Delayed, Waiting};
use super::places::{Place, Places, backoff};
use super::source::{Gap, Room, Run, Source};
use crate::metrics::LaneMetrics;

/// Items of one frame.
pub(super) const FRAME_ITEMS_MAX: usize = 4096;
/// Once a frame has so many bytes it takes no further item: it may be over by one.
pub(super) const FRAME_BYTES_FULL: usize = 256 << 10;
/// Unanswered frames of one node.
const FRAMES_MAX: usize = 2;
/// After so long a frame no longer counts as unanswered.
const FRAME_HOLD: Duration = Duration::from_millis(250);
/// Unanswered shipments of one destination shard.
const SHIPMENTS_MAX: usize = 2;
/// A node that owes an answer for so long is given up: the stream to it is made anew.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// What the relay has to do besides sending frames.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Marks to be acked, by source shard.
    pub(super) acks: BTreeMap<ShardId, Vec<(LaneId, u64)>>,
    /// Lanes of which the destination has more than was sent.
    pub(super) ahead: Vec<(ShardId, LaneId, u64)>,
    /// Shards whose own rows are damaged.
    pub(super) damaged: Vec<ShardId>,
}

#[derive(Debug, Default)]
struct Destination {
    ready: VecDeque<Waiting>,
    shipments: usize,
    /// Failures since the last answer.
    failures: u32,
    retry_at: Option<Instant>,
    /// The leader that the last one asked has named.
    redirect: Option<Place>,
}

#[derive(Debug)]
struct InFlight {
    node: u64,
    frame: u64,
    shard: ShardId,
    sent_at: Instant,
    runs: Vec<(Waiting, Run)>,
}

/// Shards that something can go to, by the node that leads them.
type ByNode = BTreeMap<u64, (Place, Vec<ShardId>)>;

/// Everything that one node relays.
#[derive(Debug)]
pub(super) struct Outgoing {
    sources: HashMap<ShardId, Source>,
    destinations: BTreeMap<ShardId, Destination>,
    in_flight: BTreeMap<u64, InFlight>,
    delayed: Delayed,
    /// By node: frames with the time they went and the number of answers they wait for.
    frames: HashMap<u64, BTreeMap<u64, (Instant, usize)>>,
    last_number: u64,
    effects: Effects,
    metrics: LaneMetrics,
}

impl Outgoing {
    pub(super) fn new(metrics: LaneMetrics) -> Self {
        Self {
            sources: HashMap::new(),
            destinations: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            delayed: Delayed::default(),
            frames: HashMap::new(),
            last_number: 0,
            effects: Effects::default(),
            metrics,
        }
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Begins a source with what is in its outboxes; forgets what was known of it.
    pub(super) fn load(
        &mut self,
        source: ShardId,
        items: Vec<OutboxItem>,
        now: Instant,
        places: &impl Places,
    ) {
        let generation = self.number();
        self.sources.insert(source, Source::new(generation));
        // An outbox is dense: there is no gap in what is loaded whole.
        let loaded = self.push(source, items, now, places);
        debug_assert_eq!(loaded, Ok(()), "an outbox is dense");
    }

    /// Adds what a source has put into its outboxes since.
    ///
    /// # Errors
    /// [`Gap`]: the source has to be loaded again.
    pub(super) fn push(
        &mut self,
        shard: ShardId,
        items: Vec<OutboxItem>,
        now: Instant,
        places: &impl Places,
    ) -> Result<(), Gap> {
        let Some(source) = self.sources.get_mut(&shard) else {
            return Ok(());
        };
        let generation = source.generation;
        for item in items {
            let lane = item.lane;
            if source.push(item, now)? {
                let to = places.shard_of(lane.destination);
                let destination = self.destinations.entry(to).or_default();
                if destination.failures > 0 {
                    source.detach(lane);
                }
                destination.ready.push_back(Waiting {
                    source: shard,
                    generation,
                    lane,
                    to,
                });
            }
        }
        Ok(())
    }

    /// Ends a source: another node leads it now.
    pub(super) fn drop_source(&mut self, source: ShardId) {
        self.sources.remove(&source);
        self.effects.acks.remove(&source);
    }

    /// Who leads has changed somewhere, or where slots are: what waits for a leader is tried at once, and so is what was
    /// refused where its slot no longer is.
    pub(super) fn look_again(&mut self, places: &impl Places) {
        for destination in self.destinations.values_mut() {
            (destination.retry_at, destination.redirect) = (None, None);
        }
        for waiting in self.delayed.take_moved(places) {
            self.queue(waiting, places);
        }
    }

    /// What is to be done since the last call.
    pub(super) fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// The frames that go now.
    pub(super) fn frames(
        &mut self,
        now: Instant,
        places: &impl Places,
    ) -> Vec<(Place, DeliverFrame)> {
        self.end_delays(now, places);
        let by_node = loop {
            let (by_node, not_led) = self.by_leader(now, places);
            if not_led.is_empty() {
                break by_node;
            }
            // Each is looked at once: it has a pause afterwards.
            self.wait_for_leaders(&not_led, now, places);
        };
        let mut frames = Vec::new();
        for (place, mut shards) in by_node.into_values() {
            if self.unanswered(place.node, now) >= FRAMES_MAX {
                continue;
            }
            // No shard is always the one that finds the frame full.
            let turn = usize::try_from(self.last_number).unwrap_or(0) % shards.len();
            shards.rotate_left(turn);
            if let Some(frame) = self.frame(place.node, &shards, now) {
                frames.push((place, frame));
            }
        }
        frames
    }

    /// The shards that something can go to now, by who leads them; and those that nobody is known to lead.
    fn by_leader(&self, now: Instant, places: &impl Places) -> (ByNode, Vec<ShardId>) {
        let (mut by_node, mut not_led) = (ByNode::new(), Vec::new());
        for (shard, destination) in &self.destinations {
            let waits = destination.retry_at.is_some_and(|at| at > now);
            if destination.ready.is_empty() || destination.shipments >= SHIPMENTS_MAX || waits {
                continue;
            }
            let redirect = destination.redirect.clone();
            let Some(place) = redirect.or_else(|| places.leader_of(*shard)) else {
                not_led.push(*shard);
                continue;
            };
            let (_, shards) = by_node.entry(place.node).or_insert((place, Vec::new()));
            shards.push(*shard);
        }
        (by_node, not_led)
    }

    fn unanswered(&self, node: u64, now: Instant) -> usize {
        let frames = self.frames.get(&node).into_iter().flatten();
        frames
            .filter(|(_, (sent_at, _))| *sent_at + FRAME_HOLD > now)
            .count()
    }

    /// Puts what waits for a shard into a frame, as far as there is room: runs and their bytes.
    fn fill(
        &mut self,
        shard: ShardId,
        room: &mut Room,
        bytes: &mut Vec<u8>,
    ) -> Vec<(Waiting, Run, Range<usize>)> {
        let mut runs = Vec::new();
        let destination = self.destinations.get_mut(&shard).expect("it was listed");
        // Lanes that have more than fits come after those that have waited.
        for _ in 0..destination.ready.len() {
            if room.items == 0 || room.bytes == 0 {
                break;
            }
            let Some(waiting) = destination.ready.pop_front() else {
                break;
            };
            let source = self.sources.get_mut(&waiting.source);
            let Some(source) = source.filter(|it| it.generation == waiting.generation) else {
                continue;
            };
            let begin = bytes.len();
            let (run, more) = source.ship(waiting.lane, room, bytes);
            if more {
                destination.ready.push_back(waiting);
            }
            if let Some(run) = run {
                let items = run.seqs.end() - run.seqs.start() + 1;
                self.metrics.items_shipped.inc_by(items);
                runs.push((waiting, run, begin..bytes.len()));
            }
        }
        if !runs.is_empty() {
            destination.shipments += 1;
        }
        runs
    }

    fn frame(&mut self, node: u64, shards: &[ShardId], now: Instant) -> Option<DeliverFrame> {
        let mut room = Room {
            items: FRAME_ITEMS_MAX,
            bytes: FRAME_BYTES_FULL,
        };
        let (mut bytes, mut filled) = (Vec::new(), Vec::new());
        for shard in shards {
            let runs = self.fill(*shard, &mut room, &mut bytes);
            if !runs.is_empty() {
                filled.push((*shard, runs));
            }
        }
        if filled.is_empty() {
            return None;
        }
        let bytes = Bytes::from(bytes);
        let number = self.number();
        let open = (now, filled.len());
        self.frames.entry(node).or_default().insert(number, open);
        let mut shipments = Vec::with_capacity(filled.len());
        for (shard, runs) in filled {
            let id = self.number();
            let lane_runs = runs.iter().map(|(_, run, range)| LaneRun {
                source: run.lane.source.0.into(),
                source_incarnation: run.lane.source_incarnation,
                destination: run.lane.destination.0.into(),
                destination_incarnation: run.lane.destination_incarnation,
                first_seq: *run.seqs.start(),
                items: bytes.slice(range.clone()),
            });
            shipments.push(Shipment {
                id,
                shard: shard.0,
                runs: lane_runs.collect(),
            });
            let in_flight = InFlight {
                node,
                frame: number,
                shard,
                sent_at: now,
                runs: runs
                    .into_iter()
                    .map(|(waiting, run, _)| (waiting, run))
                    .collect(),
            };
            self.in_flight.insert(id, in_flight);
        }
        Some(DeliverFrame { shipments })
    }

    /// Takes an answer. One that comes twice, or too late, changes nothing.
    pub(super) fn answered(&mut self, reply: DeliverReply, now: Instant, places: &impl Places) {
        for reply in reply.shipments {
            let Some(shipment) = self.end(reply.id) else {
                continue;
            };
            match reply.fault {
                Some(fault) => self.refused(shipment, &fault, now, places),
                None => self.marked(shipment, &reply, now, places),
            }
        }
    }

    /// A shipment is no longer under way.
    fn end(&mut self, id: u64) -> Option<InFlight> {
        let shipment = self.in_flight.remove(&id)?;
        if let Some(frames) = self.frames.get_mut(&shipment.node)
            && let Some((_, open)) = frames.get_mut(&shipment.frame)
        {
            *open -= 1;
            if *open == 0 {
                frames.remove(&shipment.frame);
            }
        }
        let destination = self.destinations.get_mut(&shipment.shard);
        destination.expect("it was shipped to").shipments -= 1;
        Some(shipment)
    }

    fn marked(
        &mut self,
        shipment: InFlight,
        reply: &ShipmentReply,
        now: Instant,
        places: &impl Places,
    ) {
        let destination = self.destinations.entry(shipment.shard).or_default();
        (destination.failures, destination.retry_at) = (0, None);
        if reply.marks.len() != shipment.runs.len() {
            let (runs, marks) = (shipment.runs.len(), reply.marks.len());
            tracing::error!(
                shard = shipment.shard.0,
                runs,
                marks,
                "not as many marks as runs"
            );
            return self.send_again(&shipment, now, places);
        }
        let refused: Vec<usize> = reply.refused.iter().map(|no| no.run as usize).collect();
        for refusal in &reply.refused {
            // WrongShard: the slot has moved, and the map is looked up again.
            tracing::debug!(
                shard = shipment.shard.0,
                refusal.code,
                refusal.message,
                "run refused"
            );
        }
        for (at, ((waiting, run), mark)) in shipment.runs.iter().zip(&reply.marks).enumerate() {
            let source = self.sources.get_mut(&waiting.source);
            let Some(source) = source.filter(|it| it.generation == waiting.generation) else {
                continue;
            };
            if refused.contains(&at) {
                if let Some(rewinds) = source.failed(run) {
                    self.delay(*waiting, rewinds, now, places);
                }
                continue;
            }
            let answered = source.marked(run, *mark, now);
            self.metrics.items_acked.inc_by(answered.arrived);
            if answered.ahead {
                self.effects.ahead.push((waiting.source, run.lane, *mark));
            } else if answered.arrived > 0 {
                let acks = self.effects.acks.entry(waiting.source).or_default();
                acks.push((run.lane, *mark));
            }
            if answered.ready {
                self.queue(*waiting, places);
            }
            if let Some(rewinds) = answered.rewound {
                let corrupt = reply.corrupt.iter().any(|run| *run as usize == at);
                self.rewound(*waiting, (run, *mark), corrupt, rewinds, now, places);
            }
        }
    }

    fn rewound(
        &mut self,
        waiting: Waiting,
        (run, mark): (&Run, u64),
        corrupt: bool,
        rewinds: u32,
        now: Instant,
        places: &impl Places,
    ) {
        let Waiting { source, lane, .. } = waiting;
        if corrupt {
            let sound = self.sources[&source].first_is_sound(lane);
            tracing::error!(shard = source.0, %lane, seq = mark + 1, sound, "an item arrived damaged");
            if !sound {
                self.effects.damaged.push(source);
            }
            return self.delay(waiting, rewinds, now, places);
        }
        self.metrics.gaps.inc();
        tracing::debug!(shard = source.0, %lane, first = run.seqs.start(), mark, "gap");
        // What was lost on the way is sent again at once; if that did not help, with pauses.
        self.delay(waiting, rewinds - 1, now, places);
    }

    /// Nothing of a shipment was proposed, or nobody knows.
    fn refused(
        &mut self,
        shipment: InFlight,
        fault: &ShipmentFault,
        now: Instant,
        places: &impl Places,
    ) {
        let (shard, node) = (shipment.shard.0, shipment.node);
        tracing::debug!(shard, node, fault.code, fault.message, "shipment refused");
        let destination = self.destinations.entry(shipment.shard).or_default();
        destination.redirect =
            (fault.leader_node != 0 && fault.leader_node != node).then(|| Place {
                node: fault.leader_node,
                address: fault.leader_address.clone(),
            });
        if destination.redirect.is_none() {
            places.not_led_by(shipment.shard, node);
        }
        if destination.redirect.is_some() && destination.failures == 0 {
            destination.failures = 1;
            self.queue_again(&shipment, places);
        } else {
            self.send_again(&shipment, now, places);
        }
    }

    /// Has a shipment sent again after a pause of its destination.
    fn send_again(&mut self, shipment: &InFlight, now: Instant, places: &impl Places) {
        let destination = self.destinations.entry(shipment.shard).or_default();
        destination.failures += 1;
        destination.retry_at = Some(now + backoff(destination.failures));
        self.queue_again(shipment, places);
    }

    /// Puts the lanes of a shipment back into the queues of where their slots are now.
    fn queue_again(&mut self, shipment: &InFlight, places: &impl Places) {
        for (waiting, run) in &shipment.runs {
            let source = self.sources.get_mut(&waiting.source);
            let Some(source) = source.filter(|it| it.generation == waiting.generation) else {
                continue;
            };
            if source.failed(run) == Some(1) {
                source.detach(run.lane);
            }
            if source.enqueue(run.lane) {
                self.queue(*waiting, places);
            }
        }
    }

    /// The stream to a node has ended: what became of its shipments is not known.
    pub(super) fn lost(&mut self, node: u64, now: Instant, places: &impl Places) {
        let of_node = self.in_flight.iter().filter(|(_, it)| it.node == node);
        let ids: Vec<u64> = of_node.map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(shipment) = self.end(id) {
                let destination = self.destinations.entry(shipment.shard).or_default();
                destination.redirect = None;
                self.send_again(&shipment, now, places);
            }
        }
        self.frames.remove(&node);
    }

    /// Nodes that owe an answer for too long.
    pub(super) fn overdue(&self, now: Instant) -> Vec<u64> {
        let overdue = self
            .in_flight
            .values()
            .filter(|it| it.sent_at + ANSWER_WAIT <= now);
        let mut nodes: Vec<u64> = overdue.map(|shipment| shipment.node).collect();
        nodes.dedup();
        nodes
    }

    fn delay(&mut self, waiting: Waiting, times: u32, now: Instant, places: &impl Places) {
        let source = self.sources.get_mut(&waiting.source);
        let Some(source) = source.filter(|it| it.generation == waiting.generation) else {
            return;
        };
        // Else the lane is in a queue already, and goes from there.
        if !source.enqueue(waiting.lane) {
            return;
        }
        // The map may have changed while the run was under way.
        if times == 0 || waiting.has_moved(places) {
            return self.queue(waiting, places);
        }
        let number = self.number();
        self.delayed.insert(now + backoff(times), number, waiting);
    }

    fn end_delays(&mut self, now: Instant, places: &impl Places) {
        while let Some(waiting) = self.delayed.take_due(now) {
            self.queue(waiting, places);
        }
    }

    /// Puts a lane into the queue of where its slot is now.
    fn queue(&mut self, waiting: Waiting, places: &impl Places) {
        let to = places.shard_of(waiting.lane.destination);
        let destination = self.destinations.entry(to).or_default();
        destination.ready.push_back(Waiting { to, ..waiting });
    }

    /// Nobody is known to lead these shards. They are tried again later; but what has moved away from one meanwhile goes
    /// to where it is now: a shard that was retired is never led again.
    fn wait_for_leaders(&mut self, shards: &[ShardId], now: Instant, places: &impl Places) {
        for shard in shards {
            let destination = self.destinations.get_mut(shard).expect("it was listed");
            destination.failures += 1;
            destination.retry_at = Some(now + backoff(destination.failures));
            for waiting in std::mem::take(&mut destination.ready) {
                self.queue(waiting, places);
            }
        }
    }

    /// When something is due that no answer and no new item will bring about.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let delayed = self.delayed.next_at();
        let waiting = self.destinations.values().filter(|it| !it.ready.is_empty());
        let retry = waiting
            .filter_map(|it| it.retry_at)
            .filter(|at| *at > now)
            .min();
        let held = self.frames.values().flat_map(BTreeMap::values);
        let held = held
            .map(|(sent_at, _)| *sent_at + FRAME_HOLD)
            .filter(|at| *at > now)
            .min();
        let overdue = self
            .in_flight
            .values()
            .map(|it| it.sent_at + ANSWER_WAIT)
            .min();
        [delayed, retry, held, overdue].into_iter().flatten().min()
    }

    /// How long the item has waited that waits longest.
    pub(super) fn oldest(&self, now: Instant) -> Option<Duration> {
        self.sources
            .values()
            .filter_map(|source| source.oldest(now))
            .max()
    }

    /// Everything has arrived.
    pub(super) fn is_empty(&self) -> bool {
        self.sources.values().all(Source::is_empty)
    }
}
