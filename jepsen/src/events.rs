//! A history as Jepsen keeps one: two events for each operation, in the order in which they happened.
//!
//! ```text
//! {:index 0, :time 5, :process 1, :type :invoke, :f :send, :value {…}}
//! {:index 1, :time 9, :process 1, :type :ok, :f :send, :value {…}}
//! ```
//!
//! `:fail` did surely not happen, `:info` may have; a process whose operation ended so does nothing any more. Faults
//! are the operations of the process `:nemesis`: `:info` when they begin and when they are healed.

use std::io::Write;

use anyhow::Context as _;

use crate::edn::Edn;
use crate::history::{Append, Fault, History, Installation, Op, Outcome, Read, Row, Source};
use crate::page::{Page, Synced};
use crate::register::{Call, Touch};

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

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds since the run began.
    pub time_ns: u64,
    /// Whose.
    pub process: Process,
    /// Begin or end.
    pub kind: Kind,
    /// What was done: `send`, `read`, `sync`, `claim`, `look`, `raise`, or the name of a fault.
    pub f: String,
    /// What was asked, and once it is known what was answered.
    pub value: Edn,
    /// Why it failed, or may have.
    pub error: Option<String>,
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

impl Event {
    /// What pairs its begin with its end: a process does one thing after the other, but of the nemesis two faults may
    /// stand at once, of different kinds.
    pub(crate) fn whose(&self) -> (Process, Option<String>) {
        let is_fault = self.process == Process::Nemesis;
        (self.process, is_fault.then(|| self.f.clone()))
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
            ("f", Edn::keyword(&self.f)),
            ("value", self.value.clone()),
        ];
        if let Some(error) = &self.error {
            pairs.push(("error", Edn::text(error)));
        }
        Edn::Map(pairs)
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
            let (begun_ns, ended_ns) = match op {
                Op::Append(append) => (append.invoked_ns, append.completed_ns),
                Op::Read(read) => (read.invoked_ns, read.completed_ns),
                Op::Page(page) => (page.invoked_ns, page.completed_ns),
                Op::Touch(touch) => (touch.invoked_ns, touch.completed_ns),
                Op::Fault(fault) => (fault.begun_ns, fault.healed_ns),
                Op::Join(_) | Op::Leave(_) | Op::Leaderless(_) | Op::StateHash(_) => continue,
            };
            order.extend([(begun_ns, number, false), (ended_ns, number, true)]);
        }
        // The operations of one process stand in their order: of two of its events at one time, the earlier comes first.
        order.sort_unstable();
        Self { history, order }
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        let ops = &self.history.ops;
        self.order.iter().filter_map(|(_, number, is_end)| {
            let [begun, ended] = both_of(ops.get(*number)?)?;
            Some(if *is_end { ended } else { begun })
        })
    }
}

/// Begin and end of an operation that took time.
fn both_of(op: &Op) -> Option<[Event; 2]> {
    match op {
        Op::Append(append) => Some(sent(append)),
        Op::Read(read) => Some(was_read(read)),
        Op::Page(page) => Some(synced(page)),
        Op::Touch(touch) => Some(touched(touch)),
        Op::Fault(fault) => Some(installed(fault)),
        Op::Join(_) | Op::Leave(_) | Op::Leaderless(_) | Op::StateHash(_) => None,
    }
}

/// Writes one event a line.
///
/// # Errors
/// When `to` takes no more.
pub fn write(events: &Events<'_>, to: &mut impl Write) -> anyhow::Result<()> {
    for (event, index) in events.iter().zip(0..) {
        writeln!(to, "{}", event.edn(index)).context("write an event")?;
    }
    to.flush().context("write the events")
}

