//! The gateway's monotonic clock, for timeouts only.

use std::time::Instant;

/// Milliseconds since the gateway started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    pub(crate) fn now_ms(self) -> u64 {
        // Wraps after half a billion years.
        self.start.elapsed().as_millis() as u64
    }
}
