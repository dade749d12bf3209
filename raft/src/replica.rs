//! One shard's replica on this node: openraft, and the tasks around it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mailbox_engine::ShardId;
use openraft::async_runtime::instant::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::error::{Fatal, RaftError};
use openraft::impls::EmptyNode;
use openraft::{Config, ServerState, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use crate::ballot::Ballot;
use crate::base_thread::{BaseThread, FlushedShard, report};
use crate::clock::Clock;
use crate::cluster_options;
use crate::disk::DiskRoom;
use crate::error::{Error, LeaderHint, ProposeError};
use crate::filling::Filling;
use crate::log::ShardLog;
use crate::network::Network;
use crate::options::NodeOptions;
use crate::outbox::OutboxFeed;
use crate::peers::Peers;
use crate::proposer::{Guards, Proposer};
use crate::read_barrier::ReadBarrier;
use crate::snapshot::SnapshotPace;
use crate::state_machine::{Applier, StateMachine};
use crate::status::{AppliedTail, Leadership, ReplicaStatus, ShardStatus};
use crate::types::{LogId, Membership, TypeConfig, log_id};

pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// Batches of rows that a slow receiver may be behind before it has to read them from the store.
const TAILS_KEPT: usize = 256;
/// How often a leader looks whether it still has its quorum.
const QUORUM_LOOK: Duration = Duration::from_millis(250);
/// How often a leader looks how far a follower is that it fills.
const FILLING_LOOK: Duration = Duration::from_millis(100);
/// Before openraft has said who leads, and after it has stopped.
const NOBODY: Leadership = Leadership::Follower {
    leader: None,
    term: 0,
};
/// Entries purged at once, at least.
const PURGE_BATCH: u64 = 256;

/// The way to a shard's leader.
#[derive(Clone)]
pub(crate) struct Road {
    node: u64,
    peers: Arc<Peers>,
}

impl Road {
    pub(crate) fn hint(&self, leader: Option<u64>) -> Option<LeaderHint> {
        let node = leader.filter(|leader| *leader != self.node)?;
        let address = self.peers.address(node)?;
        Some(LeaderHint { node, address })
    }

    /// Where a node is, if it is known.
    pub(crate) fn address(&self, node: u64) -> Option<String> {
        self.peers.address(node)
    }

    /// This node does not lead; `leader` may.
    pub(crate) fn elsewhere(&self, leader: Option<u64>) -> ProposeError {
        ProposeError::NotLeader {
            leader: self.hint(leader),
        }
    }

    /// Why nothing can be proposed here, if so.
    pub(crate) fn of(&self, leadership: &Leadership) -> Option<ProposeError> {
        match leadership {
            Leadership::Leader { .. } => None,
            Leadership::Follower { leader, .. } => Some(ProposeError::NotLeader {
                leader: leader.clone(),
            }),
        }
    }
}

/// What the replicas of a node share.
pub(crate) struct Shared {
    pub(crate) options: NodeOptions,
    pub(crate) base: Arc<BaseThread>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) pace: Arc<SnapshotPace>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) disk: Arc<DiskRoom>,
    pub(crate) fault: watch::Sender<Option<String>>,
    /// Why this node does not belong to its cluster as it is configured.
    pub(crate) misfit: watch::Sender<Option<String>>,
}

/// One replica.
pub(crate) struct Replica {
    pub(crate) id: ShardId,
    pub(crate) raft: Raft,
    pub(crate) engine: Arc<mailbox_engine::Shard>,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) flushed: watch::Sender<Option<mailbox_engine::LogId>>,
    pub(crate) tails: broadcast::Sender<Arc<AppliedTail>>,
    pub(crate) outbox: Arc<OutboxFeed>,
    pub(crate) proposer: Arc<Proposer>,
    pub(crate) barrier: ReadBarrier,
    pub(crate) road: Road,
    pub(crate) ballot: Arc<Ballot>,
    /// Held while the membership changes.
    pub(crate) changes: tokio::sync::Mutex<()>,
    /// Somebody's change is under way.
    pub(crate) changing: AtomicBool,
    applier: Arc<Applier>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

