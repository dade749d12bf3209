//! One node: its replicas and what they share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use mailbox_engine::{ShardId, Store};
use openraft::storage::RaftLogStorage;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::base_thread::{BaseThread, report};
use crate::clock::{self, Clock};
use crate::cluster_options;
use crate::disk::DiskRoom;
use crate::error::{ClockFault, Error};
use crate::identity::Identity;
use crate::log::{LogMetrics, ShardLog, SharedLog};
use crate::options::NodeOptions;
use crate::peer_link::{Credentials, Peers};
use crate::peer_service::PeerService;
use crate::replica::{Replica, Shared};
use crate::shard::Shard;
use crate::snapshot::SnapshotPace;
use crate::status::PeerStatus;

/// How long a shutdown waits for another node to take a leadership over.
const HANDOVER_WAIT: Duration = Duration::from_secs(2);
/// How often a node whose clock is wrong tries to hand its leaderships away.
const CLOCK_LOOK: Duration = Duration::from_secs(1);

/// One node.
pub struct Node {
    shared: Shared,
    log: SharedLog,
    store: Mutex<Option<Arc<Store>>>,
    peer_service: PeerService,
    shards: Mutex<BTreeMap<ShardId, Shard>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

struct Opened {
    store: Arc<Store>,
    log: SharedLog,
    shards: Vec<(Arc<mailbox_engine::Shard>, ShardLog)>,
}

impl Node {
    /// Opens what is under `options.dir`, or bootstraps a new cluster's node there, and starts its replicas.
    ///
    /// # Errors
    /// [`Error`]; nothing runs then.
    pub async fn start(options: NodeOptions) -> Result<Arc<Node>, Error> {
        options.validate()?;
        let credentials = Credentials::new(&options)?;
        let opened = {
            let (options, runtime) = (options.clone(), Handle::current());
            tokio::task::spawn_blocking(move || open(&options, &runtime))
        };
        let opened = opened
            .await
            .map_err(|error| Error::Log(error.to_string()))??;
        let fault = watch::Sender::new(None);
        let base = BaseThread::spawn(opened.store.clone(), fault.clone())
            .map_err(|error| Error::io("start a thread for", &options.dir, error))?;
        let alone = options.members.len() == 1;
        let staging = options.dir.join("staging");
        let shared = Shared {
            base,
            peers: Peers::new(&options, &credentials)?,
            pace: SnapshotPace::new(staging, options.snapshot_bytes_per_s),
            clock: Arc::new(Clock::new(options.clock_skew_max_ms, alone)),
            disk: DiskRoom::new(options.dir.clone(), options.disk_free_min_bytes)?,
            fault,
            misfit: watch::Sender::new(None),
            options,
        };
        let members = shared.options.members.clone();
        let peer_service = PeerService::new(credentials, members, shared.pace.clone());
        let mut shards = BTreeMap::new();
        for (engine, log) in opened.shards {
            let replica = Replica::start(&shared, engine, log).await?;
            peer_service.add(replica.id.0, replica.raft.clone());
            shards.insert(replica.id, Shard::new(replica, shared.base.clone()));
        }
        let node = Arc::new(Node {
            shared,
            log: opened.log,
            store: Mutex::new(Some(opened.store)),
            peer_service,
            shards: Mutex::new(shards),
            tasks: Mutex::default(),
        });
        node.spawn_tasks();
        Ok(node)
    }

    fn spawn_tasks(&self) {
        let Shared {
            clock,
            peers,
            disk,
            fault,
            ..
        } = &self.shared;
        let shards = self.shards();
        let tasks = vec![
            tokio::spawn(clock::run(clock.clone(), peers.clone())),
            tokio::spawn(disk.clone().run()),
            tokio::spawn(watch_log(self.log.fault(), fault.clone())),
            tokio::spawn(watch_clock(clock.clone(), shards)),
        ];
        self.tasks.lock().extend(tasks);
    }

    /// What peers call. To be served on the address that `members` gives for this node.
    pub fn peer_service(&self) -> PeerService {
        self.peer_service.clone()
    }

