//! The trait, and the words it is made of.

use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use serde::{Deserialize, Serialize};

/// A moment of the store. Every commit that changes something makes the next one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// A lease. Keys put under it vanish when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// A key and its value at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    /// When the key came to be, most recently.
    pub created: Revision,
    /// When the value was last put. Compare with it to change only what you read.
    pub modified: Revision,
}

/// What a read of a prefix saw, all at one revision.
#[derive(Debug, Clone)]
pub struct Listing {
    /// In the order of their keys.
    pub entries: Vec<Entry>,
    /// Watch from here to see every later change and none twice.
    pub revision: Revision,
}

/// A condition of a [`Txn`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key exists.
    Present(String),
    /// The key's value was last put at this very revision.
    Unchanged(String, Revision),
}

/// A change in a [`Txn`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put { key: String, value: Bytes, lease: Option<LeaseId> },
    Delete { key: String },
}

/// Changes that happen all at once if every condition holds, else not at all. A
/// key may be changed once a transaction (etcd refuses more).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub when: Vec<Compare>,
    pub then: Vec<Op>,
}

/// How a transaction went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// Durable, at this revision.
    Done(Revision),
    /// A condition did not hold; nothing changed.
    Refused,
}

/// One change that a watch reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put(Entry),
    Delete { key: String, revision: Revision },
}

/// Changes in the order of their revisions. Changes of one revision come as one
/// item. The stream ends with an error, never silently; [`StoreError::Compacted`]
/// means: list again, then watch from there.
pub type Watch = Pin<Box<dyn Stream<Item = Result<Vec<Change>, StoreError>> + Send>>;

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The history that a watch asked for is gone.
    #[error("the store no longer has the changes after revision {0:?}; read everything anew")]
    Compacted(Revision),
    /// The lease has ended or never was.
    #[error("lease {0:?} has ended")]
    LeaseGone(LeaseId),
    /// It cannot say whether it did: disk full, quorum lost, connection broken.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The file or its content is not what this version understands.
    #[error("the store cannot be used: {0}")]
    Unusable(String),
}

/// A store with etcd's semantics: linearizable reads, compare-and-swap
/// transactions, watches that lose nothing, leases.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Every entry whose key starts with `prefix`.
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// Durable when it returns [`Commit::Done`].
    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError>;

    /// Every change after `after` to keys that start with `prefix`.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;

    /// A lease that ends `ttl` after its last renewal.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    async fn renew(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends the lease; its keys are deleted in one commit.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}
