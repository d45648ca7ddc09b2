//! Which kinds of workflow an engine knows, without their types.

use std::collections::BTreeMap;
use std::sync::Arc;

use basin_store::records::TxnBuilder;
use futures::future::BoxFuture;
use serde_json::Value;

use super::definition::{Outcome, Step, StepContext, Workflow};
use super::plan::{Plan, StepInfo};

/// A workflow whose type only its definition knows.
pub(super) trait AnyWorkflow<S>: Send + Sync {
    fn run<'a>(&'a mut self, step: usize, cx: &'a StepContext<S>) -> BoxFuture<'a, Outcome>;
    fn undo<'a>(&'a mut self, step: usize, cx: &'a StepContext<S>) -> BoxFuture<'a, Outcome>;
    fn save(&self) -> Result<Value, serde_json::Error>;
    fn on_done(&self) -> TxnBuilder;
    fn on_undone(&self) -> TxnBuilder;
    fn copy(&self) -> Box<dyn AnyWorkflow<S>>;
}

type Load<S> =
    Box<dyn Fn(Value) -> Result<Box<dyn AnyWorkflow<S>>, serde_json::Error> + Send + Sync>;

pub(super) struct Definition<S> {
    pub plan: Arc<Plan>,
    pub load: Load<S>,
}

/// The kinds of workflow that an engine runs.
pub struct Registry<S>(BTreeMap<&'static str, Arc<Definition<S>>>);

impl<S: Send + Sync + 'static> Registry<S> {
    pub fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Adds a kind.
    ///
    /// # Panics
    /// If its steps make no sense or its name is taken: an error of the program,
    /// which any start of it shows.
    #[must_use]
    pub fn with<W: Workflow<Services = S>>(mut self) -> Self {
        let steps = Arc::new(W::steps());
        let info = |s: &Step<W>| StepInfo { name: s.name, weight: s.weight, class: s.class };
        let plan = match Plan::new(steps.iter().map(info).collect()) {
            Ok(plan) => Arc::new(plan),
            Err(why) => panic!("workflow {}: {why}", W::KIND),
        };
        let load: Load<S> = Box::new(move |value| {
            let value: W = serde_json::from_value(value)?;
            Ok(Box::new(Typed { value, steps: Arc::clone(&steps) }))
        });
        let before = self.0.insert(W::KIND, Arc::new(Definition { plan, load }));
        assert!(before.is_none(), "two workflows are named {}", W::KIND);
        self
    }

    pub(super) fn find(&self, kind: &str) -> Option<Arc<Definition<S>>> {
        self.0.get(kind).map(Arc::clone)
    }

    /// Kinds and their steps: what a test has to cover.
    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
        self.0.iter().map(|(k, d)| (*k, d.plan.steps().iter().map(|s| s.name).collect()))
    }
}

impl<S: Send + Sync + 'static> Default for Registry<S> {
    fn default() -> Self {
        Self::new()
    }
}

struct Typed<W: Workflow> {
    value: W,
    steps: Arc<Vec<Step<W>>>,
}

impl<W: Workflow> AnyWorkflow<W::Services> for Typed<W> {
    fn run<'a>(
        &'a mut self,
        step: usize,
        cx: &'a StepContext<W::Services>,
    ) -> BoxFuture<'a, Outcome> {
        (self.steps[step].run)(&mut self.value, cx)
    }

    fn undo<'a>(
        &'a mut self,
        step: usize,
        cx: &'a StepContext<W::Services>,
    ) -> BoxFuture<'a, Outcome> {
        (self.steps[step].undo)(&mut self.value, cx)
    }

    fn save(&self) -> Result<Value, serde_json::Error> {
        serde_json::to_value(&self.value)
    }

    fn on_done(&self) -> TxnBuilder {
        self.value.on_done()
    }

    fn on_undone(&self) -> TxnBuilder {
        self.value.on_undone()
    }

    fn copy(&self) -> Box<dyn AnyWorkflow<W::Services>> {
        Box::new(Typed { value: self.value.clone(), steps: Arc::clone(&self.steps) })
    }
}
