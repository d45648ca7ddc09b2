//! What every store must do: one suite, run for each implementation.
//!
//! A crate with a store says how to make a fresh one, and the macro makes a test
//! of each case:
//!
//! ```ignore
//! async fn fresh() -> Subject { ... }
//! basin_store::conformance!(fresh);
//! ```
//!
//! The cases know nothing of the store but its trait. They live under the
//! subject's own prefix and compare revisions only by their order, so that many
//! subjects may share one etcd.

mod leases;
mod txns;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};

pub use leases::*;
pub use txns::*;
pub use watches::*;

use crate::store::{
    Change, Commit, Compare, Entry, LeaseId, Op, Revision, Store, StoreError, Txn, Watch,
};

/// A store under test.
pub struct Subject {
    pub store: Arc<dyn Store>,
    /// Nobody else has keys under it.
    pub prefix: String,
    /// Forgets the changes up to and including the revision.
    pub compact: Box<dyn Fn(Revision) -> BoxFuture<'static, ()> + Send + Sync>,
    /// What must live as long as the store: its directory, its server.
    pub keep: Box<dyn Send + Sync>,
}

/// A test for each case; `$fresh` is an async function that makes a [`Subject`].
#[macro_export]
macro_rules! conformance {
    ($fresh:path) => {
        $crate::conformance!($fresh =>
            a_key_is_born_changed_deleted_and_born_again
            a_refused_transaction_changes_nothing
            a_deleted_and_recreated_key_is_not_unchanged
            a_transaction_is_one_revision
            what_changes_nothing_makes_no_revision
            transactions_that_etcd_refuses_are_refused
            a_prefix_covers_exactly_its_keys
            values_are_bytes
            a_list_is_of_one_revision
            concurrent_compare_and_swap_counts_every_increment
            a_watch_replays_and_follows
            a_watch_sees_only_its_prefix
            a_watch_of_many_writers_loses_nothing
            a_watch_of_compacted_history_says_so
            many_watches_see_the_same
            a_revoked_lease_takes_its_keys_in_one_revision
            a_put_moves_or_frees_its_key
            a_lease_that_is_gone_is_refused
            a_lease_ends_unless_renewed
            a_renewed_lease_lives
        );
    };
    ($fresh:path => $($case:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            $crate::conformance::$case($fresh().await).await;
        }
    )*};
}

/// How long the suite waits for something that has to come, before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

impl Subject {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn put(&self, name: &str, value: &str) -> Op {
        self.put_leased(name, value, None)
    }

    fn put_leased(&self, name: &str, value: &str, lease: Option<LeaseId>) -> Op {
        Op::Put { key: self.key(name), value: Bytes::copy_from_slice(value.as_bytes()), lease }
    }

    fn delete(&self, name: &str) -> Op {
        Op::Delete { key: self.key(name) }
    }

    fn absent(&self, name: &str) -> Compare {
        Compare::Absent(self.key(name))
    }

    fn present(&self, name: &str) -> Compare {
        Compare::Present(self.key(name))
    }

    fn unchanged(&self, name: &str, revision: Revision) -> Compare {
        Compare::Unchanged(self.key(name), revision)
    }

    async fn commit(&self, when: Vec<Compare>, then: Vec<Op>) -> Commit {
        self.store.commit(Txn { when, then }).await.expect("the store takes the transaction")
    }

    /// Commits without a condition.
    async fn set(&self, then: Vec<Op>) -> Revision {
        match self.commit(vec![], then).await {
            Commit::Done(revision) => revision,
            Commit::Refused => panic!("refused without a condition"),
        }
    }

    async fn get(&self, name: &str) -> Option<Entry> {
        self.store.get(&self.key(name)).await.expect("the store answers")
    }

    /// `name=value` of everything under the prefix.
    async fn dump(&self) -> Vec<String> {
        let listing = self.store.list(&self.prefix).await.expect("the store answers");
        listing.entries.iter().map(|e| self.show(&Change::Put(e.clone()))).collect()
    }

    /// `name=value` of a put, `-name` of a delete.
    fn show(&self, change: &Change) -> String {
        let name = change.key().strip_prefix(&self.prefix).expect("a key under the prefix");
        match change {
            Change::Put(entry) => format!("{name}={}", String::from_utf8_lossy(&entry.value)),
            Change::Delete { .. } => format!("-{name}"),
        }
    }

    async fn watch(&self, after: Revision) -> Watch {
        self.store.watch(&self.prefix, after).await.expect("the store watches")
    }

    /// The revision of the store, seen from here.
    async fn now(&self) -> Revision {
        self.store.list(&self.prefix).await.expect("the store answers").revision
    }

    /// The next moment of a watch.
    async fn next(&self, watch: &mut Watch) -> Vec<String> {
        let changes = next(watch).await.expect("the watch goes on");
        changes.iter().map(|c| self.show(c)).collect()
    }
}

async fn next(watch: &mut Watch) -> Result<Vec<Change>, StoreError> {
    let item = tokio::time::timeout(PATIENCE, watch.next()).await;
    item.expect("the watch reports in time").expect("a watch does not end silently")
}

/// Whether nothing is there to be read just now.
fn is_quiet(watch: &mut Watch) -> bool {
    watch.next().now_or_never().is_none()
}
