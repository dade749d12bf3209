//! What decides a refusal is replicated: two nodes cannot judge one entry differently.

// Helpers of tests are not seen as tests.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use mailbox_engine::{
    AckCursor, ApplyEntry, ApplyPayload, ClusterOptions, Command, Conversation, CreateGroup,
    DeviceId, DropDeadLetter, EngineOptions, EntryBuilder, Flags, GroupId, JoinGroup, LeaveGroup,
    LogId, MarkRead, MemoryDisk, MessageId, MessageType, Refusal, RegisterUser, Reply,
    RequeueDeadLetter, Send, SendGroup, Seq, SetClusterOptions, Shard, ShardId, SlotId,
    SnapshotMeta, Store, TimelineId, UserId, UserLimits, content_crc,
};
use uuid::Uuid;

const SHARD: ShardId = ShardId(1);
const HOUR_MS: u64 = 3_600_000;
const NOON_MS: u64 = 500_000 * HOUR_MS;
const TIGHT: ClusterOptions = ClusterOptions {
    group_members_max: 3,
    body_bytes_max: 10,
    dedup_window_ms: HOUR_MS,
    user_limits: Some(UserLimits {
        devices_max: 2,
        groups_max: 2,
    }),
    dead_letters_max: Some(2),
};

/// Where a store lives.
enum Disk {
    Memory(MemoryDisk),
    Rocks(tempfile::TempDir),
}

impl Disk {
    fn open(&self, options: &EngineOptions) -> Store {
        match self {
            Disk::Memory(disk) => Store::open_in_memory(disk, options.clone()).unwrap(),
            Disk::Rocks(dir) => Store::open(dir.path(), options.clone()).unwrap(),
        }
    }
}

struct Replica {
    disk: Disk,
    options: EngineOptions,
    store: Option<Store>,
}

impl Replica {
    fn new(options: EngineOptions) -> Replica {
        Replica::on(Disk::Memory(MemoryDisk::new()), options)
    }

    fn on(disk: Disk, options: EngineOptions) -> Replica {
        let store = disk.open(&options);
        store.create_shard(SHARD, 0..=3).unwrap();
        Replica {
            disk,
            options,
            store: Some(store),
        }
    }

    fn shard(&self) -> Arc<Shard> {
        self.store.as_ref().unwrap().shard(SHARD).unwrap()
    }

    fn entry(&self, time_ms: u64, commands: &[Command]) -> Vec<Reply> {
        let mut entry = EntryBuilder::new(time_ms);
        commands.iter().for_each(|command| entry.push(command));
        let index = self.shard().applied().log_id.map_or(1, |id| id.index + 1);
        let log_id = LogId {
            term: 1,
            node: 1,
            index,
        };
        let payload = ApplyPayload::Commands(entry.finish());
        let applied = self.shard().apply(&[ApplyEntry { log_id, payload }]);
        applied.unwrap().replies.remove(0)
    }

    fn flush(&self) {
        let shard = self.shard();
        while let Some(frozen) = shard.freeze() {
            shard.ingest(shard.build(&frozen).unwrap()).unwrap();
        }
    }

    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(self.disk.open(&self.options));
    }
}

fn small() -> EngineOptions {
    EngineOptions {
        slot_count: 4,
        ..EngineOptions::default()
    }
}

/// Differs from the default in everything that may differ between the nodes of a cluster.
fn other() -> EngineOptions {
    EngineOptions {
        slot_count: 4,
        memtable_bytes_max: 1000,
        memtables_bytes_max: 1 << 20,
        memtable_age_ms_max: 1,
        memtables_frozen_max: 7,
        block_cache_bytes: 1 << 20,
        tail_cache_bytes: 100,
        head_cache_entries: 2,
        max_open_files: 32,
        level0_files_max: 3,
        runs_merged: 2,
        compaction_threads: 1,
        install_file_bytes: 100,
    }
}

fn set(options: ClusterOptions, if_absent: bool) -> Command {
    Command::SetClusterOptions(SetClusterOptions { options, if_absent })
}

