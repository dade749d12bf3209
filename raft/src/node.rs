//! One node: its replicas and what they share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use mailbox_engine::{ShardId, Store};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::background::Haste;
use crate::base_thread::{BaseThread, report};
use crate::children::{self, Children};
use crate::clock::{self, Clock};
use crate::disk::DiskRoom;
use crate::entry_tick::EntryTick;
use crate::error::{ClockFault, Error};
use crate::freshness;
use crate::learner_pace::LearnerPace;
use crate::log::{LogMetrics, ShardLog, SharedLog};
use crate::open::{Opened, open};
use crate::options::{Admission, NodeOptions};
use crate::peer_link::Credentials;
use crate::peer_service::PeerService;
use crate::peers::Peers;
use crate::pulse::{self, Pulse};
use crate::replica::{Replica, Shared};
use crate::shard::Shard;
use crate::simulation;
use crate::slot_copy::SlotCopies;
use crate::snapshot::{SnapshotBytes, SnapshotPace};
use crate::status::PeerStatus;

/// Replicas that start at the same time.
const STARTING_AT_ONCE: usize = 64;
/// How long a node that is to stop flushes before it hands anything over.
const FLUSH_AHEAD_WAIT: Duration = Duration::from_secs(3);
/// How long a shutdown waits for another node to take a leadership over.
pub(crate) const HANDOVER_WAIT: Duration = Duration::from_secs(2);
/// How often a node whose clock is wrong tries to hand its leaderships away.
const CLOCK_LOOK: Duration = Duration::from_secs(1);
/// How often read views that nobody needs any more are looked for.
const COPIES_LOOK: Duration = Duration::from_secs(30);

/// One node.
pub struct Node {
    pub(crate) shared: Shared,
    pub(crate) log: SharedLog,
    pub(crate) store: Mutex<Option<Arc<Store>>>,
    incarnation: u64,
    pub(crate) peer_service: PeerService,
    pub(crate) copies: Arc<SlotCopies>,
    pub(crate) shards: Arc<Hosted>,
    /// Held while a replica comes or goes, and by a shutdown.
    pub(crate) hosting: tokio::sync::Mutex<Hosting>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// Whether replicas may come and go.
#[derive(Default)]
pub(crate) struct Hosting {
    pub(crate) stopping: bool,
}

/// The replicas of a node that run.
pub(crate) struct Hosted {
    shards: Mutex<BTreeMap<ShardId, Shard>>,
    changes: watch::Sender<u64>,
}

impl Hosted {
    fn new() -> Arc<Hosted> {
        Arc::new(Hosted {
            shards: Mutex::default(),
            changes: watch::Sender::new(0),
        })
    }

    pub(crate) fn get(&self, shard: ShardId) -> Option<Shard> {
        self.shards.lock().get(&shard).cloned()
    }

    fn all(&self) -> Vec<Shard> {
        self.shards.lock().values().cloned().collect()
    }

    pub(crate) fn insert(&self, shard: Shard) {
        self.shards.lock().insert(shard.id(), shard);
        self.changes.send_modify(|changes| *changes += 1);
    }

    pub(crate) fn remove(&self, shard: ShardId) {
        self.shards.lock().remove(&shard);
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn take_all(&self) -> BTreeMap<ShardId, Shard> {
        std::mem::take(&mut *self.shards.lock())
    }
}

impl Node {
    /// Opens what is under `options.dir`, or bootstraps a new cluster's node there, and starts its replicas.
    ///
    /// # Errors
    /// [`Error`]; nothing runs then.
    pub async fn start(options: NodeOptions) -> Result<Arc<Node>, Error> {
        options.validate()?;
        let credentials = Credentials::new(&options)?;
        let opened = if simulation::is_on() {
            open(&options).await?
        } else {
            let (options, runtime) = (options.clone(), Handle::current());
            let opening = move || runtime.block_on(open(&options));
            tokio::task::spawn_blocking(opening)
                .await
                .map_err(|error| Error::Log(error.to_string()))??
        };
        admit(&options, &opened).await?;
        let fault = watch::Sender::new(None);
        let children = Children::new(options.node, opened.log.clone(), &opened.store);
        // What a replica applies again as it starts may make some.
        let made = children.watch();
        let base = BaseThread::spawn(opened.store.clone(), children.clone(), fault.clone())
            .map_err(|error| Error::io("start a thread for", &options.dir, error))?;
        let peers = Peers::new(&options, &credentials)?;
        let staging = options.dir.join("staging");
        let shared = Shared {
            base,
            children,
            clock: Arc::new(Clock::new(options.clock_skew_max_ms, peers.is_alone())),
            peers: peers.clone(),
            pulse: Pulse::new(options.node, &options.timing),
            pace: SnapshotPace::new(staging, options.snapshot_bytes_per_s),
            learner_pace: LearnerPace::new(options.learner_bytes_per_s),
            entry_tick: EntryTick::new(),
            disk: DiskRoom::new(options.dir.clone(), options.disk_free_min_bytes)?,
            fault,
            copies: SlotCopies::new(),
            misfit: watch::Sender::new(None),
            pledge: Arc::new(opened.pledge),
            questions: freshness::questions(),
            options,
        };
        let peer_service = PeerService::new(
            credentials,
            peers,
            shared.pace.clone(),
            shared.pulse.clone(),
            shared.clock.clone(),
            shared.copies.clone(),
        );
        let copies = shared.copies.clone();
        let node = Arc::new(Node {
            shared,
            log: opened.log,
            store: Mutex::new(Some(opened.store)),
            incarnation: opened.incarnation,
            peer_service,
            copies,
            shards: Hosted::new(),
            hosting: tokio::sync::Mutex::default(),
            tasks: Mutex::default(),
        });
        if let Err(error) = node.start_replicas(opened.shards).await {
            // Or RocksDB's threads would go on until the process is gone, and abort it if they outlive its static
            // objects.
            if let Err(error) = node.shutdown().await {
                tracing::debug!(%error, "closed after a start that failed");
            }
            return Err(error);
        }
        let children = tokio::spawn(children::run(Arc::downgrade(&node), made));
        node.tasks.lock().push(children);
        node.spawn_tasks();
        Ok(node)
    }

