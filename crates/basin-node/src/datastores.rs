//! The datastores of this server, open.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use basin_model::datastore::{Datastore as Record, DatastoreKind};
use basin_model::host::Condition;
use basin_model::keys::Kind;
use basin_model::task::Problem;
use basin_model::{DatastoreId, HostId};
use basin_storage::{Datastore, DirDatastore, StorageError};
use basin_store::Store;
use basin_store::records::{RecordEvent, watch_records};
use futures::StreamExt;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::problem::{Explain, OFTEN, Unready, problem};

struct Open {
    record: Record,
    place: Arc<dyn Datastore>,
}

/// See the module.
#[derive(Default)]
pub struct Datastores {
    open: RwLock<BTreeMap<DatastoreId, Open>>,
    problems: watch::Sender<BTreeMap<DatastoreId, Problem>>,
    /// One opens or closes at a time: two would fight over the directory's lock.
    turn: Mutex<()>,
}

impl Datastores {
    pub fn get(&self, id: DatastoreId) -> Result<Arc<dyn Datastore>, Unready> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = open.get(&id) {
            return Ok(open.place.clone());
        }
        let problem = self.problems.borrow().get(&id).cloned().unwrap_or_else(|| {
            let detail = format!("datastore {id} is not open on this server");
            problem("datastore-not-open", detail, "check that it exists and belongs to this server")
        });
        Err(Unready { problem, tries: OFTEN })
    }

    pub async fn open(&self, record: &Record) -> Result<Arc<dyn Datastore>, StorageError> {
        let _turn = self.turn.lock().await;
        if let Some(open) = self.open.read().unwrap_or_else(PoisonError::into_inner).get(&record.id)
            && (&open.record.kind, open.record.quota) == (&record.kind, record.quota)
        {
            return Ok(open.place.clone());
        }
        let DatastoreKind::Dir { path } = record.kind.clone();
        let (id, quota) = (record.id, record.quota);
        self.forget(id);
        let opened = tokio::task::spawn_blocking(move || DirDatastore::open(id, path, quota)).await;
        let place = match opened {
            Ok(Ok(place)) => Arc::new(place) as Arc<dyn Datastore>,
            Ok(Err(error)) => {
                let problem = error.problem();
                self.problems.send_modify(|all| drop(all.insert(id, problem)));
                return Err(error);
            }
            Err(panic) => {
                let what = format!("opening datastore {id}");
                return Err(StorageError::Io { what, source: std::io::Error::other(panic) });
            }
        };
        let open = Open { record: record.clone(), place: place.clone() };
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(id, open);
        Ok(place)
    }

    pub async fn close(&self, id: DatastoreId) {
        let _turn = self.turn.lock().await;
        self.forget(id);
    }

    /// Closes all: their directories are another daemon's to open.
    pub async fn close_all(&self) {
        let _turn = self.turn.lock().await;
        self.open.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn forget(&self, id: DatastoreId) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        self.problems.send_if_modified(|all| all.remove(&id).is_some());
    }

    pub fn conditions(&self) -> Vec<Condition> {
        let problems = self.problems.borrow();
        let condition = |(id, problem): (&DatastoreId, &Problem)| Condition {
            subject: format!("datastore/{id}"),
            problem: problem.clone(),
        };
        problems.iter().map(condition).collect()
    }

    pub fn changes(&self) -> watch::Receiver<BTreeMap<DatastoreId, Problem>> {
        self.problems.subscribe()
    }

    /// Opens and closes datastores as their records come and go. `first` is told
    /// when those of the first reading are open, so that VMs find them.
    pub async fn follow(
        self: Arc<Self>,
        store: Arc<dyn Store>,
        host: HostId,
        first: tokio::sync::oneshot::Sender<()>,
        stop: CancellationToken,
    ) {
        let mut first = Some(first);
        let mut known: BTreeMap<String, Record> = BTreeMap::new();
        let mut events = watch_records::<Record>(store, Kind::Datastore.prefix());
        let mut again = tokio::time::interval(std::time::Duration::from_secs(30));
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
                // A file system may have been mounted meanwhile.
                _ = again.tick() => {
                    let failed = |r: &&Record| self.problems.borrow().contains_key(&r.id);
                    for record in known.values().filter(failed).collect::<Vec<_>>() {
                        let _ = self.open(record).await;
                    }
                    continue;
                }
            };
            let mine = |r: &Record| r.host == host;
            match event {
                Some(Ok(RecordEvent::Resync { records, .. })) => {
                    let now: BTreeMap<_, _> = records
                        .into_iter()
                        .map(|r| (r.key, r.value))
                        .filter(|r| mine(&r.1))
                        .collect();
                    for gone in known.iter().filter(|(key, _)| !now.contains_key(*key)) {
                        self.close(gone.1.id).await;
                    }
                    known = now;
                    for record in known.values() {
                        self.try_open(record).await;
                    }
                    first.take().map(|first| first.send(()));
                }
                Some(Ok(RecordEvent::Put(record))) if mine(&record.value) => {
                    self.try_open(&record.value).await;
                    known.insert(record.key, record.value);
                }
                Some(Ok(RecordEvent::Put(_))) => {}
                Some(Ok(RecordEvent::Deleted { key, .. })) => {
                    if let Some(record) = known.remove(&key) {
                        self.close(record.id).await;
                    }
                }
                Some(Err(error)) => tracing::warn!(%error, "cannot watch datastores"),
                None => return,
            }
        }
    }

    async fn try_open(&self, record: &Record) {
        if let Err(error) = self.open(record).await {
            tracing::warn!(datastore = %record.meta.name, %error, "cannot open a datastore");
        }
    }
}
