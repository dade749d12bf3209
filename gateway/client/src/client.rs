//! The client: connecting, sending, and the rules by which any call is repeated.

use std::sync::{Arc, Weak};
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::{
    ErrorCode, SendRequest, SendResponse, ShardMapRequest, ShardMapResponse, UserRef, send_request,
    user_ref,
};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Response, Status};
use uuid::Uuid;

use crate::clock::ServerClock;
use crate::node::Node;
use crate::options::ClientOptions;
use crate::pending::Failure;
use crate::retry::{Advice, Backoff};
use crate::router::Router;
use crate::submit::Waiting;
use crate::subscribe::{self, SubscribeEvent, SubscribeHandle};

/// Least pause between two readings of the shard map and the server's clock.
const REFRESH_MIN: Duration = Duration::from_millis(250);

/// A connection to a cluster; cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) options: Arc<ClientOptions>,
    pub(crate) router: Router,
    clock: ServerClock,
    in_flight: Semaphore,
    in_flight_bytes: Semaphore,
}

/// Held while a send is on its way.
type InFlight<'a> = (SemaphorePermit<'a>, SemaphorePermit<'a>);

/// One attempt over a Submit stream.
struct Attempt {
    node: Arc<Node>,
    answer: oneshot::Receiver<Result<SendResponse, Failure>>,
}

impl Client {
    /// Finds a node that answers and learns the shard map and the server's time from it.
    ///
    /// # Errors
    /// The last node's error when none answered within `timeouts.deadline`; at once when a node
    /// refused the caller or an option cannot be used.
    pub async fn connect(options: ClientOptions) -> Result<Self, CallError> {
        let options = Arc::new(options);
        let inner = Arc::new(Inner {
            router: Router::new(&options)?,
            clock: ServerClock::new(),
            in_flight: Semaphore::new(options.limits.in_flight_max.min(Semaphore::MAX_PERMITS)),
            in_flight_bytes: Semaphore::new(
                options.limits.in_flight_bytes_max.min(u32::MAX as usize),
            ),
            options,
        });
        let client = Self { inner };
        client.shard_map().await?;
        tokio::spawn(refresh_map(Arc::downgrade(&client.inner)));
        Ok(client)
    }

    /// The options it was started with.
    pub fn options(&self) -> &ClientOptions {
        &self.inner.options
    }

    /// Sends one message over the Submit stream of its shard's leader. `client_msg_id` must be set;
    /// `content_crc` is taken as it is. Sends that are to arrive in order are sent one after
    /// another, or in one [`Client::send_batch`].
    ///
    /// # Errors
    /// A refusal, or the last retryable error at the deadline: the outcome is then unknown, and the
    /// same request may be sent again. `DiskFull` is not waited out.
    pub async fn send(&self, request: SendRequest) -> Result<SendResponse, CallError> {
        let deadline = self.deadline();
        let _in_flight = self.admit(1, request.body.len(), deadline).await?;
        let shard = self.shard_of_send(&request);
        let (waiting, attempt) = self.attempt(shard, request.clone(), deadline);
        attempt.node.submit().push(shard, [waiting]);
        self.finish(shard, request, deadline, attempt).await
    }

