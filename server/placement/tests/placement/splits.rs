//! When shards are split by themselves, and where: single situations, and clusters that are split until they rest.

use mailbox_placement::{
    Hindrance, Load, LoadedShard, Loads, Measure, OverLimit, SPLIT_LOOKS, ShardId, SlotLoad,
    SplitGoals, SplitVerdict, SplitWatch, cut,
};

use crate::cluster::Chance;

const PAUSE_MS: u64 = 60_000;
/// A sixth of the pause, as the driver looks.
const LOOK_MS: u64 = 10_000;

fn goals() -> SplitGoals {
    SplitGoals {
        bytes_max: Some(1000),
        writes_per_s_max: Some(100),
        pause_ms: PAUSE_MS,
        shards_max: 1_000_000,
    }
}

fn load(stored_bytes: u64, writes_per_s: f64) -> Load {
    Load {
        stored_bytes,
        writes_per_s,
    }
}

fn shard(id: u32, stored_bytes: u64, writes_per_s: f64) -> LoadedShard {
    LoadedShard {
        id: ShardId(id),
        slots: 8,
        load: Some(load(stored_bytes, writes_per_s)),
        busy: false,
    }
}

fn loads(shards: &[LoadedShard]) -> Loads {
    Loads {
        now_ms: 0,
        shards: shards.to_vec(),
        ..Loads::default()
    }
}

/// Looks at the same again and again, as long as is needed to be split; gives what came of the last look.
fn watched(watch: &mut SplitWatch, loads: &mut Loads, goals: &SplitGoals) -> SplitVerdict {
    let mut verdict = SplitVerdict::default();
    for _ in 0..SPLIT_LOOKS {
        assert_eq!(verdict.split, None, "not before its time");
        loads.now_ms += LOOK_MS;
        verdict = watch.look(loads, goals);
    }
    verdict
}

/// What is split, and for what.
type Wanted = Option<(u32, Measure)>;

fn split(loads: &Loads, goals: &SplitGoals) -> Wanted {
    let verdict = watched(&mut SplitWatch::default(), &mut loads.clone(), goals);
    verdict.split.map(|over| (over.shard.0, over.measure))
}

#[test]
fn what_is_split_and_for_what() {
    let (bytes, writes) = (Measure::Bytes, Measure::Writes);
    let cases: [(&str, &[LoadedShard], Wanted); 8] = [
        ("none", &[], None),
        ("at the limits", &[shard(1, 1000, 100.0)], None),
        ("over bytes", &[shard(1, 1001, 0.0)], Some((1, bytes))),
        ("over writes", &[shard(1, 0, 100.5)], Some((1, writes))),
        (
            "more over writes",
            &[shard(1, 1100, 120.0)],
            Some((1, writes)),
        ),
        (
            "the furthest over",
            &[shard(1, 1100, 0.0), shard(2, 1300, 0.0), shard(3, 0, 120.0)],
            Some((2, bytes)),
        ),
        (
            "of equals the first",
            &[shard(1, 1100, 0.0), shard(2, 1100, 0.0)],
            Some((1, bytes)),
        ),
        (
            "of any measure",
            &[shard(1, 1100, 0.0), shard(2, 0, 120.0)],
            Some((2, writes)),
        ),
    ];
    for (what, shards, wanted) in cases {
        assert_eq!(split(&loads(shards), &goals()), wanted, "{what}");
    }
    let off = SplitGoals {
        bytes_max: None,
        writes_per_s_max: None,
        ..goals()
    };
    assert!(off.are_off() && !goals().are_off());
    assert_eq!(split(&loads(&[shard(1, u64::MAX, f64::MAX)]), &off), None);
    for (bytes_max, writes_per_s_max, wanted) in [
        (Some(1000), None, Some((1, bytes))),
        (None, Some(100), Some((1, writes))),
    ] {
        let goals = SplitGoals {
            bytes_max,
            writes_per_s_max,
            ..goals()
        };
        assert_eq!(split(&loads(&[shard(1, 2000, 900.0)]), &goals), wanted);
    }
}

