//! What all services of one node share: its replicas, who may call, limits and metrics.

use std::sync::Arc;
use std::time::Instant;

use mailbox_api::CallError;
use mailbox_api::v1::mailbox_client::MailboxClient;
use mailbox_api::v1::{ErrorCode, UserRef};
use mailbox_engine::{Command, Refusal, Reply, ShardId, TimelineId, UserId};
use mailbox_raft::{LeaderHint, Leadership, Node, Shard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tracing::Instrument as _;

use crate::auth::{Authority, Caller, forbidden};
use crate::auto_splits::AutoSplits;
use crate::cluster_map::{Leaders, Maps};
use crate::config::{ClusterConfig, LimitsConfig};
use crate::convert;
use crate::directory::HandleCache;
use crate::gateways::Gateways;
use crate::metrics::ServerMetrics;
use crate::peers::Peers;
use crate::placement::Placement;
use crate::shard_map::ShardMap;
use crate::shard_merges::ShardMerges;
use crate::shard_splits::ShardSplits;
use crate::slot_moves::SlotMoves;
use crate::status;

/// A caller whose user is known to exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Actor {
    /// May act for any user.
    Cluster,
    /// Acts for this user only.
    User(UserId),
}

/// Where a unary call is done.
pub(crate) enum Route {
    /// This node leads the shard.
    Here,
    /// Another one does; the call has not been forwarded yet.
    There(MailboxClient<Channel>),
}

/// Shared by the services of one node.
pub(crate) struct Core {
    pub(crate) node: Arc<Node>,
    pub(crate) node_id: u64,
    pub(crate) authority: Arc<Authority>,
    pub(crate) cluster: ClusterConfig,
    pub(crate) limits: LimitsConfig,
    pub(crate) metrics: Arc<ServerMetrics>,
    pub(crate) peers: Arc<Peers>,
    /// Where everything is.
    pub(crate) maps: Maps,
    /// Who leads what is not here.
    pub(crate) leaders: Leaders,
    /// Why this node does not belong to its cluster any more, if so.
    pub(crate) evicted: watch::Sender<Option<String>>,
    /// What moves replicas and leaders.
    pub(crate) placement: Placement,
    /// What moves slots between shards.
    pub(crate) slot_moves: SlotMoves,
    /// What makes two shards of one.
    pub(crate) shard_splits: ShardSplits,
    /// What has shards split that are too great.
    pub(crate) auto_splits: AutoSplits,
    /// What makes one shard of two.
    pub(crate) shard_merges: ShardMerges,
    /// What watches over the connection tier.
    pub(crate) gateways: Gateways,
    pub(crate) handles: HandleCache,
    pub(crate) started: Instant,
    /// Which build this is, if known.
    pub(crate) build: String,
    /// With less free space than this, sends are refused.
    pub(crate) disk_free_min_bytes: u64,
    /// Cancelled when the node stops: streams end, new calls are refused.
    pub(crate) stopping: CancellationToken,
}

impl Core {
    /// The replica that a caller names, for a stream: one that is elsewhere is told where.
    pub(crate) fn shard(&self, shard: u32) -> Result<Shard, CallError> {
        if let Some(held) = self.node.shard(ShardId(shard)) {
            return Ok(held);
        }
        Err(self.not_here(self.placed(shard)?))
    }

    /// As [`Core::named`], for calls of clients: one whose map is newer may name a shard that a split has just made,
    /// and asks another node; one whose map is older may name a shard that was retired, and reads the map.
    pub(crate) fn placed(&self, shard: u32) -> Result<ShardId, CallError> {
        self.named(shard).map_err(|_| {
            let epoch = self.maps.now().cluster.epoch;
            let mut error = status::unavailable(format!(
                "the map of this node, of epoch {epoch}, names no shard {shard}"
            ));
            error.0.map_epoch = epoch;
            error
        })
    }

    /// The shard that an operator names, wherever its replicas are.
    pub(crate) fn named(&self, shard: u32) -> Result<ShardId, CallError> {
        let named = ShardId(shard);
        // A split's shard is here before the map names it.
        if self.node.shard(named).is_some() || self.maps.now().cluster.shards.contains_key(&named) {
            return Ok(named);
        }
        Err(convert::invalid(format!("there is no shard {shard}")))
    }

    /// The shard that holds a timeline: where what concerns it is judged.
    pub(crate) fn shard_of_timeline(&self, timeline: TimelineId) -> ShardId {
        self.maps.now().shards.of_timeline(timeline)
    }

    /// The shard that holds a user's mailbox.
    pub(crate) fn shard_of_user(&self, user: UserId) -> ShardId {
        self.maps.now().shards.of_user(user)
    }

    /// The shard that holds a handle's place in the directory.
    pub(crate) fn shard_of_handle(&self, handle: &str) -> ShardId {
        self.maps.now().shards.of_handle(handle)
    }

    /// This node does not belong to the cluster any more: the process stops, with the reason.
    pub(crate) fn evict(&self, reason: String) {
        self.evicted.send_replace(Some(reason));
    }

    /// Refuses a timeline of another shard. The map is the caller's, so that one look serves many timelines.
    pub(crate) fn check_shard(
        &self,
        map: &ShardMap,
        shard: &Shard,
        timeline: TimelineId,
    ) -> Result<(), CallError> {
        let holder = map.of_timeline(timeline);
        if holder == shard.id() {
            return Ok(());
        }
        let message = format!(
            "{timeline} is in shard {holder}, not in shard {}",
            shard.id()
        );
        Err(self.wrong_shard(message))
    }

    /// `WrongShard`, with the epoch of the map here.
    pub(crate) fn wrong_shard(&self, message: String) -> CallError {
        let mut error = CallError::new(ErrorCode::WrongShard, message);
        error.0.map_epoch = self.maps.now().shards.epoch();
        error
    }

