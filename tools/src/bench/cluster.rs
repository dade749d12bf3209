//! The cluster under load: spawned for the run, or somebody else's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _};
use indicatif::ProgressBar;
use mailbox_client::Client;
use mailbox_client::v1::RegisterUserRequest;
use mailbox_cluster::{Cluster, ClusterOptions, Node};

use super::disk;
use super::stages::Stages;
use crate::chaos;
use crate::node::parse_nodes;
use crate::process;

/// Registrations on the way at a time.
const REGISTRATIONS: usize = 512;
/// How long the disk is probed.
const PROBE: Duration = Duration::from_secs(2);

/// The flags of a spawned cluster.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct SpawnArgs {
    /// Start a throw-away cluster of so many nodes (1 or 3) on this machine, load it, stop it
    #[arg(long, value_name = "N", value_parser = parse_nodes())]
    pub(super) spawn: Option<usize>,
    /// Where a spawned cluster keeps its data; a new directory in it is made and removed again
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath, default_value = "./target/bench")]
    pub(super) dir: PathBuf,
    /// Shards of a spawned cluster
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) shards: u16,
    /// Take a DIR in memory, where an fsync costs and proves nothing
    #[arg(long)]
    pub(super) allow_tmpfs: bool,
    /// Record CPU profiles of the leader and of a follower with `perf`, and write their ten greatest
    /// costs into this directory
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath, requires = "spawn")]
    pub(super) profile: Option<PathBuf>,
    /// The `mailboxd` to run; default: the one beside this program
    #[arg(long, value_name = "FILE", env = "MAILBOXD")]
    pub(super) mailboxd: Option<PathBuf>,
}

/// A cluster of our own, and what is known of its disk.
pub(super) struct Spawned {
    pub(super) cluster: Cluster,
    pub(super) file_system: String,
    pub(super) fdatasync_per_s: f64,
    /// From the first process's start until every shard was read from.
    pub(super) started_in: Duration,
    shards: u16,
    dir: tempfile::TempDir,
}

/// What a spawned cluster has used so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pub(super) cpu_us: u64,
    pub(super) written_bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) fsyncs: Option<u64>,
    /// The same and more, by stage.
    pub(super) stages: Stages,
}

impl Spawned {
    /// Checks and probes the disk, then starts the nodes.
    pub(super) async fn start(
        args: &SpawnArgs,
        nodes: usize,
        gateway: bool,
    ) -> anyhow::Result<Self> {
        Self::start_as(args, nodes, |options| options.gateway = gateway).await
    }

    /// The same with what else the cluster is to be. More config goes behind what is there, each line a dotted key.
    pub(super) async fn start_as(
        args: &SpawnArgs,
        nodes: usize,
        adapt: impl FnOnce(&mut ClusterOptions),
    ) -> anyhow::Result<Self> {
        let (file_system, fdatasync_per_s) = probe(&args.dir, args.allow_tmpfs)?;
        let dir = tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in(&args.dir)
            .with_context(|| format!("make a directory in {}", args.dir.display()))?;
        eprintln!("starting {nodes} node(s) in {}", dir.path().display());
        // A slot for each shard, at least.
        let extra_config = match args.shards {
            ..=64 => String::new(),
            _ => "cluster.slot_count = 1024\n".to_owned(),
        };
        let mut options = ClusterOptions {
            nodes,
            dir: Some(dir.path().to_owned()),
            binary: args.mailboxd.clone(),
            shards: args.shards,
            extra_config,
            ..ClusterOptions::default()
        };
        adapt(&mut options);
        let begin = Instant::now();
        let cluster = Cluster::start(options).await;
        let cluster = cluster.context("start the cluster")?;
        Ok(Self {
            cluster,
            file_system,
            fdatasync_per_s,
            started_in: begin.elapsed(),
            shards: args.shards,
            dir,
        })
    }

