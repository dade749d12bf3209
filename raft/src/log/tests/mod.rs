//! Tests of the promises of the whole log.

mod damage;
mod kill;
mod lives;
mod model;
mod order;
mod recycle;
mod suite;

use std::path::Path;

use mailbox_engine::ShardId;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, RaftLogReader};

use super::{LogOptions, ShardLog, SharedLog};
use crate::types::{Cmd, Entry, LogId, TypeConfig, Vote, log_id};

const SHARD: ShardId = ShardId(7);

fn small() -> LogOptions {
    LogOptions {
        memtable_bytes: 1 << 20,
        cache_bytes: 64 << 10,
        wal_ahead_bytes: 0,
        ..LogOptions::default()
    }
}

fn open(dir: &Path) -> SharedLog {
    SharedLog::open(dir, small()).unwrap()
}

/// `len` bytes that belong to `index` alone, and do not compress.
fn body(index: u64, len: usize) -> Vec<u8> {
    let mut state = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn entry(term: u64, index: u64, len: usize) -> Entry {
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(Cmd(body(index, len).into())),
    }
}

/// Appends and waits until the entries are synced.
async fn append(log: &mut ShardLog, entries: impl IntoIterator<Item = Entry>) {
    let entries: Vec<Entry> = entries.into_iter().collect();
    let (done, synced) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(done)).await.unwrap();
    synced.await.unwrap().unwrap();
}

async fn last(log: &mut ShardLog) -> Option<LogId> {
    log.get_log_state().await.unwrap().last_log_id
}

/// Terms of the entries, which must be gapless, verified, and of `len` bytes each.
async fn terms(log: &mut ShardLog, start: u64, len: usize) -> Vec<u64> {
    let entries = log.try_get_log_entries(start..).await.unwrap();
    for (entry, index) in entries.iter().zip(start..) {
        assert_eq!(entry.log_id.index, index);
        assert_eq!(
            entry.payload,
            EntryPayload::Normal(Cmd(body(index, len).into()))
        );
    }
    entries
        .iter()
        .map(|entry| entry.log_id.leader_id.term)
        .collect()
}

/// Copies a log's files as they are: what a crash at this moment would leave.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        // RocksDB may remove a file while it is being listed.
        let _ = std::fs::copy(file.path(), to.join(file.file_name()));
    }
}

fn vote(term: u64, node: u64) -> Vote {
    Vote::new(term, node)
}
