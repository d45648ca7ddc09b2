//! What the engine and its drivers share: who runs here, cancelling, forgetting.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use basin_model::TaskId;
use basin_model::keys::{self, Kind};
use basin_model::task::Task;
use basin_store::records::{self, CommitError, TxnBuilder, UpdateError, from_entry};
use basin_store::{Store, StoreError};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::engine::{CancelError, Options};
use super::history::outdated;
use super::progress::Progress;
use super::record::{Phase, Record};
use super::registry::{Definition, Registry};

pub(super) struct Core<S> {
    pub store: Arc<dyn Store>,
    pub services: Arc<S>,
    pub options: Options,
    pub registry: Registry<S>,
    running: Mutex<HashMap<TaskId, Running>>,
    pub drivers: TaskTracker,
    ended: AtomicU32,
}

/// A workflow that this engine drives.
pub(super) struct Running {
    pub epoch: u64,
    pub progress: watch::Sender<Progress>,
    pub cancel: CancellationToken,
    pub driver: AbortHandle,
}

impl<S> Core<S> {
    pub fn new(
        store: Arc<dyn Store>,
        services: Arc<S>,
        registry: Registry<S>,
        options: Options,
    ) -> Self {
        let (running, drivers) = (Mutex::default(), TaskTracker::new());
        Self { store, services, options, registry, running, drivers, ended: AtomicU32::new(0) }
    }

    pub fn running(&self) -> MutexGuard<'_, HashMap<TaskId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver of this epoch is at its end.
    pub fn forget(&self, id: TaskId, epoch: u64) {
        let mut running = self.running();
        if running.get(&id).is_some_and(|r| r.epoch == epoch) {
            running.remove(&id);
        }
    }
}

impl<S: Send + Sync + 'static> Core<S> {
    pub async fn cancel(&self, id: TaskId) -> Result<(), CancelError> {
        loop {
            let task = records::get::<Task>(&*self.store, &keys::task(id)).await?;
            let task = task.ok_or(CancelError::NotFound(id))?;
            if task.value.state.is_over() {
                return Err(CancelError::Over(id));
            }
            let record = records::get::<Record>(&*self.store, &keys::workflow(id)).await?;
            let Some(record) = record else {
                // It ended between the two reads.
                continue;
            };
            let Phase::Run { step } = &record.value.phase else { return Ok(()) };
            let definition = self.registry.find(&record.value.kind);
            let forward =
                |d: Arc<Definition<S>>| d.plan.find(step).is_some_and(|n| d.plan.is_forward(n));
            if definition.is_some_and(forward) {
                return Err(CancelError::TooLate { task: id, step: step.clone() });
            }
            // On the record that was read: so it is not past that point meanwhile.
            let requested = Task { cancel_requested: true, ..task.value.clone() };
            let txn = TxnBuilder::new().replace(&task, &requested).require_unchanged(&record);
            match txn.commit(&*self.store).await {
                Ok(_) => {
                    if let Some(running) = self.running().get(&id) {
                        running.cancel.cancel();
                    }
                    return Ok(());
                }
                Err(CommitError::Refused(_)) => (),
                Err(CommitError::Store(e)) => return Err(e.into()),
            }
        }
    }

    /// Tells people of a workflow that nobody can go on with.
    pub async fn report_stuck(&self, id: TaskId, why: &str) -> Result<(), StoreError> {
        tracing::error!(task = %id, "cannot resume the workflow: {why}");
        let message = format!("cannot go on: {why}");
        let note = |task: Task| Ok::<_, ()>(Task { message: message.clone(), ..task });
        match records::update(&*self.store, &keys::task(id), note).await {
            Ok(_) | Err(UpdateError::Absent(_) | UpdateError::Refused(())) => Ok(()),
            // An unreadable task must not keep the others from being resumed.
            Err(UpdateError::Store(StoreError::Unusable(why))) => {
                tracing::error!(task = %id, "{why}");
                Ok(())
            }
            Err(UpdateError::Store(e)) => Err(e),
        }
    }

    /// Forgets old tasks now and then.
    pub async fn ended(&self) {
        if self.ended.fetch_add(1, Ordering::Relaxed) % 16 == 15
            && let Err(e) = self.prune().await
        {
            tracing::warn!("cannot forget old tasks: {e}");
        }
    }

    pub async fn prune(&self) -> Result<(), StoreError> {
        let entries = self.store.list(&Kind::Task.prefix()).await?.entries;
        let tasks: Vec<Task> =
            entries.iter().filter_map(|e| from_entry(e).ok()).map(|read| read.value).collect();
        let forget = outdated(&tasks, Timestamp::now(), self.options.history);
        for ids in forget.chunks(100) {
            let txn = ids.iter().fold(TxnBuilder::new(), |txn, id| txn.delete(keys::task(*id)));
            match txn.commit(&*self.store).await {
                Ok(_) | Err(CommitError::Refused(_)) => (),
                Err(CommitError::Store(e)) => return Err(e),
            }
        }
        Ok(())
    }
}
