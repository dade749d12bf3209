//! The handle on this node's replica of a shard.

use std::sync::Arc;

use mailbox_engine::{Command, Reply, ShardId};
use tokio::sync::{broadcast, watch};

use crate::error::ProposeError;
use crate::status::{AppliedTail, Leadership, ShardStatus, StateHash};

/// This node's replica of a shard. Clones are the same replica.
#[derive(Clone)]
pub struct Shard {
    inner: Arc<Inner>,
}

struct Inner {
    id: ShardId,
    engine: Arc<mailbox_engine::Shard>,
    leadership: watch::Sender<Leadership>,
    applied: broadcast::Sender<Arc<AppliedTail>>,
}

impl Shard {
    /// Which shard.
    pub fn id(&self) -> ShardId {
        self.inner.id
    }

    /// The rows. Read after [`Shard::read_barrier`] for the newest.
    pub fn engine(&self) -> &Arc<mailbox_engine::Shard> {
        &self.inner.engine
    }

    /// Who leads.
    pub fn leadership(&self) -> Leadership {
        self.inner.leadership.borrow().clone()
    }

    /// Every change of who leads.
    pub fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    /// Proposes commands and waits until they are applied here: one reply per command, in order. The
    /// commands of one call are in one entry. Message ids and time are set on the way.
    ///
    /// # Errors
    /// See [`ProposeError`]. After any of them the same commands may be proposed again, here or elsewhere.
    pub async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Reply>, ProposeError> {
        let _ = commands;
        Err(ProposeError::NotLeader { leader: None })
    }

    /// Waits until a read here sees everything acknowledged before this call, anywhere.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`] or [`ProposeError::Unavailable`].
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        Err(ProposeError::NotLeader { leader: None })
    }

    /// What is appended from now on. A receiver that lags gets `Lagged` and must read the rows instead.
    pub fn subscribe_applied(&self) -> broadcast::Receiver<Arc<AppliedTail>> {
        self.inner.applied.subscribe()
    }

    /// The hash of all rows at one index. With `cut` 0 the leader makes a new cut; else the hash of that
    /// cut is waited for here, as on every other replica.
    ///
    /// # Errors
    /// [`ProposeError`]; `Unavailable` also if a later cut has replaced this one.
    pub async fn state_hash(&self, cut: u64) -> Result<StateHash, ProposeError> {
        let _ = cut;
        Err(ProposeError::NotLeader { leader: None })
    }

    /// State of this replica.
    pub fn status(&self) -> ShardStatus {
        ShardStatus {
            shard: self.inner.id,
            role: "stopped",
            leader: 0,
            term: 0,
            last_index: 0,
            committed_index: 0,
            applied_index: 0,
            flushed_index: 0,
            purged_index: 0,
            memtable_bytes: 0,
            replicas: Vec::new(),
        }
    }

    /// Asks this leader to hand its leadership to `to`. Returns once asked, not once done.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`].
    pub async fn transfer_leader(&self, to: u64) -> Result<(), ProposeError> {
        let _ = to;
        Err(ProposeError::NotLeader { leader: None })
    }
}
