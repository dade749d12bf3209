//! How each fault is done.

use std::time::Duration;

use anyhow::Context as _;
use mailbox_cluster::{Cluster, Node};
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tokio::time::{Instant, sleep};

use super::{Kind, Stage, cuts, operator};
use crate::ground::{Network, Trouble};
use crate::history::Installation;

/// How long a fault that needs a leader waits for one.
const LEADER_WITHIN: Duration = Duration::from_secs(5);
/// Pause between two looks for a leader.
const LEADER_POLL: Duration = Duration::from_millis(50);
/// Of so many frames in a hundred.
const LOSS_PERCENT: u8 = 30;
/// What a crawling node may send.
const CRAWL_KBIT_PER_S: u32 = 1000;
/// Between two resets, and two jumps of a clock.
const AGAIN: Duration = Duration::from_millis(300);
/// Where a jump may lead, in seconds: about what is allowed, and far beyond it on both sides.
const JUMPS_S: [f64; 8] = [0.2, 0.6, 5.0, 3600.0, 172_800.0, -0.2, -5.0, -3600.0];
/// How far a strobing clock jumps.
const STROBE_S: f64 = 5.0;
/// What a drifting clock gains between two looks, in seconds: it runs half as fast again.
const DRIFT_S: f64 = 0.15;

/// Whether it could be done; if not, why.
type Done = anyhow::Result<Installation>;

