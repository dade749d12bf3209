//! The lanes of a shard's slots, in memory: what their sources have sent and not yet seen acked,
//! and how far their destinations have got.
//!
//! ```text
//! source slot:       acked ≤ mark of the destination ≤ sent;  outbox = the items above acked
//! destination slot:  mark: everything up to it has taken effect, nothing above it has
//! ```
//!
//! Apply changes them here, not in the memtable: most items are acked before their memtable is
//! frozen, and a lane that moves a thousand times between two flushes is one entry of one row.
//! [`Lanes::freeze`] writes, at each freeze, what has changed since the one before: the table row
//! of each slot with a changed lane, unacked items that are in no file yet, and tombstones for
//! those in files that have been acked. So a flush holds the lanes as they were at its last entry,
//! and an open or an install reads them back from there. What an item points into is copied at
//! that moment: no entry outlives its memtable because of a lane.
//!
//! Look-ups are index arithmetic: by slot, then by the other slot's page. There are as many lanes
//! as pairs of slots, so a page is made when a lane of it is first used, and a lane is 24 bytes.

mod rows;

use crate::id::SlotId;
use crate::item::{INCARNATION, Item, LaneId, OutboxItem};

pub(crate) use rows::{check_row, read_lanes, read_slot};

/// Lanes of one page.
const PAGE: usize = 64;

/// The lanes of one shard.
#[derive(Default)]
pub(crate) struct Lanes {
    /// By source slot.
    sources: Vec<Pages<Lane>>,
    /// By destination slot: the marks of the lanes that end there.
    marks: Vec<Pages<u64>>,
    /// Slots with lanes that have changed since the last freeze, each once.
    changed_sources: Vec<SlotId>,
    changed_marks: Vec<SlotId>,
    /// Items in files that were acked since the last freeze.
    gone: Vec<(LaneId, u64)>,
    items: Slab,
}

/// Per slot: something for each other slot.
struct Pages<T> {
    pages: Vec<Option<Box<[T; PAGE]>>>,
    changed: bool,
}

impl<T> Default for Pages<T> {
    fn default() -> Pages<T> {
        Pages {
            pages: Vec::new(),
            changed: false,
        }
    }
}

impl<T: Copy + Default> Pages<T> {
    fn get(&self, slot: SlotId) -> T {
        let slot = usize::from(slot.0);
        match self.pages.get(slot / PAGE) {
            Some(Some(page)) => page[slot % PAGE],
            Some(None) | None => T::default(),
        }
    }

    fn get_mut(&mut self, slot: SlotId) -> &mut T {
        let slot = usize::from(slot.0);
        if self.pages.len() <= slot / PAGE {
            self.pages.resize_with(slot / PAGE + 1, || None);
        }
        let page = self.pages[slot / PAGE].get_or_insert_with(|| Box::new([T::default(); PAGE]));
        &mut page[slot % PAGE]
    }

    /// What pages there are, in the order of the slots.
    fn iter(&self) -> impl Iterator<Item = (SlotId, T)> {
        let pages = (0_u16..).step_by(PAGE).zip(&self.pages);
        pages.flat_map(|(first, page)| {
            let slots = page.iter().flat_map(|page| page.iter());
            (first..).map(SlotId).zip(slots.copied())
        })
    }
}

/// The source's side of a lane.
#[derive(Clone, Copy, Default)]
struct Lane {
    /// Greatest lane seq allocated: dense from 1.
    sent: u64,
    /// Greatest lane seq that the destination is known to have.
    acked: u64,
    /// Places of the first and the last unacked item, which form a list.
    first: Place,
    last: Place,
}

/// A place in the slab plus one; 0 is none.
type Place = u32;

/// Unacked items of all lanes: places are used again, so that an item costs no allocation.
#[derive(Default)]
struct Slab {
    nodes: Vec<Node>,
    free: Place,
    /// Items here.
    count: usize,
    /// Their encoded lengths.
    bytes: u64,
}

struct Node {
    item: Option<Item>,
    /// The lane's next item, or the next free place.
    next: Place,
    /// A row of a frozen memtable, or of a file, holds it.
    written: bool,
}

