//! Dead letters: 1:1 messages that the slot of their recipient has refused, kept for operators.
//!
//! A refusal is recorded once, in the sender's mailbox, and stays true whatever becomes of the letter: who
//! has sent it is told that it did not arrive. The letter is a copy beside that: the message's own row in the
//! slot's dead-letter timeline, written in the entry in which the lane's mark passes it, and one state row:
//!
//! ```text
//! recipient 8 | home seq 8 | code 1 | refused at, ms 8 | standing 1 | of the standing | crc 4
//! 0 waiting:                                               nothing more
//! 1 requeued:  at, ms 8 | seq 8 in the recipient's mailbox | message id 8
//! 2 dropped:   at, ms 8
//! ```
//!
//! The crc covers slot and seq, then all before it. The message row has its own and is never written again;
//! what an operator does with a letter overwrites the state row.
//!
//! What belongs here is what an operator could mend, or wants to see: every refused message. An item with a
//! bad crc does not (it is sent again), nor does a refusal (it is never answered), nor what a slot tells
//! another about users, groups and members (which is never refused).
//!
//! A slot keeps `dead_letters_max` letters. When they are more, the oldest are trimmed, waiting or not: the
//! newest say what goes wrong now, no letter is the only copy of its message, and a forgotten pile must not
//! hide what comes after it. Those that were trimmed while they waited are counted as *unseen*: a rising
//! count says that nobody looks, or that something floods the slot.

use bytes::Bytes;
use crc32fast::Hasher;

use crate::base::ReadView;
use crate::decode::{Malformed, Reader};
use crate::error::Error;
use crate::id::{MessageId, Seq, SlotId, UserId};
use crate::key::StateKey;
use crate::range::Ranges;
use crate::row::{RefusalCode, Row};
use crate::shard::Shard;
use crate::view;

const WAITING: u8 = 0;
const REQUEUED: u8 = 1;
const DROPPED: u8 = 2;
const CRC_LEN: usize = 4;

/// More letters than a slot can ever have had. Its multiple by the number of slots still is a number.
const WRITTEN_MAX: u64 = 1 << 48;

/// What became of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterStanding {
    /// Nothing yet.
    Waiting,
    /// It is a new message of its recipient's mailbox.
    Requeued {
        /// When, in replicated time.
        at_ms: u64,
        /// Its seq there.
        seq: Seq,
        /// Its new message id.
        message_id: MessageId,
    },
    /// An operator is done with it.
    Dropped {
        /// When, in replicated time.
        at_ms: u64,
    },
}

impl std::fmt::Display for LetterStanding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LetterStanding::Waiting => f.write_str("waiting"),
            LetterStanding::Requeued { seq, .. } => {
                write!(f, "requeued as seq {seq} of its recipient's mailbox")
            }
            LetterStanding::Dropped { .. } => f.write_str("dropped"),
        }
    }
}

/// A dead letter as readers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The message, with its seq in the dead-letter timeline. Its message id, its time and its flags are
    /// those of the sender's.
    pub row: Row,
    /// Its seq in the sender's mailbox.
    pub home_seq: Seq,
    /// Why the recipient did not get it.
    pub code: RefusalCode,
    /// When it was refused, in replicated time of the recipient's shard.
    pub refused_at_ms: u64,
    /// What became of it.
    pub standing: LetterStanding,
}

/// Some of a slot's dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterPage {
    /// In seq order, dense.
    pub letters: Vec<DeadLetter>,
    /// Where the next page begins; nothing if this one goes as far as the slot did when it was asked for.
    pub next: Option<Seq>,
    /// Letters at or below it are no longer there.
    pub trim_point: Seq,
    /// The newest one that was there then, on this page or not.
    pub head: Seq,
}

/// How many dead letters there have been, and what became of them. None of the numbers falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterTotals {
    /// All that were ever recorded.
    pub written: u64,
    /// Those that were trimmed while they waited.
    pub unseen: u64,
    /// Those that were requeued.
    pub requeued: u64,
    /// Those that were dropped.
    pub dropped: u64,
}

impl DeadLetterTotals {
    /// Those that wait for an operator.
    pub fn waiting(&self) -> u64 {
        self.written - self.unseen - self.requeued - self.dropped
    }

