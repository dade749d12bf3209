//! Moving a slot from one shard to another: what each shard knows about it, and the rules.
//!
//! ```text
//!   destination                     source
//! 1 BeginImport(e)                  serves
//! 2 stage a copy, files a0          serves; export of a flush, `export.rs`
//! 3                                 Freeze(e): serves nothing of the slot from here on
//! 4 stage what has changed since    export of any flush that has the freeze: always the same rows
//! 5 CommitImport(e): serves
//! 6                                 Drop(e): a redirect stays
//!   or, instead of 5:
//! 5 AbortImport(e)
//! 6                                 Unfreeze(e'), e' > e: serves
//! ```
//!
//! Whoever drives this keeps nothing: every step is idempotent by (slot, epoch) and answered with where
//! the slot stands, and a step out of turn is refused with the same. What each shard knows is a
//! [`SlotTable`] in its applied row: so it changes with the rows, is in every flush and snapshot, and is
//! judged in apply alone. An entry is never removed: a slot that left keeps its redirect.
//!
//! *One owner.* A frozen slot serves nothing until a later epoch unfreezes it, and the driver unfreezes
//! only after the destination has applied AbortImport(e), which no CommitImport(e) can follow. The digest
//! that a commit names is that of the frozen rows, which nothing changes, so what goes live is the state at
//! the freeze: floor, lanes, marks and outbox are rows like any other. Replicated time and last message id
//! are the shard's; the freeze notes them and the commit carries them.
//!
//! *Staged rows* lie in a range of their own, under a map row with the digest of all that is in it
//! (`range.rs`), which comes in the one ingest that brings the rows: a copy is whole or not there, and a
//! later part moves the digest in the ingest that brings it. The commit makes this range the live one in
//! apply; the map row follows in the flush that carries the commit, with the applied row. A replica without
//! these very rows cannot apply the commit: its apply stops before the entry and says what it waits for
//! ([`ImportWait`]). Whoever owns it fetches them from a peer that has not applied the commit yet
//! ([`Shard::export_staged`](crate::Shard::export_staged)) or from the source, whose slot stays frozen until every
//! replica of the destination has the commit in its files; or a snapshot of the shard from one that has applied it.
//!
//! *Crashes*, step by step. 1, 3, 5, 6: replayed from the log, and 5 finds its staged range again, since
//! the files name it until the flush that makes it live. 2, 4: files half written are lost with the staging
//! directory; before the ingest there is the former copy, after it the new one. A copy whose import is not
//! over survives an open; it is over once the table, as flushed, says so. After 6 the range is dead in the
//! flush that carries the drop and removed after that flush is ingested, or at the next open. A slot that
//! comes back while rows of its former life are still in memtables waits for their flush: memtables name
//! slots, not ranges.

use std::collections::{BTreeMap, BTreeSet};

use crate::command::{MoveSlot, Refusal};
use crate::decode::{Malformed, Reader};
use crate::id::{MessageId, ShardId, SlotId};

/// Where a slot stands in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotStanding {
    /// The shard serves it.
    Held,
    /// The shard has its rows and serves nothing of it: it is on its way.
    Frozen {
        /// Where to.
        to: ShardId,
        /// Replicated time at the freeze: what the commit carries.
        time_ms: u64,
        /// The shard's last message id at the freeze: what the commit carries.
        last_message_id: MessageId,
    },
    /// Another shard has it, or had it under this epoch.
    Gone {
        /// Which one.
        to: ShardId,
    },
    /// An import has begun: another shard still has it.
    Importing {
        /// Which one.
        from: ShardId,
        /// The entry that began it.
        since: u64,
    },
}

impl std::fmt::Display for SlotStanding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SlotStanding::Held => f.write_str("held"),
            SlotStanding::Frozen { to, .. } => write!(f, "frozen on its way to shard {to}"),
            SlotStanding::Gone { to } => write!(f, "gone to shard {to}"),
            SlotStanding::Importing { from, .. } => write!(f, "being imported from shard {from}"),
        }
    }
}

/// Why apply stops before an entry: it commits an import that this replica cannot carry out yet. Nothing
/// is wrong; the same entry is to be given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportWait {
    /// The rows with this digest are not staged here. Stage them from a peer, or install a snapshot.
    Rows {
        /// The slot.
        slot: SlotId,
        /// The import's.
        epoch: u64,
        /// Of the rows.
        digest: u128,
    },
    /// The slot was here before, and the drop that ended that has not been flushed. Flush.
    Flush {
        /// The slot.
        slot: SlotId,
    },
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It was due.
    Done,
    /// It had been done before.
    Repeat,
}

/// What a step is judged by, besides the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepContext {
    /// The shard that judges.
    pub(crate) shard: ShardId,
    /// Of the cluster.
    pub(crate) slot_count: u16,
    /// The entry.
    pub(crate) index: u64,
    /// Replicated time.
    pub(crate) time_ms: u64,
    /// The shard's.
    pub(crate) last_message_id: MessageId,
    /// The shard has the slot's rows: what counts for a slot that has never moved.
    pub(crate) has_rows: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SlotEntry {
    epoch: u64,
    standing: SlotStanding,
}

