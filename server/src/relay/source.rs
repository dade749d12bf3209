//! What one led shard has to ship: its lanes, and the items that no destination is known to have.
//!
//! ```text
//! mark ≤ sent ≤ last;  items (mark, last] are here, items (mark, sent] are on the way
//! ```
//!
//! A lane with nothing to ship is not kept: there are a million pairs of slots, and what is needed
//! to begin again comes with the next item.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mailbox_engine::{Item, Items, LaneId, OutboxItem};

/// Items of one lane that are on the way.
pub(super) const LANE_WINDOW: u64 = 1024;

/// Something is missing between two items: only a reload tells what.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gap;

/// Room that is left in a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) items: usize,
    pub(super) bytes: usize,
}

/// Items of one lane that go together.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) lane: LaneId,
    pub(super) seqs: RangeInclusive<u64>,
    /// Of the lane, when they went.
    pub(super) epoch: u64,
}

/// What an answer has done to a lane.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answered {
    /// Items that are known to have arrived by it.
    pub(super) arrived: u64,
    /// To be sent again from the mark on; how often it came to that without anything arriving.
    pub(super) rewound: Option<u32>,
    /// The destination has more than this source ever sent.
    pub(super) ahead: bool,
    /// The lane has something to ship and is in no queue.
    pub(super) ready: bool,
}

#[derive(Debug)]
struct Lane {
    mark: u64,
    sent: u64,
    last: u64,
    /// Places of the items after `mark`, after `sent`, and at `last`; 0 if there is none.
    first: u32,
    unsent: u32,
    tail: u32,
    /// Changes with each rewind: what went before it must not rewind again.
    epoch: u64,
    /// Rewinds since something arrived.
    rewinds: u32,
    /// Since when its first item waits.
    since: Instant,
    /// In the queue of its destination, or waiting for its time there.
    queued: bool,
}

/// The lanes of one led shard.
#[derive(Debug)]
pub(super) struct Source {
    /// Tells this leadership's shipments from those of one before.
    pub(super) generation: u64,
    lanes: HashMap<LaneId, Lane>,
    items: Slab,
    last_epoch: u64,
}

impl Source {
    pub(super) fn new(generation: u64) -> Self {
        Self {
            generation,
            lanes: HashMap::new(),
            items: Slab::default(),
            last_epoch: 0,
        }
    }

    /// Takes an item in. True if its lane is to be queued.
    ///
    /// # Errors
    /// [`Gap`].
    pub(super) fn push(&mut self, item: OutboxItem, now: Instant) -> Result<bool, Gap> {
        let OutboxItem { lane, seq, item } = item;
        let lane = match self.lanes.entry(lane) {
            Entry::Occupied(lane) => lane.into_mut(),
            Entry::Vacant(vacant) => {
                self.last_epoch += 1;
                vacant.insert(Lane {
                    mark: seq - 1,
                    sent: seq - 1,
                    last: seq - 1,
                    first: 0,
                    unsent: 0,
                    tail: 0,
                    epoch: self.last_epoch,
                    rewinds: 0,
                    since: now,
                    queued: false,
                })
            }
        };
        if seq <= lane.last {
            // Applied while the outbox was being loaded: it came with both.
            return Ok(false);
        }
        if seq != lane.last + 1 {
            return Err(Gap);
        }
        let place = self.items.add(item);
        if lane.tail != 0 {
            self.items.set_next(lane.tail, place);
        }
        for none in [&mut lane.first, &mut lane.unsent] {
            if *none == 0 {
                *none = place;
            }
        }
        (lane.tail, lane.last) = (place, seq);
        Ok(lane.becomes_ready())
    }

