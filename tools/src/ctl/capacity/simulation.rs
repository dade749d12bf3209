//! A discrete-event simulation of two shards that send to each other, from a seed.
//!
//! ```text
//! phone ─▶ gateway ─▶ proposer ─▶ leader's log ─┬─▶ majority ─▶ apply ─▶ ack
//!                        ▲    └─▶ followers' logs ┘               ├────▶ gateway ─▶ phone
//!                        └────────────── other shard's lane ◀─────┘
//! ```
//!
//! Each shard has every station of its own; the logs are shared with the other shards of their nodes, whose entries come
//! at random. Syncs take a time that is drawn from an exponential about the mean: its tail is worse than a good disk's.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};

use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

use super::model::Model;
use super::stations::{LogWriter, Ns, Station};

/// The longest and the shortest time between two ticks of entries, as in `raft/src/entry_tick.rs`.
const TICK_MS_MAX: u64 = 16;
const TICK_MS_MIN: u64 = 2;
/// Ticks are no farther apart than so many times what an entry takes.
const TICK_FLIGHTS: f64 = 8.0;
/// What an entry took moves what they take by this part of the difference.
const FLIGHT_SMOOTHING: f64 = 16.0;
/// Shipments of a lane that are not answered yet, as in `server/src/relay/outgoing.rs`.
const SHIPMENTS_MAX: usize = 2;
/// Mean length of a burst.
const BURST_NS: f64 = 5e8;
const MS: Ns = 1_000_000;
/// What waits longer counts as an hour.
const LATENCY_MAX_NS: Ns = 3_600_000_000_000;

/// Latencies in milliseconds, of the busiest fifth of the day.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Latency {
    pub(super) mean_ms: f64,
    pub(super) p50_ms: f64,
    pub(super) p95_ms: f64,
    pub(super) p99_ms: f64,
}

/// What one seed came to. Shares and rates are of the busiest fifth, and of the first shard.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Outcome {
    pub(super) seed: u64,
    /// Of the whole day, both shards.
    pub(super) sends: u64,
    pub(super) acked: u64,
    pub(super) delivered: u64,
    /// From the gateway and back to it.
    pub(super) ack: Latency,
    /// From the sender's gateway until the recipient's pushes it.
    pub(super) delivery: Latency,
    pub(super) proposer_share: f64,
    pub(super) apply_share: f64,
    /// Of the leader's log: near 1 is no overload, since the more waits, the more goes with one sync.
    pub(super) sync_share: f64,
    pub(super) fsyncs_per_s: f64,
    pub(super) entries_per_sync: f64,
    pub(super) commands_per_entry: f64,
}

/// One of the two shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shard {
    First,
    Second,
}

impl Shard {
    const BOTH: [Shard; 2] = [Shard::First, Shard::Second];

    fn other(self) -> Shard {
        match self {
            Shard::First => Shard::Second,
            Shard::Second => Shard::First,
        }
    }
}

/// What happens next, and to which shard.
#[derive(Debug)]
enum Step {
    /// A client sends, and the next one is drawn.
    Arrive,
    /// A send has reached its leader.
    Call(Message),
    /// A shipment of the other shard's lane has.
    Ship(Vec<Message>),
    /// Small entries may go.
    Tick,
    /// An entry is built.
    Built {
        entry: usize,
    },
    /// It is at a replica.
    Reach {
        node: usize,
        entry: usize,
    },
    /// An entry of some other shard is at a replica's log.
    Other {
        node: usize,
    },
    Synced {
        node: usize,
    },
    /// The leader learns that a replica has synced an entry.
    Vote {
        entry: usize,
    },
    Applied(Entry),
    /// The other shard has applied a shipment of this one.
    Answered,
}

