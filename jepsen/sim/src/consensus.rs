//! The log of a shard, as a majority has agreed on it, and who leads: a model of what Raft promises, no more.
//!
//! An entry that its leader has made is on its way until a majority has it. If the leader is deposed before, its successor
//! may have the first of them, none or all, in their order; the rest is gone, and nobody tells whoever asked. Who leads
//! has all that was agreed on, and begins with an entry of its own term. A node that crashes has of the log what it had
//! synced: all that it has been counted for, and perhaps more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use mailbox_engine::{
    ApplyEntry, ApplyPayload, ClusterOptions, Command, EntryBuilder, Hlc, IngestCrash, LogId,
    Refusal, Reply, SetClusterOptions, Shard,
};
use rand::RngExt as _;
use rand::seq::IndexedRandom as _;

use crate::relay::Shipment;
use crate::world::{Event, NODES, SHARDS, World};

/// See `Hlc::new`.
const SKEW_MAX_MS: u64 = 500;
/// Commands of one entry.
const COMMANDS_MAX: usize = 8;
/// Entries that a replica gets, or applies, at once.
const ENTRIES_MAX: u64 = 6;
/// Entries on their way from one leader.
const FLIGHTS_MAX: usize = 4;
/// Commands that wait for a leader's next entry.
const WAITING_MAX: usize = 64;

/// Who asked for a command.
#[derive(Debug, Clone)]
pub(crate) enum Asker {
    /// A client, for this send of its.
    Client(usize, u64),
    /// The relay of some shard.
    Relay,
    /// Nobody waits.
    Nobody,
}

/// The log of one shard.
#[derive(Default)]
pub(crate) struct Consensus {
    /// All that was agreed on: the entry at `index` is at `index - 1`.
    log: Vec<ApplyEntry>,
    /// No leader has entries up to this one any more.
    purged: u64,
    term: u64,
    leader: Option<Leader>,
    /// What a deposed leader had on its way.
    orphans: VecDeque<Flight>,
    /// Up to where each node has the log.
    received: [u64; NODES],
    /// Up to where each was part of a majority.
    counted: [u64; NODES],
}

struct Leader {
    node: usize,
    /// Of its first entry.
    begun: u64,
    hlc: Option<Hlc>,
    waiting: Vec<(Command, Asker)>,
    flights: VecDeque<Flight>,
    /// Its last flight is not decided before.
    decided_ms: u64,
    /// By index, who waits for the replies of an entry.
    asked: BTreeMap<u64, Vec<Asker>>,
}

struct Flight {
    term: u64,
    node: usize,
    bytes: Bytes,
    askers: Vec<Asker>,
}

impl Consensus {
    pub(crate) fn committed(&self) -> u64 {
        self.log.len() as u64
    }

    pub(crate) fn is_at_rest(&self) -> bool {
        let leads = |it: &Leader| it.flights.is_empty() && it.waiting.is_empty();
        self.leader.as_ref().is_some_and(leads)
    }

    fn push(&mut self, term: u64, node: usize, payload: ApplyPayload) -> u64 {
        let index = self.committed() + 1;
        let log_id = LogId {
            term,
            node: node as u64 + 1,
            index,
        };
        self.log.push(ApplyEntry { log_id, payload });
        index
    }

    /// Two nodes have the log up to there.
    fn count(&mut self, nodes: [usize; 2]) {
        let committed = self.committed();
        for node in nodes {
            self.received[node] = committed;
            self.counted[node] = committed;
        }
    }
}

impl World {
    pub(crate) fn leads(&self, node: usize, shard: usize) -> bool {
        let leader = self.shards[shard].leader.as_ref();
        leader.is_some_and(|leader| leader.node == node)
    }

