//! What goes wrong, and when: nodes are cut off, links are held or lose what is sent.

use std::rc::Rc;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::{Hardships, NODES, Phase, Shared, host};

/// From one fault to the next.
const EVERY_MS: std::ops::Range<u64> = 300..2500;
/// How long a node is away.
const AWAY_MS: std::ops::Range<u64> = 10..3000;
/// How long a link is not as it should be.
const BAD_LINK_MS: std::ops::Range<u64> = 50..4000;

/// What goes wrong in a run.
pub(super) struct Faults {
    rng: StdRng,
    shared: Rc<Shared>,
    met: Hardships,
    /// When the next thing goes wrong.
    next: Duration,
    /// What is to be mended, and when.
    mends: Vec<(Duration, Mend)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mend {
    Start(u64),
    Release(u64, u64),
    Repair(u64, u64),
}

impl Faults {
    pub(super) fn new(rng: StdRng, shared: Rc<Shared>) -> Self {
        Self {
            rng,
            shared,
            met: Hardships::default(),
            next: Duration::ZERO,
            mends: Vec::new(),
        }
    }

    pub(super) fn met(&self) -> Hardships {
        self.met
    }

    /// Mends what is due, and breaks something now and then.
    pub(super) fn act(&mut self, sim: &mut turmoil::Sim<'_>) {
        let now = sim.elapsed();
        let phase = self.shared.phase.get();
        let all = phase == Phase::Healed;
        let (due, later) = std::mem::take(&mut self.mends)
            .into_iter()
            .partition(|(at, _)| all || *at <= now);
        self.mends = later;
        for (_, mend) in due {
            self.mend(sim, mend);
        }
        if phase != Phase::Faults || now < self.next {
            return;
        }
        if self.next > Duration::ZERO {
            self.break_something(sim, now);
        }
        self.next = now + self.ms(EVERY_MS);
    }

    fn ms(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(range))
    }

    fn break_something(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let nodes: Vec<u64> = (1..=NODES).collect();
        match self.rng.random_range(0..10) {
            0 => {
                self.met.blackouts += 1;
                for node in nodes {
                    self.cut_off(sim, node, now);
                }
            }
            1..5 => {
                let node = *nodes.choose(&mut self.rng).unwrap_or(&1);
                self.cut_off(sim, node, now);
            }
            5..8 => {
                let (from, to) = self.link();
                self.met.holds += 1;
                sim.hold(host::name(from), host::name(to));
                let until = now + self.ms(BAD_LINK_MS);
                self.mends.push((until, Mend::Release(from, to)));
            }
            _ => {
                let (from, to) = self.link();
                self.met.losses += 1;
                sim.partition(host::name(from), host::name(to));
                let until = now + self.ms(BAD_LINK_MS);
                self.mends.push((until, Mend::Repair(from, to)));
            }
        }
    }

    /// Two nodes.
    fn link(&mut self) -> (u64, u64) {
        let from = self.rng.random_range(0..NODES);
        let to = (from + self.rng.random_range(1..NODES)) % NODES;
        (from + 1, to + 1)
    }

    fn cut_off(&mut self, sim: &mut turmoil::Sim<'_>, node: u64, now: Duration) {
        if !sim.is_host_running(host::name(node)) {
            return;
        }
        self.met.crashes += 1;
        self.shared.note("crash");
        sim.crash(host::name(node));
        // Nothing of it is left but its disks.
        self.shared.metrics.borrow_mut().remove(&node);
        let until = now + self.ms(AWAY_MS);
        self.mends.push((until, Mend::Start(node)));
    }

    fn mend(&self, sim: &mut turmoil::Sim<'_>, mend: Mend) {
        match mend {
            Mend::Start(node) => sim.bounce(host::name(node)),
            Mend::Release(from, to) => sim.release(host::name(from), host::name(to)),
            Mend::Repair(from, to) => sim.repair(host::name(from), host::name(to)),
        }
    }
}
