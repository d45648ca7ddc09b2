//! A store in memory: for tests, and for state that may go with the process.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::task::JoinHandle;

use crate::shared::Shared;
use crate::state::{Delta, Draft, State};
use crate::store::{Commit, Entry, LeaseId, Listing, Revision, Store, StoreError, Txn, Watch};

/// Everything is lost with the last reference to it.
pub struct MemStore {
    inner: Arc<Inner>,
    /// Ends leases; runs from the first grant.
    reaper: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    shared: Arc<Shared>,
    /// Held while drafting, so that every draft stands on the latest state.
    writing: Mutex<()>,
    born: Instant,
    granted: tokio::sync::Notify,
}

impl Inner {
    fn change<T>(&self, make: impl FnOnce(&mut Draft<'_>, Duration) -> T) -> T {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (outcome, delta): (T, Delta) = {
            let state = self.shared.read();
            let mut draft = Draft::new(&state);
            (make(&mut draft, self.born.elapsed()), draft.finish())
        };
        self.shared.publish(delta);
        outcome
    }

    async fn reap(&self) {
        loop {
            let next = self.shared.read().next_deadline();
            let wait = next.map(|d| d.saturating_sub(self.born.elapsed()));
            match wait {
                Some(Duration::ZERO) => self.change(|draft, now| draft.expire(now)),
                Some(wait) => tokio::select! {
                    () = tokio::time::sleep(wait) => (),
                    () = self.granted.notified() => (),
                },
                None => self.granted.notified().await,
            }
        }
    }
}

impl MemStore {
    pub fn new() -> Self {
        let shared = Shared::new(State::default());
        let (writing, born) = (Mutex::new(()), Instant::now());
        let inner = Inner { shared, writing, born, granted: tokio::sync::Notify::new() };
        Self { inner: Arc::new(inner), reaper: Mutex::new(None) }
    }

    /// Forgets the changes up to and including a revision.
    pub fn compact(&self, up_to: Revision) {
        self.inner.shared.compact(up_to);
    }

    fn start_reaper(&self) {
        let mut reaper = self.reaper.lock().unwrap_or_else(PoisonError::into_inner);
        if reaper.as_ref().is_none_or(JoinHandle::is_finished) {
            let inner = Arc::clone(&self.inner);
            *reaper = Some(tokio::spawn(async move { inner.reap().await }));
        }
        self.inner.granted.notify_one();
    }
}

impl Default for MemStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for MemStore {
    fn drop(&mut self) {
        let reaper = self.reaper.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(reaper) = reaper.take() {
            reaper.abort();
        }
        self.inner.shared.close();
    }
}

#[async_trait]
impl Store for MemStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.inner.shared.read().get(key))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        Ok(self.inner.shared.read().list(prefix))
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        self.inner.change(|draft, _| draft.commit(&txn))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.inner.shared.watch(prefix, after)
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let id = self.inner.change(|draft, now| draft.grant(ttl, now));
        self.start_reaper();
        Ok(id)
    }

    async fn renew(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.change(|draft, now| draft.renew(lease, now))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.change(|draft, _| draft.revoke(lease))
    }
}
