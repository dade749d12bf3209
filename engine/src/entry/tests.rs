//! Entries are read as written, or refused.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::cluster_map::ClusterMap;
use crate::cluster_map::tests::{map_node, map_replica, map_shard};
use crate::cluster_options::ClusterOptions;
use crate::command::{
    AckCursor, AckLanes, Conversation, CreateGroup, Deliver, DropDeadLetter, JoinGroup, LeaveGroup,
    LogReport, MarkRead, MetaCommand, MoveSlot, PutGateway, PutNode, RegisterUser,
    RequeueDeadLetter, Send, SendGroup, SetClusterOptions, SplitShard,
};
use crate::gateways::tests::{gateway_facts, gateway_id};
use crate::id::{DeviceId, GroupId, MessageId, Seq, ShardId, SlotId, UserId};
use crate::item::{Items, LaneId};
use crate::row::{Flags, MessageType};
use crate::slot_moves::MoveStage;

fn send() -> impl Strategy<Value = Send> {
    let numbers = (
        any::<u64>(),
        any::<u64>(),
        any::<u128>(),
        any::<u64>(),
        any::<u32>(),
    );
    (numbers, any::<(u8, u8)>(), any::<Vec<u8>>()).prop_map(
        |((sender, recipient, id, message_id, content_crc), (kind, flags), body)| Send {
            sender: UserId(sender),
            recipient: UserId(recipient),
            client_msg_id: Uuid::from_u128(id),
            message_id: MessageId(message_id),
            kind: MessageType(kind),
            flags: Flags(flags).only(Flags::CLIENT),
            content_crc,
            body: body.into(),
            shown: MessageId::ZERO,
        },
    )
}

fn send_group() -> impl Strategy<Value = SendGroup> {
    send().prop_map(|send| SendGroup {
        sender: send.sender,
        group: GroupId(send.recipient.0),
        client_msg_id: send.client_msg_id,
        message_id: send.message_id,
        kind: send.kind,
        flags: send.flags,
        content_crc: send.content_crc,
        body: send.body,
        shown: MessageId::ZERO,
    })
}

fn request() -> impl Strategy<Value = Command> {
    let numbers = any::<(u128, u64, u64, u64)>();
    (0..8_u8, numbers, any::<bool>(), "\\PC{1,16}").prop_map(
        |(which, (id, first, second, third), flag, text)| {
            let request_id = Uuid::from_u128(id);
            let (user, group) = (UserId(first), GroupId(second));
            let (message_id, seq) = (MessageId(third), Seq(third));
            match which {
                0 => Command::RegisterUser(RegisterUser {
                    request_id,
                    handle: text,
                }),
                1 => Command::CreateGroup(CreateGroup {
                    request_id,
                    creator: user,
                    name: text,
                    message_id,
                }),
                2 => Command::JoinGroup(JoinGroup {
                    request_id,
                    group,
                    user,
                    message_id,
                }),
                3 => Command::LeaveGroup(LeaveGroup {
                    request_id,
                    group,
                    user,
                    message_id,
                }),
                4 => {
                    let peer = Conversation::Peer(UserId(second));
                    let conversation = if flag {
                        Conversation::Group(group)
                    } else {
                        peer
                    };
                    Command::MarkRead(MarkRead {
                        request_id,
                        user,
                        conversation,
                        seq,
                    })
                }
                5 => {
                    let device = DeviceId::new(&text).unwrap();
                    let timeline = group.timeline();
                    Command::AckCursor(AckCursor {
                        request_id,
                        user,
                        device,
                        timeline,
                        seq,
                    })
                }
                6 => Command::SetClusterOptions(SetClusterOptions {
                    options: ClusterOptions {
                        dedup_window_ms: first,
                        ..ClusterOptions::default()
                    },
                    if_absent: flag,
                }),
                _ => Command::Cut,
            }
        },
    )
}

fn of_operators() -> impl Strategy<Value = Command> {
    let numbers = any::<(u128, u16, u64, u64)>();
    (any::<bool>(), numbers).prop_map(|(requeue, (id, slot, seq, message_id))| {
        let (request_id, slot, seq) = (Uuid::from_u128(id), SlotId(slot), Seq(seq));
        if !requeue {
            return Command::DropDeadLetter(DropDeadLetter {
                request_id,
                slot,
                seq,
            });
        }
        Command::RequeueDeadLetter(RequeueDeadLetter {
            request_id,
            slot,
            seq,
            message_id: MessageId(message_id),
        })
    })
}

fn lane() -> impl Strategy<Value = LaneId> {
    any::<(u16, u32, u16, u32)>().prop_map(|(source, one, destination, two)| LaneId {
        source: SlotId(source),
        source_incarnation: one,
        destination: SlotId(destination),
        destination_incarnation: two,
    })
}