/// Begin and end of one operation of a process of the workload. `answer` is put behind `asked`.
fn both<T>(
    f: &str,
    process: u64,
    (begun_ns, ended_ns): (u64, u64),
    asked: Vec<(&'static str, Edn)>,
    outcome: &Outcome<T>,
    answer: impl FnOnce(&T) -> Vec<(&'static str, Edn)>,
) -> [Event; 2] {
    let begun = Event {
        time_ns: begun_ns,
        process: Process::Number(process),
        kind: Kind::Invoke,
        f: f.to_owned(),
        value: Edn::Map(asked.clone()),
        error: None,
    };
    let mut value = asked;
    let (kind, error) = match outcome {
        Outcome::Ok(answered) => {
            value.extend(answer(answered));
            (Kind::Ok, None)
        }
        Outcome::Fail(code) => (Kind::Fail, Some(code.clone())),
        Outcome::Unknown(code) => (Kind::Info, Some(code.clone())),
    };
    let ended = Event {
        time_ns: ended_ns,
        kind,
        value: Edn::Map(value),
        error,
        ..begun.clone()
    };
    [begun, ended]
}

fn sent(append: &Append) -> [Event; 2] {
    let asked = vec![
        ("sender", Edn::Int(append.sender)),
        ("to", Edn::text(append.to)),
        ("id", Edn::text(append.id)),
        ("content", Edn::Int(append.content.into())),
    ];
    let times = (append.invoked_ns, append.completed_ns);
    both(
        "send",
        append.process,
        times,
        asked,
        &append.outcome,
        |acked| {
            vec![
                ("timeline", Edn::text(acked.timeline)),
                ("seq", Edn::Int(acked.seq)),
                ("message-id", Edn::Int(acked.message_id)),
            ]
        },
    )
}

fn was_read(read: &Read) -> [Event; 2] {
    let source = match read.source {
        Source::Leader => Edn::keyword("leader"),
        Source::Node(node) => Edn::Int(node),
        Source::Stale(max_ms) => Edn::Map(vec![("max-staleness-ms", Edn::Int(max_ms.into()))]),
    };
    let asked = vec![
        ("timeline", Edn::text(read.timeline)),
        ("source", source),
        ("last", Edn::Bool(read.last)),
    ];
    let times = (read.invoked_ns, read.completed_ns);
    both("read", read.process, times, asked, &read.outcome, |view| {
        vec![
            ("after", Edn::Int(view.after)),
            ("head", Edn::Int(view.head)),
            ("rows", Edn::Vector(view.rows.iter().map(row).collect())),
        ]
    })
}

fn synced(page: &Page) -> [Event; 2] {
    let asked = vec![
        ("user", Edn::Int(page.user)),
        ("device", Edn::text(&page.device)),
        ("gateway", Edn::Int(page.gateway)),
        ("last", Edn::Bool(page.last)),
    ];
    let times = (page.invoked_ns, page.completed_ns);
    both("sync", page.process, times, asked, &page.outcome, |page| {
        let Synced { rows, more } = page;
        let rows = rows
            .iter()
            .map(|(timeline, it)| Edn::Vector(vec![Edn::text(timeline), row(it)]));
        vec![
            ("rows", Edn::Vector(rows.collect())),
            ("more", Edn::Bool(*more)),
        ]
    })
}

fn touched(touch: &Touch) -> [Event; 2] {
    let mut asked = vec![("register", Edn::text(&touch.register))];
    let f = match touch.call {
        Call::Claim => "claim",
        Call::Look => "look",
        Call::Raise(to) => {
            asked.push(("to", Edn::Int(to)));
            "raise"
        }
    };
    let times = (touch.invoked_ns, touch.completed_ns);
    both(f, touch.process, times, asked, &touch.outcome, |holds| {
        vec![("holds", Edn::Int(*holds))]
    })
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

fn installed(fault: &Fault) -> [Event; 2] {
    let target = vec![
        ("fault", Edn::text(&fault.kind)),
        ("node", Edn::maybe(fault.node, Edn::Int)),
    ];
    let begun = Event {
        time_ns: fault.begun_ns,
        process: Process::Nemesis,
        kind: Kind::Info,
        f: fault.kind.clone(),
        value: Edn::Map(target.clone()),
        error: None,
    };
    let (name, error) = match &fault.installation {
        Installation::Installed => ("installed", None),
        Installation::Skipped(why) => ("skipped", Some(why.clone())),
        Installation::Indeterminate(why) => ("indeterminate", Some(why.clone())),
    };
    let mut value = target;
    value.push(("installation", Edn::keyword(name)));
    let healed = Event {
        time_ns: fault.healed_ns,
        value: Edn::Map(value),
        error,
        ..begun.clone()
    };
    [begun, healed]
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
        let events: Vec<Event> = Events::of(&history).iter().collect();
        let ends: Vec<_> = events
            .iter()
            .map(|it| (it.kind, it.error.as_deref()))
            .collect();
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
        let events: Vec<Event> = Events::of(&history).iter().collect();
        assert_eq!(events.len(), 200);
        for (pair, seq) in events.chunks(2).zip(0..) {
            let [begun, ended] = pair else {
                panic!("{pair:?}")
            };
            assert_eq!((begun.kind, ended.kind), (Kind::Invoke, Kind::Ok));
            assert!(ended.value.to_string().contains(&format!(":seq {seq},")));
        }
    }
}
