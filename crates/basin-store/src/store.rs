//! The trait, and the words it is made of.

use std::collections::BTreeSet;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
/// key may be changed once a transaction, and a transaction has at most
/// [`Txn::MAX_OPS`] conditions, as many changes and [`Txn::MAX_BYTES`] of keys and
/// values: etcd refuses more, so every store does ([`StoreError::Invalid`]).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub when: Vec<Compare>,
    pub then: Vec<Op>,
}

impl Txn {
    /// etcd's `--max-txn-ops`.
    pub const MAX_OPS: usize = 128;
    /// Below etcd's `--max-request-bytes` of 1.5 MiB, with room for the frame.
    pub const MAX_BYTES: usize = 1 << 20;

    /// Whether any store would take it, whatever the store holds.
    pub fn check(&self) -> Result<(), StoreError> {
        let refuse = |why: String| Err(StoreError::Invalid(why));
        if self.when.len() > Txn::MAX_OPS || self.then.len() > Txn::MAX_OPS {
            return refuse(format!(
                "{} conditions and {} changes in one transaction, at most {} are allowed",
                self.when.len(),
                self.then.len(),
                Txn::MAX_OPS
            ));
        }
        let bytes = self.then.iter().map(Op::size).sum::<usize>();
        if bytes > Txn::MAX_BYTES {
            return refuse(format!(
                "a transaction of {bytes} bytes, at most {} are allowed",
                Txn::MAX_BYTES
            ));
        }
        let mut seen = BTreeSet::new();
        if let Some(op) = self.then.iter().find(|op| !seen.insert(op.key())) {
            return refuse(format!("key {} is changed twice in one transaction", op.key()));
        }
        let mut keys = seen.into_iter().chain(self.when.iter().map(Compare::key));
        if keys.any(str::is_empty) { refuse("an empty key".to_owned()) } else { Ok(()) }
    }
}

impl Compare {
    pub fn key(&self) -> &str {
        match self {
            Compare::Absent(key) | Compare::Present(key) | Compare::Unchanged(key, _) => key,
        }
    }

    /// Whether it holds, where the key has this entry.
    pub fn holds(&self, entry: Option<&Entry>) -> bool {
        match self {
            Compare::Absent(_) => entry.is_none(),
            Compare::Present(_) => entry.is_some(),
            Compare::Unchanged(_, revision) => entry.is_some_and(|e| e.modified == *revision),
        }
    }
}

impl Op {
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }

    pub(crate) fn size(&self) -> usize {
        match self {
            Op::Put { key, value, .. } => key.len() + value.len(),
            Op::Delete { key } => key.len(),
        }
    }
}

impl Change {
    pub fn key(&self) -> &str {
        match self {
            Change::Put(entry) => &entry.key,
            Change::Delete { key, .. } => key,
        }
    }

    /// When it was made.
    pub fn revision(&self) -> Revision {
        match self {
            Change::Put(entry) => entry.modified,
            Change::Delete { revision, .. } => *revision,
        }
    }

    /// In bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Change::Put(entry) => entry.key.len() + entry.value.len(),
            Change::Delete { key, .. } => key.len(),
        }
    }
}

/// How a transaction went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// Durable, at this revision: its own, or the latest if it changed nothing
    /// (it had no changes, or deleted only what was not there).
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
/// (from [`Store::watch`] itself or as an item, also for a reader that is too
/// slow) means: list again, then watch from there.
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
    /// No store would do it; asking again will not help.
    #[error("the store was asked for something it refuses: {0}")]
    Invalid(String),
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
