//! `BASIN_FAULT` kills a process at every place of a workflow, over a real store;
//! the next process finishes or undoes what the first began.
//!
//! The test starts itself as the process that dies.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use basin_controller::workflow::{
    Options, Registry, Step, StepContext, Workflow, Workflows, faults,
};
use basin_model::task::Problem;
use basin_store::records::TxnBuilder;
use basin_store::{SqliteStore, Store};
use serde::{Deserialize, Serialize};

/// Makes two files; the second may be refused; then removes a third for good.
#[derive(Clone, Serialize, Deserialize)]
struct Files {
    refuse: bool,
}

type Outcome = Result<(), Problem>;

fn problem(detail: &str) -> Problem {
    Problem { code: "no".into(), detail: detail.into(), advice: "none".into() }
}

fn put(cx: &StepContext<PathBuf>, name: &str) -> Outcome {
    std::fs::write(cx.services.join(name), name).map_err(|e| problem(&e.to_string()))
}

fn remove(cx: &StepContext<PathBuf>, name: &str) -> Outcome {
    match std::fs::remove_file(cx.services.join(name)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(problem(&e.to_string())),
        _ => Ok(()),
    }
}

impl Files {
    async fn make_one(&mut self, cx: &StepContext<PathBuf>) -> Outcome {
        put(cx, "one")
    }
    async fn remove_one(&mut self, cx: &StepContext<PathBuf>) -> Outcome {
        remove(cx, "one")
    }
    async fn make_two(&mut self, cx: &StepContext<PathBuf>) -> Outcome {
        put(cx, "two")?;
        if self.refuse { Err(problem("refused")) } else { Ok(()) }
    }
    async fn remove_two(&mut self, cx: &StepContext<PathBuf>) -> Outcome {
        remove(cx, "two")
    }
    async fn remove_old(&mut self, cx: &StepContext<PathBuf>) -> Outcome {
        remove(cx, "old")
    }
}

impl Workflow for Files {
    type Services = PathBuf;
    const KIND: &'static str = "files";
    fn subject(&self) -> String {
        "files/x".to_owned()
    }
    fn steps() -> Vec<Step<Self>> {
        vec![
            Step::undoable("one", Files::make_one, Files::remove_one),
            Step::undoable("two", Files::make_two, Files::remove_two),
            Step::forward("old", Files::remove_old),
        ]
    }
    fn on_undone(&self) -> TxnBuilder {
        TxnBuilder::new().delete("name")
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "child") {
        return child(Path::new(&args[2]), &args[3]);
    }
    let forward = ["one/before", "one/after", "two/before", "two/after", "old/before", "old/after"];
    let undo =
        ["two/after", "two/undo-before", "two/undo-after", "one/undo-before", "one/undo-after"];
    for place in forward {
        trial("start", place, &["name", "one", "two"]);
    }
    for place in undo {
        trial("refuse", place, &["old"]);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let status = run(dir.path(), "start", "nonsense");
    assert_eq!(status.code(), Some(3), "a fault that cannot be understood is refused");
    println!("test fault ... ok ({} kills)", forward.len() + undo.len());
}

fn run(dir: &Path, what: &str, fault: &str) -> ExitStatus {
    let me = std::env::current_exe().expect("the path of this test");
    let mut command = Command::new(me);
    command.arg("child").arg(dir).arg(what).env_remove(faults::VARIABLE);
    if !fault.is_empty() {
        command.env(faults::VARIABLE, fault);
    }
    command.status().expect("the child runs")
}

fn trial(what: &str, place: &str, expect: &[&str]) {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("old"), "old").expect("a file");
    let status = run(dir.path(), what, &format!("files/{place}"));
    assert_eq!(status.signal(), Some(6), "{what} at {place}: {status}");
    let status = run(dir.path(), "resume", "");
    assert!(status.success(), "{what} at {place}: {status}");
    let names = std::fs::read_dir(dir.path()).expect("a directory");
    let mut left: BTreeSet<String> =
        names.map(|f| f.expect("a file").file_name().to_string_lossy().into_owned()).collect();
    left.retain(|name| !name.starts_with("store"));
    let store = SqliteStore::open(&dir.path().join("store.sqlite")).expect("the store opens");
    if futures::executor::block_on(store.get("name")).expect("an answer").is_some() {
        left.insert("name".to_owned());
    }
    assert_eq!(left, expect.iter().map(|s| (*s).to_owned()).collect(), "{what} at {place}");
}

#[tokio::main(flavor = "current_thread")]
async fn child(dir: &Path, what: &str) {
    let Ok(faults) = faults::from_env() else { std::process::exit(3) };
    let store: Arc<dyn Store> =
        Arc::new(SqliteStore::open(&dir.join("store.sqlite")).expect("the store opens"));
    let registry = Registry::new().with::<Files>();
    let options = Options { faults, ..Options::default() };
    let engine = Workflows::with_options(store, Arc::new(dir.to_owned()), registry, options);
    if what == "resume" {
        assert_eq!(engine.resume_all().await.expect("the store answers"), 1);
    } else {
        let reserve = TxnBuilder::new().create("name", &"x");
        engine.start(Files { refuse: what == "refuse" }, reserve).await.expect("it starts");
    }
    engine.idle().await;
}
