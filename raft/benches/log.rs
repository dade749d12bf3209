//! Synced writes of the shared log beside bare fdatasync on the same file system, in the same run.
//!
//! The log is kept at 1, 16, 64 and 256 appends of one entry that wait; bare are overwrites of as many bytes in a file
//! that is already written, one fdatasync each. Every run of the log stands between two of these, and its share is of
//! their mean: disks change their mind within minutes. README.md says what each figure is.
//!
//! `cargo bench -p mailbox-raft --bench log -- [--seconds S] [--body-bytes N] [--dir D] [--json]`: S per line, 2 by
//! default; D must not be in memory, `target/bench-log` by default.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mailbox_raft::{LogBench, LogOptions};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Appends that wait: so many entries a sync, if the log drains all that waits.
const IN_FLIGHT: [usize; 4] = [1, 16, 64, 256];
/// What an entry's row has beside the body, about: key, checksum, log id, framing.
const ENTRY_BYTES: usize = 60;
const AHEAD_BYTES: usize = 16 << 20;
/// Linux counts CPU time in hundredths of a second, whatever the kernel's own tick.
const TICK_US: u64 = 10_000;

/// What to run.
struct Load {
    time: Duration,
    body_bytes: usize,
    dir: PathBuf,
    json: bool,
}

/// 4 KiB-aligned overwrites of `len` bytes in a file that is already written, each synced: how many a second.
fn bare(load: &Load, len: usize) -> std::io::Result<f64> {
    let path = load.dir.join("bare");
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
    while begin.elapsed() < load.time {
        if at + block.len() > size {
            at = 0;
        }
        file.write_all_at(&block, at as u64)?;
        file.sync_data()?;
        at += block.len();
        writes += 1;
    }
    let took = begin.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(writes as f64 / took)
}

/// What the log did in one run.
struct Line {
    in_flight: usize,
    ahead: bool,
    /// Of the runs before and after it.
    bare_per_s: f64,
    syncs_per_s: f64,
    entries_per_s: f64,
    /// Of the whole process, appending included.
    cpu_us_per_entry: f64,
    /// Bytes of the batches, before RocksDB's framing.
    bytes_per_sync: f64,
    p50_us: u128,
    p99_us: u128,
}

impl Line {
    fn share(&self) -> f64 {
        over(self.syncs_per_s, self.bare_per_s)
    }

    fn entries_per_sync(&self) -> f64 {
        over(self.entries_per_s, self.syncs_per_s)
    }

    fn json(&self) -> String {
        format!(
            "{{\"in_flight\":{},\"ahead\":{},\"bare_fdatasync_per_s\":{:.1},\"syncs_per_s\":{:.1},\
             \"share_of_bare\":{:.3},\"entries_per_s\":{:.1},\"entries_per_sync\":{:.2},\
             \"bytes_per_sync\":{:.0},\"cpu_us_per_entry\":{:.2},\"p50_us\":{},\"p99_us\":{}}}",
            self.in_flight,
            self.ahead,
            self.bare_per_s,
            self.syncs_per_s,
            self.share(),
            self.entries_per_s,
            self.entries_per_sync(),
            self.bytes_per_sync,
            self.cpu_us_per_entry,
            self.p50_us,
            self.p99_us
        )
    }

    fn words(&self) -> String {
        format!(
            "{:>9}  {:>5}  {:>9.0}  {:>9.0}  {:>4.0} %  {:>9.0}  {:>12.1}  {:>12.2}  {:>6}  {:>6}",
            self.in_flight,
            self.ahead,
            self.bare_per_s,
            self.syncs_per_s,
            100.0 * self.share(),
            self.entries_per_s,
            self.entries_per_sync(),
            self.cpu_us_per_entry,
            self.p50_us,
            self.p99_us
        )
    }
}

const HEADER: &str = "in flight  ahead     bare/s    syncs/s   share  entries/s  entries/sync  cpu us/entry  p50 us  p99 us";

/// 0 over nothing, since JSON has neither infinity nor NaN.
fn over(number: f64, divisor: f64) -> f64 {
    if divisor > 0.0 { number / divisor } else { 0.0 }
}

