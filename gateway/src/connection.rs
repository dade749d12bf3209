//! One WebSocket: a small task that reads requests, writes answers and pushes, and is otherwise
//! asleep with a few hundred bytes of state.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use mailbox_wire::{Encoding, ServerFrame};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::queue::{Close, Next, Queue};
use crate::session::Session;
use crate::stream::Stream;

/// Read buffer of a socket, in bytes: tungstenite touches all of it, so it is what an idle
/// connection costs.
const READ_BUFFER_BYTES: usize = 1024;

/// What other tasks know of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) user: u64,
    pub(crate) encoding: Encoding,
    pub(crate) queue: Queue,
    /// When something was heard last, in milliseconds of the gateway's clock.
    heard_ms: AtomicU64,
    /// Since when a write is under way; 0 = none.
    writing_ms: AtomicU64,
}

/// The futures of unanswered requests, each ending with the answer's bytes.
type InFlight = FuturesUnordered<Pin<Box<dyn Future<Output = Bytes> + Send>>>;

impl Connection {
    pub(crate) fn new(user: u64, encoding: Encoding, queue: Queue, now_ms: u64) -> Self {
        let (heard_ms, writing_ms) = (AtomicU64::new(now_ms), AtomicU64::new(0));
        Self {
            user,
            encoding,
            queue,
            heard_ms,
            writing_ms,
        }
    }

    /// Ends the connection if it is dead: called about once a second.
    pub(crate) fn sweep(&self, now_ms: u64, idle_ms_max: u64, write_stall_ms_max: u64) {
        let writing_ms = self.writing_ms.load(Ordering::Relaxed);
        if writing_ms != 0 && now_ms.saturating_sub(writing_ms) > write_stall_ms_max {
            self.queue.close(Close::WriteStall);
        } else if now_ms.saturating_sub(self.heard_ms.load(Ordering::Relaxed)) > idle_ms_max {
            self.queue.close(Close::Idle);
        }
    }
}

/// Bounds of one WebSocket.
pub(crate) fn config(frame_bytes_max: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * 1024 * 1024)
        .max_message_size(Some(frame_bytes_max))
        .max_frame_size(Some(frame_bytes_max))
}

/// The task of one WebSocket.
pub(crate) struct Driver {
    pub(crate) socket: WebSocketStream<Stream>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) session: Arc<Session>,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) in_flight_max: usize,
}

/// How a WebSocket ended, for the metric.
type Ended = &'static str;

/// The socket is gone, or must go.
struct Broken(Ended);

impl Driver {
    /// Runs until the client leaves, breaks off, is dead, or the gateway stops.
    pub(crate) async fn run(mut self, welcome: ServerFrame) {
        let welcome = self.connection.encoding.encode_server(&welcome);
        let mut in_flight = InFlight::new();
        let ended = match self.write([welcome]).await {
            Ok(()) => self.serve(&mut in_flight).await,
            Err(broken) => broken,
        };
        self.metrics
            .closed
            .get_or_create(&[("reason", ended.0)])
            .inc();
        tracing::debug!(
            user = self.connection.user,
            reason = ended.0,
            "websocket ended"
        );
    }

    async fn serve(&mut self, in_flight: &mut InFlight) -> Broken {
        loop {
            let may_read = in_flight.len() < self.in_flight_max;
            let step = tokio::select! {
                next = poll_fn(|cx| self.connection.queue.poll_next(cx)) => self.write_next(next).await,
                Some(answer) = in_flight.next(), if !in_flight.is_empty() => {
                    self.write_answers(answer, in_flight).await
                }
                message = self.socket.next(), if may_read => self.read(message, in_flight).await,
            };
            if let Err(broken) = step {
                return broken;
            }
        }
    }

