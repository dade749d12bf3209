//! A small good history, and ways to break it.

use std::ops::RangeInclusive;

use uuid::Uuid;

use super::violation::Violation;
use super::{Floors, check};
use crate::history::{
    Acked, Append, Fault, History, Installation, Op, Outcome, Read, Row, SendId, Source, Timeline,
    View,
};
use crate::page::{Join, Leave, Page, Synced};

/// Alice sends Bob two messages and a third of which nobody knows (it happened); Bob sends Alice
/// one; both send to a group. Each operation begins after the one before it was acked.
pub(super) struct Sample {
    pub(super) history: History,
}

impl Sample {
    pub(super) const ALICE: Timeline = Timeline::Mailbox(1);
    pub(super) const BOB: Timeline = Timeline::Mailbox(2);
    pub(super) const GROUP: Timeline = Timeline::Group(9);
    /// Which append is the unknown one.
    pub(super) const UNKNOWN: usize = 3;
    /// Where it is in Alice's mailbox.
    pub(super) const UNKNOWN_SEQ: u64 = 4;
    pub(super) const UNKNOWN_SEQ_AT_BOB: u64 = 4;
    /// After all appends.
    pub(super) const END: u64 = 10_000;

    pub(super) fn good() -> Self {
        let mut sample = Self {
            history: History::default(),
        };
        let sends = [
            (1, Self::BOB, 1),
            (1, Self::BOB, 2),
            (2, Self::ALICE, 3),
            (1, Self::BOB, Self::UNKNOWN_SEQ),
            (1, Self::GROUP, 1),
            (2, Self::GROUP, 2),
            (1, Self::GROUP, 3),
        ];
        for (number, (sender, to, seq)) in (0..).zip(sends) {
            let timeline = match to {
                Timeline::Mailbox(_) => Timeline::Mailbox(sender),
                Timeline::Group(_) => to,
            };
            let acked = Acked {
                timeline,
                seq,
                message_id: Self::message_id(number),
            };
            let outcome = if number == Self::UNKNOWN as u64 {
                Outcome::Unknown("Unavailable".into())
            } else {
                Outcome::Ok(acked)
            };
            sample.history.ops.push(Op::Append(Append {
                process: sender,
                invoked_ns: number * 100 + 10,
                completed_ns: number * 100 + 90,
                sender,
                to,
                id: Self::id(number),
                content: number as u32,
                outcome,
                repeats: Vec::new(),
                repeat_refused: None,
                reuse: None,
            }));
        }
        let mailbox = [0, 1, 2, 3];
        sample.read_last(Self::ALICE, &mailbox);
        sample.read_last(Self::BOB, &mailbox);
        sample.read_last(Self::GROUP, &[4, 5, 6]);
        sample
    }

    pub(super) fn id(number: u64) -> SendId {
        SendId(Uuid::from_u128(u128::from(number) + 1))
    }

    fn message_id(number: u64) -> u64 {
        (number + 1) << 16
    }

    fn row(&self, seq: u64, number: usize) -> Row {
        let append = self
            .history
            .appends()
            .nth(number)
            .expect("an append of the sample");
        let recipient = match append.to {
            Timeline::Mailbox(user) => user,
            Timeline::Group(_) => 0,
        };
        Row {
            seq,
            message_id: Self::message_id(number as u64),
            sender: append.sender,
            recipient,
            id: Some(append.id),
            content: append.content,
            refused: None,
        }
    }

    /// Final reads through the leader and at three nodes.
    fn read_last(&mut self, timeline: Timeline, numbers: &[usize]) {
        let rows: Vec<_> = (1..)
            .zip(numbers)
            .map(|(seq, number)| self.row(seq, *number))
            .collect();
        let view = View {
            after: 0,
            head: rows.len() as u64,
            rows,
        };
        for source in [
            Source::Leader,
            Source::Node(1),
            Source::Node(2),
            Source::Node(3),
        ] {
            self.history.ops.push(Op::Read(Read {
                process: 100,
                invoked_ns: Self::END * 2,
                completed_ns: Self::END * 2 + 1,
                timeline,
                source,
                last: true,
                staleness_ms: None,
                outcome: Outcome::Ok(view.clone()),
            }));
        }
    }

    /// A read through the leader while the run went on, of the first `head` rows.
    pub(super) fn read(
        &mut self,
        timeline: Timeline,
        (invoked_ns, completed_ns): (u64, u64),
        head: u64,
    ) {
        self.read_by(Source::Leader, timeline, (invoked_ns, completed_ns), head);
    }

