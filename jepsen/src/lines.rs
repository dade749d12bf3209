//! A history as lines of JSON, one for each operation: written once, and read back as fast as all cores can.
//!
//! A run of an hour has gigabytes of them. So what a line holds is decided by its first name, `op`, and the rest is
//! decoded as just that; and what is kept as text (timelines, ids) is read without a copy of it.

use std::fmt;
use std::io::{BufRead, Read as _, Write};
use std::marker::PhantomData;
use std::str::FromStr;

use anyhow::Context as _;
use serde::de::{Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::history::{History, Op, SendId, Timeline};
use crate::parallel;
use crate::register::Register;

/// Bytes of lines that are decoded together, at least.
const PIECE_BYTES: u64 = 4 << 20;

impl History {
    /// Writes one operation a line.
    ///
    /// # Errors
    /// When `to` takes no more.
    pub fn write(&self, to: &mut impl Write) -> anyhow::Result<()> {
        for op in &self.ops {
            serde_json::to_writer(&mut *to, op).context("encode an operation")?;
            to.write_all(b"\n").context("write an operation")?;
        }
        to.flush().context("write the history")
    }

    /// Reads what [`History::write`] wrote.
    ///
    /// # Errors
    /// When it cannot be read, or a line is none of ours; with its number.
    pub fn read(mut from: impl BufRead) -> anyhow::Result<Self> {
        let mut ops = Vec::new();
        let pieces = std::iter::from_fn(|| next_piece(&mut from).transpose());
        let ops_of = |piece: std::io::Result<Vec<u8>>| {
            let piece = piece.context("read the lines")?;
            let lines = piece.split_inclusive(|byte| *byte == b'\n');
            anyhow::Ok(lines.map(decode).collect::<Vec<_>>())
        };
        parallel::in_order(pieces, ops_of, |decoded| {
            for op in decoded? {
                let number = ops.len() + 1;
                ops.push(op.with_context(|| format!("decode line {number}"))?);
            }
            Ok(())
        })?;
        Ok(Self { ops })
    }
}

/// Whole lines; `None` at the end.
fn next_piece(from: &mut impl BufRead) -> std::io::Result<Option<Vec<u8>>> {
    let mut piece = Vec::new();
    from.by_ref().take(PIECE_BYTES).read_to_end(&mut piece)?;
    from.read_until(b'\n', &mut piece)?;
    Ok(Some(piece).filter(|piece| !piece.is_empty()))
}

/// What [`Op`] itself would decode, without its look at all of the line before it knows what it is.
fn decode(line: &[u8]) -> serde_json::Result<Op> {
    let tag = line.strip_prefix(br#"{"op":""#);
    let tag = tag.and_then(|rest| rest.split(|byte| *byte == b'"').next());
    match tag {
        Some(b"append") => serde_json::from_slice(line).map(Op::Append),
        Some(b"read") => serde_json::from_slice(line).map(Op::Read),
        Some(b"page") => serde_json::from_slice(line).map(Op::Page),
        Some(b"touch") => serde_json::from_slice(line).map(Op::Touch),
        _ => serde_json::from_slice(line),
    }
}

/// Reads a value from text that it does not keep.
struct Text<T>(PhantomData<T>);

impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name as text")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// What is kept as it is shown.
macro_rules! kept_as_text {
    ($($kept:ty),+) => {$(
        impl Serialize for $kept {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $kept {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_str(Text(PhantomData))
            }
        }
    )+};
}

kept_as_text!(Timeline, SendId, Register);

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::history::{
        Acked, Append, Fault, Installation, Leaderless, Outcome, Read, Row, Source, StateHash, View,
    };
    use crate::page::{Leave, Page, Synced};
    use crate::register::{Call, Touch};

    #[test]
    fn a_history_survives_its_file() {
        let acked = Acked {
            timeline: Timeline::Group(65),
            seq: 3,
            message_id: 1 << 60,
        };
        let append = Append {
            process: 1,
            invoked_ns: 5,
            completed_ns: 9,
            sender: 17,
            to: Timeline::Group(65),
            id: SendId(Uuid::from_u128(7)),
            content: 4,
            outcome: Outcome::Ok(acked),
            repeats: vec![acked],
            repeat_refused: None,
            reuse: Some("IdReused".into()),
        };
        let unknown = Append {
            outcome: Outcome::Unknown("Unavailable".into()),
            ..append.clone()
        };
        let row = Row {
            seq: 1,
            message_id: 2,
            sender: 17,
            recipient: 0,
            id: Some(append.id),
            content: 4,
            refused: None,
        };
        let read = Read {
            process: 2,
            invoked_ns: 6,
            completed_ns: 7,
            timeline: Timeline::Mailbox(17),
            source: Source::Node(3),
            last: true,
            staleness_ms: None,
            outcome: Outcome::Ok(View {
                after: 0,
                head: 1,
                rows: vec![row],
            }),
        };
        let fault = Fault {
            kind: "pause".into(),
            node: Some(2),
            begun_ns: 1,
            healed_ns: 2,
            installation: Installation::Skipped("no leader".into()),
        };

        let history = History {
            ops: vec![
                Op::Append(append),
                Op::Append(unknown),
                Op::Read(read),
                Op::Fault(fault),
            ],
        };
        let mut bytes = Vec::new();
        history.write(&mut bytes).unwrap();
        assert_eq!(History::read(&bytes[..]).unwrap(), history);
        let mut broken = bytes.clone();
        broken.extend(b"{\"op\":\"append\"}\n");
        let error = History::read(&broken[..]).unwrap_err();
        assert!(format!("{error:#}").contains("line 5"), "{error:#}");
    }

    #[test]
    fn what_is_not_of_timelines_survives_its_file_too() {
        let (process, invoked_ns, completed_ns) = (1, 2, 3);
        let touch = |register, call, outcome| {
            Op::Touch(Touch {
                process,
                invoked_ns,
                completed_ns,
                register,
                call,
                outcome,
            })
        };
        let handle = Register::Handle("tom".into());
        let mark = Register::ReadMark { user: 1, peer: 2 };
        let stale = Read {
            process,
            invoked_ns,
            completed_ns,
            timeline: Timeline::Group(4),
            source: Source::Stale(200),
            last: false,
            staleness_ms: Some(7),
            outcome: Outcome::Fail("Unavailable".into()),
        };
        let hash = StateHash {
            node: 1,
            shard: 1,
            index: 8,
            hash: "ff".into(),
        };
        let history = History {
            ops: vec![
                touch(handle, Call::Claim, Outcome::Ok(16)),
                touch(mark, Call::Raise(5), Outcome::Unknown("Unavailable".into())),
                Op::Read(stale),
                Op::Leave(Leave {
                    user: 1,
                    group: 4,
                    last: 9,
                }),
                Op::StateHash(hash),
                Op::Leaderless(Leaderless {
                    shard: 3,
                    from_ns: 1,
                    until_ns: 2,
                }),
            ],
        };
        let mut bytes = Vec::new();
        history.write(&mut bytes).unwrap();
        assert_eq!(History::read(&bytes[..]).unwrap(), history);
    }

    #[test]
    fn a_line_is_decoded_as_the_whole_of_it_would_be_wherever_its_name_stands() {
        let page = Op::Page(Page {
            process: 1,
            invoked_ns: 2,
            completed_ns: 3,
            user: 17,
            device: "phone".into(),
            gateway: 1,
            last: true,
            outcome: Outcome::Ok(Synced {
                rows: Vec::new(),
                more: false,
            }),
        });
        let line = serde_json::to_string(&page).unwrap();
        assert_eq!(decode(line.as_bytes()).unwrap(), page);
        let name = "\"op\":\"page\",";
        let moved = line
            .replace(name, "")
            .replace("\"process\"", &format!("{name}\"process\""));
        let last = format!(
            "{{\"process\":1,{}",
            &moved[1..].replace("\"process\":1,", "")
        );
        assert_ne!(last, line);
        assert_eq!(decode(last.as_bytes()).unwrap(), page);
    }

    #[test]
    fn more_than_a_piece_is_read_in_order_and_an_end_without_a_line_break_too() {
        let hash = |index| {
            Op::StateHash(StateHash {
                node: 1,
                shard: 1,
                index,
                hash: "f".repeat(1000),
            })
        };
        let history = History {
            ops: (0..3 * PIECE_BYTES / 1000).map(hash).collect(),
        };
        let mut bytes = Vec::new();
        history.write(&mut bytes).unwrap();
        assert!(bytes.len() as u64 > 3 * PIECE_BYTES);
        assert_eq!(History::read(&bytes[..]).unwrap(), history);
        bytes.pop();
        assert_eq!(History::read(&bytes[..]).unwrap(), history);
    }
}
