//! The command line as a script sees it: output, messages, exit status.

mod support;

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::{Server, basin, problem, task, vm};
use tokio::io::AsyncReadExt;

#[tokio::test]
async fn objects_are_printed_as_the_api_says_them() {
    let list = json!({"items": [vm("web")], "revision": 9});
    let router = Router::new()
        .route(
            "/v1/vms",
            get({
                let list = list.clone();
                async || Json(list)
            }),
        )
        .route("/v1/vms/web", get(async || Json(vm("web"))));
    let server = Server::start(router);
    assert_eq!(server.run(&["vm", "list", "-o", "json"]).await.json(), list);
    assert_eq!(server.run(&["-o", "json", "vm", "show", "web"]).await.json(), vm("web"));
    let yaml = server.run(&["vm", "show", "web", "-o", "yaml"]).await;
    assert_eq!(serde_yaml_ng::from_str::<Value>(&yaml.out).expect("YAML"), vm("web"));
    let table = server.run(&["vm", "ls"]).await;
    let words: Vec<Vec<&str>> =
        table.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["NAME", "STATE", "CPUS", "MEMORY", "ADDRESS", "HOST", "AGE"]);
    assert_eq!(words[1][..6], ["web", "running", "2", "1GiB", "-", "-"]);
}

#[tokio::test]
async fn nothing_to_list() {
    let empty = async || Json(json!({"items": [], "revision": 1}));
    let server = Server::start(Router::new().route("/v1/vms", get(empty)));
    server.run(&["vm", "list"]).await.check(0, "", "no vms\n");
}

#[tokio::test]
async fn refusals_keep_the_daemons_words() {
    let refuse = async || (StatusCode::CONFLICT, Json(problem()));
    let server = Server::start(Router::new().route("/v1/vms", post(refuse)));
    let expect = "error: a vm is named 'web' already\n  → Choose another name.\n";
    server.run(&["vm", "create", "web"]).await.check(1, "", expect);
}

#[tokio::test]
async fn no_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("api.sock").display().to_string();
    let ran = basin(&["vm", "list", "--socket", &socket]).output().await.expect("it runs");
    assert_eq!(ran.status.code(), Some(3));
    let err = String::from_utf8(ran.stderr).expect("text");
    assert!(
        err.starts_with(&format!("error: cannot reach the server at {socket}: No such")),
        "{err}"
    );
    assert!(err.contains("\n  → is `basin serve` running there?"), "{err}");
}

#[tokio::test]
async fn wrong_usage() {
    for line in [&["vm", "fly"][..], &["vm", "set", "web"], &["vm", "show", "--colour"]] {
        let ran = basin(line).output().await.expect("it runs");
        assert_eq!(ran.status.code(), Some(2), "{line:?}");
    }
}

fn creation(states: &'static [&'static str]) -> Router {
    let left = Arc::new(Mutex::new(states.iter()));
    let poll = async move || {
        let state = left.lock().expect("no panic").next().copied();
        let mut answer = task(state.unwrap_or("running"));
        if state == Some("failed") {
            answer["problem"] =
                json!({"code": "no-space", "detail": "no room", "advice": "make some"});
        }
        Json(answer)
    };
    Router::new()
        .route("/v1/vms", post(async || (StatusCode::ACCEPTED, Json(task("running")))))
        .route("/v1/vms/v1", get(async || Json(vm("web"))))
        .route("/v1/tasks/t1", get(poll))
}

#[tokio::test]
async fn a_command_waits_for_its_task() {
    let server = Server::start(creation(&["running", "running", "done", "done"]));
    server.run(&["vm", "create", "web"]).await.check(0, "vm web created\n", "");
    assert_eq!(server.run(&["vm", "create", "web", "-o", "json"]).await.json(), vm("web"));

    let server = Server::start(creation(&["running", "undoing", "failed"]));
    let expect = "error: no room\n  → make some\n";
    server.run(&["vm", "create", "web"]).await.check(1, "", expect);

    let server = Server::start(creation(&[]));
    let expect = "task t1 started; follow it with: basin task wait t1\n";
    server.run(&["vm", "create", "web", "--no-wait"]).await.check(0, expect, "");
}

#[tokio::test]
async fn ctrl_c_says_that_the_task_goes_on() {
    let (polled, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let poll = async move || {
        let _ = polled.send(());
        Json(task("running"))
    };
    let router = creation(&[]).route("/v1/tasks/t2", get(poll));
    let server = Server::start(router);
    let child = server
        .basin(&["task", "wait", "t2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    // By the second poll its handler is in place.
    heard.recv().await.expect("a poll");
    heard.recv().await.expect("a poll");
    let pid = i32::try_from(child.id().expect("it runs")).expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGINT).expect("signalled");
    let ran = support::Ran::from(child.wait_with_output().await.expect("it ends"));
    let expect = "The task goes on without you.\n  follow it: basin task wait t2\n  \
                  cancel it: basin task cancel t2\n";
    ran.check(130, "", expect);
}

#[tokio::test]
async fn a_reader_that_leaves_is_no_error() {
    let many: Vec<Value> = (0..2000).map(|i| vm(&format!("vm{i}"))).collect();
    let list = json!({"items": many, "revision": 9});
    let server = Server::start(Router::new().route("/v1/vms", get(async || Json(list))));
    let mut child = server
        .basin(&["vm", "list", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut out = child.stdout.take().expect("its output");
    let mut first = [0; 10];
    out.read_exact(&mut first).await.expect("a beginning");
    drop(out);
    support::Ran::from(child.wait_with_output().await.expect("it ends")).check(0, "", "");
}

#[tokio::test]
async fn a_local_file_is_named_or_sent() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let ask = {
        let asked = asked.clone();
        async move |Json(it): Json<Value>| {
            asked.lock().expect("no panic").push(it["source"].clone());
            (StatusCode::ACCEPTED, Json(task("running")))
        }
    };
    let router = Router::new().route("/v1/images", post(ask)).route(
        "/v1/uploads",
        post(async |body: Bytes| Json(json!({"id": "u1", "size_bytes": body.len()}))),
    );
    let server = Server::start(router);
    let file = server.dir.path().join("disk.raw");
    std::fs::write(&file, "content").expect("a file");
    let file = file.to_str().expect("UTF-8");
    assert_eq!(server.run(&["image", "import", file, "--no-wait"]).await.status, Some(0));
    let sent = server.run(&["image", "import", file, "--no-wait", "--upload"]).await;
    assert_eq!(sent.status, Some(0), "{sent:?}");
    let absent = server.run(&["image", "import", "/nowhere/x.raw"]).await;
    absent.check(
        1,
        "",
        "error: cannot read /nowhere/x.raw: No such file or directory (os error 2)\n",
    );
    let expect = [json!({"from": "path", "path": file}), json!({"from": "upload", "upload": "u1"})];
    assert_eq!(*asked.lock().expect("no panic"), expect);
}

#[tokio::test]
async fn completions_name_the_nouns() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = support::Ran::from(basin(&["completions", shell]).output().await.expect("runs"));
        assert!(ran.out.contains("datastore"), "{shell}: {ran:?}");
    }
}
