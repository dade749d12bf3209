//! What was asked, what was answered, and when: the only thing a checker looks at.
//!
//! One operation is one line of JSON. Times are nanoseconds of one monotonic clock. An append whose
//! answer never came is `unknown`, never `fail`: it may have happened.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::page::{Join, Leave, Page};
use crate::register::Touch;

/// A timeline: `mailbox:17` or `group:65`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Timeline {
    /// Of a user.
    Mailbox(u64),
    /// Of a group.
    Group(u64),
}

/// A message's `client_msg_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SendId(pub Uuid);

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome<T> {
    /// It happened.
    Ok(T),
    /// It surely did not happen; with the code.
    Fail(String),
    /// It may have happened, or may still; with the code.
    Unknown(String),
}

/// What an ack names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acked {
    /// The home timeline.
    pub timeline: Timeline,
    /// The message's seq there.
    pub seq: u64,
    /// The message's id.
    pub message_id: u64,
}

/// One send, with all its repeats under the same id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Append {
    /// Who did it: one thread of work, whose operations follow each other.
    pub process: u64,
    /// When it was handed over.
    pub invoked_ns: u64,
    /// When its answer came, or it was given up.
    pub completed_ns: u64,
    /// The sending user.
    pub sender: u64,
    /// A recipient's mailbox, or a group.
    pub to: Timeline,
    /// Its identity, with sender and destination.
    pub id: SendId,
    /// crc32 over what was sent.
    pub content: u32,
    /// Its first answer.
    pub outcome: Outcome<Acked>,
    /// Answers to the same send after it was acked.
    pub repeats: Vec<Acked>,
    /// The code with which a repeat was refused, after the send was acked or may have been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat_refused: Option<String>,
    /// What was answered when something else was sent under the same identity after the ack: a code, or [`REUSED`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<String>,
}

/// What [`Append::reuse`] holds if something else was acked under the same identity.
pub const REUSED: &str = "ok";

/// Where a read was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// By the leader, behind a read barrier.
    Leader,
    /// From this node's own state; may be stale.
    Node(u64),
    /// By any node that can show that it lacks nothing acked longer before than so many milliseconds.
    Stale(u32),
}

/// A part of a timeline as a read showed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Rows above this seq were asked for.
    pub after: u64,
    /// The head that the read named.
    pub head: u64,
    /// What came, in the order in which it came.
    pub rows: Vec<Row>,
}

/// A message as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its position.
    pub seq: u64,
    /// Its message id.
    pub message_id: u64,
    /// Who sent it.
    pub sender: u64,
    /// To whom; 0 in a group.
    pub recipient: u64,
    /// `None` for what the store wrote itself.
    pub id: Option<SendId>,
    /// crc32 over what it says.
    pub content: u32,
    /// Of a refusal: the seq of the message that was not delivered.
    pub refused: Option<u64>,
}

/// One read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Who did it.
    pub process: u64,
    /// When it was handed over.
    pub invoked_ns: u64,
    /// When its answer came, or it was given up.
    pub completed_ns: u64,
    /// What was read.
    pub timeline: Timeline,
    /// Where.
    pub source: Source,
    /// Whether it is one of those at the end, of the whole timeline, after all faults had been healed.
    pub last: bool,
    /// By how much it may be stale, as its answer says, in milliseconds; 0: the leader answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staleness_ms: Option<u32>,
    /// What came.
    pub outcome: Outcome<View>,
}

/// Whether a fault was there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Installation {
    /// It was.
    Installed,
    /// It was not, for this reason.
    Skipped(String),
    /// It may have been: the harness failed half-way.
    Indeterminate(String),
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Which, by its name: see [`crate::nemesis::Kind`].
    pub kind: String,
    /// Which node, if it was one.
    pub node: Option<u64>,
    /// When it began.
    pub begun_ns: u64,
    /// When it was healed.
    pub healed_ns: u64,
    /// Whether it was there.
    pub installation: Installation,
}

/// A time in which no node that answered said that it leads a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaderless {
    /// Which.
    pub shard: u32,
    /// Since when.
    pub from_ns: u64,
    /// When one said so again; or when nobody looked any more.
    pub until_ns: u64,
}

/// The state of one replica at the cut that all replicas share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash {
    /// Whose.
    pub node: u64,
    /// Of which shard.
    #[serde(default)]
    pub shard: u32,
    /// At which index.
    pub index: u64,
    /// The hash, in hexadecimal.
    pub hash: String,
}

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Op {
    /// A send.
    Append(Append),
    /// A read.
    Read(Read),
    /// A user may read a group.
    Join(Join),
    /// A user may read no more of a group.
    Leave(Leave),
    /// A device's sync.
    Page(Page),
    /// A call to a register.
    Touch(Touch),
    /// A fault.
    Fault(Fault),
    /// A shard had no leader.
    Leaderless(Leaderless),
    /// A replica's hash.
    StateHash(StateHash),
}

/// All of a run, in the order in which the operations ended; a send that was sent again later stands where that ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// Its lines.
    pub ops: Vec<Op>,
}