/// Places that an emptied slab keeps.
const SLAB_KEEP: usize = 4096;

impl Slab {
    fn node(&mut self, place: Place) -> &mut Node {
        &mut self.nodes[index(place)]
    }

    fn push(&mut self, item: Item, written: bool) -> Place {
        self.count += 1;
        self.bytes += length(&item);
        let item = Some(item);
        let node = Node {
            item,
            next: 0,
            written,
        };
        if self.free == 0 {
            self.nodes.push(node);
            return Place::try_from(self.nodes.len()).expect("admission bounds outboxes");
        }
        let place = self.free;
        self.free = self.node(place).next;
        *self.node(place) = node;
        place
    }

    /// Frees a place; gives the lane's next one, and whether a row holds the item.
    fn pop(&mut self, place: Place) -> (Place, bool) {
        let free = self.free;
        let node = self.node(place);
        let item = node.item.take().expect("a place in a list is in use");
        let (next, written) = (node.next, node.written);
        node.next = free;
        self.free = place;
        self.count -= 1;
        self.bytes -= length(&item);
        if self.count == 0 && self.nodes.len() > SLAB_KEEP {
            *self = Slab::default();
        }
        (next, written)
    }
}

fn index(place: Place) -> usize {
    usize::try_from(place - 1).expect("a u32 fits")
}

fn length(item: &Item) -> u64 {
    u64::try_from(item.encoded_len()).expect("a usize fits")
}

fn slot_of<T>(slots: &[T], slot: SlotId) -> Option<&T> {
    slots.get(usize::from(slot.0))
}

fn slot_mut<T: Default>(slots: &mut Vec<T>, slot: SlotId) -> &mut T {
    let slot = usize::from(slot.0);
    if slots.len() <= slot {
        slots.resize_with(slot + 1, T::default);
    }
    &mut slots[slot]
}

impl Lanes {
    fn lane(&self, source: SlotId, destination: SlotId) -> Lane {
        slot_of(&self.sources, source).map_or_else(Lane::default, |lanes| lanes.get(destination))
    }

    fn note_change(&mut self, source: SlotId) {
        let lanes = slot_mut(&mut self.sources, source);
        if !lanes.changed {
            lanes.changed = true;
            self.changed_sources.push(source);
        }
    }

    /// Greatest lane seq that has taken effect in a destination of this shard.
    pub(crate) fn mark(&self, source: SlotId, destination: SlotId) -> u64 {
        slot_of(&self.marks, destination).map_or(0, |marks| marks.get(source))
    }

    /// Greatest lane seq allocated, and greatest acked, in a source of this shard.
    pub(crate) fn sent_and_acked(&self, source: SlotId, destination: SlotId) -> (u64, u64) {
        let lane = self.lane(source, destination);
        (lane.sent, lane.acked)
    }

    /// Both slots are in this shard, and nothing rides the lane between them: an item may take
    /// effect at once, without a lane seq.
    pub(crate) fn is_level(&self, source: SlotId, destination: SlotId) -> bool {
        let (lane, mark) = (
            self.lane(source, destination),
            self.mark(source, destination),
        );
        assert!(
            lane.acked <= mark && mark <= lane.sent,
            "lane {}: acked {} ≤ mark {mark} ≤ sent {}",
            LaneId::between(source, destination),
            lane.acked,
            lane.sent
        );
        mark == lane.sent
    }

    /// Puts an item into the outbox; gives its lane seq. The only place that issues one.
    pub(crate) fn push(&mut self, source: SlotId, destination: SlotId, item: Item) -> u64 {
        self.note_change(source);
        let place = self.items.push(item, false);
        self.link(source, destination, place)
    }

    fn link(&mut self, source: SlotId, destination: SlotId, place: Place) -> u64 {
        let lane = slot_mut(&mut self.sources, source).get_mut(destination);
        lane.sent += 1;
        let (seq, last) = (lane.sent, lane.last);
        lane.last = place;
        if last == 0 {
            lane.first = place;
            assert_eq!(lane.acked + 1, seq, "an empty outbox has everything acked");
        } else {
            self.items.node(last).next = place;
        }
        seq
    }

