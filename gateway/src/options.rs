//! What a gateway is started with.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::registration::Registration;
use crate::token::TokenKeys;

/// The process's metrics: areas register into it, `/metrics` prints it.
pub type MetricsRegistry = Arc<parking_lot::Mutex<prometheus_client::registry::Registry>>;

/// Says whether the process can serve (`/readyz`), or why not.
pub type ReadyCheck = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Where to listen.
#[derive(Debug)]
pub enum Listen {
    /// Bind this address; port 0 = any free one.
    Address(SocketAddr),
    /// Use this listener.
    Listener(std::net::TcpListener),
}

/// What a gateway is started with.
pub struct GatewayOptions {
    /// Where to listen.
    pub listen: Listen,
    /// The store; with the cluster's secret, since the gateway acts for all its users.
    pub client: mailbox_client::Client,
    /// Whose tokens are good.
    pub keys: TokenKeys,
    /// If set, the port speaks TLS only.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Bounds.
    pub limits: Limits,
    /// Where metrics go.
    pub registry: MetricsRegistry,
    /// What `/readyz` asks beside the gateway's own state.
    pub ready: ReadyCheck,
    /// As what the cluster is to know it; `None`: it is not told.
    pub registration: Option<Registration>,
}

impl GatewayOptions {
    /// Options with default limits, no TLS, a registry of their own, always ready, and unknown to the cluster.
    pub fn new(listen: Listen, client: mailbox_client::Client, keys: TokenKeys) -> Self {
        Self {
            listen,
            client,
            keys,
            tls: None,
            limits: Limits::default(),
            registry: MetricsRegistry::default(),
            ready: Arc::new(|| Ok(())),
            registration: None,
        }
    }
}

/// Bounds of a gateway.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections open at once; further ones are closed as soon as they are accepted. Each costs
    /// one descriptor.
    pub connections_max: usize,
    /// WebSockets of one user open at once: each is pushed every message of the user's. A further one
    /// is refused until one of them is closed.
    pub user_connections_max: usize,
    /// Time for TLS and the HTTP request head.
    pub handshake_timeout: Duration,
    /// A WebSocket on which nothing was heard for so long is closed.
    pub idle_timeout: Duration,
    /// A WebSocket that takes no byte of what it was sent for so long is closed.
    pub write_stall_timeout: Duration,
    /// Requests of one connection unanswered at once, beyond which it is not read.
    pub in_flight_max: usize,
    /// Frames waiting for one connection, beyond which pushes are dropped and it is told to sync.
    pub queue_frames_max: usize,
    /// The same in bytes.
    pub queue_bytes_max: usize,
    /// Greatest frame or HTTP body read from a client, in bytes.
    pub frame_bytes_max: usize,
    /// Greatest message body, in bytes: the cluster's `body_bytes_max`.
    pub body_bytes_max: usize,
    /// Messages of one page of sync.
    pub sync_messages_max: u32,
    /// Bodies of one page of sync, in bytes.
    pub sync_bytes_max: u64,
    /// How often the groups of a user who is online are looked up, so that joins elsewhere begin
    /// to be pushed here.
    pub groups_refresh: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 15_000,
            user_connections_max: 64,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            write_stall_timeout: Duration::from_secs(30),
            in_flight_max: 32,
            queue_frames_max: 32,
            queue_bytes_max: 64 * 1024,
            frame_bytes_max: 128 * 1024,
            body_bytes_max: 16 * 1024 - 1,
            sync_messages_max: 500,
            sync_bytes_max: 256 * 1024,
            groups_refresh: Duration::from_secs(60),
        }
    }
}

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address cannot be listened on.
    #[error("listen on {address}: {source}")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The listener that was passed in is unusable.
    #[error("use the listener: {0}")]
    Listener(std::io::Error),
    /// A key cannot be used.
    #[error(transparent)]
    Key(#[from] crate::token::KeyError),
}

impl fmt::Debug for GatewayOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayOptions")
            .field("listen", &self.listen)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
