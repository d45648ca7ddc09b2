use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::*;
use crate::store::{LeaseId, Listing, Watch};
use crate::{MemStore, SqliteStore};

fn all(_: &str) -> bool {
    true
}

/// Records of all sizes, more than one transaction takes in number and in bytes.
async fn filled(store: &dyn Store) {
    for n in 0..500 {
        let value = vec![b'x'; if n % 100 == 0 { 600_000 } else { n }];
        put(store, &format!("{ROOT}vm/{n:03}"), value).await;
    }
    put(store, "/other/key", b"not Basin's".to_vec()).await;
}

async fn put(store: &dyn Store, key: &str, value: Vec<u8>) {
    let op = Op::Put { key: key.to_owned(), value: value.into(), lease: None };
    store.commit(Txn { when: vec![], then: vec![op] }).await.unwrap();
}

async fn content(store: &dyn Store) -> Vec<(String, Bytes)> {
    let entries = store.list("").await.unwrap().entries;
    entries.into_iter().map(|e| (e.key, e.value)).collect()
}

/// Takes so many commits, then fails like a store that has lost its quorum. Every
/// second failure is of a commit that was made all the same.
struct Failing<S> {
    store: Arc<S>,
    left: AtomicUsize,
    made: bool,
}

#[async_trait]
impl<S: Store> Store for Failing<S> {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store.list(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.left.store(0, Ordering::Relaxed);
            if self.made {
                self.store.commit(txn).await?;
            }
            return Err(StoreError::Unavailable("cut off".to_owned()));
        }
        self.store.commit(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, after).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant(ttl).await
    }

    async fn renew(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.renew(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }
}

/// Cut off at every commit, with and without effect, and begun anew each time.
async fn survives_every_cut<S: Store>(from: &dyn Store, fresh: impl AsyncFn() -> Arc<S>) {
    let source: Vec<_> =
        content(from).await.into_iter().filter(|(key, _)| key.starts_with(ROOT)).collect();
    for made in [false, true] {
        let store = fresh().await;
        let mut cuts = 0;
        // Each try gets one commit further.
        let copied = loop {
            let left = AtomicUsize::new(1);
            let failing = Failing { store: Arc::clone(&store), left, made };
            match copy_all(from, &failing, &all).await {
                Ok(copied) => break copied,
                Err(StoreError::Unavailable(why)) if why == "cut off" => cuts += 1,
                Err(other) => panic!("{other}"),
            }
            assert!(cuts < 1000, "no progress");
        };
        assert!(cuts >= 3, "{cuts} cuts");
        assert_eq!(content(&*store).await, source);
        let bytes = source.iter().map(|(k, v)| k.len() + v.len()).sum();
        assert_eq!((copied.entries, copied.bytes), (source.len(), bytes));
        // Once more changes nothing.
        let before = store.list("").await.unwrap().revision;
        assert_eq!(copy_all(from, &*store, &all).await.unwrap(), copied);
        assert_eq!(store.list("").await.unwrap().revision, before);
    }
}

#[tokio::test]
async fn a_copy_survives_every_cut() {
    let from = MemStore::new();
    filled(&from).await;
    survives_every_cut(&from, async || Arc::new(MemStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_servers_store_enters_etcd() {
    use crate::etcd_server::Cluster;
    let dir = tempfile::tempdir().unwrap();
    let from = SqliteStore::open(&dir.path().join("store.sqlite")).unwrap();
    filled(&from).await;
    let clusters = std::sync::Mutex::new(Vec::new());
    survives_every_cut(&from, async || {
        let cluster = Cluster::start(1).await;
        let store = Arc::new(cluster.patient_store());
        clusters.lock().unwrap().push(cluster);
        store
    })
    .await;
}

#[tokio::test]
async fn a_source_that_changed_between_the_tries_is_copied_as_it_is_now() {
    let (from, to) = (MemStore::new(), Arc::new(MemStore::new()));
    filled(&from).await;
    // The mark and the first batch.
    let failing = Failing { store: Arc::clone(&to), left: AtomicUsize::new(2), made: true };
    copy_all(&from, &failing, &all).await.unwrap_err();
    put(&from, &format!("{ROOT}vm/000"), b"changed".to_vec()).await;
    let gone = Op::Delete { key: format!("{ROOT}vm/001") };
    from.commit(Txn { when: vec![], then: vec![gone] }).await.unwrap();
    copy_all(&from, &*to, &all).await.unwrap();
    let expect: Vec<_> =
        content(&from).await.into_iter().filter(|(key, _)| key.starts_with(ROOT)).collect();
    assert_eq!(content(&*to).await, expect);
}

#[tokio::test]
async fn what_is_not_wanted_stays_behind() {
    let (from, to) = (MemStore::new(), MemStore::new());
    put(&from, &format!("{ROOT}vm/a"), b"1".to_vec()).await;
    put(&from, &format!("{ROOT}leader"), b"2".to_vec()).await;
    let copied = copy_all(&from, &to, &|key| !key.ends_with("leader")).await.unwrap();
    assert_eq!(copied.entries, 1);
    assert_eq!(content(&to).await, [(format!("{ROOT}vm/a"), Bytes::from("1"))]);
}

#[tokio::test]
async fn somebody_elses_records_are_not_touched() {
    let (from, to) = (MemStore::new(), MemStore::new());
    filled(&from).await;
    put(&to, &format!("{ROOT}vm/theirs"), b"1".to_vec()).await;
    let before = content(&to).await;
    let error = copy_all(&from, &to, &all).await.unwrap_err();
    assert!(matches!(&error, StoreError::Invalid(why) if why.contains("1 records")), "{error}");
    assert_eq!(content(&to).await, before);
}
