//! How to connect.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::Encoding;

/// How to connect, and how patient to be.
#[derive(Clone)]
pub struct ConnectOptions {
    /// `ws://host:port` or `wss://host:port`; a path, if there is none, is `/v1/ws`.
    pub url: String,
    /// The user's JWT. Never logged.
    pub token: String,
    /// Which of the user's devices this is: 1–64 bytes, no control characters.
    pub device: String,
    /// How frames are written.
    pub encoding: Encoding,
    /// Where to keep the sync key; none: the app begins with its whole mailbox at each start.
    /// One file serves one (user, device).
    pub state_path: Option<PathBuf>,
    /// Whether messages are received. `false` for programs that only send: nothing is synced and
    /// [`crate::Client::next`] gives no messages.
    pub receive: bool,
    /// Time for one attempt to connect, TLS and WebSocket handshakes included.
    pub connect_timeout: Duration,
    /// How long a request is repeated before it ends with [`crate::Error::Timeout`]. Its outcome is
    /// then unknown; it may be repeated with the same id.
    pub request_timeout: Duration,
    /// Longest pause before a reconnect attempt; pauses are random below a doubling bound.
    pub backoff_max: Duration,
    /// Messages handed over but not yet taken by [`crate::Client::next`]. Beyond it pushes are
    /// left, and fetched by sync when there is room. 1..
    pub queue_messages_max: usize,
    /// Certificates (PEM) to trust for `wss`, instead of the web's.
    pub ca_pem: Option<Vec<u8>>,
}

impl ConnectOptions {
    /// Options with their defaults: device `default`, binary frames, no state file.
    pub fn new(url: impl Into<String>, token: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            token: token.into(),
            device: "default".into(),
            encoding: Encoding::Proto,
            state_path: None,
            receive: true,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(60),
            backoff_max: Duration::from_secs(10),
            queue_messages_max: 1024,
            ca_pem: None,
        }
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("url", &self.url)
            .field("device", &self.device)
            .field("encoding", &self.encoding)
            .field("state_path", &self.state_path)
            .finish_non_exhaustive()
    }
}
