//! Exactly once: a command is judged by its caller's id before it may change anything.
//!
//! The checks, in this order, each a function of the state alone:
//!
//! 0. the slot that answers is not served here: `WrongShard` or `WrongOwner`, to be asked elsewhere;
//! 1. the id's time is before the slot's floor: `IdExpired`, whether or not its row is still here;
//! 2. a row has the same identity: its reply if the same was asked, else `IdReused`;
//! 3. the id's time is more than [`AHEAD_MAX_MS`] ahead of replicated time: `IdFromFuture`;
//! 4. else the procedure decides. Only an accepted command leaves a row.
//!
//! The floor trails replicated time by the dedup window, rounded down to a whole hour, and only
//! rises: it is a row, not a computation, so that a wider window or a slot from elsewhere cannot
//! lower it and let a dropped id in again.
//!
//! A row's value: `hash of what was asked u64 | kind of reply u8 | its numbers`.

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::command::{Refusal, Reply};
use crate::decode::{Malformed, Reader};
use crate::error::Error;
use crate::id::{GroupId, MessageId, Seq, SlotId, TimelineId, TimelineKind, UserId};
use crate::key::{DedupKey, Destination, HOUR_MS, StateKey};
use crate::procedure::{No, number};
use crate::state::Context;
use crate::table;

/// How far an id may be ahead of replicated time: phones have wrong clocks.
pub(crate) const AHEAD_MAX_MS: u64 = 10 * 60 * 1000;

/// Longest value of a dedup row.
const VALUE_LEN_MAX: usize = 25;

const SENT: u8 = 1;
const USER_REGISTERED: u8 = 2;
const GROUP_CREATED: u8 = 3;
const JOINED: u8 = 4;
const LEFT: u8 = 5;
const READ_MARK: u8 = 6;
const CURSOR: u8 = 7;
const DEAD_LETTER_REQUEUED: u8 = 8;
const DEAD_LETTER_DROPPED: u8 = 9;

/// The floors of a shard's slots as apply last read or raised them. Empty after an open or an
/// install: the next entry reads them from their rows.
#[derive(Debug, Default)]
pub(crate) struct Floors {
    raised_to: Option<u64>,
    /// Indexed by slot; those of slots that the shard does not hold mean nothing.
    by_slot: Vec<u64>,
    /// Of the slots that it holds.
    lowest: u64,
}

impl Floors {
    /// The lowest of them, if they are known.
    pub(crate) fn lowest(&self) -> Option<u64> {
        self.raised_to.is_some().then_some(self.lowest)
    }

    /// The slot's floor, in milliseconds since the Unix epoch.
    fn of(&self, slot: SlotId) -> u64 {
        self.by_slot[usize::from(slot.0)]
    }
}

/// Raises the floors of all slots to where replicated time wants them. Called at the beginning
/// of each entry, and when the window has changed; has work to do once an hour.
pub(crate) fn raise_floors(ctx: &mut Context<'_>) -> Result<(), Error> {
    let Ok(options) = ctx.cluster_options() else {
        // Without a window there is no floor, and no command that needs one.
        return Ok(());
    };
    let wanted = ctx.time_ms().saturating_sub(options.dedup_window_ms) / HOUR_MS * HOUR_MS;
    if ctx.floors().raised_to == Some(wanted) {
        return Ok(());
    }
    let slots = ctx.slots();
    let end = slots.last().map_or(0, |last| usize::from(last.0) + 1);
    let (mut by_slot, mut lowest) = (vec![0; end], u64::MAX);
    for slot in slots {
        let key = StateKey::DedupFloor { slot };
        let mut floor = number(ctx, &key)?;
        // Of a slot on its way nothing changes any more; its rows are still to be shown.
        if wanted > floor && ctx.holds(slot) {
            ctx.put(&key, table::encode_u64(wanted));
            floor = wanted;
        }
        by_slot[usize::from(slot.0)] = floor;
        lowest = lowest.min(floor);
    }
    *ctx.floors() = Floors {
        raised_to: Some(wanted),
        by_slot,
        lowest,
    };
    Ok(())
}

/// Hashes what a command asks: nothing in it may depend on who relayed, timed or retried it.
pub(crate) fn hash_ask(tag: u8, fields: &[u64], bytes: &[u8]) -> u64 {
    const FIELDS_MAX: usize = 6;
    let mut asked = [0; 1 + 8 * FIELDS_MAX + 16];
    asked[0] = tag;
    for (place, field) in asked[1..].chunks_exact_mut(8).zip(fields) {
        place.copy_from_slice(&field.to_be_bytes());
    }
    asked[1 + 8 * FIELDS_MAX..].copy_from_slice(&xxh3_128(bytes).to_be_bytes());
    let low = xxh3_128(&asked) & u128::from(u64::MAX);
    u64::try_from(low).expect("64 bits")
}

/// A command's identity and what it asks.
pub(crate) struct Ask {
    slot: SlotId,
    key: DedupKey,
    hash: u64,
}

impl Ask {
    /// `slot` is the one that answers the command.
    pub(crate) fn new(
        slot: SlotId,
        id: Uuid,
        sender: UserId,
        destination: Destination,
        hash: u64,
    ) -> Ask {
        Ask {
            slot,
            key: DedupKey {
                id,
                sender,
                destination,
            },
            hash,
        }
    }

