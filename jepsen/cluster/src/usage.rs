//! What processes have used, from `/proc`.

use std::ops::Add;
use std::path::PathBuf;
use std::time::Duration;

/// Ticks in a second, in `/proc/<pid>/stat`: Linux shows 100 to user space on every architecture.
const TICKS_PER_SECOND: u32 = 100;

/// The threads of a node that write its files. The names of threads end at 15 bytes.
const STORAGE_THREADS: [&str; 5] = [
    "log-writer",
    "log-mark",
    "base-store",
    "rocksdb:low",
    "rocksdb:high",
];

/// Bytes that processes have moved, as Linux counts them in `/proc/<pid>`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoBytes {
    /// Fetched from the block device.
    pub read: u64,
    /// Written to files by the threads of a node that do nothing else. Not `write_bytes`: where the page
    /// cache holds a file in large folios, a few bytes appended to a recycled log count as a whole folio
    /// there, though the device gets a block (seen: 18 times what was written).
    pub written: u64,
}

impl Add for IoBytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            read: self.read + other.read,
            written: self.written + other.written,
        }
    }
}

/// What one process has used, or several together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// User and system time.
    pub cpu: Duration,
    /// Bytes moved.
    pub io: IoBytes,
    /// Calls of `read`, `write` and their kin. Linux counts them for files and pipes, and what is written to sockets
    /// from several buffers at once; not `send` and `recv`.
    pub file_calls: u64,
    /// Times that a thread gave its core up, because it had to wait; of threads that still run.
    pub waits: u64,
}

impl Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            io: self.io + other.io,
            file_calls: self.file_calls + other.file_calls,
            waits: self.waits + other.waits,
        }
    }
}

impl Usage {
    /// Of a process that runs or has not been reaped; zero where there is no `/proc`.
    pub(crate) fn of(pid: u32) -> Self {
        let read = |name| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
        let io = read("io").unwrap_or_default();
        Self {
            cpu: read("stat")
                .ok()
                .and_then(|text| cpu_time(&text))
                .unwrap_or_default(),
            io: IoBytes {
                read: field(&io, "read_bytes"),
                written: written_to_files(pid),
            },
            file_calls: field(&io, "syscr") + field(&io, "syscw"),
            waits: waits(pid),
        }
    }
}

/// Memory that a process holds now; zero where there is no `/proc`.
pub(crate) fn rss_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    status.ok().and_then(|status| rss(&status)).unwrap_or(0)
}

fn rss(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// User and system time. The command's name may hold anything, so fields count from its last `)`.
fn cpu_time(stat: &str) -> Option<Duration> {
    let fields = stat.rsplit_once(')')?.1;
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<u32>);
    let (user, system) = (times.next()?.ok()?, times.next()?.ok()?);
    Some(Duration::from_secs(1) * (user + system) / TICKS_PER_SECOND)
}

/// What `/proc` keeps of each thread of a process.
fn threads(pid: u32) -> impl Iterator<Item = PathBuf> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten();
    threads.filter_map(|thread| Some(thread.ok()?.path()))
}

fn waits(pid: u32) -> u64 {
    let status = threads(pid).filter_map(|dir| std::fs::read_to_string(dir.join("status")).ok());
    status.map(|status| waits_of(&status)).sum()
}

fn waits_of(status: &str) -> u64 {
    let mut lines = status.lines();
    let waits = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    waits
        .and_then(|waits| waits.trim().parse().ok())
        .unwrap_or(0)
}

fn written_to_files(pid: u32) -> u64 {
    let storage = threads(pid).filter(|dir| {
        let name = std::fs::read_to_string(dir.join("comm"));
        name.is_ok_and(|name| STORAGE_THREADS.contains(&name.trim_end()))
    });
    let written = storage.filter_map(|dir| std::fs::read_to_string(dir.join("io")).ok());
    written.map(|io| field(&io, "wchar")).sum()
}

/// A number of `/proc/<pid>/io`; 0 if it is not there.
fn field(io: &str, name: &str) -> u64 {
    let mut fields = io.lines().filter_map(|line| line.split_once(": "));
    let value = fields.find(|(key, _)| *key == name);
    value
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_command_name() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 9 0 0 0 150 25 7 8 20 0 1 0 5 6 7";
        assert_eq!(cpu_time(stat), Some(Duration::from_millis(1750)));
        assert_eq!(cpu_time("nonsense"), None);
    }

    #[test]
    fn resident_memory_is_found_by_name() {
        let status = "Name:\tmailboxd\nVmHWM:\t  900 kB\nVmRSS:\t  123 kB\nThreads:\t4\n";
        assert_eq!(rss(status), Some(123 << 10));
        assert_eq!(rss("Name:\tmailboxd\n"), None);
        assert!(rss_bytes(std::process::id()) > 0);
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let io = "rchar: 1\nwchar: 2\nread_bytes: 4096\ncancelled_write_bytes: 5";
        assert_eq!(field(io, "wchar"), 2);
        assert_eq!(field(io, "read_bytes"), 4096);
        assert_eq!(field(io, "write_bytes"), 0);
    }

    #[test]
    fn waits_are_those_that_a_thread_chose() {
        let status = "Threads:\t4\nvoluntary_ctxt_switches:\t17\nnonvoluntary_ctxt_switches:\t4\n";
        assert_eq!(waits_of(status), 17);
        assert_eq!(
            waits_of("nonvoluntary_ctxt_switches:\t4\n"),
            0,
            "another name"
        );
        let own = std::process::id();
        let (begun, ended) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
        let thread = std::thread::spawn(move || {
            begun.0.send(()).unwrap();
            let _ = ended.1.recv();
        });
        begun.1.recv().unwrap();
        assert!(
            threads(own).count() >= 2,
            "all threads are looked at, not only the first"
        );
        drop(ended.0);
        thread.join().unwrap();
    }

    #[test]
    fn only_what_storage_threads_write_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let write = |thread: &str, bytes: usize| {
            let file = dir.path().join(thread);
            let name = thread.to_owned();
            let (wrote, seen) = std::sync::mpsc::channel();
            let (end, ended) = std::sync::mpsc::channel::<()>();
            let thread = std::thread::Builder::new().name(name).spawn(move || {
                std::fs::write(file, vec![0; bytes]).unwrap();
                wrote.send(()).unwrap();
                let _ = ended.recv();
            });
            seen.recv().unwrap();
            (end, thread.unwrap())
        };
        let before = written_to_files(std::process::id());
        let threads = [write("log-writer", 1000), write("other", 500)];
        assert_eq!(written_to_files(std::process::id()), before + 1000);
        for (end, thread) in threads {
            drop(end);
            thread.join().unwrap();
        }
    }
}
