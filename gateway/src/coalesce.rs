//! Gathers the small writes of one turn into one.
//!
//! A WebSocket hands over every frame by itself; a system call (and a TLS record) for each is most
//! of what a small frame costs. So frames are gathered here and written at the flush, which the
//! connection does once for all that is ready. Nothing waits for a timer: with one frame ready it
//! is one write at once, as before. Idle, this holds no heap memory.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes gathered before they are written without a flush: one TLS record, and about what the
/// kernel takes from one connection at a time.
pub(crate) const GATHERED_BYTES_MAX: usize = 16 * 1024;

/// A stream whose writes go out at the flush, or when enough of them are gathered.
#[derive(Debug)]
pub(crate) struct Coalesced<S> {
    inner: S,
    gathered: Vec<u8>,
    /// How much of `gathered` is written.
    written: usize,
}

impl<S> Coalesced<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self {
            inner,
            gathered: Vec::new(),
            written: 0,
        }
    }
}

impl<S: AsyncWrite + Unpin> Coalesced<S> {
    /// Writes what is gathered and gives its memory back.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let rest = &self.gathered[self.written..];
            match ready!(Pin::new(&mut self.inner).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        self.gathered = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coalesced<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.gathered.len() + bytes.len() > GATHERED_BYTES_MAX {
            ready!(this.poll_drain(cx))?;
            if bytes.len() > GATHERED_BYTES_MAX {
                return Pin::new(&mut this.inner).poll_write(cx, bytes);
            }
        }
        this.gathered.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Coalesced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buf)
    }
}

#[cfg(test)]
impl<S> Coalesced<S> {
    pub(crate) fn inner_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Heap memory held now, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.gathered.capacity()
    }
}
