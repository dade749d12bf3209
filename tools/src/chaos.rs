//! Kills on schedule, and the orderly end of a spawned cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::bail;
use mailbox_cluster::Cluster;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A killed node is started again after this time.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// How long to wait before asking again who leads.
const LEADER_POLL: Duration = Duration::from_millis(50);

/// How long a process may take to stop; it promises 10 s.
const STOP_WITHIN: Duration = Duration::from_secs(12);

/// Kills the leader again and again, until stopped.
pub(crate) struct LeaderKiller {
    stop: watch::Sender<bool>,
    kills: Arc<AtomicU64>,
    task: JoinHandle<anyhow::Result<()>>,
}

/// Kills -9 whichever node leads the shard, every `every`, and starts it again one second later.
pub(crate) fn kill_leader_every(
    cluster: Arc<Cluster>,
    shard: u32,
    every: Duration,
) -> LeaderKiller {
    let (stop, stopped) = watch::channel(false);
    let kills = Arc::new(AtomicU64::new(0));
    let task = tokio::spawn(kill_leaders(
        cluster,
        shard,
        every,
        stopped,
        Arc::clone(&kills),
    ));
    LeaderKiller { stop, kills, task }
}

impl LeaderKiller {
    /// Ends the killing, every node running again. Returns how often a leader was killed.
    pub(crate) async fn stop(self) -> anyhow::Result<u64> {
        self.stop.send_replace(true);
        self.task.await??;
        Ok(self.kills.load(Ordering::Relaxed))
    }
}

async fn kill_leaders(
    cluster: Arc<Cluster>,
    shard: u32,
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
        let leader = loop {
            if *stopped.borrow() {
                return Ok(());
            }
            if let Some(leader) = cluster.leader_of(shard).await {
                break leader;
            }
            tokio::time::sleep(LEADER_POLL).await;
        };
        let node = cluster.node(leader);
        if node.kill()? {
            let count = kills.fetch_add(1, Ordering::Relaxed) + 1;
            eprintln!(
                "kill {count}: node {}, the leader of shard {shard}",
                node.id()
            );
        }
        tokio::time::sleep(RESTART_AFTER).await;
        node.start()?;
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