    /// Asks the leader of a shard for something; whether there is one that takes it.
    pub(crate) fn propose(&mut self, shard: usize, command: Command, asker: Asker) -> bool {
        let Some(replica) = self.leading(shard) else {
            return false;
        };
        let it = &mut self.shards[shard];
        let term = it.term;
        let Some(leader) = &mut it.leader else {
            return false;
        };
        if leader.waiting.len() >= WAITING_MAX {
            return false;
        }
        if leader.hlc.is_none() {
            leader.hlc = Some(Hlc::new(replica.last_message_id(), SKEW_MAX_MS));
        }
        leader.waiting.push((command, asker));
        if leader.waiting.len() == 1 {
            self.again(Event::Close(shard, term), 0..4);
        }
        true
    }

    /// The replica of a leader that has applied the first entry of its term.
    fn leading(&self, shard: usize) -> Option<Arc<Shard>> {
        let leader = self.shards[shard].leader.as_ref()?;
        let replica = self.replica(leader.node, shard)?;
        (applied(&replica) >= leader.begun).then_some(replica)
    }

    /// The replica of a leader, if it has applied all that was agreed on: what a read barrier waits for.
    pub(crate) fn barrier(&self, shard: usize) -> Option<Arc<Shard>> {
        let replica = self.leading(shard)?;
        (applied(&replica) == self.shards[shard].committed()).then_some(replica)
    }

    /// An entry is made of what waits.
    pub(crate) fn close(&mut self, shard: usize, term: u64) -> anyhow::Result<()> {
        let now_ms = self.now_ms;
        let decided_ms = now_ms + self.rng.random_range(1..15);
        let it = &mut self.shards[shard];
        let Some(leader) = it.leader.as_mut().filter(|_| it.term == term) else {
            return Ok(());
        };
        if leader.flights.len() >= FLIGHTS_MAX {
            self.again(Event::Close(shard, term), 1..4);
            return Ok(());
        }
        let count = leader.waiting.len().min(COMMANDS_MAX);
        let hlc = leader.hlc.as_mut().context("who proposes has a clock")?;
        let (mut entry, mut askers) = (EntryBuilder::new(now_ms), Vec::new());
        for (mut command, asker) in leader.waiting.drain(..count) {
            command.assign(hlc, now_ms);
            entry.push(&command);
            askers.push(asker);
        }
        leader.flights.push_back(Flight {
            term,
            node: leader.node,
            bytes: entry.finish(),
            askers,
        });
        leader.decided_ms = decided_ms.max(leader.decided_ms);
        let (at, is_more) = (leader.decided_ms, !leader.waiting.is_empty());
        self.at(Event::Decide(shard, term), at);
        if is_more {
            self.again(Event::Close(shard, term), 0..4);
        }
        Ok(())
    }

    /// A majority has the oldest entry on its way, if there is a majority.
    pub(crate) fn decide(&mut self, shard: usize, term: u64) {
        let it = &self.shards[shard];
        let Some(node) = it.leader.as_ref().map(|leader| leader.node) else {
            return;
        };
        if it.term != term {
            return;
        }
        let Some(other) = self.other_up(node, shard) else {
            self.again(Event::Decide(shard, term), 5..30);
            return;
        };
        let it = &mut self.shards[shard];
        let flight = it
            .leader
            .as_mut()
            .and_then(|leader| leader.flights.pop_front());
        let Some(flight) = flight else { return };
        let index = it.push(term, node, ApplyPayload::Commands(flight.bytes));
        it.count([node, other]);
        if let Some(leader) = &mut it.leader {
            leader.asked.insert(index, flight.askers);
        }
    }

    /// Another node that can be sent the log: it is up, and lacks nothing that was purged.
    fn other_up(&mut self, node: usize, shard: usize) -> Option<usize> {
        let (shard, nodes) = (&self.shards[shard], &self.nodes);
        let others = (0..NODES).filter(|it| {
            *it != node && nodes[*it].store.is_some() && shard.received[*it] >= shard.purged
        });
        let others: Vec<usize> = others.collect();
        others.choose(&mut self.rng).copied()
    }

