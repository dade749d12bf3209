//! The rules of lanes, one test each.

use bytes::Bytes;
use mailbox_engine::{
    AckLanes, Command, Deliver, IngestCrash, Item, Items, LaneId, MessageType, Refusal,
    RefusalCode, Reply, Seq, SlotId, UserId,
};

use crate::cluster::{Cluster, SLOT_COUNT, lane};

/// Two shards on two stores with a user in each, and the lane between the users.
fn pair() -> (Cluster, UserId, UserId, LaneId) {
    let mut cluster = Cluster::new(2, 2);
    let (alice, bob) = (cluster.user_in(0), cluster.user_in(1));
    (cluster, alice, bob, lane(alice, bob))
}

/// Lane seq of the next item: earlier ones are acked.
fn next_seq(cluster: &Cluster, lane: LaneId) -> u64 {
    cluster.sent.get(&lane).map_or(0, Vec::len) as u64 + 1
}

fn delivered(lane: LaneId, mark: u64) -> Reply {
    Reply::Delivered {
        lane,
        mark,
        corrupt: None,
    }
}

#[test]
fn a_send_is_acked_before_its_lane_moves() {
    let (mut cluster, alice, bob, lane) = pair();
    let first = next_seq(&cluster, lane);
    assert_eq!(cluster.send(alice, bob, "hello"), Seq(1));
    assert_eq!(cluster.bodies(alice), ["hello"]);
    assert_eq!(cluster.bodies(bob), [""; 0]);
    let unacked = cluster.shard(0).unacked();
    assert_eq!(unacked.len(), 1);
    assert_eq!((unacked[0].lane, unacked[0].seq), (lane, first));
    assert!(cluster.shard(0).outbox_bytes() > 5);
    cluster.drain();
    assert_eq!(cluster.bodies(bob), ["hello"]);
    let [sent, received] =
        [cluster.mailbox(alice), cluster.mailbox(bob)].map(|mut rows| rows.pop().unwrap());
    assert_eq!(sent.message_id, received.message_id);
    assert_eq!(sent.client_msg_id, received.client_msg_id);
    assert_eq!(sent.sent_at_ms, received.sent_at_ms);
    assert_eq!((received.sender, received.recipient), (alice, bob));
    assert_eq!(cluster.shard(0).outbox_bytes(), 0);
    assert_eq!(cluster.shard(0).lane_acked(lane), first);
}

#[test]
fn within_a_shard_a_send_arrives_at_once_and_takes_no_lane_seq() {
    let mut cluster = Cluster::new(2, 1);
    let (alice, carol) = (cluster.user_in(0), cluster.user_in(0));
    let sent = cluster.sent.clone();
    cluster.send(alice, carol, "near");
    assert_eq!(cluster.bodies(carol), ["near"]);
    assert_eq!(cluster.sent, sent);
    assert!(cluster.shard(0).unacked().is_empty());
}

#[test]
fn one_shard_has_no_outbox_at_all() {
    let mut cluster = Cluster::new(1, 1);
    let (alice, bob) = (cluster.user_in(0), cluster.user_in(0));
    cluster.send(alice, bob, "hello");
    cluster.send(alice, UserId(4711), "nobody");
    let command = cluster.create_command(alice);
    cluster.call(command);
    assert!(cluster.sent.is_empty());
    let refused = cluster.mailbox(alice).pop().unwrap();
    assert_eq!(refused.refused, Some((Seq(2), RefusalCode::UnknownUser)));
}

#[test]
fn what_was_delivered_is_an_ack_when_it_comes_again() {
    let (mut cluster, alice, bob, lane) = pair();
    let first = next_seq(&cluster, lane);
    for body in ["a", "b"] {
        cluster.send(alice, bob, body);
    }
    for _ in 0..3 {
        let frame = cluster.frame(lane, first, 2);
        assert_eq!(cluster.deliver(frame), delivered(lane, first + 1));
    }
    // From before the mark, with something new at its end.
    cluster.send(alice, bob, "c");
    let frame = cluster.frame(lane, first, 3);
    assert_eq!(cluster.deliver(frame), delivered(lane, first + 2));
    assert_eq!(cluster.bodies(bob), ["a", "b", "c"]);
}

