//! Drives one workflow: runs its steps, saves where it is, undoes what failed.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use basin_model::TaskId;
use basin_model::keys;
use basin_model::task::{Problem, Task, TaskState};
use basin_store::records::{self, CommitError, TxnBuilder, Versioned};
use basin_store::{Revision, StoreError};
use futures::FutureExt;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::core::Core;
use super::definition::{Outcome, StepContext, cancelled};
use super::faults::{Fault, Place, Point};
use super::listener;
use super::plan::{Cause, Next, Plan};
use super::progress::{Progress, Reporter};
use super::record::{Phase, Record};
use super::registry::AnyWorkflow;

pub(super) struct Driver<S: Send + Sync + 'static> {
    pub core: Arc<Core<S>>,
    pub id: TaskId,
    pub plan: Arc<Plan>,
    /// As it is in the store, at this revision.
    pub record: Record,
    pub revision: Revision,
    pub workflow: Box<dyn AnyWorkflow<S>>,
    pub progress: watch::Sender<Progress>,
    pub cancel: CancellationToken,
}

/// This engine has nothing more to do with the workflow.
#[derive(Debug, thiserror::Error)]
enum Left {
    #[error("it has ended")]
    Ended,
    #[error("another engine drives it")]
    TakenOver,
    /// [`Fault::Stop`].
    #[error("a test stopped it")]
    Stopped,
    /// [`super::Workflows::resume_all`] checks this.
    #[error("there is no step {0}")]
    Lost(String),
}

impl<S: Send + Sync + 'static> Drop for Driver<S> {
    fn drop(&mut self) {
        self.core.forget(self.id, self.record.epoch);
    }
}

