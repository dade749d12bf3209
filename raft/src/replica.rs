//! One shard's replica on this node: openraft, and the tasks around it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mailbox_api::peer;
use mailbox_api::peer::control_request::Request as Ask;
use mailbox_api::peer::control_response::Response as Answer;
use mailbox_engine::ShardId;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::error::Fatal;
use openraft::storage::{RaftLogStorage as _, RaftLogStorageExt as _};
use openraft::{EntryPayload, ServerState};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinHandle;

use crate::announcer::Announcer;
use crate::ballot::Ballot;
use crate::base_thread::{BaseThread, FlushedShard};
use crate::children::Children;
use crate::clock::Clock;
use crate::cluster_options;
use crate::disk::DiskRoom;
use crate::entry_tick::{Company, EntryTick};
use crate::error::{Error, LeaderHint, ProposeError};
use crate::filling::Filling;
use crate::freshness::{Freshness, Sources};
use crate::leadership::{LeadershipWatcher, NOBODY};
use crate::learner_pace::LearnerPace;
use crate::lease::Lease;
use crate::log::ShardLog;
use crate::network::Network;
use crate::options::NodeOptions;
use crate::outbox::OutboxFeed;
use crate::peers::Peers;
use crate::promise::Pledge;
use crate::proposer::{Guards, Proposer};
use crate::pulse::Pulse;
use crate::raft_config::raft_config;
use crate::read_barrier::{Ground, ReadBarrier};
use crate::slot_copy::{Holder, SlotCopies};
use crate::snapshot::SnapshotPace;
use crate::state_machine::{Applier, StateMachine};
use crate::status::{AppliedTail, Leadership, ReplicaStatus, RowsWait, ShardStatus};
use crate::traffic::Traffic;
use crate::types::{Entry, LogId, Membership, TypeConfig, log_id};

pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// Batches of rows that a slow receiver may be behind before it has to read them from the store.
const TAILS_KEPT: usize = 256;
/// How long a node may take to say whether it would lead.
const MAY_LEAD_TIMEOUT: Duration = Duration::from_millis(300);
/// How long a leader that goes looks for a follower that would lead, and how often.
const WILLING_WAIT: Duration = Duration::from_secs(1);
const WILLING_LOOK: Duration = Duration::from_millis(50);

/// The way to a shard's leader.
#[derive(Clone)]
pub(crate) struct Road {
    node: u64,
    pub(crate) peers: Arc<Peers>,
}

impl Road {
    fn new(shared: &Shared) -> Self {
        Self {
            node: shared.options.node,
            peers: shared.peers.clone(),
        }
    }

    pub(crate) fn hint(&self, leader: Option<u64>) -> Option<LeaderHint> {
        let node = leader.filter(|leader| *leader != self.node)?;
        let address = self.peers.address(node)?;
        Some(LeaderHint { node, address })
    }

    /// Where a node is, if it is known.
    pub(crate) fn address(&self, node: u64) -> Option<String> {
        self.peers.address(node)
    }

    /// Why another node would not lead a shard now; nothing if it would.
    pub(crate) async fn refusal_to_lead(&self, shard: u32, node: u64) -> Option<String> {
        let Some(link) = self.peers.link(node) else {
            return Some(format!("node {node} is not known"));
        };
        let ask = Ask::MayLead(peer::MayLead { shard });
        match link.call(ask, MAY_LEAD_TIMEOUT).await {
            Ok(Answer::MayLead(reply)) => Some(reply.refusal).filter(|why| !why.is_empty()),
            Ok(other) => Some(format!("unexpected answer {other:?}")),
            Err(reason) => Some(reason),
        }
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
    pub(crate) children: Arc<Children>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) pace: Arc<SnapshotPace>,
    pub(crate) learner_pace: Arc<LearnerPace>,
    pub(crate) entry_tick: Arc<EntryTick>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) disk: Arc<DiskRoom>,
    pub(crate) fault: watch::Sender<Option<String>>,
    pub(crate) copies: Arc<SlotCopies>,
    /// Why this node does not belong to its cluster as it is configured.
    pub(crate) misfit: watch::Sender<Option<String>>,
    /// What this node promises to leaders.
    pub(crate) pledge: Arc<Pledge>,
    /// Replicas that ask their leader how far they must be.
    pub(crate) questions: Arc<Semaphore>,
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
    pub(crate) freshness: Freshness,
    pub(crate) road: Road,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) ballot: Arc<Ballot>,
    pub(crate) lease: Arc<Lease>,
    /// Held while the membership changes.
    pub(crate) changes: tokio::sync::Mutex<()>,
    /// Somebody's change is under way.
    pub(crate) changing: AtomicBool,
    pub(crate) applier: Arc<Applier>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
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
        company: Company::new(shared.entry_tick.clone()),
        cluster_options: options.cluster_options,
    }
}