fn id(time_ms: u64, number: u64) -> Uuid {
    Uuid::from_u128(u128::from(time_ms) << 80 | 7 << 76 | 2 << 62 | u128::from(number))
}

fn register(number: u64) -> Command {
    Command::RegisterUser(RegisterUser {
        request_id: id(NOON_MS, number),
        handle: format!("user{number}"),
    })
}

fn send(from: UserId, id: Uuid, message_id: u64, body: &str) -> Command {
    let body = Bytes::copy_from_slice(body.as_bytes());
    Command::Send(Send {
        sender: from,
        recipient: from,
        client_msg_id: id,
        message_id: MessageId(message_id),
        kind: MessageType::TEXT,
        flags: Flags::default(),
        content_crc: content_crc(id, MessageType::TEXT, &body),
        body,
        shown: MessageId::ZERO,
    })
}

fn join(group: GroupId, user: UserId, number: u64) -> Command {
    Command::JoinGroup(JoinGroup {
        request_id: id(NOON_MS, number),
        group,
        user,
        message_id: MessageId(number),
    })
}

fn users_of(replies: &[Reply]) -> Vec<UserId> {
    let user = |reply: &Reply| match reply {
        Reply::UserRegistered { user } => *user,
        other => panic!("{other:?}"),
    };
    replies.iter().map(user).collect()
}

fn limited(devices_max: u32, groups_max: u32) -> ClusterOptions {
    ClusterOptions {
        user_limits: Some(UserLimits {
            devices_max,
            groups_max,
        }),
        ..TIGHT
    }
}

fn create(creator: UserId, number: u64) -> Command {
    Command::CreateGroup(CreateGroup {
        request_id: id(NOON_MS, number),
        creator,
        name: String::new(),
        message_id: MessageId(number),
    })
}

fn leave(group: GroupId, user: UserId, number: u64) -> Command {
    Command::LeaveGroup(LeaveGroup {
        request_id: id(NOON_MS, number),
        group,
        user,
        message_id: MessageId(number),
    })
}

fn ack(user: UserId, device: &str, timeline: TimelineId, seq: u64, number: u64) -> Command {
    Command::AckCursor(AckCursor {
        request_id: id(NOON_MS, number),
        user,
        device: DeviceId::new(device).unwrap(),
        timeline,
        seq: Seq(seq),
    })
}

fn group_of(reply: &Reply) -> GroupId {
    match reply {
        Reply::GroupCreated { group, .. } => *group,
        other => panic!("{other:?}"),
    }
}

/// One command of each kind that a client may ask for.
fn all_client_commands() -> Vec<Command> {
    let (user, group, request_id) = (UserId(1), GroupId(1), id(NOON_MS, 1));
    let message_id = MessageId(1);
    let body = Bytes::new();
    vec![
        send(user, request_id, 1, ""),
        Command::SendGroup(SendGroup {
            sender: user,
            group,
            client_msg_id: request_id,
            message_id,
            kind: MessageType::TEXT,
            flags: Flags::default(),
            content_crc: content_crc(request_id, MessageType::TEXT, &body),
            body,
            shown: MessageId::ZERO,
        }),
        register(1),
        Command::CreateGroup(CreateGroup {
            request_id,
            creator: user,
            name: String::new(),
            message_id,
        }),
        join(group, user, 1),
        Command::LeaveGroup(LeaveGroup {
            request_id,
            group,
            user,
            message_id,
        }),
        Command::MarkRead(MarkRead {
            request_id,
            user,
            conversation: Conversation::Group(group),
            seq: Seq(1),
        }),
        Command::AckCursor(AckCursor {
            request_id,
            user,
            device: DeviceId::new("phone").unwrap(),
            timeline: user.mailbox(),
            seq: Seq(1),
        }),
        Command::RequeueDeadLetter(RequeueDeadLetter {
            request_id,
            slot: SlotId(1),
            seq: Seq(1),
            message_id,
        }),
        Command::DropDeadLetter(DropDeadLetter {
            request_id,
            slot: SlotId(1),
            seq: Seq(1),
        }),
    ]
}

