//! Connections that break, stall and come back between the store and etcd.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use basin_store::etcd::{EtcdOptions, EtcdStore};
use basin_store::{Change, Compare, Revision, Store, StoreError, Txn};
use tokio::time::sleep;

use super::proxy::{Mode, Proxy};
use super::server::{Cluster, patient};
use super::{commit, next, put, shown, until};

async fn behind(proxies: &[&Proxy]) -> EtcdStore {
    let urls = proxies.iter().map(|p| p.url.clone()).collect();
    EtcdStore::connect(&patient(urls, None)).unwrap()
}

/// Cuts and stalls, in the middle of everything.
const BREAKS: [(Mode, u64); 8] = [
    (Mode::Cut, 30),
    (Mode::Cut, 5),
    (Mode::Stall, 100),
    (Mode::Cut, 200),
    (Mode::Stall, 6000),
    (Mode::Cut, 1),
    (Mode::Stall, 20),
    (Mode::Cut, 2000),
];

async fn break_again_and_again(proxy: &Proxy) {
    for (mode, millis) in BREAKS {
        sleep(Duration::from_millis(300)).await;
        proxy.set(mode);
        sleep(Duration::from_millis(millis)).await;
        proxy.set(Mode::Pass);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_over_a_broken_connection_loses_and_repeats_nothing() {
    let cluster = Cluster::start(1).await;
    let writer = Arc::new(cluster.patient_store());
    let proxy = Proxy::start(&cluster.members[0].client_url).await;
    let reader = behind(&[&proxy]).await;
    let start = reader.list("w/").await.unwrap().revision;
    let mut watch = reader.watch("w/", start).await.unwrap();

    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writing = tokio::spawn({
        let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
        async move {
            while !stop.load(Ordering::Relaxed) {
                let n = written.load(Ordering::Relaxed).to_string();
                // Two changes a revision, and one that the watch must not see.
                let ops = vec![put("w/a", &n), put("x/b", &n), put("w/c", &n)];
                commit(&*writer, ops).await.unwrap();
                written.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(2)).await;
            }
        }
    });
    break_again_and_again(&proxy).await;
    stop.store(true, Ordering::Relaxed);
    writing.await.unwrap();

    for n in 0..written.load(Ordering::Relaxed) {
        assert_eq!(shown(&mut watch).await, [format!("w/a={n}"), format!("w/c={n}")]);
    }
    commit(&cluster.patient_store(), vec![put("w/end", "")]).await.unwrap();
    assert_eq!(shown(&mut watch).await, ["w/end="]);
}

/// What was acknowledged is there; a commit whose answer was lost says that it does
/// not know; nothing waits for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_over_a_broken_connection_are_done_refused_or_unknown() {
    let cluster = Cluster::start(1).await;
    let proxy = Proxy::start(&cluster.members[0].client_url).await;
    let store = Arc::new(behind(&[&proxy]).await);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
            tokio::spawn(async move {
                let (mut done, mut unknown) = (BTreeSet::new(), BTreeSet::new());
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("k/{w}/{n:06}");
                    let when = vec![Compare::Absent(key.clone())];
                    match store.commit(Txn { when, then: vec![put(&key, "")] }).await {
                        Ok(basin_store::Commit::Done(_)) => done.insert(key),
                        // Never sent twice, so nobody else can have made it.
                        Ok(basin_store::Commit::Refused) => panic!("{key} is there already"),
                        Err(StoreError::Unavailable(_)) => unknown.insert(key),
                        Err(other) => panic!("{other}"),
                    };
                }
                (done, unknown)
            })
        })
        .collect();
    break_again_and_again(&proxy).await;
    stop.store(true, Ordering::Relaxed);
    let (mut done, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    for writer in writers {
        let (d, u) = writer.await.unwrap();
        done.extend(d);
        unknown.extend(u);
    }
    let listing = cluster.patient_store().list("k/").await.unwrap();
    let there: BTreeSet<String> = listing.entries.into_iter().map(|e| e.key).collect();
    assert!(!done.is_empty() && !unknown.is_empty(), "{} and {}", done.len(), unknown.len());
    let lost: Vec<_> = done.difference(&there).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let never: Vec<_> =
        there.iter().filter(|k| !done.contains(*k) && !unknown.contains(*k)).collect();
    assert!(never.is_empty(), "nobody wrote {never:?}");
}

