//! When a shard is to be split, and where.
//!
//! A shard is over a limit when it stores more bytes, or has more written to it, than the goals allow. [`SplitWatch`]
//! is shown the shards again and again, and names at most one to split: one that was over a limit in [`SPLIT_LOOKS`]
//! looks in a row, of several the one that is furthest over it. A pause lies between two splits. None begins while
//! another one is under way or while a node is out of reach, none of a shard that something else is done to, and none
//! once there are as many shards as there may be.
//!
//! [`cut`] then says which slots go: the later ones, from where both parts have about the same of what there is too
//! much of. Slots stay in the order of their numbers, so that a shard remains a few spans of them however often it is
//! split; the price is that the parts may differ by what the one slot at the cut has. Each split makes two smaller
//! shards of one that is over a limit, and nothing here puts shards together: so splits end.

use std::collections::BTreeMap;

use crate::state::ShardId;

/// In so many looks in a row a shard must be over a limit before it is split.
pub const SPLIT_LOOKS: u32 = 6;

/// What is wanted of the shards' sizes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SplitGoals {
    /// A shard that stores more is split; with none, never for that.
    pub bytes_max: Option<u64>,
    /// A shard with more rows written per second is split; with none, never for that.
    pub writes_per_s_max: Option<u64>,
    /// Time between the beginnings of two splits, at least.
    pub pause_ms: u64,
    /// With so many shards none is split any more.
    pub shards_max: usize,
}

/// What there can be too much of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Measure {
    /// Bytes stored.
    Bytes,
    /// Rows written per second: each costs its shard a place in the log and an apply on every replica, a delivery like a
    /// send, and the parts of a shard have together as many as the whole had.
    Writes,
}

/// What a shard, or one slot of it, has.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Load {
    /// Bytes stored, about.
    pub stored_bytes: u64,
    /// Rows written per second of late, about.
    pub writes_per_s: f64,
}

impl Load {
    /// By one measure.
    #[must_use]
    pub fn by(&self, measure: Measure) -> f64 {
        match measure {
            Measure::Bytes => self.stored_bytes as f64,
            Measure::Writes => self.writes_per_s,
        }
    }
}

/// One slot and what it has.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SlotLoad {
    /// Its number.
    pub slot: u16,
    /// What it has.
    pub load: Load,
}

/// One shard in a look.
#[derive(Clone, PartialEq, Debug)]
pub struct LoadedShard {
    /// Its id.
    pub id: ShardId,
    /// How many slots it holds.
    pub slots: usize,
    /// What it has, by its leader; nothing if nobody says.
    pub load: Option<Load>,
    /// A change of its replicas, or a move of one of its slots, is under way.
    pub busy: bool,
}

/// All shards at one moment.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Loads {
    /// When, on a clock that only goes forward. A look that is shown twice counts once.
    pub now_ms: u64,
    /// All shards that hold slots or may.
    pub shards: Vec<LoadedShard>,
    /// A node that was not removed is out of reach.
    pub node_down: bool,
    /// A split is under way.
    pub splitting: bool,
}

/// Why a shard that is over a limit is not split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hindrance {
    /// It has one slot, and a slot is never divided.
    OneSlot,
    /// There are [`SplitGoals::shards_max`] shards.
    ShardsMax,
}

/// A shard that was over a limit for long enough.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct OverLimit {
    /// Which one.
    pub shard: ShardId,
    /// Of what it has too much: of both, that of which it has more too much.
    pub measure: Measure,
    /// What it has.
    pub load: Load,
    /// Why it cannot be split, until something is changed.
    pub hindrance: Option<Hindrance>,
}

/// What comes of a look.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct SplitVerdict {
    /// The one to split now.
    pub split: Option<OverLimit>,
    /// All that were over a limit for long enough, in the order of their ids.
    pub over: Vec<OverLimit>,
}

/// What was seen before: the memory of whoever judges.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SplitWatch {
    /// Shards over a limit, and in how many looks in a row.
    over: BTreeMap<ShardId, u32>,
    looked_ms: Option<u64>,
    began_ms: Option<u64>,
}

impl SplitGoals {
    /// Nothing is ever split.
    #[must_use]
    pub fn are_off(&self) -> bool {
        self.bytes_max.is_none() && self.writes_per_s_max.is_none()
    }

    /// The limit of a measure, if there is one.
    #[must_use]
    pub fn limit(&self, measure: Measure) -> Option<u64> {
        match measure {
            Measure::Bytes => self.bytes_max,
            Measure::Writes => self.writes_per_s_max,
        }
    }

