//! Watches of typed records that find their way back by themselves.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use serde::de::DeserializeOwned;

use super::{Versioned, from_entry, list};
use crate::store::{Change, Revision, Store, StoreError, Watch};

/// What a watch of records tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordEvent<T> {
    /// All records there are. Forget whatever else you knew: changes may have
    /// been missed before this one.
    Resync {
        records: Vec<Versioned<T>>,
        revision: Revision,
    },
    Put(Versioned<T>),
    Deleted {
        key: String,
        revision: Revision,
    },
}

/// How long to leave a store alone that did not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// Watches every record under the prefix: first a [`RecordEvent::Resync`], then
/// each change. Lists anew (another `Resync`) when the store has compacted what
/// this watch had not read yet. Other errors are items too, and the stream goes
/// on after them: a record that cannot be read is reported and passed over, and
/// a store that does not answer is asked again. The stream never ends.
pub fn watch_records<T: DeserializeOwned + Send + 'static>(
    store: Arc<dyn Store>,
    prefix: impl Into<String>,
) -> impl Stream<Item = Result<RecordEvent<T>, StoreError>> + Send + Unpin {
    let state = Watching::<T> {
        store,
        prefix: prefix.into(),
        watch: None,
        ready: VecDeque::new(),
        pause: false,
        record: PhantomData,
    };
    Box::pin(stream::unfold(state, |mut state| async {
        let item = state.next().await;
        Some((item, state))
    }))
}

struct Watching<T> {
    store: Arc<dyn Store>,
    prefix: String,
    watch: Option<Watch>,
    /// The rest of the last moment.
    ready: VecDeque<Change>,
    pause: bool,
    record: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Watching<T> {
    async fn next(&mut self) -> Result<RecordEvent<T>, StoreError> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return match change {
                    Change::Put(entry) => from_entry(&entry).map(RecordEvent::Put),
                    Change::Delete { key, revision } => Ok(RecordEvent::Deleted { key, revision }),
                };
            }
            let Some(watch) = &mut self.watch else {
                match self.resync().await {
                    Err(StoreError::Compacted(_)) => continue,
                    other => return other,
                }
            };
            match watch.next().await {
                Some(Ok(changes)) => self.ready = changes.into(),
                Some(Err(StoreError::Compacted(_))) | None => self.watch = None,
                Some(Err(e)) => {
                    (self.watch, self.pause) = (None, true);
                    return Err(e);
                }
            }
        }
    }

    async fn resync(&mut self) -> Result<RecordEvent<T>, StoreError> {
        if std::mem::take(&mut self.pause) {
            tokio::time::sleep(PAUSE).await;
        }
        // Cleared below: also a list that fails must not be repeated at once.
        self.pause = true;
        let (records, revision) = list(&*self.store, &self.prefix).await?;
        self.watch = match self.store.watch(&self.prefix, revision).await {
            Ok(watch) => Some(watch),
            Err(e) => {
                self.pause = !matches!(e, StoreError::Compacted(_));
                return Err(e);
            }
        };
        self.pause = false;
        Ok(RecordEvent::Resync { records, revision })
    }
}
