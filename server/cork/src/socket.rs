//! Where bytes go: the system's sockets, or those of a network that is simulated.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// What a call on a [`Network`] comes to.
pub type Opening<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// A connection of a simulated network.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// A listener of a simulated network.
pub trait Accept: Send + Sync {
    /// The next connection.
    fn accept(&self) -> Opening<'_, Box<dyn Duplex>>;
    /// Where it listens.
    ///
    /// # Errors
    /// It listens nowhere.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// A network that is simulated: it delivers what a seed says, when it says.
pub trait Network: Send + Sync {
    /// Connects to `host:port`.
    fn connect(&self, to: String) -> Opening<'static, Box<dyn Duplex>>;
    /// Listens at `host:port`.
    fn listen(&self, at: String) -> Opening<'static, Box<dyn Accept>>;
}

thread_local! {
    static SIMULATED: RefCell<Option<Arc<dyn Network>>> = const { RefCell::new(None) };
}

/// From now on this thread connects and listens there, and nowhere else.
pub fn simulate(network: Arc<dyn Network>) {
    SIMULATED.with(|it| *it.borrow_mut() = Some(network));
}

pub(crate) fn simulated() -> Option<Arc<dyn Network>> {
    SIMULATED.with(|it| it.borrow().clone())
}

/// One end of a connection.
pub enum Socket {
    /// Of the system.
    System(TcpStream),
    /// Of a [`Network`].
    Simulated(Box<dyn Duplex>),
}

/// What takes connections.
pub enum Listener {
    /// Of the system.
    System(TcpListener),
    /// Of a [`Network`].
    Simulated(Box<dyn Accept>),
}

impl Listener {
    /// Listens at `host:port`.
    ///
    /// # Errors
    /// As [`TcpListener::bind`].
    pub async fn bind(address: &str) -> io::Result<Self> {
        match simulated() {
            Some(network) => {
                let listening = network.listen(address.to_owned());
                Ok(Self::Simulated(listening.await?))
            }
            None => Ok(Self::System(TcpListener::bind(address).await?)),
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// As [`TcpListener::local_addr`].
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::System(listener) => listener.local_addr(),
            Self::Simulated(listener) => listener.local_addr(),
        }
    }

    /// The next connection. Small segments are not kept for others.
    ///
    /// # Errors
    /// As [`TcpListener::accept`].
    pub async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::System(listener) => {
                let (socket, _) = listener.accept().await?;
                // A socket that is gone already fails later.
                let _ = socket.set_nodelay(true);
                Ok(Socket::System(socket))
            }
            Self::Simulated(listener) => Ok(Socket::Simulated(listener.accept().await?)),
        }
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(socket) => socket.fmt(f),
            Self::Simulated(_) => f.write_str("Simulated"),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::System(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Simulated(socket) => Pin::new(socket).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::System(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Simulated(socket) => Pin::new(socket).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::System(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Simulated(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::System(socket) => socket.is_write_vectored(),
            Self::Simulated(socket) => socket.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::System(socket) => Pin::new(socket).poll_flush(cx),
            Self::Simulated(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::System(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Simulated(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}