    /// The first reply, if this is a repeat; nothing, if the procedure is to decide.
    pub(crate) fn judge(&self, ctx: &mut Context<'_>) -> Result<Option<Reply>, No> {
        ctx.require_held(self.slot)?;
        let id_ms = self.key.time_ms();
        let floor_ms = ctx.floors().of(self.slot);
        if id_ms < floor_ms {
            return Err(Refusal::IdExpired { id_ms, floor_ms }.into());
        }
        let found = ctx.dedup(self.slot, &self.key)?;
        #[cfg(feature = "planted")]
        let found = found.filter(|_| {
            let is_old = mailbox_planted::wall_ms() > id_ms + 2000;
            !(mailbox_planted::is("dedup-by-wall-clock") && is_old)
        });
        if let Some(value) = found {
            let corrupt = |malformed| Error::corrupt_row(&self.key.encode(), malformed);
            let (hash, reply) = self.decode(value.as_ref()).map_err(corrupt)?;
            if hash != self.hash {
                return Err(Refusal::IdReused.into());
            }
            return Ok(Some(reply));
        }
        let now_ms = ctx.time_ms();
        if id_ms > now_ms.saturating_add(AHEAD_MAX_MS) {
            let ahead_max_ms = AHEAD_MAX_MS;
            return Err(Refusal::IdFromFuture {
                id_ms,
                now_ms,
                ahead_max_ms,
            }
            .into());
        }
        Ok(None)
    }

    /// Notes the reply of an accepted command, for its repeats.
    pub(crate) fn accept(&self, ctx: &mut Context<'_>, reply: Reply) -> Reply {
        let (kind, numbers) = match &reply {
            Reply::Sent {
                timeline,
                seq,
                message_id,
            } => {
                assert_eq!(
                    *timeline,
                    self.home(),
                    "a send is acked by its home timeline"
                );
                (SENT, [seq.0, message_id.0])
            }
            Reply::UserRegistered { user } => (USER_REGISTERED, [user.0, 0]),
            Reply::GroupCreated { group, seq } => (GROUP_CREATED, [group.0, seq.0]),
            Reply::Joined { join_seq } => (JOINED, [join_seq.0, 0]),
            Reply::Left { left_seq } => (LEFT, [left_seq.0, 0]),
            Reply::ReadMark { seq } => (READ_MARK, [seq.0, 0]),
            Reply::Cursor { seq } => (CURSOR, [seq.0, 0]),
            Reply::DeadLetterRequeued { seq, message_id } => {
                (DEAD_LETTER_REQUEUED, [seq.0, message_id.0])
            }
            Reply::DeadLetterDropped => (DEAD_LETTER_DROPPED, [0, 0]),
            Reply::ClusterOptions { .. }
            | Reply::Cut { .. }
            | Reply::Delivered { .. }
            | Reply::LanesAcked
            | Reply::Map { .. }
            | Reply::SlotMoved { .. }
            | Reply::ShardSplit { .. }
            | Reply::Refused(_) => {
                unreachable!("none is remembered")
            }
        };
        let mut value = [0; VALUE_LEN_MAX];
        value[..8].copy_from_slice(&self.hash.to_be_bytes());
        value[8] = kind;
        value[9..17].copy_from_slice(&numbers[0].to_be_bytes());
        value[17..].copy_from_slice(&numbers[1].to_be_bytes());
        let len = match kind {
            SENT | GROUP_CREATED | DEAD_LETTER_REQUEUED => VALUE_LEN_MAX,
            _ => 17,
        };
        ctx.put_dedup(self.slot, self.key, &value[..len]);
        reply
    }

    fn decode(&self, value: &[u8]) -> Result<(u64, Reply), Malformed> {
        let mut reader = Reader::new("dedup row", value);
        let hash = reader.u64()?;
        let kind = reader.u8()?;
        let first = reader.u64()?;
        let seq = Seq(first);
        let reply = match kind {
            SENT => {
                let message_id = MessageId(reader.u64()?);
                Reply::Sent {
                    timeline: self.home(),
                    seq,
                    message_id,
                }
            }
            USER_REGISTERED => Reply::UserRegistered {
                user: UserId(first),
            },
            GROUP_CREATED => Reply::GroupCreated {
                group: GroupId(first),
                seq: Seq(reader.u64()?),
            },
            JOINED => Reply::Joined { join_seq: seq },
            LEFT => Reply::Left { left_seq: seq },
            READ_MARK => Reply::ReadMark { seq },
            CURSOR => Reply::Cursor { seq },
            DEAD_LETTER_REQUEUED => Reply::DeadLetterRequeued {
                seq,
                message_id: MessageId(reader.u64()?),
            },
            DEAD_LETTER_DROPPED => Reply::DeadLetterDropped,
            _ => return Err(reader.unknown(kind)),
        };
        reader.end()?;
        Ok((hash, reply))
    }

    /// Of a send: the timeline that assigns the acked seq.
    fn home(&self) -> TimelineId {
        match self.key.destination.as_timeline() {
            Some(timeline) if timeline.kind == TimelineKind::Group => timeline,
            Some(_) | None => self.key.sender.mailbox(),
        }
    }
}
