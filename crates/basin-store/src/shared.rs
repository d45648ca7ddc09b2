//! The state as readers and watchers share it.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures::stream;
use tokio::sync::watch;

use crate::state::{Delta, NextChange, State};
use crate::store::{Revision, StoreError, Watch};

/// The published state. Watchers have no queues: each reads the history behind
/// its own cursor, so a slow one costs nothing and learns that it is too late.
pub(crate) struct Shared {
    state: RwLock<State>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    At(Revision),
    Closed,
}

impl Shared {
    pub fn new(state: State) -> Arc<Self> {
        let progress = watch::Sender::new(Progress::At(state.revision));
        Arc::new(Self { state: RwLock::new(state), progress })
    }

    /// No code that holds the lock can leave the state half changed by a panic:
    /// [`State::apply`] only moves values, so a poisoned lock is still good.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a durable change visible and wakes the watchers.
    pub fn publish(&self, delta: Delta) {
        let mut state = self.write();
        state.apply(delta);
        self.wake(&state);
    }

    pub fn compact(&self, up_to: Revision) {
        let mut state = self.write();
        state.compact(up_to);
        self.wake(&state);
    }

    fn wake(&self, state: &State) {
        let next = Progress::At(state.revision);
        self.progress.send_if_modified(|p| std::mem::replace(p, next) != next);
    }

    /// Ends every watch with an error.
    pub fn close(&self) {
        self.progress.send_replace(Progress::Closed);
    }

    pub fn watch(self: &Arc<Self>, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        // Subscribed before the first look, so that nothing falls in between.
        let progress = self.progress.subscribe();
        self.read().next_change(prefix, after)?;
        let cursor =
            Some(Cursor { shared: Arc::clone(self), progress, prefix: prefix.to_owned(), after });
        Ok(Box::pin(stream::unfold(cursor, |cursor| async {
            let mut cursor = cursor?;
            Some(match cursor.next().await {
                Ok(changes) => (Ok(changes), Some(cursor)),
                Err(e) => (Err(e), None),
            })
        })))
    }
}

struct Cursor {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    prefix: String,
    after: Revision,
}

impl Cursor {
    async fn next(&mut self) -> Result<Vec<crate::Change>, StoreError> {
        loop {
            let progress = *self.progress.borrow_and_update();
            let next = self.shared.read().next_change(&self.prefix, self.after)?;
            match next {
                NextChange::Found(revision, changes) => {
                    self.after = revision;
                    return Ok(changes);
                }
                NextChange::NoneUpTo(revision) => self.after = revision,
            }
            let closed = StoreError::Unavailable("it was closed".to_owned());
            if progress == Progress::Closed || self.progress.changed().await.is_err() {
                return Err(closed);
            }
        }
    }
}
