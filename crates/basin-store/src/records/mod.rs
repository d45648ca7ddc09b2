//! Typed records over the store: JSON, each with the version of its layout.

mod layout;
mod txn;
mod unknown;
mod watch;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use txn::{CommitError, TxnBuilder};
pub use unknown::Unknown;
pub use watch::{RecordEvent, watch_records};

use crate::store::{Commit, Compare, Entry, Revision, Store, StoreError, Txn};

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    pub key: String,
    pub value: T,
    /// When it was last put: what an ETag shows and a condition compares.
    pub revision: Revision,
    /// What only a newer release of Basin understands of it: stays when it is replaced.
    pub unknown: Unknown,
}

impl<T> Versioned<T> {
    /// A record of this release.
    pub fn new(key: String, value: T, revision: Revision) -> Versioned<T> {
        Versioned { key, value, revision, unknown: Unknown::default() }
    }
}

/// Reads a record out of an entry.
pub fn from_entry<T: DeserializeOwned>(entry: &Entry) -> Result<Versioned<T>, StoreError> {
    let (value, unknown) = layout::decode(&entry.key, &entry.value)?;
    Ok(Versioned { key: entry.key.clone(), value, revision: entry.modified, unknown })
}

pub async fn get<T: DeserializeOwned>(
    store: &dyn Store,
    key: &str,
) -> Result<Option<Versioned<T>>, StoreError> {
    store.get(key).await?.as_ref().map(from_entry).transpose()
}

/// Every record under the prefix, in the order of the keys, at one revision.
pub async fn list<T: DeserializeOwned>(
    store: &dyn Store,
    prefix: &str,
) -> Result<(Vec<Versioned<T>>, Revision), StoreError> {
    let listing = store.list(prefix).await?;
    let records = listing.entries.iter().map(from_entry).collect::<Result<_, _>>()?;
    Ok((records, listing.revision))
}

/// Why [`update`] changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError<E> {
    #[error("{0} does not exist")]
    Absent(String),
    /// The closure refused.
    #[error("{0}")]
    Refused(E),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Changes a record from what it is now; the closure runs again if somebody else
/// was quicker. A closure that changes nothing writes nothing.
pub async fn update<T, E>(
    store: &dyn Store,
    key: &str,
    mut change: impl FnMut(T) -> Result<T, E> + Send,
) -> Result<Versioned<T>, UpdateError<E>>
where
    T: Serialize + DeserializeOwned + Send,
{
    loop {
        let Some(entry) = store.get(key).await? else {
            return Err(UpdateError::Absent(key.to_owned()));
        };
        let read: Versioned<T> = from_entry(&entry)?;
        let (unknown, revision) = (read.unknown, read.revision);
        let value = change(read.value).map_err(UpdateError::Refused)?;
        let bytes = layout::encode(key, &value, &unknown)?;
        if bytes == entry.value {
            return Ok(Versioned { key: key.to_owned(), value, revision, unknown });
        }
        let op = crate::Op::Put { key: key.to_owned(), value: bytes, lease: None };
        let when = vec![Compare::Unchanged(key.to_owned(), entry.modified)];
        if let Commit::Done(revision) = store.commit(Txn { when, then: vec![op] }).await? {
            return Ok(Versioned { key: key.to_owned(), value, revision, unknown });
        }
    }
}

/// The layout of the store as a whole: which keys there are and what they mean.
const SCHEMA: u32 = 1;

/// Claims the store for this version, at the start of a daemon: notes the schema
/// in an empty store, refuses a store whose schema is newer.
pub async fn check_schema(store: &dyn Store) -> Result<(), StoreError> {
    let key = basin_model::keys::schema();
    loop {
        match get::<u32>(store, &key).await? {
            Some(found) if found.value > SCHEMA => {
                return Err(StoreError::Unusable(format!(
                    "it was written by a newer Basin (schema {}, this version knows up to \
                     {SCHEMA}): upgrade this server",
                    found.value
                )));
            }
            Some(_) => return Ok(()),
            None => match TxnBuilder::new().create(&key, &SCHEMA).commit(store).await {
                Ok(_) | Err(CommitError::Refused(_)) => (),
                Err(CommitError::Store(e)) => return Err(e),
            },
        }
    }
}

#[cfg(test)]
mod tests;
