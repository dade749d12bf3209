//! What one member has got of the group's timeline, and how far all of them have got.

use std::collections::VecDeque;

/// What a member holds of the group. It takes a message only if it is the next one, as a device does
/// (`gateway/PROTOCOL.md`): after a push that was dropped it syncs.
#[derive(Debug)]
pub(super) struct Order {
    /// Greatest seq taken, inclusive.
    held: u64,
    /// Greatest seq heard of, inclusive.
    heard: u64,
    /// Seq before the next message of the push or page that is being taken.
    before: u64,
    /// Whether a page was ever taken: only then may a push begin before what is held.
    synced: bool,
    out_of_order: u64,
}

impl Order {
    /// Of a member who holds everything up to a head.
    pub(super) fn from(head: u64) -> Self {
        Self {
            held: head,
            heard: head,
            before: head,
            synced: false,
            out_of_order: 0,
        }
    }

    /// Greatest seq taken, inclusive.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Gaps and repeats that the gateway did not explain.
    pub(super) fn out_of_order(&self) -> u64 {
        self.out_of_order
    }

    /// Whether there is something that no push will bring any more.
    pub(super) fn is_behind(&self) -> bool {
        self.heard > self.held
    }

    /// Pushes up to this seq were dropped.
    pub(super) fn told_of(&mut self, head: u64) {
        self.heard = self.heard.max(head);
    }

    /// A push begins, after this seq. A gap before it needs a reason: until a sync has caught up, it has one.
    pub(super) fn push(&mut self, prev_seq: u64) {
        self.before = prev_seq;
        let gap = prev_seq > self.held && !self.is_behind();
        let repeat = prev_seq < self.held && !self.synced;
        self.out_of_order += u64::from(gap || repeat);
    }

    /// A page of sync begins, which reads on from what is held.
    pub(super) fn page(&mut self, first: u64) {
        self.synced = true;
        self.before = first.saturating_sub(1);
        if self.before > self.held {
            self.out_of_order += 1;
        }
    }

    /// A message of the push or page that has begun; whether it is the next one and so is delivered.
    pub(super) fn take(&mut self, seq: u64) -> bool {
        if seq != self.before + 1 {
            self.out_of_order += 1;
        }
        self.before = seq;
        self.heard = self.heard.max(seq);
        let next = seq == self.held + 1;
        if next {
            self.held = seq;
        }
        next
    }
}

/// How far all members have got.
#[derive(Debug)]
pub(super) struct Completion {
    members: u32,
    /// Greatest seq that every member has taken, inclusive.
    through: u64,
    /// Of each seq beyond it, how many members have taken it.
    taken: VecDeque<u32>,
}

impl Completion {
    /// Of so many members, who all hold everything up to `head`.
    pub(super) fn new(members: u32, head: u64) -> Self {
        Self {
            members,
            through: head,
            taken: VecDeque::new(),
        }
    }

    /// Greatest seq that every member has taken, inclusive.
    pub(super) fn through(&self) -> u64 {
        self.through
    }

    /// One more member has taken a message. Each takes each seq once, in order.
    pub(super) fn count(&mut self, seq: u64) {
        let beyond = seq.saturating_sub(self.through + 1);
        let place = usize::try_from(beyond).unwrap_or(usize::MAX);
        if place >= self.taken.len() {
            // A member is never more than one message ahead of all that were counted before.
            self.taken.push_back(0);
        }
        if let Some(taken) = self.taken.get_mut(place) {
            *taken += 1;
        }
        while self.taken.front() == Some(&self.members) {
            self.taken.pop_front();
            self.through += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a push of these seqs; how many of them are delivered.
    fn push(order: &mut Order, seqs: std::ops::RangeInclusive<u64>) -> usize {
        order.push(seqs.start() - 1);
        seqs.filter(|seq| order.take(*seq)).count()
    }

    #[test]
    fn pushes_that_follow_each_other_are_delivered_whole() {
        let mut order = Order::from(10);
        assert_eq!(push(&mut order, 11..=11), 1);
        assert_eq!(push(&mut order, 12..=20), 9);
        assert_eq!((order.held(), order.out_of_order()), (20, 0));
        assert!(!order.is_behind());
    }

    #[test]
    fn a_gap_that_nobody_explained_is_out_of_order_and_delivers_nothing() {
        let mut order = Order::from(10);
        assert_eq!(push(&mut order, 12..=13), 0);
        assert_eq!((order.held(), order.out_of_order()), (10, 1));
        assert!(order.is_behind());
    }

    #[test]
    fn a_repeat_is_out_of_order_and_is_delivered_once() {
        let mut order = Order::from(10);
        assert_eq!(push(&mut order, 11..=12), 2);
        assert_eq!(push(&mut order, 11..=13), 1);
        assert_eq!((order.held(), order.out_of_order()), (13, 1));
    }

    #[test]
    fn a_push_with_a_hole_in_it_is_out_of_order() {
        let mut order = Order::from(10);
        order.push(10);
        assert!(order.take(11));
        assert!(!order.take(13));
        assert!(!order.take(12 + 2));
        assert_eq!((order.held(), order.out_of_order()), (11, 1));
        // Two that changed places are two faults: neither stands where it belongs.
        let mut order = Order::from(10);
        order.push(10);
        assert!(!order.take(12));
        assert!(order.take(11));
        assert_eq!(order.out_of_order(), 2);
    }

    #[test]
    fn what_was_dropped_comes_by_sync_and_is_no_fault() {
        let mut order = Order::from(10);
        assert_eq!(push(&mut order, 11..=11), 1);
        order.told_of(15);
        assert!(order.is_behind());
        // Pushes go on before the page is there.
        assert_eq!(push(&mut order, 16..=17), 0);
        order.page(12);
        assert_eq!((12..=16).filter(|seq| order.take(*seq)).count(), 5);
        assert!(order.is_behind(), "17 was pushed and could not be kept");
        order.page(17);
        assert!(order.take(17));
        assert!(!order.is_behind());
        // A push that overlaps with a page.
        assert_eq!(push(&mut order, 17..=18), 1);
        assert_eq!((order.held(), order.out_of_order()), (18, 0));
        // What a notice explains ends with the sync.
        assert_eq!(push(&mut order, 20..=20), 0);
        assert_eq!(order.out_of_order(), 1);
    }

    #[test]
    fn a_page_that_skips_is_out_of_order_whatever_was_told() {
        let mut order = Order::from(10);
        order.told_of(15);
        order.page(13);
        assert!(!order.take(13));
        assert_eq!((order.held(), order.out_of_order()), (10, 1));
    }

    #[test]
    fn a_message_is_complete_when_the_last_member_has_it() {
        let mut completion = Completion::new(3, 100);
        for seq in [101, 102, 103] {
            completion.count(seq);
        }
        completion.count(101);
        assert_eq!(completion.through(), 100);
        for seq in [101, 102, 103] {
            completion.count(seq);
        }
        assert_eq!(completion.through(), 101);
        completion.count(102);
        assert_eq!(completion.through(), 102);
        completion.count(103);
        assert_eq!(completion.through(), 103);
        for _ in 0..3 {
            completion.count(104);
        }
        assert_eq!(completion.through(), 104);
    }
}
