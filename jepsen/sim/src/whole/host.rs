//! A node that is started, cut off and started again, with what its disks hold.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Context as _;
use mailbox_engine::MemoryDisk;
use mailbox_server::config::{Config, Role};
use mailbox_server::simulation::{MetricsRegistry, run_node};

use super::{FOUNDERS, Shared};

/// The same on all hosts.
const PORT: u16 = 7000;
const CLUSTER: &str = "simulated";
const SECRET: &str = "the secret of a simulated cluster";

/// A node's host.
pub(super) struct Host {
    node: u64,
    dir: PathBuf,
    config: PathBuf,
    /// Its rows.
    disk: MemoryDisk,
    starts: Cell<u64>,
    shared: Rc<Shared>,
}

/// As the network knows it.
pub(super) fn name(node: u64) -> String {
    format!("node{node}")
}

/// Where a node is reached.
pub(super) fn address(node: u64) -> String {
    format!("{}:{PORT}", name(node))
}

/// What proves that somebody belongs to the cluster.
pub(super) fn secret() -> mailbox_client::Auth {
    mailbox_client::Auth::Secret {
        cluster_id: Some(CLUSTER.to_owned()),
        secret: SECRET.as_bytes().to_vec(),
    }
}

impl Host {
    /// `lease_reads`: as in its configuration.
    pub(super) fn new(
        node: u64,
        dir: &Path,
        lease_reads: bool,
        shared: Rc<Shared>,
    ) -> anyhow::Result<Self> {
        let dir = dir.join(name(node));
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let host = Self {
            node,
            config: dir.join("mailbox.toml"),
            dir,
            disk: MemoryDisk::new(),
            starts: Cell::new(0),
            shared,
        };
        std::fs::write(host.dir.join("secret"), SECRET).context("write the secret")?;
        std::fs::write(&host.config, host.document(lease_reads))
            .context("write the configuration")?;
        Ok(host)
    }

    /// What takes hours in service happens within seconds: flushes, purges of the log, snapshots for whoever lags.
    fn document(&self, lease_reads: bool) -> String {
        let (node, dir) = (self.node, self.dir.display());
        let founders = 1..=FOUNDERS;
        let company = if founders.contains(&node) {
            let founders = founders.map(|node| format!("{node} = \"{}\"", address(node)));
            format!("nodes = {{ {} }}", founders.collect::<Vec<_>>().join(", "))
        } else {
            format!("join = {:?}", founders.map(address).collect::<Vec<_>>())
        };
        let own = address(node);
        format!(
            "[cluster]\nid = \"{CLUSTER}\"\nsecret_file = \"{dir}/secret\"\nslot_count = 16\nshards = 2\n\
             {company}\n\
             [node]\nid = {node}\ndir = \"{dir}/rows\"\nlisten = \"0.0.0.0:{PORT}\"\naddress = \"{own}\"\n\
             metrics_listen = \"\"\nallow_plaintext = true\nlease_reads = {lease_reads}\n\
             disk_free_min_percent = 0\ndisk_free_min_bytes = \"1 MiB\"\n\
             [storage]\nflush_age_ms = 1000\nlog_entries_kept = 64\n\
             [memory]\nbudget_bytes = \"128 MiB\"\n"
        )
    }

    /// From a start to the end, which only a cut may bring.
    pub(super) async fn run(self: Rc<Self>) -> turmoil::Result {
        let starts = self.starts.get();
        self.starts.set(starts + 1);
        if starts > 0 {
            self.disk.crash();
        }
        self.shared.note("start");
        let config = Config::load(Some(&self.config), &[], Role::Server)?;
        let metrics = MetricsRegistry::default();
        let all = &self.shared.metrics;
        all.borrow_mut().insert(self.node, metrics.clone());
        let ended = run_node(&config, self.disk.clone(), metrics).await;
        if let Err(error) = ended {
            let causes = format!("{:#}", anyhow::Error::from(error));
            let node = self.node;
            self.shared
                .is_broken(format!("node {node} ended by itself: {causes}"));
        }
        Ok(())
    }
}
