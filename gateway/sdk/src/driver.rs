//! The task that owns the connection: writes requests, repeats them over breaks, keeps the inbox in
//! step by push and sync.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use mailbox_wire::{ClientFrame, Fault, Push, Reply, Request, ServerFrame, Sync, Synced};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_tungstenite::tungstenite;
use tokio_util::sync::CancellationToken;

use crate::client::Link;
use crate::inbox::{Fit, Inbox};
use crate::socket::{Open, Purpose, Socket, decode, message};
use crate::{ConnectOptions, Error, Event, backoff, socket};

/// How often the driver looks after what has no event of its own.
const TICK: Duration = Duration::from_secs(2);

/// A link on which nothing was heard for so long after a ping is given up.
const PONG_PATIENCE: Duration = Duration::from_secs(10);

/// How long what an old gateway still says is waited for, once another one is connected.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// Calls taken in while there is no connection.
const WAITING_MAX: usize = 1024;

type Answer = oneshot::Sender<Result<Reply, Error>>;

/// What the client's calls ask of the driver.
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) answer: Answer,
}

/// A request that is not answered yet.
struct Pending {
    request: Request,
    answer: Answer,
    failures: u32,
    /// Set while it waits to be written again.
    retry_at: Option<Instant>,
}

/// An attempt to connect elsewhere, while the present connection still serves.
type Moving = Pin<Box<dyn Future<Output = Result<Open, Error>> + Send>>;

/// How a connection ended.
enum End {
    /// The client is closed.
    Closed,
    /// The gateway said that it goes away, and another one is connected.
    Moved(Box<Open>),
    /// Connect anew; at once if the gateway asked for it.
    Broken { reason: String, asked: bool },
}

pub(crate) struct Driver {
    options: ConnectOptions,
    inbox: Arc<Inbox>,
    calls: mpsc::Receiver<Call>,
    /// Cancelled when the client is closed.
    closing: CancellationToken,
    link: watch::Sender<Link>,
    _ended: watch::Sender<()>,
    pending: BTreeMap<u32, Pending>,
    /// Calls beyond what the gateway takes at once.
    waiting: VecDeque<(Request, Answer)>,
    last_id: u32,
    sync: SyncStep,
}

/// Where the driver is with syncing.
#[derive(Default)]
struct SyncStep {
    wanted: bool,
    /// The one under way.
    running: Option<(u32, Sync)>,
    failures: u32,
    not_before: Option<Instant>,
}

/// Of one connection.
struct Session {
    socket: Socket,
    heard: Instant,
    /// Set from a ping until something is heard.
    pinged: Option<Instant>,
    ping_after: Duration,
    in_flight_max: usize,
    sync_messages_max: u32,
    leave_at: Option<Instant>,
    moving: Option<Moving>,
}

impl Driver {
    /// A driver for a connection that is up, and what it tells others.
    pub(crate) fn new(
        options: ConnectOptions,
        inbox: Arc<Inbox>,
        calls: mpsc::Receiver<Call>,
        closing: CancellationToken,
        open: &Open,
    ) -> (Self, watch::Receiver<Link>, watch::Receiver<()>) {
        let (link, link_receiver) = watch::channel(link_of(open));
        let (ended, ended_receiver) = watch::channel(());
        let driver = Self {
            options,
            inbox,
            calls,
            closing,
            link,
            _ended: ended,
            pending: BTreeMap::new(),
            waiting: VecDeque::new(),
            last_id: 0,
            sync: SyncStep::default(),
        };
        (driver, link_receiver, ended_receiver)
    }

    /// Runs until the client is closed or no gateway lets it in.
    pub(crate) async fn run(mut self, first: Open) {
        let mut next = Some(first);
        let mut moved = false;
        while let Some(open) = next {
            self.link.send_replace(link_of(&open));
            // To the app a move is no event: it was connected all the time.
            if !std::mem::take(&mut moved) {
                self.inbox.put(Event::Connected);
            }
            let mut session = Session::new(open);
            let end = match Box::pin(self.serve(&mut session)).await {
                Ok(end) => end,
                Err(error) => End::Broken {
                    reason: error.to_string(),
                    asked: false,
                },
            };
            next = match end {
                End::Closed => {
                    let farewell = session.socket.close(None);
                    let _ = tokio::time::timeout(Duration::from_millis(200), farewell).await;
                    None
                }
                End::Moved(open) => {
                    self.drain(&mut session).await;
                    moved = true;
                    Some(*open)
                }
                End::Broken { reason, asked } => {
                    // Closed before the new one is opened: one device, one connection.
                    drop(session);
                    self.reconnect(reason, asked).await
                }
            };
        }
        self.inbox.close();
        // Dropping the calls' channels tells them.
    }

