//! What goes wrong, and when: nodes end or lose their power, links are held or lose what is sent.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::{NODES, PEOPLE, Phase, Shared, host};

/// From one fault to the next.
const EVERY_MS: Range<u64> = 300..2500;
/// How long a node is away.
const AWAY_MS: Range<u64> = 10..3000;
/// How long a link is not as it should be.
const BAD_LINK_MS: Range<u64> = 50..4000;

/// What goes wrong in a run.
pub(super) struct Faults {
    rng: StdRng,
    shared: Rc<Shared>,
    /// When the next thing goes wrong.
    next: Duration,
    /// What is to be mended, and when.
    mends: Vec<(Duration, Mend)>,
}

/// What ends a fault; of a link with the names of both ends.
#[derive(Debug, Clone)]
enum Mend {
    /// A node is started, and reached again.
    Start(u64),
    /// What was held is delivered.
    Release(String, String),
    /// Nothing is lost any more.
    Repair(String, String),
}

impl Faults {
    pub(super) fn new(rng: StdRng, shared: Rc<Shared>) -> Self {
        Self {
            rng,
            shared,
            next: Duration::ZERO,
            mends: Vec::new(),
        }
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
            mend.apply(sim);
        }
        if phase != Phase::Faults || now < self.next {
            return;
        }
        if self.next > Duration::ZERO {
            self.break_something(sim);
        }
        self.next = now + self.ms(EVERY_MS);
    }

    fn ms(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(range))
    }

    fn break_something(&mut self, sim: &mut turmoil::Sim<'_>) {
        let node = self.rng.random_range(1..=NODES);
        match self.rng.random_range(0..20) {
            0 => {
                self.shared.meet("blackouts");
                for node in 1..=NODES {
                    self.cut_power(sim, node);
                }
            }
            1..5 => {
                self.shared.meet("kills");
                self.end(sim, node);
            }
            5..9 => {
                self.shared.meet("power cuts");
                self.cut_power(sim, node);
            }
            9..12 => {
                self.shared.meet("isolations");
                let holds = self.rng.random();
                let until = sim.elapsed() + self.ms(BAD_LINK_MS);
                for other in others(node) {
                    self.spoil(sim, host::name(node), other, holds, until);
                }
            }
            number => {
                let holds = number < 17;
                self.shared.meet(if holds { "holds" } else { "losses" });
                let others: Vec<String> = others(node).collect();
                let other = self.rng.random_range(0..others.len());
                let until = sim.elapsed() + self.ms(BAD_LINK_MS);
                self.spoil(sim, host::name(node), others[other].clone(), holds, until);
            }
        }
    }

    /// A link holds what is sent, or loses it.
    fn spoil(
        &mut self,
        sim: &turmoil::Sim<'_>,
        from: String,
        to: String,
        holds: bool,
        until: Duration,
    ) {
        let mend = if holds {
            sim.hold(from.as_str(), to.as_str());
            Mend::Release(from, to)
        } else {
            sim.partition(from.as_str(), to.as_str());
            Mend::Repair(from, to)
        };
        self.mends.push((until, mend));
    }

    /// A node ends without a word of its own; whoever is connected is told that the connection is gone, as a system does
    /// whose process was killed.
    fn end(&mut self, sim: &mut turmoil::Sim<'_>, node: u64) {
        if !sim.is_host_running(host::name(node)) {
            return;
        }
        self.shared.note("crash");
        sim.crash(host::name(node));
        // Nothing of it is left but its disks.
        self.shared.metrics.borrow_mut().remove(&node);
        let until = sim.elapsed() + self.ms(AWAY_MS);
        self.mends.push((until, Mend::Start(node)));
    }

    /// As [`Faults::end`], but nobody is told.
    fn cut_power(&mut self, sim: &mut turmoil::Sim<'_>, node: u64) {
        for other in others(node) {
            sim.partition(host::name(node), other);
        }
        self.end(sim, node);
    }
}

impl Mend {
    fn apply(self, sim: &mut turmoil::Sim<'_>) {
        match self {
            Mend::Start(node) => {
                for other in others(node) {
                    sim.repair(host::name(node), other);
                }
                if !sim.is_host_running(host::name(node)) {
                    sim.bounce(host::name(node));
                }
            }
            Mend::Release(from, to) => sim.release(from, to),
            Mend::Repair(from, to) => sim.repair(from, to),
        }
    }
}

/// All hosts but one.
fn others(node: u64) -> impl Iterator<Item = String> {
    let nodes = (1..=NODES).filter(move |other| *other != node);
    nodes.map(host::name).chain([PEOPLE.to_owned()])
}
