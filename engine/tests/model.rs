//! Random commands, with flushes, reopenings and crashes at random points, against a model that
//! keeps everything in ordered maps.
//!
//! The log outlives every crash, as it does in a node: what an opened store lacks is applied
//! again, and must give the same replies.

// Helpers of tests are not seen as tests.
#![allow(clippy::unwrap_used)]

#[path = "model/letters.rs"]
mod letters;
#[path = "model/reference.rs"]
mod reference;
#[path = "model/script.rs"]
mod script;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use mailbox_engine::{
    ApplyEntry, ApplyPayload, BuiltFlush, Command, Conversation, DeviceId, EngineOptions,
    EntryBuilder, GroupId, LogId, MemoryDisk, Reply, Row, Seq, Shard, ShardId, StateHash, Store,
    TimelineId, TimelineKind, UserId,
};
use proptest::prelude::*;
use reference::{Reference, SLOT_COUNT};
use script::{Author, Dying, Step};

const SHARD: ShardId = ShardId(1);

/// Where a store lives.
enum Disk {
    Memory(MemoryDisk),
    Rocks(tempfile::TempDir),
}

impl Disk {
    fn open(&self) -> Store {
        let options = EngineOptions {
            slot_count: SLOT_COUNT,
            tail_cache_bytes: 2000,
            head_cache_entries: 4,
            block_cache_bytes: 1 << 20,
            max_open_files: 64,
            ..EngineOptions::default()
        };
        match self {
            Disk::Memory(disk) => Store::open_in_memory(disk, options).unwrap(),
            Disk::Rocks(dir) => Store::open(dir.path(), options).unwrap(),
        }
    }
}

/// One replica and its log.
struct Replica {
    disk: Disk,
    store: Option<Store>,
    log: Vec<ApplyEntry>,
    replies: Vec<Vec<Reply>>,
    built: Option<BuiltFlush>,
    cuts: BTreeMap<u64, StateHash>,
}

impl Replica {
    fn new(disk: Disk) -> Replica {
        let store = disk.open();
        store.create_shard(SHARD, 0..=SLOT_COUNT - 1).unwrap();
        let (log, replies) = (Vec::new(), Vec::new());
        Replica {
            disk,
            store: Some(store),
            log,
            replies,
            built: None,
            cuts: BTreeMap::new(),
        }
    }

    fn shard(&self) -> Arc<Shard> {
        self.store.as_ref().unwrap().shard(SHARD).unwrap()
    }

    fn apply(&mut self, payload: ApplyPayload) -> Vec<Reply> {
        let index = self.log.len() as u64 + 1;
        let log_id = LogId {
            term: 1 + index / 10,
            node: 1,
            index,
        };
        let entry = ApplyEntry { log_id, payload };
        let applied = self.shard().apply(std::slice::from_ref(&entry)).unwrap();
        let [replies] = applied.replies.try_into().unwrap();
        self.log.push(entry);
        self.replies.push(replies.clone());
        replies
    }

    fn build(&mut self) {
        let shard = self.shard();
        if self.built.is_none() {
            self.built = shard.freeze().map(|frozen| shard.build(&frozen).unwrap());
        }
    }

    fn flush(&mut self) {
        loop {
            self.build();
            let Some(built) = self.built.take() else {
                return;
            };
            let log_id = built.log_id();
            assert_eq!(Some(self.shard().ingest(built).unwrap()), log_id);
            self.note_cut(log_id.unwrap());
        }
    }

    /// If the flush ended with a cut, its hash.
    fn note_cut(&mut self, flushed: LogId) {
        if let Some(hash) = self.shard().state_hash(Some(flushed.index)).unwrap() {
            assert_eq!(hash.applied, flushed);
            self.cuts.insert(flushed.index, hash);
        }
    }

    fn reopen(&mut self) {
        self.built = None;
        self.store = None;
        if let Disk::Memory(disk) = &self.disk {
            disk.crash();
        }
        self.store = Some(self.disk.open());
        self.apply_again();
    }

    /// From what the store has to the end of the log; from nothing, if the replica was dropped.
    fn apply_again(&mut self) {
        let store = self.store.as_ref().unwrap();
        if store.shard(SHARD).is_none() {
            store.create_shard(SHARD, 0..=SLOT_COUNT - 1).unwrap();
        }
        let shard = self.shard();
        let applied = shard.applied().log_id.map_or(0, |log_id| log_id.index);
        assert_eq!(shard.flushed(), shard.applied().log_id);
        let from = usize::try_from(applied).unwrap();
        for (entry, replies) in self.log[from..].iter().zip(&self.replies[from..]) {
            let again = shard.apply(std::slice::from_ref(entry)).unwrap();
            assert_eq!(again.replies, std::slice::from_ref(replies));
        }
    }