fn cluster_map() -> impl Strategy<Value = ClusterMap> {
    let nodes = proptest::collection::btree_map(any::<u64>(), map_node(), 0..4);
    let shard = any::<u32>().prop_map(ShardId);
    let shards = proptest::collection::btree_map(shard, map_shard(), 0..4);
    (any::<(u64, u16, u16)>(), nodes, shards).prop_map(
        |((epoch, slot_count, shard_count), nodes, shards)| ClusterMap {
            epoch,
            slot_count,
            shard_count,
            nodes,
            shards,
        },
    )
}

fn meta() -> impl Strategy<Value = MetaCommand> {
    let report = any::<(u64, u64, u64)>().prop_map(|(node, incarnation, log_batch)| LogReport {
        node,
        incarnation,
        log_batch,
    });
    let replicas = proptest::collection::vec(map_replica(), 0..5);
    prop_oneof![
        cluster_map().prop_map(MetaCommand::Begin),
        (any::<(u64, u64)>(), map_node()).prop_map(|((node, log_batch), row)| {
            MetaCommand::PutNode(PutNode {
                node,
                row,
                log_batch,
            })
        }),
        proptest::collection::vec(report, 0..5).prop_map(MetaCommand::ReportLogs),
        (any::<u64>(), map_node()).prop_map(|(node, row)| MetaCommand::SetStanding {
            node,
            standing: row.standing,
        }),
        any::<u64>().prop_map(|node| MetaCommand::RemoveNode { node }),
        (any::<(u32, u64)>(), replicas).prop_map(|((shard, expect_epoch), replicas)| {
            MetaCommand::SetReplicas {
                shard: ShardId(shard),
                expect_epoch,
                replicas,
            }
        }),
        any::<(u16, u32)>().prop_map(|(slot, to)| MetaCommand::BeginMove {
            slot: SlotId(slot),
            to: ShardId(to),
        }),
        (any::<(u16, u64)>(), 1..=4_u8).prop_map(|((slot, epoch), stage)| {
            let stage = MoveStage::from_u8(stage).unwrap();
            MetaCommand::StepMove {
                slot: SlotId(slot),
                epoch,
                stage,
            }
        }),
        any::<(u16, u64)>().prop_map(|(slot, epoch)| MetaCommand::EndMove {
            slot: SlotId(slot),
            epoch,
        }),
        any::<(u32, std::collections::BTreeSet<u16>)>().prop_map(|(shard, slots)| {
            MetaCommand::BeginSplit {
                shard: ShardId(shard),
                slots: slots.into_iter().map(SlotId).collect(),
            }
        }),
        any::<(u32, u64)>().prop_map(|(shard, epoch)| MetaCommand::EndSplit {
            shard: ShardId(shard),
            epoch,
        }),
        (gateway_id(), gateway_facts(), any::<bool>()).prop_map(|(gateway, facts, draining)| {
            MetaCommand::PutGateway(PutGateway {
                gateway,
                facts,
                draining,
            })
        }),
        (gateway_id(), any::<Option<u64>>()).prop_map(|(gateway, run)| {
            let run = run.filter(|run| *run != 0);
            MetaCommand::ForgetGateway { gateway, run }
        }),
        proptest::collection::vec((gateway_id(), any::<u64>()), 0..5)
            .prop_map(|missed| MetaCommand::SweepGateways { missed }),
    ]
}

fn merge() -> impl Strategy<Value = MetaCommand> {
    let numbers = (0..3_u8, any::<(u32, u32, u64)>());
    numbers.prop_map(|(kind, (shard, into, epoch))| {
        let (shard, into) = (ShardId(shard), ShardId(into));
        match kind {
            0 => MetaCommand::BeginMerge { shard, into },
            1 => MetaCommand::EndMerge { shard, epoch },
            _ => MetaCommand::CancelMerge { shard, epoch },
        }
    })
}

fn move_slot() -> impl Strategy<Value = MoveSlot> {
    let numbers = any::<(u16, u64, u32, u128, u64, u64)>();
    (0..6_u8, numbers).prop_map(|(kind, (slot, epoch, shard, digest, time_ms, last))| {
        let (slot, shard) = (SlotId(slot), ShardId(shard));
        match kind {
            0 => MoveSlot::Freeze {
                slot,
                epoch,
                to: shard,
            },
            1 => MoveSlot::Unfreeze { slot, epoch },
            2 => MoveSlot::Drop { slot, epoch },
            3 => MoveSlot::BeginImport {
                slot,
                epoch,
                from: shard,
            },
            4 => MoveSlot::AbortImport {
                slot,
                epoch,
                from: shard,
            },
            _ => MoveSlot::CommitImport {
                slot,
                epoch,
                digest,
                time_ms,
                last_message_id: MessageId(last),
            },
        }
    })
}