    /// Takes what the old gateway still has for this client: the answers to what is under way, and
    /// pushes. Nothing hangs on it: what is missed is repeated, or synced.
    async fn drain(&mut self, session: &mut Session) {
        let closing = self.closing.clone();
        let draining = async {
            while !self.all_answered() {
                let received = session.socket.next().await;
                if !matches!(self.receive(session, received), Ok(None)) {
                    return;
                }
            }
            if session.socket.close(None).await.is_err() {
                return;
            }
            // Until the gateway closes, too.
            loop {
                let received = session.socket.next().await;
                if !matches!(self.receive(session, received), Ok(None)) {
                    return;
                }
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(DRAIN_PATIENCE, draining) => {}
            () = closing.cancelled() => {}
        }
    }

    fn all_answered(&self) -> bool {
        let mut pending = self.pending.values();
        self.sync.running.is_none() && pending.all(|call| call.retry_at.is_some())
    }

    /// Tries until a connection is up; `None` if the client is closed or not let in.
    async fn reconnect(&mut self, mut reason: String, asked: bool) -> Option<Open> {
        let mut failures = 0;
        let mut pause = if asked {
            Duration::ZERO
        } else {
            self.pause(failures)
        };
        loop {
            tracing::debug!(%reason, ?pause, "reconnect");
            self.inbox.put(Event::Disconnected {
                reason,
                retry_in: pause,
            });
            self.wait(pause).await?;
            let opened = tokio::select! {
                opened = socket::open(&self.options, Purpose::Use) => opened,
                () = self.closing.cancelled() => return None,
            };
            let error = match opened {
                Ok(open) => return Some(open),
                Err(error) => error,
            };
            if let Error::NotAdmitted { fault, status } = &error
                && !fault.retryable
            {
                tracing::warn!(%error, "not admitted any more");
                for (_, call) in std::mem::take(&mut self.pending) {
                    let fault = fault.clone();
                    let _ = call.answer.send(Err(Error::NotAdmitted {
                        status: *status,
                        fault,
                    }));
                }
                return None;
            }
            failures += 1;
            pause = self.pause(failures);
            reason = error.to_string();
        }
    }

    fn pause(&self, failures: u32) -> Duration {
        backoff::pause(failures, self.options.backoff_max)
    }

    /// Sleeps, taking calls meanwhile; `None` if the client is closed.
    async fn wait(&mut self, pause: Duration) -> Option<()> {
        let until = tokio::time::Instant::now() + pause;
        self.waiting.retain(|(_, answer)| !answer.is_closed());
        loop {
            let room = self.waiting.len() < WAITING_MAX;
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Some(()),
                () = self.closing.cancelled() => return None,
                call = self.calls.recv(), if room => {
                    let Call { request, answer } = call?;
                    self.waiting.push_back((request, answer));
                }
            }
        }
    }

    async fn serve(&mut self, session: &mut Session) -> Result<End, tungstenite::Error> {
        self.sync = SyncStep {
            wanted: self.options.receive,
            ..SyncStep::default()
        };
        self.pending.retain(|_, call| !call.answer.is_closed());
        for (id, call) in &mut self.pending {
            call.retry_at = None;
            let frame = ClientFrame {
                id: *id,
                request: call.request.clone(),
            };
            feed(&mut session.socket, &self.options, &frame).await?;
        }
        let inbox = Arc::clone(&self.inbox);
        loop {
            self.write_due(session).await?;
            let wake = tokio::time::Instant::from_std(self.next_wake(session));
            let room = self.pending.len() < session.in_flight_max && self.waiting.is_empty();
            tokio::select! {
                () = self.closing.cancelled() => return Ok(End::Closed),
                call = self.calls.recv(), if room => match call {
                    Some(Call { request, answer }) => self.waiting.push_back((request, answer)),
                    None => return Ok(End::Closed),
                },
                received = session.socket.next() => {
                    if let Some(end) = self.receive(session, received)? {
                        return Ok(end);
                    }
                }
                opened = opened(&mut session.moving), if session.moving.is_some() => {
                    return Ok(moved(opened));
                }
                () = inbox.drained.notified(), if self.sync.wanted => {}
                () = tokio::time::sleep_until(wake) => {
                    if let Some(end) = self.look_after(session).await? {
                        return Ok(end);
                    }
                }
            }
        }
    }

