//! Sockets whose small writes leave together.
//!
//! HTTP/2 puts the messages of all streams of a connection on one socket, and flushes as soon as one of them has
//! something. A runtime runs a task that was just woken next: so each message of each stream leaves in a system call
//! and a segment of its own, is read in another one at the other end, and wakes a task there, even when sixteen shards
//! have something for the same peer within the same hundred microseconds.
//!
//! [`Corked`] lets everybody else have a turn first: a flush goes to the end of the runtime's queue, once, and by
//! then whatever the other ready tasks have had to say is in the buffer too. There is no timer: with nothing else to
//! do, the turn comes at once. (As `TCP_CORK` does it for segments, but before the system calls.)

mod socket;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tower::{BoxError, Service};

pub use socket::{Accept, Duplex, Listener, Network, Opening, Socket, simulate};

/// Bytes that are kept for a flush; more go at once.
const KEPT_BYTES_MAX: usize = 32 << 10;

/// See the crate's documentation.
#[derive(Debug)]
pub struct Corked<S> {
    socket: S,
    kept: BytesMut,
    /// The others have had their turn.
    yielded: bool,
}

impl<S> Corked<S> {
    /// Nothing is kept yet.
    pub fn new(socket: S) -> Self {
        Self {
            socket,
            kept: BytesMut::new(),
            yielded: false,
        }
    }

    /// The socket itself.
    pub fn get_ref(&self) -> &S {
        &self.socket
    }
}

/// Connects as tonic does by itself, without delay for small segments, but [`Corked`]. tonic puts TLS on top.
#[derive(Debug, Clone)]
pub struct Connector(HttpConnector);

impl Connector {
    /// Gives up connecting after so long.
    pub fn new(connect_timeout: Duration) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(connect_timeout));
        Self(http)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Corked<Socket>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        if let Some(network) = socket::simulated() {
            let to = address.authority().map(ToString::to_string);
            let connecting = network.connect(to.unwrap_or_default());
            return Box::pin(async move {
                let socket = Socket::Simulated(connecting.await?);
                Ok(TokioIo::new(Corked::new(socket)))
            });
        }
        let connecting = self.0.call(address);
        Box::pin(async move {
            let socket = Socket::System(connecting.await?.into_inner());
            Ok(TokioIo::new(Corked::new(socket)))
        })
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    /// Everything that is kept into the socket.
    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.kept.is_empty() {
            match Pin::new(&mut self.socket).poll_write(cx, &self.kept) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.kept.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.kept.capacity() > KEPT_BYTES_MAX {
            self.kept = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let bytes: usize = bufs.iter().map(|buf| buf.len()).sum();
        if this.kept.len() + bytes > KEPT_BYTES_MAX {
            std::task::ready!(this.poll_empty(cx))?;
            if bytes > KEPT_BYTES_MAX {
                return Pin::new(&mut this.socket).poll_write_vectored(cx, bufs);
            }
        }
        for buf in bufs {
            this.kept.extend_from_slice(buf);
        }
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.kept.is_empty() && !this.yielded {
            this.yielded = true;
            // A task that wakes itself goes to the end of the queue.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        std::task::ready!(this.poll_empty(cx))?;
        this.yielded = false;
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        std::task::ready!(this.poll_empty(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

impl Connected for Corked<Socket> {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        match &self.socket {
            Socket::System(socket) => socket.connect_info(),
            Socket::Simulated(_) => TcpConnectInfo {
                local_addr: None,
                remote_addr: None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    /// A socket that notes its writes, and takes `room` bytes of each at most.
    #[derive(Default)]
    struct Noting {
        writes: Vec<usize>,
        taken: Vec<u8>,
        room: usize,
    }

    impl AsyncWrite for Noting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = buf.len().min(self.room);
            self.writes.push(taken);
            self.taken.extend_from_slice(&buf[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn noting(room: usize) -> Corked<Noting> {
        Corked::new(Noting {
            room,
            ..Noting::default()
        })
    }

    #[tokio::test]
    async fn small_writes_leave_in_one() {
        let mut corked = noting(usize::MAX);
        for _ in 0..10 {
            corked.write_all(b"0123456789").await.unwrap();
        }
        assert!(corked.get_ref().writes.is_empty());
        corked.flush().await.unwrap();
        assert_eq!(corked.get_ref().writes, [100]);
        corked.flush().await.unwrap();
        assert_eq!(corked.get_ref().writes, [100]);
    }

    #[test]
    fn a_flush_lets_the_others_have_a_turn_once() {
        let mut corked = noting(usize::MAX);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let flush = |corked: &mut Corked<Noting>, cx: &mut Context<'_>| {
            Pin::new(corked).poll_flush(cx).is_ready()
        };
        assert!(flush(&mut corked, &mut cx), "there is nothing");
        for _ in 0..2 {
            let written = Pin::new(&mut corked).poll_write(&mut cx, b"one");
            assert!(matches!(written, Poll::Ready(Ok(3))));
            assert!(!flush(&mut corked, &mut cx));
            let written = Pin::new(&mut corked).poll_write(&mut cx, b"two");
            assert!(matches!(written, Poll::Ready(Ok(3))));
            assert!(flush(&mut corked, &mut cx));
        }
        assert_eq!(corked.get_ref().writes, [6, 6]);
    }

    #[tokio::test]
    async fn much_goes_at_once_and_in_order_however_little_the_socket_takes() {
        let mut corked = noting(1000);
        let bytes: Vec<u8> = (0..200_000_u32).map(|byte| byte as u8).collect();
        let (small, large) = bytes.split_at(100);
        corked.write_all(small).await.unwrap();
        corked.write_all(large).await.unwrap();
        corked.flush().await.unwrap();
        assert_eq!(corked.get_ref().taken, bytes);
    }

    #[tokio::test]
    async fn what_is_kept_goes_before_the_end() {
        let (ours, mut theirs) = duplex(64);
        let mut corked = Corked::new(ours);
        corked.write_all(b"last words").await.unwrap();
        corked.shutdown().await.unwrap();
        let mut heard = Vec::new();
        theirs.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"last words");
    }
}