    /// A replica gets what it lacks of the log, or a snapshot.
    pub(crate) fn receive(&mut self, node: usize, shard: usize) -> anyhow::Result<()> {
        let count = self.rng.random_range(1..=ENTRIES_MAX);
        let (Some(replica), Some(leader)) = (self.replica(node, shard), self.leading(shard)) else {
            return Ok(());
        };
        let it = &mut self.shards[shard];
        if it.received[node] >= it.purged {
            it.received[node] = it.committed().min(it.received[node] + count);
            return Ok(());
        }
        let snapshot = leader.snapshot().context("take a snapshot")?;
        let upto = snapshot.meta().applied.log_id.map_or(0, |id| id.index);
        if upto <= applied(&replica) {
            it.received[node] = it.received[node].max(upto);
            return Ok(());
        }
        self.note("snapshot");
        let dir = self.dir.path().join(format!("{}", self.steps));
        std::fs::create_dir(&dir).context("make a directory")?;
        let files = snapshot
            .write_files(&dir, &mut |_| ())
            .context("write a snapshot")?;
        let paths: Vec<_> = files.into_iter().map(|file| file.path).collect();
        self.doom(node);
        let installed = replica.install_files(snapshot.meta(), &paths);
        std::fs::remove_dir_all(&dir).context("remove a snapshot")?;
        drop(replica);
        match installed {
            Ok(()) => {
                self.met.installs += 1;
                let it = &mut self.shards[shard];
                it.received[node] = it.received[node].max(upto);
            }
            Err(_) if self.nodes[node].is_doomed => self.crash(node),
            Err(error) => return Err(error).context("install a snapshot"),
        }
        Ok(())
    }

    /// Now and then the next ingest is cut off half-way, and the node with it.
    fn doom(&mut self, node: usize) {
        if !self.goes_wrong(0.03) {
            return;
        }
        let at = if self.rng.random_bool(0.5) {
            IngestCrash::Before
        } else {
            IngestCrash::After
        };
        self.nodes[node].disk.crash_next_ingest(at);
        self.nodes[node].is_doomed = true;
    }

    /// A replica applies some of what it has; the leader's replies go to who asked.
    pub(crate) fn apply(&mut self, node: usize, shard: usize) -> anyhow::Result<()> {
        let count = self.rng.random_range(1..=ENTRIES_MAX);
        let Some(replica) = self.replica(node, shard) else {
            return Ok(());
        };
        if replica.stalled() {
            return self.flush(node);
        }
        let it = &self.shards[shard];
        let done = applied(&replica);
        let upto = it.received[node].min(done + count);
        let Some(entries) = it.log.get(done as usize..upto as usize) else {
            return Ok(());
        };
        if entries.is_empty() {
            return Ok(());
        }
        let applied = replica.apply(entries).context("apply")?;
        let it = &mut self.shards[shard];
        let Some(leader) = it.leader.as_mut().filter(|leader| leader.node == node) else {
            return Ok(());
        };
        let mut answers = Vec::new();
        for (index, replies) in (done + 1..).zip(applied.replies) {
            let askers = leader.asked.remove(&index).unwrap_or_default();
            answers.extend(askers.into_iter().zip(replies));
        }
        for (asker, reply) in answers {
            self.answer(shard, asker, reply);
        }
        Ok(())
    }

    fn answer(&mut self, shard: usize, asker: Asker, reply: Reply) {
        if self.goes_wrong(0.03) {
            return;
        }
        match (asker, reply) {
            (Asker::Client(client, send), reply) => {
                self.again(Event::Answer(client, send, reply), 1..15);
            }
            (Asker::Relay, Reply::Delivered { lane, mark, .. }) => {
                self.again(Event::Arrive(Shipment::Ack { lane, mark }), 1..15);
            }
            (Asker::Relay, Reply::Refused(Refusal::Retry)) | (Asker::Nobody, _) => {}
            (Asker::Relay, reply) => self.note(&format!("shard {shard}: {reply:?}")),
        }
    }

