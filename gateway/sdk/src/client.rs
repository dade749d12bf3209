//! The client's calls.

use std::time::Duration;

use uuid::Uuid;

use crate::{
    Body, ConnectOptions, Destination, Error, Limits, Message, Sent, Sync, Synced, Timeline,
    UserRef,
};

/// What happens, in the order in which it concerns the app.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A message: in order and once per timeline. Kept as received in the state file when
    /// [`Client::next`] is called the next time.
    Message(Message),
    /// A connection is up.
    Connected,
    /// The connection broke; another one is tried after this pause.
    Disconnected {
        /// Why.
        reason: String,
        /// The pause.
        retry_in: Duration,
    },
    /// The sync key was unusable: what follows begins at the start again, and the app has to tell
    /// by (timeline, seq) what it knows already.
    Resync {
        /// Why.
        reason: String,
    },
}

/// A connection to a gateway that outlives breaks. Cheap to clone; closed when the last clone goes.
#[derive(Debug, Clone)]
pub struct Client {}

impl Client {
    /// Connects and waits for the gateway's welcome.
    pub async fn connect(options: ConnectOptions) -> Result<Self, Error> {
        Err(Error::Connect {
            url: options.url,
            reason: "not built yet".into(),
        })
    }

    /// The user id that the token stands for.
    pub fn user(&self) -> u64 {
        0
    }

    /// What the gateway allows.
    pub fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Milliseconds since 1970 on the gateway's clock.
    pub fn server_time_ms(&self) -> u64 {
        0
    }

    /// A fresh message or request id: a UUIDv7 on the gateway's clock.
    pub fn new_message_id(&self) -> Uuid {
        Uuid::nil()
    }

    /// Sends a message under a fresh id and waits until it is durable.
    pub async fn send(&self, to: &Destination, body: impl Into<Body>) -> Result<Sent, Error> {
        self.send_with_id(to, self.new_message_id(), body).await
    }

    /// Sends a message under an id that the app has kept, so that it can be repeated after a
    /// restart and still is sent once.
    pub async fn send_with_id(
        &self,
        _to: &Destination,
        _client_msg_id: Uuid,
        _body: impl Into<Body>,
    ) -> Result<Sent, Error> {
        Err(Error::Closed)
    }

    /// What happened next; `None` once the client is closed.
    pub async fn next(&self) -> Option<Event> {
        None
    }

    /// One page, independent of what [`Client::next`] gives.
    pub async fn sync(&self, _request: Sync) -> Result<Synced, Error> {
        Err(Error::Closed)
    }

    /// Raises a read mark; returns it.
    pub async fn mark_read(&self, _conversation: &Destination, _seq: u64) -> Result<u64, Error> {
        Err(Error::Closed)
    }

    /// Raises this device's cursor; returns it.
    pub async fn ack(&self, _timeline: Timeline, _seq: u64) -> Result<u64, Error> {
        Err(Error::Closed)
    }

    /// Creates a group with the caller as its first member; returns its id.
    pub async fn create_group(&self, _name: &str) -> Result<u64, Error> {
        Err(Error::Closed)
    }

    /// Joins a group; returns the first seq that the caller may read.
    pub async fn join_group(&self, _group: u64) -> Result<u64, Error> {
        Err(Error::Closed)
    }

    /// Leaves a group; returns the last seq that the caller may read.
    pub async fn leave_group(&self, _group: u64) -> Result<u64, Error> {
        Err(Error::Closed)
    }

    /// Id and handle of a user.
    pub async fn resolve_user(&self, _user: &UserRef) -> Result<(u64, String), Error> {
        Err(Error::Closed)
    }

    /// Asks whether the gateway is there; returns the round trip's time.
    pub async fn ping(&self) -> Result<Duration, Error> {
        Err(Error::Closed)
    }

    /// Closes the connection and writes the state file.
    pub async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}
