//! Flushes take their time where nobody waits for them.
//!
//! All shards of a node grow old together, and those of its peers at the same moment. A file that is built as fast as
//! a core can would hold that core for a second or more; on every replica at once that is what clients see as a stall.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A build works for so long, about,
const WORK: Duration = Duration::from_millis(2);
/// and then rests for so long, if nobody waits: it takes a quarter of a core, and is done soon enough for what a node
/// writes in the age at which it flushes. More than that fills memtables, which makes it hurry.
const REST: Duration = Duration::from_millis(6);

/// Who waits for the base store's thread.
#[derive(Debug, Default)]
pub(crate) struct FlushPace {
    waiting: AtomicUsize,
}

/// Somebody waits until this is dropped.
pub(crate) struct Waits<'a>(&'a FlushPace);

impl FlushPace {
    /// From now on flushes hurry.
    pub(crate) fn wait(&self) -> Waits<'_> {
        self.begin_wait();
        Waits(self)
    }

    /// As [`FlushPace::wait`], until [`FlushPace::end_wait`].
    pub(crate) fn begin_wait(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends what one [`FlushPace::begin_wait`] began.
    pub(crate) fn end_wait(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.end_wait();
    }
}

/// The steps of one build.
pub(crate) struct Steps<H> {
    hurries: H,
    begun: Instant,
}

impl<H: Fn() -> bool> Steps<H> {
    /// `hurries` says whether the build must not rest.
    pub(crate) fn new(hurries: H) -> Self {
        Self {
            hurries,
            begun: Instant::now(),
        }
    }

    /// Between two steps: rests if it has worked for long enough. Blocks.
    pub(crate) fn rest(&mut self) {
        if self.begun.elapsed() < WORK {
            return;
        }
        if !(self.hurries)() {
            std::thread::sleep(REST);
        }
        self.begun = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_counted() {
        let pace = FlushPace::default();
        assert!(!pace.is_waited_for());
        let (first, second) = (pace.wait(), pace.wait());
        drop(first);
        assert!(pace.is_waited_for(), "one is left");
        drop(second);
        assert!(!pace.is_waited_for());
    }

    #[test]
    fn it_rests_where_nobody_waits_and_works_on_afterwards() {
        let pace = FlushPace::default();
        let rested = std::cell::Cell::new(0);
        let mut steps = Steps::new(|| {
            rested.set(rested.get() + u32::from(!pace.is_waited_for()));
            pace.is_waited_for()
        });
        let worked = || Instant::now() - WORK;
        steps.begun = worked();
        steps.rest();
        assert_eq!(rested.get(), 1);
        let waits = pace.wait();
        steps.begun = worked();
        steps.rest();
        assert_eq!(rested.get(), 1, "somebody waits now");
        drop(waits);
        steps.begun = worked();
        steps.rest();
        assert_eq!(rested.get(), 2);
    }

    #[test]
    fn a_build_asks_only_after_it_has_worked() {
        let asked = std::cell::Cell::new(0);
        let mut steps = Steps::new(|| {
            asked.set(asked.get() + 1);
            true
        });
        steps.begun = Instant::now() + Duration::from_secs(3600);
        steps.rest();
        assert_eq!(asked.get(), 0, "it has hardly begun");
        steps.begun = Instant::now() - WORK;
        steps.rest();
        assert_eq!(asked.get(), 1);
        assert!(steps.begun.elapsed() < Duration::from_secs(1), "anew");
    }
}
