use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use basin_model::VmId;
use basin_node::remote::{PeerAddress, Peers, RemoteNode};
use basin_node::{Chain, NodeApi, NodeError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::fake::Fake;
use super::methods::volume;
use super::support::*;

/// A server behind a link, and a node that reaches it over that.
struct Far {
    fake: Arc<Fake>,
    server: Server,
    link: Link,
    peers: Peers,
    remote: RemoteNode,
}

async fn far() -> Far {
    let cluster = Cluster::new();
    let fake = Arc::new(Fake::default());
    *fake.endless.lock().unwrap() = Some(Duration::ZERO);
    let server = Server::start(cluster.credentials("b"), fake.clone()).await;
    let link = Link::to(server.address).await;
    let peers = Peers::new(cluster.credentials("a"));
    let remote = RemoteNode::new(peers.peer(&link.at(&server)));
    Far { fake, server, link, peers, remote }
}

impl Far {
    /// A call that goes on until something happens.
    async fn long_call(&self) -> tokio::task::JoinHandle<Result<(), NodeError>> {
        let remote = self.remote.clone();
        let call = tokio::spawn(async move {
            let (chain, cancel) = (Chain::default(), CancellationToken::new());
            remote.create_volume(&volume(), &chain, Arc::new(|_, _| {}), cancel).await
        });
        until(|| self.fake.running.load(Ordering::SeqCst) == 1).await;
        call
    }

    async fn idle(&self) {
        until(|| self.fake.running.load(Ordering::SeqCst) == 0).await;
    }
}

fn is_lost(error: NodeError) {
    assert_eq!(error.0.code, "host-unreachable", "{error:?}");
    assert!(error.0.detail.contains("srv2"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listens() {
    let cluster = Cluster::new();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = PeerAddress {
        host: subject("b").host,
        name: "srv2".into(),
        address: free.local_addr().unwrap(),
    };
    drop(free);
    let remote = RemoteNode::new(Peers::new(cluster.credentials("a")).peer(&at));
    let problem = within(remote.usage()).await.unwrap_err().0;
    assert_eq!(problem.code, "host-unreachable");
    for word in ["srv2", &at.address.to_string(), "nothing listens there"] {
        assert!(problem.detail.contains(word), "{problem:?}");
    }
    assert!(problem.advice.contains("systemctl status basin"), "{problem:?}");
}

/// What accepts and then says nothing; all who wait for it hear of it together.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_is_given_up_once_for_all_that_wait() {
    let cluster = Cluster::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let at = PeerAddress { host: subject("b").host, name: "srv2".into(), address };
    let peers = Peers::new(cluster.credentials("a"));
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let remote = RemoteNode::new(peers.peer(&at));
            tokio::spawn(async move { remote.usage().await })
        })
        .collect();
    // One after the other they would take 150 seconds, which `within` does not wait.
    for call in calls {
        let problem = within(call).await.unwrap().unwrap_err().0;
        assert!(problem.detail.contains("does not answer within 3 seconds"), "{problem:?}");
    }
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_cut_ends_calls_on_both_ends_and_the_next_call_works() {
    let far = far().await;
    let call = far.long_call().await;
    far.link.cut();
    is_lost(within(call).await.unwrap().unwrap_err());
    far.idle().await;
    within(far.remote.usage()).await.unwrap();
    far.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_freezes_is_noticed_and_comes_back() {
    let far = far().await;
    let call = far.long_call().await;
    let vm = VmId::from_uuid(Uuid::now_v7());
    let mut console = within(far.remote.console(vm)).await.unwrap();
    far.link.freeze();
    let error = within(call).await.unwrap().unwrap_err();
    assert!(error.0.detail.contains("stopped answering"), "{error:?}");
    is_lost(error);
    let words = within(console.output.recv()).await.unwrap();
    let words = String::from_utf8_lossy(&words);
    assert!(words.contains("the console broke off") && words.contains("srv2"), "{words}");
    assert_eq!(within(console.output.recv()).await, None);
    far.link.mend();
    within(far.remote.usage()).await.unwrap();
    // The other end gives up what it does for nobody.
    far.idle().await;
    far.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_restarts_is_found_again_at_the_same_place() {
    let cluster = Cluster::new();
    let credentials = cluster.credentials("b");
    let fake = Arc::new(Fake::default());
    let server = Server::start(credentials.clone(), fake.clone()).await;
    let (peers, address) = (Peers::new(cluster.credentials("a")), server.address);
    let remote = node(&peers, &server);
    within(remote.usage()).await.unwrap();
    server.stop().await;
    is_lost(within(remote.usage()).await.unwrap_err());
    let listener = TcpListener::bind(address).await.unwrap();
    let server = Server::on(listener, credentials, fake);
    within(remote.usage()).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_moved_is_asked_where_it_is_now() {
    let far = far().await;
    within(far.remote.usage()).await.unwrap();
    let moved = RemoteNode::new(far.peers.peer(&far.server.at()));
    far.link.freeze();
    within(moved.usage()).await.unwrap();
    far.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stops_ends_what_others_do_there() {
    let far = far().await;
    let call = far.long_call().await;
    far.server.stop().await;
    is_lost(within(call).await.unwrap().unwrap_err());
}