async fn start_raft(
    shared: &Shared,
    shard: ShardId,
    log: ShardLog,
    applier: &Arc<Applier>,
    filling: &Arc<Filling>,
    lease: &Arc<Lease>,
) -> Result<Raft, Error> {
    let options = &shared.options;
    let config = raft_config(options)?;
    let network = || Network {
        shard: shard.0,
        peers: shared.peers.clone(),
        pace: shared.pace.clone(),
        learner_pace: shared.learner_pace.clone(),
        pulse: shared.pulse.clone(),
        filling: filling.clone(),
        lease: lease.clone(),
    };
    let machine = StateMachine(applier.clone());
    applier.applies_at_start(log.committed_index());
    let (other_log, other_machine) = (log.clone(), machine.clone());
    let mut raft = Raft::new(options.node, config.clone(), network(), log, machine).await;
    if raft.is_err() && applier.waited_at_start() {
        // What is noted as committed is applied before anything of the replica runs. One of these entries waits
        // for what has to come from elsewhere, so it is applied when the leader tells of it again.
        let applied = applier.engine.applied().log_id;
        other_log.note_committed(applied.map(|id| log_id(id.term, id.index)));
        applier.applies_at_start(0);
        raft = Raft::new(options.node, config, network(), other_log, other_machine).await;
    }
    raft.map_err(|error| Error::Stopped {
        shard,
        reason: error.to_string(),
    })
}

/// Writes the entry that the log of a new shard begins with: its first membership. All founders write the same
/// one, as openraft would have them do, but none of them stands for election by that.
async fn found(
    options: &NodeOptions,
    engine: &mailbox_engine::Shard,
    log: &mut ShardLog,
) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Log(error.to_string());
    let state = log.get_log_state().await.map_err(|error| failed(&error))?;
    let voters = options.founders(engine.id());
    let founds = log.life().is_none() && voters.contains(&options.node);
    if !founds || state.last_log_id.is_some() || engine.applied().log_id.is_some() {
        return Ok(());
    }
    let entry = Entry {
        log_id: log_id(0, 0),
        payload: EntryPayload::Membership(Membership::new_with_defaults(vec![voters], [])),
    };
    tracing::debug!(shard = engine.id().0, "new shard");
    let written = log.blocking_append([entry]).await;
    written.map_err(|error| failed(&error))
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
        traffic: Traffic::new(engine.id().0, engine.slot_count()),
        fault: shared.fault.clone(),
        start_upto: AtomicU64::new(0),
        waited_at_start: AtomicBool::new(false),
        peers: shared.peers.clone(),
        pace: shared.pace.clone(),
        rows_wait: Mutex::new(None),
        stopping: watch::Sender::new(false),
        stopped: AtomicBool::new(false),
    })
}

fn start_barrier(
    shared: &Shared,
    raft: &Raft,
    applier: &Applier,
    road: &Road,
    lease: &Arc<Lease>,
) -> (ReadBarrier, JoinHandle<()>) {
    let ground = Ground {
        raft: raft.clone(),
        applied: applier.applied.subscribe(),
        road: road.clone(),
        lease: lease.clone(),
    };
    let timeout = Duration::from_millis(shared.options.timing.election_max_ms);
    ReadBarrier::spawn(ground, timeout)
}

fn freshness(
    shared: &Shared,
    applier: &Applier,
    barrier: &ReadBarrier,
    leadership: &watch::Sender<Leadership>,
) -> Freshness {
    Freshness::new(Sources {
        shard: applier.engine.id().0,
        clock: shared.clock.clone(),
        peers: shared.peers.clone(),
        barrier: barrier.clone(),
        leadership: leadership.subscribe(),
        applied: applier.applied.subscribe(),
        patience: Duration::from_millis(shared.options.timing.election_max_ms),
        questions: shared.questions.clone(),
    })
}

impl Replica {
    pub(crate) fn traffic(&self) -> &Traffic {
        &self.applier.traffic
    }

    pub(crate) async fn start(
        shared: &Shared,
        engine: Arc<mailbox_engine::Shard>,
        mut log: ShardLog,
    ) -> Result<Arc<Replica>, Error> {
        let (id, options) = (engine.id(), &shared.options);
        let flushed = watch::Sender::new(engine.flushed());
        shared.base.add(FlushedShard {
            engine: engine.clone(),
            log: log.clone(),
            flushed: flushed.clone(),
        });
        let ballot = Ballot::new(log.clone(), &shared.pledge);
        found(options, &engine, &mut log).await?;
        let applier = applier(shared, &engine, &log);
        let (applied, outbox) = (&applier.applied, &applier.outbox);
        let filling = Arc::default();
        let lease = Lease::new(options.node, &shared.pledge, &shared.clock);
        let raft = start_raft(shared, id, log, &applier, &filling, &lease).await?;
        let announcer = Announcer::new(&raft, filling, shared, &applier);
        shared.pulse.add(id.0, raft.clone(), ballot.clone());
        let road = Road::new(shared);
        let leadership = watch::Sender::new(NOBODY);
        let (proposer, proposing) = Proposer::spawn(
            raft.clone(),
            engine.clone(),
            leadership.subscribe(),
            guards(shared, &road, outbox),
        );
        let (barrier, reading) = start_barrier(shared, &raft, &applier, &road, &lease);
        let watcher = LeadershipWatcher {
            shard: id.0,
            raft: raft.clone(),
            road: road.clone(),
            pulse: shared.pulse.clone(),
            applied: applied.subscribe(),
            leadership: leadership.clone(),
            applier: applier.clone(),
        };
        let [proposing, giving_up] = proposing;
        let tasks = vec![
            proposing,
            giving_up,
            reading,
            tokio::spawn(watcher.run()),
            cluster_options::watch(shared, engine.clone(), applied.subscribe()),
            tokio::spawn(announcer.run(flushed.subscribe())),
        ];
        let replica = Arc::new(Replica {
            freshness: freshness(shared, &applier, &barrier, &leadership),
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
            pulse: shared.pulse.clone(),
            ballot,
            lease,
            changes: tokio::sync::Mutex::default(),
            changing: AtomicBool::new(false),
            applier,
            tasks: Mutex::new(tasks),
        });
        let tending = tokio::spawn(replica.clone().tend_membership());
        replica.tasks.lock().push(tending);
        Ok(replica)
    }

