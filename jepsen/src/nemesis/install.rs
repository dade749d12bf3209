//! How each fault is done.

use std::time::Duration;

use mailbox_cluster::{Cluster, Node};
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tokio::time::{Instant, sleep};

use super::{Kind, Stage, operator};
use crate::history::Installation;

/// How long a fault that needs a leader waits for one.
const LEADER_WITHIN: Duration = Duration::from_secs(5);
/// Pause between two looks for a leader.
const LEADER_POLL: Duration = Duration::from_millis(50);
/// Between two resets, and two jumps of a clock.
const AGAIN: Duration = Duration::from_millis(300);
/// How far a strobing clock jumps.
const STROBE_S: f64 = 5.0;
/// What a drifting clock gains between two looks, in seconds: it runs half as fast again.
const DRIFT_S: f64 = 0.15;

/// Whether it could be done; if not, why.
pub(super) type Done = anyhow::Result<Installation>;

pub(super) fn skipped(why: &str) -> Done {
    Ok(Installation::Skipped(why.to_owned()))
}

impl Stage<'_> {
    /// On which nodes: by id. None: it needs a leader, and there is none.
    pub(super) async fn targets(&self, kind: Kind, rng: &mut StdRng) -> Vec<u64> {
        let nodes = self.cluster.nodes();
        let all = || nodes.iter().map(Node::id).collect();
        let of_leader = match kind {
            Kind::KillAll
            | Kind::PowerAll
            | Kind::BlocksAll
            | Kind::CutHalves
            | Kind::CutRing
            | Kind::CutBridge
            | Kind::Loss
            | Kind::Duplicate
            | Kind::TransferLeader
            | Kind::MoveSlot
            | Kind::SplitMerge
            | Kind::ReplaceNode
            | Kind::Upgrade => return all(),
            Kind::KillLeader | Kind::CutLeader => true,
            Kind::KillRandom
            | Kind::CutOne
            | Kind::KillGateway
            | Kind::FallBehind
            | Kind::DieInLog
            | Kind::DieInApply
            | Kind::DieInFlush
            | Kind::DieInLane
            | Kind::DieInMove
            | Kind::FlipBit
            | Kind::CutFile
            | Kind::Rollback => false,
            Kind::PauseShort
            | Kind::Pause
            | Kind::PauseLong
            | Kind::CutOneWay
            | Kind::Crawl
            | Kind::Reset
            | Kind::Delay
            | Kind::PowerOne
            | Kind::BlocksOne
            | Kind::DiskFull
            | Kind::DiskSlow
            | Kind::SyncFails
            | Kind::ReadsFail
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
        let done = self.do_it(kind, targets, hold, rng).await;
        done.unwrap_or_else(|error| Installation::Indeterminate(format!("{error:#}")))
    }

    async fn do_it(
        &mut self,
        kind: Kind,
        targets: &[u64],
        hold: Duration,
        rng: &mut StdRng,
    ) -> Done {
        match kind {
            Kind::Reset => self.reset(targets, hold).await,
            Kind::FlipBit | Kind::CutFile | Kind::Rollback => {
                let target = targets.first().copied().unwrap_or_default();
                self.corrupt(kind, target, hold, rng).await
            }
            Kind::ClockStrobe | Kind::ClockDrift => self.turn_clock(kind, targets, hold).await,
            Kind::TransferLeader | Kind::MoveSlot | Kind::SplitMerge => {
                operator::operate(kind, &self.client, &self.owners, hold, rng).await
            }
            Kind::ReplaceNode => operator::replace_node(self, hold, rng).await,
            Kind::Upgrade => operator::upgrade(self, hold).await,
            Kind::DieInLog
            | Kind::DieInApply
            | Kind::DieInFlush
            | Kind::DieInLane
            | Kind::DieInMove => {
                let target = targets.first().copied().unwrap_or_default();
                self.die(kind, target, hold, rng).await
            }
            _ => {
                let mut standing = self.begin(kind, targets, rng)?;
                if standing.installation == Installation::Installed {
                    sleep(hold).await;
                }
                standing.end()
            }
        }
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
            return skipped("there was no connection to reset");
        }
        Ok(Installation::Installed)
    }

    async fn turn_clock(&self, kind: Kind, targets: &[u64], hold: Duration) -> Done {
        let target = targets.first().copied().unwrap_or_default();
        let Some(clock) = self.ground.clock(target) else {
            return skipped(&format!("the clock of node {target} cannot be turned"));
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
            _ => {
                let begun = Instant::now();
                let mut ahead_s = 0.0;
                while begun.elapsed() < hold {
                    ahead_s += DRIFT_S;
                    clock.set(&format!("{ahead_s:+.3}"))?;
                    sleep(AGAIN).await;
                }
            }
        }
        Ok(Installation::Installed)
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
