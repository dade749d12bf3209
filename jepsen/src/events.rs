//! A history as Jepsen keeps one: two events for each operation, in the order in which they happened.
//!
//! ```text
//! {:index 0, :time 5, :process 1, :type :invoke, :f :send, :value {…}}
//! {:index 1, :time 9, :process 1, :type :ok, :f :send, :value {…}}
//! ```
//!
//! `:fail` did surely not happen, `:info` may have; a process whose operation ended so does nothing any more. Faults
//! are the operations of the process `:nemesis`: `:info` when they begin and when they are healed.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::Context as _;

use crate::edn::Edn;
use crate::history::{Append, Fault, History, Installation, Op, Outcome, Read, Row, Source};
use crate::page::{Page, Synced};
use crate::parallel;
use crate::register::{Call, Touch};

/// Events that are written together.
const PIECE_EVENTS: usize = 16_384;

/// Who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    /// A process of the workload.
    Number(u64),
    /// Who installs faults.
    Nemesis,
}

/// What became of an operation so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It was handed over.
    Invoke,
    /// It happened.
    Ok,
    /// It surely did not.
    Fail,
    /// It may have happened; or a fault came or went.
    Info,
}

/// One event: what can be told of it without its values, which take far longer.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// Nanoseconds since the run began.
    pub time_ns: u64,
    /// Whose.
    pub process: Process,
    /// Begin or end.
    pub kind: Kind,
    /// What was done: `send`, `read`, `sync`, `claim`, `look`, `raise`, or the name of a fault.
    pub f: &'a str,
    /// Why it failed, or may have.
    pub error: Option<&'a str>,
    /// What it belongs to.
    op: &'a Op,
    is_end: bool,
}

impl Kind {
    /// As Jepsen calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Invoke => "invoke",
            Self::Ok => "ok",
            Self::Fail => "fail",
            Self::Info => "info",
        }
    }
}

impl<'a> Event<'a> {
    /// The begin or the end of an operation; `None` of one that took no time.
    fn of(op: &'a Op, is_end: bool) -> Option<Self> {
        let (process, f, times, (end, error)) = match op {
            Op::Append(it) => (
                it.process,
                "send",
                (it.invoked_ns, it.completed_ns),
                end_of(&it.outcome),
            ),
            Op::Read(it) => (
                it.process,
                "read",
                (it.invoked_ns, it.completed_ns),
                end_of(&it.outcome),
            ),
            Op::Page(it) => (
                it.process,
                "sync",
                (it.invoked_ns, it.completed_ns),
                end_of(&it.outcome),
            ),
            Op::Touch(it) => {
                let f = match it.call {
                    Call::Claim => "claim",
                    Call::Look => "look",
                    Call::Raise(_) => "raise",
                };
                (
                    it.process,
                    f,
                    (it.invoked_ns, it.completed_ns),
                    end_of(&it.outcome),
                )
            }
            Op::Fault(it) => {
                let error = match &it.installation {
                    Installation::Installed => None,
                    Installation::Skipped(why) | Installation::Indeterminate(why) => Some(why),
                };
                return Some(Self {
                    time_ns: if is_end { it.healed_ns } else { it.begun_ns },
                    process: Process::Nemesis,
                    kind: Kind::Info,
                    f: &it.kind,
                    error: error.filter(|_| is_end).map(String::as_str),
                    op,
                    is_end,
                });
            }
            Op::Join(_) | Op::Leave(_) | Op::Leaderless(_) | Op::StateHash(_) => return None,
        };
        Some(Self {
            time_ns: if is_end { times.1 } else { times.0 },
            process: Process::Number(process),
            kind: if is_end { end } else { Kind::Invoke },
            f,
            error: error.filter(|_| is_end),
            op,
            is_end,
        })
    }

    /// What pairs its begin with its end: a process does one thing after the other, but of the nemesis two faults may
    /// stand at once, of different kinds.
    pub(crate) fn whose(&self) -> (Process, Option<&'a str>) {
        let is_fault = self.process == Process::Nemesis;
        (self.process, is_fault.then_some(self.f))
    }