/// A step and when it is due. What is due at one moment comes in the order in which it was said.
struct Due {
    at: Ns,
    said: u64,
    shard: Shard,
    step: Step,
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> Ordering {
        (self.at, self.said).cmp(&(other.at, other.said))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

#[derive(Debug, Clone, Copy)]
struct Message {
    sent: Ns,
    crosses: bool,
    to_group: bool,
}

/// What an entry holds.
#[derive(Debug, Clone, Copy)]
enum Command {
    Send(Message),
    Deliver(Message),
    /// The last of its shipment, which is answered then.
    DeliverLast(Message),
}

#[derive(Debug)]
struct Entry {
    commands: Vec<Command>,
    begun: Ns,
    votes: usize,
}

/// One shard, with its leader and its followers.
#[derive(Default)]
struct Side {
    bursts: Vec<(Ns, Ns)>,
    waiting: VecDeque<Command>,
    proposer: Station,
    in_flight: usize,
    /// A tick has been asked for.
    awaits_tick: bool,
    flight_us: f64,
    /// Not yet committed, in order.
    entries: VecDeque<Entry>,
    /// Entries before them.
    committed: usize,
    /// The leader's first.
    logs: Vec<LogWriter>,
    apply: Station,
    /// Messages for the other shard that no shipment has.
    outbox: Vec<Message>,
    unanswered: usize,
    measured_entries: u64,
    measured_commands: u64,
}

/// One run.
struct Simulation<'a> {
    model: &'a Model,
    rng: SmallRng,
    now: Ns,
    steps: BinaryHeap<Reverse<Due>>,
    said: u64,
    first: Side,
    second: Side,
    sends: u64,
    acked: u64,
    delivered: u64,
    ack_ns: Histogram<u64>,
    delivery_ns: Histogram<u64>,
}

/// Runs the day of a seed to its end, until nothing is on its way.
///
/// # Errors
/// No send came in the busiest fifth: there is nothing to measure.
pub(super) fn run(model: &Model, seed: u64) -> anyhow::Result<Outcome> {
    let mut simulation = Simulation::new(model, seed)?;
    simulation.begin();
    while let Some(Reverse(due)) = simulation.steps.pop() {
        simulation.now = due.at;
        simulation.take(due.shard, due.step);
    }
    simulation.outcome(seed)
}

impl<'a> Simulation<'a> {
    fn new(model: &'a Model, seed: u64) -> anyhow::Result<Simulation<'a>> {
        let side = || Side {
            logs: vec![LogWriter::default(); model.replicas],
            ..Side::default()
        };
        Ok(Simulation {
            model,
            rng: SmallRng::seed_from_u64(seed),
            now: 0,
            steps: BinaryHeap::new(),
            said: 0,
            first: side(),
            second: side(),
            sends: 0,
            acked: 0,
            delivered: 0,
            ack_ns: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?,
            delivery_ns: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?,
        })
    }

    fn side(&mut self, shard: Shard) -> &mut Side {
        match shard {
            Shard::First => &mut self.first,
            Shard::Second => &mut self.second,
        }
    }

    fn begin(&mut self) {
        for shard in Shard::BOTH {
            let bursts = self.draw_bursts();
            self.side(shard).bursts = bursts;
            self.draw_arrival(shard);
            for node in 0..self.model.replicas {
                self.draw_other(shard, node);
            }
        }
    }

    fn say(&mut self, at: Ns, shard: Shard, step: Step) {
        self.said += 1;
        self.steps.push(Reverse(Due {
            at,
            said: self.said,
            shard,
            step,
        }));
    }

    /// A time whose mean is so long, in nanoseconds.
    fn exponential(&mut self, mean_ns: f64) -> Ns {
        let uniform: f64 = self.rng.random();
        (-(1.0 - uniform).ln() * mean_ns) as Ns
    }

    fn draw_bursts(&mut self) -> Vec<(Ns, Ns)> {
        let (share, mut bursts, mut at) = (self.model.burst_share, Vec::new(), 0);
        while share > 0.0 && at < self.model.horizon {
            let from = at + self.exponential(BURST_NS * (1.0 - share) / share);
            at = from + self.exponential(BURST_NS).max(1);
            bursts.push((from, at));
        }
        bursts
    }

    /// A Poisson process whose rate changes: drawn at the highest, and thinned.
    fn draw_arrival(&mut self, shard: Shard) {
        let highest = self.model.sends_per_s * self.model.burst_factor;
        let mut at = self.now;
        loop {
            at = at.saturating_add(self.exponential(1e9 / highest).max(1));
            if at >= self.model.horizon {
                return;
            }
            let mut bursts = self.side(shard).bursts.iter();
            let factor = match bursts.any(|(from, to)| (*from..*to).contains(&at)) {
                true => self.model.burst_factor,
                false => 1.0,
            };
            let kept = self.model.rate_at(at) * factor / highest;
            if self.rng.random::<f64>() < kept {
                return self.say(at, shard, Step::Arrive);
            }
        }
    }

    fn draw_other(&mut self, shard: Shard, node: usize) {
        let rate = self.model.other_entries_per_s;
        if rate <= 0.0 {
            return;
        }
        let at = self.now.saturating_add(self.exponential(1e9 / rate).max(1));
        if at < self.model.horizon {
            self.say(at, shard, Step::Other { node });
        }
    }

    fn take(&mut self, shard: Shard, step: Step) {
        match step {
            Step::Arrive => self.arrive(shard),
            Step::Call(message) => {
                self.side(shard).waiting.push_back(Command::Send(message));
                self.propose(shard);
            }
            Step::Ship(messages) => self.receive(shard, &messages),
            Step::Tick => {
                self.side(shard).awaits_tick = false;
                self.propose(shard);
            }
            Step::Built { entry } => {
                self.reach(shard, 0, Some(entry));
                for node in 1..self.model.replicas {
                    let at = self.now + self.model.hop;
                    self.say(at, shard, Step::Reach { node, entry });
                }
            }
            Step::Reach { node, entry } => self.reach(shard, node, Some(entry)),
            Step::Other { node } => {
                self.reach(shard, node, None);
                self.draw_other(shard, node);
            }
            Step::Synced { node } => self.synced(shard, node),
            Step::Vote { entry } => self.vote(shard, entry),
            Step::Applied(entry) => self.applied(shard, entry),
            Step::Answered => {
                self.side(shard).unanswered -= 1;
                self.relay(shard);
            }
        }
    }

    fn arrive(&mut self, shard: Shard) {
        let to_group = self.rng.random::<f64>() < self.model.group_share;
        let crosses = !to_group && self.rng.random::<f64>() < self.model.cross_share;
        let message = Message {
            sent: self.now,
            crosses,
            to_group,
        };
        self.sends += 1;
        let at = self.now + self.model.frame + self.model.hop;
        self.say(at, shard, Step::Call(message));
        self.draw_arrival(shard);
    }

    /// Makes entries of what waits, by the proposer's rules.
    fn propose(&mut self, shard: Shard) {
        let (model, now) = (self.model, self.now);
        let measured = model.is_busiest(now);
        loop {
            let this = self.side(shard);
            if this.waiting.is_empty() || this.in_flight >= model.entries_in_flight_max {
                return;
            }
            if this.waiting.len() < model.commands_worth {
                if this.in_flight > 0 {
                    return;
                }
                let tick = next_tick(model, now, this.flight_us);
                if tick > now {
                    if !std::mem::replace(&mut this.awaits_tick, true) {
                        self.say(tick, shard, Step::Tick);
                    }
                    return;
                }
            }
            let count = this.waiting.len().min(model.commands_full);
            let commands: Vec<Command> = this.waiting.drain(..count).collect();
            let built = this
                .proposer
                .serve(now, model.propose * count as Ns, measured);
            if measured {
                this.measured_entries += 1;
                this.measured_commands += count as u64;
            }
            this.in_flight += 1;
            this.entries.push_back(Entry {
                commands,
                begun: now,
                votes: 0,
            });
            let entry = this.committed + this.entries.len() - 1;
            self.say(built, shard, Step::Built { entry });
        }
    }

    /// An entry, the shard's or another one's, waits for a log.
    fn reach(&mut self, shard: Shard, node: usize, entry: Option<usize>) {
        if let Some(log) = self.side(shard).logs.get_mut(node) {
            log.queue(entry);
        }
        self.sync(shard, node);
    }

    fn sync(&mut self, shard: Shard, node: usize) {
        let (model, measured) = (self.model, self.model.is_busiest(self.now));
        let Some(log) = self.side(shard).logs.get_mut(node) else {
            return;
        };
        let Some(entries) = log.begin() else {
            return;
        };
        let takes = self.exponential(model.sync_us * 1e3) + entries * model.sync_entry;
        if measured && let Some(log) = self.side(shard).logs.get_mut(node) {
            log.count(entries, takes);
        }
        self.say(self.now + takes, shard, Step::Synced { node });
    }

    fn synced(&mut self, shard: Shard, node: usize) {
        let hop = if node == 0 { 0 } else { self.model.hop };
        let log = self.side(shard).logs.get_mut(node);
        for entry in log.map(LogWriter::end).unwrap_or_default() {
            self.say(self.now + hop, shard, Step::Vote { entry });
        }
        self.sync(shard, node);
    }

    fn vote(&mut self, shard: Shard, entry: usize) {
        let (model, now) = (self.model, self.now);
        let majority = model.replicas / 2 + 1;
        let this = self.side(shard);
        // The vote of the slowest comes when the entry is committed already.
        let place = entry.checked_sub(this.committed);
        if let Some(voted) = place.and_then(|place| this.entries.get_mut(place)) {
            voted.votes += 1;
        }
        while let Some(next) = self.committed_next(shard, majority) {
            let takes = model.apply * next.commands.len() as Ns;
            let apply = &mut self.side(shard).apply;
            let end = apply.serve(now, takes, model.is_busiest(now));
            self.say(end, shard, Step::Applied(next));
        }
    }

    /// The next entry in order, if a majority has it.
    fn committed_next(&mut self, shard: Shard, majority: usize) -> Option<Entry> {
        let this = self.side(shard);
        let next = this.entries.pop_front_if(|entry| entry.votes >= majority)?;
        this.committed += 1;
        Some(next)
    }

    fn applied(&mut self, shard: Shard, entry: Entry) {
        let took_us = (self.now - entry.begun) as f64 / 1e3;
        let this = self.side(shard);
        this.in_flight -= 1;
        this.flight_us += (took_us - this.flight_us) / FLIGHT_SMOOTHING;
        for command in entry.commands {
            match command {
                Command::Send(message) => self.acknowledge(shard, message),
                Command::Deliver(message) => self.deliver(message),
                Command::DeliverLast(message) => {
                    self.deliver(message);
                    let at = self.now + self.model.hop;
                    self.say(at, shard.other(), Step::Answered);
                }
            }
        }
        self.relay(shard);
        self.propose(shard);
    }

    fn acknowledge(&mut self, shard: Shard, message: Message) {
        self.acked += 1;
        if self.model.is_busiest(message.sent) {
            let at = self.now + self.model.hop;
            self.ack_ns.saturating_record(at - message.sent);
        }
        match message.crosses {
            true => self.side(shard).outbox.push(message),
            false => self.deliver(message),
        }
    }

    fn deliver(&mut self, message: Message) {
        self.delivered += 1;
        // A recipient stands anywhere among those that one gateway pushes to.
        let pushes = match message.to_group {
            true => 1.0 + self.rng.random::<f64>() * (self.model.pushes_of_group - 1.0),
            false => 1.0,
        };
        if self.model.is_busiest(message.sent) {
            let push = (self.model.push as f64 * pushes) as Ns;
            let at = self.now + self.model.hop + self.model.stream + push;
            self.delivery_ns.saturating_record(at - message.sent);
        }
    }

    /// Ships what waits in the outbox, if not too much is unanswered.
    fn relay(&mut self, shard: Shard) {
        let this = self.side(shard);
        if this.outbox.is_empty() || this.unanswered >= SHIPMENTS_MAX {
            return;
        }
        this.unanswered += 1;
        let messages = std::mem::take(&mut this.outbox);
        let at = self.now + self.model.hop;
        self.say(at, shard.other(), Step::Ship(messages));
    }

    fn receive(&mut self, shard: Shard, messages: &[Message]) {
        if let Some((last, before)) = messages.split_last() {
            let waiting = &mut self.side(shard).waiting;
            waiting.extend(before.iter().copied().map(Command::Deliver));
            waiting.push_back(Command::DeliverLast(*last));
        }
        self.propose(shard);
    }

    fn outcome(&self, seed: u64) -> anyhow::Result<Outcome> {
        if self.ack_ns.is_empty() || self.delivery_ns.is_empty() {
            anyhow::bail!(
                "no send came in the busiest fifth of the simulated day at {:.3} sends/s a shard: raise --seconds",
                self.model.sends_per_s
            );
        }
        let first = &self.first;
        let seconds = self.model.busiest_s();
        let share = |busy: Ns| busy as f64 / 1e9 / seconds;
        let log = first.logs.first().cloned().unwrap_or_default();
        Ok(Outcome {
            seed,
            sends: self.sends,
            acked: self.acked,
            delivered: self.delivered,
            ack: latency(&self.ack_ns),
            delivery: latency(&self.delivery_ns),
            proposer_share: share(first.proposer.busy),
            apply_share: share(first.apply.busy),
            sync_share: share(log.busy),
            fsyncs_per_s: log.syncs as f64 / seconds,
            entries_per_sync: log.entries as f64 / log.syncs.max(1) as f64,
            commands_per_entry: first.measured_commands as f64
                / first.measured_entries.max(1) as f64,
        })
    }
}

/// When a small entry may go that could go now.
fn next_tick(model: &Model, now: Ns, flight_us: f64) -> Ns {
    let others = model.other_commands_per_s * flight_us / 1e6;
    let ms = (flight_us * TICK_FLIGHTS / 1e3).min(others) as u64;
    let ms = ms.min(TICK_MS_MAX);
    match ms < TICK_MS_MIN {
        true => now,
        false => now.next_multiple_of(MS << ms.ilog2()),
    }
}

fn latency(latencies: &Histogram<u64>) -> Latency {
    let at = |percentile| latencies.value_at_percentile(percentile) as f64 / 1e6;
    Latency {
        mean_ms: latencies.mean() / 1e6,
        p50_ms: at(50.0),
        p95_ms: at(95.0),
        p99_ms: at(99.0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::model;
    use super::super::stations::ns;
    use super::*;

    /// Both shards are a single station: nothing takes time but apply, and every send is an entry.
    fn single_station(sends_per_s: f64, apply_us: f64) -> Model {
        Model {
            horizon: 20_000_000_000,
            sends_per_s,
            peak_factor: 1.0,
            burst_factor: 1.0,
            burst_share: 0.0,
            group_share: 1.0,
            cross_share: 0.0,
            replicas: 1,
            hop: 0,
            frame: 0,
            propose: 0,
            commands_worth: 1,
            commands_full: 1,
            entries_in_flight_max: usize::MAX,
            other_commands_per_s: 0.0,
            other_entries_per_s: 0.0,
            sync_us: 0.0,
            sync_entry: 0,
            apply: ns(apply_us),
            stream: 0,
            push: 0,
            pushes_of_group: 1.0,
        }
    }

    #[test]
    fn a_shard_that_only_applies_is_m_d_1() {
        let (apply_us, busy) = (200.0, 0.7);
        let outcome = run(&single_station(busy * 1e6 / apply_us, apply_us), 11).unwrap();
        let theory_ms = apply_us / 1e3 * (1.0 + busy / (2.0 * (1.0 - busy)));
        let off = outcome.ack.mean_ms / theory_ms - 1.0;
        assert!(off.abs() < 0.08, "{outcome:?}, theory {theory_ms} ms");
        assert!((outcome.apply_share - busy).abs() < 0.03, "{outcome:?}");
        assert_eq!(outcome.commands_per_entry, 1.0);
    }

    #[test]
    fn what_arrives_leaves_once() {
        for flags in [
            &[][..],
            &[
                ("group_share", 0.0),
                ("burst_factor", 10.0),
                ("burst_share", 0.2),
            ],
            &[("replicas", 5.0), ("body_bytes", 8_192.0)],
            &[("replicas", 1.0), ("recipients_online", 0.0)],
            // More than a shard can apply.
            &[("apply_us", 1_500.0)],
        ] {
            let outcome = run(&model(flags, 4), 3).unwrap();
            // Large bodies make many shards, and each gets few sends.
            assert!(outcome.sends > 100, "{flags:?}: {outcome:?}");
            assert_eq!(outcome.acked, outcome.sends, "{flags:?}");
            assert_eq!(outcome.delivered, outcome.sends, "{flags:?}");
        }
    }

    #[test]
    fn a_seed_is_one_run() {
        let model = model(&[], 2);
        assert_eq!(run(&model, 5).unwrap(), run(&model, 5).unwrap());
        assert_ne!(run(&model, 5).unwrap(), run(&model, 6).unwrap());
    }

    #[test]
    fn more_load_and_slower_parts_wait_longer() {
        let p95 = |flags: &[(&'static str, f64)]| {
            let outcome = run(&model(flags, 4), 1).unwrap();
            (outcome.ack.p95_ms, outcome.delivery.p95_ms)
        };
        for (name, steps) in [
            ("round_trip_us", [100.0, 5_000.0, 50_000.0]),
            ("fdatasync_us", [100.0, 5_000.0, 50_000.0]),
            ("apply_us", [4.0, 150.0, 400.0]),
        ] {
            let found = steps.map(|step| p95(&[(name, step)]));
            assert!(
                found.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1),
                "{name}: {found:?}"
            );
        }
        // A message that crosses takes two ways.
        let (ack, delivery) = p95(&[("group_share", 0.0)]);
        assert!(delivery > ack);
    }

    #[test]
    fn small_commands_share_entries_when_there_are_many() {
        let of = |rate| {
            let mut model = model(&[("group_share", 0.0)], 4);
            model.sends_per_s = rate;
            run(&model, 1).unwrap().commands_per_entry
        };
        let (few, many) = (of(50.0), of(20_000.0));
        assert!(few < 4.0 && many >= 25.0, "{few} and {many}");
    }

    #[test]
    fn a_day_without_a_send_is_told() {
        let mut model = model(&[], 1);
        model.sends_per_s = 1e-6;
        let error = run(&model, 1).unwrap_err().to_string();
        assert!(error.contains("--seconds"), "{error}");
    }

    #[test]
    fn a_sync_of_many_entries_is_shared() {
        // So many entries of others that a sync for each would take thrice the time there is.
        let mut model = model(&[], 4);
        model.other_entries_per_s = 3e6 / model.sync_us;
        let outcome = run(&model, 1).unwrap();
        assert!(outcome.entries_per_sync > 2.5, "{outcome:?}");
        assert!(outcome.sync_share > 0.85, "{outcome:?}");
        assert!(outcome.ack.p95_ms < 200.0, "{outcome:?}");
    }
}
