//! When the shards of a node write small entries: at the same moments, if there are several that write.
//!
//! What an entry costs hardly depends on what is in it: tasks woken, messages, a row of the log and a share of a sync on
//! each replica. Entries of several shards that go at the same moment share most of that: one write to each socket, one
//! sync, and nodes that find all of it at once. Left alone they spread evenly over time and share nothing, and each
//! shard writes as many entries as the node finds time for, with little in each.
//!
//! So a node has ticks, at which its shards write what was not worth an entry before. They are the farther apart the
//! more commands of other shards are under way, and for a shard no farther than a few times what an entry of it takes:
//! that, with what is at most [`TICK_MS_MAX`], is what a command may wait here in exchange. A shard that is alone on its
//! node meets no ticks, nor does one caller.
//!
//! Measured on two cores, three nodes with 16 shards, cross-shard sends. Fixed ticks at 9,600 a second (half of what they
//! bear): 8 and 16 ms took the CPU of a send from 186 to 161 and 118 µs, at a p50 of 9.7, 9.2 and 11.6 ms and a p99 of
//! about 22 in all three; in a closed loop of 256 4 ms took 18,400 to 21,600 sends a second to 25,300. (An interval of 20
//! ms that every shard counted for itself had saved a tenth.)
//! Of the rule below, two interleaved runs each, with 4 commands a millisecond and 4 flights, and with 1 and 8: at 9,600 a
//! second 180 and 181 µs became 151 and 126 (p50 9.5 and 8.0 to 10.9 and 12.1 ms, p99 about 25), at 4,000 a second 446 and
//! 449 became 364 and 346, in the closed loop 21,100 and 22,400 sends a second became 23,300 and 23,200. With 32 flights
//! it was no better, and the p50 2 ms worse.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// The longest time between two ticks.
const TICK_MS_MAX: u64 = 16;
/// The shortest: below it there is little to share. A power of two, as all are: then ticks of one length are ticks of
/// every shorter one, and shards that differ still meet.
const TICK_MS_MIN: u64 = 2;
/// Commands of others for each millisecond between two ticks.
const COMMANDS_PER_MS: u64 = 1;
/// Ticks are no farther apart than so many times what an entry takes.
const FLIGHTS: u64 = 8;
/// What an entry took moves what they take by this part of the difference.
const SMOOTHING: u64 = 16;

/// The ticks of a node.
#[derive(Debug)]
pub(crate) struct EntryTick {
    epoch: Instant,
    /// Commands that wait or are in flight, of all shards led here.
    commands: AtomicU64,
}

impl EntryTick {
    pub(crate) fn new() -> Arc<EntryTick> {
        Arc::new(EntryTick {
            epoch: Instant::now(),
            commands: AtomicU64::new(0),
        })
    }

    /// Commands that wait or are in flight, of all shards led here.
    #[cfg(test)]
    pub(crate) fn commands(&self) -> u64 {
        self.commands.load(Relaxed)
    }
}

/// The time between two ticks; none if there is nothing to wait for.
fn tick_us(others: u64, flight_us: u64) -> Option<u64> {
    let ms = (flight_us.saturating_mul(FLIGHTS) / 1000)
        .min(others / COMMANDS_PER_MS)
        .min(TICK_MS_MAX);
    (ms >= TICK_MS_MIN).then(|| 1000 << ms.ilog2())
}

/// One shard among those of its node. Its commands count for the node too, while this lives.
#[derive(Debug)]
pub(crate) struct Company {
    node: Arc<EntryTick>,
    /// Commands of this shard that wait or are in flight.
    own: AtomicU64,
    /// From the proposal of an entry of this shard until it is applied, in microseconds, smoothed.
    flight_us: AtomicU64,
}

impl Company {
    pub(crate) fn new(node: Arc<EntryTick>) -> Company {
        Company {
            node,
            own: AtomicU64::new(0),
            flight_us: AtomicU64::new(0),
        }
    }

    /// So many commands wait from now on.
    pub(crate) fn came(&self, commands: usize) {
        self.own.fetch_add(commands as u64, Relaxed);
        self.node.commands.fetch_add(commands as u64, Relaxed);
    }

    /// So many have been answered.
    pub(crate) fn left(&self, commands: usize) {
        self.own.fetch_sub(commands as u64, Relaxed);
        self.node.commands.fetch_sub(commands as u64, Relaxed);
    }

