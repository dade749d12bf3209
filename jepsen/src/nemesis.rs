//! Breaks nodes, one at a time, and mends them.

use std::time::Duration;

use mailbox_cluster::{Cluster, Node};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{Instant, sleep};

use crate::history::{Fault, Installation, Op, Recorder};

/// What can be done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `kill -9` of the leader of shard 0, and a restart.
    KillLeader,
    /// `kill -9` of any node, and a restart.
    KillRandom,
    /// SIGSTOP of the leader or of any node, and SIGCONT; up to twice the election timeout.
    Pause,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::KillLeader, Self::KillRandom, Self::Pause];

    /// As histories call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillLeader => "kill-leader",
            Self::KillRandom => "kill-random",
            Self::Pause => "pause",
        }
    }

    /// For how long the fault lasts, in milliseconds.
    fn hold_ms(self) -> std::ops::Range<u64> {
        match self {
            Self::KillLeader | Self::KillRandom => 100..1500,
            Self::Pause => 100..4000,
        }
    }
}

/// Quiet time between two faults, in milliseconds.
const QUIET_MS: std::ops::Range<u64> = 500..1500;

/// Breaks and mends nodes; what it does follows from its seed, when from the cluster.
#[derive(Debug)]
pub struct Nemesis<'a> {
    cluster: &'a Cluster,
    recorder: &'a Recorder,
    rng: StdRng,
}

impl<'a> Nemesis<'a> {
    /// One that has done nothing yet.
    pub fn new(cluster: &'a Cluster, recorder: &'a Recorder, seed: u64) -> Self {
        Self {
            cluster,
            recorder,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Installs faults until the time has come; each kind once before any comes again. All nodes run
    /// when it returns.
    ///
    /// # Errors
    /// When a node cannot be started again.
    pub async fn run(&mut self, until: Instant) -> anyhow::Result<()> {
        let mut kinds = Vec::new();
        while Instant::now() < until {
            sleep(Duration::from_millis(self.rng.random_range(QUIET_MS))).await;
            if kinds.is_empty() {
                kinds = Kind::ALL.to_vec();
                kinds.shuffle(&mut self.rng);
            }
            if let Some(kind) = kinds.pop() {
                self.install(kind).await;
            }
        }
        heal(self.cluster)
    }

    async fn install(&mut self, kind: Kind) {
        let hold = Duration::from_millis(self.rng.random_range(kind.hold_ms()));
        let target = self.target(kind).await;
        let begun_ns = self.recorder.now_ns();
        let installation = match target {
            None => Installation::Skipped("there is no leader".into()),
            Some(node) => break_node(kind, node, hold).await,
        };
        tracing::info!(
            kind = kind.name(),
            node = target.map(Node::id),
            ?installation,
            "fault"
        );
        self.recorder.record(Op::Fault(Fault {
            kind: kind.name().into(),
            node: target.map(Node::id),
            begun_ns,
            healed_ns: self.recorder.now_ns(),
            installation,
        }));
    }

    async fn target(&mut self, kind: Kind) -> Option<&'a Node> {
        let cluster = self.cluster;
        let of_leader = match kind {
            Kind::KillLeader => true,
            Kind::KillRandom => false,
            Kind::Pause => self.rng.random_bool(0.5),
        };
        if of_leader {
            return cluster.leader().await.map(|i| cluster.node(i));
        }
        cluster.nodes().choose(&mut self.rng)
    }
}

/// Installs a fault, holds it and heals it.
async fn break_node(kind: Kind, node: &Node, hold: Duration) -> Installation {
    let installed = match kind {
        Kind::KillLeader | Kind::KillRandom => node.kill(),
        Kind::Pause => node.pause(),
    };
    match installed {
        Ok(true) => {}
        Ok(false) => return Installation::Skipped("the node did not run".into()),
        Err(error) => return Installation::Indeterminate(format!("{error:#}")),
    }
    sleep(hold).await;
    let healed = match kind {
        Kind::KillLeader | Kind::KillRandom => node.start(),
        Kind::Pause => node.resume().map(drop),
    };
    match healed {
        Ok(()) => Installation::Installed,
        Err(error) => Installation::Indeterminate(format!("{error:#}")),
    }
}

/// Lets every node run.
///
/// # Errors
/// When one cannot be started.
pub fn heal(cluster: &Cluster) -> anyhow::Result<()> {
    for node in cluster.nodes() {
        node.resume()?;
        node.start()?;
    }
    Ok(())
}
