//! A stream that remembers why it broke. HTTP/2 keeps of an error its text only, and
//! what a TLS alert says is what people need to know.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::trouble::Failure;

/// Where the first failure of a connection is noted.
pub type Noted = Arc<OnceLock<Failure>>;

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
            // The first one is the cause of the others.
            let _ = self.noted.set(Failure::of_io(error));
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