    /// `written u64 | unseen u64 | requeued u64 | dropped u64`.
    pub(crate) fn encode(&self) -> Bytes {
        let numbers = [self.written, self.unseen, self.requeued, self.dropped];
        let bytes = numbers.into_iter().flat_map(u64::to_be_bytes);
        bytes.collect::<Vec<u8>>().into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<DeadLetterTotals, Malformed> {
        let mut reader = Reader::new("dead letter totals", bytes);
        let totals = DeadLetterTotals {
            written: reader.u64()?,
            unseen: reader.u64()?,
            requeued: reader.u64()?,
            dropped: reader.u64()?,
        };
        reader.end()?;
        let ended = [totals.unseen, totals.requeued, totals.dropped];
        let ended = ended.into_iter().try_fold(0, u64::checked_add);
        if totals.written <= WRITTEN_MAX && ended.is_some_and(|ended| ended <= totals.written) {
            return Ok(totals);
        }
        Err(reader.unknown(totals.written))
    }

    /// Takes in another slot's.
    pub(crate) fn add(&mut self, other: DeadLetterTotals) {
        self.written += other.written;
        self.unseen += other.unseen;
        self.requeued += other.requeued;
        self.dropped += other.dropped;
    }

    /// Takes out again what was added before.
    pub(crate) fn subtract(&mut self, other: DeadLetterTotals) {
        self.written -= other.written;
        self.unseen -= other.unseen;
        self.requeued -= other.requeued;
        self.dropped -= other.dropped;
    }
}

/// What the files hold for all slots together: what a shard begins with in memory.
pub(crate) fn read_totals(
    files: &dyn ReadView,
    ranges: &Ranges,
) -> Result<DeadLetterTotals, Error> {
    let mut sum = DeadLetterTotals::default();
    for (slot, range) in ranges.by_slot() {
        let key = StateKey::DeadLetterTotals { slot };
        let value = view::get_state(files, range, &key.encode())?;
        sum.add(totals_value(&key, value)?);
    }
    Ok(sum)
}

/// A slot without a row has had none.
pub(crate) fn totals_value(
    key: &StateKey,
    value: Option<Bytes>,
) -> Result<DeadLetterTotals, Error> {
    match value {
        Some(value) => DeadLetterTotals::decode(&value)
            .map_err(|malformed| Error::corrupt_row(key.encode().as_slice(), malformed)),
        None => Ok(DeadLetterTotals::default()),
    }
}

/// What stands beside a letter's message row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) recipient: UserId,
    pub(crate) home_seq: Seq,
    pub(crate) code: RefusalCode,
    pub(crate) refused_at_ms: u64,
    pub(crate) standing: LetterStanding,
}

impl Letter {
    pub(crate) fn encode(&self, slot: SlotId, seq: Seq) -> Bytes {
        let mut out = Vec::with_capacity(54);
        let mut put = |number: u64| out.extend_from_slice(&number.to_be_bytes());
        put(self.recipient.0);
        put(self.home_seq.0);
        out.push(self.code as u8);
        out.extend_from_slice(&self.refused_at_ms.to_be_bytes());
        let (kind, numbers, len) = match self.standing {
            LetterStanding::Waiting => (WAITING, [0; 3], 0),
            LetterStanding::Requeued {
                at_ms,
                seq,
                message_id,
            } => (REQUEUED, [at_ms, seq.0, message_id.0], 3),
            LetterStanding::Dropped { at_ms } => (DROPPED, [at_ms, 0, 0], 1),
        };
        out.push(kind);
        for number in &numbers[..len] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        let crc = crc(slot, seq, &out);
        out.extend_from_slice(&crc.to_be_bytes());
        out.into()
    }

