//! A running gateway: the accept loop, the registry of connections, and the drain.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mailbox_wire::{GoAway, ServerFrame};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::clock::Clock;
use crate::connection::Connection;
use crate::dispatch::Dispatch;
use crate::metrics::Metrics;
use crate::options::{Error, GatewayOptions, Limits, Listen, MetricsRegistry, ReadyCheck};
use crate::queue::Close;
use crate::registration::Registrar;
use crate::session::Answerer;
use crate::stream::{Stream, prepare};
use crate::token::TokenKeys;
use crate::users::Users;

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: u32 = 4096;

/// Pause after a failed accept (out of descriptors, mostly), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How often dead connections are looked for.
const SWEEP_PERIOD: Duration = Duration::from_secs(1);

/// A connection's share of `connections_max`; travels with it from HTTP to the WebSocket.
#[derive(Debug, Clone)]
pub(crate) struct Permit {
    _permit: Arc<OwnedSemaphorePermit>,
    _open: Arc<Open>,
}

/// Counts one open connection.
#[derive(Debug)]
struct Open(prometheus_client::metrics::gauge::Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) answerer: Arc<Answerer>,
    pub(crate) keys: TokenKeys,
    pub(crate) users: Users,
    pub(crate) ready: ReadyCheck,
    pub(crate) registry: MetricsRegistry,
    pub(crate) clock: Clock,
    /// Cancelled when the gateway begins to drain.
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    websockets: Mutex<HashMap<u64, Arc<Connection>>>,
    next_number: AtomicU64,
}

/// A WebSocket's place in the registry; dropping it takes it out.
pub(crate) struct Registered {
    shared: Arc<Shared>,
    number: u64,
}

impl Shared {
    /// Puts a WebSocket into the registry: it is swept, and told when the gateway stops.
    pub(crate) fn register(self: &Arc<Self>, connection: Arc<Connection>) -> Registered {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        self.websockets
            .lock()
            .insert(number, Arc::clone(&connection));
        self.answerer.metrics.websockets.inc();
        if self.stop.is_cancelled() {
            // It came in while the others were being told.
            self.tell_go_away(&connection, Duration::ZERO);
        }
        Registered {
            shared: Arc::clone(self),
            number,
        }
    }

    fn tell_go_away(&self, connection: &Connection, window: Duration) {
        let frame = ServerFrame::GoAway(GoAway {
            reason: "this gateway stops".into(),
            after_ms_min: 0,
            after_ms_max: u32::try_from(window.as_millis()).unwrap_or(u32::MAX),
        });
        connection
            .queue
            .put(connection.encoding.encode_server(&frame));
    }

