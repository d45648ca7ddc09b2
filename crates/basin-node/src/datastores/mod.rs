//! The datastores of this server, open.
//!
//! A local one is this server's alone. A shared one is open on every server that
//! reaches it, and used only once it is proven to be the same storage ([`check`]).

mod check;
mod follow;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use basin_model::datastore::{Datastore as Record, DatastoreKind, DatastoreState};
use basin_model::host::Condition;
use basin_model::task::Problem;
use basin_model::{DatastoreId, HostId};
use basin_storage::{Datastore, DirDatastore, Opening, StorageError};
use basin_store::Store;
use tokio::sync::{Mutex, watch};

use crate::peers::Peers;
use crate::problem::{Explain, OFTEN, Unready, problem};

struct Open {
    record: Record,
    place: Arc<DirDatastore>,
}

/// What is known of them, beside which are open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    problems: BTreeMap<DatastoreId, Problem>,
    /// Shared ones that are proven to be the same storage as elsewhere.
    proven: BTreeSet<DatastoreId>,
    /// Shared ones that were proven to an earlier daemon, and not looked at since.
    before: BTreeSet<DatastoreId>,
}

/// See the module.
pub struct Datastores {
    host: HostId,
    store: Arc<dyn Store>,
    peers: Arc<dyn Peers>,
    open: RwLock<BTreeMap<DatastoreId, Open>>,
    seen: watch::Sender<Seen>,
    /// One opens or closes at a time: two would fight over the directory's lock.
    turn: Mutex<()>,
    /// One checks at a time, and a file system that hangs keeps only the checks.
    checks: Mutex<()>,
    /// Those found not to be the same storage: not checked again before then.
    pauses: std::sync::Mutex<BTreeMap<DatastoreId, Instant>>,
}

impl Datastores {
    /// `before`: shared datastores that were proven to an earlier daemon.
    pub fn new(
        host: HostId,
        store: Arc<dyn Store>,
        peers: Arc<dyn Peers>,
        before: BTreeSet<DatastoreId>,
    ) -> Datastores {
        let seen = watch::Sender::new(Seen { before, ..Seen::default() });
        let (open, turn, checks, pauses) = Default::default();
        Datastores { host, store, peers, open, seen, turn, checks, pauses }
    }

    /// One that can be used.
    pub fn get(&self, id: DatastoreId) -> Result<Arc<dyn Datastore>, Unready> {
        self.usable(id).map(|place| place as Arc<dyn Datastore>)
    }

    fn usable(&self, id: DatastoreId) -> Result<Arc<DirDatastore>, Unready> {
        let seen = self.seen.borrow();
        let all = self.all();
        let open = all.get(&id);
        if let Some(open) = open
            && (!open.record.sharing.is_shared() || seen.proven.contains(&id))
        {
            return Ok(open.place.clone());
        }
        let problem = seen.problems.get(&id).cloned().unwrap_or_else(|| match open {
            Some(open) => {
                let name = &open.record.meta.name;
                let detail = format!("datastore '{name}' is being checked on this server");
                problem("datastore-unproven", detail, "wait a few seconds")
            }
            None => {
                let detail = format!("datastore {id} is not open on this server");
                let advice = "check that it exists and belongs to this server";
                problem("datastore-not-open", detail, advice)
            }
        });
        Err(Unready { problem, tries: OFTEN })
    }

    /// Opens the datastore; makes it if it is `preparing`. A shared one is not
    /// usable before it has been checked.
    pub async fn open(&self, record: &Record) -> Result<Arc<DirDatastore>, StorageError> {
        let _turn = self.turn.lock().await;
        if let Some(open) = self.all().get(&record.id)
            && (&open.record.kind, open.record.quota) == (&record.kind, record.quota)
        {
            return Ok(open.place.clone());
        }
        let DatastoreKind::Dir { path } = record.kind.clone();
        let id = record.id;
        let opening = Opening {
            id,
            path,
            quota: record.quota,
            sharer: record.sharing.is_shared().then_some(self.host),
            patience: Default::default(),
        };
        let preparing = record.state == DatastoreState::Preparing;
        self.forget(id);
        let opened = tokio::task::spawn_blocking(move || {
            if preparing {
                DirDatastore::make(id, &opening.path)?;
            }
            DirDatastore::open_with(&opening)
        });
        let place = match opened.await {
            Ok(Ok(place)) => Arc::new(place),
            Ok(Err(error)) => {
                self.failed(id, error.problem());
                return Err(error);
            }
            Err(panic) => {
                let what = format!("opening datastore {id}");
                return Err(StorageError::Io { what, source: std::io::Error::other(panic) });
            }
        };
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let open = Open { record: record.clone(), place: place.clone() };
        self.all_mut().insert(id, open);
        Ok(place)
    }

    pub async fn close(&self, id: DatastoreId) {
        let _turn = self.turn.lock().await;
        self.forget(id);
        self.seen.send_if_modified(|seen| seen.before.remove(&id));
    }

    /// Closes all: their directories are another daemon's to open.
    pub async fn close_all(&self) {
        let _turn = self.turn.lock().await;
        // A check under way has one open as well; it ends with the daemon's tasks.
        let _checks = self.checks.lock().await;
        self.all_mut().clear();
    }

    fn all(&self) -> RwLockReadGuard<'_, BTreeMap<DatastoreId, Open>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<DatastoreId, Open>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, id: DatastoreId) {
        self.all_mut().remove(&id);
        self.seen.send_if_modified(|seen| {
            let problem = seen.problems.remove(&id).is_some();
            let proven = seen.proven.remove(&id) && seen.before.insert(id);
            proven || problem
        });
    }

    /// What was proven before stands: it is not here now, that is all.
    fn failed(&self, id: DatastoreId, problem: Problem) {
        self.seen
            .send_if_modified(|seen| seen.problems.insert(id, problem.clone()) != Some(problem));
    }

    /// The file system is not there any more.
    async fn lost(&self, id: DatastoreId, problem: Problem) {
        let _turn = self.turn.lock().await;
        self.forget(id);
        self.failed(id, problem);
    }

    /// What is wrong, and the shared datastores that this server is good for, at one
    /// moment. Those of the daemon before stay until they have been looked at.
    pub fn report(&self) -> (Vec<Condition>, BTreeSet<DatastoreId>) {
        let condition = |(id, problem): (&DatastoreId, &Problem)| Condition {
            subject: format!("datastore/{id}"),
            problem: problem.clone(),
        };
        let seen = self.seen.borrow();
        let conditions = seen.problems.iter().map(condition).collect();
        (conditions, seen.proven.union(&seen.before).copied().collect())
    }

    pub fn changes(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }
}
