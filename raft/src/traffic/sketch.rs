//! Which timelines are hot, in bounded memory: a space-saving sketch that forgets.
//!
//! A known timeline's weight grows by what it has; an unknown one takes the place of the lightest, and takes
//! over its weight as its own *doubt*: what may have been somebody else's. So nothing that has more than
//! one part in [`KEPT`] of all traffic is ever missing, and `weight - doubt ≤ truth ≤ weight`. All weights halve
//! every [`HALF_LIFE_S`], doubts with them: who stays hot is soon beyond doubt, who was hot fades. Rates tell
//! `weight - doubt` only, so that under even traffic nobody looks hot who is not.
//!
//! The same samples tell, of every slot, how much is written to it: exactly in sum, and as well as chance has it for
//! one slot.
//!
//! The hot path pays at most [`LOOKS_MAX`] look-ups in a list of [`KEPT`] for a whole batch: of a greater one,
//! samples are looked up, each standing for the rows between it and the next, from a random first one.

use std::collections::BTreeMap;

use mailbox_engine::{SlotId, TimelineId};

/// Timelines that are remembered: some 3 KiB a shard.
pub(super) const KEPT: usize = 64;
/// In how many seconds what was counts half.
const HALF_LIFE_S: f64 = 10.0;
/// Look-ups for one batch.
pub(super) const LOOKS_MAX: usize = 16;
/// Weights are lowered in steps of this time, at least: it touches them all.
const DECAY_STEP_S: f64 = 0.25;
/// Lighter ones are forgotten.
const WEIGHT_MIN: f64 = 0.05;

/// One of the timelines with the most traffic, as seen by one replica.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HotTimeline {
    /// Whose.
    pub timeline: TimelineId,
    /// Rows appended per second of late, at least.
    pub writes_per_s: f64,
    /// Reads per second of late that this replica has answered, at least.
    pub reads_per_s: f64,
}

/// What a weight is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    Writes,
    Reads,
}

struct Entry {
    timeline: TimelineId,
    writes: f64,
    reads: f64,
    doubt: f64,
}

impl Entry {
    fn weight(&self) -> f64 {
        self.writes + self.reads + self.doubt
    }

    fn sure(&self) -> f64 {
        self.writes + self.reads
    }
}

/// See the module. Times are seconds since it was made.
pub(super) struct Sketch {
    entries: Vec<Entry>,
    /// What was written of late by slot; of slots of the shard only, for it appends to no others.
    slots: BTreeMap<SlotId, f64>,
    slot_count: u16,
    decayed_at: f64,
    random: u64,
}

impl Sketch {
    pub(super) fn new(seed: u64, slot_count: u16) -> Sketch {
        Sketch {
            entries: Vec::new(),
            slots: BTreeMap::new(),
            slot_count,
            decayed_at: 0.0,
            // What is not zero stays so.
            random: seed | 1 << 63,
        }
    }

    /// Takes in what one batch weighs, by timeline.
    pub(super) fn note(
        &mut self,
        now: f64,
        share: Share,
        weights: impl ExactSizeIterator<Item = (TimelineId, usize)> + Clone,
    ) {
        self.decay(now);
        if weights.len() <= LOOKS_MAX {
            for (timeline, weight) in weights {
                self.add(timeline, share, weight as f64);
            }
            return;
        }
        let all: usize = weights.clone().map(|(_, weight)| weight).sum();
        let stride = all as f64 / LOOKS_MAX as f64;
        let mut next = self.random_below(stride);
        let mut passed = 0.0;
        for (timeline, weight) in weights {
            passed += weight as f64;
            let mut hits = 0.0;
            while next < passed {
                hits += 1.0;
                next += stride;
            }
            if hits > 0.0 {
                self.add(timeline, share, hits * stride);
            }
        }
    }

