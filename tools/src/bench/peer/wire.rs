//! Frames of a peer's protocol, read from a socket into a bounded buffer.

use anyhow::{Context as _, bail};
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// Most bytes of one frame that a peer may send; no answer to what is asked here comes near it.
pub(super) const FRAME_BYTES_MAX: usize = 1 << 20;
/// Room that is made before each read.
const READ_BYTES: usize = 16 << 10;

/// What a peer sends.
pub(super) struct Incoming<R = OwnedReadHalf> {
    reader: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            buffer: BytesMut::with_capacity(READ_BYTES),
        }
    }

    /// The next frame. `take` cuts it off the buffer's front, or leaves the buffer as it is if the frame is not whole.
    ///
    /// # Errors
    /// The connection ended or broke, or `take` refused what came. Nothing more can be read then.
    pub(super) async fn next<T>(
        &mut self,
        take: impl Fn(&mut BytesMut) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        loop {
            if let Some(frame) = take(&mut self.buffer)? {
                return Ok(frame);
            }
            if self.buffer.len() > FRAME_BYTES_MAX {
                bail!("the peer sends a frame of more than {FRAME_BYTES_MAX} bytes");
            }
            self.buffer.reserve(READ_BYTES);
            let read = self.reader.read_buf(&mut self.buffer).await;
            if read.context("read from the peer")? == 0 {
                bail!("the peer closed the connection");
            }
        }
    }
}

/// Connects to a peer on this machine.
pub(super) async fn connect(port: u16) -> anyhow::Result<(Incoming, OwnedWriteHalf)> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await;
    let stream = stream.with_context(|| format!("connect to 127.0.0.1:{port}"))?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    let (reader, writer) = stream.into_split();
    Ok((Incoming::new(reader), writer))
}

/// Cuts a line off the buffer's front, without its CR LF.
///
/// # Errors
/// There is none within `bytes_max` bytes.
pub(super) fn take_line(
    buffer: &mut BytesMut,
    bytes_max: usize,
) -> anyhow::Result<Option<BytesMut>> {
    match line_end(buffer) {
        Some(end) if end <= bytes_max => {
            let mut line = buffer.split_to(end + 2);
            line.truncate(end);
            Ok(Some(line))
        }
        None if buffer.len() <= bytes_max + 1 => Ok(None),
        Some(_) | None => bail!("the peer sends a line of more than {bytes_max} bytes"),
    }
}

/// Where the first CR LF is.
pub(super) fn line_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|pair| pair == b"\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(buffer: &mut BytesMut) -> anyhow::Result<Option<BytesMut>> {
        take_line(buffer, 8)
    }

    #[tokio::test]
    async fn frames_are_cut_wherever_reads_end() {
        let (mut out, reader) = tokio::io::duplex(1);
        let write = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut out, b"one\r\ntwo\r\n\r\nrest").await
        });
        let mut incoming = Incoming::new(reader);
        for wanted in ["one", "two", ""] {
            assert_eq!(incoming.next(line).await.unwrap(), wanted);
        }
        let error = incoming.next(line).await.unwrap_err().to_string();
        assert!(error.contains("closed"), "{error}");
        write.await.unwrap().unwrap();
    }

    #[test]
    fn a_line_is_bounded_whether_or_not_it_ends() {
        let buffer = |text: &str| BytesMut::from(text.as_bytes());
        assert_eq!(line(&mut buffer("12345678\r\n")).unwrap().unwrap().len(), 8);
        assert_eq!(line(&mut buffer("12345678\r")).unwrap(), None);
        assert!(line(&mut buffer("123456789\r\n")).is_err());
        assert!(line(&mut buffer("1234567890")).is_err());
    }

    #[tokio::test]
    async fn a_frame_without_end_is_refused() {
        let endless = tokio::io::repeat(b'x');
        let mut incoming = Incoming::new(endless);
        let error = incoming.next(|_| Ok(None::<()>)).await.unwrap_err();
        assert!(error.to_string().contains("1048576"), "{error}");
    }
}