    fn each_websocket(&self, mut visit: impl FnMut(&Connection)) {
        for connection in self.websockets.lock().values() {
            visit(connection);
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.websockets.lock().remove(&self.number);
        self.shared.answerer.metrics.websockets.dec();
    }
}

/// A running gateway. Dropping it stops it at once; [`Gateway::shutdown`] drains it.
pub struct Gateway {
    local_addr: SocketAddr,
    shared: Arc<Shared>,
    /// Ends connections that outlive the drain.
    kill: CancellationToken,
    background: Vec<tokio::task::JoinHandle<()>>,
    registrar: Option<Registrar>,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway")
            .field("local_addr", &self.local_addr)
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// Binds and begins to serve. Must be called in a tokio runtime.
    pub async fn start(options: GatewayOptions) -> Result<Self, Error> {
        let listener = bind(options.listen)?;
        let local_addr = listener.local_addr().map_err(Error::Listener)?;
        let metrics = Metrics::register(&options.registry);
        let limits = options.limits;
        let (dispatch, feeds) = Dispatch::start(options.client.clone(), metrics.clone(), &limits);
        let client = options.client;
        let registration = options.registration.as_ref();
        let registrar = registration
            .map(|registration| Registrar::start(registration, client.clone(), metrics.clone()));
        let answerer = Arc::new(Answerer {
            client,
            dispatch,
            limits: limits.clone(),
            metrics,
        });
        let shared = Arc::new(Shared {
            answerer,
            keys: options.keys,
            users: Users::default(),
            ready: options.ready,
            registry: options.registry,
            clock: Clock::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            websockets: Mutex::default(),
            next_number: AtomicU64::new(0),
        });
        let kill = CancellationToken::new();
        let acceptor = Acceptor {
            service: crate::http::router(Arc::clone(&shared)),
            shared: Arc::clone(&shared),
            tls: options.tls.map(TlsAcceptor::from),
            slots: Arc::new(Semaphore::new(limits.connections_max)),
            kill: kill.clone(),
        };
        let mut background = Vec::from(feeds);
        background.push(tokio::spawn(acceptor.run(listener)));
        background.push(tokio::spawn(sweep(Arc::clone(&shared), limits)));
        Ok(Self {
            local_addr,
            shared,
            kill,
            background,
            registrar,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// WebSockets open now.
    pub fn connections(&self) -> usize {
        self.shared.websockets.lock().len()
    }

    /// Stops accepting, tells clients to go away, waits for them and for unanswered requests no
    /// longer than `deadline`, closes what is left. Then the cluster is told that it is gone, which takes some more
    /// seconds if nobody answers.
    pub async fn shutdown(mut self, deadline: Duration) {
        let registrar = self.registrar.take();
        let shared = &self.shared;
        shared.stop.cancel();
        registrar.iter().for_each(Registrar::drain);
        shared.each_websocket(|connection| shared.tell_go_away(connection, deadline / 2));
        shared.tasks.close();
        // Farewells take no round trip; a tenth of the time is left for them.
        let patience = deadline.mul_f32(0.9);
        if tokio::time::timeout(patience, shared.tasks.wait())
            .await
            .is_err()
        {
            shared.each_websocket(|connection| connection.queue.close(Close::GoingAway));
            let _ = tokio::time::timeout(deadline - patience, shared.tasks.wait()).await;
        }
        if let Some(registrar) = registrar {
            registrar.leave().await;
        }
        // What is left is ended by the drop.
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.kill.cancel();
        self.shared
            .each_websocket(|connection| connection.queue.close(Close::WriteStall));
        for task in &self.background {
            task.abort();
        }
    }
}

fn bind(listen: Listen) -> Result<TcpListener, Error> {
    let listener = match listen {
        Listen::Address(address) => {
            let at = |source| Error::Listen { address, source };
            let domain = socket2::Domain::for_address(address);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).map_err(at)?;
            // A restart must not wait for old connections to time out.
            socket.set_reuse_address(true).map_err(at)?;
            socket.bind(&address.into()).map_err(at)?;
            socket.listen(BACKLOG as i32).map_err(at)?;
            socket.into()
        }
        Listen::Listener(listener) => listener,
    };
    listener.set_nonblocking(true).map_err(Error::Listener)?;
    TcpListener::from_std(listener).map_err(Error::Listener)
}

async fn sweep(shared: Arc<Shared>, limits: Limits) {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (idle_ms, stall_ms) = (ms(limits.idle_timeout), ms(limits.write_stall_timeout));
    loop {
        tokio::time::sleep(
            SWEEP_PERIOD
                .min(limits.idle_timeout)
                .min(limits.write_stall_timeout),
        )
        .await;
        let now_ms = shared.clock.now_ms();
        shared.each_websocket(|connection| connection.sweep(now_ms, idle_ms, stall_ms));
    }
}

/// The accept loop.
struct Acceptor {
    service: axum::Router,
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
    slots: Arc<Semaphore>,
    kill: CancellationToken,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.shared.stop.cancelled() => return,
            };
            match accepted {
                Ok((socket, _)) => self.admit(socket),
                Err(error) if is_of_peer(&error) => {}
                Err(error) => {
                    self.refused("accept");
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn refused(&self, reason: &'static str) {
        self.shared
            .answerer
            .metrics
            .refused
            .get_or_create(&[("reason", reason)])
            .inc();
    }

    /// Gives the connection a task, if there is room for it.
    fn admit(&self, socket: TcpStream) {
        let Ok(permit) = Arc::clone(&self.slots).try_acquire_owned() else {
            // Closed at once: a client that backs off does better than one that hangs.
            self.refused("connections_max");
            return;
        };
        if let Err(error) = prepare(&socket) {
            tracing::debug!(%error, "prepare a socket");
            return;
        }
        let metrics = &self.shared.answerer.metrics;
        metrics.accepted.inc();
        metrics.connections.inc();
        let open = Arc::new(Open(metrics.connections.clone()));
        let permit = Permit {
            _permit: Arc::new(permit),
            _open: open,
        };
        let timeout = self.shared.answerer.limits.handshake_timeout;
        let http = Box::pin(serve(
            socket,
            self.tls.clone(),
            self.service.clone(),
            permit,
            timeout,
            self.shared.stop.clone(),
        ));
        let kill = self.kill.clone();
        self.shared.tasks.spawn(async move {
            tokio::select! {
                () = http => {}
                () = kill.cancelled() => {}
            }
        });
    }
}

/// Serves HTTP on a connection, until it ends or becomes a WebSocket.
async fn serve(
    socket: TcpStream,
    tls: Option<TlsAcceptor>,
    service: axum::Router,
    permit: Permit,
    timeout: Duration,
    stop: CancellationToken,
) {
    let stream = match tls {
        None => Stream::Plain(socket),
        Some(tls) => match tokio::time::timeout(timeout, tls.accept(socket)).await {
            Ok(Ok(stream)) => Stream::Tls(Box::new(stream)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "TLS handshake");
                return;
            }
            Err(_) => return,
        },
    };
    let service = service.map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(permit.clone());
        request.map(axum::body::Body::new)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeout)
        .max_buf_size(128 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTP connection");
    }
}

/// The connection went away between the kernel's accept and ours.
fn is_of_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
    )
}