#[test]
fn nothing_is_split_while_something_stands_in_its_way() {
    let great = [shard(1, 5000, 0.0), shard(2, 10, 0.0)];
    let free = loads(&great);
    assert!(split(&free, &goals()).is_some());
    let mut busy = free.clone();
    busy.shards[0].busy = true;
    let mut unknown = free.clone();
    unknown.shards[0].load = None;
    let cases = [
        ("a change of the shard", busy),
        ("nobody says how great it is", unknown),
        (
            "a node is down",
            Loads {
                node_down: true,
                ..free.clone()
            },
        ),
        (
            "another split",
            Loads {
                splitting: true,
                ..free.clone()
            },
        ),
    ];
    for (what, mut seen) in cases {
        let mut watch = SplitWatch::default();
        let verdict = watched(&mut watch, &mut seen, &goals());
        assert_eq!(verdict.split, None, "{what}");
        assert!(
            verdict.over.iter().all(|over| over.hindrance.is_none()),
            "{what} passes"
        );
    }
    // Another one that is over a limit goes first.
    let mut busy = loads(&[shard(1, 5000, 0.0), shard(2, 1001, 0.0)]);
    busy.shards[0].busy = true;
    assert_eq!(split(&busy, &goals()), Some((2, Measure::Bytes)));
}

#[test]
fn what_cannot_be_split_is_told() {
    let told = |seen: &Loads, goals: &SplitGoals| {
        let verdict = watched(&mut SplitWatch::default(), &mut seen.clone(), goals);
        assert_eq!(verdict.split, None);
        let over = verdict.over.into_iter();
        over.map(|over| (over.shard.0, over.hindrance))
            .collect::<Vec<_>>()
    };
    let mut one = loads(&[shard(2, 10, 0.0), shard(1, 5000, 0.0)]);
    one.shards[1].slots = 1;
    assert_eq!(told(&one, &goals()), [(1, Some(Hindrance::OneSlot))]);
    let few = SplitGoals {
        shards_max: 2,
        ..goals()
    };
    assert_eq!(told(&one, &few), [(1, Some(Hindrance::OneSlot))]);
    one.shards[1].slots = 2;
    assert_eq!(told(&one, &few), [(1, Some(Hindrance::ShardsMax))]);
    assert!(
        split(
            &one,
            &SplitGoals {
                shards_max: 3,
                ..few
            }
        )
        .is_some()
    );
}

#[test]
fn a_shard_must_be_over_a_limit_in_every_look() {
    let (great, small) = (loads(&[shard(1, 2000, 0.0)]), loads(&[shard(1, 1000, 0.0)]));
    let mut watch = SplitWatch::default();
    let mut now_ms = 0;
    for round in 1..=10 * SPLIT_LOOKS {
        now_ms += LOOK_MS;
        let seen = if round % SPLIT_LOOKS == 0 {
            &small
        } else {
            &great
        };
        let verdict = watch.look(
            &Loads {
                now_ms,
                ..seen.clone()
            },
            &goals(),
        );
        assert_eq!(verdict, SplitVerdict::default(), "round {round}");
    }
    // What is seen twice is one look.
    let mut watch = SplitWatch::default();
    for _ in 0..10 * SPLIT_LOOKS {
        assert_eq!(watch.look(&great, &goals()), SplitVerdict::default());
    }
}

#[test]
fn a_pause_lies_between_two_splits() {
    let mut seen = loads(&[shard(1, 3000, 0.0), shard(2, 2000, 0.0)]);
    let mut watch = SplitWatch::default();
    let first = watched(&mut watch, &mut seen, &goals()).split.unwrap();
    assert_eq!(first.shard, ShardId(1));
    let began = seen.now_ms;
    watch.began(first.shard, began);
    // It was over the limit all the time, but so long ago as the split.
    while seen.now_ms + LOOK_MS < began + PAUSE_MS {
        seen.now_ms += LOOK_MS;
        assert_eq!(watch.look(&seen, &goals()).split, None);
    }
    seen.now_ms += LOOK_MS;
    let next = watch.look(&seen, &goals()).split.map(|over| over.shard);
    assert_eq!(
        next,
        Some(ShardId(1)),
        "it is still over the limit, as long again"
    );
    // One that could not begin lets the other go first, and needs no pause.
    watch.put_off(ShardId(1));
    seen.now_ms += LOOK_MS;
    let next = watch.look(&seen, &goals()).split.map(|over| over.shard);
    assert_eq!(next, Some(ShardId(2)));
}

