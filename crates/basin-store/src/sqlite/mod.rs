//! A store in one SQLite file: what a single server uses. No set-up.

mod file;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::shared::Shared;
use crate::state::Draft;
use crate::store::{Commit, Entry, LeaseId, Listing, Revision, Store, StoreError, Txn, Watch};
use file::Db;
use writer::{Asked, Request, Writer};

/// Reads come from memory; a change is answered when it is on the disk.
pub struct SqliteStore {
    shared: Arc<Shared>,
    born: Instant,
    /// Both are `Some` until the store is dropped.
    requests: Option<Sender<Box<dyn Request>>>,
    writer: Option<JoinHandle<()>>,
}

impl SqliteStore {
    /// Opens the file, makes it if there is none. Blocks while it reads. Refuses
    /// a file that another daemon has open, that is damaged, of another program
    /// or of a newer version ([`StoreError::Unusable`]).
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let born = Instant::now();
        let db = Db::open(path)?;
        let shared = Shared::new(db.load(born.elapsed())?);
        let (requests, queue) = channel();
        let writer = Writer { db, shared: Arc::clone(&shared), born };
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(|e| StoreError::Unavailable(format!("no thread for the store: {e}")))?;
        Ok(Self { shared, born, requests: Some(requests), writer: Some(writer) })
    }

    /// Forgets the changes up to and including a revision.
    pub fn compact(&self, up_to: Revision) {
        self.shared.compact(up_to);
    }

    async fn change<T: Send + 'static>(
        &self,
        change: impl FnMut(&mut Draft<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let gone = || StoreError::Unavailable("it was closed".to_owned());
        let (answer, outcome) = oneshot::channel();
        let asked = Box::new(Asked { change, outcome: None, answer });
        self.requests.as_ref().ok_or_else(gone)?.send(asked).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}

impl Drop for SqliteStore {
    /// What was asked for is still written; the file is free afterwards.
    fn drop(&mut self) {
        self.requests = None;
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the store's thread panicked");
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.shared.read().get(key))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        Ok(self.shared.read().list(prefix))
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        self.change(move |draft| draft.commit(&txn)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.shared.watch(prefix, after)
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let now = self.born.elapsed();
        self.change(move |draft| Ok(draft.grant(ttl, now))).await
    }

    async fn renew(&self, lease: LeaseId) -> Result<(), StoreError> {
        let now = self.born.elapsed();
        self.change(move |draft| draft.renew(lease, now)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.change(move |draft| draft.revoke(lease)).await
    }
}