    /// Sends many messages, handed over in order before the first answer is awaited; one result per
    /// request, in the order of the requests. When the leader changes meanwhile, those that must be
    /// repeated may fall behind later ones.
    pub async fn send_batch(
        &self,
        requests: Vec<SendRequest>,
    ) -> Vec<Result<SendResponse, CallError>> {
        let deadline = self.deadline();
        let bytes = requests.iter().map(|request| request.body.len()).sum();
        let _in_flight = match self.admit(requests.len(), bytes, deadline).await {
            Ok(in_flight) => in_flight,
            Err(error) => return requests.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut attempts = Vec::with_capacity(requests.len());
        for request in requests {
            let shard = self.shard_of_send(&request);
            let (waiting, attempt) = self.attempt(shard, request.clone(), deadline);
            attempt.node.submit().push(shard, [waiting]);
            attempts.push((shard, request, attempt));
        }
        let mut results = Vec::with_capacity(attempts.len());
        for (shard, request, attempt) in attempts {
            results.push(self.finish(shard, request, deadline, attempt).await);
        }
        results
    }

    /// Reads the shard map anew and routes by it from now on.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn shard_map(&self) -> Result<ShardMapResponse, CallError> {
        let mut backoff = Backoff::new(&self.inner.options.timeouts, self.deadline());
        loop {
            let mut last = CallError::new(ErrorCode::Unavailable, "no node is known");
            for node in self.inner.router.nodes() {
                match self.inner.shard_map_of(&node).await {
                    Ok(response) => return Ok(response),
                    Err(error) if error.is_retryable() => last = error,
                    Err(error) => return Err(error),
                }
            }
            if !backoff.wait(&last).await {
                return Err(last);
            }
        }
    }

    /// A subscription without timelines; they are added through the handle. It ends when the
    /// receiver or every handle is dropped.
    pub fn subscribe(&self) -> (SubscribeHandle, mpsc::Receiver<SubscribeEvent>) {
        subscribe::start(Arc::clone(&self.inner))
    }

    /// Milliseconds since the Unix epoch by the cluster's clock, learnt at connect and refreshed
    /// with the shard map.
    pub fn server_time_ms(&self) -> u64 {
        self.inner.clock.now_ms()
    }

    /// A UUIDv7 on the cluster's time: a phone's or gateway's own clock may be wrong.
    pub fn new_message_id(&self) -> Uuid {
        self.inner.clock.new_id()
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.inner.options.timeouts.deadline
    }

    /// Waits in turn for room under the in-flight limits.
    async fn admit(
        &self,
        sends: usize,
        bytes: usize,
        deadline: Instant,
    ) -> Result<InFlight<'_>, CallError> {
        let limits = &self.inner.options.limits;
        let (count, room) = (&self.inner.in_flight, &self.inner.in_flight_bytes);
        let count = acquire(count, "sends", sends, limits.in_flight_max, deadline).await?;
        let room = acquire(room, "bytes", bytes, limits.in_flight_bytes_max, deadline).await?;
        Ok((count, room))
    }

    fn shard_of_send(&self, request: &SendRequest) -> u32 {
        self.inner
            .router
            .with_map(|map| match &request.destination {
                Some(send_request::Destination::Group(group)) => map.shard_of_owner(*group),
                // The home timeline of a 1:1 send is the sender's mailbox.
                Some(send_request::Destination::User(_)) | None => {
                    map.shard_of_user(request.sender.as_ref())
                }
            })
    }

    fn attempt(&self, shard: u32, request: SendRequest, deadline: Instant) -> (Waiting, Attempt) {
        let node = self.inner.router.leader(shard);
        let (answer, waits) = oneshot::channel();
        (
            Waiting {
                request,
                deadline,
                answer,
            },
            Attempt {
                node,
                answer: waits,
            },
        )
    }

    /// Waits for the attempt's answer, and repeats it elsewhere as long as that makes sense. An
    /// attempt needs no timer of its own: its stream fails it when the node falls silent or the
    /// deadline passes.
    async fn finish(
        &self,
        shard: u32,
        request: SendRequest,
        deadline: Instant,
        mut attempt: Attempt,
    ) -> Result<SendResponse, CallError> {
        let mut backoff = Backoff::new(&self.inner.options.timeouts, deadline);
        loop {
            let Attempt { node, answer } = attempt;
            let failure = match answer.await {
                Ok(Ok(sent)) => return Ok(sent),
                Ok(Err(failure)) => failure,
                Err(_) => CallError::new(ErrorCode::Unavailable, "the stream was closed").into(),
            };
            let advice = self.inner.router.learn(shard, &node, &failure);
            if advice == Advice::GiveUp || !backoff.wait(&failure.error).await {
                return Err(failure.error);
            }
            tracing::debug!(shard, failed = node.address(), error = %failure.error, "send again");
            let (waiting, next) = self.attempt(shard, request.clone(), deadline);
            next.node.submit().push(shard, [waiting]);
            attempt = next;
        }
    }

    /// A unary call to the shard's leader, repeated like a send. `attempt` must be safe to repeat.
    pub(crate) async fn call<T, F>(
        &self,
        shard: u32,
        attempt: impl Fn(Arc<Node>) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut backoff = Backoff::new(&self.inner.options.timeouts, self.deadline());
        loop {
            let node = self.inner.router.leader(shard);
            let failure = match self.inner.once(attempt(Arc::clone(&node))).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let advice = self.inner.router.learn(shard, &node, &failure);
            if advice == Advice::GiveUp || !backoff.wait(&failure.error).await {
                return Err(failure.error);
            }
            tracing::debug!(shard, failed = node.address(), error = %failure.error, "call again");
        }
    }
}

