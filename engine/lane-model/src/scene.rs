//! What is played: who sends what to whom, and which slots move where.

use crate::cluster::{Cluster, Holding, Ledger, Shard, ShardId, SlotId, SlotState, Wire};
use crate::flaw::Flaw;

/// One send of a scene.
#[derive(Clone, Copy, Debug)]
pub struct Send {
    /// The recipient's slot.
    pub to: SlotId,
    /// Whether the recipient exists there; one who does not is answered with a refusal.
    pub known: bool,
}

/// One slot move of a scene.
#[derive(Clone, Copy, Debug)]
pub struct SlotMove {
    /// The slot.
    pub slot: SlotId,
    /// The shard that is to hold it.
    pub to: ShardId,
}

/// What a send does when both slots live in one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direct {
    /// Delivered in the same apply, without a lane seq, if the lane has nothing unacked.
    WhenAcked,
    /// Delivered in the same apply, without a lane seq, if every lane seq given out is delivered.
    WhenDelivered,
    /// The same condition, with a lane seq that is allocated, delivered and acked in that apply.
    Numbered,
}

/// A configuration of the model.
#[derive(Clone, Debug)]
pub struct Scene {
    /// By slot: the shard that holds it at first.
    pub homes: Vec<ShardId>,
    /// How many shards there are.
    pub shards: u8,
    /// By slot: what it sends, in order.
    pub sends: Vec<Vec<Send>>,
    /// Moves, begun in this order; two of one slot never at once.
    pub moves: Vec<SlotMove>,
    /// Whether a move may be given up.
    pub aborts: bool,
    /// How many proposals a leader may have under way.
    pub proposals_max: usize,
    /// The rule for deliveries inside one shard.
    pub direct: Direct,
    /// What is broken on purpose.
    pub flaw: Option<Flaw>,
}

impl Scene {
    /// The state before anything happened.
    #[must_use]
    pub fn start(&self) -> Cluster {
        let slots = self.homes.len();
        let shard = |id: u8| Shard {
            holdings: self
                .homes
                .iter()
                .map(|home| {
                    (*home == ShardId(id)).then(|| Holding {
                        epoch: 0,
                        frozen: false,
                        state: SlotState::new(slots),
                    })
                })
                .collect(),
            proposals: Vec::new(),
            owed: Vec::new(),
        };
        Cluster {
            shards: (0..self.shards).map(shard).collect(),
            attempts: Vec::new(),
            wire: Wire::default(),
            ledger: Ledger {
                accepted: vec![Vec::new(); slots],
                delivered: vec![vec![Vec::new(); slots]; slots],
                refused: vec![vec![Vec::new(); slots]; slots],
            },
        }
    }

    /// All slots.
    pub fn slots(&self) -> impl Iterator<Item = SlotId> + use<> {
        let count = u8::try_from(self.homes.len()).expect("a scene has few slots");
        (0..count).map(SlotId)
    }

    pub(crate) fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shards).map(ShardId)
    }

    /// What a slot's send of that number (from 1) was.
    #[must_use]
    pub fn sent(&self, source: SlotId, number: u8) -> Send {
        self.sends[source.index()][usize::from(number) - 1]
    }

    pub(crate) fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }
}
