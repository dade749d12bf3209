//! Whether calls that overlap in time can be put in an order that a model allows: for state that no seq orders.
//!
//! The search is that of Wing and Gong (1993), by depth, with the memory of Lowe (2017): what has been put in order so far,
//! as a set, together with the state that it led to, need not be tried twice.

use std::collections::HashSet;
use std::hash::Hash;

/// How the state of one register changes.
pub(super) trait Model {
    /// What it holds.
    type State: Clone + Eq + Hash;
    /// A call with its answer, or without.
    type Call;

    /// What it holds at first.
    fn start(&self) -> Self::State;

    /// What it holds after this call; `None` if the call cannot have been answered so then.
    fn step(&self, state: &Self::State, call: &Self::Call) -> Option<Self::State>;
}

/// A call and when it was under way.
#[derive(Debug, Clone)]
pub(super) struct Timed<C> {
    pub(super) invoked_ns: u64,
    /// `None`: nobody knows; it may have taken effect at any time since, or never.
    pub(super) completed_ns: Option<u64>,
    pub(super) call: C,
}

/// What a search came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// There is an order.
    Order,
    /// There is none.
    Nothing,
    /// So many steps were not enough to tell.
    Undecided,
}

/// Looks for an order of these calls, for `steps_max` steps at most.
pub(super) fn search<M: Model>(model: &M, calls: &[Timed<M::Call>], steps_max: u64) -> Found {
    let mut list = Moments::of(calls);
    let mut done = Bits::new(calls.len());
    let mut state = model.start();
    let mut tried: HashSet<(Bits, M::State)> = HashSet::new();
    // What was put in order, and the state before it.
    let mut order: Vec<(usize, M::State)> = Vec::new();
    let mut at = list.first();
    for _ in 0..steps_max {
        let Some(moment) = list.get(at) else {
            // Only calls without an end are left, which need not have happened.
            return Found::Order;
        };
        if !moment.is_end {
            let next = model.step(&state, &calls[moment.call].call);
            let next = next.filter(|next| {
                done.set(moment.call);
                let is_new = tried.insert((done.clone(), next.clone()));
                if !is_new {
                    done.clear(moment.call);
                }
                is_new
            });
            if let Some(next) = next {
                order.push((moment.call, std::mem::replace(&mut state, next)));
                list.take_out(moment.call);
                at = list.first();
            } else {
                at = list.after(at);
            }
            continue;
        }
        // This call has ended and can be put nowhere: the one that was put last was put wrongly.
        let Some((call, before)) = order.pop() else {
            return Found::Nothing;
        };
        state = before;
        done.clear(call);
        list.put_back(call);
        at = list.after(list.begin_of(call));
    }
    Found::Undecided
}

/// Which calls are in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Bits(Box<[u64]>);

impl Bits {
    fn new(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)].into())
    }

    fn set(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }

    fn clear(&mut self, i: usize) {
        self.0[i / 64] &= !(1 << (i % 64));
    }
}

/// A begin or an end.
#[derive(Debug, Clone, Copy)]
struct Moment {
    call: usize,
    is_end: bool,
}

/// Begins and ends in the order of time, as a list from which a call is taken out, and put back, at no cost.
#[derive(Debug)]
struct Moments {
    /// From 1; place 0 stands before the first and behind the last.
    moments: Vec<Moment>,
    next: Vec<usize>,
    before: Vec<usize>,
    /// By call: the places of its begin and of its end, if it has one.
    places: Vec<(usize, Option<usize>)>,
}

impl Moments {
    fn of<C>(calls: &[Timed<C>]) -> Self {
        let mut times = Vec::with_capacity(2 * calls.len());
        for (call, timed) in calls.iter().enumerate() {
            times.push((timed.invoked_ns, false, call));
            times.extend(timed.completed_ns.map(|ns| (ns, true, call)));
        }
        // At one time begins come first: calls that touch overlap.
        times.sort_unstable();
        let mut places = vec![(0, None); calls.len()];
        for ((_, is_end, call), place) in times.iter().zip(1..) {
            if *is_end {
                places[*call].1 = Some(place);
            } else {
                places[*call].0 = place;
            }
        }
        let moments = times.iter().map(|(_, is_end, call)| Moment {
            call: *call,
            is_end: *is_end,
        });
        let count = times.len() + 1;
        Self {
            moments: moments.collect(),
            next: (0..count).map(|place| (place + 1) % count).collect(),
            before: (0..count)
                .map(|place| (place + count - 1) % count)
                .collect(),
            places,
        }
    }

    fn first(&self) -> usize {
        self.next[0]
    }

    fn after(&self, place: usize) -> usize {
        self.next[place]
    }

    fn get(&self, place: usize) -> Option<Moment> {
        self.moments.get(place.checked_sub(1)?).copied()
    }

    fn begin_of(&self, call: usize) -> usize {
        self.places[call].0
    }

