use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use basin_model::{Bytes, DatastoreId, VmId};
use basin_node::remote::Peers;
use basin_node::{Chain, NodeApi};
use basin_storage::{Progress, UploadId};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::fake::{Fake, cancelled, content};
use super::methods::{import, volume};
use super::support::*;

type Told = Arc<Mutex<Vec<(Bytes, Option<Bytes>)>>>;

fn teller() -> (Progress, Told) {
    let told = Told::default();
    let (note, seen) = (told.clone(), told);
    (Arc::new(move |done, total| note.lock().unwrap().push((done, total))), seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_comes_before_the_answer() {
    let cluster = Cluster::new();
    let server = Server::start(cluster.credentials("b"), Arc::new(Fake::default())).await;
    let peers = Peers::new(cluster.credentials("a"));
    let remote = node(&peers, &server);
    let (progress, told) = teller();
    let (store, cancel) = (DatastoreId::from_uuid(Uuid::now_v7()), CancellationToken::new());
    let answer = within(remote.import_image(store, &import(), progress, cancel)).await.unwrap();
    assert_eq!(answer, content());
    assert_eq!(told.lock().unwrap().last(), Some(&(Bytes::mib(3), Some(Bytes::mib(3)))));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cancels_learns_how_it_ended_there() {
    let cluster = Cluster::new();
    let fake = Arc::new(Fake::default());
    *fake.endless.lock().unwrap() = Some(Duration::from_millis(300));
    let server = Server::start(cluster.credentials("b"), fake.clone()).await;
    let peers = Peers::new(cluster.credentials("a"));
    let remote = node(&peers, &server);
    let ((progress, told), cancel) = (teller(), CancellationToken::new());
    let (stop, seen) = (cancel.clone(), told.clone());
    tokio::spawn(async move {
        until(|| !seen.lock().unwrap().is_empty()).await;
        stop.cancel();
    });
    let (volume, chain) = (volume(), Chain::default());
    let answer = within(remote.create_volume(&volume, &chain, progress, cancel)).await;
    assert_eq!(answer.unwrap_err().0, cancelled(), "in the other server's words");
    assert_eq!(fake.running.load(Ordering::SeqCst), 0, "it has wound down there");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_before_it_begins() {
    let cluster = Cluster::new();
    let fake = Arc::new(Fake::default());
    *fake.endless.lock().unwrap() = Some(Duration::ZERO);
    let server = Server::start(cluster.credentials("b"), fake.clone()).await;
    let peers = Peers::new(cluster.credentials("a"));
    let cancel = CancellationToken::new();
    cancel.cancel();
    let (volume, chain, remote) = (volume(), Chain::default(), node(&peers, &server));
    let answer = within(remote.create_volume(&volume, &chain, teller().0, cancel)).await;
    assert_eq!(answer.unwrap_err().0, cancelled());
    server.stop().await;
}

/// The caller of a workflow step that is cut off asks again, or takes it back, while
/// the first call still winds down on the other server.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_is_cancelled_and_the_next_waits_for_its_end() {
    let cluster = Cluster::new();
    let fake = Arc::new(Fake::default());
    *fake.endless.lock().unwrap() = Some(Duration::from_millis(500));
    let server = Server::start(cluster.credentials("b"), fake.clone()).await;
    let peers = Peers::new(cluster.credentials("a"));
    let (remote, volume) = (node(&peers, &server), volume());
    let (first, of_first) = (remote.clone(), volume.clone());
    let call = tokio::spawn(async move {
        let (chain, cancel) = (Chain::default(), CancellationToken::new());
        first.create_volume(&of_first, &chain, teller().0, cancel).await
    });
    until(|| fake.running.load(Ordering::SeqCst) == 1).await;
    call.abort();
    within(remote.delete_volume(&volume)).await.unwrap();
    let (method, arguments) = fake.last();
    assert_eq!(method, "delete_volume");
    assert_eq!(arguments[1], 0, "nothing was under way when it was deleted");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn different_volumes_do_not_wait_for_each_other() {
    let cluster = Cluster::new();
    let fake = Arc::new(Fake::default());
    *fake.endless.lock().unwrap() = Some(Duration::ZERO);
    let server = Server::start(cluster.credentials("b"), fake.clone()).await;
    let peers = Peers::new(cluster.credentials("a"));
    let cancel = CancellationToken::new();
    let calls: Vec<_> = (0..300)
        .map(|_| {
            let (remote, cancel) = (node(&peers, &server), cancel.clone());
            tokio::spawn(async move {
                let (volume, chain) = (volume(), Chain::default());
                remote.create_volume(&volume, &chain, teller().0, cancel).await
            })
        })
        .collect();
    until(|| fake.running.load(Ordering::SeqCst) == 300).await;
    cancel.cancel();
    for call in calls {
        assert_eq!(within(call).await.unwrap().unwrap_err().0, cancelled());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_arrives_byte_for_byte() {
    let cluster = Cluster::new();
    let fake = Arc::new(Fake::default());
    let server = Server::start(cluster.credentials("b"), fake.clone()).await;
    let peers = Peers::new(cluster.credentials("a"));
    let bytes: Vec<u8> =
        (0..20_000_003_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (store, upload) = (DatastoreId::from_uuid(Uuid::now_v7()), UploadId(Uuid::now_v7()));
    let remote = node(&peers, &server);
    let size = within(remote.receive_upload(store, upload, &mut &bytes[..])).await.unwrap();
    assert_eq!(size, Bytes(20_000_003));
    assert!(*fake.uploaded.lock().unwrap() == bytes);
    let size = within(remote.receive_upload(store, upload, &mut &b""[..])).await.unwrap();
    assert_eq!(size, Bytes(0));
    server.stop().await;
}

/// Some bytes, then an error; or then nothing more.
struct Source {
    left: usize,
    then: Option<io::ErrorKind>,
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return match self.then {
                Some(kind) => Poll::Ready(Err(kind.into())),
                None => Poll::Pending,
            };
        }
        let n = self.left.min(buf.remaining());
        buf.put_slice(&vec![7; n]);
        self.left -= n;
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_is_not_taken_for_a_short_one() {
    let cluster = Cluster::new();
    let fake = Arc::new(Fake::default());
    let server = Server::start(cluster.credentials("b"), fake.clone()).await;
    let peers = Peers::new(cluster.credentials("a"));
    let (store, upload) = (DatastoreId::from_uuid(Uuid::now_v7()), UploadId(Uuid::now_v7()));
    let remote = node(&peers, &server);
    let mut broken = Source { left: 1 << 20, then: Some(io::ErrorKind::ConnectionReset) };
    let problem = within(remote.receive_upload(store, upload, &mut broken)).await.unwrap_err().0;
    assert!(problem.detail.contains("the upload broke off"), "{problem:?}");
    until(|| fake.broken.load(Ordering::SeqCst) == 1).await;

    let dropped = remote.clone();
    let call = tokio::spawn(async move {
        let mut stalled = Source { left: 1 << 20, then: None };
        dropped.receive_upload(store, upload, &mut stalled).await
    });
    until(|| fake.calls.lock().unwrap().len() == 2).await;
    call.abort();
    until(|| fake.broken.load(Ordering::SeqCst) == 2).await;
    assert!(fake.uploaded.lock().unwrap().is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_refused_ends_before_all_is_read() {
    let cluster = Cluster::new();
    let fake = Arc::new(Fake::default());
    *fake.refusal.lock().unwrap() = Some(cancelled());
    let server = Server::start(cluster.credentials("b"), fake.clone()).await;
    let peers = Peers::new(cluster.credentials("a"));
    let (store, upload) = (DatastoreId::from_uuid(Uuid::now_v7()), UploadId(Uuid::now_v7()));
    let remote = node(&peers, &server);
    // It never ends by itself.
    let mut stalled = Source { left: 4 << 20, then: None };
    let answer = within(remote.receive_upload(store, upload, &mut stalled)).await;
    assert_eq!(answer.unwrap_err().0, cancelled());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_goes_both_ways_until_the_vm_ends() {
    let cluster = Cluster::new();
    let fake = Arc::new(Fake::default());
    let server = Server::start(cluster.credentials("b"), fake.clone()).await;
    let peers = Peers::new(cluster.credentials("a"));
    let vm = VmId::from_uuid(Uuid::now_v7());
    let mut link = within(node(&peers, &server).console(vm)).await.unwrap();
    assert_eq!(link.history, b"what was before\n");
    for typed in ["l", "s\r", "ü"] {
        link.input.send(typed.into()).await.unwrap();
        let mut echo = Vec::new();
        while echo.len() < typed.len() {
            echo.extend(within(link.output.recv()).await.unwrap());
        }
        assert_eq!(echo, typed.as_bytes());
    }
    // Whoever only reads goes on reading.
    let say = fake.say.lock().unwrap().take().unwrap();
    let input = link.input;
    say.send(b"bye".to_vec()).await.unwrap();
    assert_eq!(within(link.output.recv()).await.unwrap(), b"bye");
    drop((say, input));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_that_nobody_reads_is_let_go_there() {
    let cluster = Cluster::new();
    let fake = Arc::new(Fake::default());
    let server = Server::start(cluster.credentials("b"), fake.clone()).await;
    let peers = Peers::new(cluster.credentials("a"));
    let vm = VmId::from_uuid(Uuid::now_v7());
    let link = within(node(&peers, &server).console(vm)).await.unwrap();
    let say = fake.say.lock().unwrap().clone().unwrap();
    assert!(!say.is_closed());
    drop(link);
    within(say.closed()).await;
    server.stop().await;
}
