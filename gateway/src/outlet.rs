//! The writing half of a connection: all that is ready goes out in one write.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use mailbox_wire::{Encoding, ServerFrame};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::clock::Clock;
use crate::coalesce::Coalesced;
use crate::connection::Connection;
use crate::metrics::Metrics;
use crate::queue::{Close, Next};

/// Answers are gathered for one turn until they are so many bytes; further ones stay with their
/// requests, so that a client that asks for many pages at once pins few of them here.
const ANSWERS_BYTES_MAX: usize = 64 * 1024;

/// How a WebSocket ended, for the metric.
pub(crate) type Ended = &'static str;

/// The socket is gone, or must go.
#[derive(Debug)]
pub(crate) struct Broken(pub(crate) Ended);

/// The futures of unanswered requests, each ending with the answer's bytes.
pub(crate) type InFlight = FuturesUnordered<Pin<Box<dyn Future<Output = Bytes> + Send>>>;

/// The socket, and what is needed to write to it.
pub(crate) struct Outlet<S> {
    pub(crate) socket: WebSocketStream<Coalesced<S>>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Outlet<S> {
    /// Does what the queue asks for; answers that are there already go out with it.
    pub(crate) async fn write_next(
        &mut self,
        next: Next,
        in_flight: &mut InFlight,
    ) -> Result<(), Broken> {
        let frames = match next {
            Next::Frames(frames) => frames,
            Next::Notify(heads) => {
                let notify = self.notify(heads);
                return self.write(vec![notify]).await;
            }
            Next::Close(reason) => return Err(self.farewell(reason).await),
        };
        // Answers first: a sender is told of its message before it is pushed it.
        let mut batch = Vec::with_capacity(frames.len() + 1);
        take_ready(in_flight, &mut batch);
        batch.extend(frames);
        self.write(batch).await
    }

    /// Writes an answer, all others that are there already, and what is queued.
    pub(crate) async fn write_answer(
        &mut self,
        first: Bytes,
        in_flight: &mut InFlight,
    ) -> Result<(), Broken> {
        let mut batch = vec![first];
        take_ready(in_flight, &mut batch);
        batch.extend(self.connection.queue.take_frames());
        self.write(batch).await
    }

    /// Writes these, and the hint for what was dropped meanwhile, with one flush.
    pub(crate) async fn write(&mut self, frames: Vec<Bytes>) -> Result<(), Broken> {
        let connection = Arc::clone(&self.connection);
        let written = tokio::select! {
            written = self.feed_and_flush(frames) => written,
            () = poll_fn(|cx| connection.queue.poll_stalled(cx)) => return Err(Broken("write_stall")),
        };
        connection.writing_since(0);
        written.map_err(|_| Broken("broken"))
    }

    async fn feed_and_flush(
        &mut self,
        frames: Vec<Bytes>,
    ) -> Result<(), tokio_tungstenite::tungstenite::Error> {
        self.mark_writing();
        for frame in frames {
            self.feed(frame).await?;
        }
        // Only now, because feeding may have waited for the client: the hint names what was
        // dropped until then, and pushes that would follow it in vain were dropped too.
        if let Some(heads) = self.connection.queue.take_behind() {
            let notify = self.notify(heads);
            self.feed(notify).await?;
        }
        self.socket.flush().await
    }

    async fn feed(&mut self, frame: Bytes) -> Result<(), tokio_tungstenite::tungstenite::Error> {
        self.metrics.written_bytes.inc_by(frame.len() as u64);
        let message = message(self.connection.encoding, frame);
        self.socket.feed(message).await?;
        // Something was taken: the stall begins anew with the next frame.
        self.mark_writing();
        Ok(())
    }

    fn mark_writing(&self) {
        self.connection.writing_since(self.clock.now_ms().max(1));
    }

    fn notify(&self, heads: Vec<mailbox_wire::Position>) -> Bytes {
        self.metrics.notifies.inc();
        self.connection
            .encoding
            .encode_server(&ServerFrame::Notify { heads })
    }

    async fn farewell(&mut self, reason: Close) -> Broken {
        let (code, name, ended) = match reason {
            Close::Idle => (CloseCode::Policy, "nothing was heard for too long", "idle"),
            Close::GoingAway => (CloseCode::Away, "this gateway stops", "going_away"),
            Close::WriteStall => return Broken("write_stall"),
        };
        self.close(code, name).await;
        Broken(ended)
    }

    /// Says farewell, unless that would block.
    pub(crate) async fn close(&mut self, code: CloseCode, reason: &str) {
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

/// Takes the answers that are there already, up to a bound.
fn take_ready(in_flight: &mut InFlight, batch: &mut Vec<Bytes>) {
    let mut bytes: usize = batch.iter().map(Bytes::len).sum();
    while bytes < ANSWERS_BYTES_MAX
        && let Some(Some(answer)) = in_flight.next().now_or_never()
    {
        bytes += answer.len();
        batch.push(answer);
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io;
    use std::task::{Context, Waker};

    use mailbox_wire::{Position, Timeline};
    use tokio::io::ReadBuf;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;
    use crate::coalesce::GATHERED_BYTES_MAX;
    use crate::connection::config;
    use crate::queue::Queue;

    /// Takes so many bytes, then blocks; keeps each write.
    #[derive(Default)]
    struct Mock {
        room: usize,
        writes: Vec<Vec<u8>>,
        blocked: Option<Waker>,
    }

    impl AsyncWrite for Mock {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            let taken = bytes.len().min(this.room);
            if taken == 0 {
                this.blocked = Some(cx.waker().clone());
                return Poll::Pending;
            }
            this.room -= taken;
            this.writes.push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncRead for Mock {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    async fn outlet(room: usize, frames_max: usize) -> Outlet<Mock> {
        let mock = Mock {
            room,
            ..Mock::default()
        };
        let socket = WebSocketStream::from_raw_socket(
            Coalesced::new(mock),
            Role::Server,
            Some(config(1024)),
        )
        .await;
        let queue = Queue::new(frames_max, 64 * 1024);
        Outlet {
            socket,
            connection: Arc::new(Connection::new(17, Encoding::Proto, queue, 0)),
            clock: Clock::new(),
            metrics: Metrics::register(&Default::default()),
        }
    }

    fn head(seq: u64) -> Position {
        Position {
            timeline: Timeline::Mailbox(17),
            seq,
        }
    }

    /// What the client has got: the payloads of the frames, and in how many writes.
    fn received(outlet: &mut Outlet<Mock>) -> (Vec<Vec<u8>>, usize) {
        let writes = std::mem::take(&mut outlet.socket.get_mut().inner_mut().writes);
        let mut bytes: VecDeque<u8> = writes.iter().flatten().copied().collect();
        let mut payloads = Vec::new();
        while bytes.pop_front().is_some() {
            let length = match bytes.pop_front().unwrap() {
                126 => bytes
                    .drain(..2)
                    .fold(0, |sum, byte| sum << 8 | usize::from(byte)),
                length => usize::from(length),
            };
            payloads.push(bytes.drain(..length).collect());
        }
        (payloads, writes.len())
    }

    #[tokio::test]
    async fn what_is_ready_goes_out_in_one_write_answers_first_and_in_order() {
        let mut outlet = outlet(usize::MAX, 32).await;
        let connection = Arc::clone(&outlet.connection);
        let mut expected = Vec::new();
        let mut in_flight = InFlight::new();
        for number in 0..3u8 {
            let answer = vec![b'a', number];
            expected.push(answer.clone());
            in_flight.push(Box::pin(std::future::ready(Bytes::from(answer))));
        }
        for number in 0..30u8 {
            let push = vec![b'p', number];
            expected.push(push.clone());
            connection
                .queue
                .push(Bytes::from(push), head(u64::from(number) + 1));
        }
        let next = poll_fn(|cx| connection.queue.poll_next(cx)).await;
        outlet.write_next(next, &mut in_flight).await.unwrap();
        assert_eq!(received(&mut outlet), (expected, 1));
        assert!(in_flight.is_empty());
        // The same when an answer is what woke the task.
        connection.queue.push(Bytes::from_static(b"p"), head(31));
        let first = Bytes::from_static(b"a");
        outlet.write_answer(first, &mut in_flight).await.unwrap();
        assert_eq!(
            received(&mut outlet),
            (vec![b"a".to_vec(), b"p".to_vec()], 1)
        );
        assert_eq!(outlet.socket.get_mut().held_bytes(), 0, "idle");
    }

    #[tokio::test]
    async fn many_bytes_are_several_writes_of_the_bound() {
        let mut outlet = outlet(usize::MAX, 32).await;
        let frames: Vec<_> = (0..30u8).map(|number| vec![number; 2000]).collect();
        let batch = frames.iter().cloned().map(Bytes::from).collect();
        outlet.write(batch).await.unwrap();
        let (payloads, writes) = received(&mut outlet);
        assert_eq!(payloads, frames);
        let bytes = 30 * 2004_usize;
        assert_eq!(writes, bytes.div_ceil(GATHERED_BYTES_MAX / 2004 * 2004));
        // One frame over the bound is not copied, and waits for nothing either.
        outlet
            .write(vec![Bytes::from(vec![1; 20_000])])
            .await
            .unwrap();
        assert_eq!(received(&mut outlet), (vec![vec![1; 20_000]], 1));
    }

    #[tokio::test]
    async fn a_slow_client_gets_what_was_taken_then_one_hint() {
        let mut outlet = outlet(10, 2).await;
        let connection = Arc::clone(&outlet.connection);
        let mut in_flight = InFlight::new();
        assert!(connection.queue.push(Bytes::from(vec![1; 100]), head(1)));
        let next = poll_fn(|cx| connection.queue.poll_next(cx)).await;
        {
            let mut writing = std::pin::pin!(outlet.write_next(next, &mut in_flight));
            assert!(
                writing.as_mut().now_or_never().is_none(),
                "the client takes 10 bytes"
            );
            // Meanwhile the queue takes its bound and no more.
            assert!(connection.queue.push(Bytes::from_static(b"2"), head(2)));
            assert!(connection.queue.push(Bytes::from_static(b"3"), head(3)));
            assert!(!connection.queue.push(Bytes::from_static(b"4"), head(4)));
            assert!(!connection.queue.push(Bytes::from_static(b"5"), head(5)));
        }
        // Dropping the future loses nothing that was fed: the rest is in the stream.
        outlet.socket.get_mut().inner_mut().room = usize::MAX;
        let next = poll_fn(|cx| connection.queue.poll_next(cx)).await;
        outlet.write_next(next, &mut in_flight).await.unwrap();
        let (payloads, writes) = received(&mut outlet);
        let notify = Encoding::Proto.encode_server(&ServerFrame::Notify {
            heads: vec![head(5)],
        });
        let expected = vec![vec![1; 100], b"2".to_vec(), b"3".to_vec(), notify.to_vec()];
        assert_eq!(payloads, expected);
        assert_eq!(writes, 2, "ten bytes, then all the rest");
        assert_eq!(outlet.socket.get_mut().held_bytes(), 0);
    }
}
