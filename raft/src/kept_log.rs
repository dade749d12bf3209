//! How much of a shard's log is kept behind its flushes.
//!
//! What is in files is kept in the log too, for followers that lag: up to a number of entries (`log_entries_kept`).
//! But of a shard with few rows so many entries may weigh as much as all its rows, and a replica that is new would be
//! given them one by one, at many times the cost of the files of a snapshot. So no more is kept than a part of what the
//! rows weigh, nor less than what a node misses while it restarts, or than what a replica lacks that its leader knows.

use std::collections::VecDeque;

/// So much is kept of any shard: what it gets in some ten seconds when it is busy.
const BYTES_MIN: u64 = 4 << 20;
/// And such a part of what its rows weigh.
const STORED_PART: u64 = 8;
/// Flushes remembered. With more, the log is kept from the oldest on that is known.
const FLUSHES_MAX: usize = 64;

/// What one replica knows of its last flushes.
#[derive(Debug, Default)]
pub(crate) struct KeptLog {
    flushes: VecDeque<Flush>,
}

#[derive(Debug, Clone, Copy)]
struct Flush {
    index: u64,
    /// Bytes of entries appended before it was known of, since the replica started.
    appended_bytes: u64,
}

impl KeptLog {
    /// Takes in a flush up to `index`; gives the index up to which the log may go. `stored_bytes` is what the rows
    /// weigh in files.
    pub(crate) fn flushed(
        &mut self,
        index: u64,
        appended_bytes: u64,
        stored_bytes: u64,
    ) -> Option<u64> {
        let kept_min = BYTES_MIN.max(stored_bytes / STORED_PART);
        let is_enough =
            |flush: &Flush| appended_bytes.saturating_sub(flush.appended_bytes) >= kept_min;
        let spare = self.flushes.iter().rposition(is_enough);
        // The newest of them may be asked for again, if it could not go at once.
        self.flushes.drain(..spare.unwrap_or(0));
        if self.flushes.len() == FLUSHES_MAX {
            self.flushes.remove(1);
        }
        self.flushes.push_back(Flush {
            index,
            appended_bytes,
        });
        spare.map(|_| self.flushes[0].index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_log_goes_up_to_the_last_flush_that_leaves_enough() {
        let mut kept = KeptLog::default();
        assert_eq!(kept.flushed(10, MIB, 0), None, "a small log stays whole");
        assert_eq!(kept.flushed(20, 3 * MIB, 0), None);
        assert_eq!(kept.flushed(30, 5 * MIB, 0), Some(10), "four are left");
        assert_eq!(kept.flushed(40, 6 * MIB, 0), Some(10), "said again");
        assert_eq!(kept.flushed(50, 9 * MIB, 0), Some(30));
    }

    #[test]
    fn of_many_rows_more_is_kept() {
        let mut kept = KeptLog::default();
        let stored = 80 * MIB;
        assert_eq!(kept.flushed(10, 0, stored), None);
        assert_eq!(kept.flushed(20, 9 * MIB, stored), None);
        assert_eq!(kept.flushed(30, 10 * MIB, stored), Some(10));
        // The rows have become fewer.
        assert_eq!(kept.flushed(40, 14 * MIB, stored / 2), Some(20));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_is_not_forgotten() {
        let mut kept = KeptLog::default();
        for index in 1..1000 {
            assert_eq!(kept.flushed(index, index, 0), None);
            assert!(kept.flushes.len() <= FLUSHES_MAX);
        }
        assert_eq!(kept.flushed(1000, 1 + 4 * MIB, 0), Some(1));
    }
}
