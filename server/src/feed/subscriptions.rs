//! Which seq each subscription of a stream gives next, and the answer that is being put together.

use std::collections::{HashMap, VecDeque};

use mailbox_api::CallError;
use mailbox_api::v1::{ErrorCode, SubscribeResponse, SubscriptionEnd, TimelineBatch, TimelineHead};
use mailbox_engine::{MessageType, Row, Seq, TimelineId, UserId};

use crate::convert;

/// Bytes of messages after which an answer is sent before more is put in.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// Bytes that a message costs besides its body.
const MESSAGE_OVERHEAD: usize = 64;

#[derive(Debug)]
struct Subscription {
    /// First seq not yet given.
    next: Seq,
    /// Reads the store; tails are ignored until it has caught up.
    behind: bool,
}

/// The subscriptions of one stream.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    /// Who reads, if not the cluster itself: loses a group by leaving it.
    reader: Option<UserId>,
    by_timeline: HashMap<TimelineId, Subscription>,
    /// Timelines to read next; may name some that were removed since.
    behind: VecDeque<TimelineId>,
    /// The order in which heads are told; may name some that were removed since.
    turn: VecDeque<TimelineId>,
}

impl Subscriptions {
    /// `reader` is whose rights bound what is given; `None` = everything.
    pub(super) fn of(reader: Option<UserId>) -> Self {
        Self {
            reader,
            ..Self::default()
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_timeline.len()
    }

    pub(super) fn any_behind(&self) -> bool {
        !self.behind.is_empty()
    }

    /// Adds a subscription that gives `next` first, or moves an old one there. True if it is new.
    pub(super) fn add(&mut self, timeline: TimelineId, next: Seq) -> bool {
        let subscription = Subscription { next, behind: true };
        let old = self.by_timeline.insert(timeline, subscription);
        if old.as_ref().is_none_or(|old| !old.behind) {
            self.behind.push_back(timeline);
        }
        if old.is_none() {
            self.turn.push_back(timeline);
        }
        old.is_none()
    }

    /// True if there was one.
    pub(super) fn remove(&mut self, timeline: TimelineId) -> bool {
        let removed = self.by_timeline.remove(&timeline).is_some();
        if removed {
            // Rare, and keeps both lists as short as the map.
            self.behind.retain(|other| *other != timeline);
            self.turn.retain(|other| *other != timeline);
        }
        removed
    }

    /// Takes out all but those that fit.
    pub(super) fn remove_unless(&mut self, fits: impl Fn(TimelineId) -> bool) -> Vec<TimelineId> {
        let timelines = self.by_timeline.keys().copied();
        let gone: Vec<TimelineId> = timelines.filter(|timeline| !fits(*timeline)).collect();
        for timeline in &gone {
            self.remove(*timeline);
        }
        gone
    }

    /// A tail was missed: every subscription may be behind.
    pub(super) fn all_behind(&mut self) {
        for (timeline, subscription) in &mut self.by_timeline {
            if !subscription.behind {
                subscription.behind = true;
                self.behind.push_back(*timeline);
            }
        }
    }

    /// Takes in what one apply appended; returns how many rows were given.
    pub(super) fn take(
        &mut self,
        appended: &[(TimelineId, Vec<Row>)],
        detach: bool,
        pending: &mut Pending,
    ) -> u64 {
        let mut given = 0;
        for (timeline, rows) in appended {
            let Some(subscription) = self.by_timeline.get_mut(timeline) else {
                continue;
            };
            if subscription.behind {
                continue;
            }
            for row in rows {
                if row.seq < subscription.next {
                    continue;
                }
                if row.seq > subscription.next {
                    subscription.behind = true;
                    self.behind.push_back(*timeline);
                    break;
                }
                subscription.next = row.seq.next();
                given += 1;
                let last = self.reader.is_some_and(|reader| leaves(row, reader));
                pending.row(*timeline, if detach { row.detach() } else { row.clone() });
                if last {
                    self.left(*timeline, pending);
                    break;
                }
            }
        }
        given
    }

    /// The reader has left the group: nothing after that is theirs to read.
    fn left(&mut self, timeline: TimelineId, pending: &mut Pending) {
        self.remove(timeline);
        pending.ended_by_leaving += 1;
        let error = CallError::new(ErrorCode::NotAMember, format!("you have left {timeline}"));
        let timeline = Some(convert::timeline_out(timeline));
        pending.end(SubscriptionEnd {
            timeline,
            error: Some(error.0),
        });
    }

    /// Up to `max` subscriptions that read the store next, each with its next seq.
    pub(super) fn next_behind(&mut self, max: usize) -> Vec<(TimelineId, Seq)> {
        let mut next = Vec::new();
        while next.len() < max
            && let Some(timeline) = self.behind.pop_front()
        {
            if let Some(subscription) = self.by_timeline.get(&timeline) {
                next.push((timeline, subscription.next));
            }
        }
        next
    }

    /// Takes in a page that was read for a subscription; true if it is live now. `head` is from
    /// before the page was read.
    pub(super) fn caught_up(
        &mut self,
        timeline: TimelineId,
        head: Seq,
        page: Vec<Row>,
        pending: &mut Pending,
    ) -> bool {
        let Some(subscription) = self.by_timeline.get_mut(&timeline) else {
            return false;
        };
        for row in page {
            if row.seq == subscription.next {
                subscription.next = row.seq.next();
                let last = self.reader.is_some_and(|reader| leaves(&row, reader));
                pending.row(timeline, row);
                if last {
                    self.left(timeline, pending);
                    return false;
                }
            }
        }
        // Rows after `head` are in tails that this stream has not taken yet.
        subscription.behind = subscription.next <= head;
        if subscription.behind {
            self.behind.push_back(timeline);
        }
        !subscription.behind
    }

    /// The timelines whose heads are told next, `max` at most; all take turns.
    pub(super) fn next_heads(&mut self, max: usize) -> Vec<TimelineId> {
        let count = max.min(self.turn.len());
        let heads: Vec<TimelineId> = self
            .turn
            .iter()
            .take(count)
            .copied()
            .filter(|timeline| {
                self.by_timeline
                    .get(timeline)
                    .is_some_and(|own| !own.behind)
            })
            .collect();
        self.turn.rotate_left(count);
        heads
    }
}

/// The row in which this user leaves a group.
fn leaves(row: &Row, reader: UserId) -> bool {
    row.kind == MessageType::MEMBER_LEFT && row.sender == reader
}

/// The answer that is being put together.
#[derive(Debug, Default)]
pub(super) struct Pending {
    response: SubscribeResponse,
    /// Where each timeline's batch is in the response.
    batch_of: HashMap<TimelineId, usize>,
    bytes: usize,
    due: bool,
    /// Subscriptions that ended because their reader left; taken by whoever counts them.
    pub(super) ended_by_leaving: i64,
}

impl Pending {
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= ANSWER_BYTES_MAX
    }

