//! What there is, what happens next, and when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use crc32fast::Hasher;
use mailbox_engine::{
    EngineOptions, MemoryDisk, Reply, Shard, ShardId, Store, TimelineId, slot_of_owner,
};
use mailbox_jepsen::history::{Op, Outcome, Read, Row, SendId, Source, StateHash, Timeline, View};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;

use crate::Met;
use crate::client::Client;
use crate::consensus::Consensus;
use crate::relay::Shipment;

/// Nodes, each with a replica of every shard.
pub(crate) const NODES: usize = 3;
/// Shards, each with every so manieth slot.
pub(crate) const SHARDS: usize = 2;
pub(crate) const SLOTS: u16 = 8;
/// When the world begins, in milliseconds since the Unix epoch.
const BEGIN_MS: u64 = 1_600_000_000_000;
/// For so long things go wrong.
const FAULTS_MS: u64 = 6_000;
/// After that, all must settle so soon.
const SETTLED_MS: u64 = 60_000;
/// More than any run takes.
const STEPS_MAX: u64 = 2_000_000;
const ROWS_MAX: usize = 1_000_000;

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Event {
    /// A client does the next thing.
    Client(usize),
    /// An answer reaches a client.
    Answer(usize, u64, Reply),
    /// A client waits no more for its answer.
    GiveUp(usize, u64),
    /// A leader makes an entry of what has been waiting.
    Close(usize, u64),
    /// A majority has the oldest entry that is on its way.
    Decide(usize, u64),
    /// A replica is sent entries.
    Receive(usize, usize),
    /// A replica applies entries.
    Apply(usize, usize),
    /// A node flushes, and its leaders purge.
    Flush(usize),
    /// A node's relay looks at an outbox.
    Relay(usize, usize),
    /// Items, or an ack, arrive at the leader that they are for.
    Arrive(Shipment),
    /// Somebody reads.
    Read,
    /// A node ends without a word.
    Crash,
    /// It starts again.
    Start(usize),
    /// A leader is one no more.
    Depose,
    /// Who may lead does.
    Elect(usize),
}

/// One node.
pub(crate) struct Node {
    pub(crate) disk: MemoryDisk,
    /// None while it is down.
    pub(crate) store: Option<Store>,
    /// Its next ingest is cut off half-way.
    pub(crate) is_doomed: bool,
}

/// Everything.
pub(crate) struct World {
    pub(crate) rng: StdRng,
    pub(crate) now_ms: u64,
    /// Something may go wrong still.
    pub(crate) faults: bool,
    pub(crate) nodes: Vec<Node>,
    pub(crate) shards: Vec<Consensus>,
    pub(crate) clients: Vec<Client>,
    pub(crate) dir: TempDir,
    pub(crate) steps: u64,
    pub(crate) ops: Vec<Op>,
    /// Answers to the population.
    pub(crate) heard: Vec<(usize, Reply)>,
    pub(crate) met: Met,
    queue: BinaryHeap<Queued>,
    queued: u64,
    processes: u64,
    last_ns: u64,
    trace: Hasher,
}

struct Queued {
    order: Reverse<(u64, u64)>,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.cmp(&other.order)
    }
}