fn split_shard() -> impl Strategy<Value = SplitShard> {
    let numbers = any::<(u32, u64, std::collections::BTreeSet<u16>)>();
    numbers.prop_map(|(to, epoch, slots)| SplitShard {
        to: ShardId(to),
        epoch,
        slots: slots.into_iter().map(SlotId).collect(),
    })
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        send().prop_map(Command::Send),
        send_group().prop_map(Command::SendGroup),
        request(),
        of_operators(),
        (lane(), any::<u64>(), any::<Vec<u8>>()).prop_map(|(lane, first_seq, items)| {
            let items = Items::from_bytes(items.into());
            Command::Deliver(Deliver {
                lane,
                first_seq,
                items,
            })
        }),
        meta().prop_map(Command::Meta),
        merge().prop_map(Command::Meta),
        move_slot().prop_map(Command::MoveSlot),
        split_shard().prop_map(Command::SplitShard),
        proptest::collection::vec((lane(), any::<u64>()), 0..5)
            .prop_map(|acks| Command::AckLanes(AckLanes { acks })),
    ]
}

fn entry_of(time_ms: u64, commands: &[Command]) -> Bytes {
    let mut builder = EntryBuilder::new(time_ms);
    for command in commands {
        builder.push(command);
    }
    let len = builder.len_bytes();
    let bytes = builder.finish();
    assert_eq!(bytes.len(), len);
    bytes
}

proptest! {
    #[test]
    fn entries_are_read_as_written(
        time_ms: u64,
        commands in proptest::collection::vec(command(), 0..20),
    ) {
        let entry = Entry::open(entry_of(time_ms, &commands)).unwrap();
        prop_assert_eq!(entry.time_ms(), time_ms);
        prop_assert_eq!(entry.count(), commands.len());
        let read: Result<Vec<Command>, Malformed> = entry.commands().collect();
        prop_assert_eq!(read, Ok(commands));
    }

    #[test]
    fn a_flipped_bit_is_noticed(
        commands in proptest::collection::vec(command(), 0..4),
        bit: proptest::sample::Index,
    ) {
        let mut bytes = entry_of(1, &commands).to_vec();
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Entry::open(bytes.into()).is_err());
    }

    // A proposer of another build may make these: the checksum fits, the commands do not.
    #[test]
    fn any_bytes_with_a_checksum_are_read_or_refused(count: u8, mut body: Vec<u8>) {
        let mut bytes = vec![FORMAT];
        bytes.extend_from_slice(&[0; 11]);
        bytes.push(count);
        bytes.append(&mut body);
        let checksum = xxh3_64(&bytes);
        bytes.extend_from_slice(&checksum.to_be_bytes());
        let Ok(entry) = Entry::open(bytes.into()) else { return Ok(()) };
        let read: Vec<Result<Command, Malformed>> = entry.commands().collect();
        prop_assert!(read.len() <= usize::from(count));
        prop_assert!(read.iter().rev().skip(1).all(Result::is_ok));
    }
}

#[test]
fn bodies_are_slices_of_the_entry() {
    let body = Bytes::from_static(b"hello");
    let command = Command::Send(Send {
        sender: UserId(1),
        recipient: UserId(2),
        client_msg_id: Uuid::nil(),
        message_id: MessageId(3),
        kind: MessageType::TEXT,
        flags: Flags(0xFF),
        content_crc: 4,
        body,
        shown: MessageId(5),
    });
    let bytes = entry_of(1, &[command]);
    let entry = Entry::open(bytes.clone()).unwrap();
    let Some(Ok(Command::Send(send))) = entry.commands().next() else {
        panic!("one send")
    };
    assert!(bytes.as_ptr_range().contains(&send.body.as_ptr()));
    assert_eq!((send.flags, send.shown), (Flags::CLIENT, MessageId::ZERO));
}

#[test]
fn commands_of_merges_never_change() {
    let (shard, epoch) = (ShardId(0x0102), 5);
    let into = ShardId(3);
    for (command, text) in [
        (
            MetaCommand::BeginMerge { shard, into },
            "0d 15 00000102 00000003",
        ),
        (
            MetaCommand::EndMerge { shard, epoch },
            "0d 16 00000102 0000000000000005",
        ),
        (
            MetaCommand::CancelMerge { shard, epoch },
            "0d 17 00000102 0000000000000005",
        ),
    ] {
        let mut bytes = Vec::new();
        encode_command(&Command::Meta(command), &mut bytes);
        let found: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, text.replace(' ', ""));
    }
}

#[test]
fn operators_commands_never_change() {
    let (request_id, slot, seq) = (Uuid::from_u128(0x0102), SlotId(0x0304), Seq(5));
    let requeue = RequeueDeadLetter {
        request_id,
        slot,
        seq,
        message_id: MessageId(6),
    };
    let drop = DropDeadLetter {
        request_id,
        slot,
        seq,
    };
    let id = "00000000000000000000000000000102";
    for (command, text) in [
        (
            Command::RequeueDeadLetter(requeue),
            format!("0e {id} 0304 0000000000000005 0000000000000006"),
        ),
        (
            Command::DropDeadLetter(drop),
            format!("0f {id} 0304 0000000000000005"),
        ),
    ] {
        let mut bytes = Vec::new();
        encode_command(&command, &mut bytes);
        let found: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, text.replace(' ', ""));
    }
}
