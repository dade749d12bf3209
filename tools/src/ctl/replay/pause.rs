//! The longest time without any ack while a send waits.

/// Times are milliseconds of one clock that never goes back.
#[derive(Debug, Default)]
pub(super) struct PauseMeter {
    /// Sends handed over and not acked.
    waiting: u64,
    /// When the current wait began: the last ack, or the first hand-over after an idle time.
    since_ms: u64,
    longest_ms: u64,
}

impl PauseMeter {
    /// A send was handed over.
    pub(super) fn sent(&mut self, now_ms: u64) {
        if self.waiting == 0 {
            self.since_ms = now_ms;
        }
        self.waiting += 1;
    }

    /// A send was acked.
    pub(super) fn acked(&mut self, now_ms: u64) {
        self.look(now_ms);
        self.waiting = self.waiting.saturating_sub(1);
        self.since_ms = now_ms;
    }

    /// A send ended without an ack: it waits no longer, but nothing was acked either.
    pub(super) fn gave_up(&mut self, now_ms: u64) {
        self.look(now_ms);
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// The longest pause so far.
    pub(super) fn longest_ms(&self) -> u64 {
        self.longest_ms
    }

    fn look(&mut self, now_ms: u64) {
        if self.waiting > 0 {
            self.longest_ms = self.longest_ms.max(now_ms.saturating_sub(self.since_ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_with_a_waiting_send_counts() {
        let mut meter = PauseMeter::default();
        meter.sent(100);
        meter.acked(110);
        meter.sent(5_000); // Idle until here.
        meter.sent(5_010);
        meter.acked(5_040);
        assert_eq!(meter.longest_ms(), 40);
        meter.acked(5_240);
        assert_eq!(meter.longest_ms(), 200);
    }

    #[test]
    fn a_send_that_is_given_up_ends_no_pause() {
        let mut meter = PauseMeter::default();
        meter.sent(0);
        meter.sent(10);
        meter.gave_up(1_000);
        meter.acked(3_000);
        assert_eq!(meter.longest_ms(), 3_000);
    }
}
