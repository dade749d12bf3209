//! What is read when all faults are over: every timeline, by every device, through leaders and at each replica; and what
//! each replica's state hashes to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mailbox_client::{Client, v1};
use mailbox_cluster::{Cluster, Node};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::device::Device;
use crate::history::{Op, Outcome, Read, Recorder, StateHash, Timeline};
use crate::population::Population;
use crate::reader::{At, catch_up, read_whole};
use crate::register::Call;
use crate::registrar::{Turns, touch};
use crate::sender::Processes;

pub(crate) struct Ending<'a> {
    pub(crate) cluster: &'a Cluster,
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
        let map = match self.client.shard_map().await {
            Ok(map) => map,
            Err(error) => return vec![format!("there is no shard map: {error}")],
        };
        self.sync_all().await;
        let mut doubts = self.resolve_all().await;
        doubts.extend(self.read_all(&map).await);
        for shard in &map.shards {
            doubts.extend(self.hash_shard(shard).await);
        }
        doubts
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
    async fn read_all(&self, map: &v1::ShardMapResponse) -> Vec<String> {
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
            self.recorder.record(Op::Read(read));
        }
        let until = Instant::now() + self.within;
        for shard in &map.shards {
            let Some(heads) = heads.get(&shard.shard) else {
                continue;
            };
            for node in self.replicas(shard) {
                if let Err(error) = catch_up(self.client, node.address(), heads, until).await {
                    doubts.push(format!("node {} did not catch up: {error:#}", node.id()));
                }
                for (timeline, _) in heads {
                    let at = At::Node(node.id(), node.address());
                    let read = self.read_whole(&mut process, *timeline, at).await;
                    self.recorder.record(Op::Read(read));
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

    fn replicas(&self, shard: &v1::ShardPlacement) -> impl Iterator<Item = &Node> {
        let nodes = self.cluster.nodes().iter();
        nodes.filter(|node| shard.replicas.contains(&node.id()))
    }

    /// Every replica's state hash, of each shard at one cut.
    async fn hash_shard(&self, placed: &v1::ShardPlacement) -> Vec<String> {
        let (client, shard) = (self.client, placed.shard);
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
        for node in self.replicas(placed) {
            match client.state_hash(Some(node.address()), request).await {
                Ok(answer) => self.recorder.record(Op::StateHash(StateHash {
                    node: node.id(),
                    shard,
                    index: answer.applied_index,
                    hash: answer
                        .hash
                        .iter()
                        .map(|byte| format!("{byte:02x}"))
                        .collect(),
                })),
                Err(error) => doubts.push(format!(
                    "node {} has no hash of shard {shard}: {error}",
                    node.id()
                )),
            }
        }
        doubts
    }
}
