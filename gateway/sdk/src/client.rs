//! The client's calls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mailbox_wire::{Reply, Request, Send};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use uuid::{NoContext, Timestamp, Uuid};

use crate::driver::{Call, Driver};
use crate::inbox::{Empty, Inbox};
use crate::socket::{Open, Purpose};
use crate::state::State;
use crate::{
    Body, ConnectOptions, Destination, Error, Limits, Message, Sent, Sync, Synced, Timeline,
    UserRef, backoff, socket, state,
};

/// Calls handed to the driver and not yet looked at.
const CALLS_MAX: usize = 64;

/// How often a changed state is written.
const SAVE_PERIOD: Duration = Duration::from_millis(500);

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
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    calls: mpsc::Sender<Call>,
}

/// What the driver tells the calls of its connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) limits: Limits,
    /// The gateway's clock at that time.
    pub(crate) server_time_ms: u64,
    pub(crate) at: Instant,
}

struct Shared {
    user: u64,
    options: ConnectOptions,
    inbox: Arc<Inbox>,
    link: watch::Receiver<Link>,
    closing: CancellationToken,
    /// Closed once the driver has ended.
    ended: watch::Receiver<()>,
    /// One writer of the state file at a time, in the order of the states.
    saving: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("user", &self.shared.user)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects and waits for the gateway's welcome. While the gateway is there but cannot serve
    /// (no leader, a full house) it is tried for `request_timeout`; anything else fails at once.
    pub async fn connect(options: ConnectOptions) -> Result<Self, Error> {
        let open = first_connection(&options, Purpose::Use).await?;
        let user = open.welcome.user;
        let known = match &options.state_path {
            Some(path) => state::load(path, user)?,
            None => State::default(),
        };
        let inbox = Arc::new(Inbox::new(known, options.queue_messages_max));
        let (calls, receiver) = mpsc::channel(CALLS_MAX);
        let closing = CancellationToken::new();
        let (driver, link, ended) = Driver::new(
            options.clone(),
            Arc::clone(&inbox),
            receiver,
            closing.clone(),
            &open,
        );
        let saving = tokio::sync::Mutex::default();
        let shared = Arc::new(Shared {
            user,
            options,
            inbox,
            link,
            closing,
            ended,
            saving,
        });
        tokio::spawn(driver.run(open));
        if shared.options.state_path.is_some() {
            tokio::spawn(save_often(Arc::downgrade(&shared)));
        }
        Ok(Self { shared, calls })
    }

    /// The user id that the token stands for.
    pub fn user(&self) -> u64 {
        self.shared.user
    }

    /// What the gateway allows.
    pub fn limits(&self) -> Limits {
        self.shared.link.borrow().limits
    }

