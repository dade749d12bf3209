//! A device's WebSocket to a gateway. It is logged in with the runtime, and from then on read and written without it:
//! one thread serves hundreds of them.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, BytesMut};
use mailbox_wire::Encoding;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rand::RngExt as _;
use rand::rngs::SmallRng;
use rustls::ClientConnection;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use super::websocket::{FrameReader, Incoming, MESSAGE_BYTES_MAX, Opcode, put_frame};

/// How long a log-in may take: hundreds of them share two cores.
const LOG_IN_WITHIN: Duration = Duration::from_secs(30);
/// Greatest answer to a handshake, in bytes.
const ANSWER_BYTES_MAX: usize = 8 << 10;
/// Read from a socket at a time, in bytes: what a gateway can have on its way to one device.
const READ_BYTES: usize = 256 << 10;
/// Most that may wait to be written to one gateway, in bytes; beyond it the gateway takes nothing any more.
const UNWRITTEN_BYTES_MAX: usize = 16 << 20;

/// Where and as whom to log in.
#[derive(Clone)]
pub(super) struct Login {
    /// `ws://host:port` or `wss://host:port`.
    pub(super) url: String,
    pub(super) token: String,
    /// Letters, digits and hyphens only.
    pub(super) device: String,
    /// How certificates are checked; `None` for `ws://`.
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
}

/// What checks a gateway's certificate: it must be signed by, or be, the one in this file.
pub(super) fn trusting(file: &std::path::Path) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let pem = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.with_context(|| format!("parse {}", file.display()))?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// What a thread reads its sockets with.
pub(super) struct Scratch(Box<[u8]>);

impl Scratch {
    pub(super) fn new() -> Self {
        Self(vec![0; READ_BYTES].into())
    }
}

/// A logged-in WebSocket.
pub(super) struct Socket {
    link: Link,
    frames: FrameReader,
    /// Not yet written.
    out: BytesMut,
    masks: SmallRng,
    wire_bytes: u64,
}

enum Link {
    Plain(TcpStream),
    Tls(Box<(TcpStream, ClientConnection)>),
}

impl Link {
    fn tcp(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &mut tls.0,
        }
    }
}

impl Socket {
    /// Connects and upgrades. Once it returns, the gateway has subscribed to what the user is to be pushed.
    ///
    /// # Errors
    /// When nobody answers in time, or the gateway does not let the user in; with what it said.
    pub(super) async fn log_in(login: &Login) -> anyhow::Result<Self> {
        let attempt = Box::pin(attempt(login));
        let attempt = tokio::time::timeout(LOG_IN_WITHIN, attempt).await;
        attempt
            .map_err(|_| anyhow::anyhow!("no answer within {LOG_IN_WITHIN:?}"))
            .flatten()
            .with_context(|| format!("log in at {}", login.url))
    }

    /// Has a poll tell of this socket.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(self.link.tcp(), token, interest)
    }

    /// Reads once. Whether there may be more: the poll tells of a socket again only after it was read empty.
    ///
    /// # Errors
    /// When the connection broke or the gateway ended it.
    pub(super) fn read(&mut self, scratch: &mut Scratch) -> io::Result<bool> {
        let room = scratch.0.len();
        let read = match self.link.tcp().read(&mut scratch.0) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error),
        };
        self.wire_bytes += read as u64;
        let bytes = scratch.0.get(..read).unwrap_or_default();
        match &mut self.link {
            Link::Plain(_) => self.frames.extend(bytes),
            Link::Tls(tls) => decrypt(&mut tls.1, bytes, &mut self.frames)?,
        }
        // A stream socket that gave less than it was asked for is empty.
        Ok(read == room)
    }

    /// What has come as a whole; see [`FrameReader::next`].
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Incoming>> {
        self.frames.next()
    }

    /// Puts a frame to what [`Socket::flush`] writes.
    pub(super) fn put(&mut self, opcode: Opcode, payload: &[u8]) {
        put_frame(&mut self.out, opcode, payload, self.masks.random());
    }

    /// Writes what the gateway takes now; the rest stays until the poll says that there is room.
    ///
    /// # Errors
    /// When the connection broke, or the gateway takes nothing while more and more is to be written.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let written = match &mut self.link {
            Link::Plain(tcp) => write_plain(tcp, &mut self.out),
            Link::Tls(tls) => write_tls(&mut tls.0, &mut tls.1, &mut self.out),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            written => written?,
        }
        if self.out.len() > UNWRITTEN_BYTES_MAX {
            let message = format!(
                "the gateway takes nothing: {} bytes wait to be written, the limit is {UNWRITTEN_BYTES_MAX}",
                self.out.len()
            );
            return Err(io::Error::other(message));
        }
        Ok(())
    }

    /// Bytes that were read from the wire since the log-in: TLS and WebSocket framing included.
    pub(super) fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }
}

