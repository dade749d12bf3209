//! What a client is started with: addresses, identity, limits and times.

use std::path::Path;
use std::time::Duration;

/// How a client proves who it is.
#[derive(Clone)]
pub enum Auth {
    /// The cluster secret: the caller may act for any user.
    Secret {
        /// The cluster that is meant; a node of another one refuses. `None`: whichever answers.
        cluster_id: Option<String>,
        /// The bytes of the secret, as read from its file without trailing white space.
        secret: Vec<u8>,
    },
    /// A user's token: the caller acts for its `sub` only.
    Token(String),
}

impl Auth {
    /// Reads the cluster secret from a file; trailing white space is not part of it.
    pub fn secret_file(path: &Path, cluster_id: Option<String>) -> std::io::Result<Self> {
        let mut secret = std::fs::read(path)?;
        secret.truncate(secret.trim_ascii_end().len());
        Ok(Self::Secret { cluster_id, secret })
    }
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Secret { cluster_id, .. } => f
                .debug_struct("Secret")
                .field("cluster_id", cluster_id)
                .finish_non_exhaustive(),
            Self::Token(_) => f.write_str("Token"),
        }
    }
}

/// How the nodes' certificates are checked.
#[derive(Debug, Clone)]
pub struct Tls {
    /// PEM of the authority that signed the nodes' certificates.
    pub ca_pem: Vec<u8>,
    /// The name that the certificates carry, if it is not the host of the address.
    pub domain: Option<String>,
}

/// Bounds on what one client keeps in memory.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sends waiting for their answer. Callers over it wait in turn, until their deadline.
    pub in_flight_max: usize,
    /// Bytes of the bodies of sends that wait for their answer.
    pub in_flight_bytes_max: usize,
    /// Sends in one frame of a Submit stream.
    pub frame_sends_max: usize,
    /// Bytes of bodies in one frame, unless a single send is larger.
    pub frame_bytes_max: usize,
    /// Unanswered frames for one shard on a Submit stream: what comes meanwhile leaves in one frame when one of them is
    /// answered. At least 1.
    pub shard_frames_max: usize,
    /// Timelines of one subscription.
    pub subscribed_timelines_max: usize,
    /// Undelivered events of one subscription: beyond it the node's stream is held back.
    pub subscribe_queue_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight_max: 65_536,
            in_flight_bytes_max: 64 << 20,
            frame_sends_max: 512,
            frame_bytes_max: 256 << 10,
            shard_frames_max: 16,
            subscribed_timelines_max: 1 << 20,
            subscribe_queue_max: 256,
        }
    }
}

/// Times that steer retries and failure detection.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// For establishing one connection.
    pub connect: Duration,
    /// A call's whole life, retries included.
    pub deadline: Duration,
    /// One attempt of a unary call, and the longest silence of a Submit stream that has unanswered
    /// sends: after it the call is repeated on another node.
    pub attempt: Duration,
    /// First pause between attempts; it doubles up to `backoff_max` and is jittered.
    pub backoff_min: Duration,
    /// Longest pause between attempts.
    pub backoff_max: Duration,
    /// How often a node's Subscribe stream shows a sign of life; three missed end it.
    pub heartbeat: Duration,
    /// Pause between two readings of the shard map and the server's clock.
    pub map_refresh: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            deadline: Duration::from_secs(15),
            attempt: Duration::from_secs(2),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_millis(250),
            heartbeat: Duration::from_secs(1),
            map_refresh: Duration::from_secs(30),
        }
    }
}

/// What [`Client::connect`](crate::Client::connect) needs.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Nodes to ask first: `host:port`, `http://host:port` or `https://host:port`. One is enough.
    pub addresses: Vec<String>,
    /// Who calls.
    pub auth: Auth,
    /// Set for nodes that listen with TLS.
    pub tls: Option<Tls>,
    /// Memory bounds.
    pub limits: Limits,
    /// Retry and failure detection.
    pub timeouts: Timeouts,
}

impl ClientOptions {
    /// Options with every default.
    pub fn new(addresses: Vec<String>, auth: Auth) -> Self {
        Self {
            addresses,
            auth,
            tls: None,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}
