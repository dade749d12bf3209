//! `mailboxd server`: one store node, from its configuration to its end.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mailbox_api::peer::lanes_server::LanesServer;
use mailbox_api::v1::admin_server::AdminServer;
use mailbox_api::v1::cluster_server::ClusterServer;
use mailbox_api::v1::dead_letters_server::DeadLettersServer;
use mailbox_api::v1::mailbox_server::MailboxServer;
use mailbox_client::Tls;
use mailbox_engine::{ClusterOptions, EngineOptions, MemoryDisk, UserLimits};
use mailbox_gateway::{MetricsRegistry, ReadyCheck};
use mailbox_raft::{ClientTls, Leadership, LogOptions, Node, NodeOptions, Timing};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic_health::server::HealthReporter;

use crate::admin_service::AdminService;
use crate::auth::{Authority, read_secret, read_token_keys};
use crate::auto_splits::{self, AutoSplits};
use crate::cluster_map::{self, Joiner, Leaders, Maps};
use crate::cluster_service::ClusterService;
use crate::config::Config;
use crate::core::Core;
use crate::dead_letter_service::DeadLetterService;
use crate::directory::HandleCache;
use crate::error::Error;
use crate::gateways::{self, Gateways};
use crate::limits::MemoryBudget;
use crate::listener;
use crate::mailbox_service::MailboxService;
use crate::metrics::ServerMetrics;
use crate::own_process;
use crate::peers::Peers;
use crate::placement::{self, Placement};
use crate::relay::{self, FRAME_ENCODED_MAX, LanesService};
use crate::replica_metrics::ReplicaMetrics;
use crate::shard_merges::{self, ShardMerges};
use crate::shard_splits::{self, ShardSplits};
use crate::slot_moves::{self, SlotMoves};

/// HTTP/2 windows that keep a stream of batches flowing over a long round trip.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
const FRAME_SIZE: u32 = 1 << 20;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long answers that are under way may take once the node has stopped.
const DRAIN: Duration = Duration::from_millis(500);
/// How often the health service looks at the replicas.
const HEALTH_INTERVAL: Duration = Duration::from_millis(250);

/// Entries that a replica may have to apply yet when a node that has started calls itself ready.
const READY_LAG_MAX: u64 = 256;

