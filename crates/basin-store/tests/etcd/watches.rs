//! Watches and lists that are long, slow, or overtaken by a compaction.

use std::sync::Arc;

use basin_store::etcd::EtcdStore;
use basin_store::{Change, Op, Store, StoreError};

use super::proxy::{Mode, Proxy};
use super::server::{Cluster, patient};
use super::{commit, next, put, shown};

/// etcd splits what is longer than 1.5 MiB anywhere, also within a revision.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_in_fragments_is_one_moment() {
    let cluster = Cluster::start(1).await;
    let store = cluster.patient_store();
    let start = store.list("f/").await.unwrap().revision;
    let value = vec![b'x'; 9000];
    for _ in 0..8 {
        let ops = (0..100).map(|n| put(format!("f/{n:03}"), &value)).collect();
        commit(&store, ops).await.unwrap();
    }
    let mut watch = store.watch("f/", start).await.unwrap();
    for _ in 0..8 {
        let changes = next(&mut watch).await.unwrap();
        let keys: Vec<&str> = changes.iter().map(Change::key).collect();
        let expect: Vec<String> = (0..100).map(|n| format!("f/{n:03}")).collect();
        assert_eq!(keys, expect);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_everything() {
    let cluster = Cluster::start(1).await;
    let store = Arc::new(cluster.patient_store());
    let start = store.list("s/").await.unwrap().revision;
    let mut watch = store.watch("s/", start).await.unwrap();
    const WRITES: usize = 1500;
    let writers: Vec<_> = (0..10)
        .map(|w| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0..WRITES / 10 {
                    commit(&*store, vec![put(format!("s/{w}"), n.to_string())]).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut seen = [0usize; 10];
    for _ in 0..WRITES {
        let change = shown(&mut watch).await.remove(0);
        let (writer, value) = change.strip_prefix("s/").unwrap().split_once('=').unwrap();
        let writer: usize = writer.parse().unwrap();
        assert_eq!(value, seen[writer].to_string());
        seen[writer] += 1;
    }
}

/// The reader stands still, more is written than the store keeps for it, and the rest
/// is compacted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_a_compaction_overtook_is_told() {
    let cluster = Cluster::start(1).await;
    let store = cluster.patient_store();
    let start = store.list("s/").await.unwrap().revision;
    let mut watch = store.watch("s/", start).await.unwrap();
    let mut last = start;
    for n in 0..1200 {
        last = commit(&store, vec![put("s/a", n.to_string())]).await.unwrap();
    }
    store.compact(last).await.unwrap();
    let mut seen = 0;
    let error = loop {
        match next(&mut watch).await {
            Ok(changes) => {
                let expect = seen.to_string();
                assert!(matches!(&changes[..], [Change::Put(e)] if e.value == expect.as_bytes()));
                seen += 1;
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Compacted(_)), "{error} after {seen}");
    assert!(seen < 1200);
    let listing = store.list("s/").await.unwrap();
    assert_eq!(&listing.entries[0].value[..], b"1199");
}

/// A compaction passes while the connection is broken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_during_a_cut_is_told_only_to_who_missed_something() {
    let cluster = Cluster::start(1).await;
    let direct = cluster.patient_store();
    let proxy = Proxy::start(&cluster.members[0].client_url).await;
    let store = EtcdStore::connect(&patient(vec![proxy.url.clone()], None)).unwrap();
    let first = commit(&direct, vec![put("q/a", "1"), put("r/a", "1")]).await.unwrap();
    let mut missed = store.watch("q/", first).await.unwrap();
    let mut sure = store.watch("r/", first).await.unwrap();
    let second = commit(&direct, vec![put("q/a", "2"), put("r/a", "2")]).await.unwrap();
    assert_eq!(shown(&mut missed).await, ["q/a=2"]);
    assert_eq!(shown(&mut sure).await, ["r/a=2"]);

    // What was compacted is what both have seen.
    proxy.set(Mode::Cut);
    direct.compact(second).await.unwrap();
    commit(&direct, vec![Op::Delete { key: "q/a".into() }]).await.unwrap();
    proxy.set(Mode::Pass);
    assert_eq!(shown(&mut missed).await, ["-q/a"]);

    // Now it is more.
    proxy.set(Mode::Cut);
    commit(&direct, vec![put("q/a", "3")]).await.unwrap();
    let last = commit(&direct, vec![put("q/a", "4"), put("r/a", "4")]).await.unwrap();
    direct.compact(last).await.unwrap();
    proxy.set(Mode::Pass);
    let error = next(&mut missed).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted(_)), "{error}");
    let error = next(&mut sure).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted(_)), "{error}");
}

/// Tens of thousands of entries, of one revision, while somebody changes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_is_of_one_revision() {
    let cluster = Cluster::start(1).await;
    let store = Arc::new(cluster.patient_store());
    const ENTRIES: usize = 20_000;
    for chunk in (0..ENTRIES).collect::<Vec<_>>().chunks(128) {
        let ops = chunk.iter().map(|n| put(format!("l/{n:06}"), [b'v'; 300])).collect();
        commit(&*store, ops).await.unwrap();
    }
    let (first, last) = ("l/000000".to_owned(), format!("l/{:06}", ENTRIES - 1));
    commit(&*store, vec![put(&first, ""), put(&last, "")]).await.unwrap();
    let changing = tokio::spawn({
        let (store, first, last) = (Arc::clone(&store), first.clone(), last.clone());
        async move {
            for n in 0u32.. {
                let n = n.to_string();
                // What becomes of it is not the point, and at the end etcd goes away.
                let _ = commit(&*store, vec![put(&first, &n), put(&last, &n)]).await;
            }
        }
    });
    for _ in 0..5 {
        let listing = store.list("l/").await.unwrap();
        assert_eq!(listing.entries.len(), ENTRIES);
        let (a, b) = (&listing.entries[0], &listing.entries[ENTRIES - 1]);
        assert_eq!((&a.key, &b.key), (&first, &last));
        assert_eq!((&a.value, a.modified), (&b.value, b.modified));
        assert!(listing.entries.windows(2).all(|w| w[0].key < w[1].key));
        assert!(listing.entries.iter().all(|e| e.modified <= listing.revision));
    }
    changing.abort();
}