    /// This replica, for whoever needs its rows.
    pub(crate) fn holder(&self) -> Holder {
        Holder {
            engine: self.engine.clone(),
            base: self.applier.base.clone(),
        }
    }

    /// What apply waits for, if it waits for the rows of a slot that moves in.
    pub(crate) fn rows_wait(&self) -> Option<RowsWait> {
        *self.applier.rows_wait.lock()
    }

    /// Asks this leader to hand its leadership to `to`. Whether `to` takes it or not, this node gives it up.
    pub(crate) async fn hand_over(&self, to: u64) -> Result<(), Fatal<TypeConfig>> {
        self.pulse.resign(self.id.0);
        let (raft, lease) = (self.raft.clone(), self.lease.clone());
        // Goes on if nobody waits for it any more: the lease must learn the term.
        let asked = tokio::spawn(async move {
            lease.give_up();
            raft.trigger().transfer_leader(to).await?;
            // Behind the request, which is not of a later term than this. Who fails here has stopped, and reads
            // nothing by a lease any more.
            let vote = raft.with_raft_state(|state| *state.vote_ref()).await?;
            lease.gave_up(vote.leader_id.term);
            Ok(())
        });
        asked.await.unwrap_or(Err(Fatal::Stopped))
    }

    /// Other voters, the one that should lead next first; none unless this node leads.
    fn heirs(&self) -> Vec<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != ServerState::Leader {
            return Vec::new();
        }
        let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
        let replication = metrics.replication.iter().flatten();
        // Equals take turns, so that not all of a node's shards go to the same one.
        let turn = |node: u64| (node + u64::from(self.id.0)) % 3;
        let mut heirs: Vec<_> = replication
            .filter(|(node, _)| **node != metrics.id && voters.contains(node))
            .map(|(node, matched)| {
                let reached = self.pulse.is_reached(*node);
                (reached, matched.map(|id| id.index), turn(*node), *node)
            })
            .collect();
        heirs.sort_unstable_by(|a, b| b.cmp(a));
        heirs.into_iter().map(|(.., node)| node).collect()
    }

    /// A voter that would lead, the furthest if several would. Where all refuse it waits a moment, since most
    /// refusals pass (a node that has just started applies what its log holds), and then takes the furthest.
    async fn willing_heir(&self) -> Option<u64> {
        let deadline = Instant::now() + WILLING_WAIT;
        loop {
            let heirs = self.heirs();
            let furthest = *heirs.first()?;
            for heir in heirs {
                if self.road.refusal_to_lead(self.id.0, heir).await.is_none() {
                    return Some(heir);
                }
            }
            if Instant::now() >= deadline {
                return Some(furthest);
            }
            tokio::time::sleep(WILLING_LOOK).await;
        }
    }

    /// Hands leadership to another voter, and waits a moment for it.
    pub(crate) async fn give_leadership_away(&self, wait: Duration) {
        let Some(target) = self.willing_heir().await else {
            return;
        };
        if let Err(error) = self.hand_over(target).await {
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
        // Before openraft is asked: it joins what applies, which may wait for rows that nobody brings.
        self.applier.stopping.send_replace(true);
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
        self.pulse.forget(self.id.0);
        self.leadership.send_replace(NOBODY);
    }

    /// Entries that the replica's log holds and its readers do not see yet: many after a start, and where apply is
    /// held up.
    pub(crate) fn apply_lag(&self) -> u64 {
        apply_lag(&self.raft, &self.engine)
    }

    pub(crate) fn status(&self) -> ShardStatus {
        let metrics = self.raft.metrics().borrow_watched().clone();
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

/// [`Replica::apply_lag`]
pub(crate) fn apply_lag(raft: &Raft, engine: &mailbox_engine::Shard) -> u64 {
    let last = raft.metrics().borrow_watched().last_log_index;
    let applied = engine.applied().log_id.map_or(0, |id| id.index);
    last.unwrap_or(0).saturating_sub(applied)
}

pub(crate) fn index(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index)
}