#[test]
fn a_gap_changes_nothing_and_names_what_is_missing() {
    let (mut cluster, alice, bob, lane) = pair();
    let first = next_seq(&cluster, lane);
    for body in ["a", "b", "c"] {
        cluster.send(alice, bob, body);
    }
    let late = cluster.frame(lane, first + 1, 2);
    assert_eq!(cluster.deliver(late.clone()), delivered(lane, first - 1));
    assert_eq!(cluster.bodies(bob), [""; 0]);
    let frame = cluster.frame(lane, first, 1);
    assert_eq!(cluster.deliver(frame), delivered(lane, first));
    assert_eq!(cluster.deliver(late), delivered(lane, first + 2));
    assert_eq!(cluster.bodies(bob), ["a", "b", "c"]);
}

#[test]
fn an_unknown_recipient_is_a_recorded_refusal_and_the_lane_goes_on() {
    let (mut cluster, alice, bob, _) = pair();
    // Of the other shard, and of the same slot as Bob: on the same lane.
    let nobody = (1..)
        .map(|number| UserId(number << 16))
        .find(|user| lane(alice, *user) == lane(alice, bob));
    let nobody = nobody.unwrap();
    let seq = cluster.send(alice, nobody, "who are you?");
    cluster.send(alice, bob, "after it");
    assert_eq!(cluster.bodies(alice), ["who are you?", "after it"]);
    cluster.drain();
    assert_eq!(cluster.bodies(bob), ["after it"]);
    let rows = cluster.mailbox(alice);
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[2].kind, MessageType::REFUSAL);
    assert_eq!(rows[2].refused, Some((seq, RefusalCode::UnknownUser)));
    assert_eq!(rows[2].recipient, nobody);
    assert_eq!(rows[2].message_id, rows[0].message_id);
}

#[test]
fn a_refusal_is_never_answered() {
    let (mut cluster, _, bob, lane) = pair();
    // A refusal for a sender who does not exist: recorded, and nothing comes back.
    let back = LaneId::between(lane.destination, lane.source);
    let nobody = (1..)
        .map(|number| UserId(number << 16))
        .find(|user| crate::cluster::lane(bob, *user) == back)
        .unwrap();
    let refusal = Item::Refusal {
        sender: nobody,
        recipient: bob,
        message_id: cluster.message_id(),
        home_seq: Seq(1),
        code: RefusalCode::UnknownUser,
    };
    assert_eq!(refusal.lane(SLOT_COUNT), back);
    let first_seq = next_seq(&cluster, back);
    let sent = cluster.sent.clone();
    let reply = cluster.deliver(Deliver {
        lane: back,
        first_seq,
        items: Items::new([&refusal]),
    });
    assert_eq!(reply, delivered(back, first_seq));
    assert_eq!(cluster.sent, sent);
    assert!(cluster.shard(0).unacked().is_empty());
    assert_eq!(cluster.mailbox(nobody).len(), 1);
}

#[test]
fn a_damaged_item_changes_nothing_and_is_taken_when_it_comes_whole() {
    let (mut cluster, alice, bob, lane) = pair();
    let first = next_seq(&cluster, lane);
    for body in ["a", "b", "c"] {
        cluster.send(alice, bob, body);
    }
    let whole = cluster.frame(lane, first, 3);
    // In the second item's body.
    let mut bytes = whole.items.as_bytes().to_vec();
    let at = bytes.iter().rposition(|byte| *byte == b'b').unwrap();
    bytes[at] ^= 4;
    let damaged = Deliver {
        items: Items::from_bytes(bytes.into()),
        ..whole.clone()
    };
    let reply = Reply::Delivered {
        lane,
        mark: first,
        corrupt: Some(first + 1),
    };
    assert_eq!(cluster.deliver(damaged), reply);
    assert_eq!(cluster.bodies(bob), ["a"]);
    assert_eq!(cluster.deliver(whole), delivered(lane, first + 2));
    assert_eq!(cluster.bodies(bob), ["a", "b", "c"]);
}

