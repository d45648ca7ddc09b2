//! One watch below, many above, and readers that the shared one is too far on for.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::*;
use crate::MemStore;
use crate::store::Op;

/// Counts the watches that are asked for.
struct Counted(Arc<MemStore>, AtomicUsize);

#[async_trait]
impl Store for Counted {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.0.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.0.list(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        self.0.commit(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.watch(prefix, after).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.0.grant(ttl).await
    }

    async fn renew(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.renew(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.revoke(lease).await
    }
}

struct Bench {
    below: Arc<Counted>,
    store: Fanout,
}

impl Bench {
    fn new() -> Bench {
        let below = Arc::new(Counted(Arc::new(MemStore::new()), AtomicUsize::new(0)));
        Bench { store: Fanout::new(below.clone(), "/b/"), below }
    }

    async fn put(&self, key: &str) -> Revision {
        let op = Op::Put { key: key.to_owned(), value: Bytes::from_static(b"v"), lease: None };
        match self.store.commit(Txn { when: vec![], then: vec![op] }).await.unwrap() {
            Commit::Done(revision) => revision,
            Commit::Refused => unreachable!("there is no condition"),
        }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Watch {
        self.store.watch(prefix, after).await.unwrap()
    }

    fn watches(&self) -> usize {
        self.below.1.load(Ordering::SeqCst)
    }
}

async fn keys(watch: &mut Watch) -> Vec<String> {
    let item = tokio::time::timeout(Duration::from_secs(30), watch.next()).await;
    let changes = item.expect("in time").expect("not silently").expect("it goes on");
    changes.iter().map(|change| change.key().to_owned()).collect()
}

#[tokio::test]
async fn many_who_watch_are_told_by_one_watch() {
    let bench = Bench::new();
    let start = bench.put("/b/0").await;
    let mut all = bench.watch("/b/", start).await;
    let mut some = bench.watch("/b/x/", start).await;
    bench.put("/b/y/1").await;
    let second = bench.put("/b/x/2").await;
    assert_eq!(keys(&mut all).await, ["/b/y/1"]);
    assert_eq!(keys(&mut all).await, ["/b/x/2"]);
    assert_eq!(keys(&mut some).await, ["/b/x/2"]);
    // Who comes later begins where it says, not where the others are.
    let (mut late, mut later) = (bench.watch("/b/", start).await, bench.watch("/b/", second).await);
    assert_eq!(keys(&mut late).await, ["/b/y/1"]);
    bench.put("/b/x/3").await;
    assert_eq!(keys(&mut later).await, ["/b/x/3"]);
    assert_eq!(bench.watches(), 1);
    // Other keys are not its business.
    let mut elsewhere = bench.watch("/c/", start).await;
    bench.put("/c/1").await;
    assert_eq!(keys(&mut elsewhere).await, ["/c/1"]);
    assert_eq!(bench.watches(), 2);
}

#[tokio::test]
async fn whoever_is_too_slow_or_too_early_loses_nothing() {
    let bench = Bench::new();
    let first = bench.put("/b/0").await;
    let second = bench.put("/b/1").await;
    let mut slow = bench.watch("/b/", second).await;
    let mut early = bench.watch("/b/", first).await;
    assert_eq!(keys(&mut early).await, ["/b/1"]);
    assert_eq!(bench.watches(), 2, "the shared one began later");
    let mut quick = bench.watch("/b/", second).await;
    for n in 0..=MOMENTS + 1 {
        let key = format!("/b/{}", n + 2);
        bench.put(&key).await;
        assert_eq!(keys(&mut quick).await, [key]);
    }
    for n in 0..=MOMENTS + 1 {
        assert_eq!(keys(&mut slow).await, [format!("/b/{}", n + 2)]);
    }
    assert_eq!(bench.watches(), 3);
}

#[tokio::test]
async fn when_its_watch_breaks_all_hear_of_it_and_the_next_one_begins_anew() {
    let below = Arc::new(Counted(Arc::new(MemStore::new()), AtomicUsize::new(0)));
    let bench = Bench { store: Fanout::new(below.clone(), "/b/"), below: below.clone() };
    let start = bench.put("/b/0").await;
    let (mut one, mut two) = (bench.watch("/b/", start).await, bench.watch("/b/0", start).await);
    {
        let told = bench.store.told(start).await.unwrap().unwrap();
        assert!(told.take(Some(Err(StoreError::Compacted(start)))));
    }
    for watch in [&mut one, &mut two] {
        let item = watch.next().await.expect("not silently");
        assert!(matches!(item, Err(StoreError::Compacted(_))), "{item:?}");
        assert!(watch.next().await.is_none());
    }
    let mut anew = bench.watch("/b/", start).await;
    bench.put("/b/1").await;
    assert_eq!(keys(&mut anew).await, ["/b/1"]);
    assert_eq!(bench.watches(), 2);
}

#[tokio::test]
async fn nobody_watches_for_nobody() {
    let bench = Bench::new();
    let watch = bench.watch("/b/", Revision(0)).await;
    let told = Arc::downgrade(&bench.store.told(Revision(0)).await.unwrap().unwrap());
    drop(bench);
    assert!(told.upgrade().is_some(), "somebody still reads");
    drop(watch);
    let gone = async {
        while told.upgrade().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("it goes with its readers");
}
