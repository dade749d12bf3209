//! Crashes of a process on RocksDB: whenever it stops, the store opens as it was after some whole
//! number of entries, and going on from there gives the same state.
//!
//! The test starts itself as the process that crashes: see `child`.
#![expect(
    clippy::disallowed_methods,
    reason = "a test may ask for its environment"
)]
#![expect(clippy::unwrap_used, reason = "all of this is test code")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use mailbox_engine::{
    ApplyEntry, ApplyPayload, ClusterOptions, Command, EngineOptions, EntryBuilder, Flags, LogId,
    MemoryDisk, MessageId, MessageType, RegisterUser, Send, Seq, SetClusterOptions, Shard, ShardId,
    SnapshotMeta, StateHash, Store, UserId, content_crc,
};
use uuid::Uuid;

const DIR: &str = "MAILBOX_CRASH_DIR";
const WORK: &str = "MAILBOX_CRASH_WORK";
const SHARD: ShardId = ShardId(1);
const SLOTS: u16 = 8;
const USERS: u64 = 6;
const ENTRIES: u64 = 120;
const FLUSH_EVERY: u64 = 9;
const START_MS: u64 = 1_700_000_000_000;

fn options() -> EngineOptions {
    EngineOptions {
        slot_count: SLOTS,
        block_cache_bytes: 1 << 20,
        ..EngineOptions::default()
    }
}

fn shard_of(store: &Store) -> Arc<Shard> {
    store
        .shard(SHARD)
        .unwrap_or_else(|| store.create_shard(SHARD, 0..=SLOTS - 1).unwrap())
}

fn open(dir: &Path) -> (Store, Arc<Shard>) {
    let store = Store::open(dir, options()).unwrap();
    let shard = shard_of(&store);
    (store, shard)
}

fn applied_index(shard: &Shard) -> u64 {
    shard.applied().log_id.map_or(0, |log_id| log_id.index)
}

fn uuid(time_ms: u64, number: u64) -> Uuid {
    Uuid::from_u128(u128::from(time_ms) << 80 | 7 << 76 | 2 << 62 | u128::from(number))
}

fn user(shard: &Shard, number: u64) -> UserId {
    shard
        .resolve_handle(&format!("user{}", number % USERS))
        .unwrap()
        .unwrap()
}

/// The entry with this index: the same whenever it is made.
fn entry(shard: &Shard, index: u64) -> ApplyEntry {
    let time_ms = START_MS + index * 100_000;
    let mut builder = EntryBuilder::new(time_ms);
    if index == 1 {
        builder.push(&Command::SetClusterOptions(SetClusterOptions {
            options: ClusterOptions::default(),
            if_absent: true,
        }));
    }
    for number in 0..3 {
        let id = uuid(time_ms, number);
        if index <= USERS {
            let handle = format!("user{}", index - 1);
            builder.push(&Command::RegisterUser(RegisterUser {
                request_id: id,
                handle,
            }));
            continue;
        }
        let body = Bytes::from(format!("message {index} {number}"));
        builder.push(&Command::Send(Send {
            sender: user(shard, index + number),
            recipient: user(shard, index * number),
            client_msg_id: id,
            message_id: MessageId(time_ms << 16 | number),
            kind: MessageType::TEXT,
            flags: Flags(0),
            content_crc: content_crc(id, MessageType::TEXT, &body),
            body,
            shown: MessageId::ZERO,
        }));
    }
    let log_id = LogId {
        term: 1,
        node: 1,
        index,
    };
    ApplyEntry {
        log_id,
        payload: ApplyPayload::Commands(builder.finish()),
    }
}

fn flush(shard: &Shard) {
    if let Some(frozen) = shard.freeze() {
        let built = shard.build(&frozen).unwrap();
        println!("ingest");
        shard.ingest(built).unwrap();
    }
}

fn go_on(shard: &Shard, to: u64) {
    for index in applied_index(shard) + 1..=to {
        shard.apply(&[entry(shard, index)]).unwrap();
        if index % FLUSH_EVERY == 0 {
            flush(shard);
        }
    }
}

/// Two shards that apply the same and share each file.
fn go_on_together(store: &Store, shards: &[Arc<Shard>; 2], to: u64) {
    for index in applied_index(&shards[0]) + 1..=to {
        for shard in shards {
            shard.apply(&[entry(shard, index)]).unwrap();
        }
        if index % FLUSH_EVERY == 0 {
            let frozen = shards
                .each_ref()
                .map(|shard| (shard.clone(), shard.freeze().unwrap()));
            let built = store.build(frozen.into()).unwrap();
            assert!(store.ingest(built).unwrap());
        }
    }
}

