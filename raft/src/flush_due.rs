//! When a shard is to be flushed.

use std::time::Instant;

use crate::base_thread::FlushedShard;

/// What the thread that flushes keeps of a shard.
pub(crate) struct Entry {
    pub(crate) shard: FlushedShard,
    /// Since when there is something that files do not have, as far as was seen.
    pub(crate) dirty_since: Option<Instant>,
}

impl Entry {
    pub(crate) fn due(&mut self, now: Instant) -> Due {
        let Some(age_ms) = self.age_ms(now) else {
            return Due::Later;
        };
        if self.shard.engine.flush_due(age_ms) {
            Due::Now
        } else if self.shard.engine.flush_due(age_ms.saturating_mul(2)) {
            Due::Soon
        } else {
            Due::Later
        }
    }

    /// How long there has been something to flush; `None` if there is nothing.
    fn age_ms(&mut self, now: Instant) -> Option<u64> {
        if !self.shard.engine.flush_due(u64::MAX) {
            self.dirty_since = None;
            return None;
        }
        let since = *self.dirty_since.get_or_insert(now);
        let age = now.saturating_duration_since(since).as_millis();
        Some(u64::try_from(age).unwrap_or(u64::MAX - 1))
    }
}

/// When a shard is to be flushed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Now,
    /// When it is twice as old as it is.
    Soon,
    Later,
}