    /// Writes new calls, repeats that are due, and a sync if one is wanted.
    async fn write_due(&mut self, session: &mut Session) -> Result<(), tungstenite::Error> {
        // Calls that came in together are written together.
        while self.pending.len() + self.waiting.len() < session.in_flight_max
            && let Ok(Call { request, answer }) = self.calls.try_recv()
        {
            self.waiting.push_back((request, answer));
        }
        let mut wrote = false;
        while self.pending.len() < session.in_flight_max
            && let Some((request, answer)) = self.waiting.pop_front()
        {
            let frame = ClientFrame {
                id: self.next_id(),
                request: request.clone(),
            };
            let call = Pending {
                request,
                answer,
                failures: 0,
                retry_at: None,
            };
            self.pending.insert(frame.id, call);
            feed(&mut session.socket, &self.options, &frame).await?;
            wrote = true;
        }
        let now = Instant::now();
        for (id, call) in &mut self.pending {
            if call.retry_at.is_some_and(|at| at <= now) {
                call.retry_at = None;
                let frame = ClientFrame {
                    id: *id,
                    request: call.request.clone(),
                };
                feed(&mut session.socket, &self.options, &frame).await?;
                wrote = true;
            }
        }
        if self.sync.not_before.is_some_and(|at| at <= now) {
            self.sync.not_before = None;
        }
        let step = &self.sync;
        if step.wanted
            && step.running.is_none()
            && step.not_before.is_none()
            && let Some(sync) = self.inbox.next_sync(session.sync_messages_max)
        {
            let id = self.next_id();
            self.sync.wanted = false;
            self.sync.running = Some((id, sync.clone()));
            let frame = ClientFrame {
                id,
                request: Request::Sync(sync),
            };
            feed(&mut session.socket, &self.options, &frame).await?;
            wrote = true;
        }
        if wrote {
            session.socket.flush().await?;
        }
        Ok(())
    }

    fn next_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.pending.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    fn next_wake(&self, session: &Session) -> Instant {
        let tick = Instant::now() + TICK;
        let retries = self.pending.values().filter_map(|call| call.retry_at);
        let others = [
            session.leave_at,
            self.sync.not_before.filter(|_| self.sync.wanted),
        ];
        retries
            .chain(others.into_iter().flatten())
            .fold(tick, Instant::min)
    }

    /// What is due by time alone.
    async fn look_after(
        &mut self,
        session: &mut Session,
    ) -> Result<Option<End>, tungstenite::Error> {
        let now = Instant::now();
        self.pending.retain(|_, call| !call.answer.is_closed());
        self.waiting.retain(|(_, answer)| !answer.is_closed());
        if session.leave_at.take_if(|at| *at <= now).is_some() {
            // Served here until another gateway lets this client in.
            let options = self.options.clone();
            let open = async move { socket::open(&options, Purpose::Use).await };
            session.moving = Some(Box::pin(open));
        }
        match session.pinged {
            Some(at) if now.duration_since(at) > PONG_PATIENCE => {
                let reason = format!("nothing was heard for {PONG_PATIENCE:?} after a ping");
                return Ok(Some(End::Broken {
                    reason,
                    asked: false,
                }));
            }
            None if now.duration_since(session.heard) > session.ping_after => {
                session.pinged = Some(now);
                let frame = ClientFrame {
                    id: self.next_id(),
                    request: Request::Ping,
                };
                feed(&mut session.socket, &self.options, &frame).await?;
                session.socket.flush().await?;
            }
            Some(_) | None => {}
        }
        Ok(None)
    }

    fn receive(
        &mut self,
        session: &mut Session,
        received: Option<Result<tungstenite::Message, tungstenite::Error>>,
    ) -> Result<Option<End>, tungstenite::Error> {
        session.heard = Instant::now();
        session.pinged = None;
        let message = match received.transpose()? {
            Some(tungstenite::Message::Close(frame)) => {
                let said = frame.map_or_else(String::new, |frame| format!(": {}", frame.reason));
                let reason = format!("the gateway closed the connection{said}");
                return Ok(Some(End::Broken {
                    reason,
                    asked: false,
                }));
            }
            None => {
                let reason = "the connection broke".to_owned();
                return Ok(Some(End::Broken {
                    reason,
                    asked: false,
                }));
            }
            Some(message) => message,
        };
        match decode(self.options.encoding, message) {
            Some(Ok(frame)) => self.take_frame(session, frame),
            Some(Err(reason)) => {
                return Ok(Some(End::Broken {
                    reason,
                    asked: false,
                }));
            }
            None => {}
        }
        Ok(None)
    }