#[test]
fn any_damage_to_a_frame_delivers_nothing_wrong_and_stops_nobody() {
    let (mut cluster, alice, bob, lane) = pair();
    let first = next_seq(&cluster, lane);
    cluster.send(alice, bob, "content");
    let whole = cluster.frame(lane, first, 1);
    for bit in 0..whole.items.as_bytes().len() * 8 {
        let mut bytes = whole.items.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let damaged = Deliver {
            items: Items::from_bytes(bytes.into()),
            ..whole.clone()
        };
        let reply = Reply::Delivered {
            lane,
            mark: first - 1,
            corrupt: Some(first),
        };
        assert_eq!(cluster.deliver(damaged), reply, "bit {bit}");
    }
    assert_eq!(cluster.deliver(whole), delivered(lane, first));
    assert_eq!(cluster.bodies(bob), ["content"]);
}

#[test]
fn an_item_of_another_lane_is_not_taken() {
    let (mut cluster, alice, bob, lane) = pair();
    let first = next_seq(&cluster, lane);
    cluster.send(alice, bob, "hello");
    let wrong = LaneId::between(SlotId((lane.source.0 + 2) % SLOT_COUNT), lane.destination);
    let mark = next_seq(&cluster, wrong) - 1;
    let frame = Deliver {
        lane: wrong,
        first_seq: mark + 1,
        ..cluster.frame(lane, first, 1)
    };
    let reply = Reply::Delivered {
        lane: wrong,
        mark,
        corrupt: Some(mark + 1),
    };
    assert_eq!(cluster.deliver(frame), reply);
    assert_eq!(cluster.bodies(bob), [""; 0]);
}

#[test]
fn an_ack_is_monotone_and_a_stale_one_changes_nothing() {
    let (mut cluster, alice, bob, lane) = pair();
    let first = next_seq(&cluster, lane);
    for body in ["a", "b", "c"] {
        cluster.send(alice, bob, body);
    }
    for (acked, left) in [
        (first + 1, 1),
        (first, 1),
        (0, 1),
        (first + 2, 0),
        (first, 0),
    ] {
        assert_eq!(cluster.ack(lane, acked), Reply::LanesAcked);
        assert_eq!(cluster.shard(0).unacked().len(), left);
    }
    assert_eq!(cluster.shard(0).lane_acked(lane), first + 2);
}

#[test]
fn an_ack_of_what_was_never_sent_is_refused_whole() {
    let (mut cluster, alice, bob, lane) = pair();
    let first = next_seq(&cluster, lane);
    cluster.send(alice, bob, "a");
    let back = LaneId::between(lane.source, SlotId((lane.destination.0 + 2) % SLOT_COUNT));
    let sent = next_seq(&cluster, back) - 1;
    let acks = vec![(lane, first), (back, sent + 1)];
    let reply = cluster.call(Command::AckLanes(AckLanes { acks }));
    let refusal = Refusal::LaneAhead {
        lane: back,
        acked: sent + 1,
        sent,
    };
    assert_eq!(reply, Reply::Refused(refusal));
    assert_eq!(cluster.shard(0).unacked().len(), 1, "nothing has changed");
}

#[test]
fn a_command_of_another_shards_slot_is_refused_and_stops_nobody() {
    let (mut cluster, alice, bob, lane) = pair();
    let first = next_seq(&cluster, lane);
    cluster.send(alice, bob, "a");
    let commands = [
        Command::Send(cluster.send_command(alice, bob, "misrouted")),
        cluster.create_command(alice),
        Command::AckLanes(AckLanes {
            acks: vec![(lane, first)],
        }),
    ];
    let source = lane.source;
    let expected = vec![Reply::Refused(Refusal::WrongShard { slot: source }); 3];
    assert_eq!(cluster.apply(1, &commands), expected);
    let frame = Command::Deliver(cluster.frame(lane, first, 1));
    let slot = lane.destination;
    let expected = [Reply::Refused(Refusal::WrongShard { slot })];
    assert_eq!(cluster.apply(0, &[frame]), expected);
    assert_eq!(cluster.bodies(alice), ["a"]);
    cluster.drain();
    assert_eq!(cluster.bodies(bob), ["a"]);
}

#[test]
fn a_lane_of_another_incarnation_is_unknown() {
    let (mut cluster, alice, bob, lane) = pair();
    cluster.send(alice, bob, "a");
    for unknown in [
        LaneId {
            source_incarnation: 2,
            ..lane
        },
        LaneId {
            destination_incarnation: 0,
            ..lane
        },
        LaneId {
            source: SlotId(SLOT_COUNT),
            ..lane
        },
    ] {
        let frame = Deliver {
            lane: unknown,
            ..cluster.frame(lane, 1, 1)
        };
        let refusal = Reply::Refused(Refusal::UnknownLane { lane: unknown });
        assert_eq!(
            cluster.apply(1, &[Command::Deliver(frame)]),
            std::slice::from_ref(&refusal)
        );
        let acks = vec![(unknown, 0)];
        assert_eq!(
            cluster.apply(0, &[Command::AckLanes(AckLanes { acks })]),
            [refusal]
        );
    }
}

