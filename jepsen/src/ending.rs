//! What is read when all faults are over: every timeline, by every device, through leaders and at each replica; and what
//! each replica's state hashes to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

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
/// In what is said of hashes.
const HASH: &str = "state hash";
/// In place of a node, where a doubt is of none.
const NO_NODE: u64 = 0;

/// Timelines by shard, each with the head that its leader had.
type Heads = BTreeMap<u32, Vec<(Timeline, u64)>>;

/// Who votes in each shard.
#[derive(Debug, Default)]
struct Voters {
    voters: BTreeMap<u32, Vec<u64>>,
    /// What nobody said, in words.
    unknown: Vec<String>,
}

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
        let mut process = self.processes.next();
        let heads = self.read_through_leaders(&mut process).await;
        doubts.extend(self.read_replicas(&mut process, &heads).await);
        doubts
    }

    /// Reads all at those who vote, and at those who vote only afterwards. What was read at others counts, too, but it is
    /// no doubt that it could not be read.
    async fn read_replicas(&self, process: &mut u64, heads: &Heads) -> Vec<String> {
        let until = Instant::now() + self.within;
        let (mut was_read, mut doubts) = (BTreeSet::new(), Vec::new());
        let mut shards = self.voters(until).await;
        loop {
            for (shard, voters) in &shards.voters {
                if voters
                    .iter()
                    .all(|node| was_read.contains(&(*shard, *node)))
                {
                    continue;
                }
                let fresh = self.those(voters);
                for (node, address) in fresh.filter(|(node, _)| was_read.insert((*shard, *node))) {
                    let heads = heads.get(shard).map_or(&[][..], Vec::as_slice);
                    let read = self.read_replica(process, *node, address, heads, until);
                    doubts.extend(read.await.map(|doubt| (*shard, *node, doubt)));
                }
                doubts.retain(|(of, _, doubt)| of != shard || !doubt.contains(HASH));
                doubts.extend(self.hash_shard(*shard, voters).await);
            }
            let now = self.voters(until).await;
            if now.voters == shards.voters || Instant::now() >= until {
                let votes = |shard: &u32, node: &u64| {
                    let voters = now.voters.get(shard);
                    *node == NO_NODE || voters.is_some_and(|voters| voters.contains(node))
                };
                doubts.retain(|(shard, node, _)| votes(shard, node));
                let doubts = doubts.into_iter().map(|(_, _, doubt)| doubt);
                return doubts.chain(now.unknown).collect();
            }
            shards = now;
        }
    }

    /// As [`Ending::ask_voters`], until nothing is unknown.
    async fn voters(&self, until: Instant) -> Voters {
        loop {
            let asked = self.ask_voters().await;
            if asked.unknown.is_empty() || Instant::now() >= until {
                return asked;
            }
            sleep(LOOK).await;
        }
    }

    /// Who votes in each shard, as its leader says: the map of whichever node answers may be an old one.
    async fn ask_voters(&self) -> Voters {
        let mut unknown = Vec::new();
        let mut leaders: BTreeMap<u32, v1::ShardStatus> = BTreeMap::new();
        for (node, address) in self.nodes {
            let status = match self.client.status(Some(address)).await {
                Ok(status) => status,
                Err(error) => {
                    unknown.push(format!("node {node} does not say what it has: {error}"));
                    continue;
                }
            };
            let led = status.shards.into_iter().filter(|it| it.role == LEADER);
            for shard in led.filter(|it| it.shard != META) {
                let known = leaders.get(&shard.shard);
                if known.is_none_or(|known| known.term < shard.term) {
                    leaders.insert(shard.shard, shard);
                }
            }
        }
        match self.client.shard_map().await {
            Ok(map) => {
                // One that was merged into another may have its replicas still.
                let there = |shard: &u32| map.shards.iter().any(|it| it.shard == *shard);
                leaders.retain(|shard, _| there(shard));
                let led = |shard: &v1::ShardPlacement| leaders.contains_key(&shard.shard);
                let unled = map.shards.iter().filter(|shard| !led(shard));
                unknown.extend(unled.map(|it| format!("shard {} has no leader", it.shard)));
            }
            Err(error) => unknown.push(format!("there is no shard map: {error}")),
        }
        let voters = leaders.into_iter();
        Voters {
            voters: voters.map(|(shard, it)| (shard, it.voters)).collect(),
            unknown,
        }
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

    /// Every timeline, and its head by shard.
    async fn read_through_leaders(&self, process: &mut u64) -> Heads {
        let mut heads = Heads::new();
        for timeline in self.population.timelines() {
            let read = self.read_whole(process, timeline, At::Leader).await;
            let head = match &read.outcome {
                Outcome::Ok(view) => view.head,
                Outcome::Fail(_) | Outcome::Unknown(_) => 0,
            };
            let shard = self.client.shard_of_owner(timeline.owner());
            heads.entry(shard).or_default().push((timeline, head));
            self.recorder.record(Op::Read(read));
        }
        heads
    }

    /// Some timelines at one replica, once it has what leaders had. What casts doubt on that.
    async fn read_replica(
        &self,
        process: &mut u64,
        node: u64,
        address: &str,
        heads: &[(Timeline, u64)],
        until: Instant,
    ) -> Option<String> {
        let caught_up = catch_up(self.client, address, heads, until).await;
        for (timeline, _) in heads {
            let at = At::Node(node, address);
            let read = self.read_whole(process, *timeline, at).await;
            self.recorder.record(Op::Read(read));
        }
        let error = caught_up.err()?;
        Some(format!("node {node} did not catch up: {error:#}"))
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

    /// Every replica's state hash, at one cut. What casts doubt on that, with shard and node.
    async fn hash_shard(&self, shard: u32, voters: &[u64]) -> Vec<(u32, u64, String)> {
        let client = self.client;
        let mut request = v1::StateHashRequest {
            shard,
            cut_index: 0,
        };
        match client.state_hash(None, request).await {
            Ok(cut) => request.cut_index = cut.applied_index,
            Err(error) => {
                let doubt = format!("no {HASH}: the leader of shard {shard} made no cut: {error}");
                return vec![(shard, NO_NODE, doubt)];
            }
        }
        let mut doubts = Vec::new();
        for (node, address) in self.those(voters) {
            match client.state_hash(Some(address), request).await {
                Ok(answer) => self.recorder.record(Op::StateHash(StateHash {
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
                    let doubt = format!("node {node} has no {HASH} of shard {shard}: {error}");
                    doubts.push((shard, *node, doubt));
                }
            }
        }
        doubts
    }
}