impl History {
    /// The sends.
    pub fn appends(&self) -> impl Iterator<Item = &Append> {
        self.ops.iter().filter_map(|op| match op {
            Op::Append(append) => Some(append),
            _ => None,
        })
    }

    /// The reads.
    pub fn reads(&self) -> impl Iterator<Item = &Read> {
        self.ops.iter().filter_map(|op| match op {
            Op::Read(read) => Some(read),
            _ => None,
        })
    }

    /// Who may read which group.
    pub fn joins(&self) -> impl Iterator<Item = &Join> {
        self.ops.iter().filter_map(|op| match op {
            Op::Join(join) => Some(join),
            _ => None,
        })
    }

    /// Who may read no more of which group.
    pub fn leaves(&self) -> impl Iterator<Item = &Leave> {
        self.ops.iter().filter_map(|op| match op {
            Op::Leave(leave) => Some(leave),
            _ => None,
        })
    }

    /// The syncs of all devices, those of one device in their order.
    pub fn pages(&self) -> impl Iterator<Item = &Page> {
        self.ops.iter().filter_map(|op| match op {
            Op::Page(page) => Some(page),
            _ => None,
        })
    }

    /// The calls to registers.
    pub fn touches(&self) -> impl Iterator<Item = &Touch> {
        self.ops.iter().filter_map(|op| match op {
            Op::Touch(touch) => Some(touch),
            _ => None,
        })
    }

    /// The faults.
    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.ops.iter().filter_map(|op| match op {
            Op::Fault(fault) => Some(fault),
            _ => None,
        })
    }

    /// When shards had no leader.
    pub fn leaderless(&self) -> impl Iterator<Item = &Leaderless> {
        self.ops.iter().filter_map(|op| match op {
            Op::Leaderless(it) => Some(it),
            _ => None,
        })
    }

    /// The hashes.
    pub fn state_hashes(&self) -> impl Iterator<Item = &StateHash> {
        self.ops.iter().filter_map(|op| match op {
            Op::StateHash(hash) => Some(hash),
            _ => None,
        })
    }
}

/// Takes operations from all processes while a run goes on.
#[derive(Debug)]
pub struct Recorder {
    start: Instant,
    ops: std::sync::Mutex<Vec<Op>>,
    /// Sends acked, sends of which nobody knows, and faults: for whoever looks on.
    progress: [AtomicU64; 3],
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            ops: std::sync::Mutex::new(Vec::new()),
            progress: Default::default(),
        }
    }
}

impl Recorder {
    /// Nanoseconds since the run began.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes an operation that has ended.
    pub fn record(&self, op: Op) {
        let counter = match &op {
            Op::Append(append) => match append.outcome {
                Outcome::Ok(_) => Some(0),
                Outcome::Unknown(_) => Some(1),
                Outcome::Fail(_) => None,
            },
            Op::Fault(_) => Some(2),
            Op::Read(_)
            | Op::Join(_)
            | Op::Leave(_)
            | Op::Page(_)
            | Op::Touch(_)
            | Op::Leaderless(_)
            | Op::StateHash(_) => None,
        };
        if let Some(counter) = counter {
            self.progress[counter].fetch_add(1, Relaxed);
        }
        self.lock().push(op);
    }

    /// Sends acked, sends of which nobody knows, and faults so far.
    pub fn progress(&self) -> (u64, u64, u64) {
        let [acked, unknown, faults] = &self.progress;
        (
            acked.load(Relaxed),
            unknown.load(Relaxed),
            faults.load(Relaxed),
        )
    }

    /// Everything taken so far; the recorder begins anew.
    pub fn take(&self) -> History {
        History {
            ops: std::mem::take(&mut *self.lock()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Op>> {
        // A process that panicked has pushed its operation or has not; both are fine.
        self.ops
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Timeline {
    /// The user, or the group.
    pub fn owner(self) -> u64 {
        match self {
            Self::Mailbox(owner) | Self::Group(owner) => owner,
        }
    }
}

impl<T> Outcome<T> {
    /// Whether it surely did not happen.
    pub fn is_fail(&self) -> bool {
        matches!(self, Self::Fail(_))
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mailbox(user) => write!(f, "mailbox:{user}"),
            Self::Group(group) => write!(f, "group:{group}"),
        }
    }
}

impl FromStr for Timeline {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text.split_once(':') {
            Some(("mailbox", user)) => Ok(Self::Mailbox(user.parse().context("read the user")?)),
            Some(("group", group)) => Ok(Self::Group(group.parse().context("read the group")?)),
            _ => bail!("{text} is no timeline"),
        }
    }
}

impl fmt::Display for SendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SendId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_is_read_as_it_is_written() {
        for timeline in [Timeline::Mailbox(u64::MAX), Timeline::Group(0)] {
            assert_eq!(timeline.to_string().parse::<Timeline>().unwrap(), timeline);
        }
        for text in ["mailbox", "mailbox:", "feed:1", "group:-1"] {
            assert!(text.parse::<Timeline>().is_err(), "{text}");
        }
    }
}
