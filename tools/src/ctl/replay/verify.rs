//! Compares what was acked with what the store says: nothing missing, doubled or out of order.

use std::collections::HashMap;

use uuid::Uuid;

use super::script::{NickId, Send, To};

/// How many findings are kept in words; the counts have no limit.
pub(super) const FINDINGS_MAX: usize = 20;

/// The ack of one send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ack {
    /// `group:65` or `mailbox:17`.
    pub(super) timeline: String,
    pub(super) seq: u64,
}

/// A message as a read of a timeline returned it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) seq: u64,
    pub(super) sender: u64,
    pub(super) client_msg_id: Uuid,
    pub(super) body: Vec<u8>,
    pub(super) kind: SeenKind,
}

/// Who wrote a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeenKind {
    /// A user.
    Sent,
    /// The store: a join, a leave, a created group.
    Written,
    /// The store: the recipient did not get the message with this seq.
    Refusal { of: u64 },
}

/// The run that is checked.
pub(super) struct Run<'a> {
    pub(super) sends: &'a [Send],
    pub(super) ids: &'a [Uuid],
    pub(super) acks: &'a [Option<Ack>],
    /// User id of every nick.
    pub(super) users: &'a [u64],
    pub(super) group: u64,
}

/// The verdict: all three counts are 0 after a good run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Acked messages that a timeline lacks or holds with other content, and heads that lie
    /// below what was acked.
    pub(super) missing: u64,
    /// Messages that a timeline holds more than once, or that nobody sent.
    pub(super) duplicated: u64,
    /// Gaps in seqs, messages not at their acked seq, and senders whose messages changed places.
    pub(super) misordered: u64,
    /// The first [`FINDINGS_MAX`] findings, in words.
    pub(super) findings: Vec<String>,
}

impl Verdict {
    fn note(&mut self, finding: impl FnOnce() -> String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding());
        }
    }

    fn missing(&mut self, finding: impl FnOnce() -> String) {
        self.missing += 1;
        self.note(finding);
    }

    fn duplicated(&mut self, finding: impl FnOnce() -> String) {
        self.duplicated += 1;
        self.note(finding);
    }

    fn misordered(&mut self, finding: impl FnOnce() -> String) {
        self.misordered += 1;
        self.note(finding);
    }
}

/// The checks, with what they need looked up once.
pub(super) struct Verifier<'a> {
    run: Run<'a>,
    by_id: HashMap<Uuid, usize>,
    /// Acked sends of each nick to others, and to each nick by others, in order of sending.
    mailboxes: Vec<Vec<usize>>,
    group_sends: Vec<usize>,
    /// The verdict so far.
    pub(super) verdict: Verdict,
}

impl<'a> Verifier<'a> {
    /// `run.ids` must be unique.
    pub(super) fn new(run: Run<'a>) -> Self {
        let by_id = run
            .ids
            .iter()
            .enumerate()
            .map(|(send, &id)| (id, send))
            .collect();
        let mut mailboxes = vec![Vec::new(); run.users.len()];
        let mut group_sends = Vec::new();
        for (number, send) in run.sends.iter().enumerate() {
            if run.acks[number].is_none() {
                continue;
            }
            match send.to {
                To::Group => group_sends.push(number),
                To::Nick(to) => {
                    mailboxes[send.from].push(number);
                    mailboxes[to].push(number);
                }
            }
        }
        Self {
            run,
            by_id,
            mailboxes,
            group_sends,
            verdict: Verdict::default(),
        }
    }

    /// Checks the group's timeline, read whole by `reader`. The first row may have a seq above 1:
    /// a member reads from its own join on.
    pub(super) fn group_timeline(&mut self, reader: &str, rows: &[Seen]) {
        let place = format!("group:{} read by {reader}", self.run.group);
        let found = self.rows(&place, rows, |send| send.to == To::Group);
        for &number in &self.group_sends {
            self.verdict
                .expect_at_ack(&place, &self.run, number, found.get(&number));
        }
    }