impl Stage<'_> {
    /// On which nodes: by id. None: it needs a leader, and there is none.
    pub(super) async fn targets(&self, kind: Kind, rng: &mut StdRng) -> Vec<u64> {
        let nodes = self.cluster.nodes();
        let all = || nodes.iter().map(Node::id).collect();
        let of_leader = match kind {
            Kind::KillAll
            | Kind::PowerAll
            | Kind::CutHalves
            | Kind::CutRing
            | Kind::CutBridge
            | Kind::Loss
            | Kind::TransferLeader
            | Kind::MoveSlot
            | Kind::SplitMerge
            | Kind::ReplaceNode => return all(),
            Kind::KillLeader | Kind::CutLeader => true,
            Kind::KillRandom | Kind::CutOne | Kind::KillGateway => false,
            Kind::PauseShort
            | Kind::Pause
            | Kind::PauseLong
            | Kind::CutOneWay
            | Kind::Crawl
            | Kind::Reset
            | Kind::PowerOne
            | Kind::DiskFull
            | Kind::ClockJump
            | Kind::ClockStrobe
            | Kind::ClockDrift => rng.random_bool(0.5),
        };
        let target = if of_leader {
            leader(self.cluster).await
        } else {
            nodes.choose(rng)
        };
        target.map(Node::id).into_iter().collect()
    }

    /// Installs a fault and holds it. To heal it is left to [`Stage::heal`].
    pub(super) async fn install(
        &mut self,
        kind: Kind,
        targets: &[u64],
        hold: Duration,
        rng: &mut StdRng,
    ) -> Installation {
        let done = match kind {
            Kind::KillLeader | Kind::KillRandom | Kind::KillAll => {
                self.stop(targets, hold, Node::kill).await
            }
            Kind::PauseShort | Kind::Pause | Kind::PauseLong => {
                self.stop(targets, hold, Node::pause).await
            }
            Kind::KillGateway => self.stop(targets, hold, Node::kill_gateway).await,
            Kind::CutOne
            | Kind::CutLeader
            | Kind::CutHalves
            | Kind::CutRing
            | Kind::CutBridge
            | Kind::CutOneWay
            | Kind::Loss => self.trouble(kind, targets, hold, rng).await,
            Kind::Crawl => self.crawl(targets, hold).await,
            Kind::Reset => self.reset(targets, hold).await,
            Kind::PowerOne | Kind::PowerAll => self.lose_power(targets, hold).await,
            Kind::DiskFull => self.fill(targets, hold).await,
            Kind::ClockJump | Kind::ClockStrobe | Kind::ClockDrift => {
                self.turn_clock(kind, targets, hold, rng).await
            }
            Kind::TransferLeader => operator::transfer_leader(&self.client, hold, rng).await,
            Kind::MoveSlot => operator::move_slot(self, hold, rng).await,
            Kind::SplitMerge => operator::split_and_merge(self, hold, rng).await,
            Kind::ReplaceNode => operator::replace_node(self, hold, rng).await,
        };
        done.unwrap_or_else(|error| Installation::Indeterminate(format!("{error:#}")))
    }

    fn nodes(&self, targets: &[u64]) -> impl Iterator<Item = &Node> {
        let nodes = self.cluster.nodes().iter();
        nodes.filter(|node| targets.contains(&node.id()))
    }

    /// Kills or pauses. False of the one says that it did not run.
    async fn stop(
        &self,
        targets: &[u64],
        hold: Duration,
        how: impl Fn(&Node) -> anyhow::Result<bool>,
    ) -> Done {
        let mut installation = Installation::Installed;
        for node in self.nodes(targets) {
            if !how(node)? {
                installation = Installation::Skipped(format!("node {} did not run", node.id()));
            }
        }
        sleep(hold).await;
        Ok(installation)
    }

    fn network(&self) -> anyhow::Result<&Network> {
        let network = self.ground.network.as_ref();
        network.context("the nodes have no networks of their own")
    }

    async fn trouble(&self, kind: Kind, targets: &[u64], hold: Duration, rng: &mut StdRng) -> Done {
        let all: Vec<u64> = self.cluster.nodes().iter().map(Node::id).collect();
        let target = targets.first().copied().unwrap_or_default();
        let trouble = match kind {
            Kind::CutHalves => Trouble::Cut(cuts::halves(&all, rng)),
            Kind::CutRing => Trouble::Cut(cuts::majorities_ring(&all, rng)),
            Kind::CutBridge => Trouble::Cut(cuts::bridge(&all, rng)),
            Kind::CutOneWay => Trouble::Cut(cuts::unheard(&all, target)),
            Kind::Loss => Trouble::Loss(LOSS_PERCENT),
            _ => Trouble::Cut(cuts::one(&all, target)),
        };
        if all.len() < 2 || trouble == Trouble::Cut(Default::default()) {
            return Ok(Installation::Skipped("there are too few nodes".into()));
        }
        self.network()?.trouble(&trouble)?;
        sleep(hold).await;
        Ok(Installation::Installed)
    }

    async fn crawl(&self, targets: &[u64], hold: Duration) -> Done {
        if self.cluster.nodes().len() < 2 {
            return Ok(Installation::Skipped("there are too few nodes".into()));
        }
        for node in targets {
            self.network()?.slow(*node, Some(CRAWL_KBIT_PER_S))?;
        }
        sleep(hold).await;
        Ok(Installation::Installed)
    }

    async fn reset(&self, targets: &[u64], hold: Duration) -> Done {
        let until = Instant::now() + hold;
        let mut closed = 0;
        while Instant::now() < until {
            for node in targets {
                closed += self.network()?.reset(*node)?;
            }
            sleep(AGAIN).await;
        }
        if closed == 0 {
            return Ok(Installation::Skipped(
                "there was no connection to reset".into(),
            ));
        }
        Ok(Installation::Installed)
    }

    /// All processes first, then all disks: what a process did not sync before it was killed is lost.
    async fn lose_power(&self, targets: &[u64], hold: Duration) -> Done {
        let disks = self.ground.disks.as_ref();
        let disks = disks.context("the nodes have no disks of their own")?;
        for node in self.nodes(targets) {
            if !node.kill()? {
                let why = format!("node {} did not run", node.id());
                return Ok(Installation::Skipped(why));
            }
        }
        for node in targets {
            of_node(disks, *node)
                .with_context(|| format!("node {node} has no disk"))?
                .lose_power()
                .with_context(|| format!("cut the power of node {node}"))?;
        }
        sleep(hold).await;
        Ok(Installation::Installed)
    }

    async fn fill(&self, targets: &[u64], hold: Duration) -> Done {
        let disks = self.ground.disks.as_ref();
        let disks = disks.context("the nodes have no disks of their own")?;
        for node in targets {
            of_node(disks, *node)
                .with_context(|| format!("node {node} has no disk"))?
                .fill()?;
        }
        sleep(hold).await;
        Ok(Installation::Installed)
    }

    async fn turn_clock(
        &self,
        kind: Kind,
        targets: &[u64],
        hold: Duration,
        rng: &mut StdRng,
    ) -> Done {
        let target = targets.first().copied().unwrap_or_default();
        let Some(clock) = of_node(self.clocks, target) else {
            let why = format!("the clock of node {target} cannot be turned");
            return Ok(Installation::Skipped(why));
        };
        match kind {
            Kind::ClockStrobe => {
                let until = Instant::now() + hold;
                while Instant::now() < until {
                    for ahead_s in [STROBE_S, -STROBE_S, 0.0] {
                        clock.set(&format!("{ahead_s:+}"))?;
                        sleep(AGAIN).await;
                    }
                }
            }
            // In small steps: a rate of libfaketime's own counts from the start of the process, and stays.
            Kind::ClockDrift => {
                let begun = Instant::now();
                let mut ahead_s = 0.0;
                while begun.elapsed() < hold {
                    ahead_s += DRIFT_S;
                    clock.set(&format!("{ahead_s:+.3}"))?;
                    sleep(AGAIN).await;
                }
            }
            _ => {
                let ahead_s = JUMPS_S.choose(rng).copied().unwrap_or_default();
                clock.set(&format!("{ahead_s:+}"))?;
                sleep(hold).await;
            }
        }
        Ok(Installation::Installed)
    }
}

/// What a node has of its own: ids begin at 1 and are never used twice.
fn of_node<T>(all: &[T], node: u64) -> Option<&T> {
    all.get(usize::try_from(node).ok()?.checked_sub(1)?)
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
