//! The client: connecting, sending, and the rules by which any call is repeated.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::{
    ErrorCode, ResolveUserRequest, SendRequest, SendResponse, ShardMapRequest, ShardMapResponse,
    UserRef, send_request, user_ref,
};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Response, Status};
use uuid::Uuid;

use crate::attempts::Attempts;
use crate::clock::ServerClock;
use crate::gate::Gates;
use crate::learning::Asked;
use crate::map::ShardMap;
use crate::node::Node;
use crate::options::ClientOptions;
use crate::pending::{Break, Failure};
use crate::retry::Backoff;
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
    pub(crate) gates: Arc<Gates>,
    in_flight: Semaphore,
    in_flight_bytes: Semaphore,
    /// Whose handles are known: they never change hands.
    handles: Mutex<HashMap<String, u64>>,
    /// Held by who reads the map because of a `WrongShard`; the others wait and see what came.
    pub(crate) learning: tokio::sync::Mutex<Asked>,
}

/// Held while a send is on its way.
type InFlight<'a> = (SemaphorePermit<'a>, SemaphorePermit<'a>);

/// Handles that are remembered; when full they are forgotten.
const HANDLES_MAX: usize = 65_536;

/// The way of a send.
enum Placed {
    /// In a frame for its shard.
    Submit(SendRequest),
    /// By itself, through any node.
    Unary(SendRequest),
}

