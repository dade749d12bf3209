//! How often a shard writes small entries when a node is busy.
//!
//! What an entry costs hardly depends on what is in it: tasks woken, messages, a row of the log and a share of a sync on
//! each replica. While there is time for that, an entry goes as soon as the one before it is applied. On a node whose
//! processors or disk are short of it, the same rule makes all shards write as many entries as they find time for, each
//! with less in it, and leaves nothing for what comes next. So once entries take much longer than they need to, a
//! shard's next one waits for more company.
//!
//! The sign is the time from proposing an entry to its having been applied, against the least that has been seen of
//! late, as TCP Vegas tells a queue from a distance (Brakmo and Peterson, 1995). It holds for whatever is short, here
//! or on the followers. The interval between two entries is then a multiple of that time, and falls as soon as that has
//! helped.
//!
//! Measured on two cores with three nodes and 16 shards: a fixed interval of 20 ms took the CPU of a cross-shard send from
//! 297 to 264 µs at 5,500 a second and from 796 to 595 at 2,000, at the same p50; but one shard's sends, 16 in flight,
//! from 2 ms to 21. This form costs such a shard 6 to 13 % of its sends a second (two paired runs), and what it saves of
//! the rest cannot be told from noise: it has yet to earn its place.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The longest interval. On a node so slow that an entry takes longer, nothing waits: each has company enough.
const INTERVAL_MAX: Duration = Duration::from_millis(20);
/// The least that entries need is taken from this span and the one before it.
const SPAN: Duration = Duration::from_secs(5);
/// What entries may need on any node, in microseconds: there is nothing to be gained below it.
const LEAST_US: u64 = 1500;
/// An entry that takes up to so many times the least is not late.
const NORMAL: f64 = 2.0;
/// The interval is what entries take, times this, times what they take beyond [`NORMAL`] in units of the least.
const STRETCH: f64 = 3.0;
/// A sample moves what is taken for usual by this part of the difference.
const SMOOTHING: f64 = 1.0 / 16.0;

/// One for all shards that a node leads: they compete for the same processors and the same disk.
#[derive(Default)]
pub(crate) struct EntryPace {
    usual: Mutex<Usual>,
    interval_us: AtomicU64,
}

/// What entries take now.
#[derive(Default)]
struct Usual {
    us: f64,
    /// In units of the least that their shards need.
    of_least: f64,
    any: bool,
}

/// The least that the entries of one shard have taken of late: its quorum may be farther away than another's.
#[derive(Default)]
pub(crate) struct LeastTime {
    now_us: Option<u64>,
    before_us: Option<u64>,
    since: Option<Instant>,
}

impl EntryPace {
    /// An entry of a shard was applied after so long.
    pub(crate) fn landed(&self, took: Duration, least: &mut LeastTime, now: Instant) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let least_us = least.add(took_us, now).max(LEAST_US);
        let interval_us = self.usual.lock().add(took_us as f64, least_us as f64);
        self.interval_us.store(interval_us, Ordering::Relaxed);
    }

    /// How long after a shard's last entry was proposed the next small one may be.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_micros(self.interval_us.load(Ordering::Relaxed))
    }
}

impl LeastTime {
    /// Takes a sample in; returns the least.
    fn add(&mut self, took_us: u64, now: Instant) -> u64 {
        if self.since.is_none_or(|since| now >= since + SPAN) {
            self.since = Some(now);
            self.before_us = self.now_us.take();
        }
        let least_us = self.now_us.map_or(took_us, |least| least.min(took_us));
        self.now_us = Some(least_us);
        self.before_us
            .map_or(least_us, |before| before.min(least_us))
    }
}

impl Usual {
    /// Takes a sample in; returns the interval in microseconds.
    fn add(&mut self, took_us: f64, least_us: f64) -> u64 {
        let weight = if self.any { SMOOTHING } else { 1.0 };
        self.any = true;
        self.us += (took_us - self.us) * weight;
        self.of_least += (took_us / least_us - self.of_least) * weight;
        let late = (self.of_least - NORMAL).max(0.0);
        // What is too large for the integer becomes its greatest value.
        let interval_us = (self.us * STRETCH * late) as u64;
        interval_us.min(INTERVAL_MAX.as_micros() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shard's entries take so long, one after the other.
    fn feed(
        (pace, least): (&EntryPace, &mut LeastTime),
        now: Instant,
        ms: impl IntoIterator<Item = u64>,
    ) {
        for ms in ms {
            pace.landed(Duration::from_millis(ms), least, now);
        }
    }

    #[test]
    fn nothing_waits_while_entries_take_what_they_need() {
        let now = Instant::now();
        let (pace, mut least) = (EntryPace::default(), LeastTime::default());
        assert_eq!(pace.interval(), Duration::ZERO);
        // A quick node, and one whose disk takes its time.
        feed((&pace, &mut least), now, (0..100).map(|turn| 1 + turn % 3));
        assert_eq!(pace.interval(), Duration::ZERO);
        let (pace, mut least) = (EntryPace::default(), LeastTime::default());
        feed(
            (&pace, &mut least),
            now,
            (0..100).map(|turn| 20 + turn % 20),
        );
        assert_eq!(pace.interval(), Duration::ZERO);
    }

    #[test]
    fn a_shard_whose_quorum_is_far_away_slows_no_other() {
        let (pace, now) = (EntryPace::default(), Instant::now());
        let (mut near, mut far) = (LeastTime::default(), LeastTime::default());
        for _ in 0..100 {
            feed((&pace, &mut near), now, [1]);
            feed((&pace, &mut far), now, [30]);
        }
        assert_eq!(pace.interval(), Duration::ZERO);
    }

    #[test]
    fn the_interval_grows_with_the_queue_up_to_its_bound_and_goes_with_it() {
        let (pace, now) = (EntryPace::default(), Instant::now());
        let mut least = LeastTime::default();
        feed((&pace, &mut least), now, [1]);
        feed((&pace, &mut least), now, [4; 100]);
        let short = pace.interval();
        assert!(short > Duration::ZERO);
        feed((&pace, &mut least), now, [5; 100]);
        assert!(pace.interval() > short);
        feed((&pace, &mut least), now, [1000; 100]);
        assert_eq!(pace.interval(), INTERVAL_MAX);
        feed((&pace, &mut least), now, [1; 200]);
        assert_eq!(pace.interval(), Duration::ZERO);
    }

    #[test]
    fn what_was_least_once_is_forgotten() {
        let (pace, mut now) = (EntryPace::default(), Instant::now());
        let mut least = LeastTime::default();
        feed((&pace, &mut least), now, [1]);
        feed((&pace, &mut least), now, [10; 100]);
        assert_eq!(pace.interval(), INTERVAL_MAX);
        // A follower in another zone has joined, say: this is what entries need now.
        for _ in 0..2 {
            now += SPAN;
            feed((&pace, &mut least), now, [10; 100]);
        }
        assert_eq!(pace.interval(), Duration::ZERO);
    }

    #[test]
    fn the_longest_time_there_is_overflows_nothing() {
        let (pace, now) = (EntryPace::default(), Instant::now());
        let mut least = LeastTime::default();
        for took in [Duration::from_micros(1), Duration::MAX, Duration::MAX] {
            pace.landed(took, &mut least, now);
        }
        assert_eq!(pace.interval(), INTERVAL_MAX);
    }
}
