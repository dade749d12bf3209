//! Nodes that make one cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use mailbox_client::Client;

use crate::node::{IoBytes, Node};

/// What [`Cluster::start`] makes.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// 1 or 3.
    pub nodes: usize,
    /// Where data, configs and logs go. `None`: a temporary directory, removed at the end unless
    /// the thread panics or [`Cluster::keep_files`] was called.
    pub dir: Option<PathBuf>,
    /// The `mailboxd` to run. `None`: `$MAILBOXD`, else the file beside the running executable.
    pub binary: Option<PathBuf>,
    /// Whether each node also serves as a gateway.
    pub gateway: bool,
    /// TOML merged over the config that is written for each node.
    pub extra_config: String,
    /// How long the cluster may take until it serves.
    pub ready_within: Duration,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            nodes: 3,
            dir: None,
            binary: None,
            gateway: false,
            extra_config: String::new(),
            ready_within: Duration::from_secs(60),
        }
    }
}

/// Running nodes; dropping it kills them all.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    dir: PathBuf,
    secret_file: PathBuf,
    auth_key_file: PathBuf,
}

impl Cluster {
    /// Writes configs and keys, starts every node and waits until a leader serves.
    ///
    /// # Errors
    /// When the binary is missing, a node exits, or nothing serves in time; with the end of the
    /// nodes' logs.
    pub async fn start(options: ClusterOptions) -> anyhow::Result<Self> {
        bail!("cannot start {} nodes", options.nodes)
    }

    /// Node `i`, counted from 0.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node(&self, i: usize) -> &Node {
        &self.nodes[i]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Where everything of this cluster lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cluster secret's file.
    pub fn secret_file(&self) -> &Path {
        &self.secret_file
    }

    /// The HS256 key with which the gateways check tokens.
    pub fn auth_key_file(&self) -> &Path {
        &self.auth_key_file
    }

    /// The id in every node's config.
    pub fn cluster_id(&self) -> &str {
        "cluster"
    }

    /// Keeps data and logs when the cluster ends.
    pub fn keep_files(&mut self) {}

    /// A client with the cluster secret.
    pub async fn client(&self) -> anyhow::Result<Client> {
        bail!("no client")
    }

    /// The position in [`Cluster::nodes`] of the node that leads shard 0, if the running nodes agree
    /// on one that runs.
    pub async fn leader(&self) -> Option<usize> {
        None
    }

    /// Waits until every running node answers and a leader serves.
    pub async fn wait_ready(&self, within: Duration) -> anyhow::Result<()> {
        bail!("nothing serves within {within:?}")
    }

    /// User and system time of all nodes, dead processes included.
    pub fn cpu_time(&self) -> Duration {
        self.nodes.iter().map(Node::cpu_time).sum()
    }

    /// Bytes moved by all nodes, dead processes included.
    pub fn io_bytes(&self) -> IoBytes {
        IoBytes::default()
    }
}