    fn take_frame(&mut self, session: &mut Session, frame: ServerFrame) {
        match frame {
            ServerFrame::Reply { id, reply } => self.take_reply(id, reply),
            ServerFrame::Error { id, fault } => self.take_fault(id, fault),
            ServerFrame::Push(push) => self.take_push(push),
            ServerFrame::Notify { .. } => self.sync.wanted = self.options.receive,
            // A second one changes nothing once the client is on its way.
            ServerFrame::GoAway(_) if session.moving.is_some() => {}
            ServerFrame::GoAway(go_away) => {
                let pause = backoff::within(go_away.after_ms_min, go_away.after_ms_max);
                session.leave_at = Some(Instant::now() + pause);
            }
            ServerFrame::Welcome(_) | ServerFrame::Unknown => {}
        }
    }

    fn take_push(&mut self, push: Push) {
        if self.options.receive && self.inbox.take_push(push) == Fit::Sync {
            self.sync.wanted = true;
        }
    }

    fn take_reply(&mut self, id: u32, reply: Reply) {
        if let Some((_, asked)) = self.sync.running.take_if(|(running, _)| *running == id) {
            match reply {
                Reply::Synced(page) => self.take_page(&asked, page),
                _ => self.sync.wanted = true,
            }
        } else if let Some(call) = self.pending.remove(&id) {
            // Whoever asked may have given up.
            let _ = call.answer.send(Ok(reply));
        }
    }

    fn take_page(&mut self, asked: &Sync, page: Synced) {
        self.sync.failures = 0;
        self.sync.not_before = None;
        self.sync.wanted |= page.more;
        self.inbox.take_page(asked, page);
    }

    fn take_fault(&mut self, id: u32, fault: Fault) {
        let patience = self.options.backoff_max;
        let retry_at = |failures| {
            let least = Duration::from_millis(u64::from(fault.retry_after_ms));
            Instant::now() + backoff::pause(failures, patience).max(least)
        };
        if self
            .sync
            .running
            .take_if(|(running, _)| *running == id)
            .is_some()
        {
            self.sync.wanted = true;
            if fault.code == "Resync" {
                self.inbox.reset(fault.message);
            } else {
                tracing::debug!(%fault, "sync");
                self.sync.not_before = Some(retry_at(self.sync.failures));
                self.sync.failures += 1;
            }
        } else if let Some(call) = self.pending.get_mut(&id)
            && fault.retryable
        {
            call.retry_at = Some(retry_at(call.failures));
            call.failures += 1;
        } else if let Some(call) = self.pending.remove(&id) {
            let _ = call.answer.send(Err(Error::Refused(fault)));
        }
    }
}

impl Session {
    fn new(open: Open) -> Self {
        let limits = open.welcome.limits;
        Self {
            socket: open.socket,
            heard: Instant::now(),
            pinged: None,
            ping_after: Duration::from_millis(u64::from(limits.idle_ms_max / 3).max(1_000)),
            // One of the gateway's places is kept for the sync.
            in_flight_max: (limits.in_flight_max as usize).saturating_sub(1).max(1),
            sync_messages_max: limits.sync_messages_max.max(1),
            leave_at: None,
            moving: None,
        }
    }
}

fn link_of(open: &Open) -> Link {
    Link {
        limits: open.welcome.limits,
        server_time_ms: open.welcome.server_time_ms,
        at: open.welcomed_at,
    }
}

/// Resolves with the attempt to connect elsewhere; without one, never.
async fn opened(moving: &mut Option<Moving>) -> Result<Open, Error> {
    match moving {
        Some(moving) => moving.await,
        None => std::future::pending().await,
    }
}

/// What follows from the attempt. If nobody else lets this client in, it leaves all the same, and
/// tries as after a break: staying would only hold up a gateway that has nobody to hand over to.
fn moved(opened: Result<Open, Error>) -> End {
    match opened {
        Ok(open) => End::Moved(Box::new(open)),
        Err(error) => End::Broken {
            reason: format!("the gateway stops, and no other is there yet: {error}"),
            asked: true,
        },
    }
}

async fn feed(
    socket: &mut Socket,
    options: &ConnectOptions,
    frame: &ClientFrame,
) -> Result<(), tungstenite::Error> {
    let bytes = options.encoding.encode_client(frame);
    socket.feed(message(options.encoding, bytes)).await
}