fn options() -> EngineOptions {
    EngineOptions {
        slot_count: SLOTS,
        // Small, so that much of what is read is in files, and installs have several.
        memtable_bytes_max: 64 << 10,
        memtables_bytes_max: 256 << 10,
        tail_cache_bytes: 4 << 10,
        head_cache_entries: 16,
        install_file_bytes: 4 << 10,
        ..EngineOptions::default()
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for _ in 0..NODES {
            let disk = MemoryDisk::new();
            let store = Store::open_in_memory(&disk, options()).context("open a store")?;
            for shard in 0..SHARDS {
                let slots = (0..SLOTS).filter(|slot| usize::from(*slot) % SHARDS == shard);
                store
                    .create_shard(id_of(shard), slots)
                    .context("make a shard")?;
            }
            let store = Some(store);
            nodes.push(Node {
                disk,
                store,
                is_doomed: false,
            });
        }
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            now_ms: BEGIN_MS,
            faults: true,
            nodes,
            shards: (0..SHARDS).map(|_| Consensus::default()).collect(),
            clients: Vec::new(),
            dir: tempfile::tempdir().context("make a directory")?,
            steps: 0,
            ops: Vec::new(),
            heard: Vec::new(),
            queue: BinaryHeap::new(),
            queued: 0,
            processes: 0,
            last_ns: 0,
            met: Met::default(),
            trace: Hasher::new(),
        };
        for shard in 0..SHARDS {
            world.elect(shard)?;
            for node in 0..NODES {
                world.again(Event::Receive(node, shard), 1..20);
                world.again(Event::Apply(node, shard), 1..20);
                world.again(Event::Relay(node, shard), 1..40);
            }
        }
        for node in 0..NODES {
            world.again(Event::Flush(node), 50..300);
        }
        Ok(world)
    }

    /// Lets it all happen.
    ///
    /// # Errors
    /// When it does not settle, or the engine fails where nothing made it.
    pub(crate) fn run(&mut self) -> anyhow::Result<()> {
        self.populate()?;
        self.again(Event::Crash, 200..800);
        self.again(Event::Depose, 100..600);
        self.again(Event::Read, 1..30);
        let until = self.now_ms + FAULTS_MS;
        while self.now_ms < until {
            self.step()?;
        }
        self.faults = false;
        for node in 0..NODES {
            self.start(node)?;
        }
        let until = self.now_ms + SETTLED_MS;
        while !self.is_settled() {
            if self.now_ms >= until {
                bail!("{} after {SETTLED_MS} ms without a fault", self.unrest());
            }
            self.step()?;
        }
        self.read_all()
    }

    /// Users and groups, while nothing goes wrong.
    fn populate(&mut self) -> anyhow::Result<()> {
        self.faults = false;
        crate::client::populate(self)?;
        self.faults = true;
        Ok(())
    }

    /// The next thing happens.
    pub(crate) fn step(&mut self) -> anyhow::Result<()> {
        let Some(next) = self.queue.pop() else {
            bail!("nothing happens any more");
        };
        self.steps += 1;
        if self.steps > STEPS_MAX {
            bail!("it goes on and on");
        }
        self.now_ms = next.order.0.0.max(self.now_ms);
        self.note(&format!("{} {:?}", self.now_ms, next.event));
        match next.event {
            Event::Client(client) => self.client_acts(client),
            Event::Answer(client, send, reply) => self.client_hears(client, send, &reply),
            Event::GiveUp(client, attempt) => self.client_gives_up(client, attempt),
            Event::Close(shard, term) => self.close(shard, term)?,
            Event::Decide(shard, term) => self.decide(shard, term),
            Event::Receive(node, shard) => {
                self.receive(node, shard)?;
                self.again(Event::Receive(node, shard), 1..20);
            }
            Event::Apply(node, shard) => {
                self.apply(node, shard)?;
                self.again(Event::Apply(node, shard), 1..20);
            }
            Event::Flush(node) => {
                self.flush(node)?;
                self.again(Event::Flush(node), 50..300);
            }
            Event::Relay(node, shard) => {
                self.relay(node, shard);
                self.again(Event::Relay(node, shard), 1..40);
            }
            Event::Arrive(shipment) => self.arrive(shipment),
            Event::Read => {
                self.read_somewhere()?;
                self.again(Event::Read, 1..30);
            }
            Event::Crash if self.faults => {
                let node = self.rng.random_range(0..NODES);
                self.crash(node);
                self.again(Event::Crash, 200..800);
            }
            Event::Start(node) => self.start(node)?,
            Event::Depose if self.faults => {
                let shard = self.rng.random_range(0..SHARDS);
                self.depose(shard);
                self.again(Event::Depose, 100..600);
            }
            Event::Elect(shard) => self.elect(shard)?,
            Event::Crash | Event::Depose => {}
        }
        Ok(())
    }

    /// Puts something into what happened.
    pub(crate) fn note(&mut self, text: &str) {
        self.trace.update(text.as_bytes());
    }

    pub(crate) fn trace(&self) -> u64 {
        u64::from(self.trace.clone().finalize()) | self.steps << 32
    }

    pub(crate) fn take_ops(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.ops)
    }

    /// Something will happen, after a time from this range.
    pub(crate) fn again(&mut self, event: Event, within_ms: std::ops::Range<u64>) {
        let at = self.now_ms + self.rng.random_range(within_ms);
        self.at(event, at);
    }

    pub(crate) fn at(&mut self, event: Event, ms: u64) {
        self.queued += 1;
        self.queue.push(Queued {
            order: Reverse((ms, self.queued)),
            event,
        });
    }

    /// Whether something that goes wrong now and then does.
    pub(crate) fn goes_wrong(&mut self, chance: f64) -> bool {
        self.rng.random_bool(chance) && self.faults
    }

    /// A time that no other thing has.
    pub(crate) fn now_ns(&mut self) -> u64 {
        let ns = (self.now_ms - BEGIN_MS) * 1_000_000;
        self.last_ns = ns.max(self.last_ns + 1);
        self.last_ns
    }

    pub(crate) fn next_process(&mut self) -> u64 {
        self.processes += 1;
        self.processes
    }

    pub(crate) fn replica(&self, node: usize, shard: usize) -> Option<Arc<Shard>> {
        self.nodes[node].store.as_ref()?.shard(id_of(shard))
    }

    pub(crate) fn shard_of_owner(&self, owner: u64) -> usize {
        usize::from(slot_of_owner(owner, SLOTS).0) % SHARDS
    }

    pub(crate) fn shard_of_slot(&self, slot: u16) -> usize {
        usize::from(slot) % SHARDS
    }

    pub(crate) fn crash(&mut self, node: usize) {
        if self.nodes[node].store.is_none() {
            return;
        }
        self.met.crashes += 1;
        self.met.crashes_in_ingest += u64::from(self.nodes[node].is_doomed);
        // A flush comes after the sync of its entries.
        let flushed = |shard| {
            let replica = self.replica(node, shard);
            replica.and_then(|it| it.flushed()).map_or(0, |id| id.index)
        };
        let flushed: Vec<u64> = (0..SHARDS).map(flushed).collect();
        self.nodes[node].store = None;
        self.nodes[node].disk.crash();
        self.nodes[node].is_doomed = false;
        for (shard, flushed) in flushed.into_iter().enumerate() {
            self.lose(node, shard, flushed);
        }
        self.again(Event::Start(node), 50..700);
    }

    fn start(&mut self, node: usize) -> anyhow::Result<()> {
        let it = &mut self.nodes[node];
        if it.store.is_none() {
            let store = Store::open_in_memory(&it.disk, options());
            it.store = Some(store.with_context(|| format!("open the store of node {node}"))?);
        }
        Ok(())
    }

    /// Somebody reads part of a timeline behind a read barrier.
    fn read_somewhere(&mut self) -> anyhow::Result<()> {
        let timelines = crate::client::timelines(self);
        let timeline = timelines[self.rng.random_range(0..timelines.len())];
        let shard = self.shard_of_owner(timeline.owner());
        let Some(replica) = self.barrier(shard) else {
            return Ok(());
        };
        let invoked_ns = self.now_ns();
        let head = replica.head(engine_timeline(timeline))?.0;
        let after = self.rng.random_range(0..=head);
        let view = view(&replica, timeline, after)?;
        let read = self.read(timeline, Source::Leader, false, invoked_ns, view);
        self.ops.push(read);
        Ok(())
    }

    fn read(
        &mut self,
        timeline: Timeline,
        source: Source,
        last: bool,
        invoked_ns: u64,
        view: View,
    ) -> Op {
        Op::Read(Read {
            process: self.next_process(),
            invoked_ns,
            completed_ns: self.now_ns(),
            timeline,
            source,
            last,
            staleness_ms: None,
            outcome: Outcome::Ok(view),
        })
    }

    /// At the end: every timeline through its leader and at each replica, and each replica's hash.
    fn read_all(&mut self) -> anyhow::Result<()> {
        for timeline in crate::client::timelines(self) {
            let shard = self.shard_of_owner(timeline.owner());
            let leader = self.barrier(shard).context("a leader at the end")?;
            let invoked_ns = self.now_ns();
            let view_of_leader = view(&leader, timeline, 0)?;
            let read = self.read(timeline, Source::Leader, true, invoked_ns, view_of_leader);
            self.ops.push(read);
            for node in 0..NODES {
                let replica = self.replica(node, shard).context("a node at the end")?;
                let (source, invoked_ns) = (Source::Node(node as u64 + 1), self.now_ns());
                let view = view(&replica, timeline, 0)?;
                let read = self.read(timeline, source, true, invoked_ns, view);
                self.ops.push(read);
            }
        }
        for (node, shard) in (0..NODES).flat_map(|node| (0..SHARDS).map(move |it| (node, it))) {
            let replica = self.replica(node, shard).context("a node at the end")?;
            let hash = replica.state_hash_now()?.context("something was applied")?;
            self.note(&format!("{node} {shard} {:x}", hash.hash));
            self.ops.push(Op::StateHash(StateHash {
                node: node as u64 + 1,
                shard: shard as u32 + 1,
                index: hash.applied.index,
                hash: format!("{:032x}", hash.hash),
            }));
        }
        Ok(())
    }

    fn is_settled(&self) -> bool {
        self.unrest().is_empty()
    }

    /// What is still to come; empty: nothing.
    fn unrest(&self) -> String {
        let busy = self.clients.iter().filter(|it| it.is_busy()).count();
        if busy > 0 {
            return format!("{busy} clients wait for an answer");
        }
        for (number, shard) in self.shards.iter().enumerate() {
            if !shard.is_at_rest() {
                return format!("shard {number} has no leader, or entries on their way");
            }
            for node in 0..NODES {
                // A crash in the middle of an ingest may still have been to come.
                let Some(replica) = self.replica(node, number) else {
                    return format!("node {node} is down");
                };
                let applied = replica.applied().log_id.map_or(0, |id| id.index);
                if applied < shard.committed() {
                    return format!("node {node} lags in shard {number}");
                }
                if !replica.unacked().is_empty() {
                    return format!("the lanes of shard {number} are not dry");
                }
            }
        }
        String::new()
    }
}

