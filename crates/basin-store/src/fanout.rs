//! One watch of the store, for everybody in this process who watches.
//!
//! A server's daemon has some ten watches open, and each of a cluster's servers hears of
//! every commit: etcd would send each change to each server ten times. It sends it once;
//! what it sent is kept for a while, and each watch is a cursor into that. A reader whose
//! place is no longer there, or never was, gets a watch of its own from there on.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::store::{
    Change, Commit, Entry, LeaseId, Listing, Revision, Store, StoreError, Txn, Watch,
};

/// What is kept: as many moments, of so many bytes at most.
const MOMENTS: usize = 4096;
const BYTES: usize = 8 << 20;

/// The store behind it, but for its watches.
pub struct Fanout {
    store: Arc<dyn Store>,
    prefix: String,
    /// What is told now; none before anybody watches.
    told: Mutex<Option<Arc<Told>>>,
}

impl Fanout {
    /// Watches below `prefix` are shared, others are passed on.
    pub fn new(store: Arc<dyn Store>, prefix: &str) -> Fanout {
        Fanout { store, prefix: prefix.to_owned(), told: Mutex::default() }
    }

    /// What tells everything after that revision; none, if that is too long ago.
    async fn told(&self, after: Revision) -> Result<Option<Arc<Told>>, StoreError> {
        let mut current = self.told.lock().await;
        if let Some(told) = current.as_ref() {
            let kept = told.kept.read().unwrap_or_else(PoisonError::into_inner);
            if kept.end.is_none() {
                return Ok((kept.from <= after).then(|| Arc::clone(told)));
            }
        }
        let watch = self.store.watch(&self.prefix, after).await?;
        let told = Told::follow(watch, after);
        *current = Some(Arc::clone(&told));
        Ok(Some(told))
    }
}

/// What one watch of the store said. That watch ends with it.
struct Told {
    kept: RwLock<Kept>,
    news: watch::Sender<()>,
    _follows: DropGuard,
}

struct Kept {
    /// Whoever has seen all up to here misses nothing.
    from: Revision,
    moments: VecDeque<Moment>,
    bytes: usize,
    end: Option<End>,
}

struct Moment {
    revision: Revision,
    changes: Vec<Change>,
    bytes: usize,
}

/// Why nothing more comes.
#[derive(Clone)]
enum End {
    Compacted,
    Other(String),
}

impl Told {
    fn follow(mut watch: Watch, from: Revision) -> Arc<Told> {
        let stop = CancellationToken::new();
        let kept = Kept { from, moments: VecDeque::new(), bytes: 0, end: None };
        let told = Arc::new(Told {
            kept: RwLock::new(kept),
            news: watch::Sender::new(()),
            _follows: stop.clone().drop_guard(),
        });
        let weak: Weak<Told> = Arc::downgrade(&told);
        tokio::spawn(async move {
            while let Some(item) = stop.run_until_cancelled(watch.next()).await {
                let Some(told) = weak.upgrade() else { return };
                if told.take(item) {
                    return;
                }
            }
        });
        told
    }

    fn write(&self) -> RwLockWriteGuard<'_, Kept> {
        self.kept.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether that was the last.
    fn take(&self, item: Option<Result<Vec<Change>, StoreError>>) -> bool {
        let end = match item {
            Some(Ok(changes)) => {
                self.write().push(changes);
                None
            }
            Some(Err(StoreError::Compacted(_))) => Some(End::Compacted),
            Some(Err(error)) => Some(End::Other(error.to_string())),
            None => Some(End::Other("its watch ended".to_owned())),
        };
        let last = end.is_some();
        if last {
            self.write().end = end;
        }
        self.news.send_replace(());
        last
    }
}

impl Kept {
    fn push(&mut self, changes: Vec<Change>) {
        let Some(revision) = changes.first().map(Change::revision) else { return };
        let bytes = changes.iter().map(Change::size).sum();
        self.bytes += bytes;
        self.moments.push_back(Moment { revision, changes, bytes });
        while self.moments.len() > MOMENTS || self.bytes > BYTES {
            let Some(gone) = self.moments.pop_front() else { return };
            self.bytes -= gone.bytes;
            self.from = gone.revision;
        }
    }
}

/// A reader's place.
struct Cursor {
    store: Arc<dyn Store>,
    told: Arc<Told>,
    news: watch::Receiver<()>,
    prefix: String,
    after: Revision,
    /// Its own watch, since it was too slow for the shared one.
    own: Option<Watch>,
}

enum Look {
    Found(Vec<Change>),
    Nothing,
    TooLate,
    Ended(End),
}

impl Cursor {
    async fn next(&mut self) -> Result<Vec<Change>, StoreError> {
        loop {
            if let Some(own) = &mut self.own {
                let closed = || StoreError::Unavailable("its watch ended".to_owned());
                return own.next().await.unwrap_or_else(|| Err(closed()));
            }
            self.news.borrow_and_update();
            match self.look() {
                Look::Found(changes) => return Ok(changes),
                Look::TooLate => {
                    self.own = Some(self.store.watch(&self.prefix, self.after).await?);
                }
                Look::Ended(End::Compacted) => return Err(StoreError::Compacted(self.after)),
                Look::Ended(End::Other(why)) => return Err(StoreError::Unavailable(why)),
                Look::Nothing => {
                    // Its sender lives as long as what is told.
                    let _ = self.news.changed().await;
                }
            }
        }
    }

    fn look(&mut self) -> Look {
        let kept = self.told.kept.read().unwrap_or_else(PoisonError::into_inner);
        if self.after < kept.from {
            return Look::TooLate;
        }
        let next = kept.moments.partition_point(|moment| moment.revision <= self.after);
        for moment in kept.moments.range(next..) {
            self.after = moment.revision;
            let own = moment.changes.iter().filter(|c| c.key().starts_with(&self.prefix));
            let own: Vec<Change> = own.cloned().collect();
            if !own.is_empty() {
                return Look::Found(own);
            }
        }
        kept.end.clone().map_or(Look::Nothing, Look::Ended)
    }
}

#[async_trait]
impl Store for Fanout {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store.list(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        self.store.commit(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let told = match prefix.starts_with(&self.prefix) {
            true => self.told(after).await?,
            false => None,
        };
        let Some(told) = told else { return self.store.watch(prefix, after).await };
        let cursor = Cursor {
            store: Arc::clone(&self.store),
            news: told.news.subscribe(),
            told,
            prefix: prefix.to_owned(),
            after,
            own: None,
        };
        Ok(Box::pin(stream::unfold(Some(cursor), |cursor| async {
            let mut cursor = cursor?;
            Some(match cursor.next().await {
                Ok(changes) => (Ok(changes), Some(cursor)),
                Err(error) => (Err(error), None),
            })
        })))
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

#[cfg(test)]
#[path = "fanout_tests.rs"]
mod tests;
