//! The engine: one thread applies entries, one flushes, as in a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mailbox_engine::{
    ApplyEntry, ApplyPayload, ClusterOptions, Command, EngineOptions, EntryBuilder, Flags, LogId,
    MessageId, MessageType, RegisterUser, Reply, Send, SetClusterOptions, Shard, ShardId, Store,
    UserId,
};
use uuid::Uuid;

use crate::messages::{Message, Messages};
use crate::process::{Stage, cpu, named_cpu, sst_bytes, thread_cpu, wait_idle, written_bytes};
use crate::{BATCH, CHUNK, Cost, Load, MERGE_THREADS, as_usize};

/// Applies the load to a new store.
pub(crate) fn run(load: &Load) -> Cost {
    let dir = tempfile::tempdir_in(&load.dir).expect("make a directory");
    // Both sides keep all heads in memory: RocksDB gets an array of them. The cache is in sets, and
    // with this many places next to none is full.
    let head_cache_entries = as_usize(4 * load.users);
    let options = EngineOptions {
        head_cache_entries,
        ..EngineOptions::default()
    };
    let slots = 0..=options.slot_count - 1;
    let store = Store::open(dir.path(), options).expect("open the store");
    let shard = store.create_shard(ShardId(1), slots).expect("make a shard");
    let mut applier = Applier {
        shard: shard.clone(),
        index: 0,
    };
    let (users, _) = flushing(&shard, || applier.register(load.users));
    wait_idle();
    let stored_before = sst_bytes(dir.path());

    let (cpu_before, merge_before) = (cpu(), named_cpu(MERGE_THREADS));
    let (written_before, start) = (written_bytes(), Instant::now());
    let ((wall, making, apply), flush_cpu) = flushing(&shard, || {
        let mut messages = Messages::new(load);
        let (mut making, mut apply) = (Stage::default(), Stage::default());
        let mut left = load.messages;
        while left > 0 {
            let chunk = left.min(CHUNK);
            left -= chunk;
            let entries = making.time(|| entries(&mut messages, chunk, &users));
            apply.time(|| entries.into_iter().for_each(|entry| applier.send(entry)));
        }
        (start.elapsed(), making, apply)
    });
    wait_idle();
    Cost {
        wall,
        making,
        apply,
        flush_cpu,
        compaction_cpu: named_cpu(MERGE_THREADS) - merge_before,
        cpu: cpu() - cpu_before,
        written_bytes: written_bytes() - written_before,
        stored_bytes: sst_bytes(dir.path()).saturating_sub(stored_before),
    }
}

/// Entries of the next messages: what a leader makes before the log has them, and once for all replicas.
fn entries(messages: &mut Messages, count: u64, users: &[UserId]) -> Vec<EntryBuilder> {
    let firsts = (0..count).step_by(as_usize(BATCH));
    firsts
        .map(|first| entry(messages, BATCH.min(count - first), users))
        .collect()
}

fn entry(messages: &mut Messages, count: u64, users: &[UserId]) -> EntryBuilder {
    let user = |number: u64| users[as_usize(number)];
    let mut entry = None;
    for _ in 0..count {
        let message: Message = messages.next();
        let command = Command::Send(Send {
            sender: user(message.sender),
            recipient: user(message.recipient),
            client_msg_id: message.id,
            message_id: message.message_id,
            kind: MessageType::TEXT,
            flags: Flags::default(),
            content_crc: message.content_crc,
            body: message.body,
            shown: MessageId::ZERO,
        });
        entry
            .get_or_insert_with(|| EntryBuilder::new(message.time_ms))
            .push(&command);
    }
    entry.expect("a batch is not empty")
}

struct Applier {
    shard: Arc<Shard>,
    index: u64,
}

impl Applier {
    fn register(&mut self, count: u64) -> Vec<UserId> {
        let mut users = Vec::new();
        let time_ms = Messages::start_ms();
        let mut entry = EntryBuilder::new(time_ms);
        entry.push(&Command::SetClusterOptions(SetClusterOptions {
            options: ClusterOptions::default(),
            if_absent: true,
        }));
        self.apply(entry);
        for first in (0..count).step_by(512) {
            let mut entry = EntryBuilder::new(time_ms);
            for number in first..count.min(first + 512) {
                let id = u128::from(time_ms) << 80 | 7 << 76 | 2 << 62 | u128::from(number);
                let (request_id, handle) = (Uuid::from_u128(id), format!("user-{number}"));
                entry.push(&Command::RegisterUser(RegisterUser { request_id, handle }));
            }
            for reply in self.apply(entry) {
                let Reply::UserRegistered { user } = reply else {
                    panic!("{reply:?}")
                };
                users.push(user);
            }
        }
        users
    }

    fn send(&mut self, entry: EntryBuilder) {
        let replies = self.apply(entry);
        assert!(
            replies
                .iter()
                .all(|reply| matches!(reply, Reply::Sent { .. }))
        );
    }

    fn apply(&mut self, entry: EntryBuilder) -> Vec<Reply> {
        while self.shard.stalled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.index += 1;
        let log_id = LogId {
            term: 1,
            node: 1,
            index: self.index,
        };
        let payload = ApplyPayload::Commands(entry.finish());
        let applied = self.shard.apply(&[ApplyEntry { log_id, payload }]);
        let applied = applied.expect("apply");
        applied.replies.into_iter().flatten().collect()
    }
}

/// Runs `apply` beside a thread that flushes; leaves nothing unflushed. Gives that thread's CPU, too.
fn flushing<T>(shard: &Shard, apply: impl FnOnce() -> T) -> (T, Duration) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flusher = scope.spawn(|| {
            flush_until(shard, &done);
            thread_cpu()
        });
        let result = apply();
        done.store(true, Ordering::Release);
        let flush_cpu = flusher.join().expect("flush to the end");
        (result, flush_cpu)
    })
}

fn flush_until(shard: &Shard, done: &AtomicBool) {
    loop {
        let last = done.load(Ordering::Acquire);
        if last || shard.flush_due(0) {
            while let Some(frozen) = shard.freeze() {
                let built = shard.build(&frozen).expect("build a file");
                shard.ingest(built).expect("ingest");
                if !last {
                    break;
                }
            }
        } else {
            std::thread::sleep(Duration::from_millis(2));
        }
        if last {
            return;
        }
    }
}