/// Where the slots stand that have ever moved to or from a shard. Those that never have are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotTable {
    slots: BTreeMap<SlotId, SlotEntry>,
    /// How many are frozen: mostly none, which spares a look-up with every command.
    frozen: usize,
    importing: usize,
}

const HELD: u8 = 1;
const FROZEN: u8 = 2;
const GONE: u8 = 3;
const IMPORTING: u8 = 4;

impl SlotTable {
    /// Epoch and standing of a slot that has moved.
    pub fn get(&self, slot: SlotId) -> Option<(u64, SlotStanding)> {
        let entry = self.slots.get(&slot)?;
        Some((entry.epoch, entry.standing))
    }

    /// All slots that have moved.
    pub fn iter(&self) -> impl Iterator<Item = (SlotId, u64, SlotStanding)> {
        let slots = self.slots.iter();
        slots.map(|(slot, entry)| (*slot, entry.epoch, entry.standing))
    }

    /// No slot has ever moved.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(crate) fn is_frozen(&self, slot: SlotId) -> bool {
        self.frozen > 0 && matches!(self.get(slot), Some((_, SlotStanding::Frozen { .. })))
    }

    pub(crate) fn is_importing(&self) -> bool {
        self.importing > 0
    }

    /// Whom to ask instead, and from which epoch on, if this shard does not serve a slot and knows.
    pub(crate) fn redirect(&self, slot: SlotId) -> Option<(ShardId, u64)> {
        let (epoch, standing) = self.get(slot)?;
        match standing {
            SlotStanding::Held => None,
            SlotStanding::Frozen { to, .. } | SlotStanding::Gone { to } => Some((to, epoch)),
            SlotStanding::Importing { from, .. } => Some((from, epoch)),
        }
    }

    /// What a slot that is asked for here, and not served, is answered with.
    pub(crate) fn refusal(&self, slot: SlotId) -> Refusal {
        match self.redirect(slot) {
            Some((shard, epoch)) => Refusal::WrongOwner { slot, shard, epoch },
            None => Refusal::WrongShard { slot },
        }
    }

    /// An import of this epoch is no longer, and will never be, under way.
    pub fn import_is_over(&self, slot: SlotId, epoch: u64) -> bool {
        match self.get(slot) {
            None => false,
            Some((found, SlotStanding::Importing { .. })) => found > epoch,
            Some((found, _)) => found >= epoch,
        }
    }

    /// Some slot stands here under a later epoch than in the other table.
    pub(crate) fn is_ahead_of(&self, other: &SlotTable) -> bool {
        let mut slots = self.iter();
        slots.any(|(slot, epoch, _)| other.get(slot).is_none_or(|(before, _)| before < epoch))
    }

    /// The slots that a shard has rows of, once this table counts for it: those that never moved are
    /// where they were. The table must not be [behind](SlotTable::is_ahead_of) the one before.
    pub(crate) fn slots_after(&self, before: impl IntoIterator<Item = SlotId>) -> BTreeSet<SlotId> {
        let mut slots: BTreeSet<SlotId> = before.into_iter().collect();
        for (slot, _, standing) in self.iter() {
            match standing {
                SlotStanding::Held | SlotStanding::Frozen { .. } => slots.insert(slot),
                SlotStanding::Gone { .. } | SlotStanding::Importing { .. } => slots.remove(&slot),
            };
        }
        slots
    }

    /// Judges a step, and takes it if it is due. A function of table, call and context alone.
    pub(crate) fn step(&mut self, call: &MoveSlot, at: &StepContext) -> Result<Step, Refusal> {
        let slot = call.slot();
        if slot.0 >= at.slot_count {
            return Err(Refusal::WrongShard { slot });
        }
        if let Some(shard) = call.other().filter(|other| *other == at.shard) {
            return Err(Refusal::MoveToItself { slot, shard });
        }
        let found = match self.get(slot) {
            Some(found) => Some(found),
            None => at.has_rows.then_some((0, SlotStanding::Held)),
        };
        let standing = match next(call, found, at) {
            Next::Standing(standing) => standing,
            Next::Repeat => return Ok(Step::Repeat),
            Next::No => {
                let Some((epoch, standing)) = found else {
                    return Err(Refusal::WrongShard { slot });
                };
                return Err(Refusal::SlotStands {
                    slot,
                    epoch,
                    standing,
                });
            }
        };
        self.set(slot, call.epoch(), standing);
        Ok(Step::Done)
    }

    pub(crate) fn set(&mut self, slot: SlotId, epoch: u64, standing: SlotStanding) {
        self.slots.insert(slot, SlotEntry { epoch, standing });
        let count = |wanted: fn(&SlotStanding) -> bool| {
            let standings = self.slots.values().map(|entry| entry.standing);
            standings.filter(wanted).count()
        };
        self.frozen = count(|standing| matches!(standing, SlotStanding::Frozen { .. }));
        self.importing = count(|standing| matches!(standing, SlotStanding::Importing { .. }));
    }

    /// `(slot u16 | epoch u64 | standing u8 | its fields)*`: a frozen one's shard u32, time u64 and
    /// message id u64; a gone one's shard u32; an importing one's shard u32 and index u64.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for (slot, epoch, standing) in self.iter() {
            out.extend_from_slice(&slot.0.to_be_bytes());
            out.extend_from_slice(&epoch.to_be_bytes());
            match standing {
                SlotStanding::Held => out.push(HELD),
                SlotStanding::Frozen {
                    to,
                    time_ms,
                    last_message_id,
                } => {
                    out.push(FROZEN);
                    out.extend_from_slice(&to.0.to_be_bytes());
                    out.extend_from_slice(&time_ms.to_be_bytes());
                    out.extend_from_slice(&last_message_id.0.to_be_bytes());
                }
                SlotStanding::Gone { to } => {
                    out.push(GONE);
                    out.extend_from_slice(&to.0.to_be_bytes());
                }
                SlotStanding::Importing { from, since } => {
                    out.push(IMPORTING);
                    out.extend_from_slice(&from.0.to_be_bytes());
                    out.extend_from_slice(&since.to_be_bytes());
                }
            }
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<SlotTable, Malformed> {
        let mut reader = Reader::new("slot table", bytes);
        let mut table = SlotTable::default();
        while !reader.is_empty() {
            let slot = SlotId(reader.u16()?);
            let epoch = reader.u64()?;
            let standing = match reader.u8()? {
                HELD => SlotStanding::Held,
                FROZEN => SlotStanding::Frozen {
                    to: ShardId(reader.u32()?),
                    time_ms: reader.u64()?,
                    last_message_id: MessageId(reader.u64()?),
                },
                GONE => SlotStanding::Gone {
                    to: ShardId(reader.u32()?),
                },
                IMPORTING => SlotStanding::Importing {
                    from: ShardId(reader.u32()?),
                    since: reader.u64()?,
                },
                number => return Err(reader.unknown(number)),
            };
            table.set(slot, epoch, standing);
        }
        Ok(table)
    }
}