    /// The last read's answer says how stale it may be.
    pub(super) fn is_stale_by(&mut self, ms: u32) {
        let Some(Op::Read(read)) = self.history.ops.last_mut() else {
            panic!("a read was pushed last");
        };
        read.staleness_ms = Some(ms);
    }

    /// The same by whomever.
    pub(super) fn read_by(
        &mut self,
        source: Source,
        timeline: Timeline,
        (invoked_ns, completed_ns): (u64, u64),
        head: u64,
    ) {
        let mut view = self.final_view(timeline);
        view.rows
            .truncate(usize::try_from(head).expect("a small head"));
        view.head = head;
        self.history.ops.push(Op::Read(Read {
            process: 101,
            invoked_ns,
            completed_ns,
            timeline,
            source,
            last: false,
            staleness_ms: None,
            outcome: Outcome::Ok(view),
        }));
    }

    pub(super) fn join(&mut self, user: u64, first: u64) {
        let Timeline::Group(group) = Self::GROUP else {
            panic!("the group's timeline is one");
        };
        self.history.ops.push(Op::Join(Join {
            user,
            group,
            first,
            completed_ns: 0,
        }));
    }

    /// When the user was let in is known since then.
    pub(super) fn joined_at(&mut self, completed_ns: u64) {
        let Some(Op::Join(join)) = self.history.ops.last_mut() else {
            panic!("a join was pushed last");
        };
        join.completed_ns = completed_ns;
    }

    pub(super) fn leave(&mut self, user: u64, last: u64) {
        let Timeline::Group(group) = Self::GROUP else {
            panic!("the group's timeline is one");
        };
        self.history
            .ops
            .push(Op::Leave(Leave { user, group, last }));
    }

    /// A page of a user's phone with rows of the final reads.
    pub(super) fn page(
        &mut self,
        user: u64,
        (invoked_ns, completed_ns): (u64, u64),
        parts: &[(Timeline, RangeInclusive<u64>)],
        more: bool,
    ) {
        let mut rows = Vec::new();
        for (timeline, seqs) in parts {
            let all = self.final_view(*timeline).rows;
            let part = all.into_iter().filter(|row| seqs.contains(&row.seq));
            rows.extend(part.map(|row| (*timeline, row)));
        }
        self.history.ops.push(Op::Page(Page {
            process: 200,
            invoked_ns,
            completed_ns,
            user,
            device: "phone".into(),
            gateway: 1,
            last: false,
            outcome: Outcome::Ok(Synced { rows, more }),
        }));
    }

    pub(super) fn change_page(&mut self, number: usize, change: impl FnOnce(&mut Page)) {
        let pages = self.history.ops.iter_mut().filter_map(|op| match op {
            Op::Page(page) => Some(page),
            _ => None,
        });
        change(pages.into_iter().nth(number).expect("a page"));
    }

    pub(super) fn change_rows(
        &mut self,
        number: usize,
        change: impl FnOnce(&mut Vec<(Timeline, Row)>),
    ) {
        self.change_page(number, |page| match &mut page.outcome {
            Outcome::Ok(synced) => change(&mut synced.rows),
            _ => panic!("page {number} failed"),
        });
    }

    pub(super) fn fault(&mut self, kind: &str, installation: Installation) {
        let kind = kind.to_owned();
        let fault = Fault {
            kind,
            node: Some(1),
            begun_ns: 1,
            healed_ns: 2,
            installation,
        };
        self.history.ops.push(Op::Fault(fault));
    }

    pub(super) fn violations(&self) -> Vec<Violation> {
        check(&self.history, &Floors::default()).violations
    }

    /// Whether the checkers find such a violation.
    pub(super) fn breaks(&self, such: impl Fn(&Violation) -> bool) -> bool {
        self.violations().iter().any(such)
    }

    pub(super) fn append_mut(&mut self, number: usize) -> &mut Append {
        let appends = self.history.ops.iter_mut().filter_map(|op| match op {
            Op::Append(append) => Some(append),
            _ => None,
        });
        appends
            .into_iter()
            .nth(number)
            .expect("an append of the sample")
    }

    pub(super) fn ack_mut(&mut self, number: usize) -> &mut Acked {
        match &mut self.append_mut(number).outcome {
            Outcome::Ok(acked) => acked,
            _ => panic!("append {number} was not acked"),
        }
    }

