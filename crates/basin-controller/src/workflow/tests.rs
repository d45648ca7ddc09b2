//! The engine, driven by a workflow that stacks blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use basin_model::keys::{self, Kind};
use basin_model::task::{Problem, Task, TaskState};
use basin_store::records::{self, TxnBuilder};
use basin_store::{Compare, MemStore, Store};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::faults::{Fault, Faults, Place, Point};
use super::record::Record;
use super::*;

/// The world: blocks by id, and what a test tells steps to do.
#[derive(Default)]
struct Yard {
    store: Option<Arc<dyn Store>>,
    blocks: Mutex<BTreeMap<u32, &'static str>>,
    next_id: AtomicU32,
    script: Mutex<BTreeMap<&'static str, Script>>,
    log: Mutex<Vec<String>>,
    gate: Option<Arc<Semaphore>>,
}

#[derive(Clone, Copy)]
enum Script {
    Panic,
    FailTimes(u32),
    /// Wait for a permit of the gate, or for the cancellation.
    Gate,
}

impl Yard {
    fn with(script: &[(&'static str, Script)]) -> Self {
        let script = Mutex::new(script.iter().copied().collect());
        Yard { script, gate: Some(Arc::new(Semaphore::new(0))), ..Yard::default() }
    }

    async fn act(&self, what: &'static str, cx: &StepContext<Yard>) -> Result<(), Problem> {
        self.log.lock().unwrap().push(what.to_owned());
        let script = self.script.lock().unwrap().get(what).copied();
        match script {
            Some(Script::Panic) => panic!("the {what} fell over"),
            Some(Script::FailTimes(n)) if n > 0 => {
                self.script.lock().unwrap().insert(what, Script::FailTimes(n - 1));
                Err(problem(what))
            }
            Some(Script::Gate) => {
                cx.progress(0.5, "half way");
                let gate = Arc::clone(self.gate.as_ref().unwrap());
                cx.unless_cancelled(async {
                    gate.acquire().await.unwrap().forget();
                    Ok(())
                })
                .await
            }
            _ => Ok(()),
        }
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

fn problem(what: &str) -> Problem {
    Problem { code: "no".into(), detail: format!("no {what}"), advice: "none".into() }
}

/// Chooses an id, lays a base and a top, then throws away the scaffold.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
struct Stack {
    id: Option<u32>,
    name: String,
    forgetful: bool,
}

impl Stack {
    async fn choose(&mut self, cx: &StepContext<Yard>) -> Result<(), Problem> {
        self.id = Some(cx.services.next_id.fetch_add(2, Ordering::SeqCst));
        cx.services.act("choose", cx).await
    }

    async fn lay_base(&mut self, cx: &StepContext<Yard>) -> Result<(), Problem> {
        let id = self.id.ok_or_else(|| problem("id"))?;
        cx.services.blocks.lock().unwrap().insert(id, "base");
        cx.services.act("base", cx).await
    }

    async fn take_base(&mut self, cx: &StepContext<Yard>) -> Result<(), Problem> {
        cx.services.act("take-base", cx).await?;
        if let Some(id) = self.id.filter(|_| !self.forgetful) {
            cx.services.blocks.lock().unwrap().remove(&id);
        }
        Ok(())
    }

    async fn lay_top(&mut self, cx: &StepContext<Yard>) -> Result<(), Problem> {
        let id = self.id.ok_or_else(|| problem("id"))?;
        cx.services.blocks.lock().unwrap().insert(id + 1, "top");
        cx.services.act("top", cx).await
    }

    async fn take_top(&mut self, cx: &StepContext<Yard>) -> Result<(), Problem> {
        cx.services.act("take-top", cx).await?;
        if let Some(id) = self.id {
            cx.services.blocks.lock().unwrap().remove(&(id + 1));
        }
        Ok(())
    }

    async fn clear(&mut self, cx: &StepContext<Yard>) -> Result<(), Problem> {
        cx.services.act("clear", cx).await?;
        cx.services.blocks.lock().unwrap().retain(|_, what| *what != "scaffold");
        Ok(())
    }
}

impl Workflow for Stack {
    type Services = Yard;
    const KIND: &'static str = "stack";

    fn subject(&self) -> String {
        format!("stack/{}", self.name)
    }

    fn steps() -> Vec<Step<Self>> {
        vec![
            Step::without_undo("choose", Stack::choose),
            Step::undoable("base", Stack::lay_base, Stack::take_base).weight(2),
            Step::undoable("top", Stack::lay_top, Stack::take_top),
            Step::forward("clear", Stack::clear),
        ]
    }

    fn on_done(&self) -> TxnBuilder {
        TxnBuilder::new().put(format!("built/{}", self.name), &true)
    }

    fn on_undone(&self) -> TxnBuilder {
        TxnBuilder::new().delete(format!("name/{}", self.name))
    }
}

fn reserve(name: &str) -> TxnBuilder {
    TxnBuilder::new().create(format!("name/{name}"), &"stack")
}

fn stack(name: &str) -> Stack {
    Stack { name: name.to_owned(), ..Stack::default() }
}

fn engine(store: &Arc<dyn Store>, yard: &Arc<Yard>, faults: Faults) -> Workflows<Yard> {
    let options = Options {
        faults,
        retry_first: Duration::from_millis(1),
        retry_cap: Duration::from_millis(5),
        ..Options::default()
    };
    let registry = Registry::new().with::<Stack>();
    Workflows::with_options(Arc::clone(store), Arc::clone(yard), registry, options)
}

struct Setup {
    store: Arc<dyn Store>,
    yard: Arc<Yard>,
    engine: Workflows<Yard>,
}

fn setup(script: &[(&'static str, Script)]) -> Setup {
    let store: Arc<dyn Store> = Arc::new(MemStore::new());
    let yard = Arc::new(Yard::with(script));
    let engine = engine(&store, &yard, faults::none());
    Setup { store, yard, engine }
}

impl Setup {
    async fn start(&self, name: &str) -> Task {
        self.engine.start(stack(name), reserve(name)).await.unwrap()
    }

    async fn end(&self, task: &Task) -> Task {
        self.engine.wait(task.id).await.unwrap().unwrap()
    }

    async fn key(&self, key: &str) -> bool {
        self.store.get(key).await.unwrap().is_some()
    }

    /// Until the task's step waits at the gate.
    async fn at_gate(&self, task: &Task) {
        let mut live = self.engine.live(task.id).unwrap();
        live.wait_for(|p| p.message == "half way").await.unwrap();
    }
}

#[tokio::test]
async fn a_workflow_runs_to_its_end() {
    let s = setup(&[]);
    let task = s.start("a").await;
    assert_eq!((&*task.kind, &*task.subject, task.state.is_over()), ("stack", "stack/a", false));
    let end = s.end(&task).await;
    assert_eq!((end.state, end.percent), (TaskState::Done, 100));
    assert!(end.finished_at.is_some());
    assert_eq!(s.yard.log(), ["choose", "base", "top", "clear"]);
    assert_eq!(s.yard.blocks.lock().unwrap().len(), 2);
    assert!(s.key("built/a").await && s.key("name/a").await);
    assert!(!s.key(&keys::workflow(task.id)).await);
    s.engine.idle().await;
    assert_eq!(s.engine.running(), 0);
}

#[tokio::test]
async fn a_refused_reservation_says_which_and_starts_nothing() {
    let s = setup(&[]);
    let end = s.start("a").await;
    s.end(&end).await;
    match s.engine.start(stack("a"), reserve("a")).await {
        Err(StartError::Refused(Compare::Absent(key))) => assert_eq!(key, "name/a"),
        other => panic!("{other:?}"),
    }
    assert_eq!(s.engine.list().await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn a_failure_is_undone_newest_first() {
    let s = setup(&[("top", Script::FailTimes(1)), ("take-base", Script::FailTimes(2))]);
    let task = s.start("a").await;
    let end = s.end(&task).await;
    assert_eq!(end.state, TaskState::Failed { problem: problem("top") });
    let log = ["choose", "base", "top", "take-top", "take-base", "take-base", "take-base"];
    assert_eq!(s.yard.log(), log);
    assert!(s.yard.blocks.lock().unwrap().is_empty());
    assert!(!s.key("name/a").await && !s.key("built/a").await);
}

#[tokio::test]
async fn a_panic_is_a_failure() {
    let s = setup(&[("top", Script::Panic)]);
    let end = s.start("a").await;
    match s.end(&end).await.state {
        TaskState::Failed { problem } => {
            assert_eq!(problem.code, "internal-error");
            assert!(problem.detail.contains("the top fell over"), "{problem:?}");
        }
        other => panic!("{other:?}"),
    }
    assert!(s.yard.blocks.lock().unwrap().is_empty());
}

#[tokio::test]
async fn past_the_point_of_no_return_it_tries_until_it_works() {
    let s = setup(&[("clear", Script::FailTimes(3))]);
    let task = s.start("a").await;
    assert_eq!(s.end(&task).await.state, TaskState::Done);
    assert_eq!(s.yard.log(), ["choose", "base", "top", "clear", "clear", "clear", "clear"]);
}

#[tokio::test]
async fn a_cancel_undoes() {
    let s = setup(&[("top", Script::Gate)]);
    let task = s.start("a").await;
    s.at_gate(&task).await;
    s.engine.cancel(task.id).await.unwrap();
    let end = s.end(&task).await;
    assert_eq!((end.state, end.cancel_requested), (TaskState::Cancelled, true));
    assert!(s.yard.blocks.lock().unwrap().is_empty());
    assert!(matches!(s.engine.cancel(task.id).await, Err(CancelError::Over(_))));
    let nobody = basin_model::TaskId::from_uuid(uuid::Uuid::nil());
    assert!(matches!(s.engine.cancel(nobody).await, Err(CancelError::NotFound(_))));
}

#[tokio::test]
async fn a_cancel_of_another_server_is_heard() {
    let s = setup(&[("top", Script::Gate)]);
    let task = s.start("a").await;
    s.at_gate(&task).await;
    let other = engine(&s.store, &s.yard, faults::none());
    other.cancel(task.id).await.unwrap();
    assert_eq!(other.wait(task.id).await.unwrap().unwrap().state, TaskState::Cancelled);
}

#[tokio::test]
async fn a_cancel_past_the_point_of_no_return_is_refused() {
    let s = setup(&[("clear", Script::Gate)]);
    let task = s.start("a").await;
    s.at_gate(&task).await;
    match s.engine.cancel(task.id).await {
        Err(CancelError::TooLate { step, .. }) => assert_eq!(step, "clear"),
        other => panic!("{other:?}"),
    }
    s.yard.gate.as_ref().unwrap().add_permits(1);
    assert_eq!(s.end(&task).await.state, TaskState::Done);
}

#[tokio::test]
async fn progress_is_seen_at_once_and_saved_later() {
    let s = setup(&[("top", Script::Gate)]);
    let task = s.start("a").await;
    s.at_gate(&task).await;
    let live = s.engine.get(task.id).await.unwrap().unwrap().value;
    // Weights 1, 2, 1, 1: three of five done, and half of the next.
    assert_eq!((&*live.message, live.percent), ("half way", 70));
    let mut saved = records::watch_records::<Task>(Arc::clone(&s.store), keys::task(task.id));
    loop {
        match futures::StreamExt::next(&mut saved).await.unwrap().unwrap() {
            records::RecordEvent::Put(r) if r.value.message == "half way" => break,
            records::RecordEvent::Resync { records, .. }
                if records.iter().any(|r| r.value.message == "half way") =>
            {
                break;
            }
            _ => (),
        }
    }
    s.yard.gate.as_ref().unwrap().add_permits(1);
    assert_eq!(s.end(&task).await.state, TaskState::Done);
}

#[tokio::test]
async fn an_engine_that_was_taken_for_dead_stops() {
    let s = setup(&[("top", Script::Gate)]);
    let task = s.start("a").await;
    s.at_gate(&task).await;
    let second = engine(&s.store, &s.yard, faults::none());
    assert_eq!(second.resume_all().await.unwrap(), 1);
    assert_eq!(second.resume_all().await.unwrap(), 0);
    // The first notices without being asked.
    s.engine.idle().await;
    assert_eq!(s.engine.running(), 0);
    let record = records::get::<Record>(&*s.store, &keys::workflow(task.id)).await.unwrap();
    assert_eq!(record.unwrap().value.epoch, 2);
    s.yard.gate.as_ref().unwrap().add_permits(2);
    assert_eq!(s.end(&task).await.state, TaskState::Done);
    let built = s.yard.log().iter().filter(|l| *l == "clear").count();
    assert_eq!(built, 1);
}

#[tokio::test]
async fn a_stopped_engine_leaves_its_work_to_the_next() {
    let s = setup(&[("base", Script::Gate)]);
    let task = s.start("a").await;
    s.at_gate(&task).await;
    s.engine.stop().await;
    assert_eq!(s.engine.running(), 0);
    assert!(s.key(&keys::workflow(task.id)).await);
    s.yard.gate.as_ref().unwrap().add_permits(1);
    let second = engine(&s.store, &s.yard, faults::none());
    second.resume_all().await.unwrap();
    assert_eq!(s.end(&task).await.state, TaskState::Done);
}

#[tokio::test]
async fn what_this_version_does_not_know_is_left_and_told() {
    let s = setup(&[("base", Script::Gate)]);
    let task = s.start("a").await;
    s.at_gate(&task).await;
    s.engine.stop().await;
    let rename = |r: Record| Ok::<_, ()>(Record { kind: "other".to_owned(), ..r });
    records::update(&*s.store, &keys::workflow(task.id), rename).await.unwrap();
    assert_eq!(s.engine.resume_all().await.unwrap(), 0);
    let told = s.engine.get(task.id).await.unwrap().unwrap().value;
    assert!(told.message.contains("does not know other/base"), "{told:?}");
    assert!(s.key(&keys::workflow(task.id)).await);
}

#[tokio::test]
async fn history_is_bounded() {
    let store: Arc<dyn Store> = Arc::new(MemStore::new());
    let yard = Arc::new(Yard::default());
    let history = HistoryLimits { tasks: 10, age: Duration::from_secs(3600) };
    let options = Options { history, ..Options::default() };
    let registry = Registry::new().with::<Stack>();
    let engine = Workflows::with_options(Arc::clone(&store), yard, registry, options);
    for n in 0..32 {
        let name = n.to_string();
        let task = engine.start(stack(&name), reserve(&name)).await.unwrap();
        engine.wait(task.id).await.unwrap();
    }
    engine.idle().await;
    assert_eq!(store.list(&Kind::Task.prefix()).await.unwrap().entries.len(), 10);
}

#[tokio::test]
async fn every_place_is_reached_once_in_order() {
    let store: Arc<dyn Store> = Arc::new(MemStore::new());
    let places = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&places);
    let faults: Faults = Arc::new(move |place: &Place| {
        seen.lock().unwrap().push(place.to_string());
        let fail = place.step == "top" && place.point == Point::Before;
        if fail { Fault::Fail(problem("top")) } else { Fault::Nothing }
    });
    let engine = engine(&store, &Arc::new(Yard::default()), faults);
    let task = engine.start(stack("a"), reserve("a")).await.unwrap();
    engine.wait(task.id).await.unwrap();
    let expect = [
        "stack/choose/before",
        "stack/choose/after",
        "stack/base/before",
        "stack/base/after",
        "stack/top/before",
        "stack/top/undo-before",
        "stack/top/undo-after",
        "stack/base/undo-before",
        "stack/base/undo-after",
    ];
    assert_eq!(*places.lock().unwrap(), expect);
}

async fn world(workflow: Stack) -> testing::World<Stack> {
    let store: Arc<dyn Store> = Arc::new(MemStore::new());
    let mut yard = Yard { store: Some(Arc::clone(&store)), ..Yard::default() };
    yard.blocks.get_mut().unwrap().insert(99, "block of somebody else");
    let reserve = reserve(&workflow.name);
    testing::World { store, services: Arc::new(yard), workflow, reserve, keep: Box::new(()) }
}

/// The blocks, without the ids that differ, and the keys but for the engine's.
async fn fingerprint(yard: &Yard) -> (Vec<&'static str>, BTreeSet<String>) {
    let blocks = yard.blocks.lock().unwrap().values().copied().collect();
    let entries = yard.store.as_ref().unwrap().list("").await.unwrap().entries;
    let own = |key: &String| !key.starts_with(keys::ROOT);
    (blocks, entries.into_iter().map(|e| e.key).filter(own).collect())
}

#[tokio::test]
async fn the_harness_passes_a_sound_workflow() {
    testing::check(async || world(stack("a")).await, fingerprint).await;
}

#[tokio::test]
#[should_panic(expected = "something is left")]
async fn the_harness_finds_an_undo_that_forgets() {
    let forgetful = Stack { forgetful: true, ..stack("a") };
    testing::check(async || world(forgetful.clone()).await, fingerprint).await;
}