    /// Takes the replica off the node, dies on the way or not, and hosts it again.
    fn drop_shard(&mut self, dying: Option<Dying>) {
        let (former, store) = (self.shard(), self.store.as_ref().unwrap());
        self.built = None;
        match (&self.disk, dying) {
            (Disk::Memory(disk), Some(dying)) => {
                disk.crash_next_ingest(dying.into());
                assert!(store.drop_shard(SHARD).is_err());
                self.store = None;
                drop(former);
                self.reopen();
            }
            (Disk::Memory(_) | Disk::Rocks(_), _) => {
                assert!(store.drop_shard(SHARD).unwrap());
                assert!(!store.drop_shard(SHARD).unwrap());
                assert!(former.head(UserId(1).mailbox()).is_err());
                self.apply_again();
            }
        }
    }

    fn crash(&mut self, dying: Dying) {
        if let Disk::Memory(disk) = &self.disk {
            let disk = disk.clone();
            self.build();
            if let Some(built) = self.built.take() {
                disk.crash_next_ingest(dying.into());
                assert!(self.shard().ingest(built).is_err());
            }
        }
        self.reopen();
    }
}

fn entry(time_ms: u64, commands: &[Command]) -> Bytes {
    let mut builder = EntryBuilder::new(time_ms);
    for command in commands {
        builder.push(command);
    }
    builder.finish()
}

/// Runs the steps on a replica and on the reference, and compares all along.
fn run(steps: &[Step], disk: Disk) -> (Replica, Reference) {
    let (mut replica, mut reference) = (Replica::new(disk), Reference::default());
    let mut author = Author::new();
    for step in steps {
        match step {
            Step::Entry { clock_ms, calls } => {
                let time_ms = author.clock(*clock_ms);
                reference.begin_entry(time_ms);
                let index = replica.log.len() as u64 + 1;
                let (mut commands, mut expected) = (Vec::new(), Vec::new());
                for call in calls {
                    let command = author.command(call, &reference);
                    expected.push(reference.apply(&command, index));
                    commands.push(command);
                }
                let replies = replica.apply(ApplyPayload::Commands(entry(time_ms, &commands)));
                assert_eq!(replies, expected, "{commands:#?}");
            }
            Step::Blank => assert!(replica.apply(ApplyPayload::Blank).is_empty()),
            Step::Membership(number) => {
                let membership = Bytes::copy_from_slice(&[*number]);
                replica.apply(ApplyPayload::Membership(membership.clone()));
                assert_eq!(replica.shard().applied().membership, membership);
            }
            Step::Flush => replica.flush(),
            Step::Build => replica.build(),
            Step::Reopen => replica.reopen(),
            Step::Crash(dying) => replica.crash(*dying),
            Step::Drop(dying) => replica.drop_shard(*dying),
        }
        compare_heads(&replica.shard(), &reference);
    }
    compare(&replica.shard(), &reference);
    (replica, reference)
}

fn compare_heads(shard: &Shard, reference: &Reference) {
    let applied = shard.applied();
    assert_eq!(applied.time_ms, reference.time_ms);
    assert_eq!(applied.last_message_id, reference.last_message_id);
    assert_eq!(applied.cluster_options, reference.options);
    for (timeline, rows) in &reference.timelines {
        assert_eq!(shard.head(*timeline).unwrap(), Seq(rows.len() as u64));
        let last = rows.last().unwrap();
        assert_eq!(
            shard.scan(*timeline, last.seq, 1, 1).unwrap(),
            std::slice::from_ref(last)
        );
    }
}

fn pages(shard: &Shard, timeline: TimelineId, limit: usize, bytes: usize) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    loop {
        let from = Seq(rows.len() as u64 + 1);
        let page = shard.scan(timeline, from, limit, bytes).unwrap();
        assert!(page.len() <= limit);
        if page.is_empty() {
            return rows;
        }
        rows.extend(page);
    }
}

fn compare(shard: &Shard, reference: &Reference) {
    for (timeline, rows) in &reference.timelines {
        for (limit, bytes) in [
            (1, usize::MAX),
            (3, 1 << 20),
            (usize::MAX, 30),
            (1000, 1 << 20),
        ] {
            assert_eq!(pages(shard, *timeline, limit, bytes), *rows, "{timeline}");
        }
    }
    for (user, handle) in &reference.users {
        assert_eq!(shard.resolve_handle(handle).unwrap(), Some(*user));
        assert_eq!(shard.handle_of(*user).unwrap().as_ref(), Some(handle));
        compare_groups(shard, reference, *user);
    }
    letters::compare_letters(shard, reference);
    assert_eq!(shard.resolve_handle("nobody").unwrap(), None);
    assert_eq!(shard.handle_of(UserId(1)).unwrap(), None);
    for ((user, timeline), seq) in &reference.read_marks {
        let conversation = match timeline.kind {
            TimelineKind::Mailbox => Conversation::Peer(UserId(timeline.owner)),
            TimelineKind::Group => Conversation::Group(GroupId(timeline.owner)),
            TimelineKind::DeadLetters => panic!("nobody reads {timeline}"),
        };
        assert_eq!(shard.read_mark(*user, conversation).unwrap(), *seq);
    }
    for ((timeline, user, device), seq) in &reference.cursors {
        let device = DeviceId::new(device).unwrap();
        assert_eq!(shard.cursor(*timeline, *user, &device).unwrap(), *seq);
    }
}