#[test]
fn a_repeated_send_is_not_sent_again() {
    let (mut cluster, alice, bob, lane) = pair();
    let first = next_seq(&cluster, lane);
    let mut send = cluster.send_command(alice, bob, "once");
    let reply = cluster.call(Command::Send(send.clone()));
    for drained in [false, true] {
        send.message_id = cluster.message_id();
        assert_eq!(cluster.call(Command::Send(send.clone())), reply);
        assert_eq!(next_seq(&cluster, lane), first + 1);
        if !drained {
            cluster.drain();
        }
    }
    assert_eq!(cluster.bodies(bob), ["once"]);
}

#[test]
fn unacked_items_and_marks_outlive_every_crash() {
    for at in [IngestCrash::Before, IngestCrash::After] {
        let (mut cluster, alice, bob, lane) = pair();
        let first = next_seq(&cluster, lane);
        for body in ["a", "b", "c", "d"] {
            cluster.send(alice, bob, body);
        }
        let frame = cluster.frame(lane, first, 2);
        cluster.deliver(frame);
        cluster.ack(lane, first);
        let unacked = cluster.shard(0).unacked();
        assert_eq!(unacked.len(), 3);
        let bytes = cluster.shard(0).outbox_bytes();
        for number in [0, 1] {
            cluster.crash(number, at);
        }
        assert_eq!(cluster.shard(0).unacked(), unacked);
        assert_eq!(cluster.shard(0).outbox_bytes(), bytes);
        // A leader that was told nothing begins with all of them.
        let frame = cluster.frame(lane, first, 4);
        assert_eq!(cluster.deliver(frame), delivered(lane, first + 3));
        cluster.crash(1, at);
        cluster.drain();
        assert_eq!(cluster.bodies(bob), ["a", "b", "c", "d"]);
        for number in [0, 1] {
            cluster.flush(number);
        }
        cluster.reopen(0);
        assert!(cluster.shard(0).unacked().is_empty());
        assert_eq!(cluster.shard(0).lane_acked(lane), first + 3);
    }
}

#[test]
fn an_item_keeps_its_bytes_in_files_and_leaves_them_with_its_ack() {
    let (mut cluster, alice, bob, lane) = pair();
    let first = next_seq(&cluster, lane);
    for body in ["a", "b"] {
        cluster.send(alice, bob, body);
    }
    cluster.flush(0);
    cluster.send(alice, bob, "c");
    let hash = cluster.hash(0);
    cluster.flush(0);
    assert_eq!(cluster.hash(0), hash);
    let unacked = cluster.shard(0).unacked();
    let report = cluster.shard(0).verify(&mut |_| {}).unwrap();
    let rows = report.rows;
    cluster.reopen(0);
    assert_eq!(cluster.shard(0).unacked(), unacked);
    let frame = cluster.frame(lane, first, 2);
    cluster.deliver(frame);
    cluster.ack(lane, first + 1);
    cluster.flush(0);
    let report = cluster.shard(0).verify(&mut |_| {}).unwrap();
    assert_eq!((report.rows, report.fault_count), (rows - 2, 0));
    cluster.reopen(0);
    assert_eq!(cluster.shard(0).unacked(), unacked[2..]);
    cluster.drain();
    assert_eq!(cluster.bodies(bob), ["a", "b", "c"]);
}

#[test]
fn what_is_acked_before_a_flush_reaches_no_file() {
    let (mut cluster, alice, bob, _) = pair();
    cluster.flush(0);
    let rows = |cluster: &Cluster| cluster.shard(0).verify(&mut |_| {}).unwrap().rows;
    let before = rows(&cluster);
    for number in 0..50 {
        cluster.send(alice, bob, &number.to_string());
        cluster.drain();
    }
    cluster.flush(0);
    // The messages and their dedup rows; the lane's tables are overwritten, and none is new but
    // the one of Alice's slot, if that slot had no lane yet.
    let made = rows(&cluster) - before;
    assert!((100..=102).contains(&made), "{made}");
}

