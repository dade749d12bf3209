//! Breaks one node or all, and mends them.

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
    /// `kill -9` of the leader of shard 1, and a restart.
    KillLeader,
    /// `kill -9` of any node, and a restart.
    KillRandom,
    /// `kill -9` of all nodes at once, and a restart of all.
    KillAll,
    /// SIGSTOP of the leader or of any node, and SIGCONT; up to twice the election timeout.
    Pause,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::KillLeader,
        Self::KillRandom,
        Self::KillAll,
        Self::Pause,
    ];

    /// As histories call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillLeader => "kill-leader",
            Self::KillRandom => "kill-random",
            Self::KillAll => "kill-all",
            Self::Pause => "pause",
        }
    }

    /// For how long the fault lasts, in milliseconds.
    fn hold_ms(self) -> std::ops::Range<u64> {
        match self {
            Self::KillLeader | Self::KillRandom | Self::KillAll => 100..1500,
            Self::Pause => 100..4000,
        }
    }
}

/// Quiet time between two faults, in milliseconds.
const QUIET_MS: std::ops::Range<u64> = 500..1500;
/// How long a fault that needs a leader waits for one.
const LEADER_WITHIN: Duration = Duration::from_secs(5);
/// Pause between two looks for a leader.
const LEADER_POLL: Duration = Duration::from_millis(50);

/// Breaks and mends nodes; what it does follows from its seed, when from the cluster.
#[derive(Debug)]
pub struct Nemesis<'a> {
    cluster: &'a Cluster,
    recorder: &'a Recorder,
    rng: StdRng,
    /// Nodes that ended without the nemesis.
    deaths: Vec<String>,
}

impl<'a> Nemesis<'a> {
    /// One that has done nothing yet.
    pub fn new(cluster: &'a Cluster, recorder: &'a Recorder, seed: u64) -> Self {
        Self {
            cluster,
            recorder,
            rng: StdRng::seed_from_u64(seed),
            deaths: Vec::new(),
        }
    }

    /// Installs faults until the time has come; each kind once before any comes again. All nodes run
    /// when it returns; it tells which ended by themselves meanwhile.
    ///
    /// # Errors
    /// When a node cannot be started again.
    pub async fn run(mut self, until: Instant) -> anyhow::Result<Vec<String>> {
        let mut kinds = Vec::new();
        while Instant::now() < until {
            sleep(Duration::from_millis(self.rng.random_range(QUIET_MS))).await;
            if kinds.is_empty() {
                kinds = Kind::ALL.to_vec();
                kinds.shuffle(&mut self.rng);
            }
            self.note_deaths();
            if let Some(kind) = kinds.pop() {
                self.install(kind).await;
            }
        }
        self.note_deaths();
        heal(self.cluster)?;
        Ok(self.deaths)
    }

    /// Between two faults every node should run.
    fn note_deaths(&mut self) {
        for node in self.cluster.nodes() {
            if let Some(status) = node.exit_status() {
                let death = format!("node {} ended by itself with {status}", node.id());
                tracing::error!("{death}");
                self.deaths.push(death);
                // One that cannot be started again fails the run when it is healed.
                let _ = node.start();
            }
        }
    }

    async fn install(&mut self, kind: Kind) {
        let hold = Duration::from_millis(self.rng.random_range(kind.hold_ms()));
        let targets = self.targets(kind).await;
        // Of a fault of all nodes, none is named.
        let node = match targets[..] {
            [only] => Some(only.id()),
            _ => None,
        };
        let begun_ns = self.recorder.now_ns();
        let installation = if targets.is_empty() {
            Installation::Skipped("there is no leader".into())
        } else {
            break_nodes(kind, &targets, hold).await
        };
        tracing::info!(kind = kind.name(), node, ?installation, "fault");
        self.recorder.record(Op::Fault(Fault {
            kind: kind.name().into(),
            node,
            begun_ns,
            healed_ns: self.recorder.now_ns(),
            installation,
        }));
    }

    async fn targets(&mut self, kind: Kind) -> Vec<&'a Node> {
        let nodes = self.cluster.nodes();
        let of_leader = match kind {
            Kind::KillAll => return nodes.iter().collect(),
            Kind::KillLeader => true,
            Kind::KillRandom => false,
            Kind::Pause => self.rng.random_bool(0.5),
        };
        let target = if of_leader {
            leader(self.cluster).await
        } else {
            nodes.choose(&mut self.rng)
        };
        target.into_iter().collect()
    }
}

/// The leader, or the next one if there is none now.
async fn leader(cluster: &Cluster) -> Option<&Node> {
    let until = Instant::now() + LEADER_WITHIN;
    loop {
        let found = cluster.leader().await;
        if found.is_some() || Instant::now() >= until {
            return found.map(|i| cluster.node(i));
        }
        sleep(LEADER_POLL).await;
    }
}

/// Installs a fault, holds it and heals it.
async fn break_nodes(kind: Kind, nodes: &[&Node], hold: Duration) -> Installation {
    let mut installation = Installation::Installed;
    for node in nodes {
        let installed = match kind {
            Kind::KillLeader | Kind::KillRandom | Kind::KillAll => node.kill(),
            Kind::Pause => node.pause(),
        };
        match installed {
            Ok(true) => {}
            Ok(false) => {
                installation = Installation::Skipped(format!("node {} did not run", node.id()));
            }
            Err(error) => installation = Installation::Indeterminate(format!("{error:#}")),
        }
    }
    sleep(hold).await;
    for node in nodes {
        if let Err(error) = node.resume().and_then(|_| node.start()) {
            installation = Installation::Indeterminate(format!("{error:#}"));
        }
    }
    installation
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