/// Reads go on by another member while one is frozen or gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_endpoint_takes_over() {
    let cluster = Cluster::start(1).await;
    let target = &cluster.members[0].client_url;
    let (one, two) = (Proxy::start(target).await, Proxy::start(target).await);
    let store = behind(&[&one, &two]).await;
    let start = commit(&store, vec![put("a", "0")]).await.unwrap();
    let mut watch = store.watch("a", start).await.unwrap();
    assert_eq!(store.endpoint().as_deref(), Some(one.url.as_str()));
    for (n, (from, to, mode)) in
        [(&one, &two, Mode::Cut), (&two, &one, Mode::Stall)].iter().enumerate()
    {
        from.set(*mode);
        until("the other endpoint is used", async || store.endpoint() == Some(to.url.clone()))
            .await;
        store.get("a").await.unwrap();
        commit(&store, vec![put("a", n.to_string())]).await.unwrap();
        assert_eq!(shown(&mut watch).await, [format!("a={n}")]);
        from.set(Mode::Pass);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_store_notices_that_etcd_is_gone() {
    let cluster = Cluster::start(1).await;
    let proxy = Proxy::start(&cluster.members[0].client_url).await;
    // Part of it is to wait in vain, but not for a minute.
    let patience = Duration::from_secs(15);
    let options = EtcdOptions { answer_within: patience, ..patient(vec![proxy.url.clone()], None) };
    let store = EtcdStore::connect(&options).unwrap();
    let mut contact = store.contact();
    let first = contact.wait_for(|c| c.answered.is_some() && c.lost.is_none());
    tokio::time::timeout(super::PATIENCE, first).await.expect("the first answer wakes").unwrap();
    let mut watch = store.watch("a", Revision(1)).await.unwrap();
    proxy.set(Mode::Stall);
    let lost = tokio::time::timeout(super::PATIENCE, contact.wait_for(|c| c.lost.is_some())).await;
    let answered = lost.expect("noticed in time").unwrap().answered.unwrap();
    let refused = store.get("a").await;
    assert!(
        matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains(&proxy.url)),
        "{refused:?}"
    );
    proxy.set(Mode::Pass);
    let again = contact.wait_for(|c| c.lost.is_none() && c.answered > Some(answered));
    tokio::time::timeout(super::PATIENCE, again).await.expect("the return wakes").unwrap();
    commit(&cluster.patient_store(), vec![put("a", "1")]).await.unwrap();
    assert_eq!(shown(&mut watch).await, ["a=1"]);
}

/// The endpoints are replaced while a watch runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_can_be_replaced() {
    let cluster = Cluster::start(1).await;
    let one = Proxy::start(&cluster.members[0].client_url).await;
    let store = behind(&[&one]).await;
    let mut watch = store.watch("a", Revision(1)).await.unwrap();
    commit(&store, vec![put("a", "1")]).await.unwrap();
    assert_eq!(shown(&mut watch).await, ["a=1"]);
    let two = Proxy::start(&cluster.members[0].client_url).await;
    store.set_endpoints(std::slice::from_ref(&two.url), None).unwrap();
    until("the new endpoint is used", async || store.endpoint() == Some(two.url.clone())).await;
    one.set(Mode::Cut);
    commit(&store, vec![put("a", "2")]).await.unwrap();
    // From the proxy to the member itself, as the members say.
    let members = store.follow_members("").await.unwrap();
    assert_eq!(members.len(), 1);
    let member = cluster.members[0].client_url.clone();
    until("the member is used", async || store.endpoint().as_ref() == Some(&member)).await;
    two.set(Mode::Cut);
    commit(&store, vec![put("a", "3")]).await.unwrap();
    assert_eq!(shown(&mut watch).await, ["a=2"]);
    assert_eq!(shown(&mut watch).await, ["a=3"]);
    assert!(matches!(store.set_endpoints(&[], None), Err(StoreError::Invalid(_))));
}

/// A lease is granted once, however often it had to be asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_work_over_a_broken_connection() {
    let cluster = Cluster::start(1).await;
    let proxy = Proxy::start(&cluster.members[0].client_url).await;
    let store = behind(&[&proxy]).await;
    let lease = store.grant(Duration::from_secs(600)).await.unwrap();
    proxy.set(Mode::Cut);
    let resumed = async {
        sleep(Duration::from_millis(500)).await;
        proxy.set(Mode::Pass);
    };
    let (renewed, ()) = tokio::join!(store.renew(lease), resumed);
    renewed.unwrap();
    let op = basin_store::Op::Put { key: "l".into(), value: "".into(), lease: Some(lease) };
    let start = commit(&store, vec![op]).await.unwrap();
    let mut watch = store.watch("l", start).await.unwrap();
    store.revoke(lease).await.unwrap();
    let changes = next(&mut watch).await.unwrap();
    assert!(matches!(&changes[..], [Change::Delete { key, .. }] if key == "l"));
    assert!(matches!(store.renew(lease).await, Err(StoreError::LeaseGone(id)) if id == lease));
}
