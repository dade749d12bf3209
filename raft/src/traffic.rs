//! What goes through a replica: how much of each kind, and which timelines have the most of it.
//!
//! Counted once a batch of applied entries, after their replies were given, and once a call that reads. The
//! counters are exact since the replica was opened; the timelines come from a bounded sketch
//! (`sketch.rs`). Nothing of it is written anywhere, and nothing of a message is kept but its timeline.

mod sketch;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use mailbox_engine::{Flags, Row, SlotId, TimelineId, TimelineKind};
use parking_lot::Mutex;

pub use sketch::HotTimeline;
use sketch::{Share, Sketch};

/// The counts of one replica since it was opened. Every replica counts what it applies, and the one that
/// answered counts a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficCounts {
    /// Messages appended to their home timelines, those that the store wrote itself included.
    pub sends: u64,
    /// Rows appended to mailboxes of others than their senders: messages received, and refusals told.
    pub deliveries: u64,
    /// Timelines that calls have read: pages and heads.
    pub reads: u64,
}

/// See the module.
pub(crate) struct Traffic {
    sends: AtomicU64,
    deliveries: AtomicU64,
    reads: AtomicU64,
    opened: Instant,
    sketch: Mutex<Sketch>,
}

impl Traffic {
    pub(crate) fn new(shard: u32, slot_count: u16) -> Traffic {
        Traffic {
            sends: AtomicU64::new(0),
            deliveries: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            opened: Instant::now(),
            sketch: Mutex::new(Sketch::new(u64::from(shard), slot_count)),
        }
    }

    /// Takes in what a batch of entries has appended.
    pub(crate) fn applied(&self, appended: &[(TimelineId, Vec<Row>)]) {
        if appended.is_empty() {
            return;
        }
        let (mut sends, mut deliveries) = (0, 0);
        for (timeline, rows) in appended {
            let all = rows.len() as u64;
            let sent = match timeline.kind {
                TimelineKind::Group => all,
                // Apply does not tell of them.
                TimelineKind::DeadLetters => continue,
                TimelineKind::Mailbox => {
                    let sent = rows.iter().filter(|row| row.flags.has(Flags::OUTGOING));
                    sent.count() as u64
                }
            };
            sends += sent;
            deliveries += all - sent;
        }
        self.sends.fetch_add(sends, Ordering::Relaxed);
        self.deliveries.fetch_add(deliveries, Ordering::Relaxed);
        let weights = appended.iter();
        let weights = weights.map(|(timeline, rows)| (*timeline, rows.len()));
        self.note(Share::Writes, weights);
    }

    /// Takes in that a call reads these timelines.
    pub(crate) fn read(&self, timelines: &[TimelineId]) {
        let count = timelines.len() as u64;
        self.reads.fetch_add(count, Ordering::Relaxed);
        self.note(
            Share::Reads,
            timelines.iter().map(|timeline| (*timeline, 1)),
        );
    }

    fn note(
        &self,
        share: Share,
        weights: impl ExactSizeIterator<Item = (TimelineId, usize)> + Clone,
    ) {
        let now = self.opened.elapsed().as_secs_f64();
        self.sketch.lock().note(now, share, weights);
    }

    pub(crate) fn counts(&self) -> TrafficCounts {
        TrafficCounts {
            sends: self.sends.load(Ordering::Relaxed),
            deliveries: self.deliveries.load(Ordering::Relaxed),
            reads: self.reads.load(Ordering::Relaxed),
        }
    }

    /// At most `count` timelines, the hottest first.
    pub(crate) fn hottest(&self, count: usize) -> Vec<HotTimeline> {
        let now = self.opened.elapsed().as_secs_f64();
        self.sketch.lock().hottest(now, count)
    }

    /// Rows appended per second of late, by slot.
    pub(crate) fn writes_by_slot(&self) -> Vec<(SlotId, f64)> {
        let now = self.opened.elapsed().as_secs_f64();
        self.sketch.lock().writes_by_slot(now)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mailbox_engine::{MessageId, MessageType, Seq, UserId};
    use uuid::Uuid;

    use super::*;

    fn row(flags: Flags) -> Row {
        Row {
            seq: Seq(1),
            message_id: MessageId(1),
            sender: UserId(1),
            recipient: UserId(2),
            sent_at_ms: 0,
            kind: MessageType::TEXT,
            flags,
            client_msg_id: Uuid::nil(),
            body: Bytes::new(),
            refused: None,
        }
    }

    #[test]
    fn a_row_is_a_send_where_it_is_at_home_and_else_a_delivery() {
        let group = TimelineId {
            kind: TimelineKind::Group,
            owner: 65,
        };
        let (sent, received) = (Flags::default().with(Flags::OUTGOING), Flags::default());
        let traffic = Traffic::new(1, 16);
        traffic.applied(&[
            (
                UserId(1).mailbox(),
                vec![row(sent), row(received), row(sent)],
            ),
            (UserId(2).mailbox(), vec![row(received)]),
            (group, vec![row(received)]),
        ]);
        traffic.read(&[group, UserId(1).mailbox()]);
        let counts = TrafficCounts {
            sends: 3,
            deliveries: 2,
            reads: 2,
        };
        assert_eq!(traffic.counts(), counts);
        let hottest = traffic.hottest(2);
        assert_eq!(hottest[0].timeline, UserId(1).mailbox());
        assert_eq!(hottest[1].timeline, group);
        assert!(hottest[1].writes_per_s > 0.0 && hottest[1].reads_per_s > 0.0);
        let by_slot: f64 = traffic.writes_by_slot().iter().map(|(_, rate)| rate).sum();
        assert!(by_slot > 0.0);
    }
}
