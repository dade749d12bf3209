//! A store that was written when its format was new still opens, and shows what it showed then.
//!
//! `fixtures/store-format-N` is a checkpoint of the store that [`write`] makes, without RocksDB's
//! own logs and `OPTIONS`. A new format gets a fixture of its own, written by this test with
//! `MAILBOX_WRITE_FIXTURE=<dir>` in the environment; old fixtures go with the code that reads
//! their format.
#![expect(
    clippy::disallowed_methods,
    reason = "a test may ask for its environment"
)]
#![expect(clippy::unwrap_used, reason = "all of this is test code")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use mailbox_engine::{
    AckCursor, ApplyEntry, ApplyPayload, ClusterMap, ClusterOptions, Command, Conversation,
    CreateGroup, DeviceId, EngineOptions, EntryBuilder, Flags, GroupId, JoinGroup, LogId, MapNode,
    MapReplica, MapShard, MarkRead, MessageId, MessageType, MetaCommand, PutNode, RegisterUser,
    ReplicaRole, Reply, STORE_FORMAT, Send, SendGroup, Seq, SetClusterOptions, Shard, ShardId,
    SlotId, Standing, Store, UserId, content_crc,
};
use uuid::Uuid;

const WRITE: &str = "MAILBOX_WRITE_FIXTURE";
const SHARD: ShardId = ShardId(1);
const TIME_MS: u64 = 1_800_000_000_000;
const OPTIONS: ClusterOptions = ClusterOptions {
    group_members_max: 12,
    body_bytes_max: 345,
    dedup_window_ms: 6_789_000,
    // They came after this format, and so no refused message of the fixture is a dead letter.
    user_limits: None,
    dead_letters_max: None,
};
/// Of the store in the fixture of format 2.
const HASH: u128 = 0xb2d7_fed0_416c_0aeb_8637_6d7c_94d4_80fc;
const ROWS: u64 = 36;
/// Of its meta shard.
const META_HASH: u128 = 0xff38_646d_04c7_9c1d_5a26_1d82_559a_3f2a;
const META_ROWS: u64 = 6;

fn options() -> EngineOptions {
    EngineOptions {
        slot_count: 4,
        ..EngineOptions::default()
    }
}

fn id(number: u64) -> Uuid {
    Uuid::from_u128(u128::from(TIME_MS) << 80 | 7 << 76 | 2 << 62 | u128::from(number))
}

fn apply(shard: &Shard, command: &Command) -> Reply {
    let index = shard.applied().log_id.map_or(1, |log_id| log_id.index + 1);
    let log_id = LogId {
        term: 1,
        node: 0,
        index,
    };
    let mut entry = EntryBuilder::new(TIME_MS + index);
    entry.push(command);
    let payload = ApplyPayload::Commands(entry.finish());
    let applied = shard.apply(&[ApplyEntry { log_id, payload }]).unwrap();
    applied.replies.into_iter().flatten().next().unwrap()
}

fn flush(shard: &Shard) {
    while let Some(frozen) = shard.freeze() {
        shard.ingest(shard.build(&frozen).unwrap()).unwrap();
    }
}

fn register(shard: &Shard, number: u64, handle: &str) -> UserId {
    let call = RegisterUser {
        request_id: id(number),
        handle: handle.to_owned(),
    };
    match apply(shard, &Command::RegisterUser(call)) {
        Reply::UserRegistered { user } => user,
        other => panic!("{other:?}"),
    }
}

fn send(number: u64, sender: UserId, recipient: UserId) -> Send {
    let (client_msg_id, kind) = (id(number), MessageType::TEXT);
    let body = Bytes::from(format!("message {number}"));
    Send {
        sender,
        recipient,
        client_msg_id,
        message_id: MessageId(number),
        kind,
        flags: Flags::default(),
        content_crc: content_crc(client_msg_id, kind, &body),
        body,
        shown: MessageId::ZERO,
    }
}

/// A row of every kind that commands could make when this format was new, over two flushes. Of dead letters, which came
/// later, the keys and values are pinned where they are encoded.
fn write(shard: &Shard) {
    let set = SetClusterOptions {
        options: OPTIONS,
        if_absent: true,
    };
    apply(shard, &Command::SetClusterOptions(set));
    let (alice, bob) = (register(shard, 1, "alice"), register(shard, 2, "bob"));
    apply(shard, &Command::Send(send(10, alice, bob)));
    apply(shard, &Command::Send(send(11, bob, UserId(1))));
    flush(shard);
    let create = CreateGroup {
        request_id: id(12),
        creator: alice,
        name: "a group".to_owned(),
        message_id: MessageId(12),
    };
    let created = apply(shard, &Command::CreateGroup(create));
    let Reply::GroupCreated { group, .. } = created else {
        panic!("{created:?}")
    };
    let join = JoinGroup {
        request_id: id(13),
        group,
        user: bob,
        message_id: MessageId(13),
    };
    apply(shard, &Command::JoinGroup(join));
    let to_group = send(14, bob, alice);
    apply(
        shard,
        &Command::SendGroup(SendGroup {
            sender: bob,
            group,
            client_msg_id: to_group.client_msg_id,
            message_id: to_group.message_id,
            kind: to_group.kind,
            flags: to_group.flags,
            content_crc: to_group.content_crc,
            body: to_group.body,
            shown: to_group.shown,
        }),
    );
    marks(shard, alice, bob, group);
    flush(shard);
}

