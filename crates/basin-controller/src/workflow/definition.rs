//! What a workflow is made of.

use std::future::Future;
use std::sync::Arc;

use basin_model::TaskId;
use basin_model::task::Problem;
use basin_store::records::TxnBuilder;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::plan::Class;
use super::progress::Reporter;

/// A bounded operation: parameters, and what its steps learned so far.
pub trait Workflow: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// What the steps work with; not part of the state.
    type Services: Send + Sync + 'static;

    /// Stable: workflows of this kind are in the store. Such as `vm-create`.
    const KIND: &'static str;

    /// What it is about, such as `vm/0190…`.
    fn subject(&self) -> String;

    /// In order: what can be undone, then what goes forward only. Names are
    /// stable, too.
    fn steps() -> Vec<Step<Self>>;

    /// Changes that come with the success of the last step, all or none. They
    /// need no conditions: the engine holds the workflow.
    fn on_done(&self) -> TxnBuilder {
        TxnBuilder::new()
    }

    /// Changes that come with the end of the undo: above all what takes back the
    /// reservations that [`super::Workflows::start`] made.
    fn on_undone(&self) -> TxnBuilder {
        TxnBuilder::new()
    }
}

pub(super) type Outcome = Result<(), Problem>;

type Body<W> = Box<
    dyn for<'a> Fn(&'a mut W, &'a StepContext<<W as Workflow>::Services>) -> BoxFuture<'a, Outcome>
        + Send
        + Sync,
>;

/// An async function of the workflow and the context. (A trait of its own, since
/// a bound on [`AsyncFn`] cannot say that the future is [`Send`].)
pub trait StepBody<'a, W: Workflow>: Send + Sync + 'static {
    type Running: Future<Output = Outcome> + Send + 'a;
    fn call(&self, workflow: &'a mut W, cx: &'a StepContext<W::Services>) -> Self::Running;
}

impl<'a, W, F, R> StepBody<'a, W> for F
where
    W: Workflow,
    F: Fn(&'a mut W, &'a StepContext<W::Services>) -> R + Send + Sync + 'static,
    R: Future<Output = Outcome> + Send + 'a,
{
    type Running = R;
    fn call(&self, workflow: &'a mut W, cx: &'a StepContext<W::Services>) -> R {
        self(workflow, cx)
    }
}

/// One step of a workflow. See the module for what it may count on and owes.
pub struct Step<W: Workflow> {
    pub(super) name: &'static str,
    pub(super) weight: u32,
    pub(super) class: Class,
    pub(super) run: Body<W>,
    pub(super) undo: Body<W>,
}

fn body<W: Workflow>(f: impl for<'a> StepBody<'a, W>) -> Body<W> {
    Box::new(move |workflow, cx| f.call(workflow, cx).boxed())
}

impl<W: Workflow> Step<W> {
    /// A step that its undo takes back.
    pub fn undoable(
        name: &'static str,
        run: impl for<'a> StepBody<'a, W>,
        undo: impl for<'a> StepBody<'a, W>,
    ) -> Self {
        Self { name, weight: 1, class: Class::Undoable, run: body(run), undo: body(undo) }
    }

    /// A step that leaves nothing to take back: it looks, chooses, waits.
    pub fn without_undo(name: &'static str, run: impl for<'a> StepBody<'a, W>) -> Self {
        Self { class: Class::WithoutUndo, ..Self::forward(name, run) }
    }

    /// The step at which it shows whether there is a way back, by itself and at a moment
    /// that nobody else chooses. It runs also when the workflow is to be cancelled, and has
    /// to look at that; an error says that all can be undone, success that nothing is,
    /// even if somebody had asked for it.
    pub fn decisive(name: &'static str, run: impl for<'a> StepBody<'a, W>) -> Self {
        Self { class: Class::Decisive, ..Self::forward(name, run) }
    }

    /// A step past the point of no return: tried again until it works.
    pub fn forward(name: &'static str, run: impl for<'a> StepBody<'a, W>) -> Self {
        let nothing: Body<W> = Box::new(|_, _| futures::future::ready(Ok(())).boxed());
        Self { name, weight: 1, class: Class::Forward, run: body(run), undo: nothing }
    }

    /// How long it takes, compared with the other steps; 1 unless said. For the
    /// percentage that people see.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }
}

/// What a step has around it.
pub struct StepContext<S> {
    pub services: Arc<S>,
    pub task: TaskId,
    /// How often the workflow was taken over. An effect elsewhere that carries it
    /// can be refused when it comes from an engine taken for dead.
    pub epoch: u64,
    /// Somebody wants the workflow cancelled: return early, with any error. Never
    /// set in an undo or a forward step.
    pub cancel: CancellationToken,
    pub(super) reporter: Reporter,
}

impl<S> StepContext<S> {
    /// How far the step is (0 to 1) and with what, in words. As often as you
    /// like: it is written to the store once a second at most.
    pub fn progress(&self, fraction: f64, message: impl Into<String>) {
        self.reporter.report(fraction, message.into());
    }

    /// What a long copy reports to: bytes done of all, under the words given.
    pub fn bytes_progress(&self, what: String) -> basin_storage::Progress {
        let reporter = self.reporter.clone();
        Arc::new(move |done, all| {
            let fraction = all.filter(|all| all.get() > 0);
            let fraction = fraction.map_or(0.0, |all| done.get() as f64 / all.get() as f64);
            let message = match all {
                Some(all) => format!("{what}: {done} of {all}"),
                None => format!("{what}: {done}"),
            };
            reporter.report(fraction, message);
        })
    }

    /// An error if the workflow is to be cancelled; for loops.
    pub fn check_cancel(&self) -> Result<(), Problem> {
        if self.cancel.is_cancelled() { Err(cancelled()) } else { Ok(()) }
    }

    /// What the future yields, or an error as soon as the workflow is to be
    /// cancelled; the future is dropped then.
    pub async fn unless_cancelled<T>(
        &self,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(cancelled()),
            outcome = work => outcome,
        }
    }
}

/// What a cancelled task shows while it is undone.
pub(super) fn cancelled() -> Problem {
    Problem {
        code: "cancelled".to_owned(),
        detail: "the task was cancelled".to_owned(),
        advice: "what it had done is being undone; start it again if you still want it".to_owned(),
    }
}
