//! Runs that are refused where they were shipped to: their slots are elsewhere, or on their way.

use mailbox_api::peer::RunRefusal;

use super::*;

/// Refuses one run of a shipment, as its slot is not there.
fn refuse(reply: &mut ShipmentReply, at: usize) {
    reply.marks[at] = 0;
    reply.refused.push(RunRefusal {
        run: u32::try_from(at).expect("few"),
        code: ErrorCode::WrongShard as u32,
        message: String::new(),
    });
}

/// The answer to a frame of one run, which is refused.
fn refused(frame: &DeliverFrame) -> Vec<ShipmentReply> {
    let mut reply = ShipmentReply {
        id: frame.shipments[0].id,
        marks: vec![0],
        ..ShipmentReply::default()
    };
    refuse(&mut reply, 0);
    vec![reply]
}

/// Where a frame of one shipment goes, and its runs.
fn sent(frame: &DeliverFrame) -> (u32, Vec<(u32, u64, usize)>) {
    assert_eq!(frame.shipments.len(), 1);
    (frame.shipments[0].shard, runs(frame))
}

/// Refuses what there is so often that the next pause is long.
fn refuse_often(bench: &mut Bench) {
    for _ in 0..8 {
        bench.now = bench.outgoing.deadline(bench.now).unwrap_or(bench.now);
        let frame = bench.frame();
        bench.answer(refused(&frame));
    }
}

#[test]
fn a_refused_run_waits_and_the_others_go_on() {
    let mut bench = Bench::new([items(5, 1..=1), items(6, 1..=1)].concat());
    let frame = bench.frame();
    let mut reply = bench.shards.take(&frame.shipments[0]);
    let mut shipped = frame.shipments[0].runs.iter();
    let at = shipped.position(|run| run.destination == 5);
    refuse(&mut reply, at.expect("it was shipped"));
    bench.answer(vec![reply]);
    assert_eq!(bench.acked, BTreeMap::from([(6, 1)]));
    assert!(bench.frames().is_empty());
    bench.later(10);
    assert_eq!(runs(&bench.frame()), [(5, 1, 1)]);
}

#[test]
fn what_waits_goes_at_once_and_in_order_to_where_a_new_map_has_its_slot() {
    let mut bench = Bench::new(items(5, 1..=2));
    refuse_often(&mut bench);
    bench.push(items(5, 3..=3));
    bench.outgoing.look_again(&bench.places);
    assert!(bench.frames().is_empty(), "its slot is where it was");
    bench.places.merged = true;
    bench.outgoing.look_again(&bench.places);
    let frame = bench.frame();
    assert_eq!(sent(&frame), (3, vec![(5, 1, 3)]));
    assert!(bench.frames().is_empty(), "it goes once");
}

#[test]
fn what_is_refused_after_its_slot_has_moved_on_does_not_wait() {
    let mut bench = Bench::new(items(5, 1..=2));
    refuse_often(&mut bench);
    bench.now = bench.outgoing.deadline(bench.now).expect("a pause");
    let frame = bench.frame();
    bench.push(items(5, 3..=3));
    // It goes on without what is on its way, which the old place refuses and the new one has not got.
    let ahead = bench.frame();
    bench.places.merged = true;
    bench.outgoing.look_again(&bench.places);
    bench.answer(refused(&frame));
    assert_eq!(sent(&bench.frame()), (3, vec![(5, 1, 3)]));
    bench.answer(refused(&ahead));
    assert!(
        bench.frames().is_empty(),
        "it was sent again with the first"
    );
}