    /// Encodes what is due of a lane into a frame and gives it as a run. The flag: there is more.
    pub(super) fn ship(
        &mut self,
        id: LaneId,
        room: &mut Room,
        frame: &mut Vec<u8>,
    ) -> (Option<Run>, bool) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return (None, false);
        };
        lane.queued = false;
        let (first, begin) = (lane.sent + 1, frame.len());
        while lane.has_more() && room.items > 0 && frame.len() - begin < room.bytes {
            let (item, next) = self.items.get(lane.unsent);
            Items::push(item, frame);
            room.items -= 1;
            lane.sent += 1;
            lane.unsent = next;
        }
        room.bytes = room.bytes.saturating_sub(frame.len() - begin);
        let run = (lane.sent >= first).then_some(Run {
            lane: id,
            seqs: first..=lane.sent,
            epoch: lane.epoch,
        });
        let more = lane.becomes_ready();
        (run, more)
    }

    /// Takes note of the mark that a run was answered with.
    pub(super) fn marked(&mut self, run: &Run, mark: u64, now: Instant) -> Answered {
        let mut answered = Answered::default();
        let Some(lane) = self.lanes.get_mut(&run.lane) else {
            return answered;
        };
        answered.ahead = mark > lane.last;
        let mark = mark.min(lane.last);
        while lane.mark < mark {
            let next = self.items.remove(lane.first);
            if lane.sent == lane.mark {
                // It had been rewound, and what went before has arrived after all.
                lane.sent += 1;
                lane.unsent = next;
            }
            lane.first = next;
            lane.mark += 1;
            answered.arrived += 1;
        }
        if lane.mark == lane.last {
            self.lanes.remove(&run.lane);
            return answered;
        }
        if answered.arrived > 0 {
            (lane.rewinds, lane.since) = (0, now);
        }
        if mark < *run.seqs.end() && run.epoch == lane.epoch {
            answered.rewound = Some(self.rewind(run.lane));
        } else {
            answered.ready = lane.becomes_ready();
        }
        answered
    }

    /// Has a run sent again, unless the lane has begun anew since. Gives how often in a row.
    pub(super) fn failed(&mut self, run: &Run) -> Option<u32> {
        let lane = self.lanes.get(&run.lane)?;
        (run.epoch == lane.epoch).then(|| self.rewind(run.lane))
    }

    /// The lane then waits to be queued by whoever asked for it.
    fn rewind(&mut self, id: LaneId) -> u32 {
        let lane = self.lanes.get_mut(&id).expect("looked up before");
        (lane.sent, lane.unsent) = (lane.mark, lane.first);
        self.last_epoch += 1;
        lane.epoch = self.last_epoch;
        lane.rewinds += 1;
        lane.rewinds
    }

    /// Notes that a lane is put into a queue. False if it is in one already or has nothing to ship.
    pub(super) fn enqueue(&mut self, id: LaneId) -> bool {
        self.lanes.get_mut(&id).is_some_and(Lane::becomes_ready)
    }

    /// Whether the first item of a lane is still what it was: its crc is made over again.
    pub(super) fn first_is_sound(&self, id: LaneId) -> bool {
        let Some(lane) = self.lanes.get(&id) else {
            return true;
        };
        let mut encoded = Vec::new();
        self.items.get(lane.first).0.encode(&mut encoded);
        Item::decode(&Bytes::from(encoded)).is_ok()
    }

    /// Copies what a lane's items point into: they may wait long, and must not pin whole entries.
    pub(super) fn detach(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get(&id) else {
            return;
        };
        let mut place = lane.first;
        while place != 0 {
            place = self.items.detach(place);
        }
    }

    /// How long the item has waited that waits longest.
    pub(super) fn oldest(&self, now: Instant) -> Option<Duration> {
        let since = self.lanes.values().map(|lane| lane.since).min()?;
        Some(now.saturating_duration_since(since))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }
}

impl Lane {
    fn has_more(&self) -> bool {
        self.sent < self.last && self.sent - self.mark < LANE_WINDOW
    }

    fn becomes_ready(&mut self) -> bool {
        let ready = self.has_more() && !self.queued;
        self.queued |= ready;
        ready
    }
}

/// Items in linked lists. Places begin at 1.
#[derive(Debug, Default)]
struct Slab {
    nodes: Vec<Node>,
    free: u32,
}

#[derive(Debug)]
struct Node {
    item: Option<Item>,
    next: u32,
}

impl Slab {
    fn add(&mut self, item: Item) -> u32 {
        let item = Some(item);
        if self.free == 0 {
            self.nodes.push(Node { item, next: 0 });
            return u32::try_from(self.nodes.len()).expect("outbox_bytes_max allows fewer items");
        }
        let place = self.free;
        let node = self.node(place);
        let free = std::mem::take(&mut node.next);
        node.item = item;
        self.free = free;
        place
    }

    /// Gives the place after it.
    fn remove(&mut self, place: u32) -> u32 {
        let free = self.free;
        let node = self.node(place);
        node.item = None;
        let next = std::mem::replace(&mut node.next, free);
        self.free = place;
        next
    }

    fn get(&self, place: u32) -> (&Item, u32) {
        let node = &self.nodes[place as usize - 1];
        (
            node.item.as_ref().expect("a place in a lane is in use"),
            node.next,
        )
    }

    fn set_next(&mut self, place: u32, next: u32) {
        self.node(place).next = next;
    }

    fn detach(&mut self, place: u32) -> u32 {
        let node = self.node(place);
        if let Some(Item::Message { row, .. }) = &mut node.item {
            row.body = Bytes::copy_from_slice(&row.body);
        }
        node.next
    }

    fn node(&mut self, place: u32) -> &mut Node {
        &mut self.nodes[place as usize - 1]
    }
}
