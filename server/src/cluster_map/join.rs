//! A node tells the cluster who it is before any of its replicas starts, and is refused if it is not who it was:
//! another directory under its id, an old copy of its directory, or a node that was removed. A replica that
//! has lost what it acknowledged must not vote.
//!
//! Only the cluster can say so. A new node waits until it does; one that has been in the cluster asks for a
//! moment and goes on without an answer, or a cluster whose nodes were all down would never start again. It
//! then goes on asking (`report.rs`), and stops if it is refused.

use std::sync::Arc;
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::{ErrorCode, JoinClusterRequest};
use mailbox_engine::ClusterMap;
use mailbox_raft::Admission;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Request;

use super::convert::map_in;
use super::file;
use crate::auth::Authority;
use crate::config::Config;
use crate::peers::Peers;

/// How long a node that is in the cluster already asks before it goes on.
const KNOWN_WAIT: Duration = Duration::from_secs(2);
/// How long one of the first nodes of what may be a new cluster asks.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// How long a new node asks before it gives up.
const NEW_WAIT: Duration = Duration::from_secs(60);
/// One question.
const ASK_WAIT: Duration = Duration::from_secs(1);
/// Between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(100);

/// What a node says of itself, without what only its directory knows.
fn join_request(config: &Config, address: &str) -> JoinClusterRequest {
    JoinClusterRequest {
        node: config.node.id,
        address: address.to_owned(),
        region: config.node.region.clone(),
        zone: config.node.zone.clone(),
        weight: config.node.weight,
        slot_count: config.cluster.slot_count.into(),
        shard_count: config.cluster.shards.into(),
        incarnation: 0,
        log_batch: 0,
    }
}

/// Refusals that no repeat of the same call will change.
pub(super) fn is_final(error: &CallError) -> bool {
    matches!(
        error.code(),
        ErrorCode::NodeTaken
            | ErrorCode::NodeRemoved
            | ErrorCode::StaleDisk
            | ErrorCode::WrongCluster
            | ErrorCode::InvalidArgument
    )
}

/// Asks on behalf of one node that starts.
pub(crate) struct Joiner {
    /// As it was, or will be, asked.
    pub(super) request: Mutex<JoinClusterRequest>,
    /// What the cluster has answered.
    told: Mutex<Option<ClusterMap>>,
    authority: Arc<Authority>,
    peers: Arc<Peers>,
    /// Of the other nodes, as far as known.
    addresses: Vec<String>,
    /// This node is not one of the cluster's first, and has never seen its map.
    is_new: bool,
}

/// What one round of questions has given.
enum Round {
    /// An answer.
    Told(ClusterMap),
    /// There are nodes that could not say, or were silent.
    Unknown(String),
    /// Nobody is there, or nobody has a map.
    Nobody(String),
}

impl Joiner {
    pub(crate) fn new(config: &Config, authority: Arc<Authority>, peers: Arc<Peers>) -> Self {
        let own_address = config.own_address();
        let stored = file::read(&config.node.dir, &config.cluster.id);
        let stored = stored.ok().flatten();
        let of_map = stored.iter().flat_map(|map| &map.nodes);
        let of_map = of_map.filter(|(node, _)| **node != config.node.id);
        let of_config = config.cluster.nodes.iter();
        let of_config = of_config.filter(|(node, _)| **node != config.node.id);
        let addresses = of_map.map(|(_, row)| &row.address);
        let addresses = addresses.chain(of_config.map(|(_, address)| address));
        let mut known: Vec<String> = Vec::new();
        for address in addresses.chain(&config.cluster.join) {
            if !known.contains(address) && address != own_address {
                known.push(address.clone());
            }
        }
        Self {
            request: Mutex::new(join_request(config, own_address)),
            told: Mutex::default(),
            authority,
            peers,
            addresses: known,
            is_new: !config.cluster.join.is_empty() && stored.is_none(),
        }
    }

    /// The map that the cluster has answered with, if it has.
    pub(crate) fn told(&self) -> Option<ClusterMap> {
        self.told.lock().clone()
    }

    /// Asks. `Err` says why this node must not start.
    pub(crate) async fn at_start(&self, admission: Admission) -> Result<(), String> {
        {
            let mut request = self.request.lock();
            request.incarnation = admission.incarnation;
            request.log_batch = admission.log_batch;
        }
        if self.addresses.is_empty() {
            return Ok(());
        }
        let wait = match (self.is_new, admission.is_new) {
            (true, _) => NEW_WAIT,
            (false, true) => FIRST_WAIT,
            (false, false) => KNOWN_WAIT,
        };
        let deadline = Instant::now() + wait;
        let mut warned = false;
        loop {
            let reason = match self.round(deadline).await? {
                Round::Told(map) => {
                    *self.told.lock() = Some(map);
                    return Ok(());
                }
                Round::Nobody(_) if !self.is_new => return Ok(()),
                Round::Nobody(reason) | Round::Unknown(reason) => reason,
            };
            if Instant::now() + PAUSE >= deadline {
                if self.is_new {
                    return Err(format!(
                        "no node of the cluster has let this one join within {} s: {reason}",
                        wait.as_secs()
                    ));
                }
                tracing::warn!(
                    reason,
                    "no node has said whether this one may start: it starts"
                );
                return Ok(());
            }
            if self.is_new && !warned {
                tracing::warn!(reason, "the cluster does not answer yet");
                warned = true;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn round(&self, deadline: Instant) -> Result<Round, String> {
        let (mut reason, mut somebody) = (String::new(), false);
        for address in &self.addresses {
            let until = deadline.min(Instant::now() + ASK_WAIT);
            match tokio::time::timeout_at(until, self.ask(address)).await {
                Ok(Ok(map)) if map.epoch > 0 => return Ok(Round::Told(map)),
                Ok(Ok(_)) => reason = format!("{address}: the cluster has no map yet"),
                Ok(Err(Unanswered::Call(error))) if is_final(&error) => {
                    return Err(format!("{address}: {}", error.0.message));
                }
                Ok(Err(Unanswered::Call(error))) => {
                    somebody = true;
                    reason = format!("{address}: {error}");
                }
                Ok(Err(Unanswered::Down(error))) => reason = format!("{address}: {error}"),
                Err(_) => {
                    somebody = true;
                    reason = format!("{address}: no answer");
                }
            }
        }
        Ok(if somebody {
            Round::Unknown(reason)
        } else {
            Round::Nobody(reason)
        })
    }

    async fn ask(&self, address: &str) -> Result<ClusterMap, Unanswered> {
        let mut client = self.peers.cluster(address).map_err(Unanswered::Call)?;
        let mut request = Request::new(self.request.lock().clone());
        let proven = self.authority.prove(request.metadata_mut());
        proven.map_err(Unanswered::Call)?;
        match client.join_cluster(request).await {
            Ok(answer) => {
                let map = answer.into_inner().map.unwrap_or_default();
                map_in(map).map_err(Unanswered::Call)
            }
            Err(status) => {
                let error = CallError::from_status(&status);
                // What a node says has details; what the connection says has none.
                Err(if status.details().is_empty() {
                    Unanswered::Down(error)
                } else {
                    Unanswered::Call(error)
                })
            }
        }
    }
}

enum Unanswered {
    /// A node has said no.
    Call(CallError),
    /// The node is not there.
    Down(CallError),
}