    fn add(&mut self, timeline: TimelineId, share: Share, weight: f64) {
        let (writes, reads) = match share {
            Share::Writes => (weight, 0.0),
            Share::Reads => (0.0, weight),
        };
        if writes > 0.0 {
            *self
                .slots
                .entry(timeline.slot(self.slot_count))
                .or_default() += writes;
        }
        let mut known = self.entries.iter_mut();
        if let Some(entry) = known.find(|entry| entry.timeline == timeline) {
            entry.writes += writes;
            entry.reads += reads;
            return;
        }
        let lightest = match self.entries.len() {
            KEPT => self.lightest(),
            _ => None,
        };
        let doubt = lightest.map_or(0.0, |index| self.entries[index].weight());
        let entry = Entry {
            timeline,
            writes,
            reads,
            doubt,
        };
        match lightest {
            None => self.entries.push(entry),
            Some(index) => self.entries[index] = entry,
        }
    }

    fn lightest(&self) -> Option<usize> {
        let weights = self.entries.iter().map(Entry::weight).enumerate();
        let lightest = weights.min_by(|(_, one), (_, other)| one.total_cmp(other));
        lightest.map(|(index, _)| index)
    }

    fn decay(&mut self, now: f64) {
        let passed = now - self.decayed_at;
        if passed < DECAY_STEP_S {
            return;
        }
        self.decayed_at = now;
        let factor = (-passed / HALF_LIFE_S).exp2();
        self.entries.retain_mut(|entry| {
            entry.writes *= factor;
            entry.reads *= factor;
            entry.doubt *= factor;
            entry.weight() >= WEIGHT_MIN
        });
        self.slots.retain(|_, weight| {
            *weight *= factor;
            *weight >= WEIGHT_MIN
        });
    }

    /// Rows appended per second of late, by slot; not of slots that had none.
    pub(super) fn writes_by_slot(&mut self, now: f64) -> Vec<(SlotId, f64)> {
        self.decay(now);
        let per_s = per_s(now);
        let slots = self.slots.iter();
        slots
            .map(|(slot, weight)| (*slot, weight * per_s))
            .collect()
    }

    /// At most `count` timelines, the hottest first, with rates that are surely theirs.
    pub(super) fn hottest(&mut self, now: f64, count: usize) -> Vec<HotTimeline> {
        self.decay(now);
        let per_s = per_s(now);
        let mut hottest: Vec<&Entry> = self.entries.iter().collect();
        hottest.sort_unstable_by(|one, other| other.sure().total_cmp(&one.sure()));
        let hottest = hottest.into_iter().take(count);
        let told = hottest.map(|entry| HotTimeline {
            timeline: entry.timeline,
            writes_per_s: entry.writes * per_s,
            reads_per_s: entry.reads * per_s,
        });
        told.collect()
    }

    /// In `0..stride`; xorshift is random enough to meet no pattern of a batch's.
    fn random_below(&mut self, stride: f64) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let unit = (self.random >> 11) as f64 / (1_u64 << 53) as f64;
        unit * stride
    }
}

/// What rate a weight tells. At a steady rate r it comes to r / decay; sooner than that, to the part that `age` gives.
fn per_s(now: f64) -> f64 {
    let decay = std::f64::consts::LN_2 / HALF_LIFE_S;
    let age = now.max(1.0);
    decay / (1.0 - (-decay * age).exp())
}

#[cfg(test)]
mod tests {
    use mailbox_engine::UserId;

    use super::*;

    const SLOTS: u16 = 16;

    fn mailbox(owner: u64) -> TimelineId {
        UserId(owner).mailbox()
    }

    fn near(value: f64, wanted: f64, tolerance: f64) -> bool {
        (value - wanted).abs() <= wanted * tolerance
    }