fn config(options: &NodeOptions, may_elect: bool) -> Result<Arc<Config>, Error> {
    let timing = &options.timing;
    let config = Config {
        cluster_name: options.cluster_id.clone(),
        heartbeat_interval: timing.heartbeat_ms,
        heartbeat_min_interval: Some(timing.heartbeat_ms),
        election_timeout_min: timing.election_min_ms,
        election_timeout_max: timing.election_max_ms,
        enable_pre_vote: Some(true),
        enable_elect: may_elect,
        // A node that comes back must not lead on what it remembers: its commit mark is written lazily.
        enable_leader_restore: Some(false),
        // Our flushes are the snapshots; each one is announced as it happens.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: options.log_entries_kept,
        purge_batch_size: PURGE_BATCH,
        max_payload_entries: 1024,
        // Only a follower behind the purge needs a snapshot.
        replication_lag_threshold: u64::MAX,
        install_snapshot_timeout: 600_000,
        backoff: "50ms 100ms 200ms ...2s".to_owned(),
        ..Config::default()
    };
    config
        .validate()
        .map(Arc::new)
        .map_err(|error| Error::Option {
            option: "timing",
            reason: error.to_string(),
        })
}

fn guards(shared: &Shared, road: &Road, outbox: &Arc<OutboxFeed>) -> Guards {
    let options = &shared.options;
    Guards {
        clock: shared.clock.clone(),
        disk: shared.disk.clone(),
        road: road.clone(),
        skew_max_ms: options.clock_skew_max_ms,
        queue_bytes_max: options.queue_bytes_max,
        outbox_bytes_max: options.outbox_bytes_max,
        outbox: outbox.clone(),
        cluster_options: options.cluster_options,
    }
}

async fn start_raft(
    shared: &Shared,
    shard: ShardId,
    log: ShardLog,
    machine: StateMachine,
    may_elect: bool,
    filling: &Arc<Filling>,
) -> Result<Raft, Error> {
    let options = &shared.options;
    let config = config(options, may_elect)?;
    let network = Network {
        shard: shard.0,
        peers: shared.peers.clone(),
        pace: shared.pace.clone(),
        filling: filling.clone(),
    };
    let raft = Raft::new(options.node, config, network, log, machine).await;
    raft.map_err(|error| Error::Stopped {
        shard,
        reason: error.to_string(),
    })
}

fn applier(shared: &Shared, engine: &Arc<mailbox_engine::Shard>, log: &ShardLog) -> Arc<Applier> {
    let applied = engine.applied().log_id.map(|id| log_id(id.term, id.index));
    let outbox = Arc::new(OutboxFeed::default());
    outbox.replaced(engine.outbox_bytes());
    Arc::new(Applier {
        engine: engine.clone(),
        log: log.clone(),
        base: shared.base.clone(),
        applied: watch::Sender::new(applied),
        tails: broadcast::Sender::new(TAILS_KEPT),
        outbox,
        fault: shared.fault.clone(),
        stopped: AtomicBool::new(false),
    })
}

impl Replica {
    pub(crate) async fn start(
        shared: &Shared,
        engine: Arc<mailbox_engine::Shard>,
        log: ShardLog,
    ) -> Result<Arc<Replica>, Error> {
        let (id, options) = (engine.id(), &shared.options);
        let flushed = watch::Sender::new(engine.flushed());
        shared.base.add(FlushedShard {
            engine: engine.clone(),
            log: log.clone(),
            flushed: flushed.clone(),
        });
        let applier = applier(shared, &engine, &log);
        let (applied, outbox) = (&applier.applied, &applier.outbox);
        let founds = log.life().is_none() && options.founders(id).contains(&options.node);
        let ballot = Ballot::new(log.clone());
        let machine = StateMachine(applier.clone());
        let filling = Arc::new(Filling::default());
        let raft = start_raft(shared, id, log, machine, ballot.is_open(), &filling).await?;
        let road = Road {
            node: options.node,
            peers: shared.peers.clone(),
        };
        let leadership = watch::Sender::new(NOBODY);
        let (proposer, proposing) = Proposer::spawn(
            raft.clone(),
            engine.clone(),
            leadership.subscribe(),
            guards(shared, &road, outbox),
        );
        let timeout = Duration::from_millis(options.timing.election_max_ms);
        let (barrier, reading) =
            ReadBarrier::spawn(raft.clone(), applied.subscribe(), road.clone(), timeout);
        let watcher = LeadershipWatcher {
            raft: raft.clone(),
            road: road.clone(),
            lease: timeout,
            applied: applied.subscribe(),
            leadership: leadership.clone(),
        };
        let [proposing, giving_up] = proposing;
        let tasks = vec![
            proposing,
            giving_up,
            reading,
            tokio::spawn(watcher.run()),
            cluster_options::watch(shared, engine.clone(), applied.subscribe()),
            tokio::spawn(announce_flushes(raft.clone(), flushed.subscribe(), filling)),
            tokio::spawn(ballot.clone().run(raft.clone(), applied.subscribe())),
            spawn_begin(shared, id, &raft, &ballot, founds),
        ];
        let replica = Arc::new(Replica {
            id,
            raft,
            engine,
            leadership,
            flushed,
            tails: applier.tails.clone(),
            outbox: outbox.clone(),
            proposer,
            barrier,
            road,
            ballot,
            changes: tokio::sync::Mutex::default(),
            changing: AtomicBool::new(false),
            applier,
            tasks: Mutex::new(tasks),
        });
        let tending = tokio::spawn(replica.clone().tend_membership());
        replica.tasks.lock().push(tending);
        Ok(replica)
    }