    pub(crate) fn decode(slot: SlotId, seq: Seq, bytes: &[u8]) -> Result<Letter, Malformed> {
        let what = "dead letter";
        let Some((covered, stored)) = bytes.split_last_chunk::<CRC_LEN>() else {
            let (needed, left) = (CRC_LEN, bytes.len());
            return Err(Malformed::TooShort { what, needed, left });
        };
        let (stored, computed) = (u32::from_be_bytes(*stored), crc(slot, seq, covered));
        if stored != computed {
            let (stored, computed) = (u64::from(stored), u64::from(computed));
            return Err(Malformed::Checksum {
                what,
                stored,
                computed,
            });
        }
        let mut reader = Reader::new(what, covered);
        let (recipient, home_seq) = (UserId(reader.u64()?), Seq(reader.u64()?));
        let code = reader.u8()?;
        let code = RefusalCode::from_u8(code).ok_or_else(|| reader.unknown(code))?;
        let refused_at_ms = reader.u64()?;
        let standing = match reader.u8()? {
            WAITING => LetterStanding::Waiting,
            REQUEUED => LetterStanding::Requeued {
                at_ms: reader.u64()?,
                seq: Seq(reader.u64()?),
                message_id: MessageId(reader.u64()?),
            },
            DROPPED => LetterStanding::Dropped {
                at_ms: reader.u64()?,
            },
            standing => return Err(reader.unknown(standing)),
        };
        reader.end()?;
        Ok(Letter {
            recipient,
            home_seq,
            code,
            refused_at_ms,
            standing,
        })
    }
}

