//! Tries a workflow in every way that can go wrong. For tests.
//!
//! A workflow that passes [`check`] finishes although each step ran twice or the
//! engine died before or after any step; and leaves the world as it was when
//! any step failed, when it was cancelled at any step, and when the engine died
//! or an undo failed while it was undone.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use basin_model::TaskId;
use basin_model::task::{Problem, Task, TaskState};
use basin_store::Store;
use basin_store::records::TxnBuilder;

use super::definition::Workflow;
use super::engine::{Options, Workflows};
use super::faults::{Fault, Faults, Place, Point};
use super::history::HistoryLimits;
use super::plan::Class;
use super::registry::Registry;

/// A world that the workflow has not touched yet.
pub struct World<W: Workflow> {
    pub store: Arc<dyn Store>,
    pub services: Arc<W::Services>,
    pub workflow: W,
    /// What [`Workflows::start`] is given.
    pub reserve: TxnBuilder,
    /// What has to live as long: directories, servers.
    pub keep: Box<dyn Any>,
}

/// How long any one trial may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs every trial, each in a fresh world.
///
/// `fingerprint` is what two worlds are compared by: everything that the
/// workflow may change, but for ids that differ between two fresh worlds. Leave
/// out the store's tasks and workflows; put in its other keys.
///
/// # Panics
/// If the workflow breaks its contract; the message names the trial.
pub async fn check<W, T>(
    fresh: impl AsyncFn() -> World<W>,
    fingerprint: impl AsyncFn(&W::Services) -> T,
) where
    W: Workflow,
    T: PartialEq + Debug,
{
    let trials = Trials { fresh, fingerprint };
    let steps: Vec<(&'static str, Class)> = W::steps().iter().map(|s| (s.name, s.class)).collect();
    let finished = trials.plain().await;
    for (name, class) in &steps {
        trials
            .finishes(
                &finished,
                &format!("{name} runs twice"),
                once(name, Point::After, Fault::Repeat),
            )
            .await;
        for point in [Point::Before, Point::After] {
            let at = format!("{name} {point:?}");
            trials
                .finishes(&finished, &format!("crash at {at}"), once(name, point, Fault::Stop))
                .await;
            let (fail, cancel) = (once(name, point, fail()), once(name, point, Fault::Cancel));
            if *class == Class::Decisive && point == Point::After {
                // What it has decided it cannot have failed at.
                trials.finishes(&finished, &format!("cancel at {at}"), cancel).await;
            } else if *class == Class::Forward {
                trials.finishes(&finished, &format!("failure at {at}"), fail).await;
                trials.finishes(&finished, &format!("cancel at {at}"), cancel).await;
            } else {
                trials.is_undone(&format!("failure at {at}"), false, fail).await;
                trials.is_undone(&format!("cancel at {at}"), true, cancel).await;
            }
        }
    }
    // Everything there is to undo is undone after a failure of the last of these.
    let Some((last, class)) = steps.iter().rfind(|(_, class)| *class != Class::Forward) else {
        return;
    };
    let late = if *class == Class::Decisive { Point::Before } else { Point::After };
    for (name, _) in steps.iter().filter(|(_, class)| *class == Class::Undoable) {
        for (point, fault) in [
            (Point::UndoBefore, Fault::Stop),
            (Point::UndoAfter, Fault::Stop),
            (Point::UndoBefore, fail()),
            (Point::UndoAfter, fail()),
            (Point::UndoAfter, Fault::Repeat),
        ] {
            let trial = format!("{fault:?} at {name} {point:?}");
            let (first, second) = (once(last, late, fail()), once(name, point, fault));
            let both: Faults = Arc::new(move |place| match first(place) {
                Fault::Nothing => second(place),
                fault => fault,
            });
            trials.is_undone(&trial, false, both).await;
        }
    }
}

fn fail() -> Fault {
    Fault::Fail(Problem {
        code: "injected".to_owned(),
        detail: "the test wants it to fail".to_owned(),
        advice: "nothing to do".to_owned(),
    })
}

/// The fault, the first time that the place is reached.
fn once(step: &str, point: Point, fault: Fault) -> Faults {
    let (step, reached) = (step.to_owned(), AtomicUsize::new(0));
    Arc::new(move |place: &Place| {
        let here = place.step == step && place.point == point;
        if here && reached.fetch_add(1, Ordering::SeqCst) == 0 {
            fault.clone()
        } else {
            Fault::Nothing
        }
    })
}

struct Trials<F, P> {
    fresh: F,
    fingerprint: P,
}

impl<F, P> Trials<F, P> {
    async fn plain<W, T>(&self) -> T
    where
        W: Workflow,
        F: AsyncFn() -> World<W>,
        P: AsyncFn(&W::Services) -> T,
        T: PartialEq + Debug,
    {
        let (task, _, after) = self.run("plain run", super::faults::none()).await;
        assert_eq!(task.state, TaskState::Done, "{}: plain run", W::KIND);
        after
    }

    async fn finishes<W, T>(&self, finished: &T, trial: &str, faults: Faults)
    where
        W: Workflow,
        F: AsyncFn() -> World<W>,
        P: AsyncFn(&W::Services) -> T,
        T: PartialEq + Debug,
    {
        let (task, _, after) = self.run(trial, faults).await;
        assert_eq!(task.state, TaskState::Done, "{}: {trial}", W::KIND);
        assert_eq!(&after, finished, "{}: {trial}: not what a plain run leaves", W::KIND);
    }

    async fn is_undone<W, T>(&self, trial: &str, cancelled: bool, faults: Faults)
    where
        W: Workflow,
        F: AsyncFn() -> World<W>,
        P: AsyncFn(&W::Services) -> T,
        T: PartialEq + Debug,
    {
        let (task, before, after) = self.run(trial, faults).await;
        match task.state {
            TaskState::Cancelled if cancelled => (),
            TaskState::Failed { .. } if !cancelled => (),
            state => panic!("{}: {trial}: ended as {state:?}", W::KIND),
        }
        assert_eq!(after, before, "{}: {trial}: something is left", W::KIND);
    }

    /// The task at its end, and the world before and after. A second engine
    /// takes over if the first one stopped.
    async fn run<W, T>(&self, trial: &str, faults: Faults) -> (Task, T, T)
    where
        W: Workflow,
        F: AsyncFn() -> World<W>,
        P: AsyncFn(&W::Services) -> T,
    {
        let world = (self.fresh)().await;
        let before = (self.fingerprint)(&world.services).await;
        let engine = |faults| {
            let registry = Registry::new().with::<W>();
            let options = Options {
                faults,
                history: HistoryLimits::default(),
                retry_first: Duration::from_millis(1),
                retry_cap: Duration::from_millis(10),
            };
            let (store, services) = (Arc::clone(&world.store), Arc::clone(&world.services));
            Workflows::with_options(store, services, registry, options)
        };
        let what = format!("{}: {trial}", W::KIND);
        let first = engine(Arc::clone(&faults));
        let task = match first.start(world.workflow.clone(), world.reserve).await {
            Ok(task) => task,
            Err(e) => panic!("{what}: does not start: {e}"),
        };
        let drive = async |engine: &Workflows<W::Services>, id: TaskId| {
            if tokio::time::timeout(PATIENCE, engine.idle()).await.is_err() {
                panic!("{what}: hangs at {:?}", engine.get(id).await);
            }
            match engine.get(id).await {
                Ok(Some(task)) => task.value,
                other => panic!("{what}: the task is {other:?}"),
            }
        };
        let mut task = drive(&first, task.id).await;
        if !task.state.is_over() {
            let second = engine(faults);
            match second.resume_all().await {
                Ok(1) => task = drive(&second, task.id).await,
                other => panic!("{what}: resumed {other:?}"),
            }
        }
        let record = world.store.get(&basin_model::keys::workflow(task.id)).await;
        assert!(matches!(record, Ok(None)), "{what}: the workflow is still there: {record:?}");
        (task, before, (self.fingerprint)(&world.services).await)
    }
}
