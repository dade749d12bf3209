//! The relay against destinations that lose, repeat and reorder what they get and what they say.

mod refusals;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mailbox_api::peer::{
    DeliverFrame, DeliverReply, LaneRun, Shipment, ShipmentFault, ShipmentReply,
};
use mailbox_api::v1::ErrorCode;
use mailbox_engine::{Item, LaneId, OutboxItem, ShardId, SlotId, UserId};

use super::outgoing::{FRAME_BYTES_FULL, FRAME_ITEMS_MAX, Outgoing};
use super::places::{Place, Places};
use crate::metrics::LaneMetrics;

const SOURCE: ShardId = ShardId(1);
const NODE: u64 = 2;

/// Slots below 100 are in shard 2, the others in shard 3; `NODE` leads both, unless told otherwise.
#[derive(Default)]
struct Fixed {
    leaderless: HashSet<ShardId>,
    /// All slots are in shard 3.
    merged: bool,
}

impl Places for Fixed {
    fn shard_of(&self, slot: SlotId) -> ShardId {
        ShardId(if slot.0 < 100 && !self.merged { 2 } else { 3 })
    }

    fn leader_of(&self, shard: ShardId) -> Option<Place> {
        (!self.leaderless.contains(&shard)).then(|| place(NODE))
    }

    fn not_led_by(&self, _: ShardId, _: u64) {}
}

fn place(node: u64) -> Place {
    let address = format!("h:{node}");
    Place { node, address }
}

fn lane(destination: u16) -> LaneId {
    LaneId::between(SlotId(7), SlotId(destination))
}

fn item(destination: u16, seq: u64) -> OutboxItem {
    let handle = Bytes::from(format!("{destination}/{seq}"));
    let user = UserId(seq);
    let item = Item::UserMade { user, handle };
    let lane = lane(destination);
    OutboxItem { lane, seq, item }
}

fn items(destination: u16, seqs: std::ops::RangeInclusive<u64>) -> Vec<OutboxItem> {
    seqs.map(|seq| item(destination, seq)).collect()
}

fn decoded(run: &LaneRun) -> Vec<Item> {
    let (mut rest, mut items) = (run.items.clone(), Vec::new());
    while !rest.is_empty() {
        let len = u32::from_be_bytes(rest.split_to(4)[..].try_into().expect("four"));
        items.push(Item::decode(&rest.split_to(len as usize)).expect("sound"));
    }
    items
}

/// The rule of apply: marks rise one by one.
#[derive(Default)]
struct FakeShards {
    marks: HashMap<u16, u64>,
}

impl FakeShards {
    fn take(&mut self, shipment: &Shipment) -> ShipmentReply {
        let mut reply = ShipmentReply {
            id: shipment.id,
            ..ShipmentReply::default()
        };
        for run in &shipment.runs {
            let destination = u16::try_from(run.destination).expect("a slot");
            let shard = Fixed::default().shard_of(SlotId(destination));
            assert_eq!(shard.0, shipment.shard);
            let mark = self.marks.entry(destination).or_default();
            for (seq, got) in (run.first_seq..).zip(decoded(run)) {
                // One lane seq is one item, however often it comes.
                assert_eq!(got, item(destination, seq).item);
                if seq == *mark + 1 {
                    *mark = seq;
                }
            }
            reply.marks.push(*mark);
        }
        reply
    }
}

struct Bench {
    outgoing: Outgoing,
    places: Fixed,
    shards: FakeShards,
    now: Instant,
    acked: BTreeMap<u16, u64>,
}

impl Bench {
    fn new(loaded: Vec<OutboxItem>) -> Bench {
        let mut bench = Bench {
            outgoing: Outgoing::new(LaneMetrics::default()),
            places: Fixed::default(),
            shards: FakeShards::default(),
            now: Instant::now(),
            acked: BTreeMap::new(),
        };
        let (now, places) = (bench.now, &bench.places);
        bench.outgoing.load(SOURCE, loaded, now, places);
        bench
    }