    /// Forgets the lanes of a slot that has left the shard, those that begin in it and those that end.
    pub(crate) fn remove_slot(&mut self, slot: SlotId) {
        if let Some(lanes) = self.sources.get_mut(usize::from(slot.0)) {
            for (_, lane) in std::mem::take(lanes).iter() {
                let mut place = lane.first;
                while place != 0 {
                    (place, _) = self.items.pop(place);
                }
            }
        }
        if let Some(marks) = self.marks.get_mut(usize::from(slot.0)) {
            *marks = Pages::default();
        }
        self.changed_sources.retain(|source| *source != slot);
        self.changed_marks
            .retain(|destination| *destination != slot);
        self.gone.retain(|(lane, _)| lane.source != slot);
    }

    /// Raises a lane's acked point; a lower one changes nothing. At most up to what was sent.
    pub(crate) fn ack(&mut self, source: SlotId, destination: SlotId, up_to: u64) {
        let before = self.lane(source, destination);
        assert!(
            up_to <= before.sent,
            "what was not sent cannot have arrived"
        );
        if up_to <= before.acked {
            return;
        }
        let mut first = before.first;
        for seq in before.acked + 1..=up_to {
            let (next, written) = self.items.pop(first);
            first = next;
            if written {
                self.gone.push((LaneId::between(source, destination), seq));
            }
        }
        self.note_change(source);
        let lane = slot_mut(&mut self.sources, source).get_mut(destination);
        lane.acked = up_to;
        lane.first = first;
        if first == 0 {
            lane.last = 0;
            assert_eq!(lane.acked, lane.sent, "an outbox is dense");
        }
    }

    /// Moves a mark of a destination in this shard by one, in the apply that takes the item in.
    pub(crate) fn advance(&mut self, source: SlotId, destination: SlotId) -> u64 {
        let marks = slot_mut(&mut self.marks, destination);
        if !marks.changed {
            marks.changed = true;
            self.changed_marks.push(destination);
        }
        let mark = marks.get_mut(source);
        *mark += 1;
        *mark
    }

    /// As read from files: no change.
    fn set_acked(&mut self, source: SlotId, destination: SlotId, acked: u64) {
        let lane = slot_mut(&mut self.sources, source).get_mut(destination);
        (lane.sent, lane.acked) = (acked, acked);
    }

    /// As read from files: no change.
    fn set_mark(&mut self, source: SlotId, destination: SlotId, mark: u64) {
        *slot_mut(&mut self.marks, destination).get_mut(source) = mark;
    }

    /// As read from files: no change.
    fn put_back(&mut self, source: SlotId, destination: SlotId, item: Item) -> u64 {
        let place = self.items.push(item, true);
        self.link(source, destination, place)
    }

    /// Unacked items of the sources that are wanted, lane by lane, in lane seq order.
    pub(crate) fn unacked(&self, wanted: impl Fn(SlotId) -> bool) -> Vec<OutboxItem> {
        let mut items = Vec::with_capacity(self.items.count);
        self.each_unacked(|lane, seq, node| {
            if !wanted(lane.source) {
                return;
            }
            let item = node.item.clone().expect("a place in a list is in use");
            items.push(OutboxItem { lane, seq, item });
        });
        items
    }

    fn each_unacked(&self, mut take: impl FnMut(LaneId, u64, &Node)) {
        for (source, lanes) in (0..).map(SlotId).zip(&self.sources) {
            for (destination, lane) in lanes.iter() {
                let (mut place, mut seq) = (lane.first, lane.acked);
                while place != 0 {
                    seq += 1;
                    let node = &self.items.nodes[index(place)];
                    take(LaneId::between(source, destination), seq, node);
                    place = node.next;
                }
            }
        }
    }

    /// Bytes of the unacked items, encoded.
    pub(crate) fn outbox_bytes(&self) -> u64 {
        self.items.bytes
    }