enum Next {
    Standing(SlotStanding),
    Repeat,
    No,
}

/// What a step makes of a slot's standing. `found`: nothing, if it has never been here.
fn next(call: &MoveSlot, found: Option<(u64, SlotStanding)>, at: &StepContext) -> Next {
    use SlotStanding::{Frozen, Gone, Held, Importing};
    match (*call, found) {
        (MoveSlot::Freeze { epoch, to, .. }, Some((before, Held))) if epoch > before => {
            Next::Standing(Frozen {
                to,
                time_ms: at.time_ms,
                last_message_id: at.last_message_id,
            })
        }
        (
            MoveSlot::Freeze { epoch, to, .. },
            Some((before, Frozen { to: other, .. } | Gone { to: other })),
        ) if (epoch, to) == (before, other) => Next::Repeat,
        (MoveSlot::Unfreeze { epoch, .. }, Some((before, Frozen { .. }))) if epoch > before => {
            Next::Standing(Held)
        }
        (MoveSlot::Unfreeze { epoch, .. }, Some((before, Held))) if epoch == before => Next::Repeat,
        (MoveSlot::Drop { epoch, .. }, Some((before, Frozen { to, .. }))) if epoch == before => {
            Next::Standing(Gone { to })
        }
        (MoveSlot::Drop { epoch, .. }, Some((before, Gone { .. }))) if epoch == before => {
            Next::Repeat
        }
        (MoveSlot::BeginImport { epoch, from, .. }, found) => {
            let since = at.index;
            match found {
                None => Next::Standing(Importing { from, since }),
                Some((before, Gone { .. })) if epoch > before => {
                    Next::Standing(Importing { from, since })
                }
                Some((before, Importing { from: other, .. }))
                    if (epoch, from) == (before, other) =>
                {
                    Next::Repeat
                }
                Some((before, Held)) if epoch == before => Next::Repeat,
                Some(_) => Next::No,
            }
        }
        // Rows are judged before an entry begins, by what had begun before it.
        (MoveSlot::CommitImport { epoch, .. }, Some((before, Importing { since, .. })))
            if epoch == before && since < at.index =>
        {
            Next::Standing(Held)
        }
        (MoveSlot::CommitImport { epoch, .. }, Some((before, Held))) if epoch == before => {
            Next::Repeat
        }
        (MoveSlot::AbortImport { epoch, from, .. }, found) => match found {
            // Before its begin: which is refused from now on.
            None => Next::Standing(Gone { to: from }),
            Some((before, Gone { .. })) if epoch > before => Next::Standing(Gone { to: from }),
            Some((before, Importing { .. })) if epoch == before => {
                Next::Standing(Gone { to: from })
            }
            Some((before, Gone { .. })) if epoch == before => Next::Repeat,
            Some(_) => Next::No,
        },
        _ => Next::No,
    }
}

#[cfg(test)]
pub(crate) mod tests;