pub(crate) fn id_of(shard: usize) -> ShardId {
    ShardId(shard as u32 + 1)
}

pub(crate) fn engine_timeline(timeline: Timeline) -> TimelineId {
    match timeline {
        Timeline::Mailbox(user) => mailbox_engine::UserId(user).mailbox(),
        Timeline::Group(group) => mailbox_engine::GroupId(group).timeline(),
    }
}

fn view(replica: &Shard, timeline: Timeline, after: u64) -> anyhow::Result<View> {
    let id = engine_timeline(timeline);
    let head = replica.head(id)?.0;
    let from = mailbox_engine::Seq(after + 1);
    let rows = replica.scan(id, from, ROWS_MAX, usize::MAX)?;
    let rows = rows.iter().map(row).collect();
    Ok(View { after, head, rows })
}

fn row(row: &mailbox_engine::Row) -> Row {
    let is_sent = row.kind == mailbox_engine::MessageType::TEXT;
    Row {
        seq: row.seq.0,
        message_id: row.message_id.0,
        sender: row.sender.0,
        recipient: row.recipient.0,
        id: is_sent.then_some(SendId(row.client_msg_id)),
        content: mailbox_engine::content_crc(row.client_msg_id, row.kind, &row.body),
        refused: row.refused.map(|(seq, _)| seq.0),
    }
}