    /// How many items are unacked.
    pub(crate) fn outbox_items(&self) -> usize {
        self.items.count
    }
}

/// A lane is known if both its slots can exist in these incarnations.
pub(crate) fn is_known(lane: LaneId, slot_count: u16) -> bool {
    lane.source.0 < slot_count
        && lane.destination.0 < slot_count
        && lane.source_incarnation == INCARNATION
        && lane.destination_incarnation == INCARNATION
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::id::UserId;

    fn item(number: u64) -> Item {
        Item::UserMade {
            user: UserId(number),
            handle: Bytes::from_static(b"handle"),
        }
    }

    fn numbers(lanes: &Lanes) -> Vec<(u16, u64, u64)> {
        let number = |item: OutboxItem| match item.item {
            Item::UserMade { user, .. } => (item.lane.destination.0, item.seq, user.0),
            other => panic!("{other:?}"),
        };
        lanes.unacked(|_| true).into_iter().map(number).collect()
    }

    const A: SlotId = SlotId(3);
    const B: SlotId = SlotId(700);
    const C: SlotId = SlotId(65);

    #[test]
    fn an_outbox_is_what_was_sent_and_not_acked() {
        let mut lanes = Lanes::default();
        for number in 1..=3 {
            assert_eq!(lanes.push(A, B, item(number)), number);
        }
        assert_eq!(lanes.push(A, C, item(10)), 1);
        assert_eq!(
            numbers(&lanes),
            [(65, 1, 10), (700, 1, 1), (700, 2, 2), (700, 3, 3)]
        );
        lanes.ack(A, B, 2);
        lanes.ack(A, B, 1);
        assert_eq!(lanes.sent_and_acked(A, B), (3, 2));
        assert_eq!(numbers(&lanes), [(65, 1, 10), (700, 3, 3)]);
        lanes.ack(A, B, 3);
        assert_eq!(lanes.push(A, B, item(4)), 4);
        assert_eq!(numbers(&lanes), [(65, 1, 10), (700, 4, 4)]);
        assert_eq!(lanes.outbox_items(), 2);
        assert_eq!(lanes.outbox_bytes(), length(&item(4)) * 2);
    }

    #[test]
    fn a_slot_that_leaves_takes_its_lanes_along_and_no_others() {
        let mut lanes = Lanes::default();
        for number in 1..=3 {
            lanes.push(A, B, item(number));
            lanes.push(C, B, item(10 * number));
            lanes.advance(B, A);
            lanes.advance(B, C);
        }
        lanes.freeze(&mut crate::memtable::Memtable::default());
        lanes.ack(A, B, 1);
        lanes.ack(C, B, 1);
        lanes.remove_slot(A);
        assert_eq!(numbers(&lanes), [(700, 2, 20), (700, 3, 30)]);
        assert_eq!((lanes.sent_and_acked(A, B), lanes.mark(B, A)), ((0, 0), 0));
        assert_eq!((lanes.sent_and_acked(C, B), lanes.mark(B, C)), ((3, 1), 3));
        let mut rows = Vec::new();
        lanes.unfrozen(&mut |slot, _, _| rows.push(slot));
        assert_eq!(
            rows,
            [C, C],
            "the table of C, and the tombstone of its first item"
        );
        assert_eq!(lanes.outbox_bytes(), length(&item(20)) + length(&item(30)));
    }

    #[test]
    fn places_are_used_again() {
        let mut lanes = Lanes::default();
        for round in 1..=100 {
            assert_eq!(lanes.push(A, B, item(round)), round);
            lanes.push(A, C, item(round));
            lanes.ack(A, B, round);
            lanes.ack(A, C, round);
        }
        assert_eq!(lanes.items.nodes.len(), 2);
        assert_eq!(lanes.outbox_bytes(), 0);
    }

    #[test]
    #[should_panic(expected = "what was not sent cannot have arrived")]
    fn an_ack_ahead_is_an_error() {
        let mut lanes = Lanes::default();
        lanes.push(A, B, item(1));
        lanes.ack(A, B, 2);
    }
}