    /// An empty answer is worth sending too.
    pub(super) fn touch(&mut self) {
        self.due = true;
    }

    pub(super) fn row(&mut self, timeline: TimelineId, row: Row) {
        self.due = true;
        self.bytes += row.body.len() + MESSAGE_OVERHEAD;
        let batches = &mut self.response.batches;
        let index = *self.batch_of.entry(timeline).or_insert_with(|| {
            let timeline = Some(convert::timeline_out(timeline));
            batches.push(TimelineBatch {
                timeline,
                messages: Vec::new(),
            });
            batches.len() - 1
        });
        batches[index].messages.push(convert::message(row));
    }

    pub(super) fn head(&mut self, head: TimelineHead) {
        self.due = true;
        self.response.heads.push(head);
    }

    pub(super) fn end(&mut self, end: SubscriptionEnd) {
        self.due = true;
        self.response.ended.push(end);
    }

    /// The answer, if there is one to send.
    pub(super) fn take(&mut self) -> Option<SubscribeResponse> {
        if !self.due {
            return None;
        }
        self.due = false;
        self.bytes = 0;
        self.batch_of.clear();
        Some(std::mem::take(&mut self.response))
    }
}

#[cfg(test)]
mod tests {
    use mailbox_engine::{Flags, GroupId, MessageId};

    use super::*;

    fn row(seq: u64) -> Row {
        Row {
            seq: Seq(seq),
            message_id: MessageId(seq),
            sender: UserId(1),
            recipient: UserId(2),
            sent_at_ms: 0,
            kind: MessageType::TEXT,
            flags: Flags::default(),
            client_msg_id: uuid::Uuid::nil(),
            body: "hello".into(),
            refused: None,
        }
    }

    fn rows(seqs: std::ops::RangeInclusive<u64>) -> Vec<Row> {
        seqs.map(row).collect()
    }

