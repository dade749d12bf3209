//! One WebSocket: a small task that reads requests, writes answers and pushes, and is otherwise
//! asleep with a few hundred bytes of state.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use mailbox_wire::{Encoding, ServerFrame};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::outlet::{Broken, InFlight, Outlet};
use crate::queue::{Close, Queue};
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

    /// Notes since when a write is under way, in milliseconds of the gateway's clock; 0 = none is.
    pub(crate) fn writing_since(&self, now_ms: u64) {
        self.writing_ms.store(now_ms, Ordering::Relaxed);
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
    pub(crate) outlet: Outlet<Stream>,
    pub(crate) session: Arc<Session>,
    pub(crate) in_flight_max: usize,
}

impl Driver {
    /// Runs until the client leaves, breaks off, is dead, or the gateway stops.
    pub(crate) async fn run(mut self, welcome: ServerFrame) {
        let welcome = self.outlet.connection.encoding.encode_server(&welcome);
        let mut in_flight = InFlight::new();
        let ended = match self.outlet.write(vec![welcome]).await {
            Ok(()) => self.serve(&mut in_flight).await,
            Err(broken) => broken,
        };
        self.outlet
            .metrics
            .closed
            .get_or_create(&[("reason", ended.0)])
            .inc();
        tracing::debug!(reason = ended.0, "websocket ended");
    }

    async fn serve(&mut self, in_flight: &mut InFlight) -> Broken {
        let connection = Arc::clone(&self.outlet.connection);
        loop {
            let may_read = in_flight.len() < self.in_flight_max;
            let step = tokio::select! {
                next = poll_fn(|cx| connection.queue.poll_next(cx)) => {
                    self.outlet.write_next(next, in_flight).await
                }
                Some(answer) = in_flight.next(), if !in_flight.is_empty() => {
                    self.outlet.write_answer(answer, in_flight).await
                }
                message = self.outlet.socket.next(), if may_read => self.read(message, in_flight).await,
            };
            if let Err(broken) = step {
                return broken;
            }
        }
    }

    async fn read(
        &mut self,
        message: Option<Result<Message, tungstenite::Error>>,
        in_flight: &mut InFlight,
    ) -> Result<(), Broken> {
        let outlet = &mut self.outlet;
        let now_ms = outlet.clock.now_ms();
        outlet.connection.heard_ms.store(now_ms, Ordering::Relaxed);
        let bytes = match message {
            Some(Ok(Message::Text(text))) => Bytes::from(text),
            Some(Ok(Message::Binary(bytes))) => bytes,
            // tungstenite answers pings and closes by itself, at the next read or write.
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => return Ok(()),
            Some(Ok(Message::Close(_))) | None => return Err(Broken("client")),
            Some(Err(tungstenite::Error::Capacity(error))) => {
                outlet.close(CloseCode::Size, &error.to_string()).await;
                return Err(Broken("too_large"));
            }
            Some(Err(tungstenite::Error::Protocol(_) | tungstenite::Error::Utf8(_))) => {
                return Err(Broken("protocol"));
            }
            Some(Err(_)) => return Err(Broken("broken")),
        };
        match outlet.connection.encoding.decode_client(&bytes) {
            Ok(frame) => {
                in_flight.push(self.session.answer(frame));
                Ok(())
            }
            Err(error) => {
                let frame = self.session.malformed(&error);
                outlet.write(vec![frame]).await
            }
        }
    }
}
