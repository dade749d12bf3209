//! One `mailboxd server` process of a cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;

/// Bytes that processes have moved, as Linux counts them in `/proc/<pid>/io`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoBytes {
    /// Fetched from the block device.
    pub read: u64,
    /// Sent to the block device, or to the page cache that will be.
    pub written: u64,
}

/// One node: its addresses and files stay the same over restarts.
#[derive(Debug)]
pub struct Node {
    id: u64,
    address: String,
    gateway: Option<String>,
    dir: PathBuf,
    log: PathBuf,
}

impl Node {
    /// Its node id, from 1.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where it serves gRPC: `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where its gateway listens, as `ws://127.0.0.1:port`, if it has one.
    pub fn gateway_url(&self) -> Option<String> {
        self.gateway
            .as_ref()
            .map(|address| format!("ws://{address}"))
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.dir
    }

    /// What it wrote to stdout and stderr, over all its lives.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// The running process, if there is one.
    pub fn pid(&self) -> Option<u32> {
        None
    }

    /// Starts the process; does nothing if it runs. It may take a while to serve.
    ///
    /// # Errors
    /// When the binary cannot be started.
    pub fn start(&self) -> anyhow::Result<()> {
        bail!("cannot start node {}", self.id)
    }

    /// SIGKILL, and waits until the process is gone. False if it did not run.
    pub fn kill(&self) -> anyhow::Result<bool> {
        Ok(false)
    }

    /// SIGSTOP. False if it did not run.
    pub fn pause(&self) -> anyhow::Result<bool> {
        Ok(false)
    }

    /// SIGCONT. False if it did not run.
    pub fn resume(&self) -> anyhow::Result<bool> {
        Ok(false)
    }

    /// SIGTERM, and waits for the exit; returns its status, `None` if it did not run.
    ///
    /// # Errors
    /// When it still runs after `patience`; it is then killed.
    pub async fn stop(
        &self,
        patience: Duration,
    ) -> anyhow::Result<Option<std::process::ExitStatus>> {
        let _ = patience;
        Ok(None)
    }

    /// User and system time of this node's processes, dead ones included.
    pub fn cpu_time(&self) -> Duration {
        Duration::ZERO
    }

    /// Bytes moved by this node's processes, dead ones included.
    pub fn io_bytes(&self) -> IoBytes {
        IoBytes::default()
    }
}