#[test]
fn nodes_that_are_configured_differently_judge_alike() {
    let rocks = Disk::Rocks(tempfile::tempdir().unwrap());
    let replicas = [Replica::new(small()), Replica::on(rocks, other())];
    let mut transcripts = Vec::new();
    for (flush_every, replica) in [(100, &replicas[0]), (1, &replicas[1])] {
        let mut transcript = Vec::new();
        let mut entry = |time_ms: u64, commands: &[Command]| {
            let replies = replica.entry(time_ms, commands);
            transcript.extend(replies.clone());
            if transcript.len() % flush_every == 0 {
                replica.flush();
            }
            replies
        };
        entry(NOON_MS, &[set(TIGHT, true)]);
        let registers: Vec<Command> = (1..=4).map(register).collect();
        let users = users_of(&entry(NOON_MS, &registers));
        let create = Command::CreateGroup(CreateGroup {
            request_id: id(NOON_MS, 5),
            creator: users[0],
            name: "ten bytes!".to_owned(),
            message_id: MessageId(5),
        });
        let [Reply::GroupCreated { group, .. }] = entry(NOON_MS, &[create])[..] else {
            panic!("the name is at the limit")
        };
        let joins: Vec<Command> = (6..)
            .zip(&users[1..])
            .map(|(n, user)| join(group, *user, n))
            .collect();
        let joined = entry(NOON_MS, &joins);
        assert!(matches!(joined[1], Reply::Joined { .. }));
        assert_eq!(joined[2], Reply::Refused(Refusal::GroupFull { max: 3 }));
        let floor_ms = NOON_MS - HOUR_MS;
        let sends = [
            send(users[0], id(NOON_MS, 20), 20, "0123456789"),
            send(users[0], id(NOON_MS, 21), 21, "0123456789+"),
            send(users[0], id(floor_ms, 22), 22, "at the end"),
            send(users[0], id(floor_ms - 1, 23), 23, "beyond it"),
        ];
        let sent = entry(NOON_MS, &sends);
        assert!(matches!(sent[0], Reply::Sent { seq: Seq(1), .. }));
        assert_eq!(
            sent[1],
            Reply::Refused(Refusal::BodyTooLarge { len: 11, max: 10 })
        );
        assert!(matches!(sent[2], Reply::Sent { seq: Seq(2), .. }));
        assert!(matches!(sent[3], Reply::Refused(Refusal::IdExpired { .. })));
        transcripts.push(transcript);
    }
    assert_eq!(transcripts[0], transcripts[1]);
    let hash = |replica: &Replica| replica.shard().state_hash_now().unwrap().unwrap();
    assert_eq!(hash(&replicas[0]), hash(&replicas[1]));
    assert!(hash(&replicas[0]).rows > 10);
}

#[test]
fn nothing_is_judged_before_there_are_options() {
    let replica = Replica::new(small());
    let mut commands = all_client_commands();
    let refused = vec![Reply::Refused(Refusal::NotReady); commands.len()];
    assert_eq!(replica.entry(NOON_MS, &commands), refused);
    assert!(matches!(
        replica.entry(NOON_MS, &[Command::Cut])[..],
        [Reply::Cut { .. }]
    ));
    assert_eq!(replica.shard().state_hash_now().unwrap().unwrap().rows, 0);

    // From the very next command on, in the same entry, under the same ids.
    commands.insert(0, set(TIGHT, true));
    let replies = replica.entry(NOON_MS, &commands);
    assert_eq!(replies[0], Reply::ClusterOptions { options: TIGHT });
    assert!(!replies.contains(&Reply::Refused(Refusal::NotReady)));
    assert!(matches!(replies[3], Reply::UserRegistered { .. }));
}