    /// What all nodes have used so far.
    pub(super) async fn usage(&self) -> anyhow::Result<Usage> {
        let stages = Stages::take(&self.cluster, self.shards).await?;
        let stored_bytes = disk::stored_bytes(self.dir.path())?;
        Ok(Usage {
            cpu_us: stages.cpu_us(),
            written_bytes: stages.written_bytes(),
            stored_bytes,
            fsyncs: stages.log.map(|log| log.fsyncs),
            stages,
        })
    }

    /// Stops the nodes as an operator would, and removes the data.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        chaos::stop_all(&self.cluster).await?;
        drop(self.cluster);
        self.dir.close().context("remove the data")
    }
}

/// CPU time so far of who takes part in a run, in microseconds. `/proc` counts in ticks of 10 ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CpuByPart {
    /// All servers.
    pub(super) store_us: u64,
    /// All gateways.
    pub(super) gateway_us: u64,
    /// This process.
    pub(super) generator_us: u64,
}

impl CpuByPart {
    /// What each has used since it was started.
    pub(super) fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        let nodes = cluster.nodes();
        let store: Duration = nodes.iter().map(|node| node.server_usage().cpu).sum();
        let gateways = nodes.iter().filter_map(Node::gateway_usage);
        let gateways: Duration = gateways.map(|usage| usage.cpu).sum();
        Ok(Self {
            store_us: store.as_micros().try_into()?,
            gateway_us: gateways.as_micros().try_into()?,
            generator_us: process::own_cpu_us()?,
        })
    }

    /// What each has used since an earlier look.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            store_us: self.store_us.saturating_sub(before.store_us),
            gateway_us: self.gateway_us.saturating_sub(before.gateway_us),
            generator_us: self.generator_us.saturating_sub(before.generator_us),
        }
    }
}

/// The file system under `dir` and how often it syncs in a second; `dir` is made.
///
/// # Errors
/// It is in memory and that is not allowed, or cannot be written to.
pub(super) fn probe(dir: &Path, allow_tmpfs: bool) -> anyhow::Result<(String, f64)> {
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let file_system = disk::file_system(dir)?;
    if disk::is_memory(&file_system) && !allow_tmpfs {
        bail!(
            "{} is on {file_system}, in memory: an fsync there costs and proves nothing. \
             Choose another --dir, or say --allow-tmpfs",
            dir.display()
        );
    }
    let fdatasync_per_s = disk::fdatasync_per_s(dir, PROBE)?;
    Ok((file_system, fdatasync_per_s))
}

/// Registers `count` users with handles of their own and returns their ids.
pub(super) async fn register(client: &Client, count: usize) -> anyhow::Result<Arc<[u64]>> {
    // Another run may have left its users in a cluster that is not ours.
    let run = uuid::Uuid::now_v7().simple().to_string();
    let bar = ProgressBar::new(count as u64).with_message("users");
    bar.set_style(crate::output::bar_style());
    let users: Vec<u64> = futures_util::stream::iter(0..count)
        .map(|number| {
            let handle = format!("bench-{run}-{number}");
            let request = RegisterUserRequest {
                handle,
                ..Default::default()
            };
            let (client, bar) = (client.clone(), bar.clone());
            async move {
                let registered = client.register_user(request).await?;
                bar.inc(1);
                Ok::<_, mailbox_client::CallError>(registered.user)
            }
        })
        .buffer_unordered(REGISTRATIONS)
        .try_collect()
        .await
        .context("register users")?;
    bar.finish_and_clear();
    Ok(users.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_in_memory_is_refused_unless_allowed() {
        let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
            eprintln!("skipped: there is no /dev/shm to write to");
            return;
        };
        if !disk::is_memory(&disk::file_system(dir.path()).unwrap()) {
            eprintln!("skipped: /dev/shm is not in memory");
            return;
        }
        let error = probe(dir.path(), false).unwrap_err().to_string();
        assert!(error.contains("--allow-tmpfs"), "{error}");
    }
}
