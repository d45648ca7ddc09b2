//! The etcd store against real etcd: broken connections, lost quorum, compaction.

mod admin;
mod faults;
mod proxy;
mod quorum;
mod server;
mod tls;
mod watches;

use basin_store::{Change, Commit, Op, Revision, Store, StoreError, Txn, Watch};
use bytes::Bytes;
use futures::StreamExt;
use server::PATIENCE;

fn put(key: impl Into<String>, value: impl AsRef<[u8]>) -> Op {
    let value = Bytes::copy_from_slice(value.as_ref());
    Op::Put { key: key.into(), value, lease: None }
}

async fn commit(store: &dyn Store, then: Vec<Op>) -> Result<Revision, StoreError> {
    match store.commit(Txn { when: vec![], then }).await? {
        Commit::Done(revision) => Ok(revision),
        Commit::Refused => panic!("refused without a condition"),
    }
}

/// The next moment of a watch, which has to come.
async fn next(watch: &mut Watch) -> Result<Vec<Change>, StoreError> {
    let item = tokio::time::timeout(PATIENCE, watch.next()).await;
    item.expect("the watch reports in time").expect("a watch does not end silently")
}

/// `key=value` of each change of the next moment.
async fn shown(watch: &mut Watch) -> Vec<String> {
    let show = |change: &Change| match change {
        Change::Put(entry) => format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value)),
        Change::Delete { key, .. } => format!("-{key}"),
    };
    next(watch).await.expect("the watch goes on").iter().map(show).collect()
}

/// Waits for what has to come about.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let reached = async {
        while !done().await {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, reached).await.is_ok(), "{what}");
}