    fn take_out(&mut self, call: usize) {
        let (begin, end) = self.places[call];
        for place in [Some(begin), end].into_iter().flatten() {
            let (before, next) = (self.before[place], self.next[place]);
            self.next[before] = next;
            self.before[next] = before;
        }
    }

    /// Undoes the last [`Moments::take_out`] that is not undone.
    fn put_back(&mut self, call: usize) {
        let (begin, end) = self.places[call];
        for place in [end, Some(begin)].into_iter().flatten() {
            let (before, next) = (self.before[place], self.next[place]);
            self.next[before] = place;
            self.before[next] = place;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    const STEPS: u64 = 100_000;

    /// A number that is written and read.
    struct Number;

    #[derive(Debug, Clone, Copy)]
    enum Op {
        Write(u8),
        Read(u8),
    }

    impl Model for Number {
        type State = u8;
        type Call = Op;

        fn start(&self) -> u8 {
            0
        }

        fn step(&self, state: &u8, call: &Op) -> Option<u8> {
            match *call {
                Op::Write(value) => Some(value),
                Op::Read(value) => (value == *state).then_some(value),
            }
        }
    }

    fn timed(invoked_ns: u64, completed_ns: impl Into<Option<u64>>, call: Op) -> Timed<Op> {
        Timed {
            invoked_ns,
            completed_ns: completed_ns.into(),
            call,
        }
    }

    #[test]
    fn reads_see_what_was_written_before_them() {
        let write = timed(1, 2, Op::Write(1));
        let found = |read| search(&Number, &[write.clone(), read], STEPS);
        assert_eq!(found(timed(3, 4, Op::Read(1))), Found::Order);
        assert_eq!(found(timed(3, 4, Op::Read(0))), Found::Nothing);
        assert_eq!(found(timed(2, 4, Op::Read(0))), Found::Order, "they touch");
        assert_eq!(search(&Number, &[], STEPS), Found::Order);
    }

    #[test]
    fn what_may_have_happened_can_be_put_anywhere_after_its_begin_or_left_out() {
        let write = timed(5, None, Op::Write(1));
        let with = |reads: &[Timed<Op>]| {
            search(
                &Number,
                &[std::slice::from_ref(&write), reads].concat(),
                STEPS,
            )
        };
        assert_eq!(with(&[timed(90, 91, Op::Read(0))]), Found::Order);
        assert_eq!(with(&[timed(90, 91, Op::Read(1))]), Found::Order);
        let both = [timed(90, 91, Op::Read(1)), timed(92, 93, Op::Read(0))];
        assert_eq!(with(&both), Found::Nothing);
        assert_eq!(
            with(&[timed(1, 4, Op::Read(1))]),
            Found::Nothing,
            "before its begin"
        );
    }

    #[test]
    fn a_wrong_choice_is_taken_back() {
        // Both writes overlap both reads; only the second write first lets the reads be.
        let calls = [
            timed(1, 10, Op::Write(1)),
            timed(1, 10, Op::Write(2)),
            timed(2, 6, Op::Read(2)),
            timed(7, 9, Op::Read(1)),
        ];
        assert_eq!(search(&Number, &calls, STEPS), Found::Order);
        assert_eq!(search(&Number, &calls, 3), Found::Undecided);
    }

    /// Whether some order of all calls (without those that may not have happened, or with) is allowed: by trying all.
    fn exists(calls: &[Timed<Op>], left: &mut Vec<usize>, state: u8) -> bool {
        let ended = |i: &usize| calls[*i].completed_ns;
        let Some(first_end) = left.iter().filter_map(ended).min() else {
            return true;
        };
        for at in 0..left.len() {
            let call = left.remove(at);
            let next = Number.step(&state, &calls[call].call);
            let is_early = calls[call].invoked_ns <= first_end;
            if is_early && next.is_some_and(|next| exists(calls, left, next)) {
                left.insert(at, call);
                return true;
            }
            left.insert(at, call);
        }
        false
    }

    #[test]
    fn it_finds_what_trying_all_orders_finds() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut counts = [0, 0];
        for _ in 0..3000 {
            let calls: Vec<_> = (0..rng.random_range(1..7))
                .map(|_| {
                    let begin = rng.random_range(0..12);
                    let end = begin + rng.random_range(1..6);
                    let value = rng.random_range(0..3);
                    match rng.random_range(0..5) {
                        0 => timed(begin, None, Op::Write(value)),
                        1 | 2 => timed(begin, end, Op::Write(value)),
                        _ => timed(begin, end, Op::Read(value)),
                    }
                })
                .collect();
            let is_allowed = exists(&calls, &mut (0..calls.len()).collect(), 0);
            let found = search(&Number, &calls, STEPS);
            let wanted = if is_allowed {
                Found::Order
            } else {
                Found::Nothing
            };
            assert_eq!(found, wanted, "{calls:?}");
            counts[usize::from(is_allowed)] += 1;
        }
        assert!(counts.iter().all(|count| *count > 300), "{counts:?}");
    }
}