    /// A node flushes every shard, each in a file of its own or all in one; leaders purge what is in files.
    pub(crate) fn flush(&mut self, node: usize) -> anyhow::Result<()> {
        let together = self.rng.random_bool(0.5);
        self.doom(node);
        let Some(store) = &self.nodes[node].store else {
            return Ok(());
        };
        let shards = store.shards().into_iter().filter_map(|id| store.shard(id));
        let frozen = shards.filter_map(|shard| Some((shard.clone(), shard.freeze()?)));
        let frozen: Vec<_> = frozen.collect();
        let flushed = if together && !frozen.is_empty() {
            let built = store.build(frozen);
            built.and_then(|built| store.ingest(built)).map(drop)
        } else {
            frozen.into_iter().try_for_each(|(shard, frozen)| {
                let built = shard.build(&frozen)?;
                shard.ingest(built).map(drop)
            })
        };
        match flushed {
            Ok(()) => {}
            Err(_) if self.nodes[node].is_doomed => {
                self.crash(node);
                return Ok(());
            }
            Err(error) => return Err(error).context("flush"),
        }
        for shard in 0..SHARDS {
            if !self.leads(node, shard) || !self.rng.random_bool(0.5) {
                continue;
            }
            let flushed = self.replica(node, shard).and_then(|it| it.flushed());
            let it = &mut self.shards[shard];
            it.purged = it.purged.max(flushed.map_or(0, |id| id.index));
        }
        Ok(())
    }

    /// What a node loses of the log with its power, and its leadership.
    pub(crate) fn lose(&mut self, node: usize, shard: usize, flushed: u64) {
        let it = &mut self.shards[shard];
        let kept = it.counted[node].max(flushed);
        let kept = self.rng.random_range(kept..=it.received[node].max(kept));
        self.shards[shard].received[node] = kept;
        if self.leads(node, shard) {
            self.depose(shard);
        }
    }

    /// Nobody leads any more, and what was on its way has an uncertain fate.
    pub(crate) fn depose(&mut self, shard: usize) {
        let it = &mut self.shards[shard];
        if let Some(leader) = it.leader.take() {
            it.orphans = leader.flights;
            self.again(Event::Elect(shard), 20..300);
        }
    }

    /// A node that has all that was agreed on leads, if there is a majority.
    pub(crate) fn elect(&mut self, shard: usize) -> anyhow::Result<()> {
        let it = &self.shards[shard];
        if it.leader.is_some() {
            return Ok(());
        }
        let up = (0..NODES).filter(|node| self.nodes[*node].store.is_some());
        let up: Vec<usize> = up.collect();
        let whole = up
            .iter()
            .filter(|node| it.received[**node] == it.committed());
        let whole: Vec<usize> = whole.copied().collect();
        let node = whole.choose(&mut self.rng).copied();
        let other = node.and_then(|node| self.other_up(node, shard));
        let (Some(node), Some(other)) = (node, other) else {
            self.again(Event::Elect(shard), 20..100);
            return Ok(());
        };
        let survive = self.rng.random_range(0..=self.shards[shard].orphans.len());
        let begun_ms = self.now_ms;
        let it = &mut self.shards[shard];
        let orphans = std::mem::take(&mut it.orphans);
        self.met.survived += survive as u64;
        self.met.lost += (orphans.len() - survive) as u64;
        for flight in orphans.into_iter().take(survive) {
            it.push(
                flight.term,
                flight.node,
                ApplyPayload::Commands(flight.bytes),
            );
        }
        it.term += 1;
        let term = it.term;
        let begun = it.push(term, node, ApplyPayload::Blank);
        it.count([node, other]);
        it.leader = Some(Leader {
            node,
            begun,
            hlc: None,
            waiting: Vec::new(),
            flights: VecDeque::new(),
            decided_ms: begun_ms,
            asked: BTreeMap::new(),
        });
        if term == 1 {
            let options = SetClusterOptions {
                options: ClusterOptions::default(),
                if_absent: true,
            };
            let mut entry = EntryBuilder::new(begun_ms);
            entry.push(&Command::SetClusterOptions(options));
            it.push(term, node, ApplyPayload::Commands(entry.finish()));
            it.count([node, other]);
        }
        Ok(())
    }
}

fn applied(replica: &Shard) -> u64 {
    replica.applied().log_id.map_or(0, |id| id.index)
}

/// For whom nobody waits.
pub(crate) const NOBODY: Asker = Asker::Nobody;
