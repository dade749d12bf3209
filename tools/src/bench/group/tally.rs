//! What a run's members have got, counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mailbox_wire::proto;

use super::order::Completion;
use crate::bench::load::{self, Clock};

/// Bytes at the begin of every body: when the post was due, in nanoseconds since the run's begin.
pub(super) const STAMP_BYTES: usize = 8;

/// How often things have happened since the run began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Messages that a member has decoded in order.
    pub(super) deliveries: u64,
    /// Of them, those that came by sync after their push was dropped.
    pub(super) synced: u64,
    /// Push frames of the group that members have got.
    pub(super) pushes: u64,
    /// Notices to sync that members have got.
    pub(super) notices: u64,
    /// Posts handed over.
    pub(super) posted: u64,
    /// Posts acked.
    pub(super) acked: u64,
    /// Posts refused.
    pub(super) refused: u64,
    /// Syncs refused.
    pub(super) syncs_refused: u64,
    /// Bytes that members have read from the wire.
    pub(super) wire_bytes: u64,
}

impl Counts {
    /// Posts that are not answered yet.
    pub(super) fn unanswered(&self) -> u64 {
        self.posted.saturating_sub(self.acked + self.refused)
    }
}

/// Counts for the thread that reads.
pub(super) struct Tally {
    pub(super) group: u64,
    pub(super) counts: Counts,
    pub(super) completion: Completion,
    /// Greatest seq that was acked, inclusive.
    pub(super) head: u64,
    /// Why the first post or sync was refused.
    pub(super) first_refusal: Option<String>,
    latencies_us: Histogram<u64>,
    clock: Option<Arc<Clock>>,
    /// When what is being taken was decoded, since the run's begin.
    now: Duration,
    measured: bool,
}

impl Tally {
    /// Of a group with so many members, who all hold everything up to `head`.
    pub(super) fn new(group: u64, members: u32, head: u64) -> Self {
        Self {
            group,
            counts: Counts::default(),
            completion: Completion::new(members, head),
            head,
            first_refusal: None,
            latencies_us: load::histogram(),
            clock: None,
            now: Duration::ZERO,
            measured: false,
        }
    }

    /// The run begins.
    pub(super) fn begin(&mut self, clock: Arc<Clock>) {
        self.counts = Counts::default();
        self.clock = Some(clock);
    }

    /// A frame was decoded at this time.
    pub(super) fn decoded(&mut self, now: Instant) {
        if let Some(clock) = &self.clock {
            self.now = now.saturating_duration_since(clock.begin());
            self.measured = clock.measures(now);
        }
    }

    /// A member has decoded the message that is next for it.
    pub(super) fn delivered(&mut self, message: &proto::Message) {
        self.counts.deliveries += 1;
        self.completion.count(message.seq);
        if self.measured
            && let Some(due) = message.body.first_chunk::<STAMP_BYTES>()
        {
            let due = Duration::from_nanos(u64::from_be_bytes(*due));
            let us = self.now.saturating_sub(due).as_micros();
            self.latencies_us
                .saturating_record(u64::try_from(us).unwrap_or(u64::MAX));
        }
    }

    /// A post is durable, as this seq.
    pub(super) fn acked(&mut self, seq: u64) {
        self.counts.acked += 1;
        self.head = self.head.max(seq);
    }

    /// Something was refused; `sync` or else a post.
    pub(super) fn refused(&mut self, error: &proto::Error, sync: bool) {
        let count = match sync {
            true => &mut self.counts.syncs_refused,
            false => &mut self.counts.refused,
        };
        *count += 1;
        self.first_refusal
            .get_or_insert_with(|| format!("{}: {}", error.code, error.message));
    }

    /// From hand-over to decoding, of what was decoded in the measured time, in microseconds.
    pub(super) fn into_latencies_us(self) -> Histogram<u64> {
        self.latencies_us
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(seq: u64, due: Duration) -> proto::Message {
        let due = u64::try_from(due.as_nanos()).unwrap();
        let mut body = due.to_be_bytes().to_vec();
        body.extend([7; 92]);
        proto::Message {
            seq,
            body: Bytes::from(body),
            ..proto::Message::default()
        }
    }

    #[test]
    fn a_delivery_is_timed_from_when_its_post_was_due() {
        let mut tally = Tally::new(65, 1, 0);
        // Before the run nothing is timed.
        tally.delivered(&message(1, Duration::ZERO));
        let clock = Clock::start(Duration::ZERO, Duration::from_secs(60));
        let begin = clock.begin();
        tally.begin(clock);
        tally.decoded(begin + Duration::from_millis(30));
        tally.delivered(&message(2, Duration::from_millis(10)));
        assert_eq!(tally.counts.deliveries, 1);
        assert_eq!(tally.completion.through(), 2);
        let latencies = tally.into_latencies_us();
        assert_eq!(latencies.len(), 1);
        assert!(latencies.equivalent(latencies.max(), 20_000));
    }

    #[test]
    fn outside_of_the_measured_time_nothing_is_timed() {
        let mut tally = Tally::new(65, 1, 0);
        let clock = Clock::start(Duration::from_secs(5), Duration::from_secs(10));
        let begin = clock.begin();
        tally.begin(clock);
        for (seq, second) in [(1, 4), (2, 14), (3, 16)] {
            tally.decoded(begin + Duration::from_secs(second));
            tally.delivered(&message(seq, Duration::from_secs(second)));
        }
        assert_eq!(tally.counts.deliveries, 3);
        assert_eq!(tally.into_latencies_us().len(), 1);
    }

    #[test]
    fn answers_are_counted_and_the_first_refusal_is_kept() {
        let mut tally = Tally::new(65, 1, 10);
        tally.counts.posted = 4;
        tally.acked(12);
        tally.acked(11);
        let refusal = |code: &str| proto::Error {
            code: code.to_owned(),
            message: "no".to_owned(),
            ..proto::Error::default()
        };
        tally.refused(&refusal("Busy"), false);
        tally.refused(&refusal("Resync"), true);
        assert_eq!(tally.counts.unanswered(), 1);
        assert_eq!(tally.head, 12);
        assert_eq!(tally.first_refusal.as_deref(), Some("Busy: no"));
    }
}