    fn push(&mut self, items: Vec<OutboxItem>) {
        let pushed = self.outgoing.push(SOURCE, items, self.now, &self.places);
        pushed.expect("no gap");
    }

    fn frames(&mut self) -> Vec<(Place, DeliverFrame)> {
        self.outgoing.frames(self.now, &self.places)
    }

    /// The one frame that goes now.
    fn frame(&mut self) -> DeliverFrame {
        let mut frames = self.frames();
        assert_eq!(frames.len(), 1, "{frames:?}");
        frames.remove(0).1
    }

    fn answer(&mut self, shipments: Vec<ShipmentReply>) {
        let reply = DeliverReply { shipments };
        self.outgoing.answered(reply, self.now, &self.places);
        for (source, acks) in self.outgoing.take_effects().acks {
            assert_eq!(source, SOURCE);
            for (lane, mark) in acks {
                let acked = self.acked.entry(lane.destination.0).or_default();
                assert!(mark > *acked, "an ack tells something new");
                assert!(mark <= self.shards.marks[&lane.destination.0]);
                *acked = mark;
            }
        }
    }

    fn deliver(&mut self, frame: &DeliverFrame) {
        let replies = frame.shipments.iter().map(|it| self.shards.take(it));
        let replies = replies.collect();
        self.answer(replies);
    }

    fn later(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }
}

/// First seqs and counts of a frame's runs, by destination slot.
fn runs(frame: &DeliverFrame) -> Vec<(u32, u64, usize)> {
    let runs = frame.shipments.iter().flat_map(|shipment| &shipment.runs);
    let mut runs: Vec<_> = runs
        .map(|run| (run.destination, run.first_seq, decoded(run).len()))
        .collect();
    runs.sort_unstable();
    runs
}

#[test]
fn what_waits_goes_together_and_what_arrived_is_acked() {
    let mut bench = Bench::new([items(5, 3..=4), items(200, 1..=1)].concat());
    bench.shards.marks.insert(5, 2);
    bench.push(items(6, 1..=2));
    let frame = bench.frame();
    assert_eq!(runs(&frame), [(5, 3, 2), (6, 1, 2), (200, 1, 1)]);
    assert_eq!(frame.shipments.len(), 2);
    assert!(bench.frames().is_empty());
    bench.deliver(&frame);
    assert_eq!(bench.acked, BTreeMap::from([(5, 4), (6, 2), (200, 1)]));
    assert!(bench.outgoing.is_empty());
    assert_eq!(bench.outgoing.deadline(bench.now), None);
}

#[test]
fn two_frames_are_under_way_and_what_comes_meanwhile_makes_one_more() {
    let mut bench = Bench::new(items(5, 1..=1));
    let first = bench.frame();
    bench.push(items(5, 2..=2));
    let second = bench.frame();
    for seq in 3..=9 {
        bench.push(items(5, seq..=seq));
        assert!(bench.frames().is_empty());
    }
    bench.deliver(&first);
    let third = bench.frame();
    assert_eq!(runs(&third), [(5, 3, 7)]);
    bench.deliver(&second);
    bench.deliver(&third);
    assert_eq!(bench.acked[&5], 9);
}

#[test]
fn a_lost_frame_makes_one_rewind_however_many_gaps_it_causes() {
    let mut bench = Bench::new(items(5, 1..=2));
    let lost = bench.frame();
    bench.push(items(5, 3..=4));
    let ahead = bench.frame();
    bench.deliver(&ahead);
    assert_eq!(runs(&bench.frame()), [(5, 1, 4)]);
    // The first one came after all, and is answered after the rewind: nothing goes twice for it.
    bench.deliver(&lost);
    assert!(bench.frames().is_empty());
    assert_eq!(bench.acked[&5], 2);
    bench.push(items(5, 5..=5));
    assert_eq!(runs(&bench.frame()), [(5, 5, 1)]);
}

