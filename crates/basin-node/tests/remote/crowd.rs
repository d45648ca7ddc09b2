//! All calls between two servers share one connection. Those that nobody reads must
//! not take it from the others.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::routing::get;
use axum::{Router, extract::State};
use basin_model::DatastoreId;
use basin_node::NodeApi;
use basin_node::remote::{Peer, Peers, Tls, full, router};
use basin_storage::UploadId;
use bytes::Bytes;
use futures::stream;
use hyper::Request;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpListener;
use uuid::Uuid;

use super::fake::Fake;
use super::support::*;

/// More than one connection's worth, were it shared out.
const STALLED: usize = 12;

/// How much of something has gone out so far.
type Sent = Arc<AtomicU64>;

/// Waits until nothing more goes out.
async fn stalled(sent: &Sent) {
    let (mut before, mut same) = (0, 0);
    while before == 0 || same < 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = sent.load(Ordering::SeqCst);
        same = if now == before { same + 1 } else { 0 };
        before = now;
    }
}

async fn endless(State(sent): State<Sent>) -> Body {
    Body::from_stream(stream::repeat_with(move || {
        sent.fetch_add(1, Ordering::SeqCst);
        Ok::<_, Infallible>(Bytes::from_static(&[7; 16 << 10]))
    }))
}

async fn begin_endless(peer: &Peer) -> hyper::Response<hyper::body::Incoming> {
    let request = Request::builder().uri("/endless").body(full("")).unwrap();
    within(peer.send(request)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_hold_up_no_others() {
    let cluster = Cluster::new();
    let (credentials, sent) = (cluster.credentials("b"), Sent::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = credentials.host();
    let routes = router(Arc::new(Fake::default()))
        .merge(Router::new().route("/endless", get(endless)).with_state(sent.clone()));
    let server = Server::with(listener, host, Tls::Cluster(credentials), routes);
    let peers = Peers::new(cluster.credentials("a"));
    let peer = peers.peer(&server.at());
    let mut unread = Vec::new();
    for _ in 0..STALLED {
        unread.push(begin_endless(&peer).await);
    }
    within(stalled(&sent)).await;
    within(node(&peers, &server).usage()).await.unwrap();
    drop(unread);
    server.stop().await;
}

/// A file without end, that notes how much was taken.
struct Endless(Sent);

impl AsyncRead for Endless {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let space = buf.remaining();
        buf.put_slice(&vec![7; space]);
        self.0.fetch_add(1, Ordering::SeqCst);
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_nobody_reads_hold_up_no_others() {
    let cluster = Cluster::new();
    let fake = Arc::new(Fake::default());
    fake.stuck.store(true, Ordering::SeqCst);
    let server = Server::start(cluster.credentials("b"), fake.clone()).await;
    let peers = Peers::new(cluster.credentials("a"));
    let sent = Sent::default();
    let mut uploads = tokio::task::JoinSet::new();
    for _ in 0..STALLED {
        let (remote, mut file) = (node(&peers, &server), Endless(sent.clone()));
        let (store, upload) = (DatastoreId::from_uuid(Uuid::now_v7()), UploadId(Uuid::now_v7()));
        uploads.spawn(async move { remote.receive_upload(store, upload, &mut file).await });
    }
    until(|| fake.calls.lock().unwrap().len() == STALLED).await;
    within(stalled(&sent)).await;
    within(node(&peers, &server).usage()).await.unwrap();
    uploads.shutdown().await;
    server.stop().await;
}
