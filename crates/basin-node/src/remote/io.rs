//! A stream that remembers why it broke. HTTP/2 keeps of an error its text only, and
//! what a TLS alert says is what people need to know.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::trouble::Failure;

/// The requests of a connection hear that it broke before its task has told why.
const TELL_WITHIN: Duration = Duration::from_millis(500);

/// Where the first failure of a connection is noted.
pub type Noted = Arc<Note>;

#[derive(Default)]
pub struct Note {
    failure: OnceLock<Failure>,
    told: Notify,
}

impl Note {
    /// The first failure is the cause of the others.
    pub fn set(&self, failure: Failure) {
        let _ = self.failure.set(failure);
        self.told.notify_waiters();
    }

    /// Why the connection broke; None if nothing but one request did.
    pub async fn cause(&self) -> Option<Failure> {
        let told = self.told.notified();
        if self.failure.get().is_none() {
            let _ = tokio::time::timeout(TELL_WITHIN, told).await;
        }
        self.failure.get().cloned()
    }
}

pub struct Noting<S> {
    stream: S,
    noted: Noted,
}

impl<S> Noting<S> {
    pub fn new(stream: S, noted: Noted) -> Noting<S> {
        Noting { stream, noted }
    }

    fn note<T>(&self, result: &io::Result<T>) {
        if let Err(error) = result {
            self.noted.set(Failure::of_io(error));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Noting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(result) = &polled {
            self.note(result);
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Noting<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(result @ Err(_)) = &polled {
            // What the other end said before it closed tells more than that it did.
            let mut space = [0; 1024];
            let mut space = ReadBuf::new(&mut space);
            if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, &mut space) {
                self.note(&read);
            }
            self.note(result);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