/// One attempt over a Submit stream.
struct Attempt {
    shard: u32,
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
            gates: Arc::default(),
            handles: Mutex::default(),
            learning: tokio::sync::Mutex::default(),
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
        let request = match self.placed(request).await? {
            Placed::Submit(request) => request,
            Placed::Unary(request) => return self.send_unary(request).await,
        };
        let first = self.first_attempt(&request, deadline);
        self.finish(request, deadline, first).await
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
            attempts.push(match self.placed(request).await {
                Ok(Placed::Submit(request)) => {
                    Ok((self.first_attempt(&request, deadline), request))
                }
                Ok(Placed::Unary(request)) => Err(self.send_unary(request).await),
                Err(error) => Err(Err(error)),
            });
        }
        let mut results = Vec::with_capacity(attempts.len());
        for attempt in attempts {
            results.push(match attempt {
                Ok((attempt, request)) => self.finish(request, deadline, attempt).await,
                Err(done) => done,
            });
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

    pub(crate) fn deadline(&self) -> Instant {
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

    /// How a send gets to its shard. A frame is for one shard, so a 1:1 send's sender must be known by id; who
    /// is not named at all is known to the nodes only, which pass unary calls on.
    async fn placed(&self, mut request: SendRequest) -> Result<Placed, CallError> {
        if let Some(send_request::Destination::Group(_)) = &request.destination {
            return Ok(Placed::Submit(request));
        }
        let Some(sender) = request.sender.take() else {
            return Ok(Placed::Unary(request));
        };
        request.sender = Some(self.by_id(sender).await?);
        Ok(Placed::Submit(request))
    }

    /// The same user by id; handles are looked up, once each.
    pub(crate) async fn by_id(&self, user: UserRef) -> Result<UserRef, CallError> {
        let Some(user_ref::User::Handle(handle)) = &user.user else {
            return Ok(user);
        };
        if let Some(id) = self.inner.handles.lock().get(handle) {
            return Ok(user_id(*id));
        }
        let handle = handle.clone();
        let user = Some(user);
        let resolve = self.resolve_user(ResolveUserRequest { user });
        let id = Box::pin(resolve).await?.user;
        let mut handles = self.inner.handles.lock();
        if handles.len() >= HANDLES_MAX {
            handles.clear();
        }
        handles.insert(handle, id);
        Ok(user_id(id))
    }

    async fn send_unary(&self, request: SendRequest) -> Result<SendResponse, CallError> {
        let place = |map: &ShardMap| map.shard_of_user(request.sender.as_ref());
        let call = self.call(place, |node, _| {
            let request = request.clone();
            async move { node.mailbox().send(request).await }
        });
        Box::pin(call).await
    }

    /// Hands a send over to the node that probably leads its shard.
    fn attempt(&self, request: SendRequest, deadline: Instant) -> Attempt {
        let shard = self.shard_of_send(&request);
        let node = self.inner.router.leader(shard);
        let (answer, waits) = oneshot::channel();
        let waiting = Waiting {
            request,
            deadline,
            answer,
        };
        node.submit().push(shard, [waiting]);
        Attempt {
            shard,
            node,
            answer: waits,
        }
    }

    /// The first attempt; none where a send has to wait for its turn.
    fn first_attempt(&self, request: &SendRequest, deadline: Instant) -> Option<Attempt> {
        if self.inner.gates.is_shut(self.shard_of_send(request)) {
            return None;
        }
        Some(self.attempt(request.clone(), deadline))
    }

    /// Waits for the first attempt's answer, and repeats it elsewhere as long as that makes sense. An
    /// attempt needs no timer of its own: its stream fails it when the node falls silent or the
    /// deadline passes.
    async fn finish(
        &self,
        request: SendRequest,
        deadline: Instant,
        first: Option<Attempt>,
    ) -> Result<SendResponse, CallError> {
        let Some(Attempt {
            shard,
            node,
            answer,
        }) = first
        else {
            return Box::pin(self.repeat(request, deadline, None)).await;
        };
        match answered(answer).await {
            Ok(sent) => Ok(sent),
            Err(failure) => {
                let failed = Some((shard, node, failure));
                Box::pin(self.repeat(request, deadline, failed)).await
            }
        }
    }

    /// What [`Client::finish`] does after a first attempt that failed, or was not made.
    async fn repeat(
        &self,
        request: SendRequest,
        deadline: Instant,
        first: Option<(u32, Arc<Node>, Failure)>,
    ) -> Result<SendResponse, CallError> {
        let mut attempts = Attempts::new(&self.inner, deadline);
        match first {
            Some((shard, node, failure)) => attempts.after(shard, &node, failure).await?,
            None => attempts.enter(self.shard_of_send(&request)).await?,
        }
        loop {
            let Attempt {
                shard,
                node,
                answer,
            } = self.attempt(request.clone(), deadline);
            match answered(answer).await {
                Ok(sent) => {
                    attempts.served();
                    return Ok(sent);
                }
                Err(failure) => attempts.after(shard, &node, failure).await?,
            }
        }
    }

    /// A unary call to the leader of the shard that the map names, repeated like a send. `attempt`, which is
    /// told the shard, must be safe to repeat.
    pub(crate) async fn call<T, F>(
        &self,
        place: impl Fn(&ShardMap) -> u32,
        attempt: impl Fn(Arc<Node>, u32) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let call = self.call_together(|map| Some(place(map)), attempt).await;
        call.map(|answer| answer.expect("what has one place is never apart"))
    }

    /// As [`Client::call_together`]; with `any_replica` one of them is tried first, whichever's turn it is.
    pub(crate) async fn call_anywhere<T, F>(
        &self,
        any_replica: bool,
        place: impl Fn(&ShardMap) -> Option<u32>,
        attempt: impl Fn(Arc<Node>, u32) -> F,
    ) -> Result<Option<T>, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let router = &self.inner.router;
        let shard = router.with_map(&place).filter(|_| any_replica);
        let replica = shard.and_then(|shard| Some((shard, router.replica(shard)?)));
        if let Some((shard, node)) = replica {
            match self.inner.once(attempt(Arc::clone(&node), shard)).await {
                Ok(answer) => return Ok(Some(answer)),
                // Whatever it is, the leader's answer counts.
                Err(failure) => node.suspect(&failure),
            }
        }
        self.call_together(place, attempt).await
    }

    /// The same for several owners in one shard. `None` once the map has put them into several: nobody can
    /// answer such a call, it must be divided anew.
    pub(crate) async fn call_together<T, F>(
        &self,
        place: impl Fn(&ShardMap) -> Option<u32>,
        attempt: impl Fn(Arc<Node>, u32) -> F,
    ) -> Result<Option<T>, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut attempts = Attempts::new(&self.inner, self.deadline());
        if let Some(shard) = self.inner.router.with_map(&place) {
            attempts.enter(shard).await?;
        }
        loop {
            let Some(shard) = self.inner.router.with_map(&place) else {
                attempts.served();
                return Ok(None);
            };
            let node = self.inner.router.leader(shard);
            match self.inner.once(attempt(Arc::clone(&node), shard)).await {
                Ok(answer) => {
                    attempts.served();
                    return Ok(Some(answer));
                }
                Err(failure) => attempts.after(shard, &node, failure).await?,
            }
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
                    broken: Some(Break::Silent),
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

    pub(crate) async fn shard_map_of(&self, node: &Node) -> Result<ShardMapResponse, CallError> {
        let mut admin = node.admin();
        let asked = Instant::now();
        let answer = self.once(admin.shard_map(ShardMapRequest {})).await;
        let response = answer.map_err(|failure| failure.error)?;
        self.clock.set(response.server_time_ms, asked.elapsed());
        self.router.replace_map(&response);
        Ok(response)
    }
}

/// An attempt's outcome; a stream that is gone without one has failed it.
async fn answered(
    answer: oneshot::Receiver<Result<SendResponse, Failure>>,
) -> Result<SendResponse, Failure> {
    answer.await.unwrap_or_else(|_| {
        Err(CallError::new(ErrorCode::Unavailable, "the stream was closed").into())
    })
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
    match Box::pin(timeout_at(deadline, room.acquire_many(count))).await {
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