fn open_both(dir: &Path) -> (Store, [Arc<Shard>; 2]) {
    let (store, first) = open(dir);
    let other = ShardId(2);
    let second = store
        .shard(other)
        .unwrap_or_else(|| store.create_shard(other, 0..=SLOTS - 1).unwrap());
    (store, [first, second])
}

/// The hashes after each entry, from a store that never crashes.
fn reference() -> Vec<Option<StateHash>> {
    let store = Store::open_in_memory(&MemoryDisk::new(), options()).unwrap();
    let shard = shard_of(&store);
    let mut hashes = vec![shard.state_hash_now().unwrap()];
    for index in 1..=ENTRIES {
        shard.apply(&[entry(&shard, index)]).unwrap();
        hashes.push(shard.state_hash_now().unwrap());
    }
    hashes
}

/// Not a test of its own: the process that crashes. Does its work in the directory it is told.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let dir = PathBuf::from(dir);
    let _scenario = fail::FailScenario::setup();
    let (store, shard) = open(&dir.join("node"));
    match std::env::var(WORK).as_deref() {
        Ok("drop") => {
            assert!(store.drop_shard(SHARD).unwrap());
        }
        Ok("install") => {
            let meta = std::fs::read(dir.join("meta")).unwrap();
            let meta = SnapshotMeta::decode(&meta).unwrap();
            shard
                .install_files(&meta, &[dir.join("000001.rows")])
                .unwrap();
        }
        Ok("together") => {
            drop((store, shard));
            let (store, shards) = open_both(&dir.join("node"));
            go_on_together(&store, &shards, ENTRIES);
        }
        Ok(_) | Err(_) => {
            go_on(&shard, ENTRIES);
            flush(&shard);
        }
    }
}

