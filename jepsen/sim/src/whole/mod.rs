//! Whole clusters from a seed: store nodes as they serve, on one thread, in simulated time.
//!
//! | file | holds |
//! |---|---|
//! | `mod.rs` | a run, from its seed to its judgement |
//! | `network.rs` | connections of the nodes and their clients, over turmoil |
//! | `host.rs` | a node that is started, cut off and started again |
//! | `story.rs` | who chats meanwhile, and what has to hold in the end |
//! | `faults.rs` | what goes wrong, and when |
//!
//! Everything above the system is the product's: openraft and all that is glued to it, the shared log, the base store's
//! jobs, snapshots, gRPC over HTTP/2, relay, placement, procedures, the client. Below it the network is turmoil's, rows are
//! kept by the engine's base store in memory, which loses what was not synced, and the clock and the chance of the process
//! are the seed's ([`mailbox_fate`]). The log writes real files; what it has not written when its node is cut off is lost.

mod faults;
mod host;
mod network;
mod story;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use crc32fast::Hasher;
use mailbox_jepsen::checker::{self, Floors, Report};
use mailbox_jepsen::history::History;
use mailbox_jepsen::people::People;
use mailbox_jepsen::workload;
use mailbox_server::simulation::MetricsRegistry;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use self::faults::Faults;
use self::host::Host;
use self::network::Turmoil;

/// Nodes that a cluster begins with.
const FOUNDERS: u64 = 3;
/// Nodes that it has once the others have come.
const NODES: u64 = 4;
/// The host of those who chat.
const PEOPLE: &str = "people";
/// Moves the time.
const TICK: Duration = Duration::from_millis(1);
/// Longer than any run.
const OVER: Duration = Duration::from_secs(600);
/// A message between two hosts takes up to so long.
const LATENCY_MAX: Duration = Duration::from_millis(4);
/// What a thread does takes up to so many milliseconds.
const PAUSE_MS_MAX: u64 = 4;
/// Bytes that a connection may hold.
const TCP_CAPACITY: usize = 65_536;

/// What came of a seed.
#[derive(Debug)]
pub struct Whole {
    /// What the run follows from.
    pub seed: u64,
    /// What people did.
    pub workload: &'static str,
    /// Simulated time that it took.
    pub took: Duration,
    /// Equal for two runs in which the same has happened at the same times.
    pub trace: u64,
    /// What was asked and answered.
    pub history: History,
    /// What the checkers say of it.
    pub report: Report,
    /// What does not serve though nothing is wrong any more, nodes that ended by themselves, panics.
    pub broken: Vec<String>,
    /// Why the run proves nothing, if so.
    pub doubts: Vec<String>,
    /// What there was of what may go wrong.
    pub met: Hardships,
}

/// What went wrong in a run and what an operator did, by name, and how often.
pub type Hardships = BTreeMap<&'static str, u64>;

impl Whole {
    /// What is wrong with it, in words.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let violations = self.report.violations.iter().map(ToString::to_string);
        let doubts = self.report.doubts.iter().chain(&self.doubts).cloned();
        let mut faults: Vec<String> = violations.chain(doubts).collect();
        // Checkers find them in no order.
        faults.sort();
        self.broken.iter().cloned().chain(faults).collect()
    }
}

/// How far a run has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// People come.
    Settling,
    /// They chat, while things go wrong.
    Faults,
    /// Nothing is wrong any more.
    Healed,
    /// All was read.
    Over,
}

/// What hosts and the run know of each other.
struct Shared {
    phase: Cell<Phase>,
    broken: RefCell<Vec<String>>,
    doubts: RefCell<Vec<String>>,
    trace: RefCell<Hasher>,
    met: RefCell<Hardships>,
    /// They have recorded what there was of it, whatever becomes of the rest.
    people: RefCell<Option<People>>,
    /// The metrics of each node, since its last start.
    metrics: RefCell<BTreeMap<u64, MetricsRegistry>>,
}

impl Shared {
    /// Puts something, and when it was, into what happened.
    fn note(&self, what: &str) {
        let mut trace = self.trace.borrow_mut();
        trace.update(&mailbox_fate::elapsed().as_nanos().to_le_bytes());
        trace.update(what.as_bytes());
    }

