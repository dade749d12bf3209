//! Faults that are begun, stand by themselves, and are there until all is healed. So others can be done beside them.

use std::time::Duration;

use anyhow::Context as _;
use mailbox_cluster::Node;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::install::Done;
use super::{Kind, Stage, cuts};
use crate::ground::{Disk, Holding, Network, Sectors, Tamper, Tampering, Trouble};
use crate::history::Installation;

/// Of so many frames in a hundred.
const LOSS_PERCENT: u8 = 30;
/// So many packets in a hundred arrive twice.
const TWICE_PERCENT: u8 = 30;
/// No packet is late by more: well below what an election waits.
const DELAY_MAX: Duration = Duration::from_millis(200);
/// What a crawling node may send.
const CRAWL_KBIT_PER_S: u32 = 1000;
/// What a slow sync takes longer.
const SLOW_SYNC: Duration = Duration::from_millis(150);
/// Where a jump may lead, in seconds: about what is allowed, and far beyond it on both sides.
const JUMPS_S: [f64; 8] = [0.2, 0.6, 5.0, 3600.0, 172_800.0, -0.2, -5.0, -3600.0];

/// A fault that has begun. What holds it ends with this; the rest is left to [`Stage::heal`].
pub(super) struct Standing {
    pub(super) installation: Installation,
    held: Vec<Held>,
}

enum Held {
    Calls(Tampering),
    Packets(Holding),
}

impl Standing {
    fn installed(held: Vec<Held>) -> Self {
        Self {
            installation: Installation::Installed,
            held,
        }
    }

    pub(super) fn skipped(why: String) -> Self {
        Self {
            installation: Installation::Skipped(why),
            held: Vec::new(),
        }
    }

    /// Nobody knows how much of it is there.
    pub(super) fn doubtful(why: String) -> Self {
        Self {
            installation: Installation::Indeterminate(why),
            held: Vec::new(),
        }
    }

    /// Lets go; whether it was there until now.
    pub(super) fn end(&mut self) -> Done {
        for held in &mut self.held {
            match held {
                Held::Packets(held) => held.check()?,
                Held::Calls(held) => held.check()?,
            }
        }
        self.held.clear();
        Ok(self.installation.clone())
    }
}

