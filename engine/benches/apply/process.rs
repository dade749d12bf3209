//! What this process and its threads have used.

use std::path::Path;
use std::time::Duration;

/// Linux counts CPU time in hundredths of a second, whatever the kernel's own tick.
const TICK: Duration = Duration::from_millis(10);

/// User and system time of all threads, those that have ended included.
pub(crate) fn cpu() -> Duration {
    ticks("/proc/self/stat")
}

/// User and system time of the calling thread.
pub(crate) fn thread_cpu() -> Duration {
    ticks("/proc/thread-self/stat")
}

fn ticks(path: &str) -> Duration {
    let stat = std::fs::read_to_string(path).expect("Linux has /proc");
    // The name in parentheses may hold spaces; `utime` is the 12th field after it.
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks = |text: &str| text.parse::<u32>().expect("a number of ticks");
    TICK * times.map(ticks).sum()
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

/// Bytes of all files below a directory.
pub(crate) fn file_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).expect("read a directory");
    entries
        .map(|entry| entry.expect("read a directory"))
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => file_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            // RocksDB has just removed it.
            Err(_) => 0,
        })
        .sum()
}
