//! A console stream that counts as open until it is dropped.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Says whether a machine's serial line is taken. QEMU serves one connection and lets
/// the next wait in silence, so the second is refused here instead.
#[derive(Debug, Default)]
pub(crate) struct ConsoleLock(Mutex<Weak<()>>);

impl ConsoleLock {
    /// `None` while an earlier stream is still open.
    pub(crate) fn take(&self) -> Option<ConsoleGuard> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.strong_count() > 0 {
            return None;
        }
        let guard = Arc::new(());
        *held = Arc::downgrade(&guard);
        Some(ConsoleGuard(guard))
    }
}

/// Holds a [`ConsoleLock`].
#[derive(Debug)]
pub(crate) struct ConsoleGuard(#[allow(dead_code)] Arc<()>);

/// A stream that frees its [`ConsoleLock`] when dropped.
pub(crate) struct Guarded<S> {
    pub(crate) stream: S,
    pub(crate) _guard: ConsoleGuard,
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