/// A store node that serves.
pub(crate) struct RunningNode {
    pub(crate) grpc: SocketAddr,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) ready: ReadyCheck,
    node: Arc<Node>,
    evicted: watch::Receiver<Option<String>>,
    stopping: CancellationToken,
    stopped: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl RunningNode {
    /// Binds, opens the store, and serves. The listener comes first: a port in use is told at
    /// once, not after a long recovery.
    pub(crate) async fn start(config: &Config, registry: MetricsRegistry) -> Result<Self, Error> {
        Self::start_on(config, registry, None).await
    }

    /// As [`RunningNode::start`]; rows are kept on `disk` if there is one.
    pub(crate) async fn start_on(
        config: &Config,
        registry: MetricsRegistry,
        disk: Option<MemoryDisk>,
    ) -> Result<Self, Error> {
        let listener = listener::bind_grpc("node.listen", &config.node.listen).await?;
        let grpc = listener.local_addr().map_err(Error::Start)?;
        let http = match config.node.metrics_listen.as_str() {
            "" => None,
            address => Some(listener::bind("node.metrics_listen", address).await?),
        };
        listener::warn_if_plaintext("node.listen", &config.node.listen, &config.tls);
        let tls = listener::server_tls(&config.tls)?;
        let config = &with_own_port(config, grpc);
        let (core, joiner) = open(config, &registry, disk).await?;
        let node = Arc::clone(&core.node);
        let stopped = CancellationToken::new();
        let frame_bytes_max = config.limits.frame_bytes_max.as_usize();
        let (reporter, health) = tonic_health::server::health_reporter();
        let router = routes(&core, &node, tls, frame_bytes_max)?.add_service(health);
        tokio::spawn(report_health(reporter, Arc::clone(&core)));
        tokio::spawn(relay::run(Arc::clone(&core)));
        cluster_map::spawn(&core, config, joiner);
        tokio::spawn(placement::run(Arc::clone(&core)));
        tokio::spawn(slot_moves::run(Arc::clone(&core)));
        tokio::spawn(shard_splits::run(Arc::clone(&core)));
        tokio::spawn(auto_splits::run(Arc::clone(&core)));
        tokio::spawn(shard_merges::run(Arc::clone(&core)));
        tokio::spawn(gateways::run(Arc::clone(&core)));
        let connections = listener::connections(
            listener,
            config.node.connections_max,
            core.metrics.connections.clone(),
        );
        let stop = stopped.clone();
        let server = tokio::spawn(
            router.serve_with_incoming_shutdown(connections, async move {
                stop.cancelled().await;
            }),
        );
        let ready = ready_check(&core);
        let evicted = core.evicted.subscribe();
        let metrics = match http {
            Some(http) => {
                let address = http.local_addr().map_err(Error::Start)?;
                let (ready, stop) = (Arc::clone(&ready), stopped.clone());
                tokio::spawn(crate::http::serve(http, registry, ready, stop));
                Some(address)
            }
            None => None,
        };
        Ok(Self {
            grpc,
            metrics,
            ready,
            node,
            evicted,
            stopping: core.stopping.clone(),
            stopped,
            server,
        })
    }

    /// Waits for what ends a node from inside: a storage fault, a cluster that has other options or does not have
    /// this node any more, or a listener that gave up.
    pub(crate) async fn failed(&mut self) -> Error {
        let (mut fault, mut misfit) = (self.node.fault(), self.node.misfit());
        tokio::select! {
            Ok(reason) = misfit.wait_for(Option::is_some) => {
                Error::Node(reason.clone().unwrap_or_default())
            }
            Ok(reason) = self.evicted.wait_for(Option::is_some) => {
                Error::Node(reason.clone().unwrap_or_default())
            }
            fault = fault.wait_for(Option::is_some) => Error::StorageFault(match fault {
                Ok(reason) => reason.clone().unwrap_or_default(),
                Err(_) => "the replicas have stopped".to_owned(),
            }),
            served = &mut self.server => Error::Serve {
                address: self.grpc,
                reason: match served {
                    Ok(Ok(())) => "it ended".to_owned(),
                    Ok(Err(error)) => crate::status::with_causes(&error),
                    Err(error) => error.to_string(),
                },
            },
        }
    }

    /// Flushes, hands leaderships over, ends streams, refuses new calls, flushes what came meanwhile, closes.
    pub(crate) async fn stop(self) -> Result<(), Error> {
        self.node.flush_ahead().await;
        self.close().await
    }

    /// As [`RunningNode::stop`], but nothing is flushed first.
    pub(crate) async fn close(self) -> Result<(), Error> {
        // While it still answers: who calls is told where to go.
        self.node.leave().await;
        self.stopping.cancel();
        let closed = self.node.shutdown().await;
        self.stopped.cancel();
        // Peers hold their connections open: they are cut after what is under way had its time.
        let mut server = self.server;
        if tokio::time::timeout(DRAIN, &mut server).await.is_err() {
            server.abort();
        }
        closed.map_err(|error| Error::StorageFault(crate::status::with_causes(&error)))
    }
}

fn routes(
    core: &Arc<Core>,
    node: &Arc<Node>,
    tls: Option<tonic::transport::ServerTlsConfig>,
    frame_bytes_max: usize,
) -> Result<Router, Error> {
    let mailbox = MailboxServer::new(MailboxService::new(Arc::clone(core)))
        .max_decoding_message_size(frame_bytes_max)
        .max_encoding_message_size(frame_bytes_max);
    let admin = AdminServer::new(AdminService::new(Arc::clone(core)));
    let lanes = LanesServer::new(LanesService::new(Arc::clone(core)))
        .max_decoding_message_size(FRAME_ENCODED_MAX)
        .max_encoding_message_size(FRAME_ENCODED_MAX);
    let cluster = ClusterServer::new(ClusterService::new(Arc::clone(core)))
        .max_decoding_message_size(frame_bytes_max)
        .max_encoding_message_size(frame_bytes_max);
    let dead_letters = DeadLettersServer::new(DeadLetterService::new(Arc::clone(core)))
        .max_encoding_message_size(frame_bytes_max);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(mailbox_api::FILE_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| Error::Node(format!("reflection: {error}")))?;
    let mut server = Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_SIZE)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT));
    if let Some(tls) = tls {
        server = server
            .tls_config(tls)
            .map_err(|error| Error::Tls(crate::status::with_causes(&error)))?;
    }
    Ok(server
        .add_service(mailbox)
        .add_service(admin)
        .add_service(cluster)
        .add_service(dead_letters)
        .add_service(lanes)
        .add_service(node.peer_service().into_server())
        .add_service(reflection))
}

