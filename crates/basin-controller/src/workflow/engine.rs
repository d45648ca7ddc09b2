//! The engine: starts, resumes, cancels and remembers workflows.

use std::sync::Arc;
use std::time::Duration;

use basin_model::TaskId;
use basin_model::keys::{self, Kind};
use basin_model::task::{Task, TaskState};
use basin_store::records::{
    self, CommitError, RecordEvent, TxnBuilder, Versioned, from_entry, watch_records,
};
use basin_store::{Compare, Revision, Store, StoreError};
use futures::StreamExt;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::core::{Core, Running};
use super::definition::Workflow;
use super::driver::Driver;
use super::faults::{self, Faults};
use super::history::HistoryLimits;
use super::progress::Progress;
use super::record::{Phase, Record};
use super::registry::Registry;

/// Runs workflows over services `S`. Cheap to clone: clones are the same engine.
pub struct Workflows<S>(Arc<Core<S>>);

impl<S> Clone for Workflows<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// What is seldom other than the default.
pub struct Options {
    pub faults: Faults,
    pub history: HistoryLimits,
    /// The pause before a first retry; each later one is twice as long.
    pub retry_first: Duration,
    pub retry_cap: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            faults: faults::none(),
            history: HistoryLimits::default(),
            retry_first: Duration::from_secs(1),
            retry_cap: Duration::from_secs(60),
        }
    }
}

impl Options {
    pub(super) fn pause(&self, tries: u32) -> Duration {
        self.retry_first.saturating_mul(1 << tries.min(20)).min(self.retry_cap)
    }
}