fn start(dir: &Path, work: &str, failpoints: &str) -> Child {
    Process::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(DIR, dir)
        .env(WORK, work)
        .env("FAILPOINTS", failpoints)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Opens what a crash left, and compares it with what it should be.
fn check(dir: &Path, reference: &[Option<StateHash>]) -> u64 {
    let (_store, shard) = open(dir);
    let index = applied_index(&shard);
    assert_eq!(index, shard.flushed().map_or(0, |log_id| log_id.index));
    assert_eq!(
        shard.state_hash_now().unwrap(),
        reference[usize::try_from(index).unwrap()]
    );
    assert_eq!(shard.verify(&mut |_| {}).unwrap().fault_count, 0);
    index
}

fn check_end(dir: &Path, reference: &[Option<StateHash>]) {
    let (_store, shard) = open(dir);
    go_on(&shard, ENTRIES);
    assert_eq!(&shard.state_hash_now().unwrap(), reference.last().unwrap());
    let timeline = user(&shard, 1).mailbox();
    let rows = shard
        .scan(timeline, Seq(1), usize::MAX, usize::MAX)
        .unwrap();
    assert_eq!(Seq(rows.len() as u64), shard.head(timeline).unwrap());
}

#[test]
fn an_abort_in_a_flush_leaves_whole_entries() {
    let reference = reference();
    for (failpoint, flushed) in [
        ("build", false),
        ("before_ingest", false),
        ("after_ingest", true),
    ] {
        for flush_number in [0, 1, 4] {
            let dir = tempfile::tempdir().unwrap();
            let node = dir.path().join("node");
            let crash = format!("{failpoint}={flush_number}*off->return");
            let ended = start(dir.path(), "apply", &crash)
                .wait_with_output()
                .unwrap();
            assert!(!ended.status.success(), "{failpoint} was not reached");
            let flushes = flush_number + u64::from(flushed);
            assert_eq!(
                check(&node, &reference),
                flushes * FLUSH_EVERY,
                "{failpoint}"
            );
            check_end(&node, &reference);
        }
    }
}

#[test]
fn an_abort_in_a_shared_flush_leaves_all_its_shards_at_one_entry() {
    let reference = reference();
    for (failpoint, flushed) in [
        ("build", false),
        ("before_ingest", false),
        ("after_ingest", true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("node");
        let crash = format!("{failpoint}=2*off->return");
        let ended = start(dir.path(), "together", &crash)
            .wait_with_output()
            .unwrap();
        assert!(!ended.status.success(), "{failpoint} was not reached");
        let wanted = (2 + u64::from(flushed)) * FLUSH_EVERY;
        {
            let (_store, shards) = open_both(&node);
            for shard in &shards {
                assert_eq!(applied_index(shard), wanted, "{failpoint}");
                let hash = shard.state_hash_now().unwrap();
                assert_eq!(
                    hash.map(|hash| hash.hash),
                    reference_hash(&reference, wanted)
                );
            }
        }
        let ended = start(dir.path(), "together", "")
            .wait_with_output()
            .unwrap();
        assert!(ended.status.success());
    }
}

fn reference_hash(reference: &[Option<StateHash>], index: u64) -> Option<u128> {
    let of_index = &reference[usize::try_from(index).unwrap()];
    of_index.as_ref().map(|hash| hash.hash)
}

#[test]
fn a_kill_at_any_moment_leaves_whole_entries() {
    let reference = reference();
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("node");
    let mut kills = 0;
    loop {
        let mut child = start(dir.path(), "apply", "");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // The kill comes some way into the second ingest of this life.
        let ingests = lines
            .map_while(Result::ok)
            .filter(|line| line.contains("ingest"));
        let reached = ingests.take(2).count();
        child.kill().unwrap();
        child.wait().unwrap();
        let index = check(&node, &reference);
        if reached < 2 {
            break;
        }
        kills += 1;
        assert!(index >= FLUSH_EVERY * kills, "a flush is never undone");
    }
    assert!(kills > 3, "{kills}");
    check_end(&node, &reference);
}

#[test]
fn an_abort_in_an_install_leaves_the_old_state_or_the_new() {
    let reference = reference();
    for (failpoint, installed) in [("before_install", false), ("after_install", true)] {
        let dir = tempfile::tempdir().unwrap();
        let source = tempfile::tempdir().unwrap();
        let (_store, shard) = open(source.path());
        go_on(&shard, ENTRIES);
        flush(&shard);
        let snapshot = shard.snapshot().unwrap();
        let files = snapshot.write_files(dir.path(), &mut |_| {}).unwrap();
        assert_eq!(files.len(), 1);
        std::fs::write(dir.path().join("meta"), snapshot.meta().encode()).unwrap();
        let node = dir.path().join("node");
        {
            let (_store, shard) = open(&node);
            go_on(&shard, 20);
            flush(&shard);
        }
        let crash = format!("{failpoint}=return");
        let ended = start(dir.path(), "install", &crash)
            .wait_with_output()
            .unwrap();
        assert!(!ended.status.success(), "{failpoint} was not reached");
        assert_eq!(
            check(&node, &reference),
            if installed { ENTRIES } else { 20 }
        );
        let ended = start(dir.path(), "install", "").wait_with_output().unwrap();
        assert!(ended.status.success());
        assert_eq!(check(&node, &reference), ENTRIES);
    }
}

#[test]
fn an_abort_in_a_drop_leaves_the_replica_or_nothing_of_it() {
    let reference = reference();
    for (failpoint, dropped) in [("before_drop", false), ("after_drop", true)] {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("node");
        let neighbour = ShardId(2);
        {
            let (store, shard) = open(&node);
            go_on(&shard, 20);
            flush(&shard);
            store.create_shard(neighbour, 0..=SLOTS - 1).unwrap();
            let other = store.shard(neighbour).unwrap();
            go_on(&other, 30);
            flush(&other);
        }
        let ended = start(dir.path(), "drop", &format!("{failpoint}=return"))
            .wait_with_output()
            .unwrap();
        assert!(!ended.status.success(), "{failpoint} was not reached");
        {
            let store = Store::open(&node, options()).unwrap();
            assert_eq!(store.shard(SHARD).is_none(), dropped);
            let other = store.shard(neighbour).unwrap();
            assert_eq!(other.state_hash_now().unwrap(), reference_of(neighbour, 30));
        }
        // Whole again, or hosted anew from nothing.
        let found = check(&node, &reference);
        assert_eq!(found, if dropped { 0 } else { 20 });
        check_end(&node, &reference);
    }
}

/// The hash of another shard after some entries.
fn reference_of(shard: ShardId, entries: u64) -> Option<StateHash> {
    let store = Store::open_in_memory(&MemoryDisk::new(), options()).unwrap();
    let shard = store.create_shard(shard, 0..=SLOTS - 1).unwrap();
    go_on(&shard, entries);
    shard.state_hash_now().unwrap()
}
