//! What a message costs: the engine beside raw RocksDB that stores the same rows.
//!
//! Per message both store two timeline rows and one dedup row, and look the dedup key up first.
//! RocksDB writes them by `WriteBatch` without its WAL, and is given the heads for nothing; the
//! engine decodes entries, checks content and dedup, knows its users, flushes and ingests. Both run
//! until compaction has nothing left to do. README.md says what each figure is.
//!
//! `cargo bench -p mailbox-engine --bench apply -- [--messages N] [--users N] [--body-bytes N] [--dir D] [--json]`

// A benchmark is what clocks and threads are for.
#![allow(clippy::disallowed_methods)]

#[path = "apply/engine.rs"]
mod engine;
#[path = "apply/messages.rs"]
mod messages;
#[path = "apply/process.rs"]
mod process;
#[path = "apply/report.rs"]
mod report;
#[path = "apply/rocks.rs"]
mod rocks;

use std::path::PathBuf;
use std::time::Duration;

use process::Stage;
use report::Report;

/// Messages in one entry, and in one write batch.
pub(crate) const BATCH: u64 = 64;

/// A number of things in memory, as a length or an index.
pub(crate) fn as_usize(number: u64) -> usize {
    usize::try_from(number).expect("64-bit")
}

/// Messages that are made before they are applied, so that the two are timed apart.
pub(crate) const CHUNK: u64 = 64 * BATCH;

/// What RocksDB calls the threads that compact.
pub(crate) const MERGE_THREADS: &str = "rocksdb:low";

/// What to run.
pub(crate) struct Load {
    pub(crate) messages: u64,
    pub(crate) users: u64,
    pub(crate) body_bytes: u64,
    pub(crate) dir: PathBuf,
}

/// What one side took.
pub(crate) struct Cost {
    /// Until the last message was applied.
    pub(crate) wall: Duration,
    /// Of the messages, and in the engine of their entries: neither is part of apply.
    pub(crate) making: Stage,
    /// Until the rows are readable, waits for flush and compaction included.
    pub(crate) apply: Stage,
    pub(crate) flush_cpu: Duration,
    pub(crate) compaction_cpu: Duration,
    /// Of the whole process, until compaction was through.
    pub(crate) cpu: Duration,
    pub(crate) written_bytes: u64,
    pub(crate) stored_bytes: u64,
}

/// Keys and values of the rows that both sides store.
#[derive(Clone, Copy, Default)]
pub(crate) struct RowBytes {
    pub(crate) timeline: u64,
    pub(crate) dedup: u64,
}

fn main() {
    let (load, json) = arguments();
    std::fs::create_dir_all(&load.dir).expect("make the directory");
    let ours = engine::run(&load);
    let (theirs, rows) = rocks::run(&load);
    let report = Report::new(&load, rows, [&ours, &theirs]);
    match json {
        true => println!("{}", report.json()),
        false => println!("{}", report.words()),
    }
}

fn arguments() -> (Load, bool) {
    let mut load = Load {
        messages: 20_000,
        users: 1_000,
        body_bytes: 100,
        dir: std::env::temp_dir(),
    };
    let mut json = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("every flag has a value");
        match argument.as_str() {
            // Without it, cargo only wants to know that the benchmark runs.
            "--bench" => (load.messages, load.users) = (10_000_000, 1_000_000),
            "--messages" => load.messages = value().parse().expect("a number of messages"),
            "--users" => load.users = value().parse().expect("a number of users"),
            "--body-bytes" => load.body_bytes = value().parse().expect("a number of bytes"),
            "--dir" => load.dir = value().into(),
            "--json" => json = true,
            "--test" => {}
            other => panic!("{other}: unknown flag"),
        }
    }
    assert!(load.messages > 0, "--messages is at least 1");
    assert!(load.users > 0, "--users is at least 1");
    (load, json)
}