/// Appends of one entry, `in_flight` at a time.
async fn log(load: &Load, in_flight: usize, ahead: bool) -> Outcome<Line> {
    let dir = load.dir.join("log");
    let _ = std::fs::remove_dir_all(&dir);
    let options = LogOptions {
        wal_ahead_bytes: if ahead { AHEAD_BYTES } else { 0 },
        ..LogOptions::default()
    };
    let log = LogBench::open(&dir, options)?;
    let body = Bytes::from(vec![7; load.body_bytes]);
    let (before, cpu_before) = (log.metrics(), cpu_us()?);
    let (begin, mut waiting, mut times) = (Instant::now(), VecDeque::new(), Vec::new());
    while begin.elapsed() < load.time {
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
    let cpu_us = cpu_us()? - cpu_before;
    times.sort_unstable();
    let at = |share: f64| {
        times
            .get((times.len() as f64 * share) as usize)
            .copied()
            .unwrap_or(0)
    };
    let syncs = (after.fsyncs - before.fsyncs) as f64;
    let entries = (after.entries - before.entries) as f64;
    Ok(Line {
        in_flight,
        ahead,
        bare_per_s: 0.0,
        syncs_per_s: syncs / took,
        entries_per_s: entries / took,
        cpu_us_per_entry: over(cpu_us as f64, entries),
        bytes_per_sync: over((after.bytes - before.bytes) as f64, syncs),
        p50_us: at(0.5),
        p99_us: at(0.99),
    })
}

/// User and system time of this process, in microseconds.
fn cpu_us() -> Outcome<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name in parentheses may hold spaces; `utime` is the 12th field after it.
    let (_, fields) = stat.rsplit_once(')').ok_or("/proc/self/stat has no name")?;
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks: Result<Vec<u64>, _> = times.map(str::parse).collect();
    Ok(ticks?.iter().sum::<u64>() * TICK_US)
}

fn arguments() -> Outcome<Load> {
    let mut load = Load {
        // Without --bench, cargo only wants to know that the benchmark runs.
        time: Duration::from_millis(20),
        body_bytes: 300,
        dir: "target/bench-log".into(),
        json: false,
    };
    let mut is_bench = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let value = arguments.next();
            value.ok_or_else(|| format!("{argument} lacks its value"))
        };
        match argument.as_str() {
            "--bench" => is_bench = true,
            "--seconds" => load.time = Duration::from_secs(value()?.parse()?),
            "--body-bytes" => load.body_bytes = value()?.parse()?,
            "--dir" => load.dir = value()?.into(),
            "--json" => load.json = true,
            "--test" => {}
            other => return Err(format!("{other}: unknown flag").into()),
        }
    }
    if is_bench && load.time < Duration::from_secs(1) {
        load.time = Duration::from_secs(2);
    }
    std::fs::create_dir_all(&load.dir)?;
    if is_bench && is_memory(&load.dir)? {
        let dir = load.dir.display();
        return Err(
            format!("{dir} is in memory, where a sync shows nothing: give another --dir").into(),
        );
    }
    Ok(load)
}

/// Whether the file system of `dir` keeps its files in memory: tmpfs or ramfs.
fn is_memory(dir: &Path) -> std::io::Result<bool> {
    let magic = rustix::fs::statfs(dir)?.f_type;
    Ok(matches!(
        u64::try_from(magic).unwrap_or(0) & 0xffff_ffff,
        0x0102_1994 | 0x8584_58f6
    ))
}

fn main() -> Outcome<()> {
    let load = arguments()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    if !load.json {
        println!(
            "{} B bodies, {} s a line, in {}",
            load.body_bytes,
            load.time.as_secs_f64(),
            load.dir.display()
        );
        println!("{HEADER}");
    }
    let mut lines = Vec::new();
    for in_flight in IN_FLIGHT {
        let len = in_flight * (load.body_bytes + ENTRY_BYTES);
        let mut before = bare(&load, len)?;
        for ahead in [false, true] {
            let mut line = runtime.block_on(log(&load, in_flight, ahead))?;
            let after = bare(&load, len)?;
            line.bare_per_s = f64::midpoint(before, after);
            before = after;
            match load.json {
                true => lines.push(line.json()),
                false => println!("{}", line.words()),
            }
        }
    }
    if load.json {
        println!(
            "{{\"bench\":\"log\",\"body_bytes\":{},\"seconds\":{},\"lines\":[{}]}}",
            load.body_bytes,
            load.time.as_secs_f64(),
            lines.join(",")
        );
    }
    std::fs::remove_dir_all(load.dir.join("log"))?;
    Ok(())
}