    /// An entry took so long.
    pub(crate) fn landed(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        // Two at once may count as one: it is an estimate.
        let before_us = self.flight_us.load(Relaxed);
        let now_us = before_us - before_us / SMOOTHING + took_us / SMOOTHING;
        self.flight_us.store(now_us, Relaxed);
    }

    /// When a small entry may go that could have gone at `from`.
    pub(crate) fn next(&self, from: Instant) -> Instant {
        let all = self.node.commands.load(Relaxed);
        let others = all.saturating_sub(self.own.load(Relaxed));
        let Some(tick_us) = tick_us(others, self.flight_us.load(Relaxed)) else {
            return from;
        };
        let since_us = from.saturating_duration_since(self.node.epoch).as_micros();
        let since_us = u64::try_from(since_us).unwrap_or(0);
        let wait_us = since_us.next_multiple_of(tick_us) - since_us;
        from + Duration::from_micros(wait_us)
    }
}

impl Drop for Company {
    fn drop(&mut self) {
        let left = *self.own.get_mut();
        self.node.commands.fetch_sub(left, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_grow_with_company_and_with_what_entries_take() {
        assert_eq!(tick_us(0, 10_000), None, "alone");
        assert_eq!(tick_us(1, 10_000), None, "one other caller");
        assert_eq!(tick_us(2, 10_000), Some(2000));
        assert_eq!(tick_us(9, 10_000), Some(8000));
        assert_eq!(tick_us(500, 10_000), Some(16_000), "the longest");
        assert_eq!(tick_us(500, 600), Some(4000), "entries are quick");
        assert_eq!(tick_us(500, 200), None, "they are not worth a wait");
        assert_eq!(tick_us(500, u64::MAX), Some(16_000));
    }

    /// Some shard of a node, whose entries take so long.
    fn shard(node: &Arc<EntryTick>, flight_ms: u64) -> Company {
        let company = Company::new(node.clone());
        company.flight_us.store(flight_ms * 1000, Relaxed);
        company
    }

    #[test]
    fn shards_of_a_node_write_at_the_same_moments() {
        let node = EntryTick::new();
        let (busy, one, other) = (shard(&node, 10), shard(&node, 10), shard(&node, 10));
        busy.came(100);
        let at = |us| node.epoch + Duration::from_micros(us);
        assert_eq!(one.next(at(1)), at(16_000));
        assert_eq!(other.next(at(15_999)), at(16_000));
        assert_eq!(one.next(at(16_000)), at(16_000), "it is one");
        assert_eq!(one.next(at(16_001)), at(32_000));
    }

    #[test]
    fn a_shard_whose_entries_are_quick_waits_for_no_slow_one_and_meets_it_all_the_same() {
        let node = EntryTick::new();
        let (far, near) = (shard(&node, 30), shard(&node, 0));
        near.flight_us.store(600, Relaxed);
        far.came(100);
        near.came(100);
        let at = |us| node.epoch + Duration::from_micros(us);
        assert_eq!(near.next(at(1)), at(4000));
        assert_eq!(near.next(at(12_001)), at(16_000));
        assert_eq!(far.next(at(1)), at(16_000));
    }

    #[test]
    fn a_shard_waits_for_others_not_for_itself() {
        let node = EntryTick::new();
        let (busy, other) = (shard(&node, 10), shard(&node, 10));
        busy.came(100);
        let from = node.epoch + Duration::from_micros(1);
        assert_eq!(busy.next(from), from);
        assert!(other.next(from) > from);
        busy.left(60);
        busy.came(1);
        assert_eq!(node.commands(), 41);
        drop(busy);
        assert_eq!(node.commands(), 0, "they have gone with their shard");
        assert_eq!(other.next(from), from);
    }

    #[test]
    fn what_entries_take_is_followed() {
        let node = EntryTick::new();
        let (busy, company) = (shard(&node, 10), shard(&node, 0));
        busy.came(100);
        let at = |us| node.epoch + Duration::from_micros(us);
        assert_eq!(company.next(at(1)), at(1), "nothing is known yet");
        for _ in 0..200 {
            company.landed(Duration::from_millis(8));
        }
        assert_eq!(company.next(at(1)), at(16_000));
        for _ in 0..200 {
            company.landed(Duration::from_micros(600));
        }
        assert_eq!(company.next(at(1)), at(4000));
        company.landed(Duration::MAX);
        assert_eq!(company.next(at(1)), at(16_000));
    }
}