    /// Hands leadership to the voter that is furthest, and waits a moment for it.
    pub(crate) async fn give_leadership_away(&self, wait: Duration) {
        let target = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            if metrics.state != ServerState::Leader {
                return;
            }
            let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
            let replication = metrics.replication.iter().flatten();
            replication
                .filter(|(node, _)| **node != metrics.id && voters.contains(node))
                .max_by_key(|(_, matched)| matched.map(|id| id.index))
                .map(|(node, _)| *node)
        };
        let Some(target) = target else {
            return;
        };
        if let Err(error) = self.raft.trigger().transfer_leader(target).await {
            tracing::warn!(shard = self.id.0, %error, "leadership stays");
            return;
        }
        let mut leadership = self.leadership.subscribe();
        let gone = leadership.wait_for(|now| matches!(now, Leadership::Follower { .. }));
        // Whoever waits too long stops without: the others elect a leader by themselves.
        let _ = tokio::time::timeout(wait, gone).await;
    }

    /// Stops openraft and the tasks. Nothing is applied afterwards.
    pub(crate) async fn stop(&self) {
        self.proposer.close();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(shard = self.id.0, %error, "the replica did not stop cleanly");
        }
        // What openraft's own task still does to the rows concerns nobody.
        self.applier.stopped.store(true, Ordering::Release);
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            task.abort();
            // Aborted or ended: both are an end.
            let _ = task.await;
        }
        self.leadership.send_replace(NOBODY);
    }

    pub(crate) fn status(&self) -> ShardStatus {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        let engine = self.engine.metrics();
        let role = match (&metrics.running_state, metrics.state) {
            (Err(_), _) | (_, ServerState::Shutdown) => "stopped",
            (_, ServerState::Leader) => "leader",
            (_, ServerState::Follower) => "follower",
            (_, ServerState::Candidate) => "candidate",
            (_, ServerState::Learner) => "learner",
        };
        let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
        let replication = metrics.replication.iter().flatten();
        let replicas = replication.map(|(node, matched)| ReplicaStatus {
            node: *node,
            matched_index: index(*matched),
            voter: voters.contains(node),
        });
        ShardStatus {
            shard: self.id,
            role,
            leader: metrics.current_leader.unwrap_or(0),
            term: metrics.current_term,
            last_index: metrics.last_log_index.unwrap_or(0),
            committed_index: index(metrics.cluster_committed),
            applied_index: self.engine.applied().log_id.map_or(0, |id| id.index),
            flushed_index: self.engine.flushed().map_or(0, |id| id.index),
            purged_index: index(metrics.purged),
            memtable_bytes: engine.memtable_bytes + engine.frozen_bytes,
            replicas: replicas.collect(),
        }
    }
}

/// Brings about the first election that this node can bring about by itself.
async fn begin(
    id: ShardId,
    raft: &Raft,
    options: &NodeOptions,
    ballot: &Ballot,
    founds: bool,
) -> Result<(), Fatal<TypeConfig>> {
    if !raft.is_initialized().await? {
        if founds {
            found(id, raft, options).await?;
        }
        return Ok(());
    }
    let alone = {
        let server = raft.server_metrics();
        let server = server.borrow_watched();
        is_only_voter(server.membership_config.membership(), server.id)
    };
    // The only voter has nobody to wait for; but a log that is being filled again passes through old memberships.
    if alone && ballot.is_open() {
        raft.trigger().elect(false).await?;
    }
    Ok(())
}