impl<S: Send + Sync + 'static> Driver<S> {
    pub async fn run(mut self) {
        let (id, kind) = (self.id, self.record.kind.clone());
        tracing::debug!(task = %id, kind, epoch = self.record.epoch, "driving");
        let listener = listener::listen(
            Arc::clone(&self.core.store),
            id,
            self.record.epoch,
            self.progress.subscribe(),
            self.cancel.clone(),
        );
        let left = tokio::select! {
            left = self.drive() => left,
            () = listener => Left::TakenOver,
        };
        match left {
            Left::Ended => self.core.ended().await,
            left => tracing::info!(task = %id, kind, "no longer driven here: {left}"),
        }
    }

    async fn drive(&mut self) -> Left {
        let mut tries = 0;
        loop {
            let step = match self.plan.find(self.record.phase.step()) {
                Some(step) => step,
                None => return Left::Lost(self.record.phase.step().to_owned()),
            };
            let cause = match &self.record.phase {
                Phase::Run { .. } => None,
                Phase::Undo { cause, .. } => Some(cause.clone()),
            };
            let (outcome, workflow) = match self.attempt(step, cause.is_some()).await {
                Ok(attempt) => attempt,
                Err(left) => return left,
            };
            if let Err(problem) = &outcome {
                let (name, undo) = (self.plan.name(step), cause.is_some());
                tracing::warn!(task = %self.id, step = name, undo, "failed: {}", problem.detail);
            }
            let plan = Arc::clone(&self.plan);
            let decide = |cancel: bool| match cause.clone() {
                None => plan.after_run(step, outcome.clone(), cancel),
                Some(cause) => plan.after_undo(step, outcome.clone(), cause),
            };
            match self.advance(decide, workflow).await {
                Ok(Next::Again(problem)) => {
                    self.pause(step, cause.is_some(), tries, &problem.detail).await;
                    tries += 1;
                }
                Ok(Next::Done | Next::Undone(_)) => return Left::Ended,
                Ok(Next::Run(_) | Next::Undo(..)) => tries = 0,
                Err(left) => return left,
            }
        }
    }

    /// Runs or undoes the step, upon a copy of the workflow.
    async fn attempt(
        &self,
        step: usize,
        undo: bool,
    ) -> Result<(Outcome, Box<dyn AnyWorkflow<S>>), Left> {
        let reporter =
            Reporter { progress: self.progress.clone(), plan: Arc::clone(&self.plan), step };
        let name = self.plan.name(step).replace('-', " ");
        if undo {
            reporter.say(format!("undoing: {name}"));
        } else {
            reporter.report(0.0, name);
        }
        let stoppable = !undo && !self.plan.is_forward(step);
        let cancel = if stoppable { self.cancel.clone() } else { CancellationToken::new() };
        let cx = StepContext {
            services: Arc::clone(&self.core.services),
            task: self.id,
            epoch: self.record.epoch,
            cancel,
            reporter,
        };
        let before = if undo { Point::UndoBefore } else { Point::Before };
        if let Fault::Fail(problem) = self.reach(step, before).await? {
            return Ok((Err(problem), self.workflow.copy()));
        }
        if cx.cancel.is_cancelled() && !self.plan.is_decisive(step) {
            return Ok((Err(cancelled()), self.workflow.copy()));
        }
        let (mut outcome, mut workflow) = self.run_caught(step, undo, &cx).await;
        let after = if undo { Point::UndoAfter } else { Point::After };
        match self.reach(step, after).await? {
            Fault::Fail(problem) => outcome = Err(problem),
            Fault::Repeat => (outcome, workflow) = self.run_caught(step, undo, &cx).await,
            _ => (),
        }
        // What a failed step learned is forgotten, as a crash would have it.
        let workflow = if outcome.is_ok() { workflow } else { self.workflow.copy() };
        Ok((outcome, workflow))
    }

    async fn run_caught(
        &self,
        step: usize,
        undo: bool,
        cx: &StepContext<S>,
    ) -> (Outcome, Box<dyn AnyWorkflow<S>>) {
        let mut workflow = self.workflow.copy();
        let work = async {
            if undo { workflow.undo(step, cx).await } else { workflow.run(step, cx).await }
        };
        // What the panic left half changed is a copy that nobody looks at again.
        match AssertUnwindSafe(work).catch_unwind().await {
            Ok(outcome) => (outcome, workflow),
            Err(panic) => {
                let problem = panicked(self.plan.name(step), &*panic);
                (Err(problem), self.workflow.copy())
            }
        }
    }

    async fn reach(&self, step: usize, point: Point) -> Result<Fault, Left> {
        let place =
            Place { kind: self.record.kind.clone(), step: self.plan.name(step).to_owned(), point };
        match (self.core.options.faults)(&place) {
            Fault::Abort => std::process::abort(),
            Fault::Stop => Err(Left::Stopped),
            Fault::Cancel => {
                let answer = self.core.cancel(self.id).await;
                tracing::debug!(task = %self.id, %place, ?answer, "cancelled by a fault");
                Ok(Fault::Nothing)
            }
            fault => Ok(fault),
        }
    }

    /// Saves where to go next. What is decided counts the task's wish to be
    /// cancelled as it is in the very transaction.
    async fn advance(
        &mut self,
        decide: impl Fn(bool) -> Next,
        workflow: Box<dyn AnyWorkflow<S>>,
    ) -> Result<Next, Left> {
        let mut tries = 0;
        loop {
            let store = &*self.core.store;
            let task = match records::get::<Task>(store, &keys::task(self.id)).await {
                Ok(Some(task)) if !task.value.state.is_over() => task,
                Ok(_) => return Err(Left::Ended),
                Err(e) => {
                    self.wait_for_store(&mut tries, &e).await;
                    continue;
                }
            };
            let next = decide(task.value.cancel_requested);
            if matches!(next, Next::Again(_)) {
                return Ok(next);
            }
            let (txn, record, progress) = match self.step_to(&next, task, &*workflow) {
                Ok(step) => step,
                Err(e) => return Ok(Next::Again(unsaved(&e))),
            };
            match txn.commit(store).await {
                Ok(revision) => {
                    self.take(record, revision, progress, workflow);
                    return Ok(next);
                }
                Err(CommitError::Refused(c)) if c.key() == keys::task(self.id) => (),
                Err(CommitError::Refused(c)) if c.key() == keys::workflow(self.id) => {
                    match records::get::<Record>(store, &keys::workflow(self.id)).await {
                        // A commit whose answer was lost: it is done after all.
                        Ok(Some(now)) if now.value.epoch == self.record.epoch => {
                            if Some(&now.value) == record.as_ref() {
                                self.take(record, now.revision, progress, workflow);
                                return Ok(next);
                            }
                            self.revision = now.revision;
                        }
                        Ok(_) => return Err(Left::TakenOver),
                        Err(e) => self.wait_for_store(&mut tries, &e).await,
                    }
                }
                Err(CommitError::Refused(c)) => {
                    let e = StoreError::Invalid(CommitError::Refused(c).to_string());
                    self.wait_for_store(&mut tries, &e).await;
                }
                Err(CommitError::Store(e)) => self.wait_for_store(&mut tries, &e).await,
            }
        }
    }

    /// The transaction that goes there, the record after it (none at the end),
    /// and what people see then.
    fn step_to(
        &self,
        next: &Next,
        read: Versioned<Task>,
        workflow: &dyn AnyWorkflow<S>,
    ) -> Result<(TxnBuilder, Option<Record>, Progress), serde_json::Error> {
        let mut task = read.value.clone();
        let name = |step: usize| self.plan.name(step).to_owned();
        let (phase, extra) = match next {
            Next::Run(step) => {
                task.message = name(*step).replace('-', " ");
                task.percent = self.plan.percent(*step, 0.0);
                (Some(Phase::Run { step: name(*step) }), None)
            }
            Next::Undo(step, cause) => {
                task.message = format!("undoing: {}", name(*step).replace('-', " "));
                task.state = TaskState::Undoing { problem: problem(cause) };
                (Some(Phase::Undo { step: name(*step), cause: cause.clone() }), None)
            }
            Next::Undone(cause) => {
                task.state = match cause {
                    Cause::Cancelled => TaskState::Cancelled,
                    Cause::Failed(problem) => TaskState::Failed { problem: problem.clone() },
                };
                (None, Some(workflow.on_undone()))
            }
            // (`Again` goes nowhere, so it does not come here.)
            Next::Done | Next::Again(_) => {
                (task.state, task.percent) = (TaskState::Done, 100);
                (None, Some(workflow.on_done()))
            }
        };
        if phase.is_none() {
            task.message = String::new();
            task.finished_at = Some(Timestamp::now());
        }
        let held = Versioned::new(keys::workflow(self.id), (), self.revision);
        let txn = TxnBuilder::new().replace(&read, &task).and(extra.unwrap_or_default());
        let saved = workflow.save()?;
        let record = phase.map(|phase| Record { phase, workflow: saved, ..self.record.clone() });
        let txn = match &record {
            Some(record) => txn.replace(&held, record),
            None => txn.require_unchanged(&held).delete(held.key.clone()),
        };
        Ok((txn, record, Progress { message: task.message, percent: task.percent }))
    }

    fn take(
        &mut self,
        record: Option<Record>,
        revision: Revision,
        progress: Progress,
        workflow: Box<dyn AnyWorkflow<S>>,
    ) {
        if let Some(record) = record {
            self.record = record;
        }
        (self.revision, self.workflow) = (revision, workflow);
        self.say(progress);
    }

    fn say(&self, progress: Progress) {
        self.progress.send_replace(progress);
    }

    async fn pause(&self, step: usize, undo: bool, tries: u32, why: &str) {
        let pause = self.core.options.pause(tries);
        let what = if undo { "undoing: " } else { "" };
        let name = self.plan.name(step).replace('-', " ");
        let message = format!(
            "{what}{name} failed {} times, trying again in {} s: {why}",
            tries + 1,
            pause.as_secs()
        );
        let percent = self.progress.borrow().percent;
        self.say(Progress { message, percent });
        tokio::time::sleep(pause).await;
    }

    async fn wait_for_store(&self, tries: &mut u32, error: &StoreError) {
        tracing::warn!(task = %self.id, "cannot save where it is: {error}");
        let percent = self.progress.borrow().percent;
        self.say(Progress { message: format!("waiting for the store: {error}"), percent });
        tokio::time::sleep(self.core.options.pause(*tries)).await;
        *tries += 1;
    }
}

fn problem(cause: &Cause) -> Problem {
    match cause {
        Cause::Failed(problem) => problem.clone(),
        Cause::Cancelled => cancelled(),
    }
}

fn panicked(step: &str, panic: &(dyn Any + Send)) -> Problem {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Problem {
        code: "internal-error".to_owned(),
        detail: format!("step {step} broke down: {text}"),
        advice: "this is an error in Basin: report it with the daemon's log".to_owned(),
    }
}

fn unsaved(error: &serde_json::Error) -> Problem {
    Problem {
        code: "internal-error".to_owned(),
        detail: format!("the workflow cannot be saved: {error}"),
        advice: "this is an error in Basin: report it with the daemon's log".to_owned(),
    }
}