#[test]
fn a_repeat_of_the_bootstrap_changes_nothing() {
    let replica = Replica::new(small());
    replica.entry(NOON_MS, &[set(TIGHT, true), register(1)]);
    let hash = replica.shard().state_hash_now().unwrap().unwrap();
    let mut applied = replica.shard().applied();
    let replies = replica.entry(NOON_MS, &[set(ClusterOptions::default(), true)]);
    assert_eq!(replies, [Reply::ClusterOptions { options: TIGHT }]);
    assert_eq!(
        replica.shard().state_hash_now().unwrap().unwrap().hash,
        hash.hash
    );
    applied.log_id = replica.shard().applied().log_id;
    assert_eq!(replica.shard().applied(), applied);
}

#[test]
fn options_out_of_bounds_change_nothing() {
    let replica = Replica::new(small());
    for (bad, option) in [
        (
            ClusterOptions {
                group_members_max: 1,
                ..TIGHT
            },
            "group_members_max",
        ),
        (
            ClusterOptions {
                body_bytes_max: u32::MAX,
                ..TIGHT
            },
            "body_bytes_max",
        ),
        (
            ClusterOptions {
                dedup_window_ms: HOUR_MS - 1,
                ..TIGHT
            },
            "dedup_window_ms",
        ),
        (limited(0, 1), "user_devices_max"),
        (limited(1, 2001), "user_groups_max"),
    ] {
        let replies = replica.entry(NOON_MS, &[set(bad, true)]);
        let [Reply::Refused(Refusal::OptionOutOfBounds { fault })] = &replies[..] else {
            panic!("{replies:?}")
        };
        assert_eq!(fault.option, option);
        assert_eq!(replica.shard().cluster_options(), None);
    }
}

#[test]
fn a_change_holds_at_once_and_no_floor_falls() {
    let replica = Replica::new(small());
    let users = users_of(&replica.entry(NOON_MS, &[set(TIGHT, false), register(1)])[1..]);
    let early = NOON_MS - 2 * HOUR_MS;
    let wide = ClusterOptions {
        dedup_window_ms: 24 * HOUR_MS,
        body_bytes_max: 11,
        ..TIGHT
    };
    let replies = replica.entry(
        NOON_MS,
        &[
            send(users[0], id(NOON_MS, 1), 1, "0123456789+"),
            set(wide, false),
            send(users[0], id(NOON_MS, 1), 1, "0123456789+"),
            send(users[0], id(early, 2), 2, "old"),
        ],
    );
    assert!(matches!(
        replies[0],
        Reply::Refused(Refusal::BodyTooLarge { .. })
    ));
    assert!(matches!(replies[2], Reply::Sent { .. }));
    let floor_ms = NOON_MS - HOUR_MS;
    let expired = Refusal::IdExpired {
        id_ms: early,
        floor_ms,
    };
    assert_eq!(replies[3], Reply::Refused(expired));
    // A narrower one raises the floors with the very next command.
    let later = NOON_MS + 3 * HOUR_MS;
    let replies = replica.entry(
        later,
        &[
            send(users[0], id(NOON_MS, 3), 3, "within"),
            set(TIGHT, false),
            send(users[0], id(NOON_MS, 4), 4, "without"),
        ],
    );
    assert!(matches!(replies[0], Reply::Sent { .. }), "{replies:?}");
    let expired = Refusal::IdExpired {
        id_ms: NOON_MS,
        floor_ms: later - HOUR_MS,
    };
    assert_eq!(replies[2], Reply::Refused(expired));
}