    fn given(pending: &mut Pending) -> Vec<u64> {
        let Some(response) = pending.take() else {
            return Vec::new();
        };
        let messages = response
            .batches
            .into_iter()
            .flat_map(|batch| batch.messages);
        messages.map(|message| message.seq).collect()
    }

    #[test]
    fn store_and_tail_join_without_gap_or_double() {
        let mailbox = UserId(2).mailbox();
        let (mut subscriptions, mut pending) = (Subscriptions::default(), Pending::default());
        assert!(subscriptions.add(mailbox, Seq(2)));
        // A tail that came while behind is in the page already.
        subscriptions.take(&[(mailbox, rows(4..=4))], false, &mut pending);
        assert_eq!(subscriptions.next_behind(8), [(mailbox, Seq(2))]);
        assert!(subscriptions.caught_up(mailbox, Seq(4), rows(2..=4), &mut pending));
        // The same tail arrives after the page: dropped; the next one is live.
        subscriptions.take(&[(mailbox, rows(4..=5))], false, &mut pending);
        assert_eq!(given(&mut pending), [2, 3, 4, 5]);
        assert!(!subscriptions.any_behind());
    }

    #[test]
    fn a_row_above_the_next_seq_makes_it_read_the_store() {
        let mailbox = UserId(2).mailbox();
        let (mut subscriptions, mut pending) = (Subscriptions::default(), Pending::default());
        subscriptions.add(mailbox, Seq(1));
        subscriptions.next_behind(8);
        assert!(subscriptions.caught_up(mailbox, Seq(0), Vec::new(), &mut pending));
        subscriptions.take(&[(mailbox, rows(3..=3))], true, &mut pending);
        assert!(given(&mut pending).is_empty());
        assert_eq!(subscriptions.next_behind(8), [(mailbox, Seq(1))]);
        assert!(
            !subscriptions.caught_up(mailbox, Seq(3), rows(1..=2), &mut pending),
            "one to go"
        );
        assert_eq!(subscriptions.next_behind(8), [(mailbox, Seq(3))]);
        assert!(subscriptions.caught_up(mailbox, Seq(3), rows(3..=3), &mut pending));
        assert_eq!(given(&mut pending), [1, 2, 3]);
    }

    #[test]
    fn a_missed_tail_puts_all_behind_once() {
        let (mut subscriptions, mut pending) = (Subscriptions::default(), Pending::default());
        for user in 1..=3 {
            subscriptions.add(UserId(user).mailbox(), Seq(1));
        }
        subscriptions.next_behind(2);
        subscriptions.caught_up(UserId(1).mailbox(), Seq(0), Vec::new(), &mut pending);
        subscriptions.all_behind();
        subscriptions.all_behind();
        assert_eq!(
            subscriptions.next_behind(9).len(),
            2,
            "one is being read, two wait"
        );
        assert!(subscriptions.remove(UserId(1).mailbox()));
        assert!(!subscriptions.remove(UserId(1).mailbox()));
    }

    #[test]
    fn a_reader_who_leaves_reads_to_that_row() {
        let group = GroupId(9).timeline();
        let left = Row {
            kind: MessageType::MEMBER_LEFT,
            sender: UserId(7),
            ..row(2)
        };
        let appended = [(group, vec![row(1), left, row(3)])];
        for (reader, seqs) in [
            (Some(UserId(7)), vec![1, 2]),
            (Some(UserId(8)), vec![1, 2, 3]),
        ] {
            let (mut subscriptions, mut pending) = (Subscriptions::of(reader), Pending::default());
            subscriptions.add(group, Seq(1));
            subscriptions.next_behind(1);
            subscriptions.caught_up(group, Seq(0), Vec::new(), &mut pending);
            subscriptions.take(&appended, false, &mut pending);
            assert_eq!(pending.response.ended.len(), 3 - seqs.len());
            assert_eq!(given(&mut pending), seqs);
        }
    }

    #[test]
    fn heads_take_turns() {
        let (mut subscriptions, mut pending) = (Subscriptions::default(), Pending::default());
        for user in 1..=3 {
            subscriptions.add(UserId(user).mailbox(), Seq(1));
            subscriptions.next_behind(1);
            subscriptions.caught_up(UserId(user).mailbox(), Seq(0), Vec::new(), &mut pending);
        }
        let mut told: Vec<u64> = Vec::new();
        for _ in 0..3 {
            told.extend(
                subscriptions
                    .next_heads(2)
                    .iter()
                    .map(|timeline| timeline.owner),
            );
        }
        assert_eq!(told, [1, 2, 3, 1, 2, 3]);
    }
}
