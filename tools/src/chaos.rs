//! Kills on schedule, and the orderly end of a spawned cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::bail;
use mailbox_cluster::Cluster;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A killed node is started again after this time.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// How long to wait before asking again who leads.
const LEADER_POLL: Duration = Duration::from_millis(50);

/// How long a process may take to stop; it promises 10 s.
const STOP_WITHIN: Duration = Duration::from_secs(12);

/// Kills processes again and again, until stopped.
pub(crate) struct Killer {
    stop: watch::Sender<bool>,
    kills: Arc<AtomicU64>,
    task: JoinHandle<anyhow::Result<()>>,
}

/// Whom a [`Killer`] kills.
enum Victims {
    /// Whichever node leads the shard.
    LeaderOf(u32),
    /// Any node or any gateway.
    Any(SmallRng),
}

/// Kills -9 whichever node leads the shard, every `every`, and starts it again one second later.
pub(crate) fn kill_leader_every(cluster: Arc<Cluster>, shard: u32, every: Duration) -> Killer {
    Killer::start(cluster, Victims::LeaderOf(shard), every)
}

/// Kills -9 a node or a gateway that the seed chooses, every `every`, and starts it again one second later.
pub(crate) fn kill_random_every(cluster: Arc<Cluster>, seed: u64, every: Duration) -> Killer {
    let rng = SmallRng::seed_from_u64(seed);
    Killer::start(cluster, Victims::Any(rng), every)
}

impl Killer {
    fn start(cluster: Arc<Cluster>, victims: Victims, every: Duration) -> Self {
        let (stop, stopped) = watch::channel(false);
        let kills = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(kill(cluster, victims, every, stopped, Arc::clone(&kills)));
        Self { stop, kills, task }
    }

    /// Ends the killing, everything running again. Returns how often something was killed.
    pub(crate) async fn stop(self) -> anyhow::Result<u64> {
        self.stop.send_replace(true);
        self.task.await??;
        Ok(self.kills.load(Ordering::Relaxed))
    }
}

async fn kill(
    cluster: Arc<Cluster>,
    mut victims: Victims,
    every: Duration,
    mut stopped: watch::Receiver<bool>,
    kills: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let mut due = tokio::time::interval(every);
    due.tick().await; // The first tick is at once: no kill before `every` has passed.
    loop {
        tokio::select! {
            _ = stopped.wait_for(|&stopped| stopped) => return Ok(()),
            _ = due.tick() => {}
        }
        let Some((node, gateway)) = victims.next(&cluster, &stopped).await else {
            return Ok(());
        };
        let node = cluster.node(node);
        let killed = if gateway {
            node.kill_gateway()?
        } else {
            node.kill()?
        };
        if killed {
            let count = kills.fetch_add(1, Ordering::Relaxed) + 1;
            let what = victims.name(gateway);
            eprintln!("kill {count}: {what} of node {}", node.id());
        }
        tokio::time::sleep(RESTART_AFTER).await;
        node.start()?;
        node.start_gateway()?;
    }
}

impl Victims {
    /// The next one: its node, and whether it is the gateway there. `None`: it was stopped first.
    async fn next(
        &mut self,
        cluster: &Cluster,
        stopped: &watch::Receiver<bool>,
    ) -> Option<(usize, bool)> {
        match self {
            Self::LeaderOf(shard) => loop {
                if *stopped.borrow() {
                    return None;
                }
                if let Some(leader) = cluster.leader_of(*shard).await {
                    return Some((leader, false));
                }
                tokio::time::sleep(LEADER_POLL).await;
            },
            Self::Any(rng) => {
                let node = rng.random_range(0..cluster.nodes().len());
                Some((node, rng.random()))
            }
        }
    }

    fn name(&self, gateway: bool) -> String {
        match self {
            Self::LeaderOf(shard) => format!("the server, leader of shard {shard},"),
            Self::Any(_) if gateway => "the gateway".to_owned(),
            Self::Any(_) => "the server".to_owned(),
        }
    }
}

/// Kills -9 every node at once and starts all again one second later. Returns the kills.
pub(crate) async fn kill_all(cluster: &Cluster) -> anyhow::Result<u64> {
    let mut kills = 0;
    for node in cluster.nodes() {
        kills += u64::from(node.kill()?);
    }
    eprintln!("killed all {kills} nodes");
    tokio::time::sleep(RESTART_AFTER).await;
    for node in cluster.nodes() {
        node.start()?;
    }
    Ok(kills)
}

/// Stops all processes of a cluster as an operator would: gateways first, then all nodes at once.
///
/// # Errors
/// A process did not end in time, or not with status 0.
pub(crate) async fn stop_all(cluster: &Cluster) -> anyhow::Result<()> {
    let gateways = cluster
        .nodes()
        .iter()
        .map(|node| node.stop_gateway(STOP_WITHIN));
    let gateways = futures_util::future::try_join_all(gateways).await?;
    let servers = cluster.nodes().iter().map(|node| node.stop(STOP_WITHIN));
    let servers = futures_util::future::try_join_all(servers).await?;
    for status in gateways.into_iter().chain(servers).flatten() {
        if !status.success() {
            bail!("a process ended with {status} when it was told to stop");
        }
    }
    Ok(())
}