impl Stage<'_> {
    /// Begins a fault that [`Kind::stands`].
    ///
    /// # Errors
    /// When it cannot be begun; what of it was begun is there.
    pub(super) fn begin(
        &self,
        kind: Kind,
        targets: &[u64],
        rng: &mut StdRng,
    ) -> anyhow::Result<Standing> {
        let needs_others = matches!(kind, Kind::Crawl | Kind::Duplicate | Kind::Delay);
        if needs_others && self.cluster.nodes().len() < 2 {
            return Ok(Standing::skipped("there are too few nodes".to_owned()));
        }
        match kind {
            Kind::KillLeader | Kind::KillRandom | Kind::KillAll | Kind::FallBehind => {
                self.stop(targets, Node::kill)
            }
            Kind::PauseShort | Kind::Pause | Kind::PauseLong => self.stop(targets, Node::pause),
            Kind::KillGateway => self.stop(targets, Node::kill_gateway),
            Kind::CutOne
            | Kind::CutLeader
            | Kind::CutHalves
            | Kind::CutRing
            | Kind::CutBridge
            | Kind::CutOneWay
            | Kind::Loss => self.trouble(kind, targets, rng),
            Kind::Crawl => {
                for node in targets {
                    self.network()?.slow(*node, Some(CRAWL_KBIT_PER_S))?;
                }
                Ok(Standing::installed(Vec::new()))
            }
            Kind::Duplicate => {
                for node in targets {
                    self.network()?.duplicate(*node, Some(TWICE_PERCENT))?;
                }
                Ok(Standing::installed(Vec::new()))
            }
            Kind::Delay => {
                let held = targets.iter().map(|node| {
                    let held = self.network()?.hold(*node, DELAY_MAX)?;
                    anyhow::Ok(Held::Packets(held))
                });
                Ok(Standing::installed(held.collect::<anyhow::Result<_>>()?))
            }
            Kind::PowerOne | Kind::PowerAll => self.lose_power(targets),
            Kind::BlocksOne | Kind::BlocksAll => self.cut_blocks(targets, rng),
            Kind::DiskFull => {
                for node in targets {
                    self.disk(*node)?.fill()?;
                }
                Ok(Standing::installed(Vec::new()))
            }
            Kind::DiskSlow => self.tamper(targets, Tamper::SlowSyncs(SLOW_SYNC)),
            Kind::SyncFails => self.tamper(targets, Tamper::FailedSync),
            Kind::ReadsFail => self.tamper(targets, Tamper::FailedReads),
            Kind::ClockJump => self.jump(targets, rng),
            _ => anyhow::bail!("{} does not stand by itself", kind.name()),
        }
    }

    pub(super) fn nodes(&self, targets: &[u64]) -> impl Iterator<Item = &Node> {
        let nodes = self.cluster.nodes().iter();
        nodes.filter(|node| targets.contains(&node.id()))
    }

    pub(super) fn network(&self) -> anyhow::Result<&Network> {
        let network = self.ground.network.as_ref();
        network.context("the nodes have no networks of their own")
    }

    fn disk(&self, node: u64) -> anyhow::Result<&Disk> {
        let disk = self.ground.disk(node);
        disk.with_context(|| format!("node {node} has no disk of its own"))
    }

    /// Kills or pauses. False of the one says that it did not run.
    fn stop(
        &self,
        targets: &[u64],
        how: impl Fn(&Node) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Standing> {
        let mut standing = Standing::installed(Vec::new());
        for node in self.nodes(targets) {
            if !how(node)? {
                standing = Standing::skipped(format!("node {} did not run", node.id()));
            }
        }
        Ok(standing)
    }

    fn trouble(&self, kind: Kind, targets: &[u64], rng: &mut StdRng) -> anyhow::Result<Standing> {
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
            return Ok(Standing::skipped("there are too few nodes".to_owned()));
        }
        self.network()?.trouble(&trouble)?;
        Ok(Standing::installed(Vec::new()))
    }

    /// All processes first, then all disks: what a process did not sync before it was killed is lost.
    fn lose_power(&self, targets: &[u64]) -> anyhow::Result<Standing> {
        for node in self.nodes(targets) {
            if !node.kill()? {
                let why = format!("node {} did not run", node.id());
                return Ok(Standing::skipped(why));
            }
        }
        for node in targets {
            self.disk(*node)?
                .lose_power()
                .with_context(|| format!("cut the power of node {node}"))?;
        }
        Ok(Standing::installed(Vec::new()))
    }

    /// All disks first, while their processes write; these can but end.
    fn cut_blocks(&self, targets: &[u64], rng: &mut StdRng) -> anyhow::Result<Standing> {
        let cut = |node: u64, seed: u64| {
            let cut = self.disk(node)?.cut(seed);
            cut.with_context(|| format!("cut the power of node {node}"))
        };
        // At once: each waits for a flush of its own.
        let cuts: Vec<anyhow::Result<Sectors>> = std::thread::scope(|scope| {
            let cuts: Vec<_> = targets
                .iter()
                .map(|node| {
                    let (node, seed) = (*node, rng.random());
                    scope.spawn(move || cut(node, seed))
                })
                .collect();
            let cuts = cuts.into_iter().map(std::thread::ScopedJoinHandle::join);
            let ended = cuts.map(|cut| cut.unwrap_or_else(|_| anyhow::bail!("a thread panicked")));
            ended.collect()
        });
        // Whatever came of it, none may run on on a dead disk. One that has noticed has ended by itself.
        for node in self.nodes(targets) {
            node.kill()?;
        }
        let (mut kept, mut lost) = (0, 0);
        for sectors in cuts {
            let sectors = sectors?;
            kept += sectors.kept;
            lost += sectors.lost;
        }
        for node in targets {
            let restored = self.disk(*node)?.lose_power();
            restored.with_context(|| format!("restore the power of node {node}"))?;
        }
        tracing::info!(kept, lost, "sectors that were not flushed");
        if kept + lost == 0 {
            let why = "nothing was on its way to a disk".to_owned();
            return Ok(Standing::doubtful(why));
        }
        Ok(Standing::installed(Vec::new()))
    }

    fn tamper(&self, targets: &[u64], how: Tamper) -> anyhow::Result<Standing> {
        let mut held = Vec::new();
        for node in self.nodes(targets) {
            let Some(pid) = node.pid() else {
                let why = format!("node {} did not run", node.id());
                return Ok(Standing::skipped(why));
            };
            held.push(Held::Calls(Tampering::begin(pid, how)?));
        }
        Ok(Standing::installed(held))
    }

    fn jump(&self, targets: &[u64], rng: &mut StdRng) -> anyhow::Result<Standing> {
        let target = targets.first().copied().unwrap_or_default();
        let Some(clock) = self.ground.clock(target) else {
            let why = format!("the clock of node {target} cannot be turned");
            return Ok(Standing::skipped(why));
        };
        let ahead_s = JUMPS_S.choose(rng).copied().unwrap_or_default();
        clock.set(&format!("{ahead_s:+}"))?;
        Ok(Standing::installed(Vec::new()))
    }
}