/// The meta shard, with a row of every kind that its commands can make.
fn write_meta(shard: &Shard) {
    let node = |number: u64, zone: &str| MapNode {
        address: format!("h:{number}"),
        region: "north".to_owned(),
        zone: zone.to_owned(),
        weight: 100,
        standing: Standing::Member,
        incarnation: 7 * number,
    };
    let voter = |node| MapReplica {
        node,
        role: ReplicaRole::Voter,
    };
    let row = |slots: &[(SlotId, SlotId)]| MapShard {
        epoch: 1,
        slots: slots.to_vec(),
        replicas: vec![voter(1)],
    };
    let map = ClusterMap {
        epoch: 1,
        slot_count: 4,
        shard_count: 1,
        nodes: BTreeMap::from([(1, node(1, "a"))]),
        shards: BTreeMap::from([
            (ShardId::META, row(&[])),
            (SHARD, row(&[(SlotId(0), SlotId(3))])),
        ]),
    };
    let put = PutNode {
        node: 2,
        row: node(2, "b"),
        log_batch: 33,
    };
    let learner = |replaces| MapReplica {
        node: 2,
        role: ReplicaRole::Learner { replaces },
    };
    for (command, epoch) in [
        (MetaCommand::Begin(map), 1),
        (MetaCommand::PutNode(put), 2),
        (
            MetaCommand::SetReplicas {
                shard: SHARD,
                expect_epoch: 1,
                replicas: vec![voter(1), learner(Some(1))],
            },
            3,
        ),
        (
            MetaCommand::SetReplicas {
                shard: ShardId::META,
                expect_epoch: 1,
                replicas: vec![voter(1), learner(None)],
            },
            4,
        ),
    ] {
        let reply = apply(shard, &Command::Meta(command));
        assert_eq!(reply, Reply::Map { epoch });
    }
    flush(shard);
}

fn check_meta(shard: &Shard) {
    let hash = shard.state_hash_now().unwrap().unwrap();
    let found = (hash.hash, hash.rows);
    assert_eq!(found, (META_HASH, META_ROWS), "{:x}", hash.hash);
    assert_eq!(shard.verify(&mut |_| {}).unwrap().fault_count, 0);
    let map = shard.cluster_map().unwrap().unwrap();
    assert_eq!((map.epoch, map.nodes.len(), map.shards.len()), (4, 2, 2));
    assert_eq!(map.nodes[&2].zone, "b");
    let replaces = Some(1);
    assert_eq!(
        map.shards[&SHARD].replicas[1].role,
        ReplicaRole::Learner { replaces }
    );
}

fn marks(shard: &Shard, alice: UserId, bob: UserId, group: GroupId) {
    for (number, conversation) in [
        (20, Conversation::Peer(bob)),
        (21, Conversation::Group(group)),
    ] {
        let call = MarkRead {
            request_id: id(number),
            user: alice,
            conversation,
            seq: Seq(1),
        };
        let marked = apply(shard, &Command::MarkRead(call));
        assert_eq!(marked, Reply::ReadMark { seq: Seq(1) });
    }
    let call = AckCursor {
        request_id: id(22),
        user: bob,
        device: DeviceId::new("phone").unwrap(),
        timeline: bob.mailbox(),
        seq: Seq(1),
    };
    let acked = apply(shard, &Command::AckCursor(call));
    assert_eq!(acked, Reply::Cursor { seq: Seq(1) });
}

/// Opening a store changes files: the fixture is copied first.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn check(shard: &Arc<Shard>) {
    let hash = shard.state_hash_now().unwrap().unwrap();
    assert_eq!((hash.hash, hash.rows), (HASH, ROWS), "{:x}", hash.hash);
    assert_eq!(shard.cluster_options(), Some(OPTIONS));
    assert_eq!(shard.verify(&mut |_| {}).unwrap().fault_count, 0);
    let alice = shard.resolve_handle("alice").unwrap().unwrap();
    let rows = shard.scan(alice.mailbox(), Seq(1), 10, 1000).unwrap();
    assert_eq!(rows[0].body, "message 10");
    // A repeat of what was asked then gets the reply that it got then.
    let bob = shard.resolve_handle("bob").unwrap().unwrap();
    let again = apply(shard, &Command::Send(send(10, alice, bob)));
    let first = Reply::Sent {
        timeline: alice.mailbox(),
        seq: Seq(1),
        message_id: MessageId(10),
    };
    assert_eq!(again, first);
}

#[test]
fn the_fixture_of_this_format_opens_and_shows_what_it_showed() {
    let fixture = PathBuf::from(format!("tests/fixtures/store-format-{STORE_FORMAT}"));
    let dir = tempfile::tempdir().unwrap();
    copy(&fixture, &dir.path().join("state"));
    let store = Store::open(dir.path(), options()).unwrap();
    check(&store.shard(SHARD).unwrap());
    check_meta(&store.shard(ShardId::META).unwrap());
}

#[test]
fn the_same_entries_still_give_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    let shard = store.create_shard(SHARD, 0..=3).unwrap();
    write(&shard);
    let meta = store.create_shard(ShardId::META, 0..=0).unwrap();
    write_meta(&meta);
    if let Some(target) = std::env::var_os(WRITE) {
        store.checkpoint(Path::new(&target)).unwrap();
    }
    check(&shard);
    check_meta(&meta);
}