    /// Parts a slot that is not served here, any more or for now, which is a *no* to its own readers only, from
    /// faults of the store.
    pub(crate) fn elsewhere<T>(
        &self,
        read: Result<T, mailbox_engine::Error>,
    ) -> Result<Result<T, CallError>, mailbox_engine::Error> {
        match read {
            Ok(value) => Ok(Ok(value)),
            Err(error) if status::is_elsewhere(&error) => {
                Ok(Err(self.wrong_shard(error.to_string())))
            }
            Err(error) => Err(error),
        }
    }

    /// A *no* of apply, as the caller gets it.
    pub(crate) fn refusal(&self, refusal: &Refusal) -> CallError {
        let mut error = status::refusal(refusal);
        if error.code() == ErrorCode::WrongShard {
            error.0.map_epoch = self.maps.now().shards.epoch();
        }
        error
    }

    /// Refuses while another node leads, saying which.
    pub(crate) fn require_leader(&self, shard: &Shard) -> Result<u64, CallError> {
        match shard.leadership() {
            Leadership::Leader { term, .. } => Ok(term),
            Leadership::Follower { leader, .. } => Err(self.not_leader(shard, leader)),
        }
    }

    /// Where the leader was last seen, with the epoch of the map here.
    fn not_leader(&self, shard: &Shard, leader: Option<LeaderHint>) -> CallError {
        let mut error = status::not_leader(shard.id().0, leader);
        error.0.map_epoch = self.maps.now().shards.epoch();
        error
    }

    /// Where a unary call is done: here, or once forwarded, at the leader.
    pub(crate) fn route(&self, call: &MetadataMap, shard: &Shard) -> Result<Route, CallError> {
        if self.stopping.is_cancelled() {
            return Err(status::unavailable("the node is shutting down"));
        }
        let leader = match shard.leadership() {
            Leadership::Leader { .. } => return Ok(Route::Here),
            Leadership::Follower { leader, .. } => leader,
        };
        match leader {
            Some(LeaderHint { address, .. })
                if call.get(mailbox_api::metadata::FORWARDED).is_none() =>
            {
                Ok(Route::There(self.peers.mailbox(&address)?))
            }
            leader => Err(self.not_leader(shard, leader)),
        }
    }

    /// Waits until what this replica has applied is linearizable.
    pub(crate) async fn barrier(&self, shard: &Shard) -> Result<(), CallError> {
        shard
            .read_barrier()
            .await
            .map_err(|error| status::propose(shard.id().0, error))
    }

    /// Proposes one command.
    pub(crate) async fn propose(
        &self,
        shard: &Shard,
        command: Command,
    ) -> Result<Reply, CallError> {
        let span = tracing::debug_span!("call", shard = shard.id().0);
        let mut replies = shard
            .propose(vec![command])
            .instrument(span)
            .await
            .map_err(|error| status::propose(shard.id().0, error))?;
        match replies.pop() {
            Some(Reply::Refused(refusal)) => Err(self.refusal(&refusal)),
            Some(reply) => Ok(reply),
            None => Err(CallError::new(ErrorCode::Internal, "apply gave no reply")),
        }
    }

    /// Runs a read that may touch files on a thread that may wait.
    pub(crate) async fn read<T, F>(&self, shard: &Shard, read: F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: FnOnce(&mailbox_engine::Shard) -> Result<T, mailbox_engine::Error> + Send + 'static,
    {
        let engine = Arc::clone(shard.engine());
        let done = mailbox_raft::simulation::blocking(move || read(&engine)).await;
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if status::is_elsewhere(&error) => {
                Err(self.wrong_shard(error.to_string()))
            }
            Ok(Err(error)) => {
                tracing::error!(shard = shard.id().0, error = %status::with_causes(&error), "read");
                Err(status::engine_fault(&error))
            }
            Err(_) => Err(CallError::new(
                ErrorCode::Internal,
                "a read was stopped by a bug",
            )),
        }
    }

    /// Who may act in this call, with their id.
    pub(crate) async fn actor(&self, caller: Caller) -> Result<Actor, CallError> {
        match caller {
            Caller::Cluster => Ok(Actor::Cluster),
            Caller::User(user) => Ok(Actor::User(self.resolve(&user).await?)),
        }
    }

    /// The user that a call acts for: the one it names, or the token's if it names none.
    pub(crate) async fn acting_user(
        &self,
        actor: Actor,
        field: &str,
        named: Option<UserRef>,
    ) -> Result<UserId, CallError> {
        let named = named.and_then(|user| user.user);
        match (actor, named) {
            (Actor::User(id), None) => Ok(id),
            (Actor::Cluster, named) => {
                let user = convert::user(field, named.map(|user| UserRef { user: Some(user) }))?;
                self.resolve(&user).await
            }
            (Actor::User(id), Some(user)) => {
                if self.resolve(&user).await? == id {
                    return Ok(id);
                }
                Err(forbidden(format!("the token acts for user {id} only")))
            }
        }
    }
}

/// The same call with the same proof of who calls, marked as forwarded.
pub(crate) fn forwarded<T>(metadata: &MetadataMap, call: T) -> Request<T> {
    use mailbox_api::metadata as names;
    let mut request = Request::new(call);
    for name in [
        names::AUTHORIZATION,
        names::CLUSTER_ID,
        names::CLUSTER_SECRET,
    ] {
        if let Some(value) = metadata.get(name) {
            request.metadata_mut().insert(name, value.clone());
        }
    }
    request
        .metadata_mut()
        .insert(names::FORWARDED, MetadataValue::from_static("1"));
    request
}