#[test]
fn a_shard_that_does_not_answer_holds_up_no_other() {
    let mut bench = Bench::new([items(5, 1..=1), items(200, 1..=1)].concat());
    let frame = bench.frame();
    let answered = frame.shipments.iter().find(|it| it.shard == 3);
    let reply = bench.shards.take(answered.expect("of shard 3"));
    bench.answer(vec![reply]);
    bench.push(items(5, 2..=2));
    let _of_shard_2 = bench.frame();
    bench.push([items(5, 3..=3), items(200, 2..=2)].concat());
    assert!(bench.frames().is_empty(), "both frames count for now");
    assert!(bench.outgoing.deadline(bench.now).is_some());
    bench.later(300);
    let frame = bench.frame();
    assert_eq!(runs(&frame), [(200, 2, 1)]);
    bench.deliver(&frame);
    bench.push(items(200, 3..=3));
    assert_eq!(runs(&bench.frame()), [(200, 3, 1)]);
}

#[test]
fn a_named_leader_is_asked_at_once_and_an_unknown_one_after_a_pause() {
    let mut bench = Bench::new(items(5, 1..=2));
    let frame = bench.frame();
    let fault = |leader: u64, frame: &DeliverFrame| ShipmentReply {
        id: frame.shipments[0].id,
        fault: Some(ShipmentFault {
            code: ErrorCode::NotLeader as u32,
            leader_node: leader,
            leader_address: format!("h:{leader}"),
            ..ShipmentFault::default()
        }),
        ..ShipmentReply::default()
    };
    bench.answer(vec![fault(3, &frame)]);
    let mut frames = bench.frames();
    let (to, frame) = frames.remove(0);
    assert_eq!((to, runs(&frame)), (place(3), vec![(5, 1, 2)]));
    bench.answer(vec![fault(0, &frame)]);
    assert!(bench.frames().is_empty());
    let deadline = bench.outgoing.deadline(bench.now).expect("a pause");
    bench.now = deadline;
    let (to, frame) = bench.frames().remove(0);
    assert_eq!((to, runs(&frame)), (place(NODE), vec![(5, 1, 2)]));
    bench.deliver(&frame);
    assert_eq!(bench.acked[&5], 2);
}

#[test]
fn a_broken_stream_sends_everything_again() {
    let mut bench = Bench::new([items(5, 1..=2), items(200, 1..=1)].concat());
    let frame = bench.frame();
    // Half of it arrived, and nobody said so.
    bench.shards.take(&frame.shipments[0]);
    bench.outgoing.lost(NODE, bench.now, &bench.places);
    bench.later(10);
    let again = bench.frame();
    assert_eq!(runs(&again), runs(&frame));
    bench.deliver(&frame);
    assert!(
        bench.acked.is_empty(),
        "an answer of the old stream is nobody's"
    );
    bench.deliver(&again);
    assert_eq!(bench.acked, BTreeMap::from([(5, 2), (200, 1)]));
}

#[test]
fn a_shard_without_a_leader_waits_and_is_tried_when_one_is_known() {
    let mut bench = Bench::new(items(5, 1..=1));
    bench.places.leaderless.insert(ShardId(2));
    assert!(bench.frames().is_empty());
    bench.places.leaderless.clear();
    assert!(bench.frames().is_empty(), "the pause is not over");
    bench.outgoing.look_again(&bench.places);
    let frame = bench.frame();
    bench.deliver(&frame);
    assert!(bench.outgoing.is_empty());
}

#[test]
fn a_damaged_item_is_sent_again_after_a_pause_and_a_sound_row_is_kept() {
    let mut bench = Bench::new(items(5, 1..=3));
    let frame = bench.frame();
    bench.shards.marks.insert(5, 1);
    let reply = ShipmentReply {
        id: frame.shipments[0].id,
        marks: vec![1],
        corrupt: vec![0],
        ..ShipmentReply::default()
    };
    bench.answer(vec![reply]);
    assert!(bench.outgoing.take_effects().damaged.is_empty());
    assert!(bench.frames().is_empty());
    bench.later(10);
    let frame = bench.frame();
    assert_eq!(runs(&frame), [(5, 2, 2)]);
    bench.deliver(&frame);
    assert_eq!(bench.acked[&5], 3);
}