    /// Checks the whole mailbox of one nick.
    pub(super) fn mailbox(&mut self, nick: NickId, rows: &[Seen]) {
        let place = format!("mailbox:{}", self.run.users[nick]);
        if let Some(first) = rows.first().filter(|first| first.seq != 1) {
            self.verdict
                .misordered(|| format!("{place}: begins at seq {}", first.seq));
        }
        let found = self.rows(&place, rows, |send| {
            send.to == To::Nick(nick) || (send.from == nick && send.to != To::Group)
        });
        for &number in &self.mailboxes[nick] {
            let seen = found.get(&number);
            if self.run.sends[number].from == nick {
                self.verdict.expect_at_ack(&place, &self.run, number, seen);
            } else if seen.is_none() {
                let id = self.run.ids[number];
                self.verdict
                    .missing(|| format!("{place}: no {id} from another user"));
            }
        }
    }

    /// Checks the head of the group's timeline as one member sees it.
    pub(super) fn group_head(&mut self, nick: NickId, head: u64, expected: u64) {
        let group = self.run.group;
        if head < expected {
            self.verdict.missing(|| {
                format!("group:{group}: nick {nick} sees head {head}, the timeline has {expected}")
            });
        } else if head > expected {
            self.verdict.duplicated(|| {
                format!("group:{group}: nick {nick} sees head {head}, the timeline has {expected}")
            });
        }
    }

    /// What every timeline must satisfy: dense seqs, each message once and with its own content,
    /// each sender's messages in the order of sending. Returns where each send was found.
    fn rows(
        &mut self,
        place: &str,
        rows: &[Seen],
        belongs: impl Fn(&Send) -> bool,
    ) -> HashMap<usize, u64> {
        let mut found = HashMap::with_capacity(rows.len());
        let mut last_of_pair: HashMap<(NickId, To), usize> = HashMap::new();
        let mut before: Option<u64> = None;
        for row in rows {
            let seq = row.seq;
            if let Some(before) = before.filter(|before| before + 1 != seq) {
                self.verdict
                    .misordered(|| format!("{place}: seq {seq} follows {before}"));
            }
            before = Some(seq);
            match row.kind {
                SeenKind::Written => continue,
                SeenKind::Refusal { of } => {
                    self.verdict
                        .missing(|| format!("{place}: seq {of} was refused"));
                    continue;
                }
                SeenKind::Sent => {}
            }
            let number = self.by_id.get(&row.client_msg_id).copied();
            let Some(number) = number.filter(|&number| belongs(&self.run.sends[number])) else {
                let id = row.client_msg_id;
                self.verdict
                    .duplicated(|| format!("{place}: nobody sent {id} here (seq {seq})"));
                continue;
            };
            let send = &self.run.sends[number];
            if let Some(first) = found.get(&number) {
                self.verdict
                    .duplicated(|| format!("{place}: seq {seq} repeats seq {first}"));
                continue;
            }
            found.insert(number, seq);
            if row.body != send.text.as_bytes() || row.sender != self.run.users[send.from] {
                self.verdict
                    .missing(|| format!("{place}: seq {seq} has other content"));
            }
            let last = last_of_pair.insert((send.from, send.to), number);
            if last.is_some_and(|last| last > number) {
                self.verdict
                    .misordered(|| format!("{place}: seq {seq} was sent before the last"));
            }
        }
        found
    }
}