    #[test]
    fn a_hot_timeline_stands_out_of_even_traffic_with_its_own_rate() {
        let mut sketch = Sketch::new(1, SLOTS);
        // 100 batches a second for a minute: each has 200 rows of 200 mailboxes of a million, and 10 of one.
        let mut other = 0;
        for batch in 0..6_000_u32 {
            let mut rows = vec![(mailbox(7), 10)];
            for _ in 0..200 {
                other = (other + 7_919) % 1_000_000;
                rows.push((mailbox(1_000 + other), 1));
            }
            sketch.note(f64::from(batch) / 100.0, Share::Writes, rows.into_iter());
            assert!(sketch.entries.len() <= KEPT);
        }
        let hottest = sketch.hottest(60.0, 10);
        assert_eq!(hottest.len(), 10);
        assert_eq!(hottest[0].timeline, mailbox(7));
        let rate = hottest[0].writes_per_s;
        assert!(near(rate, 1_000.0, 0.1), "{rate} rows/s");
        assert!(hottest[1].writes_per_s < 10.0, "{hottest:?}");
    }

    #[test]
    fn what_was_hot_fades_and_is_forgotten() {
        let mut sketch = Sketch::new(1, SLOTS);
        sketch.note(0.0, Share::Reads, [(mailbox(7), 1_000)].into_iter());
        let then = sketch.hottest(1.0, 1)[0].reads_per_s;
        assert!(near(then, 1_000.0, 0.1), "{then} reads/s");
        sketch.note(30.0, Share::Reads, [(mailbox(8), 200)].into_iter());
        let order: Vec<TimelineId> = sketch
            .hottest(30.0, 2)
            .iter()
            .map(|hot| hot.timeline)
            .collect();
        assert_eq!(order, [mailbox(8), mailbox(7)]);
        assert!(sketch.hottest(200.0, 2).is_empty());
    }

    #[test]
    fn a_small_batch_is_counted_exactly_and_a_great_one_in_a_few_looks() {
        let mut sketch = Sketch::new(1, SLOTS);
        let few: Vec<_> = (0..LOOKS_MAX as u64)
            .map(|owner| (mailbox(owner), 3))
            .collect();
        sketch.note(0.0, Share::Writes, few.into_iter());
        assert!(sketch.entries.iter().all(|entry| entry.writes == 3.0));
        let mut sketch = Sketch::new(1, SLOTS);
        let many: Vec<_> = (0..1_000).map(|owner| (mailbox(owner), 1)).collect();
        sketch.note(0.0, Share::Writes, many.into_iter());
        assert_eq!(sketch.entries.len(), LOOKS_MAX);
        let all: f64 = sketch.entries.iter().map(Entry::sure).sum();
        assert!(
            near(all, 1_000.0, 1e-9),
            "samples stand for all rows: {all}"
        );
    }

    #[test]
    fn slots_have_the_rates_of_what_is_written_to_them() {
        let mut sketch = Sketch::new(1, SLOTS);
        let hot = mailbox(7).slot(SLOTS);
        // 50 batches a second for a minute, of 400 rows each; a quarter of all is one mailbox's. Reads do not count.
        let mut other = 0;
        for batch in 0..3_000_u32 {
            let now = f64::from(batch) / 50.0;
            let mut rows = vec![(mailbox(7), 100)];
            for _ in 0..300 {
                other = (other + 7_919) % 1_000_000;
                rows.push((mailbox(1_000 + other), 1));
            }
            sketch.note(now, Share::Writes, rows.into_iter());
            sketch.note(now, Share::Reads, [(mailbox(9), 1_000)].into_iter());
        }
        let rates: BTreeMap<SlotId, f64> = sketch.writes_by_slot(60.0).into_iter().collect();
        assert_eq!(rates.len(), usize::from(SLOTS));
        let all: f64 = rates.values().sum();
        assert!(near(all, 20_000.0, 0.05), "{all} rows/s in all");
        let even = 15_000.0 / f64::from(SLOTS);
        for (slot, rate) in &rates {
            let wanted = if *slot == hot { 5_000.0 + even } else { even };
            assert!(near(*rate, wanted, 0.25), "slot {slot}: {rate} rows/s");
        }
        assert_eq!(sketch.writes_by_slot(600.0), [], "forgotten");
    }
}