#[test]
fn a_damaged_row_of_our_own_is_told() {
    use mailbox_engine::{Flags, MessageId, MessageType, NewRow, Seq};
    let row = NewRow {
        message_id: MessageId(9),
        correspondent: UserId(1),
        client_msg_id: uuid::Uuid::nil(),
        sent_at_ms: 1,
        kind: MessageType(1),
        flags: Flags(0),
        content_crc: 12345,
        body: Bytes::from_static(b"not what it was"),
    };
    let item = Item::Message {
        recipient: UserId(2),
        home_seq: Seq(1),
        row,
    };
    let (lane, seq) = (lane(5), 1);
    let mut bench = Bench::new(vec![OutboxItem { lane, seq, item }]);
    let frame = bench.frame();
    let reply = ShipmentReply {
        id: frame.shipments[0].id,
        marks: vec![0],
        corrupt: vec![0],
        ..ShipmentReply::default()
    };
    let reply = DeliverReply {
        shipments: vec![reply],
    };
    bench.outgoing.answered(reply, bench.now, &bench.places);
    assert_eq!(bench.outgoing.take_effects().damaged, [SOURCE]);
}

#[test]
fn a_destination_that_has_more_than_was_sent_is_told_and_not_acked() {
    let mut bench = Bench::new(items(5, 1..=1));
    let frame = bench.frame();
    let reply = DeliverReply {
        shipments: vec![ShipmentReply {
            id: frame.shipments[0].id,
            marks: vec![9],
            ..ShipmentReply::default()
        }],
    };
    bench.outgoing.answered(reply, bench.now, &bench.places);
    let effects = bench.outgoing.take_effects();
    assert_eq!(effects.ahead, [(SOURCE, lane(5), 9)]);
    assert!(effects.acks.is_empty());
}

#[test]
fn frames_and_lanes_are_bounded() {
    let many: Vec<_> = (0..99).flat_map(|slot| items(slot, 1..=1100)).collect();
    let total = many.len();
    let mut bench = Bench::new(many);
    let mut delivered = 0;
    while let Some((_, frame)) = bench.frames().pop() {
        let sizes = runs(&frame);
        let count: usize = sizes.iter().map(|(_, _, count)| count).sum();
        assert!(count <= FRAME_ITEMS_MAX);
        assert!(sizes.iter().all(|(_, _, count)| *count <= 1024));
        let items = frame.shipments.iter().flat_map(|it| &it.runs);
        let bytes: usize = items.map(|run| run.items.len()).sum();
        assert!(bytes < FRAME_BYTES_FULL + 100);
        delivered += count;
        bench.deliver(&frame);
    }
    assert_eq!(delivered, total);
    assert!(bench.outgoing.is_empty());
}

#[test]
fn an_item_that_does_not_follow_asks_for_a_reload() {
    let mut bench = Bench::new(items(5, 1..=2));
    let pushed = |bench: &mut Bench, items| {
        let places = Fixed::default();
        bench.outgoing.push(SOURCE, items, bench.now, &places)
    };
    assert!(
        pushed(&mut bench, items(5, 2..=3)).is_ok(),
        "some come twice"
    );
    assert!(pushed(&mut bench, items(5, 5..=5)).is_err());
    let now = bench.now;
    let places = Fixed::default();
    bench.outgoing.load(SOURCE, items(5, 1..=5), now, &places);
    assert_eq!(runs(&bench.frame()), [(5, 1, 5)]);
}

#[test]
fn answers_to_an_earlier_leadership_change_nothing() {
    let mut bench = Bench::new(items(5, 1..=2));
    let old = bench.frame();
    bench.outgoing.drop_source(SOURCE);
    let (now, places) = (bench.now, Fixed::default());
    bench.outgoing.load(SOURCE, items(5, 1..=3), now, &places);
    bench.deliver(&old);
    assert!(bench.acked.is_empty());
    let frame = bench.frame();
    assert_eq!(runs(&frame), [(5, 1, 3)]);
    bench.deliver(&frame);
    assert_eq!(bench.acked[&5], 3);
}

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("small")
    }
}

