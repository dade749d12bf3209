//! What stays the same over all lives of a cluster: its id, its ports, its keys.

use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

/// Below the ports that systems give to outgoing connections: one of those could take the port of a
/// node that is down for a moment.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

const PORT_ATTEMPTS_MAX: usize = 1000;

/// Stored as `cluster.json`, so that a directory can be started again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Layout {
    pub(crate) cluster_id: String,
    pub(crate) nodes: Vec<Ports>,
}

/// The ports of one node.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ports {
    pub(crate) node: u16,
    pub(crate) metrics: u16,
    pub(crate) gateway: u16,
}

impl Layout {
    /// The directory's own, if it has been used before; else a new one.
    pub(crate) fn load_or_make(dir: &Path, nodes: usize) -> anyhow::Result<Self> {
        let path = dir.join("cluster.json");
        if path.exists() {
            let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let layout: Self = serde_json::from_slice(&bytes)
                .with_context(|| format!("parse {}", path.display()))?;
            if layout.nodes.len() != nodes {
                bail!(
                    "{} holds a cluster of {} nodes, not {nodes}",
                    dir.display(),
                    layout.nodes.len()
                );
            }
            return Ok(layout);
        }
        let cluster_id = format!("local-{:08x}", rand::random::<u32>());
        let layout = Self {
            cluster_id,
            nodes: free_ports(nodes)?,
        };
        let bytes = serde_json::to_vec_pretty(&layout).context("encode the layout")?;
        std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        Ok(layout)
    }
}

/// Ports on which nobody listens now.
pub(crate) fn free_ports(nodes: usize) -> anyhow::Result<Vec<Ports>> {
    // All are held until the last is found, so that none is found twice.
    let mut held = Vec::new();
    let mut take = || {
        for _ in 0..PORT_ATTEMPTS_MAX {
            let port = rand::random_range(PORTS);
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
                held.push(listener);
                return Ok(port);
            }
        }
        bail!("no free port found in {PORT_ATTEMPTS_MAX} attempts");
    };
    (0..nodes)
        .map(|_| {
            Ok(Ports {
                node: take()?,
                metrics: take()?,
                gateway: take()?,
            })
        })
        .collect()
}

/// A file with 32 random bytes in hexadecimal that only its owner can read; kept if it exists.
pub(crate) fn key_file(dir: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = dir.join(name);
    if path.exists() {
        return Ok(path);
    }
    let key: [u8; 32] = rand::random();
    let text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("create {}", path.display()))?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_directory_keeps_its_ports_and_keys() {
        let dir = tempfile::tempdir().unwrap();
        let first = Layout::load_or_make(dir.path(), 3).unwrap();
        let again = Layout::load_or_make(dir.path(), 3).unwrap();
        assert_eq!(first.cluster_id, again.cluster_id);
        assert_eq!(first.nodes[2].gateway, again.nodes[2].gateway);
        assert!(Layout::load_or_make(dir.path(), 1).is_err());

        let key = key_file(dir.path(), "key").unwrap();
        let text = std::fs::read(&key).unwrap();
        assert_eq!(text.len(), 64);
        key_file(dir.path(), "key").unwrap();
        assert_eq!(std::fs::read(&key).unwrap(), text);
    }

    #[test]
    fn ports_are_all_different() {
        let ports = free_ports(3).unwrap();
        let all: BTreeSet<u16> = ports
            .iter()
            .flat_map(|ports| [ports.node, ports.metrics, ports.gateway])
            .collect();
        assert_eq!(all.len(), 9);
    }
}
