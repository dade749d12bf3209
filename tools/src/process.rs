//! What a process has used, from `/proc`.

use std::fs;
use std::io;

/// Ticks per second of the times in `/proc/PID/stat`: `USER_HZ`, 100 on every Linux that this
/// build supports, whatever the kernel's own tick.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time of a process so far, user and system, all threads, in microseconds.
pub(crate) fn cpu_us(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    cpu_us_of(&text).ok_or_else(|| unreadable(pid, "stat"))
}

/// Bytes that a process caused to be written to disk so far.
pub(crate) fn written_bytes(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io"))?;
    written_bytes_of(&text).ok_or_else(|| unreadable(pid, "io"))
}

fn unreadable(pid: u32, file: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("/proc/{pid}/{file} has an unknown form"),
    )
}

fn cpu_us_of(stat: &str) -> Option<u64> {
    // The second field is the program's name in brackets, which may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * (1_000_000 / TICKS_PER_SECOND))
}

fn written_bytes_of(io: &str) -> Option<u64> {
    io.lines()
        .find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_user_and_system() {
        let stat = "42 (mail) box) S 1 42 42 0 -1 4194560 900 0 0 0 150 50 7 8 20 0 9 0 1 2 3";
        assert_eq!(cpu_us_of(stat), Some(2_000_000));
        assert_eq!(cpu_us_of("42 (mailboxd) S 1"), None);
    }

    #[test]
    fn written_bytes_are_those_that_reach_the_disk() {
        let io = "rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4096\ncancelled_write_bytes: 0\n";
        assert_eq!(written_bytes_of(io), Some(4096));
        assert_eq!(written_bytes_of("wchar: 2\n"), None);
    }

    #[test]
    fn our_own_figures_can_be_read() {
        assert!(cpu_us(std::process::id()).is_ok());
        assert!(written_bytes(std::process::id()).is_ok());
    }
}
