//! Tests of the storage under the procedures: what is read must not depend on where rows are.

mod caches;
mod drops;
mod faults;
mod flushes;
mod hours;
mod installs;
mod lanes;
mod letters;
mod moves;
mod sizes;
mod splits;

use bytes::Bytes;
use tempfile::TempDir;
use uuid::Uuid;

use crate::applied::{AppliedState, LogId};
use crate::base::memory::MemoryDisk;
use crate::error::Error;
use crate::id::{MessageId, Seq, ShardId, TimelineId, UserId};
use crate::options::EngineOptions;
use crate::row::{Flags, MessageType, NewRow, Row, content_crc};
use crate::shard::{ApplyEntry, ApplyPayload, Shard};
use crate::state::{Context, Effects};
use crate::store::Store;

/// Where a test's store is.
enum Disk {
    Memory(MemoryDisk),
    Dir(TempDir),
}

impl Disk {
    /// Both kinds, for tests that must hold on each.
    fn all() -> [Disk; 2] {
        [
            Disk::Memory(MemoryDisk::new()),
            Disk::Dir(tempfile::tempdir().unwrap()),
        ]
    }

    fn open(&self) -> Store {
        self.open_with(options()).unwrap()
    }

    fn open_with(&self, options: EngineOptions) -> Result<Store, Error> {
        match self {
            Disk::Memory(disk) => Store::open_in_memory(disk, options),
            Disk::Dir(dir) => Store::open(dir.path(), options),
        }
    }
}

fn options() -> EngineOptions {
    EngineOptions {
        slot_count: 8,
        head_cache_entries: 64,
        ..EngineOptions::default()
    }
}

const SHARD: ShardId = ShardId(1);

fn new_shard(store: &Store) -> std::sync::Arc<Shard> {
    store.create_shard(SHARD, 0..=7).unwrap()
}

fn mailbox(user: u64) -> TimelineId {
    UserId(user).mailbox()
}

fn new_row(body: &str) -> NewRow {
    let (client_msg_id, kind) = (Uuid::from_u128(7), MessageType::TEXT);
    let body = Bytes::copy_from_slice(body.as_bytes());
    NewRow {
        message_id: MessageId(1),
        correspondent: UserId(99),
        client_msg_id,
        sent_at_ms: 1,
        kind,
        flags: Flags(0),
        content_crc: content_crc(client_msg_id, kind, &body),
        body,
    }
}

impl Shard {
    /// Runs `change` as the entry after the last one.
    fn enter<T>(&self, change: impl FnOnce(&mut Context<'_>) -> T) -> T {
        let mut state = self.state.write();
        let index = state.applied.log_id.map_or(1, |log_id| log_id.index + 1);
        let log_id = LogId {
            term: 1,
            node: 1,
            index,
        };
        let mut effects = Effects::default();
        state.batches += 1;
        let (batch, rewrites) = (state.batches, state.rewrites);
        let mut context = Context::new(&mut state, &mut effects, self.id(), batch, log_id);
        let result = change(&mut context);
        let cut = context.is_cut();
        state.applied.log_id = Some(log_id);
        if state.rewrites != rewrites {
            self.tails.lock().clear();
        }
        if cut {
            state.freeze(true);
        }
        self.count_memtables(&state);
        result
    }

    fn send(&self, user: u64, body: &str) -> Seq {
        self.enter(|ctx| ctx.append(mailbox(user), new_row(body)).unwrap())
    }

    fn edit(&self, user: u64, seq: u64, body: &str) {
        self.enter(|ctx| {
            ctx.overwrite(mailbox(user), Seq(seq), new_row(body))
                .unwrap()
        });
    }

    fn flush(&self) -> Option<LogId> {
        let frozen = self.freeze()?;
        let built = self.build(&frozen).unwrap();
        Some(self.ingest(built).unwrap())
    }

    fn bodies(&self, user: u64) -> Vec<String> {
        bodies(&self.scan(mailbox(user), Seq(1), 1000, usize::MAX).unwrap())
    }

    fn hash_now(&self) -> u128 {
        self.state_hash_now().unwrap().unwrap().hash
    }
}

fn bodies(rows: &[Row]) -> Vec<String> {
    rows.iter()
        .map(|row| String::from_utf8(row.body.to_vec()).unwrap())
        .collect()
}

fn blank(index: u64) -> ApplyEntry {
    ApplyEntry {
        log_id: LogId {
            term: 1,
            node: 1,
            index,
        },
        payload: ApplyPayload::Blank,
    }
}

fn index_of(applied: &AppliedState) -> u64 {
    applied.log_id.map_or(0, |log_id| log_id.index)
}
