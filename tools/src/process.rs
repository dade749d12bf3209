//! What this process has used, from `/proc`.

use std::fs;
use std::io;

/// Ticks per second of the times in `/proc/self/stat`: `USER_HZ`, 100 on every Linux that this
/// build supports, whatever the kernel's own tick.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time of this process so far, user and system, all threads, in microseconds.
pub(crate) fn own_cpu_us() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/stat")?;
    cpu_us_of(&text).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "/proc/self/stat has an unknown form",
        )
    })
}

fn cpu_us_of(stat: &str) -> Option<u64> {
    // The second field is the program's name in brackets, which may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * (1_000_000 / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_user_and_system() {
        let stat = "42 (mail) box) S 1 42 42 0 -1 4194560 900 0 0 0 150 50 7 8 20 0 9 0 1 2 3";
        assert_eq!(cpu_us_of(stat), Some(2_000_000));
        assert_eq!(cpu_us_of("42 (mailboxd) S 1"), None);
        assert!(own_cpu_us().is_ok());
    }
}
