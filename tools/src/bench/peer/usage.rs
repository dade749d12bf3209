//! CPU time of a peer's processes and of all that they start, from `/proc`.
//!
//! PostgreSQL has a process for each connection. What has ended counts with whoever waited for it, so the sum over a
//! tree never goes back.

use std::collections::HashSet;

/// Ticks per second of the times in `/proc/<pid>/stat`, on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// A line of `/proc/<pid>/stat`, as far as it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    pid: u32,
    parent: u32,
    /// User and system time, own and of children that were waited for.
    ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        let pid = text.split(' ').next()?.parse().ok()?;
        // The second field is the program's name in brackets, which may hold anything.
        let (_, fields) = text.rsplit_once(") ")?;
        let mut fields = fields.split(' ').skip(1);
        let parent = fields.next()?.parse().ok()?;
        let times = fields.skip(9).take(4);
        let times: Vec<u64> = times.map_while(|time| time.parse().ok()).collect();
        (times.len() == 4).then(|| Self {
            pid,
            parent,
            ticks: times.iter().sum(),
        })
    }
}

/// CPU time so far of these processes and of all below them, user and system, in microseconds; what does not run any
/// more counts nothing.
pub(super) fn cpu_us(roots: &[u32]) -> u64 {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return 0;
    };
    let stats = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        path.file_name()?.to_str()?.parse::<u32>().ok()?;
        Stat::parse(&std::fs::read_to_string(path.join("stat")).ok()?)
    });
    let stats: Vec<Stat> = stats.collect();
    ticks_of_trees(&stats, roots) * (1_000_000 / TICKS_PER_SECOND)
}

fn ticks_of_trees(stats: &[Stat], roots: &[u32]) -> u64 {
    let mut found: HashSet<u32> = roots.iter().copied().collect();
    loop {
        let before = found.len();
        let below = stats.iter().filter(|stat| found.contains(&stat.parent));
        let below: Vec<u32> = below.map(|stat| stat.pid).collect();
        found.extend(below);
        if found.len() == before {
            break;
        }
    }
    let found = stats.iter().filter(|stat| found.contains(&stat.pid));
    found.map(|stat| stat.ticks).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_program_is_called() {
        let text = "42 (a) S 9 (b) S 7 42 42 0 -1 4194560 900 0 0 0 150 50 20 3 20 0 9 0 1 2 3";
        let wanted = Stat {
            pid: 42,
            parent: 7,
            ticks: 223,
        };
        assert_eq!(Stat::parse(text), Some(wanted));
        assert_eq!(
            Stat::parse("42 (a) S 7 42 42 0 -1 4194560 900 0 0 0 150 50"),
            None
        );
        assert_eq!(Stat::parse("nonsense"), None);
    }

    #[test]
    fn a_tree_counts_with_all_that_is_below_it_and_nothing_else() {
        let stat = |pid, parent, ticks| Stat { pid, parent, ticks };
        // A child may stand before its parent: process ids come round.
        let stats = [
            stat(3, 20, 1),
            stat(20, 10, 10),
            stat(10, 1, 100),
            stat(11, 1, 1000),
            stat(30, 11, 10_000),
        ];
        assert_eq!(ticks_of_trees(&stats, &[10]), 111);
        assert_eq!(ticks_of_trees(&stats, &[10, 11]), 11_111);
        assert_eq!(ticks_of_trees(&stats, &[99]), 0);
    }

    #[test]
    fn a_process_that_runs_is_found() {
        let burnt = || cpu_us(&[std::process::id()]);
        let before = burnt();
        while burnt() < before + 20_000 {
            std::hint::black_box((0..100_000_u64).sum::<u64>());
        }
    }
}
