//! The state of the modelled cluster.

use std::collections::BTreeSet;

/// A slot: what sends and receives, and what a lane is named by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotId(pub u8);

/// A shard: a container of slots with one log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShardId(pub u8);

impl SlotId {
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl ShardId {
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A lane, named by its slots and so the same wherever they live.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LaneId {
    /// Where its items come from.
    pub source: SlotId,
    /// Where they go.
    pub destination: SlotId,
}

/// What rides a lane. A slot numbers its sends from 1, so (source, number) names a message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Item {
    /// A message to a user of the destination, or to one who is not there.
    Message {
        /// Its number among the source's sends.
        number: u8,
        /// Whether the recipient exists.
        known: bool,
    },
    /// The refusal of a message, on its way back to the slot that sent it. Never itself answered.
    Refusal {
        /// The refused message's number among the sends of the lane's *destination*.
        number: u8,
    },
}

/// The source's end of a lane.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Lane {
    /// Greatest lane seq that the destination has reported.
    pub acked: u8,
    /// The outbox: items `acked + 1 ..`.
    pub rows: Vec<Item>,
}

impl Lane {
    /// First lane seq not yet given out.
    #[must_use]
    pub fn next(&self) -> u8 {
        self.acked + u8::try_from(self.rows.len()).expect("a scene has few sends") + 1
    }

    /// The item at a lane seq, unless it is acked or not yet there.
    #[must_use]
    pub fn row(&self, seq: u8) -> Option<Item> {
        let place = seq.checked_sub(self.acked + 1)?;
        self.rows.get(usize::from(place)).copied()
    }

    /// Raises the acked point, which makes the rows below it absent. It never falls.
    pub(crate) fn ack(&mut self, seq: u8) {
        let gone = usize::from(seq.saturating_sub(self.acked)).min(self.rows.len());
        self.rows.drain(..gone);
        self.acked = self.acked.max(seq);
    }
}

/// Everything that belongs to a slot and moves with it. Vectors are indexed by the other slot.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SlotState {
    /// The dedup rows: sends 1 to this one were accepted.
    pub accepted: u8,
    /// Lanes from here, with their outbox.
    pub lanes: Vec<Lane>,
    /// High-water marks of the lanes to here.
    pub marks: Vec<u8>,
    /// The mailboxes, by the slot that the messages came from.
    pub received: Vec<Vec<u8>>,
    /// Refusals recorded for own sends, by the slot that refused.
    pub refused: Vec<Vec<u8>>,
}

impl SlotState {
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            accepted: 0,
            lanes: vec![Lane::default(); slots],
            marks: vec![0; slots],
            received: vec![Vec::new(); slots],
            refused: vec![Vec::new(); slots],
        }
    }
}

/// One shard's hold on a slot.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Holding {
    /// The slot's epoch as this shard knows it.
    pub epoch: u8,
    /// Frozen for a move: it serves nothing, and waits to be dropped or thawed.
    pub frozen: bool,
    /// The slot's rows.
    pub state: SlotState,
}

/// What a leader has proposed and a majority has not yet made durable.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Proposal {
    /// Deliver one item.
    Deliver {
        /// Its lane.
        lane: LaneId,
        /// Its lane seq.
        seq: u8,
        /// The item.
        item: Item,
    },
    /// Raise a lane's acked point.
    Ack {
        /// The lane.
        lane: LaneId,
        /// What the destination reported.
        mark: u8,
    },
}

/// One shard: its applied state and its leader's proposals.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Shard {
    /// By slot: what it holds, if it does.
    pub holdings: Vec<Option<Holding>>,
    /// The uncommitted end of the log.
    pub proposals: Vec<Proposal>,
    /// Effects whose mark is already raised: empty unless [`crate::Flaw::MarkBeforeEffect`] is planted.
    pub owed: Vec<(LaneId, Item)>,
}

/// One try to move a slot.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Attempt {
    /// Which slot.
    pub slot: SlotId,
    /// From where.
    pub from: ShardId,
    /// To where.
    pub to: ShardId,
    /// The epoch under which the destination would hold the slot. Even: the odd one after it thaws the source.
    pub epoch: u8,
    /// The copy staged at the destination.
    pub staged: Option<SlotState>,
    /// The staged copy is the frozen source's.
    pub sealed: bool,
    /// The source has applied the freeze.
    pub frozen: bool,
    /// The destination has applied the import.
    pub imported: bool,
    /// The destination has applied the abort.
    pub aborted: bool,
}

impl Attempt {
    pub(crate) fn is_open(&self) -> bool {
        !self.imported && !self.aborted
    }
}

/// All that was ever sent between shards.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Wire {
    /// Items shipped.
    pub items: BTreeSet<(LaneId, u8, Item)>,
    /// Marks reported.
    pub marks: BTreeSet<(LaneId, u8)>,
}

/// What an onlooker with perfect sight has seen happen; no rule of the protocol reads it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Ledger {
    /// By source: numbers of the sends accepted, in order.
    pub accepted: Vec<Vec<u8>>,
    /// By destination, then source: numbers of the messages delivered, at whatever shard.
    pub delivered: Vec<Vec<Vec<u8>>>,
    /// By the slot that sent, then the one that refused: numbers refused.
    pub refused: Vec<Vec<Vec<u8>>>,
}

/// The whole of it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cluster {
    /// By shard id.
    pub shards: Vec<Shard>,
    /// The meta shard's memory of moves, oldest first.
    pub attempts: Vec<Attempt>,
    /// Between the shards.
    pub wire: Wire,
    /// The onlooker's notes.
    pub ledger: Ledger,
}

impl Cluster {
    /// The shards at which a slot is live. More than one is two owners.
    pub fn owners(&self, slot: SlotId) -> impl Iterator<Item = ShardId> + '_ {
        (0u8..)
            .map(ShardId)
            .zip(&self.shards)
            .filter_map(move |(id, shard)| shard.live(slot).map(|_| id))
    }

    /// A slot's rows where they count: where it is live, or else where it is frozen under the greatest epoch.
    #[must_use]
    pub fn slot(&self, slot: SlotId) -> Option<&SlotState> {
        self.shards
            .iter()
            .filter_map(|shard| shard.holdings[slot.index()].as_ref())
            .max_by_key(|holding| (!holding.frozen, holding.epoch))
            .map(|holding| &holding.state)
    }
}

impl Shard {
    /// The slot's rows, if this shard may serve them.
    #[must_use]
    pub fn live(&self, slot: SlotId) -> Option<&SlotState> {
        self.holdings[slot.index()]
            .as_ref()
            .filter(|holding| !holding.frozen)
            .map(|holding| &holding.state)
    }

    pub(crate) fn live_mut(&mut self, slot: SlotId) -> Option<&mut SlotState> {
        self.holdings[slot.index()]
            .as_mut()
            .filter(|holding| !holding.frozen)
            .map(|holding| &mut holding.state)
    }
}