    /// What was asked, and once it is known what was answered.
    pub fn value(&self) -> Edn {
        let mut value = match self.op {
            Op::Append(append) => asked_to_send(append),
            Op::Read(read) => asked_to_read(read),
            Op::Page(page) => asked_to_sync(page),
            Op::Touch(touch) => asked_of_register(touch),
            Op::Fault(fault) => target(fault),
            Op::Join(_) | Op::Leave(_) | Op::Leaderless(_) | Op::StateHash(_) => Vec::new(),
        };
        if self.is_end {
            value.extend(answer(self.op));
        }
        Edn::Map(value)
    }

    /// The event as the one with that number.
    pub fn edn(&self, index: u64) -> Edn {
        let process = match self.process {
            Process::Number(number) => Edn::Int(number),
            Process::Nemesis => Edn::keyword("nemesis"),
        };
        let mut pairs = vec![
            ("index", Edn::Int(index)),
            ("time", Edn::Int(self.time_ns)),
            ("process", process),
            ("type", Edn::keyword(self.kind.name())),
            ("f", Edn::keyword(self.f)),
            ("value", self.value()),
        ];
        if let Some(error) = self.error {
            pairs.push(("error", Edn::text(error)));
        }
        Edn::Map(pairs)
    }
}

/// How an operation of a process ended, and why if it was not well.
fn end_of<T>(outcome: &Outcome<T>) -> (Kind, Option<&str>) {
    match outcome {
        Outcome::Ok(_) => (Kind::Ok, None),
        Outcome::Fail(code) => (Kind::Fail, Some(code)),
        Outcome::Unknown(code) => (Kind::Info, Some(code)),
    }
}

/// The events of a history, each made when it is asked for: together they take several times what the history does.
///
/// Left out is what took no time, who may read a group, when shards had no leader and the hashes of the end; and answers to repeats of a send that
/// was acked, of which no times are kept.
#[derive(Debug)]
pub struct Events<'a> {
    history: &'a History,
    /// When, which operation, and whether it is its end.
    order: Vec<(u64, usize, bool)>,
}

impl<'a> Events<'a> {
    /// Of all operations.
    pub fn of(history: &'a History) -> Self {
        let mut order = Vec::with_capacity(2 * history.ops.len());
        for (number, op) in history.ops.iter().enumerate() {
            for is_end in [false, true] {
                let event = Event::of(op, is_end);
                order.extend(event.map(|event| (event.time_ns, number, is_end)));
            }
        }
        // The operations of one process stand in their order: of two of its events at one time, the earlier comes first.
        order.sort_unstable();
        Self { history, order }
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = Event<'a>> + '_ {
        self.some(&self.order)
    }

    fn some<'b>(&self, order: &'b [(u64, usize, bool)]) -> impl Iterator<Item = Event<'a>> + 'b
    where
        'a: 'b,
    {
        let ops = &self.history.ops;
        let ops = order
            .iter()
            .map(|(_, number, is_end)| (ops.get(*number), is_end));
        ops.filter_map(|(op, is_end)| Event::of(op?, *is_end))
    }
}

/// Writes one event a line.
///
/// # Errors
/// When `to` takes no more.
pub fn write(events: &Events<'_>, to: &mut impl Write) -> anyhow::Result<()> {
    let pieces = events.order.chunks(PIECE_EVENTS).zip(0_u64..);
    let text = |(piece, number): (&[_], u64)| {
        let mut text = String::new();
        let first = number * PIECE_EVENTS as u64;
        for (event, index) in events.some(piece).zip(first..) {
            // To a string all can be written.
            let _ = writeln!(text, "{}", event.edn(index));
        }
        text
    };
    parallel::in_order(pieces, text, |text| {
        to.write_all(text.as_bytes()).context("write some events")
    })?;
    to.flush().context("write the events")
}

