//! Transactions over typed records, which say what refused them.

use serde::Serialize;

use super::{Unknown, Versioned, layout};
use crate::store::{Commit, Compare, LeaseId, Op, Revision, Store, StoreError, Txn};

/// Collects conditions and changes.
///
/// ```
/// # use basin_store::records::TxnBuilder;
/// let txn = TxnBuilder::new()
///     .require_absent("/basin/v1/name/vm/web-1")
///     .put("/basin/v1/name/vm/web-1", &"0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d11");
/// ```
#[derive(Debug, Default)]
#[must_use]
pub struct TxnBuilder {
    txn: Txn,
    invalid: Option<StoreError>,
}

/// Why a transaction changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// This condition does not hold.
    #[error("{}", refusal(.0))]
    Refused(Compare),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn refusal(condition: &Compare) -> String {
    match condition {
        Compare::Absent(key) => format!("{key} exists already"),
        Compare::Present(key) => format!("{key} does not exist"),
        Compare::Unchanged(key, _) => format!("{key} was changed by somebody else meanwhile"),
    }
}

impl TxnBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn require(mut self, condition: Compare) -> Self {
        self.txn.when.push(condition);
        self
    }

    pub fn require_absent(self, key: impl Into<String>) -> Self {
        self.require(Compare::Absent(key.into()))
    }

    pub fn require_present(self, key: impl Into<String>) -> Self {
        self.require(Compare::Present(key.into()))
    }

    /// The record is still the one that was read.
    pub fn require_unchanged<T>(self, read: &Versioned<T>) -> Self {
        self.require(Compare::Unchanged(read.key.clone(), read.revision))
    }

    pub fn put<T: Serialize>(self, key: impl Into<String>, value: &T) -> Self {
        self.put_op(key.into(), value, &Unknown::default(), None)
    }

    /// The record goes when the lease ends.
    pub fn put_leased<T: Serialize>(
        self,
        key: impl Into<String>,
        value: &T,
        lease: LeaseId,
    ) -> Self {
        self.put_op(key.into(), value, &Unknown::default(), Some(lease))
    }

    fn put_op<T: Serialize>(
        mut self,
        key: String,
        value: &T,
        unknown: &Unknown,
        lease: Option<LeaseId>,
    ) -> Self {
        match layout::encode(&key, value, unknown) {
            Ok(value) => self.txn.then.push(Op::Put { key, value, lease }),
            Err(e) => self.invalid = self.invalid.or(Some(e)),
        }
        self
    }

    /// A new record: requires that there is none.
    pub fn create<T: Serialize>(self, key: impl Into<String>, value: &T) -> Self {
        let key = key.into();
        self.require_absent(key.clone()).put(key, value)
    }

    /// A new value for the record that was read: requires that it is unchanged. What a
    /// newer release noted in it stays.
    pub fn replace<T, U: Serialize>(self, read: &Versioned<T>, value: &U) -> Self {
        self.require_unchanged(read).put_op(read.key.clone(), value, &read.unknown, None)
    }

    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.txn.then.push(Op::Delete { key: key.into() });
        self
    }

    /// All conditions and changes of both.
    pub fn and(mut self, other: TxnBuilder) -> Self {
        self.txn.when.extend(other.txn.when);
        self.txn.then.extend(other.txn.then);
        self.invalid = self.invalid.or(other.invalid);
        self
    }

    pub fn build(self) -> Result<Txn, StoreError> {
        self.invalid.map_or(Ok(self.txn), Err)
    }

    /// Commits; a refusal says which condition did not hold. The store does not
    /// tell, so the keys are read again; if by then every condition holds, the
    /// transaction is tried again.
    pub async fn commit(self, store: &dyn Store) -> Result<Revision, CommitError> {
        let txn = self.build()?;
        loop {
            if let Commit::Done(revision) = store.commit(txn.clone()).await? {
                return Ok(revision);
            }
            for condition in &txn.when {
                let entry = store.get(condition.key()).await?;
                if !condition.holds(entry.as_ref()) {
                    return Err(CommitError::Refused(condition.clone()));
                }
            }
        }
    }
}