    /// Which append was acked there.
    pub(super) fn position(&self, timeline: Timeline, seq: u64) -> usize {
        let acked = |append: &Append| match &append.outcome {
            Outcome::Ok(acked) => acked.timeline == timeline && acked.seq == seq,
            _ => false,
        };
        self.history
            .appends()
            .position(acked)
            .expect("an acked append of the sample")
    }

    pub(super) fn swap_acks(&mut self, a: usize, b: usize) {
        let seqs = (self.ack_mut(a).seq, self.ack_mut(b).seq);
        self.ack_mut(a).seq = seqs.1;
        self.ack_mut(b).seq = seqs.0;
    }

    fn final_view(&self, timeline: Timeline) -> View {
        let read = self
            .history
            .reads()
            .find(|read| read.last && read.timeline == timeline);
        match &read.expect("a final read").outcome {
            Outcome::Ok(view) => view.clone(),
            _ => panic!("a final read failed"),
        }
    }

    fn change_reads(&mut self, such: impl Fn(&Read) -> bool, change: impl Fn(&mut View)) {
        for op in &mut self.history.ops {
            if let Op::Read(read) = op
                && such(read)
                && let Outcome::Ok(view) = &mut read.outcome
            {
                change(view);
            }
        }
    }

    /// The same change in the final reads of all nodes.
    pub(super) fn change_finals(&mut self, timeline: Timeline, change: impl Fn(&mut View)) {
        self.change_reads(|read| read.last && read.timeline == timeline, change);
    }

    pub(super) fn change_node(
        &mut self,
        timeline: Timeline,
        node: u64,
        change: impl Fn(&mut View),
    ) {
        let source = Source::Node(node);
        self.change_reads(
            |read| read.timeline == timeline && read.source == source,
            change,
        );
    }

    /// Of the run, not of the end.
    pub(super) fn change_last_read(&mut self, change: impl Fn(&mut View)) {
        self.change_reads(|read| !read.last, change);
    }

    pub(super) fn change_row(&mut self, timeline: Timeline, seq: u64, change: impl Fn(&mut Row)) {
        self.change_finals(timeline, |view| {
            view.rows
                .iter_mut()
                .filter(|row| row.seq == seq)
                .for_each(&change);
        });
    }

    /// Takes a row out; the last one takes the head with it, another leaves a gap.
    pub(super) fn drop_row(&mut self, timeline: Timeline, seq: u64) {
        self.change_finals(timeline, |view| {
            view.rows.retain(|row| row.seq != seq);
            if view.head == seq {
                view.head -= 1;
            }
        });
    }

    /// Numbers the rows anew.
    pub(super) fn close_gaps(&mut self, timeline: Timeline) {
        self.change_finals(timeline, |view| {
            for (row, seq) in view.rows.iter_mut().zip(1..) {
                row.seq = seq;
            }
            view.head = view.rows.len() as u64;
        });
    }

    /// The rows change places, each taking the other's seq.
    pub(super) fn swap_rows(&mut self, timeline: Timeline, a: u64, b: u64) {
        self.change_finals(timeline, |view| {
            let place = |seq| {
                view.rows
                    .iter()
                    .position(|row| row.seq == seq)
                    .expect("a row")
            };
            let (at_a, at_b) = (place(a), place(b));
            view.rows.swap(at_a, at_b);
            view.rows[at_a].seq = a;
            view.rows[at_b].seq = b;
        });
    }

    pub(super) fn append_row(&mut self, timeline: Timeline, change: impl Fn(&mut Row)) {
        self.change_finals(timeline, |view| {
            let mut row = view.rows[0].clone();
            view.head += 1;
            row.seq = view.head;
            change(&mut row);
            view.rows.push(row);
        });
    }

    pub(super) fn copy_row_to_end(&mut self, timeline: Timeline, seq: u64) {
        let row = self
            .final_view(timeline)
            .rows
            .into_iter()
            .find(|row| row.seq == seq);
        let row = row.expect("a row");
        self.append_row(timeline, |copy| {
            *copy = Row {
                seq: copy.seq,
                ..row.clone()
            }
        });
    }

    /// A refusal of the message at `seq` of a sender's mailbox.
    pub(super) fn refuse(&mut self, timeline: Timeline, seq: u64) {
        self.append_row(timeline, |row| {
            row.id = None;
            row.refused = Some(seq);
        });
    }
}