    async fn write_next(&mut self, next: Next) -> Result<(), Broken> {
        match next {
            Next::Frames(frames) => self.write(frames).await,
            Next::Notify(heads) => {
                self.metrics.notifies.inc();
                let frame = self
                    .connection
                    .encoding
                    .encode_server(&ServerFrame::Notify { heads });
                self.write([frame]).await
            }
            Next::Close(reason) => {
                let (code, name, ended) = match reason {
                    Close::Idle => (CloseCode::Policy, "nothing was heard for too long", "idle"),
                    Close::GoingAway => (CloseCode::Away, "this gateway stops", "going_away"),
                    Close::WriteStall => return Err(Broken("write_stall")),
                };
                self.close(code, name).await;
                Err(Broken(ended))
            }
        }
    }

    /// Writes the answer and all others that are there already.
    async fn write_answers(
        &mut self,
        first: Bytes,
        in_flight: &mut InFlight,
    ) -> Result<(), Broken> {
        let mut answers = vec![first];
        while let Some(Some(answer)) = in_flight.next().now_or_never() {
            answers.push(answer);
        }
        self.write(answers).await
    }

    async fn read(
        &mut self,
        message: Option<Result<Message, tungstenite::Error>>,
        in_flight: &mut InFlight,
    ) -> Result<(), Broken> {
        self.connection
            .heard_ms
            .store(self.clock.now_ms(), Ordering::Relaxed);
        let bytes = match message {
            Some(Ok(Message::Text(text))) => Bytes::from(text),
            Some(Ok(Message::Binary(bytes))) => bytes,
            // tungstenite answers pings and closes by itself, at the next read or write.
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => return Ok(()),
            Some(Ok(Message::Close(_))) | None => return Err(Broken("client")),
            Some(Err(tungstenite::Error::Capacity(error))) => {
                self.close(CloseCode::Size, &error.to_string()).await;
                return Err(Broken("too_large"));
            }
            Some(Err(tungstenite::Error::Protocol(_) | tungstenite::Error::Utf8(_))) => {
                return Err(Broken("protocol"));
            }
            Some(Err(_)) => return Err(Broken("broken")),
        };
        match self.connection.encoding.decode_client(&bytes) {
            Ok(frame) => {
                in_flight.push(self.session.answer(frame));
                Ok(())
            }
            Err(error) => {
                let frame = self.session.malformed(&error);
                self.write([frame]).await
            }
        }
    }

    async fn write(&mut self, frames: impl IntoIterator<Item = Bytes>) -> Result<(), Broken> {
        let Self {
            socket,
            connection,
            metrics,
            ..
        } = self;
        connection
            .writing_ms
            .store(self.clock.now_ms().max(1), Ordering::Relaxed);
        let write = async {
            for frame in frames {
                metrics.written_bytes.inc_by(frame.len() as u64);
                socket.feed(message(connection.encoding, frame)).await?;
                // Something was taken: the stall begins anew with the next frame.
                connection
                    .writing_ms
                    .store(self.clock.now_ms().max(1), Ordering::Relaxed);
            }
            socket.flush().await
        };
        let written = tokio::select! {
            written = write => written,
            () = poll_fn(|cx| connection.queue.poll_stalled(cx)) => return Err(Broken("write_stall")),
        };
        connection.writing_ms.store(0, Ordering::Relaxed);
        written.map_err(|_| Broken("broken"))
    }

    /// Says farewell, unless that would block.
    async fn close(&mut self, code: CloseCode, reason: &str) {
        let frame = CloseFrame {
            code,
            reason: Utf8Bytes::from(reason),
        };
        let mut closing = std::pin::pin!(self.socket.close(Some(frame)));
        poll_fn(|cx| {
            let _ = closing.as_mut().poll(cx);
            Poll::Ready(())
        })
        .await;
    }
}

fn message(encoding: Encoding, frame: Bytes) -> Message {
    match encoding {
        Encoding::Proto => Message::Binary(frame),
        Encoding::Json => match Utf8Bytes::try_from(frame) {
            Ok(text) => Message::Text(text),
            // JSON that we wrote ourselves is UTF-8; were it not, binary says so harmlessly.
            Err(_) => Message::Binary(Bytes::new()),
        },
    }
}
