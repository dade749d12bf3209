//! The cluster's time, as this process knows it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

/// A monotonic clock set by a node's: a device's own wall clock may be wrong by years, and is used
/// only until a node has told its time.
#[derive(Debug)]
pub(crate) struct ServerClock {
    start: Instant,
    wall_start_ms: u64,
    /// The server's time at `start`, ms since the Unix epoch; 0 until it is learnt.
    start_ms: AtomicU64,
}

impl ServerClock {
    pub(crate) fn new() -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            start: Instant::now(),
            wall_start_ms: millis(wall),
            start_ms: AtomicU64::new(0),
        }
    }

    /// Takes a node's reading; it was made about half a round trip before now. A node whose own
    /// clock is in doubt says 0, which is no reading.
    pub(crate) fn set(&self, server_ms: u64, round_trip: Duration) {
        if server_ms == 0 {
            return;
        }
        let elapsed_ms = millis(self.start.elapsed());
        let now_ms = server_ms.saturating_add(millis(round_trip / 2));
        self.start_ms
            .store(now_ms.saturating_sub(elapsed_ms), Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.start_ms.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn now_ms(&self) -> u64 {
        let start_ms = match self.start_ms.load(Ordering::Relaxed) {
            0 => self.wall_start_ms,
            learnt => learnt,
        };
        start_ms + millis(self.start.elapsed())
    }

    pub(crate) fn new_id(&self) -> Uuid {
        uuid::Builder::from_unix_timestamp_millis(self.now_ms(), &rand::random()).into_uuid()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_carry_the_servers_time_and_not_ours() {
        let clock = ServerClock::new();
        let server_ms = 4_000_000_000_000;
        clock.set(server_ms, Duration::from_millis(10));
        let (seconds, nanos) = clock.new_id().get_timestamp().expect("a UUIDv7").to_unix();
        let id_ms = seconds * 1000 + u64::from(nanos) / 1_000_000;
        assert!(id_ms >= server_ms + 5);
        assert!(id_ms <= clock.now_ms());
        assert_eq!(clock.new_id().get_version_num(), 7);
    }

    #[test]
    fn until_a_node_tells_its_time_ours_has_to_do() {
        let clock = ServerClock::new();
        clock.set(0, Duration::ZERO);
        assert!(!clock.is_set());
        assert!(
            clock.now_ms() > 1_600_000_000_000,
            "some time in this century"
        );
        clock.set(5_000, Duration::ZERO);
        assert!(clock.is_set());
        assert!(clock.now_ms() < 1_600_000_000_000);
    }
}
