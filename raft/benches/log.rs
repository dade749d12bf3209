//! Synced writes of the shared log beside bare fdatasync on the same file system.
//!
//! `cargo bench -p mailbox-raft --bench log [-- SECONDS [DIR]]`: SECONDS per line, default 2; DIR must
//! not be a tmpfs, default `target/bench-log`. Prints writes per second, and the log's share of the bare
//! rate at the same size.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mailbox_raft::{LogBench, LogOptions};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const BODY_BYTES: usize = 300;
const AHEAD_BYTES: usize = 16 << 20;

/// 4 KiB-aligned overwrites of `len` bytes in a file that is already written, each synced.
fn bare(dir: &Path, len: usize, seconds: u64) -> std::io::Result<f64> {
    let path = dir.join("bare");
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&path)?;
    let size = 64 << 20;
    file.write_all_at(&vec![0; size], 0)?;
    file.sync_all()?;
    let block = vec![7; len.next_multiple_of(4096)];
    let (begin, mut writes, mut at) = (Instant::now(), 0u64, 0);
    while begin.elapsed() < Duration::from_secs(seconds) {
        if at + block.len() > size {
            at = 0;
        }
        file.write_all_at(&block, at as u64)?;
        file.sync_data()?;
        at += block.len();
        writes += 1;
    }
    std::fs::remove_file(path)?;
    Ok(writes as f64 / begin.elapsed().as_secs_f64())
}

struct Line {
    syncs: f64,
    entries: f64,
    p50_us: u128,
    p99_us: u128,
}

/// Appends of one entry, `in_flight` at a time.
async fn log(dir: &Path, options: LogOptions, in_flight: usize, seconds: u64) -> Outcome<Line> {
    let _ = std::fs::remove_dir_all(dir);
    let log = LogBench::open(dir, options)?;
    let body = Bytes::from(vec![7; BODY_BYTES]);
    let before = log.metrics();
    let (begin, mut waiting, mut times) = (Instant::now(), VecDeque::new(), Vec::new());
    while begin.elapsed() < Duration::from_secs(seconds) {
        while waiting.len() < in_flight {
            waiting.push_back((Instant::now(), log.append(vec![body.clone()])?));
        }
        if let Some((asked, synced)) = waiting.pop_front() {
            if !synced.await {
                return Err("an append failed".into());
            }
            times.push(asked.elapsed().as_micros());
        }
        if times.len().is_multiple_of(10_000) {
            log.purge(20_000)?;
        }
    }
    let (took, after) = (begin.elapsed().as_secs_f64(), log.metrics());
    times.sort_unstable();
    let at = |share: f64| {
        times
            .get((times.len() as f64 * share) as usize)
            .copied()
            .unwrap_or(0)
    };
    Ok(Line {
        syncs: (after.fsyncs - before.fsyncs) as f64 / took,
        entries: (after.entries - before.entries) as f64 / took,
        p50_us: at(0.5),
        p99_us: at(0.99),
    })
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let seconds = arguments.first().map_or(Ok(2), |seconds| seconds.parse())?;
    let dir = arguments
        .get(1)
        .map_or("target/bench-log".into(), PathBuf::from);
    std::fs::create_dir_all(&dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    println!(
        "{BODY_BYTES} B bodies, {seconds} s a line, in {}",
        dir.display()
    );
    println!("in flight  ahead     bare/s    syncs/s  share   entries/s  p50 us  p99 us");
    for in_flight in [1, 16, 64, 256] {
        let bare = bare(&dir, in_flight * (BODY_BYTES + 60), seconds)?;
        for ahead in [false, true] {
            let options = LogOptions {
                wal_ahead_bytes: if ahead { AHEAD_BYTES } else { 0 },
                ..LogOptions::default()
            };
            let line = runtime.block_on(log(&dir.join("log"), options, in_flight, seconds))?;
            println!(
                "{in_flight:>9}  {ahead:>5}  {bare:>9.0}  {:>9.0}  {:>4.0} %  {:>9.0}  {:>6}  {:>6}",
                line.syncs,
                100.0 * line.syncs / bare,
                line.entries,
                line.p50_us,
                line.p99_us
            );
        }
    }
    std::fs::remove_dir_all(dir.join("log"))?;
    Ok(())
}
