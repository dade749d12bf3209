//! Copied rows of the timelines read last, under a byte budget: recent reads don't touch files.

use std::collections::VecDeque;

use lru::LruCache;

use crate::id::{RangeId, Seq, TimelineId};
use crate::memtable::Memtable;
use crate::row::Row;

/// What a cached row takes besides its body.
const ROW_BYTES: usize = size_of::<Row>() + 32;
/// The part of the budget that one timeline may take: a fraction of one over this.
const TIMELINE_SHARE: usize = 8;

/// A dense run of one timeline's rows.
struct Run {
    rows: VecDeque<Row>,
    bytes: usize,
}

/// The cache of one shard, keyed by range and timeline.
pub(crate) struct TailCache {
    runs: LruCache<(RangeId, TimelineId), Run>,
    bytes: usize,
    bytes_max: usize,
}

fn bytes_of(row: &Row) -> usize {
    ROW_BYTES + row.body.len()
}

impl TailCache {
    pub(crate) fn new(bytes_max: usize) -> TailCache {
        TailCache {
            runs: LruCache::unbounded(),
            bytes: 0,
            bytes_max,
        }
    }

    /// Bytes of all rows.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives the rows from `from` on, densely, as long as `take` wants them.
    pub(crate) fn read(
        &mut self,
        range: RangeId,
        timeline: TimelineId,
        from: Seq,
        mut take: impl FnMut(&Row) -> bool,
    ) {
        let Some(run) = self.runs.get(&(range, timeline)) else {
            return;
        };
        let Some(first) = run.rows.front().map(|row| row.seq) else {
            return;
        };
        let Some(skip) = from.0.checked_sub(first.0) else {
            return;
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        for row in run.rows.iter().skip(skip) {
            if !take(row) {
                return;
            }
        }
    }

    /// Keeps rows that were read from files: dense, the newest of their timeline there.
    pub(crate) fn fill(&mut self, range: RangeId, timeline: TimelineId, rows: &[Row]) {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            return;
        };
        let (first, last) = (first.seq, last.seq);
        let mut run = self.take(range, timeline);
        let ends = run
            .rows
            .front()
            .zip(run.rows.back())
            .map(|(a, b)| (a.seq, b.seq));
        match ends {
            Some((old_first, old_last)) if old_first <= last.next() && first <= old_last.next() => {
                rows.iter()
                    .filter(|row| row.seq > old_last)
                    .for_each(|row| run.push_back(row));
                let before = rows.iter().rev().filter(|row| row.seq < old_first);
                before.for_each(|row| run.push_front(row));
            }
            // The run is newer than what was read.
            Some((old_first, _)) if last < old_first => {}
            Some(_) | None => {
                run = Run {
                    rows: VecDeque::new(),
                    bytes: 0,
                };
                rows.iter().for_each(|row| run.push_back(row));
            }
        }
        self.put_back(range, timeline, run);
    }

    /// Carries the cached timelines on with the rows of a memtable that is now in files.
    pub(crate) fn flushed(
        &mut self,
        memtable: &Memtable,
        range_of: impl Fn(TimelineId) -> Option<RangeId>,
    ) {
        let cached: Vec<_> = self.runs.iter().map(|(key, _)| *key).collect();
        for (range, timeline) in cached {
            let Some(place) = memtable.timeline(timeline) else {
                continue;
            };
            let tail = memtable.tail(place);
            let mut run = self.take(range, timeline);
            let next = run.rows.back().map(|row| row.seq.next());
            if range_of(timeline) == Some(range) && next == Some(tail.first()) {
                let mut seq = tail.first();
                while let Some(stored) = memtable.row(tail, seq) {
                    // A row that does not read is left to the files, which say what is wrong.
                    let Ok(row) = stored.to_row(timeline, seq) else {
                        break;
                    };
                    run.push_back(&row);
                    seq = seq.next();
                }
            }
            self.put_back(range, timeline, run);
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        self.bytes = 0;
    }

    fn take(&mut self, range: RangeId, timeline: TimelineId) -> Run {
        let run = self.runs.pop(&(range, timeline));
        let run = run.unwrap_or(Run {
            rows: VecDeque::new(),
            bytes: 0,
        });
        self.bytes -= run.bytes;
        run
    }

    fn put_back(&mut self, range: RangeId, timeline: TimelineId, mut run: Run) {
        while run.bytes > self.bytes_max / TIMELINE_SHARE {
            run.pop_front();
        }
        if run.rows.is_empty() {
            return;
        }
        self.bytes += run.bytes;
        self.runs.put((range, timeline), run);
        while self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.runs.pop_lru() else {
                return;
            };
            self.bytes -= oldest.bytes;
        }
    }
}

impl Run {
    fn push_back(&mut self, row: &Row) {
        self.bytes += bytes_of(row);
        self.rows.push_back(row.detach());
    }

    fn push_front(&mut self, row: &Row) {
        self.bytes += bytes_of(row);
        self.rows.push_front(row.detach());
    }

    fn pop_front(&mut self) {
        if let Some(row) = self.rows.pop_front() {
            self.bytes -= bytes_of(&row);
        }
    }
}
