//! What is read when all faults are over: every timeline, by every device, through leaders and at each replica; and what
//! each replica's state hashes to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use mailbox_client::{Client, v1};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::device::Device;
use crate::history::{Op, Outcome, Read, Recorder, StateHash, Timeline};
use crate::population::Population;
use crate::reader::{At, catch_up, read_whole};
use crate::register::Call;
use crate::registrar::{Turns, touch};
use crate::sender::Processes;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// What a replica that leads says that it is.
const LEADER: &str = "leader";
/// The shard that has no timelines.
const META: u32 = 0;

pub(crate) struct Ending<'a> {
    /// Those that run, by id and address.
    pub(crate) nodes: &'a [(u64, String)],
    /// One that may take its time.
    pub(crate) client: &'a Client,
    pub(crate) recorder: &'a Recorder,
    pub(crate) processes: &'a Processes,
    pub(crate) population: &'a Population,
    pub(crate) turns: &'a Turns,
    pub(crate) devices: &'a [Arc<Mutex<Device>>],
    /// For each thing that is waited for.
    pub(crate) within: Duration,
}

impl Ending<'_> {
    /// Reads all of it; what casts doubt on the run.
    pub(crate) async fn run(&self) -> Vec<String> {
        self.sync_all().await;
        let mut doubts = self.resolve_all().await;
        match self.read_replicas().await {
            Ok(more) => doubts.extend(more),
            Err(error) => doubts.push(format!("nobody says who votes where: {error:#}")),
        }
        doubts
    }

    /// Reads all at those who vote, and again if others do afterwards: a replica that was moved was not there to be read.
    async fn read_replicas(&self) -> anyhow::Result<Vec<String>> {
        let until = Instant::now() + self.within;
        let mut shards = self.voters(until).await?;
        loop {
            let mut reads = Vec::new();
            let mut doubts = self.read_all(&shards, &mut reads).await;
            for (shard, voters) in &shards {
                doubts.extend(self.hash_shard(*shard, voters, &mut reads).await);
            }
            let now = self.voters(until).await?;
            if now == shards || Instant::now() >= until {
                reads.into_iter().for_each(|op| self.recorder.record(op));
                return Ok(doubts);
            }
            shards = now;
        }
    }

    /// As [`Ending::ask_voters`], until it is answered.
    async fn voters(&self, until: Instant) -> anyhow::Result<BTreeMap<u32, Vec<u64>>> {
        loop {
            let asked = self.ask_voters().await;
            if asked.is_ok() || Instant::now() >= until {
                return asked;
            }
            sleep(LOOK).await;
        }
    }

    /// Who votes in each shard, as its leader says: the map of whichever node answers may be an old one.
    async fn ask_voters(&self) -> anyhow::Result<BTreeMap<u32, Vec<u64>>> {
        let mut leaders: BTreeMap<u32, v1::ShardStatus> = BTreeMap::new();
        for (node, address) in self.nodes {
            let status = self.client.status(Some(address)).await;
            let status = status.with_context(|| format!("ask node {node}"))?;
            let led = status.shards.into_iter().filter(|it| it.role == LEADER);
            for shard in led.filter(|it| it.shard != META) {
                let known = leaders.get(&shard.shard);
                if known.is_none_or(|known| known.term < shard.term) {
                    leaders.insert(shard.shard, shard);
                }
            }
        }
        // One that was merged into another may have its replicas still.
        let map = self.client.shard_map().await?;
        let there = |shard: &u32| map.shards.iter().any(|it| it.shard == *shard);
        leaders.retain(|shard, _| there(shard));
        let is_led = |shard: &v1::ShardPlacement| leaders.contains_key(&shard.shard);
        if let Some(shard) = map.shards.iter().find(|shard| !is_led(shard)) {
            bail!("shard {} has no leader", shard.shard);
        }
        let voters = leaders.into_iter();
        Ok(voters.map(|(shard, it)| (shard, it.voters)).collect())
    }

    /// Every device up to its head; the checker doubts a run in which one does not get there.
    async fn sync_all(&self) {
        let until = Instant::now() + self.within;
        let mut all = JoinSet::new();
        for device in self.devices {
            let device = Arc::clone(device);
            all.spawn(async move { device.lock().await.run_to_head(until).await });
        }
        // One that panicked has not got to its head.
        while all.join_next().await.is_some() {}
    }

    /// Whose each handle is.
    async fn resolve_all(&self) -> Vec<String> {
        let process = self.processes.next();
        let all = async {
            let mut unanswered = 0;
            for handle in self.turns.handles() {
                let look = touch(self.client, self.recorder, process, handle, Call::Look).await;
                unanswered += usize::from(!matches!(look.outcome, Outcome::Ok(_)));
                self.recorder.record(Op::Touch(look));
            }
            unanswered
        };
        match timeout(self.within, all).await {
            Ok(0) => Vec::new(),
            Ok(count) => vec![format!("whose {count} handles are was not answered")],
            Err(_) => vec![format!(
                "whose handles are took longer than {:?}",
                self.within
            )],
        }
    }

    /// Every timeline through the leader and at each replica.
    async fn read_all(&self, shards: &BTreeMap<u32, Vec<u64>>, reads: &mut Vec<Op>) -> Vec<String> {
        let mut doubts = Vec::new();
        let mut heads: BTreeMap<u32, Vec<(Timeline, u64)>> = BTreeMap::new();
        let mut process = self.processes.next();
        for timeline in self.population.timelines() {
            let read = self.read_whole(&mut process, timeline, At::Leader).await;
            let head = match &read.outcome {
                Outcome::Ok(view) => view.head,
                Outcome::Fail(_) | Outcome::Unknown(_) => 0,
            };
            let shard = self.client.shard_of_owner(timeline.owner());
            heads.entry(shard).or_default().push((timeline, head));
            reads.push(Op::Read(read));
        }
        let until = Instant::now() + self.within;
        for (shard, voters) in shards {
            let Some(heads) = heads.get(shard) else {
                continue;
            };
            for (node, address) in self.those(voters) {
                if let Err(error) = catch_up(self.client, address, heads, until).await {
                    doubts.push(format!("node {node} did not catch up: {error:#}"));
                }
                for (timeline, _) in heads {
                    let at = At::Node(*node, address);
                    let read = self.read_whole(&mut process, *timeline, at).await;
                    reads.push(Op::Read(read));
                }
            }
        }
        doubts
    }

    async fn read_whole(&self, process: &mut u64, timeline: Timeline, at: At<'_>) -> Read {
        let read = read_whole(self.client, self.recorder, *process, timeline, at).await;
        if matches!(read.outcome, Outcome::Unknown(_)) {
            *process = self.processes.next();
        }
        read
    }

    fn those(&self, voters: &[u64]) -> impl Iterator<Item = &(u64, String)> {
        let nodes = self.nodes.iter();
        nodes.filter(|(node, _)| voters.contains(node))
    }

    /// Every replica's state hash, of each shard at one cut.
    async fn hash_shard(&self, shard: u32, voters: &[u64], reads: &mut Vec<Op>) -> Vec<String> {
        let client = self.client;
        let mut request = v1::StateHashRequest {
            shard,
            cut_index: 0,
        };
        match client.state_hash(None, request).await {
            Ok(cut) => request.cut_index = cut.applied_index,
            Err(error) => {
                return vec![format!("the leader of shard {shard} made no cut: {error}")];
            }
        }
        let mut doubts = Vec::new();
        for (node, address) in self.those(voters) {
            match client.state_hash(Some(address), request).await {
                Ok(answer) => reads.push(Op::StateHash(StateHash {
                    node: *node,
                    shard,
                    index: answer.applied_index,
                    hash: answer
                        .hash
                        .iter()
                        .map(|byte| format!("{byte:02x}"))
                        .collect(),
                })),
                Err(error) => {
                    doubts.push(format!("node {node} has no hash of shard {shard}: {error}"))
                }
            }
        }
        doubts
    }
}
