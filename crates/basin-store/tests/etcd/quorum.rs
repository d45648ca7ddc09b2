//! Three members: one dies, two die, they come back.

use std::time::Duration;

use basin_store::{Revision, Store, StoreError};
use futures::{FutureExt, StreamExt};
use nix::sys::signal::Signal;

use super::server::{Cluster, PATIENCE};
use super::{commit, put, shown, until};

/// Commits until it is done: during an election it may be refused.
async fn commit_at_last(store: &dyn Store, key: &str, value: &str) {
    until("a commit is taken", async || match commit(store, vec![put(key, value)]).await {
        Ok(_) => true,
        Err(StoreError::Unavailable(_)) => false,
        Err(other) => panic!("{other}"),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_promised_and_with_it_all_goes_on() {
    let mut cluster = Cluster::start(3).await;
    let store = cluster.store();
    let start = commit(&store, vec![put("a", "0")]).await.unwrap();
    let mut watch = store.watch("a", start).await.unwrap();
    let lease = store.grant(Duration::from_secs(3600)).await.unwrap();
    cluster.members[1].kill();
    cluster.members[2].kill();

    let asked = async {
        let read = store.get("a").await.map(drop);
        let listed = store.list("a").await.map(drop);
        let written = commit(&store, vec![put("a", "lost")]).await.map(drop);
        let renewed = store.renew(lease).await;
        let granted = store.grant(Duration::from_secs(60)).await.map(drop);
        let watched = store.watch("b", start).await.map(drop);
        [read, listed, written, renewed, granted, watched]
    };
    let answers = tokio::time::timeout(PATIENCE, asked).await.expect("nothing hangs");
    for answer in answers {
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    }
    let mut contact = store.contact();
    contact.wait_for(|c| c.lost.is_some()).await.unwrap();
    assert!(watch.next().now_or_never().is_none(), "a watch waits");

    cluster.members[1].start();
    contact.wait_for(|c| c.lost.is_none()).await.unwrap();
    commit_at_last(&store, "a", "1").await;
    // The commit that failed may have been in the member's log, and so come about.
    let mut seen = shown(&mut watch).await;
    if seen == ["a=lost"] {
        seen = shown(&mut watch).await;
    }
    assert_eq!(seen, ["a=1"]);
    store.renew(lease).await.unwrap();
}

/// The member in use is frozen, as by a machine that hangs: the others elect a leader,
/// and the store finds them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_leader_is_left() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let mut urls = cluster.urls();
    urls.swap(0, leader);
    let options = basin_store::etcd::EtcdOptions::new(urls, None);
    let store = basin_store::EtcdStore::connect(&options).unwrap();
    let mut watch = store.watch("a", Revision(1)).await.unwrap();
    until("the leader is used", async || {
        store.endpoint().as_ref() == Some(&cluster.members[leader].client_url)
    })
    .await;
    cluster.members[leader].signal(Signal::SIGSTOP);
    commit_at_last(&store, "b", "1").await;
    commit_at_last(&cluster.store(), "a", "1").await;
    assert_eq!(shown(&mut watch).await, ["a=1"]);
    cluster.members[leader].signal(Signal::SIGCONT);
}

/// Everything is killed and comes back: what was committed is there, watches go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_was_killed_goes_on() {
    let mut cluster = Cluster::start(3).await;
    let store = cluster.store();
    let start = commit(&store, vec![put("a", "0")]).await.unwrap();
    let mut watch = store.watch("a", start).await.unwrap();
    commit(&store, vec![put("a", "1")]).await.unwrap();
    cluster.members.iter_mut().for_each(|member| member.kill());
    cluster.members.iter_mut().for_each(|member| member.start());
    cluster.wait_until_it_answers().await;
    commit_at_last(&store, "a", "2").await;
    assert_eq!(shown(&mut watch).await, ["a=1"]);
    assert_eq!(shown(&mut watch).await, ["a=2"]);
}