impl Verdict {
    /// Checks that an acked send lies in its home timeline where its ack says.
    fn expect_at_ack(&mut self, place: &str, run: &Run<'_>, number: usize, seen: Option<&u64>) {
        let Some(ack) = &run.acks[number] else { return };
        let home = match run.sends[number].to {
            To::Group => format!("group:{}", run.group),
            To::Nick(_) => format!("mailbox:{}", run.users[run.sends[number].from]),
        };
        let (id, acked) = (run.ids[number], ack.seq);
        match seen {
            None => self.missing(|| format!("{place}: no {id}, acked as seq {acked}")),
            Some(&seq) if seq != acked || ack.timeline != home => self.misordered(|| {
                format!(
                    "{place}: {id} is seq {seq}, acked as {} {acked}",
                    ack.timeline
                )
            }),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three nicks (users 101, 102, 103), two group lines and two directed ones by nick 0.
    struct Fixture {
        sends: Vec<Send>,
        ids: Vec<Uuid>,
        acks: Vec<Option<Ack>>,
    }

    impl Fixture {
        fn new() -> Self {
            let send = |to, text: &str| Send {
                from: 0,
                to,
                text: text.to_owned(),
            };
            let sends = vec![
                send(To::Group, "b: one"),
                send(To::Nick(1), "b: one"),
                send(To::Group, "b: two"),
                send(To::Nick(1), "b: two"),
            ];
            let ack = |timeline: &str, seq| {
                Some(Ack {
                    timeline: timeline.to_owned(),
                    seq,
                })
            };
            let acks = vec![
                ack("group:7", 5),
                ack("mailbox:101", 1),
                ack("group:7", 6),
                ack("mailbox:101", 2),
            ];
            Self {
                sends,
                ids: (1..=4).map(Uuid::from_u128).collect(),
                acks,
            }
        }

        fn verifier(&self) -> Verifier<'_> {
            Verifier::new(Run {
                sends: &self.sends,
                ids: &self.ids,
                acks: &self.acks,
                users: &[101, 102, 103],
                group: 7,
            })
        }

        fn row(&self, seq: u64, number: usize) -> Seen {
            Seen {
                seq,
                sender: 101,
                client_msg_id: self.ids[number],
                body: self.sends[number].text.clone().into_bytes(),
                kind: SeenKind::Sent,
            }
        }

        fn written(&self, seq: u64, kind: SeenKind) -> Seen {
            Seen {
                seq,
                sender: 0,
                client_msg_id: Uuid::nil(),
                body: Vec::new(),
                kind,
            }
        }

        fn group(&self) -> Vec<Seen> {
            vec![
                self.written(4, SeenKind::Written),
                self.row(5, 0),
                self.row(6, 2),
            ]
        }

        fn mailbox(&self) -> Vec<Seen> {
            vec![self.row(1, 1), self.row(2, 3)]
        }

        fn counts(&self, group: &[Seen], mailboxes: [&[Seen]; 3]) -> (u64, u64, u64) {
            let mut verifier = self.verifier();
            verifier.group_timeline("node 1", group);
            for (nick, rows) in mailboxes.into_iter().enumerate() {
                verifier.mailbox(nick, rows);
            }
            let verdict = &verifier.verdict;
            let counts = (verdict.missing, verdict.duplicated, verdict.misordered);
            assert_eq!(counts == (0, 0, 0), verdict.findings.is_empty());
            counts
        }

        fn of_group(&self, group: &[Seen]) -> (u64, u64, u64) {
            self.counts(group, [&self.mailbox(), &self.mailbox(), &[]])
        }

        fn of_mailbox(&self, rows: &[Seen]) -> (u64, u64, u64) {
            self.counts(&self.group(), [&self.mailbox(), rows, &[]])
        }
    }

    #[test]
    fn a_whole_run_is_clean() {
        let f = Fixture::new();
        assert_eq!(f.of_group(&f.group()), (0, 0, 0));
    }

    #[test]
    fn a_lost_group_message_is_missing() {
        let f = Fixture::new();
        assert_eq!(f.of_group(&f.group()[..2]), (1, 0, 0));
        let mut gap = f.group();
        gap.remove(1);
        assert_eq!(f.of_group(&gap), (1, 0, 1));
    }

    #[test]
    fn a_lost_delivery_is_missing() {
        let f = Fixture::new();
        assert_eq!(f.of_mailbox(&f.mailbox()[..1]), (1, 0, 0));
        assert_eq!(f.of_mailbox(&[]), (2, 0, 0));
        assert_eq!(f.counts(&f.group(), [&[], &f.mailbox(), &[]]), (2, 0, 0));
    }

    #[test]
    fn a_refused_delivery_is_missing_where_it_was_meant_to_arrive() {
        let f = Fixture::new();
        let mut sender = f.mailbox();
        sender.push(f.written(3, SeenKind::Refusal { of: 2 }));
        assert_eq!(
            f.counts(&f.group(), [&sender, &f.mailbox()[..1], &[]]),
            (2, 0, 0)
        );
    }

    #[test]
    fn a_doubled_message_is_duplicated() {
        let f = Fixture::new();
        let mut group = f.group();
        group.push(f.row(7, 2));
        assert_eq!(f.of_group(&group), (0, 1, 0));
        let mut rows = f.mailbox();
        rows.push(f.row(3, 1));
        assert_eq!(f.of_mailbox(&rows), (0, 1, 0));
    }

    #[test]
    fn a_message_that_nobody_sent_here_is_duplicated() {
        let f = Fixture::new();
        let mut group = f.group();
        group.push(f.row(7, 1));
        assert_eq!(f.of_group(&group), (0, 1, 0), "a 1:1 message in the group");
        let mut stranger = f.row(1, 1);
        stranger.client_msg_id = Uuid::from_u128(99);
        let third = [stranger];
        assert_eq!(
            f.counts(&f.group(), [&f.mailbox(), &f.mailbox(), &third]),
            (0, 1, 0)
        );
    }

    #[test]
    fn swapped_messages_are_misordered() {
        let f = Fixture::new();
        let group = [f.written(4, SeenKind::Written), f.row(5, 2), f.row(6, 0)];
        assert_eq!(
            f.of_group(&group),
            (0, 0, 3),
            "both off their acked seq, one before the other"
        );
        assert_eq!(f.of_mailbox(&[f.row(1, 3), f.row(2, 1)]), (0, 0, 1));
    }

    #[test]
    fn a_gap_and_a_late_begin_are_misordered() {
        let f = Fixture::new();
        assert_eq!(f.of_mailbox(&[f.row(1, 1), f.row(3, 3)]), (0, 0, 1));
        assert_eq!(f.of_mailbox(&[f.row(2, 1), f.row(3, 3)]), (0, 0, 1));
    }

    #[test]
    fn other_content_is_missing() {
        let f = Fixture::new();
        let mut rows = f.mailbox();
        rows[0].body.push(b'!');
        rows[1].sender = 102;
        assert_eq!(f.of_mailbox(&rows), (2, 0, 0));
    }

    #[test]
    fn an_ack_for_another_timeline_is_misordered() {
        let mut f = Fixture::new();
        f.acks[1] = Some(Ack {
            timeline: "mailbox:102".to_owned(),
            seq: 1,
        });
        assert_eq!(f.of_group(&f.group()), (0, 0, 1));
    }

    #[test]
    fn a_send_without_an_ack_may_or_may_not_be_there() {
        let mut f = Fixture::new();
        f.acks[3] = None;
        assert_eq!(f.of_group(&f.group()), (0, 0, 0));
        let short = &f.mailbox()[..1];
        assert_eq!(f.counts(&f.group(), [short, short, &[]]), (0, 0, 0));
    }

    #[test]
    fn a_head_must_be_that_of_the_timeline() {
        let f = Fixture::new();
        let mut verifier = f.verifier();
        verifier.group_head(0, 6, 6);
        assert_eq!(verifier.verdict, Verdict::default());
        verifier.group_head(1, 5, 6);
        verifier.group_head(2, 7, 6);
        assert_eq!(
            (verifier.verdict.missing, verifier.verdict.duplicated),
            (1, 1)
        );
    }

    #[test]
    fn findings_are_bounded_and_counts_are_not() {
        let f = Fixture::new();
        let mut verifier = f.verifier();
        for _ in 0..100 {
            verifier.group_head(1, 5, 6);
        }
        assert_eq!(verifier.verdict.missing, 100);
        assert_eq!(verifier.verdict.findings.len(), FINDINGS_MAX);
    }
}