/// Opens the store, once the cluster has not refused this node.
async fn open(
    config: &Config,
    registry: &MetricsRegistry,
    disk: Option<MemoryDisk>,
) -> Result<(Arc<Core>, Arc<Joiner>), Error> {
    let peer_tls = listener::read_authority(&config.tls)?;
    let secret = read_secret(&config.cluster.secret_file)?;
    let tokens = read_token_keys(&config.auth)?;
    let mut options = node_options(config, Arc::clone(&secret), peer_tls.as_ref())?;
    options.disk = disk;
    let disk_free_min_bytes = options.disk_free_min_bytes;
    let authority = Authority::new(config.cluster.id.clone(), secret, tokens);
    let authority = Arc::new(authority);
    let frame_bytes_max = config.limits.frame_bytes_max.as_usize();
    let peers = Arc::new(Peers::new(peer_tls, frame_bytes_max));
    let joiner = Joiner::new(config, Arc::clone(&authority), Arc::clone(&peers));
    let joiner = Arc::new(joiner);
    let admitted = Arc::clone(&joiner);
    options.admit = Some(Arc::new(move |admission| {
        let joiner = Arc::clone(&admitted);
        Box::pin(async move { joiner.at_start(admission).await })
    }));
    let node = Node::start(options)
        .await
        .map_err(|error| Error::Node(crate::status::with_causes(&error)))?;
    let metrics = Arc::new(ServerMetrics::default());
    register_metrics(registry, &metrics, &node);
    let placement = Placement::new(&config.placement, metrics.placement.clone());
    let slot_moves = SlotMoves::new(metrics.slot_moves.clone());
    let shard_splits = ShardSplits::new(metrics.shard_splits.clone());
    let auto_splits = AutoSplits::new(&config.placement, metrics.auto_splits.clone());
    let shard_merges = ShardMerges::new(metrics.shard_merges.clone());
    let gateways = Gateways::new(metrics.gateways.clone());
    let core = Core {
        node,
        node_id: config.node.id,
        authority,
        cluster: config.cluster.clone(),
        limits: config.limits.clone(),
        metrics,
        peers,
        maps: Maps::open(config, joiner.told()),
        leaders: Leaders::default(),
        placement,
        slot_moves,
        shard_splits,
        auto_splits,
        shard_merges,
        gateways,
        evicted: watch::Sender::new(None),
        handles: HandleCache::default(),
        started: Instant::now(),
        build: own_process::build_id().unwrap_or_default(),
        disk_free_min_bytes,
        stopping: CancellationToken::new(),
    };
    Ok((Arc::new(core), joiner))
}

fn register_metrics(registry: &MetricsRegistry, metrics: &ServerMetrics, node: &Arc<Node>) {
    let mut registry = registry.lock();
    metrics.register(&mut registry);
    registry.register_collector(Box::new(ReplicaMetrics::new(Arc::clone(node))));
}

/// The process is ready when every voter here leads, or knows who does.
fn ready_check(core: &Arc<Core>) -> ReadyCheck {
    let core = Arc::clone(core);
    let has_applied = AtomicBool::new(false);
    Arc::new(move || {
        if core.stopping.is_cancelled() {
            return Err("the node is shutting down".to_owned());
        }
        let view = core.maps.now();
        for shard in core.node.shards() {
            if !view.voters(shard.id()).contains(&core.node_id) {
                // It has just come, or is about to go: nobody asks it.
                continue;
            }
            let known = match shard.leadership() {
                Leadership::Leader { ready, .. } => ready,
                Leadership::Follower { leader, .. } => leader.is_some(),
            };
            if !known {
                return Err(format!("shard {} has no leader", shard.id()));
            }
            // Once after a start. Whoever restarts nodes in turn must wait for it: a node that only holds its log
            // takes over nothing. Later a replica that lags is no reason to call none here.
            if !has_applied.load(Ordering::Relaxed) {
                let lag = shard.apply_lag();
                if lag > READY_LAG_MAX {
                    let id = shard.id();
                    return Err(format!("shard {id} has {lag} entries to apply"));
                }
            }
        }
        has_applied.store(true, Ordering::Relaxed);
        Ok(())
    })
}

/// Keeps the standard health service in step with what `/readyz` says.
async fn report_health(reporter: HealthReporter, core: Arc<Core>) {
    let ready = ready_check(&core);
    let mut last = None;
    loop {
        let now = ready().is_ok();
        if last != Some(now) {
            let status = if now {
                tonic_health::ServingStatus::Serving
            } else {
                tonic_health::ServingStatus::NotServing
            };
            for service in [
                "",
                "mailbox.v1.Mailbox",
                "mailbox.v1.Admin",
                "mailbox.v1.Cluster",
            ] {
                reporter.set_service_status(service, status).await;
            }
            last = Some(now);
        }
        if core.stopping.is_cancelled() {
            return;
        }
        tokio::time::sleep(HEALTH_INTERVAL).await;
    }
}

/// With port 0 in the node's own address, the port that it got.
fn with_own_port(config: &Config, listening: SocketAddr) -> Config {
    let mut config = config.clone();
    let own = config.cluster.nodes.get_mut(&config.node.id);
    for address in own.into_iter().chain([&mut config.node.listen]) {
        if let Some(host) = address.strip_suffix(":0") {
            *address = format!("{host}:{}", listening.port());
        }
    }
    config
}