    /// Milliseconds since 1970 on the gateway's clock.
    pub fn server_time_ms(&self) -> u64 {
        let link = *self.shared.link.borrow();
        link.server_time_ms + u64::try_from(link.at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A fresh message or request id: a UUIDv7 on the gateway's clock.
    pub fn new_message_id(&self) -> Uuid {
        let ms = self.server_time_ms();
        let nanos = u32::try_from(ms % 1000 * 1_000_000).unwrap_or(0);
        Uuid::new_v7(Timestamp::from_unix(NoContext, ms / 1000, nanos))
    }

    /// Sends a message under a fresh id and waits until it is durable.
    ///
    /// Sends that are awaited one after another arrive in that order; sends under way at the same
    /// time may overtake each other when one of them has to be repeated.
    pub async fn send(&self, to: &Destination, body: impl Into<Body>) -> Result<Sent, Error> {
        self.send_with_id(to, self.new_message_id(), body).await
    }

    /// Sends a message under an id that the app has kept, so that it can be repeated after a
    /// restart and still is sent once.
    pub async fn send_with_id(
        &self,
        to: &Destination,
        client_msg_id: Uuid,
        body: impl Into<Body>,
    ) -> Result<Sent, Error> {
        let shown_message_id = self.shared.inbox.shown_message_id();
        let (to, body) = (to.clone(), body.into());
        let send = Send {
            to,
            client_msg_id,
            body,
            shown_message_id,
        };
        match self.call(Request::Send(send)).await? {
            Reply::Sent(sent) => {
                self.shared.inbox.show(sent.message_id);
                Ok(sent)
            }
            other => Err(wrong_reply(&other)),
        }
    }

    /// What happened next; `None` once the client is closed and everything is taken. Calling it
    /// says that the app is done with what it was given before. Safe to cancel.
    pub async fn next(&self) -> Option<Event> {
        loop {
            match self.shared.inbox.take() {
                Ok(event) => return Some(event),
                Err(Empty::ForGood) => return None,
                Err(Empty::ForNow) => self.shared.inbox.filled.notified().await,
            }
        }
    }

    /// One page, independent of what [`Client::next`] gives.
    pub async fn sync(&self, request: Sync) -> Result<Synced, Error> {
        match self.call(Request::Sync(request)).await? {
            Reply::Synced(page) => Ok(page),
            other => Err(wrong_reply(&other)),
        }
    }

    /// Raises a read mark; returns it.
    pub async fn mark_read(&self, conversation: &Destination, seq: u64) -> Result<u64, Error> {
        let (conversation, request_id) = (conversation.clone(), self.new_message_id());
        match self
            .call(Request::MarkRead {
                conversation,
                seq,
                request_id,
            })
            .await?
        {
            Reply::MarkedRead { seq } => Ok(seq),
            other => Err(wrong_reply(&other)),
        }
    }

    /// Raises this device's cursor; returns it.
    pub async fn ack(&self, timeline: Timeline, seq: u64) -> Result<u64, Error> {
        let request_id = self.new_message_id();
        match self
            .call(Request::Ack {
                timeline,
                seq,
                request_id,
            })
            .await?
        {
            Reply::Acked { seq } => Ok(seq),
            other => Err(wrong_reply(&other)),
        }
    }

    /// Creates a group with the caller as its first member; returns its id.
    pub async fn create_group(&self, name: &str) -> Result<u64, Error> {
        let (name, request_id) = (name.to_owned(), self.new_message_id());
        match self.call(Request::CreateGroup { name, request_id }).await? {
            Reply::GroupCreated { group, .. } => Ok(group),
            other => Err(wrong_reply(&other)),
        }
    }

    /// Joins a group; returns the first seq that the caller may read.
    pub async fn join_group(&self, group: u64) -> Result<u64, Error> {
        let request_id = self.new_message_id();
        match self.call(Request::JoinGroup { group, request_id }).await? {
            Reply::JoinedGroup { join_seq } => Ok(join_seq),
            other => Err(wrong_reply(&other)),
        }
    }

    /// Leaves a group; returns the last seq that the caller may read.
    pub async fn leave_group(&self, group: u64) -> Result<u64, Error> {
        let request_id = self.new_message_id();
        match self.call(Request::LeaveGroup { group, request_id }).await? {
            Reply::LeftGroup { left_seq } => Ok(left_seq),
            other => Err(wrong_reply(&other)),
        }
    }

    /// Id and handle of a user.
    pub async fn resolve_user(&self, user: &UserRef) -> Result<(u64, String), Error> {
        match self
            .call(Request::ResolveUser { user: user.clone() })
            .await?
        {
            Reply::User { user, handle } => Ok((user, handle)),
            other => Err(wrong_reply(&other)),
        }
    }

    /// Asks whether the gateway is there; returns the round trip's time.
    pub async fn ping(&self) -> Result<Duration, Error> {
        let begun = Instant::now();
        match self.call(Request::Ping).await? {
            Reply::Pong { .. } => Ok(begun.elapsed()),
            other => Err(wrong_reply(&other)),
        }
    }

    /// Closes the connection and writes the state file. What was handed over last counts as not
    /// received unless [`Client::next`] was called after it. Calls under way end with
    /// [`Error::Closed`].
    pub async fn close(&self) -> Result<(), Error> {
        self.shared.closing.cancel();
        let mut ended = self.shared.ended.clone();
        while ended.changed().await.is_ok() {}
        self.shared.save().await
    }

    async fn call(&self, request: Request) -> Result<Reply, Error> {
        let waited = self.shared.options.request_timeout;
        let (answer, answered) = oneshot::channel();
        let call = async {
            let call = Call { request, answer };
            self.calls.send(call).await.map_err(|_| Error::Closed)?;
            answered.await.map_err(|_| Error::Closed)?
        };
        match tokio::time::timeout(waited, call).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { waited }),
        }
    }
}

impl Shared {
    async fn save(&self) -> Result<(), Error> {
        let Some(path) = self.options.state_path.clone() else {
            return Ok(());
        };
        let _one_at_a_time = self.saving.lock().await;
        let Some(state) = self.inbox.changed_state() else {
            return Ok(());
        };
        let (user, shown) = (self.user, path.clone());
        let saved = tokio::task::spawn_blocking(move || state::save(&path, user, &state)).await;
        match saved {
            Ok(saved) => saved,
            Err(error) => Err(Error::State {
                path: shown,
                reason: error.to_string(),
            }),
        }
    }
}

/// Writes the state now and then, until the client is gone.
async fn save_often(shared: std::sync::Weak<Shared>) {
    loop {
        tokio::time::sleep(SAVE_PERIOD).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if let Err(error) = shared.save().await {
            tracing::warn!(%error, "write the state file");
        }
    }
}

/// Connects; while the gateway is there but cannot serve it is tried again.
pub(crate) async fn first_connection(
    options: &ConnectOptions,
    purpose: Purpose,
) -> Result<Open, Error> {
    let begun = Instant::now();
    let mut failures = 0;
    loop {
        match socket::open(options, purpose).await {
            Err(Error::NotAdmitted { fault, .. })
                if fault.retryable && begun.elapsed() < options.request_timeout =>
            {
                tracing::debug!(%fault, "not admitted yet");
                tokio::time::sleep(backoff::pause(failures, options.backoff_max)).await;
                failures += 1;
            }
            other => return other,
        }
    }
}

pub(crate) fn wrong_reply(reply: &Reply) -> Error {
    Error::Refused(crate::Fault {
        code: "Internal".into(),
        message: format!("the gateway answered with something else: {reply:?}"),
        retryable: false,
        retry_after_ms: 0,
    })
}