/// Makes the first membership, once per cluster. All founders write the same first entry, so it does not matter
/// which of them do; one after the other goes, so that they do not all stand for election at once. The next one
/// waits until the election of the one before it is over, if that one is there at all.
async fn found(id: ShardId, raft: &Raft, options: &NodeOptions) -> Result<(), Fatal<TypeConfig>> {
    let turn = u32::try_from(options.turn(id)).unwrap_or(u32::MAX);
    let election = Duration::from_millis(options.timing.election_max_ms) * 2;
    tokio::time::sleep(election.saturating_mul(turn)).await;
    if raft.is_initialized().await? {
        return Ok(());
    }
    let founders = options.founders(id).into_iter();
    let members: BTreeMap<u64, EmptyNode> = founders.map(|node| (node, EmptyNode {})).collect();
    match raft.initialize(members).await {
        Ok(()) => tracing::info!(shard = id.0, "new cluster"),
        // Another node's first entry came in between.
        Err(RaftError::APIError(error)) => {
            tracing::debug!(shard = id.0, %error, "initialised by another node");
        }
        Err(RaftError::Fatal(error)) => return Err(error),
    }
    Ok(())
}

fn spawn_begin(
    shared: &Shared,
    id: ShardId,
    raft: &Raft,
    ballot: &Arc<Ballot>,
    founds: bool,
) -> JoinHandle<()> {
    let (options, fault) = (shared.options.clone(), shared.fault.clone());
    let (raft, ballot) = (raft.clone(), ballot.clone());
    tokio::spawn(async move {
        if let Err(error) = begin(id, &raft, &options, &ballot, founds).await {
            report(&fault, &error.to_string());
        }
    })
}

fn is_only_voter(membership: &Membership, node: u64) -> bool {
    membership.voter_ids().eq([node])
}

/// Tells openraft of every flush, so that it purges what is in files; but not what a follower that is being filled
/// needs next.
async fn announce_flushes(
    raft: Raft,
    mut flushed: watch::Receiver<Option<mailbox_engine::LogId>>,
    filling: Arc<Filling>,
) {
    while flushed.changed().await.is_ok() {
        loop {
            // The newest one: it is what openraft is told of.
            let upto = flushed.borrow_and_update().map_or(0, |id| id.index);
            let replication = raft.metrics().borrow_watched().replication.clone();
            let matched = |node| {
                let matched = replication.as_ref()?.get(&node)?;
                Some(matched.map_or(0, |id| id.index))
            };
            if filling.lets_go(upto, matched) {
                break;
            }
            tokio::time::sleep(FILLING_LOOK).await;
        }
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
    }
}

/// Publishes who leads.
struct LeadershipWatcher {
    raft: Raft,
    road: Road,
    /// A leader whose quorum is silent for so long leads no more.
    lease: Duration,
    applied: watch::Receiver<Option<LogId>>,
    leadership: watch::Sender<Leadership>,
}

impl LeadershipWatcher {
    async fn run(mut self) {
        let mut server = self.raft.server_metrics();
        loop {
            let now = self.look();
            self.leadership.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
            // What is applied matters only until the leader is ready.
            let waiting = matches!(
                *self.leadership.borrow(),
                Leadership::Leader { ready: false, .. }
            );
            let ended = tokio::select! {
                changed = server.changed() => changed.is_err(),
                changed = self.applied.changed(), if waiting => changed.is_err(),
                () = tokio::time::sleep(QUORUM_LOOK) => false,
            };
            if ended {
                return;
            }
        }
    }

    fn look(&mut self) -> Leadership {
        let server = self.raft.server_metrics().borrow_watched().clone();
        let term = server.vote.leader_id.term;
        if server.state != ServerState::Leader {
            return Leadership::Follower {
                leader: self.road.hint(server.current_leader),
                term,
            };
        }
        let alone = is_only_voter(server.membership_config.membership(), server.id);
        let (silent, stopped) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let acked = metrics.last_quorum_acked;
            let silent = acked.is_some_and(|acked| acked.elapsed() > self.lease);
            (silent && !alone, metrics.running_state.is_err())
        };
        if silent || stopped {
            return Leadership::Follower { leader: None, term };
        }
        let applied = *self.applied.borrow_and_update();
        Leadership::Leader {
            term,
            ready: applied.is_some_and(|id| id.leader_id.term == term),
        }
    }
}