    /// Starts all, also after one that cannot: the first reason is given.
    async fn start_replicas(
        &self,
        shards: Vec<(Arc<mailbox_engine::Shard>, ShardLog)>,
    ) -> Result<(), Error> {
        // Many at once: what a new shard writes first is synced with what others write.
        let starting = stream::iter(shards)
            .map(|(engine, log)| Replica::start(&self.shared, engine, log))
            .buffered(STARTING_AT_ONCE);
        let mut first = Ok(());
        for started in starting.collect::<Vec<_>>().await {
            match started {
                Ok(replica) => {
                    self.peer_service.add(&replica);
                    let base = self.shared.base.clone();
                    self.shards.insert(Shard::new(replica, base));
                }
                Err(error) => first = first.and(Err(error)),
            }
        }
        first
    }

    fn spawn_tasks(&self) {
        let Shared {
            clock,
            peers,
            pulse,
            disk,
            fault,
            pledge,
            ..
        } = &self.shared;
        let pledge = pledge.clone();
        let tasks = vec![
            tokio::spawn(clock::run(clock.clone(), peers.clone())),
            tokio::spawn(pulse::run(pulse.clone(), peers.clone())),
            tokio::spawn(disk.clone().run()),
            tokio::spawn(watch_log(self.log.fault(), fault.clone())),
            tokio::spawn(watch_clock(clock.clone(), self.shards.clone())),
            tokio::spawn(forget_old_copies(self.copies.clone())),
            tokio::spawn(async move { pledge.settle().await }),
        ];
        self.tasks.lock().extend(tasks);
    }

    /// What peers call. To be served on the address that `members` gives for this node.
    pub fn peer_service(&self) -> PeerService {
        self.peer_service.clone()
    }

    /// A shard with a replica here.
    pub fn shard(&self, shard: ShardId) -> Option<Shard> {
        self.shards.get(shard)
    }

    /// All shards with a replica here.
    pub fn shards(&self) -> Vec<Shard> {
        self.shards.all()
    }

    /// A counter that moves when the set of shards with a replica here changes.
    pub fn watch_shards(&self) -> watch::Receiver<u64> {
        self.shards.changes.subscribe()
    }

    /// Tells all nodes that are known now: id → `host:port` of the peer service, this node among them or not.
    /// Connections and leader hints follow; a node that is not among them is refused as a peer. To be called
    /// again at every change, and harmless otherwise.
    pub fn set_nodes(&self, nodes: BTreeMap<u64, String>) {
        self.shared.peers.set(nodes);
    }

    /// Number of the last batch that this node's log has synced: it only ever rises. A node that comes back with
    /// a smaller one than it has told before has lost what it promised to hold.
    pub fn log_batch(&self) -> u64 {
        self.log.last_batch()
    }

    /// A random number made at the node's first start and kept: tells this node from another one, with another
    /// disk, under the same id. Never 0.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The first fault of this node's storage, once there is one: the process must stop then.
    pub fn fault(&self) -> watch::Receiver<Option<String>> {
        self.shared.fault.subscribe()
    }

    /// Why this node does not fit its cluster as it is configured, once the cluster has told: the process must
    /// stop then. What its own files tell is an error of [`Node::start`].
    pub fn misfit(&self) -> watch::Receiver<Option<String>> {
        self.shared.misfit.subscribe()
    }

    /// This node's time, milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`ClockFault`]: not compared yet, or too far from the other nodes'.
    pub fn clock_now_ms(&self) -> Result<u64, ClockFault> {
        self.shared.clock.now_ms()
    }

    /// This clock minus the median of all nodes', at the last comparison, in milliseconds.
    pub fn clock_skew_ms(&self) -> i64 {
        self.shared.clock.skew_ms()
    }

    /// Bytes free where the node's directory is, looked up about once a second.
    pub fn disk_free_bytes(&self) -> u64 {
        self.shared.disk.free_bytes()
    }

    /// Counters of the log, since the node started.
    pub fn log_metrics(&self) -> LogMetrics {
        self.log.metrics()
    }