#[test]
fn all_arrives_whatever_is_lost_repeated_and_reordered() {
    for seed in 1..=50 {
        let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed));
        let mut bench = Bench::new(Vec::new());
        let slots = [3, 4, 150, 151, 152];
        let mut sent: HashMap<u16, u64> = HashMap::new();
        let (mut frames, mut replies) = (Vec::new(), Vec::new());
        for step in 0.. {
            assert!(step < 20_000, "seed {seed}: it does not come to an end");
            let healed = step > 400;
            if step < 300 {
                let slot = slots[numbers.below(slots.len())];
                let seq = sent.entry(slot).or_default();
                let first = *seq + 1;
                *seq += numbers.below(3) as u64;
                bench.push(items(slot, first..=*seq));
            }
            frames.extend(bench.frames());
            if !frames.is_empty() {
                let at = if healed {
                    0
                } else {
                    numbers.below(frames.len())
                };
                let (_, frame) = frames.remove(at);
                match numbers.below(if healed { 1 } else { 8 }) {
                    6 => bench.outgoing.lost(NODE, bench.now, &bench.places),
                    7 => replies.extend(frame.shipments.iter().map(not_leader)),
                    _ => replies.extend(frame.shipments.iter().map(|it| bench.shards.take(it))),
                }
            }
            if !replies.is_empty() {
                let at = if healed {
                    0
                } else {
                    numbers.below(replies.len())
                };
                match numbers.below(if healed { 1 } else { 8 }) {
                    6 => bench.answer(vec![replies[at].clone()]),
                    7 => drop(replies.remove(at)),
                    _ => {
                        let reply = replies.remove(at);
                        bench.answer(vec![reply]);
                    }
                }
            }
            bench.later(numbers.below(20) as u64);
            for node in bench.outgoing.overdue(bench.now) {
                bench.outgoing.lost(node, bench.now, &bench.places);
            }
            if healed && frames.is_empty() && replies.is_empty() {
                if bench.outgoing.is_empty() {
                    break;
                }
                if let Some(deadline) = bench.outgoing.deadline(bench.now) {
                    bench.now = deadline;
                }
            }
        }
        for (slot, last) in sent {
            let mark = bench.shards.marks.get(&slot).copied().unwrap_or_default();
            assert_eq!(mark, last, "seed {seed}, slot {slot}");
            assert_eq!(bench.acked.get(&slot).copied().unwrap_or_default(), last);
        }
    }
}

fn not_leader(shipment: &Shipment) -> ShipmentReply {
    ShipmentReply {
        id: shipment.id,
        fault: Some(ShipmentFault {
            code: ErrorCode::NotLeader as u32,
            ..ShipmentFault::default()
        }),
        ..ShipmentReply::default()
    }
}

#[test]
fn what_waits_for_a_shard_that_is_retired_goes_to_where_its_slot_is_now() {
    let mut bench = Bench::new(items(5, 1..=3));
    bench.places.leaderless.insert(ShardId(2));
    assert_eq!(bench.frames(), []);
    // One lane waits in the queue of the shard, another one for its time.
    bench.push(items(6, 1..=1));
    bench.places.merged = true;
    for _ in 0..3 {
        bench.now = bench.outgoing.deadline(bench.now).expect("a pause");
        let frames = bench.frames();
        let shipments = frames.iter().flat_map(|(_, frame)| &frame.shipments);
        let sent: Vec<(u32, u32)> = shipments
            .flat_map(|to| to.runs.iter().map(|run| (to.shard, run.destination)))
            .collect();
        if !sent.is_empty() {
            assert_eq!(sent, [(3, 5), (3, 6)]);
            return;
        }
    }
    panic!("nothing goes");
}