/// Why a workflow did not start. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A condition of the reservation does not hold.
    #[error("{}", CommitError::Refused(.0.clone()))]
    Refused(Compare),
    #[error("this engine knows no workflow {0}")]
    Unknown(&'static str),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a task is not cancelled.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    #[error("there is no task {0}")]
    NotFound(TaskId),
    #[error("task {0} is over")]
    Over(TaskId),
    #[error("task {task} can no longer be cancelled: step {step} is past the point of no return")]
    TooLate { task: TaskId, step: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl<S: Send + Sync + 'static> Workflows<S> {
    pub fn new(store: Arc<dyn Store>, services: Arc<S>, registry: Registry<S>) -> Self {
        Self::with_options(store, services, registry, Options::default())
    }

    pub fn with_options(
        store: Arc<dyn Store>,
        services: Arc<S>,
        registry: Registry<S>,
        options: Options,
    ) -> Self {
        Self(Arc::new(Core::new(store, services, registry, options)))
    }

    /// Makes the task, the workflow and what the caller reserves in one
    /// transaction, and begins. [`Workflow::on_undone`] has to give the
    /// reservation back.
    pub async fn start<W: Workflow<Services = S>>(
        &self,
        workflow: W,
        reserve: TxnBuilder,
    ) -> Result<Task, StartError> {
        let definition = self.0.registry.find(W::KIND).ok_or(StartError::Unknown(W::KIND))?;
        let id = TaskId::from_uuid(Uuid::now_v7());
        let first = definition.plan.name(0).to_owned();
        let task = Task {
            id,
            kind: W::KIND.to_owned(),
            subject: workflow.subject(),
            state: TaskState::Running,
            message: first.replace('-', " "),
            percent: 0,
            cancel_requested: false,
            created_at: Timestamp::now(),
            finished_at: None,
        };
        let workflow = serde_json::to_value(&workflow)
            .map_err(|e| StoreError::Invalid(format!("{} has no JSON form: {e}", W::KIND)))?;
        let phase = Phase::Run { step: first };
        let record = Record { kind: W::KIND.to_owned(), epoch: 1, phase, workflow };
        let txn = TxnBuilder::new()
            .create(keys::task(id), &task)
            .create(keys::workflow(id), &record)
            .and(reserve);
        let revision = txn.commit(&*self.0.store).await.map_err(|e| match e {
            CommitError::Refused(condition) => StartError::Refused(condition),
            CommitError::Store(e) => StartError::Store(e),
        })?;
        match self.drive(id, record, revision, false) {
            Ok(()) => Ok(task),
            Err(why) => Err(StoreError::Invalid(why).into()),
        }
    }

    /// Takes over every workflow that this engine does not drive yet: at the
    /// start of a daemon, and when it becomes the leader. Returns how many.
    pub async fn resume_all(&self) -> Result<usize, StoreError> {
        self.0.prune().await?;
        let mut resumed = 0;
        for entry in self.0.store.list(&Kind::Workflow.prefix()).await?.entries {
            let id = Kind::parse(&entry.key).and_then(|(_, id)| id.parse::<TaskId>().ok());
            let Some(id) = id.filter(|id| !self.0.running().contains_key(id)) else { continue };
            let result = match from_entry::<Record>(&entry) {
                Ok(record) => self.take_over(id, record).await?,
                Err(e) => Err(e.to_string()),
            };
            match result {
                Ok(true) => resumed += 1,
                Ok(false) => (),
                Err(why) => self.0.report_stuck(id, &why).await?,
            }
        }
        Ok(resumed)
    }

    /// Raises the epoch, so that whoever drove it before stops. False if somebody
    /// else was quicker.
    async fn take_over(
        &self,
        id: TaskId,
        read: Versioned<Record>,
    ) -> Result<Result<bool, String>, StoreError> {
        let definition = self.0.registry.find(&read.value.kind);
        if definition.is_none_or(|d| d.plan.find(read.value.phase.step()).is_none()) {
            let (kind, step) = (&read.value.kind, read.value.phase.step());
            return Ok(Err(format!("this version of Basin does not know {kind}/{step}")));
        }
        let Some(task) = records::get::<Task>(&*self.0.store, &keys::task(id)).await? else {
            return Ok(Err("its task is missing".to_owned()));
        };
        let record = Record { epoch: read.value.epoch + 1, ..read.value.clone() };
        match TxnBuilder::new().replace(&read, &record).commit(&*self.0.store).await {
            Ok(revision) => {
                let cancel = task.value.cancel_requested;
                Ok(self.drive(id, record, revision, cancel).map(|()| true))
            }
            Err(CommitError::Refused(_)) => Ok(Ok(false)),
            Err(CommitError::Store(e)) => Err(e),
        }
    }

    fn drive(
        &self,
        id: TaskId,
        record: Record,
        revision: Revision,
        cancelled: bool,
    ) -> Result<(), String> {
        let unknown = || format!("this version of Basin does not know {}", record.kind);
        let definition = self.0.registry.find(&record.kind).ok_or_else(unknown)?;
        let load = (definition.load)(record.workflow.clone());
        let workflow = load.map_err(|e| format!("its record cannot be read: {e}"))?;
        let cancel = CancellationToken::new();
        if cancelled {
            cancel.cancel();
        }
        let (epoch, progress) = (record.epoch, watch::Sender::default());
        let driver = Driver {
            core: Arc::clone(&self.0),
            id,
            plan: Arc::clone(&definition.plan),
            record,
            revision,
            workflow,
            progress: progress.clone(),
            cancel: cancel.clone(),
        };
        // Held over the spawn: the driver takes itself out at its end.
        let mut running = self.0.running();
        match running.get(&id) {
            // `resume_all` came between the start's commit and here.
            Some(newer) if newer.epoch > epoch => return Ok(()),
            Some(older) => older.driver.abort(),
            None => (),
        }
        let driver = self.0.drivers.spawn(driver.run()).abort_handle();
        running.insert(id, Running { epoch, progress, cancel, driver });
        Ok(())
    }

    /// Asks for the task to be undone. It is a promise: once this returns `Ok`,
    /// the task does not end as done; unless its decisive step succeeds all the same.
    pub async fn cancel(&self, id: TaskId) -> Result<(), CancelError> {
        self.0.cancel(id).await
    }

    /// Waits for the task's end, on whichever server it runs. `None`: no such task.
    pub async fn wait(&self, id: TaskId) -> Result<Option<Task>, StoreError> {
        let mut events = watch_records::<Task>(Arc::clone(&self.0.store), keys::task(id));
        loop {
            let task = match events.next().await {
                Some(Ok(RecordEvent::Resync { mut records, .. })) => match records.pop() {
                    Some(record) => record.value,
                    None => return Ok(None),
                },
                Some(Ok(RecordEvent::Put(record))) => record.value,
                Some(Ok(RecordEvent::Deleted { .. })) | None => return Ok(None),
                Some(Err(e)) => return Err(e),
            };
            if task.state.is_over() {
                return Ok(Some(task));
            }
        }
    }

    /// The task, as far as it is now.
    pub async fn get(&self, id: TaskId) -> Result<Option<Versioned<Task>>, StoreError> {
        let read = records::get::<Task>(&*self.0.store, &keys::task(id)).await?;
        Ok(read.map(|mut read| {
            self.overlay(&mut read.value);
            read
        }))
    }

    /// All tasks, oldest first, as far as they are now.
    pub async fn list(&self) -> Result<(Vec<Versioned<Task>>, Revision), StoreError> {
        let (mut tasks, revision) = records::list(&*self.0.store, &Kind::Task.prefix()).await?;
        tasks.iter_mut().for_each(|read| self.overlay(&mut read.value));
        Ok((tasks, revision))
    }

    /// Puts live progress into a task that was read from the store.
    pub fn overlay(&self, task: &mut Task) {
        if task.state.is_over() {
            return;
        }
        if let Some(running) = self.0.running().get(&task.id) {
            let Progress { message, percent } = running.progress.borrow().clone();
            (task.message, task.percent) = (message, percent);
        }
    }

    /// Progress as it happens, of a task that this engine drives.
    pub fn live(&self, id: TaskId) -> Option<watch::Receiver<Progress>> {
        self.0.running().get(&id).map(|r| r.progress.subscribe())
    }

    /// How many workflows this engine drives.
    pub fn running(&self) -> usize {
        self.0.running().len()
    }

    /// Stops driving, wherever each workflow is; another engine resumes them.
    pub async fn stop(&self) {
        self.0.running().values().for_each(|r| r.driver.abort());
        self.idle().await;
    }

    /// Waits until this engine drives nothing.
    pub async fn idle(&self) {
        self.0.drivers.close();
        self.0.drivers.wait().await;
        self.0.drivers.reopen();
    }
}