#[test]
fn options_survive_a_flush_a_reopening_and_an_install() {
    let mut replica = Replica::new(small());
    replica.entry(NOON_MS, &[set(TIGHT, true)]);
    // What was not flushed comes again from the log, options like rows.
    replica.reopen();
    assert_eq!(replica.shard().cluster_options(), None);
    replica.entry(NOON_MS, &[set(TIGHT, true), register(1)]);
    replica.flush();
    replica.reopen();
    assert_eq!(replica.shard().cluster_options(), Some(TIGHT));
    let user = users_of(&replica.entry(NOON_MS, &[register(1)]))[0];
    let refused = replica.entry(NOON_MS, &[send(user, id(NOON_MS, 1), 1, "0123456789+")]);
    assert!(matches!(
        refused[..],
        [Reply::Refused(Refusal::BodyTooLarge { max: 10, .. })]
    ));
    replica.flush();

    let files = tempfile::tempdir().unwrap();
    let snapshot = replica.shard().snapshot().unwrap();
    let written = snapshot.write_files(files.path(), &mut |_| {}).unwrap();
    let paths: Vec<_> = written.into_iter().map(|file| file.path).collect();
    let meta = SnapshotMeta::decode(&snapshot.meta().encode()).unwrap();
    for had in [None, Some(ClusterOptions::default())] {
        let mut target = Replica::new(other());
        if let Some(options) = had {
            target.entry(NOON_MS, &[set(options, true)]);
            target.flush();
        }
        target.shard().install_files(&meta, &paths).unwrap();
        assert_eq!(target.shard().cluster_options(), Some(TIGHT));
        target.reopen();
        assert_eq!(target.shard().cluster_options(), Some(TIGHT));
        let refused = target.entry(NOON_MS, &[send(user, id(NOON_MS, 1), 1, "0123456789+")]);
        assert!(matches!(
            refused[..],
            [Reply::Refused(Refusal::BodyTooLarge { max: 10, .. })]
        ));
    }
}

/// With its rows in memory, in files, and in both.
#[test]
fn a_user_has_so_many_devices_in_a_timeline_and_no_more() {
    for flush_after in [None, Some(1), Some(2), Some(3)] {
        let replica = Replica::new(small());
        let entry = |number: usize, commands: &[Command]| {
            let replies = replica.entry(NOON_MS, commands);
            if flush_after == Some(number) {
                replica.flush();
            }
            replies
        };
        let mut commands = vec![set(limited(2, 2), true)];
        commands.extend((1..=2).map(register));
        let users = users_of(&entry(0, &commands)[1..]);
        let sends = [
            send(users[0], id(NOON_MS, 10), 10, ""),
            send(users[1], id(NOON_MS, 11), 11, ""),
        ];
        entry(0, &sends);
        let mailbox = users[0].mailbox();
        let held = Reply::Cursor { seq: Seq(1) };
        assert_eq!(
            entry(1, &[ack(users[0], "phone", mailbox, 1, 20)]),
            std::slice::from_ref(&held)
        );
        assert_eq!(
            entry(2, &[ack(users[0], "desk", mailbox, 1, 21)]),
            std::slice::from_ref(&held)
        );
        let third = ack(users[0], "watch", mailbox, 1, 22);
        let refusal = Refusal::TooManyDevices {
            user: users[0],
            timeline: mailbox,
            device: DeviceId::new("watch").unwrap(),
            max: 2,
        };
        let words = refusal.to_string();
        for part in ["2 devices", "user_devices_max", "watch"] {
            assert!(words.contains(part), "{words}");
        }
        let replies = entry(3, &[third.clone(), third.clone()]);
        assert_eq!(replies, vec![Reply::Refused(refusal); 2]);
        // What needs no further row is judged as ever: a known device, a cursor at nothing, and
        // the cursors of others, of other timelines.
        let group = group_of(&entry(4, &[create(users[0], 30)])[0]);
        let replies = entry(
            5,
            &[
                ack(users[0], "desk", mailbox, 1, 40),
                ack(users[0], "watch", mailbox, 0, 41),
                ack(users[1], "watch", users[1].mailbox(), 1, 42),
                ack(users[0], "watch", group.timeline(), 1, 43),
            ],
        );
        let nothing = Reply::Cursor { seq: Seq(0) };
        assert_eq!(replies, [held.clone(), nothing, held.clone(), held.clone()]);
        // It was not the id that was refused.
        entry(6, &[set(limited(3, 2), false)]);
        assert_eq!(entry(7, &[third]), [held]);
    }
}