    /// A shard with a replica here.
    pub fn shard(&self, shard: ShardId) -> Option<Shard> {
        self.shards.lock().get(&shard).cloned()
    }

    /// All shards with a replica here.
    pub fn shards(&self) -> Vec<Shard> {
        self.shards.lock().values().cloned().collect()
    }

    /// A counter that moves when the set of shards with a replica here changes.
    pub fn watch_shards(&self) -> watch::Receiver<u64> {
        todo!()
    }

    /// Tells all nodes that are known now: id → `host:port` of the peer service, this node among them or not.
    /// Connections and leader hints follow; a node that is not among them is refused as a peer. To be called
    /// again at every change, and harmless otherwise.
    pub fn set_nodes(&self, nodes: BTreeMap<u64, String>) {
        let _ = nodes;
        todo!()
    }

    /// Makes an empty replica of a shard, with the slots that the shard had at bootstrap, and starts it: entries
    /// or a snapshot bring it what it lacks once the shard's leader has it as a learner. It never begins a
    /// membership by itself. Durable; if the replica is here already it is given as it is.
    ///
    /// # Errors
    /// [`Error`]: no such shard, a fault of the storage, or the node is stopping.
    pub async fn host(&self, shard: ShardId) -> Result<Shard, Error> {
        let _ = shard;
        todo!()
    }

    /// Stops a replica and removes its rows and its entries. What it voted is kept, so that the shard may be
    /// hosted here again. Durable, and finished at the next start if a crash cuts it short; if there is no such
    /// replica, nothing is done. Handles on it stay valid and refuse everything.
    ///
    /// Without `force` it is refused while the membership that is known here names this node. A replica that was
    /// removed may never learn so: whoever knows that the removal is committed forces it.
    ///
    /// # Errors
    /// [`Error::StillMember`], a fault of the storage, or the node is stopping.
    pub async fn unhost(&self, shard: ShardId, force: bool) -> Result<(), Error> {
        let _ = (shard, force);
        todo!()
    }

    /// Number of the last batch that this node's log has synced: it only ever rises. A node that comes back with
    /// a smaller one than it has told before has lost what it promised to hold.
    pub fn log_batch(&self) -> u64 {
        todo!()
    }

