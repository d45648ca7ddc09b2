//! Bodies of requests to other servers: whole, or fed piece by piece.

use std::io;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tokio::sync::mpsc;

/// What a request to another server carries.
pub type PeerBody = UnsyncBoxBody<Bytes, axum::Error>;

/// A body that is there already.
pub fn full(bytes: impl Into<Bytes>) -> PeerBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The end that a body is fed from. Dropped without [`Feed::end`], the body breaks
/// off: the other end must not take a part for the whole.
pub struct Feed(mpsc::Sender<Option<Bytes>>);

/// Nobody reads the body any more.
#[derive(Debug)]
pub struct Unread;

impl Feed {
    pub async fn send(&self, bytes: Bytes) -> Result<(), Unread> {
        self.0.send(Some(bytes)).await.map_err(|_| Unread)
    }

    pub async fn end(self) {
        // Nobody reading is as good as having read all.
        let _ = self.0.send(None).await;
    }
}

pub fn feed() -> (Feed, PeerBody) {
    let (sender, receiver) = mpsc::channel(4);
    let pieces = stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver: mpsc::Receiver<Option<Bytes>> = receiver?;
        match receiver.recv().await {
            Some(Some(bytes)) => Some((Ok(Frame::data(bytes)), Some(receiver))),
            Some(None) => None,
            None => Some((Err(axum::Error::new(io::Error::other("given up"))), None)),
        }
    });
    (Feed(sender), StreamBody::new(pieces).boxed_unsync())
}