fn decrypt(
    session: &mut ClientConnection,
    mut bytes: &[u8],
    frames: &mut FrameReader,
) -> io::Result<()> {
    while !bytes.is_empty() {
        session.read_tls(&mut bytes)?;
        session.process_new_packets().map_err(io::Error::other)?;
        take_plain(session, frames)?;
    }
    Ok(())
}

/// Takes what a session has decrypted already.
fn take_plain(session: &mut ClientConnection, frames: &mut FrameReader) -> io::Result<()> {
    let mut plain = session.reader();
    loop {
        let bytes = match plain.fill_buf() {
            Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        frames.extend(bytes);
        let taken = bytes.len();
        plain.consume(taken);
    }
}

fn write_plain(tcp: &mut TcpStream, out: &mut BytesMut) -> io::Result<()> {
    while !out.is_empty() {
        let written = tcp.write(out)?;
        out.advance(written);
    }
    Ok(())
}

fn write_tls(
    tcp: &mut TcpStream,
    session: &mut ClientConnection,
    out: &mut BytesMut,
) -> io::Result<()> {
    loop {
        while session.wants_write() {
            session.write_tls(tcp)?;
        }
        if out.is_empty() {
            return Ok(());
        }
        // The session takes a bounded part at a time.
        let taken = session.writer().write(out)?;
        out.advance(taken);
    }
}

async fn attempt(login: &Login) -> anyhow::Result<Socket> {
    let (scheme, authority) = login
        .url
        .split_once("://")
        .context("a gateway is ws://host:port or wss://host:port")?;
    let tcp = tokio::net::TcpStream::connect(authority).await?;
    tcp.set_nodelay(true)?;
    let mut frames = FrameReader::new(MESSAGE_BYTES_MAX);
    let link = match (scheme, &login.tls) {
        ("ws", _) => {
            let mut stream = tcp;
            upgrade(&mut stream, authority, login, &mut frames).await?;
            Link::Plain(TcpStream::from_std(stream.into_std()?))
        }
        ("wss", Some(config)) => {
            let host = authority
                .rsplit_once(':')
                .map_or(authority, |(host, _)| host);
            let name = ServerName::try_from(host.to_owned()).context("name the gateway")?;
            let connector = TlsConnector::from(Arc::clone(config));
            let mut stream = connector.connect(name, tcp).await?;
            upgrade(&mut stream, authority, login, &mut frames).await?;
            let (tcp, mut session) = stream.into_inner();
            take_plain(&mut session, &mut frames)?;
            Link::Tls(Box::new((TcpStream::from_std(tcp.into_std()?), session)))
        }
        (scheme, _) => bail!("{scheme}:// needs wss:// and a certificate to trust, or ws://"),
    };
    Ok(Socket {
        link,
        frames,
        out: BytesMut::new(),
        masks: rand::make_rng(),
        wire_bytes: 0,
    })
}

/// Asks for the WebSocket. What comes behind the answer are frames already.
async fn upgrade(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    authority: &str,
    login: &Login,
    frames: &mut FrameReader,
) -> anyhow::Result<()> {
    let key = STANDARD.encode(rand::random::<[u8; 16]>());
    let request = format!(
        "GET /v1/ws?device={} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {}\r\n\
         Authorization: Bearer {}\r\n\r\n",
        login.device,
        Encoding::Proto.subprotocol(),
        login.token
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = BytesMut::with_capacity(ANSWER_BYTES_MAX);
    loop {
        if let Some(rest) = answer_end(&answer)? {
            frames.extend(rest);
            return Ok(());
        }
        if answer.len() > ANSWER_BYTES_MAX {
            bail!("the answer has over {ANSWER_BYTES_MAX} bytes: that is no gateway");
        }
        if stream.read_buf(&mut answer).await? == 0 {
            bail!("closed in the middle of its answer");
        }
    }
}

/// What comes behind the answer to a handshake; `None`: the answer is not there as a whole.
fn answer_end(answer: &[u8]) -> anyhow::Result<Option<&[u8]>> {
    const END: &[u8] = b"\r\n\r\n";
    let Some(at) = answer.windows(END.len()).position(|bytes| bytes == END) else {
        return Ok(None);
    };
    if !answer.starts_with(b"HTTP/1.1 101 ") {
        bail!("refused: {}", String::from_utf8_lossy(answer));
    }
    Ok(answer.get(at + END.len()..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_at_its_empty_line_and_frames_follow() {
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n\x82\x01a";
        let end = answer.len() - 3;
        for cut in 0..end {
            assert_eq!(answer_end(&answer[..cut]).unwrap(), None, "{cut} bytes");
        }
        assert_eq!(answer_end(answer).unwrap(), Some(&b"\x82\x01a"[..]));
        let refusal = b"HTTP/1.1 401 Unauthorized\r\n\r\n{\"code\":\"Unauthenticated\"}";
        let error = answer_end(refusal).unwrap_err().to_string();
        assert!(error.contains("Unauthenticated"), "{error}");
    }
}