fn compare_groups(shard: &Shard, reference: &Reference, user: UserId) {
    let mut expected = Vec::new();
    for (group, members) in &reference.groups {
        let membership = shard.membership(*group, user).unwrap();
        let spans = membership.as_ref().map(|membership| &membership.spans);
        assert_eq!(spans, members.get(&user));
        if let Some(spans) = members.get(&user) {
            let mark = reference.read_marks.get(&(user, group.timeline()));
            expected.push((*group, spans.clone(), mark.copied().unwrap_or_default()));
        }
    }
    let found = shard.groups_of(user).unwrap();
    let found: Vec<_> = found
        .into_iter()
        .map(|group| (group.group, group.spans, group.read_mark))
        .collect();
    assert_eq!(found, expected);
}

/// The same log, applied under another pattern of flushes.
fn replay(log: &[ApplyEntry], flush_every: usize) -> Replica {
    let mut replica = Replica::new(Disk::Memory(MemoryDisk::new()));
    for (number, entry) in log.iter().enumerate() {
        replica.apply(entry.payload.clone());
        if (number + 1) % flush_every == 0 {
            replica.flush();
        }
    }
    replica
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn the_engine_does_as_the_reference(steps in script::steps()) {
        let (mut replica, reference) = run(&steps, Disk::Memory(MemoryDisk::new()));
        replica.flush();
        compare(&replica.shard(), &reference);
        replica.reopen();
        compare(&replica.shard(), &reference);
    }

    #[test]
    fn the_state_hash_does_not_depend_on_flush_points(steps in script::steps()) {
        let (mut replica, _) = run(&steps, Disk::Memory(MemoryDisk::new()));
        let hash = replica.shard().state_hash_now().unwrap();
        replica.flush();
        prop_assert_eq!(replica.shard().state_hash_now().unwrap(), hash);
        for flush_every in [1, 3, usize::MAX] {
            let mut other = replay(&replica.log, flush_every);
            prop_assert_eq!(&other.replies, &replica.replies);
            prop_assert_eq!(other.shard().state_hash_now().unwrap(), hash);
            other.flush();
            for (index, cut) in &other.cuts {
                if let Some(same) = replica.cuts.get(index) {
                    prop_assert_eq!(cut, same);
                }
            }
        }
    }
}

/// A script that never gets to a reply would prove nothing about it.
#[test]
fn the_scripts_reach_every_reply_and_cuts() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..150 {
        let steps = script::steps().new_tree(&mut runner).unwrap().current();
        let (replica, _) = run(&steps, Disk::Memory(MemoryDisk::new()));
        for reply in replica.replies.iter().flatten() {
            let name = match reply {
                Reply::Refused(refusal) => format!("{refusal:?}"),
                Reply::Sent { .. }
                | Reply::UserRegistered { .. }
                | Reply::GroupCreated { .. }
                | Reply::Joined { .. }
                | Reply::Left { .. }
                | Reply::ReadMark { .. }
                | Reply::Cursor { .. }
                | Reply::Delivered { .. }
                | Reply::LanesAcked
                | Reply::DeadLetterRequeued { .. }
                | Reply::DeadLetterDropped
                | Reply::Map { .. }
                | Reply::SlotMoved { .. }
                | Reply::ShardSplit { .. }
                | Reply::ClusterOptions { .. }
                | Reply::Cut { .. } => format!("{reply:?}"),
            };
            let name = name.split([' ', '(']).next().unwrap_or_default();
            *seen.entry(name.to_owned()).or_default() += 1;
        }
        *seen.entry("cut hash".to_owned()).or_default() += replica.cuts.len();
        let totals = replica.shard().metrics().dead_letters;
        *seen.entry("unseen".to_owned()).or_default() += usize::try_from(totals.unseen).unwrap();
    }
    let names = "Sent UserRegistered GroupCreated Joined Left ReadMark Cursor Cut IdReused \
                 IdExpired IdFromFuture Corrupt Retry UnknownUser UnknownGroup NotAMember \
                 AlreadyAMember HandleTaken InvalidHandle GroupFull SeqBeyondHead BodyTooLarge \
                 ReservedType ClusterOptions NotReady OptionOutOfBounds TooManyGroups \
                 TooManyDevices DeadLetterRequeued DeadLetterDropped UnknownDeadLetter \
                 DeadLetterResolved";
    for name in names.split_whitespace().chain(["cut hash", "unseen"]) {
        assert!(
            seen.get(name).is_some_and(|count| *count >= 3),
            "{name}: {seen:#?}"
        );
    }
}

proptest! {
    #![proptest_config(config(6))]

    #[test]
    fn rocksdb_does_as_the_reference(steps in script::steps()) {
        let (mut replica, reference) = run(&steps, Disk::Rocks(tempfile::tempdir().unwrap()));
        let hash = replica.shard().state_hash_now().unwrap();
        replica.flush();
        replica.reopen();
        compare(&replica.shard(), &reference);
        let memory = replay(&replica.log, usize::MAX);
        prop_assert_eq!(memory.shard().state_hash_now().unwrap(), hash);
    }
}