/// Slots with so many bytes each, and no writes.
fn slots(bytes: &[u64]) -> Vec<SlotLoad> {
    let slots = (0..).zip(bytes);
    let slots = slots.map(|(slot, bytes)| SlotLoad {
        slot,
        load: load(*bytes, 0.0),
    });
    slots.collect()
}

#[test]
fn a_cut_makes_two_parts_that_are_as_even_as_can_be() {
    let cases: [(&[u64], Option<usize>); 10] = [
        (&[], None),
        (&[5000], None),
        (&[400, 600], None),
        (&[401, 600], Some(1)),
        (&[300; 8], Some(4)),
        (&[5000, 1, 1, 1], Some(1)),
        (&[1, 1, 1, 5000], Some(3)),
        (&[1, 5000, 1, 1], Some(2)),
        (&[0, 2000, 0, 0, 0, 0, 2000, 0], Some(4)),
        (&[100, 200, 300, 400, 500], Some(3)),
    ];
    for (bytes, kept) in cases {
        let slots = slots(bytes);
        let gone = cut(&slots, Measure::Bytes, &goals());
        assert_eq!(gone.map(|gone| slots.len() - gone.len()), kept, "{bytes:?}");
    }
    // By what there is too much of.
    let mut both = slots(&[2000, 0, 0, 0]);
    (both[2].load.writes_per_s, both[3].load.writes_per_s) = (90.0, 90.0);
    let gone = |measure| cut(&both, measure, &goals()).unwrap().len();
    assert_eq!((gone(Measure::Bytes), gone(Measure::Writes)), (2, 1));
}

/// A cluster that is split by what is judged of it.
struct World {
    /// By shard, its slots.
    shards: Vec<Vec<SlotLoad>>,
    goals: SplitGoals,
    watch: SplitWatch,
    now_ms: u64,
    splits: usize,
    over: Vec<OverLimit>,
}

impl World {
    fn new(shards: Vec<Vec<SlotLoad>>, goals: SplitGoals) -> World {
        World {
            shards,
            goals,
            watch: SplitWatch::default(),
            now_ms: 0,
            splits: 0,
            over: Vec::new(),
        }
    }

    fn load_of(slots: &[SlotLoad]) -> Load {
        load(
            slots.iter().map(|slot| slot.load.stored_bytes).sum(),
            slots.iter().map(|slot| slot.load.writes_per_s).sum(),
        )
    }

    /// One look, of loads that are measured with an error of a twentieth.
    fn look(&mut self, chance: &mut Chance) {
        self.now_ms += LOOK_MS;
        let shards = self.shards.iter().enumerate().map(|(index, slots)| {
            let all = Self::load_of(slots);
            let error = 0.95 + 0.1 * chance.below(1000) as f64 / 1000.0;
            LoadedShard {
                id: ShardId(index as u32),
                slots: slots.len(),
                load: Some(load(
                    (all.stored_bytes as f64 * error) as u64,
                    all.writes_per_s * error,
                )),
                busy: chance.below(20) == 0,
            }
        });
        let seen = Loads {
            now_ms: self.now_ms,
            shards: shards.collect(),
            node_down: chance.below(50) == 0,
            splitting: false,
        };
        let verdict = self.watch.look(&seen, &self.goals);
        self.over = verdict.over;
        let Some(over) = verdict.split else { return };
        assert!(!seen.node_down && !seen.shards[over.shard.0 as usize].busy);
        let slots = &self.shards[over.shard.0 as usize];
        let Some(gone) = cut(slots, over.measure, &self.goals) else {
            self.watch.put_off(over.shard);
            return;
        };
        let all = Self::load_of(slots).by(over.measure);
        let limit = self.goals.limit(over.measure).expect("set") as f64;
        assert!(all > limit, "only what is too great is split");
        let (kept, gone) = slots.split_at(slots.len() - gone.len());
        let (kept, gone) = (kept.to_vec(), gone.to_vec());
        assert!(!kept.is_empty() && !gone.is_empty());
        let greatest = kept
            .iter()
            .chain(&gone)
            .map(|slot| slot.load.by(over.measure));
        let greatest = greatest.fold(0.0, f64::max);
        let parts = [&kept, &gone].map(|part| Self::load_of(part).by(over.measure));
        assert!(
            (parts[0] - parts[1]).abs() <= greatest + 1e-6,
            "as even as the slots let it be"
        );
        self.shards[over.shard.0 as usize] = kept;
        self.shards.push(gone);
        self.splits += 1;
        self.watch.began(over.shard, self.now_ms);
    }

