//! One node: its replicas and what they share.

use std::sync::Arc;

use mailbox_engine::ShardId;
use tokio::sync::watch;

use crate::error::{ClockFault, Error};
use crate::options::NodeOptions;
use crate::peer_service::PeerService;
use crate::shard::Shard;
use crate::status::PeerStatus;

/// One node.
pub struct Node {
    fault: watch::Sender<Option<String>>,
}

impl Node {
    /// Opens what is under `options.dir`, or bootstraps a new cluster's node there, and starts its replicas.
    ///
    /// # Errors
    /// [`Error`]; nothing runs then.
    pub async fn start(options: NodeOptions) -> Result<Arc<Node>, Error> {
        options.validate()?;
        Ok(Arc::new(Node {
            fault: watch::Sender::new(None),
        }))
    }

    /// What peers call. To be served on the address that `members` gives for this node.
    pub fn peer_service(&self) -> PeerService {
        PeerService {}
    }

    /// A shard with a replica here.
    pub fn shard(&self, shard: ShardId) -> Option<Shard> {
        let _ = shard;
        None
    }

    /// All shards with a replica here.
    pub fn shards(&self) -> Vec<Shard> {
        Vec::new()
    }

    /// The first fault of this node's storage, once there is one: the process must stop then.
    pub fn fault(&self) -> watch::Receiver<Option<String>> {
        self.fault.subscribe()
    }

    /// This node's time, milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`ClockFault`]: not compared yet, or too far from the other nodes'.
    pub fn clock_now_ms(&self) -> Result<u64, ClockFault> {
        Err(ClockFault::NotCompared)
    }

    /// This clock minus the median of all nodes', at the last comparison, in milliseconds.
    pub fn clock_skew_ms(&self) -> i64 {
        0
    }

    /// Bytes free where the node's directory is, looked up about once a second.
    pub fn disk_free_bytes(&self) -> u64 {
        0
    }

    /// All nodes, as this one sees them.
    pub fn peers(&self) -> Vec<PeerStatus> {
        Vec::new()
    }

    /// Hands leaderships away, flushes and closes. Takes 8 seconds at most. Proposals fail from its start.
    ///
    /// # Errors
    /// What could not be flushed or closed; all is stopped nevertheless.
    pub async fn shutdown(&self) -> Result<(), Error> {
        Ok(())
    }
}
