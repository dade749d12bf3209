//! What a message costs: the engine beside raw RocksDB that stores the same rows.
//!
//! Per message both store two timeline rows and one dedup row, and look the dedup key up first.
//! RocksDB writes them by `WriteBatch` without its WAL, and is given the heads for nothing; the
//! engine decodes entries, checks content and dedup, knows its users, flushes and ingests. All
//! CPU of the process counts, making the messages included, until compaction has nothing left to
//! do; wall rates are those of the messages alone.
//!
//! `cargo bench -p mailbox-engine --bench apply -- [--messages N] [--users N] [--dir D]`

// A benchmark is what clocks and threads are for.
#![allow(clippy::disallowed_methods)]

#[path = "apply/engine.rs"]
mod engine;
#[path = "apply/messages.rs"]
mod messages;
#[path = "apply/process.rs"]
mod process;
#[path = "apply/rocks.rs"]
mod rocks;

use std::path::PathBuf;
use std::time::Duration;

/// Messages in one entry, and in one write batch.
pub(crate) const BATCH: u64 = 64;

/// A number of things in memory, as a length or an index.
pub(crate) fn as_usize(number: u64) -> usize {
    usize::try_from(number).expect("64-bit")
}

/// What to run.
pub(crate) struct Load {
    pub(crate) messages: u64,
    pub(crate) users: u64,
    pub(crate) dir: PathBuf,
}

/// What one side took.
pub(crate) struct Cost {
    /// Until the last message was applied.
    pub(crate) wall: Duration,
    /// Of the thread that applies.
    pub(crate) apply_cpu: Duration,
    /// Of the whole process, until compaction was through.
    pub(crate) cpu: Duration,
    pub(crate) stored_bytes: u64,
}

fn main() {
    let mut load = Load {
        messages: 20_000,
        users: 1_000,
        dir: std::env::temp_dir(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("every flag has a value");
        match argument.as_str() {
            // Without it, cargo only wants to know that the benchmark runs.
            "--bench" => (load.messages, load.users) = (10_000_000, 1_000_000),
            "--messages" => load.messages = value().parse().expect("a number of messages"),
            "--users" => load.users = value().parse().expect("a number of users"),
            "--dir" => load.dir = value().into(),
            "--test" => {}
            other => panic!("{other}: unknown flag"),
        }
    }
    std::fs::create_dir_all(&load.dir).expect("make the directory");
    let ours = report("engine", &load, &engine::run(&load));
    let theirs = report("rocksdb", &load, &rocks::run(&load));
    let percent = 100.0 * ours / theirs;
    eprintln!("the engine takes {percent:.0} % of RocksDB's CPU per message");
    println!("{{\"name\":\"engine_over_rocksdb\",\"cpu_percent\":{percent:.1}}}");
}

/// Prints one side's figures; gives its CPU per message, in microseconds.
fn report(name: &str, load: &Load, cost: &Cost) -> f64 {
    let messages = load.messages as f64;
    let per_message = |time: Duration| time.as_secs_f64() * 1e6 / messages;
    let rate = messages / cost.wall.as_secs_f64();
    let (cpu, apply) = (per_message(cost.cpu), per_message(cost.apply_cpu));
    let stored = cost.stored_bytes as f64 / messages;
    eprintln!(
        "{name}: {cpu:.2} µs CPU per message ({apply:.2} in the applying thread), \
         {rate:.0} messages/s, {stored:.0} bytes stored per message"
    );
    println!(
        "{{\"name\":\"{name}\",\"messages\":{},\"users\":{},\"cpu_us_per_message\":{cpu:.3},\
         \"apply_cpu_us_per_message\":{apply:.3},\"messages_per_s\":{rate:.0},\
         \"stored_bytes_per_message\":{stored:.1}}}",
        load.messages, load.users
    );
    cpu
}