impl Inner {
    /// One attempt of a unary call.
    pub(crate) async fn once<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match timeout(self.options.timeouts.attempt, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Failure::from_status(&status)),
            Err(_) => {
                let message = "the node did not answer in time";
                let error = CallError::new(ErrorCode::Unavailable, message);
                Err(Failure {
                    error,
                    broken: true,
                })
            }
        }
    }

    fn refresh_pause(&self) -> Duration {
        let pause = self.options.timeouts.map_refresh.max(REFRESH_MIN);
        if self.clock.is_set() {
            pause
        } else {
            REFRESH_MIN
        }
    }

    async fn shard_map_of(&self, node: &Node) -> Result<ShardMapResponse, CallError> {
        let mut admin = node.admin();
        let asked = Instant::now();
        let answer = self.once(admin.shard_map(ShardMapRequest {})).await;
        let response = answer.map_err(|failure| failure.error)?;
        self.clock.set(response.server_time_ms, asked.elapsed());
        self.router.replace_map(&response);
        Ok(response)
    }
}

/// Room for `asked` of what `what` names, of which there is `max` in all.
async fn acquire<'a>(
    room: &'a Semaphore,
    what: &str,
    asked: usize,
    max: usize,
    deadline: Instant,
) -> Result<SemaphorePermit<'a>, CallError> {
    let count = u32::try_from(asked)
        .ok()
        .filter(|_| asked <= max)
        .ok_or_else(|| {
            let message = format!("{asked} {what} in flight asked for at once, the limit is {max}");
            CallError::new(ErrorCode::LimitExceeded, message)
        })?;
    if let Ok(permit) = room.try_acquire_many(count) {
        return Ok(permit);
    }
    match timeout_at(deadline, room.acquire_many(count)).await {
        Ok(Ok(permit)) => Ok(permit),
        // The semaphore is never closed, so this arm is the timeout.
        Ok(Err(_)) | Err(_) => {
            let message = format!("no room for {asked} more {what} in flight, the limit is {max}");
            Err(CallError::new(ErrorCode::Busy, message))
        }
    }
}

/// Keeps the map and the clock fresh until the client is gone.
async fn refresh_map(client: Weak<Inner>) {
    while let Some(pause) = client.upgrade().map(|inner| inner.refresh_pause()) {
        tokio::time::sleep(pause).await;
        let Some(inner) = client.upgrade() else {
            return;
        };
        for node in inner.router.nodes() {
            match inner.shard_map_of(&node).await {
                // A node whose clock is in doubt has told the map, not the time.
                Ok(_) if inner.clock.is_set() => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(node = node.address(), %error, "the shard map was not read");
                }
            }
        }
    }
}

/// A user by id.
pub fn user_id(id: u64) -> UserRef {
    UserRef {
        user: Some(user_ref::User::Id(id)),
    }
}

/// A user by handle, without the leading `@`.
pub fn user_handle(handle: impl Into<String>) -> UserRef {
    UserRef {
        user: Some(user_ref::User::Handle(handle.into())),
    }
}