#[test]
fn a_snapshot_carries_outboxes_and_marks() {
    let (mut cluster, alice, bob, lane) = pair();
    let first = next_seq(&cluster, lane);
    for body in ["a", "b", "c"] {
        cluster.send(alice, bob, body);
    }
    let frame = cluster.frame(lane, first, 2);
    cluster.deliver(frame);
    let (unacked, hashes) = (
        cluster.shard(0).unacked(),
        [cluster.hash(0), cluster.hash(1)],
    );
    for behind in [0, 2] {
        for number in [0, 1] {
            cluster.install(number, behind);
        }
        assert_eq!(cluster.shard(0).unacked(), unacked);
        assert_eq!([cluster.hash(0), cluster.hash(1)], hashes);
    }
    let frame = cluster.frame(lane, first, 3);
    assert_eq!(cluster.deliver(frame), delivered(lane, first + 2));
    assert_eq!(cluster.bodies(bob), ["a", "b", "c"]);
}

#[test]
fn the_order_of_a_pair_is_the_order_of_the_sends() {
    let (mut cluster, alice, bob, lane) = pair();
    let first = next_seq(&cluster, lane);
    // One entry with both directions and a refused repeat in between.
    let bodies: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    let commands: Vec<Command> = bodies
        .iter()
        .map(|body| Command::Send(cluster.send_command(alice, bob, body)))
        .collect();
    cluster.apply(0, &commands);
    for at in [5, 3, 0, 12, 7, 4, 18, 11] {
        let frame = cluster.frame(lane, first + at, 9);
        cluster.deliver(frame);
    }
    cluster.drain();
    assert_eq!(cluster.bodies(bob), bodies);
}

#[test]
fn registration_reaches_the_users_slot_once_and_never_two_owners() {
    let mut cluster = Cluster::new(4, 2);
    let command = cluster.register_command("alice");
    let reply = cluster.call(command.clone());
    assert_eq!(cluster.call(command), reply);
    let second = cluster.register_command("alice");
    let Reply::UserRegistered { user } = reply else {
        panic!("{reply:?}");
    };
    let taken = Refusal::HandleTaken { user };
    assert_eq!(cluster.call(second), Reply::Refused(taken));
    cluster.drain();
    let shard = cluster.shard(cluster.shard_of_user(user));
    assert_eq!(shard.handle_of(user).unwrap().as_deref(), Some("alice"));
}

#[test]
fn a_group_of_another_shard_begins_with_its_creation() {
    let mut cluster = Cluster::new(4, 2);
    let (alice, bob) = (cluster.user_in(0), cluster.user_in(1));
    for _ in 0..8 {
        let command = cluster.create_command(alice);
        let Reply::GroupCreated { group, seq } = cluster.call(command) else {
            panic!("alice exists");
        };
        assert_eq!(seq, Seq(1));
        cluster.drain();
        for (command, want) in [
            (cluster.join_command(group, bob), 2),
            (cluster.leave_command(group, bob), 3),
            (cluster.join_command(group, bob), 4),
        ] {
            match cluster.call(command) {
                Reply::Joined { join_seq: seq } | Reply::Left { left_seq: seq } => {
                    assert_eq!(seq, Seq(want));
                }
                other => panic!("{other:?}"),
            }
        }
        cluster.drain();
        for user in [alice, bob] {
            let place = cluster.shard_of(mailbox_engine::slot_of_owner(group.0, SLOT_COUNT));
            let member = cluster
                .shard(place)
                .membership(group, user)
                .unwrap()
                .unwrap();
            let own = cluster.shard(cluster.shard_of_user(user)).groups_of(user);
            let own = own.unwrap();
            let own = own.iter().find(|own| own.group == group).unwrap();
            assert_eq!(own.spans, member.spans);
        }
    }
}

#[test]
fn an_empty_delivery_tells_the_mark() {
    let (mut cluster, alice, bob, lane) = pair();
    cluster.send(alice, bob, "a");
    cluster.drain();
    let mark = next_seq(&cluster, lane) - 1;
    let items = Items::from_bytes(Bytes::new());
    let reply = cluster.deliver(Deliver {
        lane,
        first_seq: mark + 1,
        items,
    });
    assert_eq!(reply, delivered(lane, mark));
}