    /// Looks until nothing has been split for a long time; gives how many splits that took.
    fn settle(&mut self, chance: &mut Chance) -> usize {
        let (before, mut quiet) = (self.splits, 0);
        while quiet < 20 * SPLIT_LOOKS {
            let splits = self.splits;
            self.look(chance);
            quiet = if self.splits == splits { quiet + 1 } else { 0 };
        }
        self.splits - before
    }

    /// Nothing is over a limit, by more than an error of measurement, that could be split.
    fn assert_at_rest(&self) {
        for slots in self.shards.iter().filter(|slots| slots.len() > 1) {
            let load = Self::load_of(slots);
            for measure in [Measure::Bytes, Measure::Writes] {
                let limit = self.goals.limit(measure).expect("set") as f64;
                assert!(load.by(measure) <= limit * 1.06, "{load:?}");
            }
        }
    }
}

/// Shards of 16 slots, some with a hundred times as much as others, a few slots with more than a shard may have.
fn skewed(shards: usize, chance: &mut Chance) -> Vec<Vec<SlotLoad>> {
    let mut next = 0;
    let mut slot = |heat: u64, chance: &mut Chance| {
        let whale = if chance.below(2000) == 0 { 40 } else { 1 };
        let bytes = chance.below(40) as u64 * heat * whale;
        next += 1;
        SlotLoad {
            slot: next,
            load: load(bytes, chance.below(4) as f64 * (heat * whale) as f64),
        }
    };
    let shards = (0..shards).map(|_| {
        let heat = if chance.below(10) == 0 {
            1 + chance.below(20) as u64
        } else {
            1
        };
        (0..16).map(|_| slot(heat, chance)).collect()
    });
    shards.collect()
}

#[test]
fn a_thousand_skewed_shards_are_split_as_often_as_they_must_and_then_rest() {
    for seed in 1..=3 {
        let mut chance = Chance(seed);
        let mut world = World::new(skewed(1000, &mut chance), goals());
        let times = |load: Load| {
            let writes = (load.writes_per_s / 100.0).max(load.stored_bytes as f64 / 1000.0);
            writes.max(1.0)
        };
        let must: f64 = world
            .shards
            .iter()
            .map(|slots| times(World::load_of(slots)).ceil() - 1.0)
            .sum();
        let splits = world.settle(&mut chance);
        world.assert_at_rest();
        println!(
            "seed {seed}: {splits} splits, {must} at least, {} shards",
            world.shards.len()
        );
        assert!(splits > 50, "{splits}");
        // Parts are as uneven as slots make them, and there are two measures: some more than by weight alone.
        assert!(
            (splits as f64) <= 2.0 * must,
            "{splits} splits, {must} by weight"
        );
        assert!(
            world.now_ms >= PAUSE_MS * splits as u64,
            "one after the other"
        );
        // What cannot be split is told, and nothing else is.
        let hindered = |over: &OverLimit| over.hindrance == Some(Hindrance::OneSlot);
        let single = |over: &OverLimit| world.shards[over.shard.0 as usize].len() == 1;
        assert!(world.over.iter().all(|over| hindered(over) == single(over)));
        // What is measured now above the limit and now below it is left alone, but for what is truly above.
        assert!(world.settle(&mut chance) <= 5);
        // Twice as much of everything: then it goes on, and ends again.
        let all = world.shards.iter_mut().flatten();
        all.for_each(|slot| {
            slot.load = load(slot.load.stored_bytes * 2, slot.load.writes_per_s * 2.0)
        });
        assert!(world.settle(&mut chance) > 50);
        world.assert_at_rest();
    }
}

#[test]
fn splits_end_at_the_greatest_number_of_shards() {
    let mut chance = Chance(5);
    let goals = SplitGoals {
        shards_max: 110,
        ..goals()
    };
    let mut world = World::new(skewed(100, &mut chance), goals);
    let all = world.shards.iter_mut().flatten();
    all.for_each(|slot| slot.load.stored_bytes += 200);
    assert_eq!(world.settle(&mut chance), 10);
    assert!(
        world
            .over
            .iter()
            .any(|over| over.hindrance == Some(Hindrance::ShardsMax))
    );
}