    /// Bytes of snapshots that this node has sent and received since it started.
    pub fn snapshot_bytes(&self) -> SnapshotBytes {
        self.shared.pace.bytes()
    }

    /// Requests sent to other nodes, for all shards, since the node started; answers are not counted.
    pub fn peer_messages(&self) -> u64 {
        self.shared.peers.messages()
    }

    /// All nodes, as this one sees them.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let (own, peers) = (self.shared.options.node, &self.shared.peers);
        let nodes = peers.nodes().into_iter();
        let status = nodes.map(|(node, address)| PeerStatus {
            node,
            address,
            connected: node == own || peers.link(node).is_some_and(|link| link.is_connected()),
        });
        status.collect()
    }

    /// Makes a copy of everything flushed in a directory that does not exist yet.
    ///
    /// # Errors
    /// The copy cannot be made.
    pub async fn checkpoint(&self, dir: PathBuf) -> Result<(), Error> {
        self.shared.base.checkpoint(dir).await
    }

    /// Brings most of what memtables hold into files while the node serves on, so that it is away for less time when
    /// it stops. Gets no leadership from now on, and hands none over yet. Takes 3 seconds at most; a node without peers,
    /// for which nobody would serve meanwhile, does nothing.
    pub async fn flush_ahead(&self) {
        // Nothing is handed to it any more: it would have to hand it on.
        self.peer_service.leave();
        if self.shared.peers.is_alone() || self.shared.fault.borrow().is_some() {
            return;
        }
        let flushed = self.shared.base.flush_all(Haste::None);
        if let Ok(Err(error)) = tokio::time::timeout(FLUSH_AHEAD_WAIT, flushed).await {
            tracing::debug!(%error, "not flushed ahead");
        }
    }

    /// Hands all leaderships away, and takes none any more. The node serves on: who asks it is told who leads now.
    /// Takes 5 seconds at most.
    pub async fn leave(&self) {
        self.peer_service.leave();
        // What is being flushed still is not to be waited for later.
        let _hurry = self.shared.base.hurry();
        let shards = self.shards.all();
        // All at once: it takes as long as the slowest shard, not as all of them.
        let given = shards.iter().map(|shard| {
            let replica = shard.replica();
            replica.give_leadership_away(HANDOVER_WAIT)
        });
        join_all(given).await;
    }

    /// Hands leaderships away, flushes and closes. Takes 8 seconds at most, unless the disk is slower.
    /// Proposals fail from its start. The files are closed when all handles on the shards are dropped.
    ///
    /// # Errors
    /// What could not be flushed or closed; all is stopped nevertheless.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let mut hosting = {
            // Who has the lock may wait for a flush.
            let _hurry = self.shared.base.hurry();
            self.hosting.lock().await
        };
        hosting.stopping = true;
        self.leave().await;
        let shards = self.shards.take_all();
        let replicas = || shards.values().map(Shard::replica);
        for task in std::mem::take(&mut *self.tasks.lock()) {
            task.abort();
        }
        join_all(replicas().map(|replica| replica.stop())).await;
        self.peer_service.remove_all();
        drop(shards);
        // What a fault has touched is not written again.
        let faulty = self.shared.fault.borrow().is_some();
        let flushed = match faulty {
            true => Ok(()),
            false => self.shared.base.flush_all(Haste::Now).await,
        };
        let (base, log) = (self.shared.base.clone(), self.log.clone());
        let store = self.store.lock().take();
        let closed = simulation::blocking(move || {
            base.stop();
            let closed = log.close();
            drop(store);
            closed
        });
        let closed = closed
            .await
            .map_err(|error| Error::Log(error.to_string()))?;
        flushed.and(closed.map_err(|error| Error::Log(error.to_string())))
    }
}

/// Asks whether the directory that was opened may take part.
async fn admit(options: &NodeOptions, opened: &Opened) -> Result<(), Error> {
    let Some(admit) = &options.admit else {
        return Ok(());
    };
    let admission = Admission {
        incarnation: opened.incarnation,
        log_batch: opened.log.last_batch(),
        is_new: opened.is_new,
    };
    let admitted = admit(admission).await;
    admitted.map_err(|reason| Error::Refused { reason })
}

async fn watch_log(mut log: watch::Receiver<Option<String>>, fault: watch::Sender<Option<String>>) {
    if let Ok(first) = log.wait_for(Option::is_some).await
        && let Some(reason) = first.as_ref()
    {
        report(&fault, reason);
    }
}

async fn forget_old_copies(copies: Arc<SlotCopies>) {
    loop {
        tokio::time::sleep(COPIES_LOOK).await;
        copies.forget_old();
    }
}

/// A node whose clock is wrong proposes nothing: it must not lead either.
async fn watch_clock(clock: Arc<Clock>, shards: Arc<Hosted>) {
    loop {
        tokio::time::sleep(CLOCK_LOOK).await;
        if let Some(ClockFault::Skewed { .. }) = clock.fault() {
            let shards = shards.all();
            let replicas = shards.iter().map(Shard::replica);
            join_all(replicas.map(|replica| replica.give_leadership_away(Duration::ZERO))).await;
        }
    }
}