type Named = Vec<(&'static str, Edn)>;

fn asked_to_send(append: &Append) -> Named {
    vec![
        ("sender", Edn::Int(append.sender)),
        ("to", Edn::text(append.to)),
        ("id", Edn::text(append.id)),
        ("content", Edn::Int(append.content.into())),
    ]
}

fn asked_to_read(read: &Read) -> Named {
    let source = match read.source {
        Source::Leader => Edn::keyword("leader"),
        Source::Node(node) => Edn::Int(node),
        Source::Stale(max_ms) => Edn::Map(vec![("max-staleness-ms", Edn::Int(max_ms.into()))]),
    };
    vec![
        ("timeline", Edn::text(read.timeline)),
        ("source", source),
        ("last", Edn::Bool(read.last)),
    ]
}

fn asked_to_sync(page: &Page) -> Named {
    vec![
        ("user", Edn::Int(page.user)),
        ("device", Edn::text(&page.device)),
        ("gateway", Edn::Int(page.gateway)),
        ("last", Edn::Bool(page.last)),
    ]
}

fn asked_of_register(touch: &Touch) -> Named {
    let mut asked = vec![("register", Edn::text(&touch.register))];
    if let Call::Raise(to) = touch.call {
        asked.push(("to", Edn::Int(to)));
    }
    asked
}

fn target(fault: &Fault) -> Named {
    vec![
        ("fault", Edn::text(&fault.kind)),
        ("node", Edn::maybe(fault.node, Edn::Int)),
    ]
}

/// What was answered, if it was ok; of a fault, whether it was there.
fn answer(op: &Op) -> Named {
    match op {
        Op::Append(Append {
            outcome: Outcome::Ok(acked),
            ..
        }) => vec![
            ("timeline", Edn::text(acked.timeline)),
            ("seq", Edn::Int(acked.seq)),
            ("message-id", Edn::Int(acked.message_id)),
        ],
        Op::Read(Read {
            outcome: Outcome::Ok(view),
            ..
        }) => vec![
            ("after", Edn::Int(view.after)),
            ("head", Edn::Int(view.head)),
            ("rows", Edn::Vector(view.rows.iter().map(row).collect())),
        ],
        Op::Page(Page {
            outcome: Outcome::Ok(Synced { rows, more }),
            ..
        }) => {
            let rows = rows
                .iter()
                .map(|(timeline, it)| Edn::Vector(vec![Edn::text(timeline), row(it)]));
            vec![
                ("rows", Edn::Vector(rows.collect())),
                ("more", Edn::Bool(*more)),
            ]
        }
        Op::Touch(Touch {
            outcome: Outcome::Ok(holds),
            ..
        }) => vec![("holds", Edn::Int(*holds))],
        Op::Fault(fault) => {
            let name = match &fault.installation {
                Installation::Installed => "installed",
                Installation::Skipped(_) => "skipped",
                Installation::Indeterminate(_) => "indeterminate",
            };
            vec![("installation", Edn::keyword(name))]
        }
        _ => Vec::new(),
    }
}

fn row(row: &Row) -> Edn {
    Edn::Map(vec![
        ("seq", Edn::Int(row.seq)),
        ("message-id", Edn::Int(row.message_id)),
        ("sender", Edn::Int(row.sender)),
        ("recipient", Edn::Int(row.recipient)),
        ("id", Edn::maybe(row.id, Edn::text)),
        ("content", Edn::Int(row.content.into())),
        ("refused", Edn::maybe(row.refused, Edn::Int)),
    ])
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::history::{Acked, SendId, Timeline, View};

    fn append(process: u64, times: (u64, u64), outcome: Outcome<Acked>) -> Op {
        Op::Append(Append {
            process,
            invoked_ns: times.0,
            completed_ns: times.1,
            sender: 16,
            to: Timeline::Mailbox(17),
            id: SendId(Uuid::from_u128(7)),
            content: 4,
            outcome,
            repeats: Vec::new(),
            repeat_refused: None,
            reuse: None,
        })
    }

    fn acked(seq: u64) -> Outcome<Acked> {
        Outcome::Ok(Acked {
            timeline: Timeline::Mailbox(16),
            seq,
            message_id: 9,
        })
    }

    #[test]
    fn an_operation_is_two_events_and_a_fault_is_the_nemesis_own() {
        let row = Row {
            seq: 1,
            message_id: 9,
            sender: 16,
            recipient: 17,
            id: None,
            content: 4,
            refused: None,
        };
        let read = Op::Read(Read {
            process: 2,
            invoked_ns: 10,
            completed_ns: 12,
            timeline: Timeline::Mailbox(17),
            source: Source::Node(3),
            last: false,
            staleness_ms: None,
            outcome: Outcome::Ok(View {
                after: 0,
                head: 1,
                rows: vec![row],
            }),
        });
        let fault = Op::Fault(Fault {
            kind: "pause".into(),
            node: Some(2),
            begun_ns: 6,
            healed_ns: 11,
            installation: Installation::Skipped("it did not run".into()),
        });
        let history = History {
            ops: vec![append(1, (5, 9), acked(3)), fault, read],
        };
        let mut text = Vec::new();
        write(&Events::of(&history), &mut text).unwrap();
        let id = Uuid::from_u128(7);
        let sent = format!(":sender 16, :to \"mailbox:17\", :id \"{id}\", :content 4");
        let read = ":timeline \"mailbox:17\", :source 3, :last false";
        let row =
            ":seq 1, :message-id 9, :sender 16, :recipient 17, :id nil, :content 4, :refused nil";
        let target = ":fault \"pause\", :node 2";
        let lines = [
            format!(
                "{{:index 0, :time 5, :process 1, :type :invoke, :f :send, :value {{{sent}}}}}"
            ),
            format!(
                "{{:index 1, :time 6, :process :nemesis, :type :info, :f :pause, :value {{{target}}}}}"
            ),
            format!(
                "{{:index 2, :time 9, :process 1, :type :ok, :f :send, :value {{{sent}, \
                 :timeline \"mailbox:16\", :seq 3, :message-id 9}}}}"
            ),
            format!(
                "{{:index 3, :time 10, :process 2, :type :invoke, :f :read, :value {{{read}}}}}"
            ),
            format!(
                "{{:index 4, :time 11, :process :nemesis, :type :info, :f :pause, :value {{{target}, \
                 :installation :skipped}}, :error \"it did not run\"}}"
            ),
            format!(
                "{{:index 5, :time 12, :process 2, :type :ok, :f :read, :value {{{read}, \
                 :after 0, :head 1, :rows [{{{row}}}]}}}}"
            ),
        ];
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    }

    #[test]
    fn what_may_have_happened_is_no_failure() {
        let unknown = Outcome::Unknown("Unavailable".into());
        let failed = Outcome::Fail("Blocked".into());
        let history = History {
            ops: vec![append(1, (1, 2), unknown), append(2, (3, 4), failed)],
        };
        let events = Events::of(&history);
        let ends: Vec<_> = events.iter().map(|it| (it.kind, it.error)).collect();
        let wanted = [
            (Kind::Invoke, None),
            (Kind::Info, Some("Unavailable")),
            (Kind::Invoke, None),
            (Kind::Fail, Some("Blocked")),
        ];
        assert_eq!(ends, wanted);
    }

    #[test]
    fn a_process_ends_one_operation_before_it_begins_the_next_whatever_the_clock_says() {
        let op = |seq| append(1, (5, 5), acked(seq));
        let history = History {
            ops: (0..100).map(op).collect(),
        };
        let events = Events::of(&history);
        let events: Vec<Event<'_>> = events.iter().collect();
        assert_eq!(events.len(), 200);
        for (pair, seq) in events.chunks(2).zip(0..) {
            let [begun, ended] = pair else {
                panic!("{pair:?}")
            };
            assert_eq!((begun.kind, ended.kind), (Kind::Invoke, Kind::Ok));
            assert!(ended.value().to_string().contains(&format!(":seq {seq},")));
        }
    }
}
