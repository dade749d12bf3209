//! How much of a shard's log is kept behind its flushes.
//!
//! What is in files is kept in the log too, for followers that lag: up to a number of entries (`log_entries_kept`).
//! But of a shard with few rows so many entries may weigh as much as all its rows, and a replica that is new would be
//! given them one by one, at many times the cost of the files of a snapshot. So no more is kept than a part of what the
//! rows weigh, nor less than what a node misses while it restarts. A leader keeps what a replica lacks all the same; one
//! that does not lead knows nothing of that, might lead next, and keeps several times as much.

use std::collections::VecDeque;

/// So much is kept of any shard: what it gets in some ten seconds when it is busy.
const BYTES_MIN: u64 = 4 << 20;
/// And such a part of what its rows weigh.
const STORED_PART: u64 = 8;
/// So many times as much where the replica does not lead.
const FOLLOWER_TIMES: u64 = 4;
/// Fewer entries are not worth a purge of those that are too many.
const PURGE_BATCH: u64 = 256;
/// Flushes remembered. Of more, those are forgotten that lie closest to others.
const FLUSHES_MAX: usize = 64;

/// Bytes of entries that are kept behind a flush, at least. `stored_bytes` is what the rows weigh in files.
pub(crate) fn kept_min(stored_bytes: u64, leads: bool) -> u64 {
    let bytes = BYTES_MIN.max(stored_bytes / STORED_PART);
    if leads {
        bytes
    } else {
        bytes.saturating_mul(FOLLOWER_TIMES)
    }
}

/// Up to where the log may go behind a flush up to `flushed` so that `kept` entries stay, once that is worth it. `purged`
/// is the last index that is gone already.
pub(crate) fn too_many(flushed: u64, kept: u64, purged: Option<u64>) -> Option<u64> {
    let end = (flushed + 1).saturating_sub(kept);
    let begin = purged.map_or(0, |purged| purged + 1);
    (begin + PURGE_BATCH <= end).then(|| end - 1)
}

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
    /// Takes in a flush up to `index`; gives the index up to which the log may go if `kept_min` bytes are to stay.
    pub(crate) fn flushed(
        &mut self,
        index: u64,
        appended_bytes: u64,
        kept_min: u64,
    ) -> Option<u64> {
        let is_enough =
            |flush: &Flush| appended_bytes.saturating_sub(flush.appended_bytes) >= kept_min;
        let spare = self.flushes.iter().rposition(is_enough);
        // The newest of them may be asked for again, if it could not go at once.
        self.flushes.drain(..spare.unwrap_or(0));
        if self.flushes.len() == FLUSHES_MAX {
            self.forget_closest();
        }
        self.flushes.push_back(Flush {
            index,
            appended_bytes,
        });
        spare.map(|_| self.flushes[0].index)
    }

    /// Forgets the flush between whose neighbours least was appended.
    fn forget_closest(&mut self) {
        let appended_bytes = |at: usize| self.flushes[at].appended_bytes;
        let gap = |at: &usize| appended_bytes(at + 1).saturating_sub(appended_bytes(at - 1));
        let closest = (1..self.flushes.len() - 1).min_by_key(gap);
        if let Some(closest) = closest {
            self.flushes.remove(closest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn entries_go_once_enough_of_them_are_too_many() {
        assert_eq!(too_many(4096 + 255, 4096, None), Some(255));
        assert_eq!(too_many(4096 + 254, 4096, None), None);
        assert_eq!(too_many(10, 4096, None), None);
        assert_eq!(too_many(5000, 1, Some(4743)), Some(4999));
        assert_eq!(too_many(5000, 1, Some(4744)), None);
        assert_eq!(
            too_many(5000, 64, Some(5000)),
            None,
            "a snapshot was installed"
        );
    }

    #[test]
    fn the_log_goes_up_to_the_last_flush_that_leaves_enough() {
        let mut kept = KeptLog::default();
        let least = kept_min(0, true);
        assert_eq!(least, 4 * MIB);
        assert_eq!(kept.flushed(10, MIB, least), None, "it stays whole");
        assert_eq!(kept.flushed(20, 3 * MIB, least), None);
        assert_eq!(kept.flushed(30, 5 * MIB, least), Some(10), "four are left");
        assert_eq!(kept.flushed(40, 6 * MIB, least), Some(10), "said again");
        assert_eq!(kept.flushed(50, 9 * MIB, least), Some(30));
    }

    #[test]
    fn of_many_rows_more_is_kept_and_by_followers() {
        assert_eq!(kept_min(80 * MIB, true), 10 * MIB);
        assert_eq!(kept_min(80 * MIB, false), 40 * MIB);
        assert_eq!(kept_min(0, false), 16 * MIB);
        let mut kept = KeptLog::default();
        assert_eq!(kept.flushed(10, 0, 10 * MIB), None);
        assert_eq!(kept.flushed(20, 9 * MIB, 10 * MIB), None);
        assert_eq!(kept.flushed(30, 10 * MIB, 10 * MIB), Some(10));
        // The rows have become fewer.
        assert_eq!(kept.flushed(40, 14 * MIB, 5 * MIB), Some(20));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_follows_small_flushes() {
        let (mut kept, mut upto) = (KeptLog::default(), 0);
        for index in 0..10_000 {
            let spare = kept.flushed(index, index << 10, 4 * MIB);
            assert!(kept.flushes.len() <= FLUSHES_MAX);
            upto = spare.unwrap_or(upto);
            let left = (index - upto) << 10;
            assert!(left <= 5 * MIB, "{left} at {index}");
            assert!(spare.is_none() || left >= 4 * MIB, "{left} at {index}");
        }
    }
}
