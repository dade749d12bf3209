//! The gRPC listener: binding, TLS, and the bound on connections.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use mailbox_client::Tls;
use mailbox_cork::{Corked, Listener, Socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tonic::transport::{Identity, ServerTlsConfig};

use crate::config::{TlsConfig, is_loopback, is_set};
use crate::error::Error;
use crate::metrics::{Level, LevelGuard};

/// Pause after the system refused to give a connection, for want of descriptors for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Binds an address; says what to do if it is in use.
pub(crate) async fn bind(option: &'static str, address: &str) -> Result<TcpListener, Error> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| not_bound(option, address, source))
}

/// As [`bind`], for gRPC.
pub(crate) async fn bind_grpc(option: &'static str, address: &str) -> Result<Listener, Error> {
    let bound = Listener::bind(address).await;
    bound.map_err(|source| not_bound(option, address, source))
}

fn not_bound(option: &'static str, address: &str, source: io::Error) -> Error {
    Error::Listen {
        option,
        address: address.to_owned(),
        hint: match source.kind() {
            io::ErrorKind::AddrInUse => {
                "; another process listens there: stop it or choose another port (0 = any free one)"
            }
            io::ErrorKind::AddrNotAvailable => "; this machine does not have that address",
            io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege",
            _ => "",
        },
        source,
    }
}

/// Warns of a listener that others can reach and read.
pub(crate) fn warn_if_plaintext(option: &str, address: &str, tls: &TlsConfig) {
    if !is_loopback(address) && !is_set(&tls.cert_file) {
        tracing::warn!(
            option,
            address,
            "serving without TLS on an address that others can reach; secrets and messages are \
             readable on the network"
        );
    }
}

/// Certificate and key of `[tls]`, for the gRPC listener; `None` = plaintext.
pub(crate) fn server_tls(tls: &TlsConfig) -> Result<Option<ServerTlsConfig>, Error> {
    let Some(PemIdentity { cert, key }) = read_identity(tls)? else {
        return Ok(None);
    };
    Ok(Some(
        ServerTlsConfig::new().identity(Identity::from_pem(cert, key)),
    ))
}

/// What a listener proves itself with, in PEM.
pub(crate) struct PemIdentity {
    pub(crate) cert: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

/// Certificate and key of `[tls]`, if there are.
pub(crate) fn read_identity(tls: &TlsConfig) -> Result<Option<PemIdentity>, Error> {
    if !is_set(&tls.cert_file) {
        return Ok(None);
    }
    let cert = read("certificate (tls.cert_file)", &tls.cert_file)?;
    let key = read("private key (tls.key_file)", &tls.key_file)?;
    Ok(Some(PemIdentity { cert, key }))
}

/// How the certificates of nodes are checked by those who call them, if `[tls]` says so.
pub(crate) fn read_authority(tls: &TlsConfig) -> Result<Option<Tls>, Error> {
    if !is_set(&tls.ca_file) {
        return Ok(None);
    }
    let ca_pem = read("authority (tls.ca_file)", &tls.ca_file)?;
    let domain = Some(tls.domain.clone()).filter(|domain| !domain.is_empty());
    Ok(Some(Tls { ca_pem, domain }))
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read {
        what,
        path: path.to_owned(),
        source,
    })
}

/// Accepted connections, no more at once than allowed: further ones wait in the system's queue.
pub(crate) fn connections(
    listener: Listener,
    max: u32,
    open: Level,
) -> impl Stream<Item = io::Result<Connection>> {
    let slots = Arc::new(Semaphore::new(max as usize));
    futures_util::stream::unfold((listener, slots, open), async |(listener, slots, open)| {
        // The semaphore is never closed.
        let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
        let stream = loop {
            match listener.accept().await {
                Ok(stream) => break stream,
                Err(error) => {
                    tracing::warn!(%error, "accept a gRPC connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        let connection = Connection {
            stream: Corked::new(stream),
            _slot: slot,
            _open: open.guard(),
        };
        Some((Ok(connection), (listener, slots, open)))
    })
}

/// A client's socket; holds one of the allowed connections while it lives.
pub(crate) struct Connection {
    stream: Corked<Socket>,
    _slot: OwnedSemaphorePermit,
    _open: LevelGuard,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