    fn meet(&self, what: &'static str) {
        *self.met.borrow_mut().entry(what).or_default() += 1;
    }

    fn is_broken(&self, why: String) {
        self.broken.borrow_mut().push(why);
    }

    /// What there is, unless it is an error.
    fn note_broken<T>(&self, found: anyhow::Result<T>) -> Option<T> {
        let broken = |error: anyhow::Error| self.is_broken(format!("{error:#}"));
        found.map_err(broken).ok()
    }

    fn is_doubtful(&self, why: String) {
        self.doubts.borrow_mut().push(why);
    }
}

/// Runs a seed. To be called on a new thread of a process that has run none before: what else was counted in it would
/// make it another run.
///
/// # Errors
/// The simulation itself fails.
pub fn run(seed: u64) -> anyhow::Result<Whole> {
    mailbox_fate::begin(seed);
    let dir = tempfile::tempdir().context("make a directory")?;
    let shared = Rc::new(Shared {
        phase: Cell::new(Phase::Settling),
        broken: RefCell::default(),
        doubts: RefCell::default(),
        trace: RefCell::default(),
        met: RefCell::default(),
        people: RefCell::default(),
        metrics: RefCell::default(),
    });
    let mut seeds = StdRng::seed_from_u64(seed);
    mailbox_cork::simulate(Arc::new(Turmoil));
    let pauses = RefCell::new(StdRng::from_rng(&mut seeds));
    let traced = Rc::clone(&shared);
    mailbox_server::simulation::begin(move || {
        traced.note("pause");
        Duration::from_millis(pauses.borrow_mut().random_range(0..=PAUSE_MS_MAX))
    });

    let mut sim = turmoil::Builder::new()
        .rng_seed(seeds.random())
        .tick_duration(TICK)
        .simulation_duration(OVER)
        .min_message_latency(Duration::ZERO)
        .max_message_latency(LATENCY_MAX)
        .tcp_capacity(TCP_CAPACITY)
        .build();
    for node in 1..=NODES {
        let lease_reads = seeds.random();
        let host = Host::new(node, dir.path(), lease_reads, Rc::clone(&shared))?;
        let host = Rc::new(host);
        sim.host(host::name(node), move || Rc::clone(&host).run());
    }
    let workload = workload::ALL
        .choose(&mut seeds)
        .context("choose a workload")?;
    let story = story::run(workload, seeds.random(), Rc::clone(&shared));
    sim.client(PEOPLE, story);
    let mut faults = Faults::new(StdRng::from_rng(&mut seeds), Rc::clone(&shared));
    while shared.phase.get() != Phase::Over {
        mailbox_fate::advance(sim.elapsed());
        if let Err(error) = sim.step() {
            shared.is_broken(format!("{error}"));
            break;
        }
        faults.act(&mut sim);
    }
    let took = sim.elapsed();
    // As power cuts. What is left of the nodes must not wait for the thread's end.
    drop(sim);
    shared.metrics.take();
    Ok(judge(seed, workload.name, took, &shared))
}

fn judge(seed: u64, workload: &'static str, took: Duration, shared: &Shared) -> Whole {
    let people = shared.people.take();
    let history = people.map_or_else(|| History { ops: Vec::new() }, |people| people.history());
    let broken = shared.broken.take();
    let mut report = checker::check(
        &history,
        &Floors {
            replicas: FOUNDERS as usize,
            ..Floors::default()
        },
    );
    if !broken.is_empty() {
        // What was not read at the end is no wonder then.
        report.doubts.clear();
    }
    let mut doubts = shared.doubts.take();
    let refused = history.appends().filter(|it| it.outcome.is_fail()).count();
    if refused > 0 {
        doubts.push(format!(
            "{refused} sends were refused, though all were good"
        ));
    }
    for op in &history.ops {
        shared
            .trace
            .borrow_mut()
            .update(format!("{op:?}").as_bytes());
    }
    let trace = u64::from(shared.trace.take().finalize()) | (history.ops.len() as u64) << 32;
    Whole {
        seed,
        workload,
        took,
        trace,
        history,
        report,
        broken,
        doubts,
        met: shared.met.take(),
    }
}