fn crc(slot: SlotId, seq: Seq, bytes: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&slot.0.to_be_bytes());
    hasher.update(&seq.0.to_be_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// Checks the value of a row of dead letters, for scrubs and installs.
pub(crate) fn check_row(key: &StateKey, value: &Bytes) -> Result<(), Malformed> {
    match key {
        StateKey::DeadLetter { slot, seq } => Letter::decode(*slot, *seq, value).map(|_| ()),
        StateKey::DeadLetterTotals { .. } => DeadLetterTotals::decode(value).map(|_| ()),
        _ => Ok(()),
    }
}

impl Shard {
    /// Dead letters of a slot from `from` (inclusive) on, in seq order: at most `limit`, and no more after
    /// `bytes` of bodies; the first one comes whatever its length. Those that an apply trims meanwhile may be
    /// missing from the page's beginning.
    ///
    /// # Errors
    /// A storage fault or a row that fails its checksum; a stopped shard; a slot that is not here.
    pub fn dead_letters(
        &self,
        slot: SlotId,
        from: Seq,
        limit: usize,
        bytes: usize,
    ) -> Result<DeadLetterPage, Error> {
        let timeline = slot.dead_letters();
        let head = self.head(timeline)?;
        let rows = loop {
            let trimmed = self.trim_point(timeline)?;
            let rows = self.scan(timeline, from, limit, bytes);
            // Where rows went between the scan's look at the trim point and its look at them, it has found a
            // gap, or nothing before the rows in memory.
            let gone = match &rows {
                Ok(rows) => rows.is_empty(),
                Err(Error::MissingRow { .. }) => true,
                Err(_) => false,
            };
            if !gone || self.trim_point(timeline)? == trimmed {
                break rows?;
            }
        };
        let reached = rows.last().map(|row| row.seq);
        let mut letters = Vec::with_capacity(rows.len());
        for row in rows {
            let key = StateKey::DeadLetter { slot, seq: row.seq };
            let Some(value) = self.get(&key)? else {
                // Trimmed since.
                continue;
            };
            let letter = Letter::decode(slot, row.seq, &value)
                .map_err(|malformed| Error::corrupt_row(key.encode().as_slice(), malformed))?;
            letters.push(DeadLetter {
                row: Row {
                    recipient: letter.recipient,
                    ..row
                },
                home_seq: letter.home_seq,
                code: letter.code,
                refused_at_ms: letter.refused_at_ms,
                standing: letter.standing,
            });
        }
        // What stands beside them was read one after the other: those that had gone by the end go all.
        let trim_point = self.trim_point(timeline)?;
        letters.retain(|letter| letter.row.seq > trim_point);
        Ok(DeadLetterPage {
            letters,
            next: reached.filter(|reached| *reached < head).map(Seq::next),
            trim_point,
            head: head.max(reached.unwrap_or_default()),
        })
    }

    /// The dead letters of one slot, counted. What all slots of the shard have together is in memory:
    /// [`crate::ShardMetrics::dead_letters`].
    ///
    /// # Errors
    /// As [`Shard::dead_letters`].
    pub fn dead_letter_totals(&self, slot: SlotId) -> Result<DeadLetterTotals, Error> {
        let key = StateKey::DeadLetterTotals { slot };
        totals_value(&key, self.get(&key)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn standing() -> impl Strategy<Value = LetterStanding> {
        let requeued = any::<(u64, u64, u64)>().prop_map(|(at_ms, seq, id)| {
            let (seq, message_id) = (Seq(seq), MessageId(id));
            LetterStanding::Requeued {
                at_ms,
                seq,
                message_id,
            }
        });
        let dropped = any::<u64>().prop_map(|at_ms| LetterStanding::Dropped { at_ms });
        prop_oneof![Just(LetterStanding::Waiting), requeued, dropped]
    }

    fn letter() -> impl Strategy<Value = Letter> {
        (any::<(u64, u64, u64)>(), standing()).prop_map(|((recipient, home, at), standing)| {
            Letter {
                recipient: UserId(recipient),
                home_seq: Seq(home),
                code: RefusalCode::UnknownUser,
                refused_at_ms: at,
                standing,
            }
        })
    }

    proptest! {
        #[test]
        fn letters_are_read_as_written_and_in_their_place_only(letter in letter(), slot: u16, seq: u64) {
            let (slot, seq) = (SlotId(slot), Seq(seq));
            let bytes = letter.encode(slot, seq);
            prop_assert_eq!(Letter::decode(slot, seq, &bytes), Ok(letter));
            let other = Seq(seq.0.wrapping_add(1));
            prop_assert!(Letter::decode(slot, other, &bytes).is_err());
            let other = SlotId(slot.0 ^ 1);
            prop_assert!(Letter::decode(other, seq, &bytes).is_err());
        }

        #[test]
        fn a_flipped_bit_is_noticed(letter in letter(), bit: proptest::sample::Index) {
            let mut bytes = letter.encode(SlotId(3), Seq(4)).to_vec();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Letter::decode(SlotId(3), Seq(4), &bytes).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Letter::decode(SlotId(3), Seq(4), &bytes);
            if let Ok(totals) = DeadLetterTotals::decode(&bytes) {
                prop_assert_eq!(totals.encode(), bytes);
                prop_assert!(totals.waiting() <= totals.written);
            }
        }
    }

    #[test]
    fn the_encoding_never_changes() {
        let (at_ms, seq, message_id) = (5, Seq(6), MessageId(7));
        let requeued = LetterStanding::Requeued {
            at_ms,
            seq,
            message_id,
        };
        for (standing, of_it, crc) in [
            (LetterStanding::Waiting, "00", "11ab1b24"),
            (
                requeued,
                "01 0000000000000005 0000000000000006 0000000000000007",
                "6c130fc7",
            ),
            (
                LetterStanding::Dropped { at_ms },
                "02 0000000000000005",
                "0d00f8e7",
            ),
        ] {
            let letter = Letter {
                recipient: UserId(0x0102),
                home_seq: Seq(3),
                code: RefusalCode::UnknownUser,
                refused_at_ms: 4,
                standing,
            };
            let fields = "0000000000000102 0000000000000003 0f 0000000000000004";
            let text = format!("{fields} {of_it} {crc}");
            assert_eq!(
                hex(&letter.encode(SlotId(8), Seq(9))),
                text.replace(' ', "")
            );
        }
    }

    #[test]
    fn the_encoding_of_totals_never_changes() {
        let totals = DeadLetterTotals {
            written: 9,
            unseen: 1,
            requeued: 2,
            dropped: 3,
        };
        assert_eq!(totals.waiting(), 3);
        let text = "0000000000000009 0000000000000001 0000000000000002 0000000000000003";
        assert_eq!(hex(&totals.encode()), text.replace(' ', ""));
        assert_eq!(DeadLetterTotals::decode(&totals.encode()), Ok(totals));
    }

    #[test]
    fn totals_that_no_slot_can_have_are_refused() {
        let decoded = |written, dropped| {
            let totals = DeadLetterTotals {
                written,
                dropped,
                ..DeadLetterTotals::default()
            };
            DeadLetterTotals::decode(&totals.encode())
        };
        assert!(decoded(WRITTEN_MAX, WRITTEN_MAX).is_ok());
        assert!(decoded(WRITTEN_MAX + 1, 0).is_err());
        assert!(decoded(2, 3).is_err());
        assert!(decoded(2, u64::MAX).is_err());
        // As many slots as there can be, each with as many as there can be.
        assert!(WRITTEN_MAX.checked_mul(u16::MAX.into()).is_some());
    }
}