    /// How many times a limit this is, if there is one.
    fn times(&self, load: &Load, measure: Measure) -> Option<f64> {
        let limit = self.limit(measure)?;
        Some(load.by(measure) / limit as f64)
    }

    /// Of what it is too much, if of anything, and by how much.
    fn exceeded(&self, load: &Load) -> Option<(Measure, f64)> {
        let measures = [Measure::Bytes, Measure::Writes].into_iter();
        let times = measures.filter_map(|measure| Some((measure, self.times(load, measure)?)));
        let over = times.filter(|(_, times)| *times > 1.0);
        over.max_by(|(_, one), (_, other)| one.total_cmp(other))
    }
}

impl SplitWatch {
    /// Takes a look in, and says what is to be done.
    pub fn look(&mut self, loads: &Loads, goals: &SplitGoals) -> SplitVerdict {
        let exceeded = |shard: &LoadedShard| {
            let load = shard.load?;
            let (measure, times) = goals.exceeded(&load)?;
            Some((measure, times, load))
        };
        let found = loads.shards.iter();
        let found = found.filter_map(|shard| Some((shard, exceeded(shard)?)));
        let found: Vec<_> = found.collect();
        if self.looked_ms.is_none_or(|last| last < loads.now_ms) {
            self.looked_ms = Some(loads.now_ms);
            let before = std::mem::take(&mut self.over);
            let looks = |id: &ShardId| before.get(id).copied().unwrap_or(0).saturating_add(1);
            self.over = found
                .iter()
                .map(|(shard, _)| (shard.id, looks(&shard.id)))
                .collect();
        }
        let pauses = |began_ms: u64| loads.now_ms < began_ms.saturating_add(goals.pause_ms);
        let may = !loads.node_down && !loads.splitting && !self.began_ms.is_some_and(pauses);
        let full = loads.shards.len() >= goals.shards_max;
        let mut verdict = SplitVerdict::default();
        let mut furthest = 0.0;
        for (shard, (measure, times, load)) in found {
            if self
                .over
                .get(&shard.id)
                .is_none_or(|looks| *looks < SPLIT_LOOKS)
            {
                continue;
            }
            let hindrance = match shard.slots {
                0 | 1 => Some(Hindrance::OneSlot),
                _ => full.then_some(Hindrance::ShardsMax),
            };
            let over = OverLimit {
                shard: shard.id,
                measure,
                load,
                hindrance,
            };
            if may && hindrance.is_none() && !shard.busy && times > furthest {
                furthest = times;
                verdict.split = Some(over);
            }
            verdict.over.push(over);
        }
        verdict.over.sort_by_key(|over| over.shard);
        verdict
    }

    /// The split of a shard has begun.
    pub fn began(&mut self, shard: ShardId, now_ms: u64) {
        self.began_ms = Some(now_ms);
        self.over.remove(&shard);
    }

    /// The split of a shard could not begin: its turn comes again when it was over a limit as long once more.
    pub fn put_off(&mut self, shard: ShardId) {
        self.over.remove(&shard);
    }
}

/// Which slots go, of all those of a shard in their order: never none, and never all. Nothing if by this measure they
/// are not over the limit after all, or cannot be parted.
#[must_use]
pub fn cut<'a>(
    slots: &'a [SlotLoad],
    measure: Measure,
    goals: &SplitGoals,
) -> Option<&'a [SlotLoad]> {
    let all = slots.iter().map(|slot| slot.load);
    let total = all.clone().fold(Load::default(), |sum, load| Load {
        stored_bytes: sum.stored_bytes.saturating_add(load.stored_bytes),
        writes_per_s: sum.writes_per_s + load.writes_per_s,
    });
    if goals.times(&total, measure)? <= 1.0 {
        return None;
    }
    let total = total.by(measure);
    let mut before = 0.0;
    let mut best: Option<(f64, usize, usize)> = None;
    for (kept, load) in (1..slots.len()).zip(all) {
        before += load.by(measure);
        let uneven = (2.0 * before - total).abs();
        // Of cuts that are as good, the one with the evener numbers of slots: between slots that have nothing.
        let count = (2 * kept).abs_diff(slots.len());
        let better = |(least, fewest, _): (f64, usize, usize)| {
            uneven < least || (uneven <= least && count < fewest)
        };
        if best.is_none_or(better) {
            best = Some((uneven, count, kept));
        }
    }
    best.map(|(_, _, kept)| &slots[kept..])
}