/// Six to ten, or what `level0_files_max` allows, by the node's id: replicas of a shard flush at the same moment, and
/// should not compact at the same moment, too.
fn runs_merged(config: &Config) -> i32 {
    let few = i32::try_from(config.node.id % 5).unwrap_or(0);
    let most = i32::try_from(config.storage.level0_files_max / 2).unwrap_or(i32::MAX);
    (6 + few).min(most).max(2)
}

/// Ten to eighteen by the node's id: nor should they merge the files of their logs at the same moment.
fn log_files_merged(config: &Config) -> i32 {
    10 + 2 * i32::try_from(config.node.id % 5).unwrap_or(0)
}

fn node_options(
    config: &Config,
    secret: Arc<[u8]>,
    peer_tls: Option<&Tls>,
) -> Result<NodeOptions, Error> {
    let cluster = &config.cluster;
    let memory = MemoryBudget::of(config);
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut options = NodeOptions::new(
        config.node.id,
        cluster.id.clone(),
        config.node.dir.clone(),
        cluster.nodes.clone(),
        secret,
    );
    options.joins = !cluster.join.is_empty();
    options.engine = EngineOptions {
        slot_count: cluster.slot_count,
        memtable_bytes_max: memory.memtables,
        memtables_bytes_max: memory.memtables,
        memtable_age_ms_max: config.storage.flush_age_ms,
        block_cache_bytes: size(memory.block_cache),
        tail_cache_bytes: size(memory.tails),
        head_cache_entries: size(memory.heads),
        max_open_files: i32::try_from(config.storage.max_open_files).unwrap_or(i32::MAX),
        level0_files_max: u64::from(config.storage.level0_files_max),
        runs_merged: runs_merged(config),
        ..EngineOptions::default()
    };
    options.cluster_options = ClusterOptions {
        group_members_max: cluster.group_members_max,
        body_bytes_max: u32::try_from(cluster.body_bytes_max.0).unwrap_or(u32::MAX),
        dedup_window_ms: cluster.dedup_window_ms,
        user_limits: Some(UserLimits {
            devices_max: cluster.user_devices_max,
            groups_max: cluster.user_groups_max,
        }),
        dead_letters_max: cluster.dead_letters_max,
    };
    options.shard_count = cluster.shards;
    options.log = LogOptions {
        memtable_bytes: size(memory.log_buffer),
        cache_bytes: size(memory.log_cache),
        wal_ahead_bytes: size(memory.log_buffer),
        files_merged: log_files_merged(config),
        ..LogOptions::default()
    };
    options.timing = Timing {
        heartbeat_ms: cluster.heartbeat_ms,
        election_min_ms: cluster.election_min_ms,
        election_max_ms: cluster.election_max_ms,
    };
    options.lease_reads = config.node.lease_reads;
    options.clock_skew_max_ms = cluster.clock_skew_max_ms;
    options.queue_bytes_max = memory.queues;
    options.outbox_bytes_max = config.limits.outbox_bytes_max.0;
    options.log_entries_kept = config.storage.log_entries_kept;
    options.snapshot_bytes_per_s = config.storage.snapshot_bytes_per_s.0;
    options.disk_free_min_bytes = disk_free_min(config)?;
    options.peer_tls = peer_tls.map(|tls| ClientTls {
        ca_pem: tls.ca_pem.clone(),
        domain: tls.domain.clone().unwrap_or_default(),
    });
    Ok(options)
}

/// The greater of the two limits on free space.
fn disk_free_min(config: &Config) -> Result<u64, Error> {
    let dir = &config.node.dir;
    let write = |source| Error::Write {
        path: dir.clone(),
        source,
    };
    std::fs::create_dir_all(dir).map_err(write)?;
    let size = file_system_bytes(dir).map_err(write)?;
    let share = size / 100 * u64::from(config.node.disk_free_min_percent);
    Ok(share.max(config.node.disk_free_min_bytes.0))
}

fn file_system_bytes(dir: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// Only to be bound and dropped: says early that an address is taken.
pub(crate) async fn probe(option: &'static str, address: &str) -> Result<TcpListener, Error> {
    listener::bind(option, address).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is proposed to an older cluster: of its nodes, some may not know the option.
    #[test]
    fn an_option_that_is_not_set_is_not_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.dir = dir.path().to_owned();
        let asked = |config: &Config| {
            let options = node_options(config, Arc::from(*b"a secret"), None).unwrap();
            options.cluster_options.dead_letters_max
        };
        assert_eq!(asked(&config), None);
        config.cluster.dead_letters_max = Some(5);
        assert_eq!(asked(&config), Some(5));
    }
}
