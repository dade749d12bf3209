//! What this process and its threads have used.

use std::path::Path;
use std::time::{Duration, Instant};

/// Linux counts CPU time in hundredths of a second, whatever the kernel's own tick.
const TICK: Duration = Duration::from_millis(10);

/// User and system time of all threads, those that have ended included.
pub(crate) fn cpu() -> Duration {
    ticks("/proc/self/stat")
}

/// Time on a CPU of the calling thread. The kernel brings it up to date at its ticks, so that it is right over seconds:
/// what alternates faster is told apart by where the ticks fall.
pub(crate) fn thread_cpu() -> Duration {
    on_cpu(Path::new("/proc/thread-self")).expect("Linux has /proc")
}

/// The same of all threads of this process whose names begin so, as RocksDB's do.
pub(crate) fn named_cpu(prefix: &str) -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").expect("Linux has /proc");
    threads
        .map(|thread| thread.expect("Linux has /proc").path())
        .filter(|thread| {
            // One that has just ended has neither a name nor a time.
            let name = std::fs::read_to_string(thread.join("comm"));
            name.is_ok_and(|name| name.starts_with(prefix))
        })
        .filter_map(|thread| on_cpu(&thread))
        .sum()
}

fn on_cpu(thread: &Path) -> Option<Duration> {
    let text = std::fs::read_to_string(thread.join("schedstat")).ok()?;
    let (on_cpu_ns, _) = text.split_once(' ')?;
    on_cpu_ns.parse().ok().map(Duration::from_nanos)
}

/// Bytes that this process has handed to write calls, whether or not they are on the disk yet.
pub(crate) fn written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").expect("Linux has /proc");
    let bytes = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    bytes
        .and_then(|bytes| bytes.parse().ok())
        .expect("a number of bytes")
}

fn ticks(path: &str) -> Duration {
    let stat = std::fs::read_to_string(path).expect("Linux has /proc");
    // The name in parentheses may hold spaces; `utime` is the 12th field after it.
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks = |text: &str| text.parse::<u32>().expect("a number of ticks");
    TICK * times.map(ticks).sum()
}

/// Time that one part of the work takes, added up piece by piece.
#[derive(Default)]
pub(crate) struct Stage {
    pub(crate) wall: Duration,
    /// Of the calling thread.
    pub(crate) cpu: Duration,
}

impl Stage {
    pub(crate) fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (wall, cpu) = (Instant::now(), thread_cpu());
        let result = work();
        self.wall += wall.elapsed();
        self.cpu += thread_cpu() - cpu;
        result
    }
}

/// Waits until nothing in this process has used the CPU for a while: compaction is through.
pub(crate) fn wait_idle() {
    let mut quiet = 0;
    while quiet < 4 {
        let before = cpu();
        std::thread::sleep(Duration::from_millis(250));
        quiet = if cpu() - before <= TICK { quiet + 1 } else { 0 };
    }
}

/// Bytes of all SST files below a directory.
pub(crate) fn sst_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).expect("read a directory");
    entries
        .map(|entry| entry.expect("read a directory"))
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => sst_bytes(&entry.path()),
            Ok(metadata) if entry.path().extension().is_some_and(|kind| kind == "sst") => {
                metadata.len()
            }
            // RocksDB's own files, or one that it has just removed.
            _ => 0,
        })
        .sum()
}