    /// A random number made at the node's first start and kept: tells this node from another one, with another
    /// disk, under the same id. Never 0.
    pub fn incarnation(&self) -> u64 {
        todo!()
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

    /// All nodes, as this one sees them.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let own = self.shared.options.node;
        let members = self.shared.options.members.iter();
        let status = members.map(|(node, address)| PeerStatus {
            node: *node,
            address: address.clone(),
            connected: *node == own
                || self
                    .shared
                    .peers
                    .link(*node)
                    .is_some_and(|link| link.is_connected()),
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

    /// Hands leaderships away, flushes and closes. Takes 8 seconds at most, unless the disk is slower.
    /// Proposals fail from its start. The files are closed when all handles on the shards are dropped.
    ///
    /// # Errors
    /// What could not be flushed or closed; all is stopped nevertheless.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let shards = std::mem::take(&mut *self.shards.lock());
        let replicas = || shards.values().map(Shard::replica);
        // All at once: a shutdown takes as long as its slowest shard, not as all of them.
        join_all(replicas().map(|replica| replica.give_leadership_away(HANDOVER_WAIT))).await;
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
            false => self.shared.base.flush_all().await,
        };
        let (base, log) = (self.shared.base.clone(), self.log.clone());
        let store = self.store.lock().take();
        let closed = tokio::task::spawn_blocking(move || {
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

/// Opens store and log, and makes them if this is a new node.
fn open(options: &NodeOptions, runtime: &Handle) -> Result<Opened, Error> {
    let dir = &options.dir;
    std::fs::create_dir_all(dir).map_err(|error| Error::io("make", dir, error))?;
    let wanted = Identity {
        cluster_id: options.cluster_id.clone(),
        node: options.node,
        slot_count: options.engine.slot_count,
        shard_count: options.shard_count,
    };
    let found = Identity::read(dir)?;
    let lost = |what| Error::LostData {
        path: Identity::path(dir),
        what,
    };
    let log_dir = dir.join("log");
    if let Some(found) = &found {
        found.check(dir, &wanted)?;
        if !dir.join("state").exists() {
            return Err(lost("state"));
        }
        if !log_dir.join("CURRENT").exists() {
            return Err(lost("log"));
        }
    }
    let store = Arc::new(Store::open(dir, options.engine.clone())?);
    let log = SharedLog::open(&log_dir, options.log.clone())
        .map_err(|error| Error::Log(error.to_string()))?;
    if found.is_none() {
        bootstrap(&store, options)?;
        wanted.write(dir)?;
    }
    let mut shards = Vec::new();
    for id in store.shards() {
        let engine = store.shard(id).ok_or_else(|| lost("shard"))?;
        let shard_log = log
            .shard_log(id)
            .map_err(|error| Error::Log(error.to_string()))?;
        check_log(&engine, &shard_log, &log_dir, runtime)?;
        cluster_options::compare(&options.cluster_options, &engine)?;
        shards.push((engine, shard_log));
    }
    let all = options.first_shards().map(|(shard, _)| shard);
    if !all.eq(store.shards()) {
        return Err(lost("shards"));
    }
    Ok(Opened { store, log, shards })
}

/// Makes the shards of a new cluster. A bootstrap that a crash has cut short has made some of them; with other
/// options it has made others, and so has a node whose identity is lost.
fn bootstrap(store: &Store, options: &NodeOptions) -> Result<(), Error> {
    let wanted: BTreeMap<ShardId, _> = options.first_shards().collect();
    for id in store.shards() {
        let slots = store.shard(id).map(|shard| shard.slots());
        let slots = slots.into_iter().flatten().map(|slot| slot.0);
        if !wanted
            .get(&id)
            .is_some_and(|wanted| slots.eq(wanted.clone()))
        {
            return Err(Error::Leftover {
                path: options.dir.clone(),
                shard: id,
                shard_count: options.shard_count,
                slot_count: options.engine.slot_count,
            });
        }
    }
    for (shard, slots) in wanted {
        if store.shard(shard).is_none() {
            store.create_shard(shard, slots)?;
        }
    }
    Ok(())
}

/// A log may end below the applied state only where a snapshot was installed: openraft then purges it up to
/// there, silently. Anywhere else entries were lost that this node has promised to hold.
fn check_log(
    engine: &mailbox_engine::Shard,
    log: &ShardLog,
    path: &std::path::Path,
    runtime: &Handle,
) -> Result<(), Error> {
    let applied = engine.applied();
    let Some(id) = applied.log_id else {
        return Ok(());
    };
    let state = runtime
        .block_on(log.clone().get_log_state())
        .map_err(|error| Error::Log(error.to_string()))?;
    let last = state.last_log_id.map(|last| last.index);
    let reaches = last.is_some_and(|last| last >= id.index);
    if reaches || applied.last_install == Some(id) {
        return Ok(());
    }
    Err(Error::LostLog {
        shard: engine.id(),
        path: path.to_owned(),
        last: last.unwrap_or(0),
        applied: id.index,
    })
}

async fn watch_log(mut log: watch::Receiver<Option<String>>, fault: watch::Sender<Option<String>>) {
    if let Ok(first) = log.wait_for(Option::is_some).await
        && let Some(reason) = first.as_ref()
    {
        report(&fault, reason);
    }
}

/// A node whose clock is wrong proposes nothing: it must not lead either.
async fn watch_clock(clock: Arc<Clock>, shards: Vec<Shard>) {
    loop {
        tokio::time::sleep(CLOCK_LOOK).await;
        if let Some(ClockFault::Skewed { .. }) = clock.fault() {
            let replicas = shards.iter().map(Shard::replica);
            join_all(replicas.map(|replica| replica.give_leadership_away(Duration::ZERO))).await;
        }
    }
}