#[test]
fn a_user_has_so_many_groups_left_ones_included_and_no_more() {
    for flush_after in [None, Some(1), Some(2), Some(3)] {
        let replica = Replica::new(small());
        let entry = |number: usize, commands: &[Command]| {
            let replies = replica.entry(NOON_MS, commands);
            if flush_after == Some(number) {
                replica.flush();
            }
            replies
        };
        let mut commands = vec![set(limited(2, 2), true)];
        commands.extend((1..=2).map(register));
        let users = users_of(&entry(0, &commands)[1..]);
        let others: Vec<_> = entry(0, &[create(users[1], 10), create(users[1], 11)]);
        let others: Vec<_> = others.iter().map(group_of).collect();
        group_of(&entry(1, &[create(users[0], 20)])[0]);
        let joined = entry(2, &[join(others[0], users[0], 21)]);
        assert!(matches!(joined[..], [Reply::Joined { .. }]), "{joined:?}");
        let user = users[0];
        let full = |max| Refusal::TooManyGroups { user, max };
        let words = full(2).to_string();
        assert!(
            words.contains("has 2 groups") && words.contains("user_groups_max"),
            "{words}"
        );
        let refused = |max| Reply::Refused(full(max));
        // The leader gives a command that comes again a new message id.
        let more = |message_id| {
            let mut more = [create(user, 30), join(others[1], user, 31)];
            for command in &mut more {
                match command {
                    Command::CreateGroup(call) => call.message_id = MessageId(message_id),
                    Command::JoinGroup(call) => call.message_id = MessageId(message_id),
                    other => panic!("{other:?}"),
                }
            }
            more
        };
        assert_eq!(entry(3, &more(30)), vec![refused(2); 2]);
        // Leaving gives no room, and coming again takes none.
        let replies = entry(
            4,
            &[
                leave(others[0], users[0], 40),
                join(others[1], users[0], 41),
                join(others[0], users[0], 42),
            ],
        );
        assert!(matches!(replies[0], Reply::Left { .. }), "{replies:?}");
        assert_eq!(replies[1], refused(2));
        assert!(matches!(replies[2], Reply::Joined { .. }), "{replies:?}");
        // It was not the id that was refused. Limits that are lowered take nothing away.
        entry(5, &[set(limited(2, 3), false)]);
        let replies = entry(6, &more(50));
        group_of(&replies[0]);
        assert_eq!(replies[1], refused(3));
        entry(7, &[set(limited(2, 1), false)]);
        assert_eq!(entry(8, &more(60)), [replies[0].clone(), refused(1)]);
    }
}

#[test]
fn a_cluster_that_is_older_than_an_option_gets_it_from_the_next_leader() {
    let mut replica = Replica::new(small());
    let old = ClusterOptions {
        user_limits: None,
        dead_letters_max: None,
        ..TIGHT
    };
    let commands = [set(old, true), register(1), create(UserId(0), 2)];
    let user = users_of(&replica.entry(NOON_MS, &commands)[1..2])[0];
    // Without it nothing is limited.
    for number in 10..20 {
        group_of(&replica.entry(NOON_MS, &[create(user, number)])[0]);
    }
    replica.flush();
    replica.reopen();
    assert_eq!(replica.shard().cluster_options(), Some(old));

    let newer = ClusterOptions {
        group_members_max: 9,
        ..limited(3, 4)
    };
    let completed = limited(3, 4);
    let replies = replica.entry(NOON_MS, &[set(newer, true), create(user, 20)]);
    assert_eq!(replies[0], Reply::ClusterOptions { options: completed });
    assert_eq!(
        replies[1],
        Reply::Refused(Refusal::TooManyGroups { user, max: 4 })
    );
    // Once only.
    let replies = replica.entry(
        NOON_MS,
        &[set(ClusterOptions::default(), true), set(old, true)],
    );
    assert_eq!(
        replies,
        vec![Reply::ClusterOptions { options: completed }; 2]
    );
    replica.flush();
    replica.reopen();
    assert_eq!(replica.shard().cluster_options(), Some(completed));
}
