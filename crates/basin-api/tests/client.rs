//! The client against a small server: requests, refusals, tasks, uploads.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{delete, get, patch, post};
use axum::{Json, Router};
use basin_api::client::{Client, ClientError, DeleteVm, Progress, VmAction};
use basin_api::network::{Network, NetworkCreate};
use basin_api::reference::MetaPatch;
use basin_api::task::TaskState;
use basin_api::vm::Vm;
use serde_json::{Value, json};
use support::{Server, network, task};

fn refused() -> impl IntoResponse {
    let problem = json!({
        "type": "urn:basin:problem:name-taken", "title": "The name is taken", "status": 409,
        "code": "name-taken", "detail": "a network is named 'lab' already",
        "advice": "choose another name",
    });
    (StatusCode::CONFLICT, [("content-type", "application/problem+json")], Json(problem))
}

#[tokio::test]
async fn a_resource_is_listed_read_made_changed_and_deleted() {
    let router = Router::new()
        .route(
            "/v1/networks",
            get(|| async { Json(json!({"items": [network("lab")], "revision": 9})) }).post(
                |Json(it): Json<Value>| async move {
                    Json(network(it["name"].as_str().expect("a name")))
                },
            ),
        )
        .route(
            "/v1/networks/{network}",
            get(|Path(name): Path<String>| async move { Json(network(&name)) })
                .patch(|headers: HeaderMap, Json(it): Json<Value>| async move {
                    assert_eq!(headers["if-match"], "\"7\"");
                    assert_eq!(it, json!({"name": "new", "labels": {"old": null}}));
                    Json(network("new"))
                })
                .delete(|| async { StatusCode::NO_CONTENT }),
        );
    let server = Server::start(router);
    let client = server.client();

    let list = client.list::<Network>().await.expect("a list");
    assert_eq!((list.items[0].meta.name.as_str(), list.revision), ("lab", 9));
    assert_eq!(client.get::<Network>("lab").await.expect("it").meta.revision, 7);
    let create: NetworkCreate =
        serde_json::from_value(json!({"name": "two", "subnet": "10.0.0.0/24"})).expect("valid");
    assert_eq!(client.create::<Network>(&create).await.expect("made").meta.name, "two");
    let change = MetaPatch {
        name: Some("new".into()),
        labels: [("old".to_owned(), None)].into(),
        ..MetaPatch::default()
    };
    let changed = client.patch_if::<Network>("lab", &change, 7).await.expect("changed");
    assert_eq!(changed.meta.name, "new");
    client.delete::<Network>("new").await.expect("deleted");
}

#[tokio::test]
async fn a_refusal_keeps_the_servers_words() {
    let server =
        Server::start(Router::new().route("/v1/networks/{n}", get(|| async { refused() })));
    let error = server.client().get::<Network>("lab").await.expect_err("refused");
    assert_eq!(error.code(), Some("name-taken"));
    assert_eq!(error.to_string(), "a network is named 'lab' already");
    assert_eq!(error.advice(), "choose another name");
}

#[tokio::test]
async fn another_program_on_the_port_is_recognized() {
    let router = Router::new()
        .route("/v1/networks/{n}", get(|| async { "<html>hello" }))
        .route("/v1/hosts", get(|| async { (StatusCode::BAD_GATEWAY, "no\nupstream") }));
    let server = Server::start(router);
    let error = server.client().get::<Network>("x").await.expect_err("no JSON");
    assert!(matches!(error, ClientError::Protocol { .. }), "{error:?}");
    assert!(error.to_string().contains("'<html>hello'"), "{error}");
    let error = server.client().list::<basin_api::host::Host>().await.expect_err("no problem");
    assert!(error.to_string().contains("502 Bad Gateway: 'no upstream'"), "{error}");
}

#[tokio::test]
async fn a_name_cannot_lead_to_another_resource() {
    let seen = |Path(name): Path<String>| async move { Json(network(&name)) };
    let server = Server::start(Router::new().route("/v1/networks/{n}", get(seen)));
    let client = server.client();
    for name in ["a/b", "a?b=c", "a#b", "ä b", "%2e"] {
        let it = client.get::<Network>(name).await.expect("it arrives whole");
        assert_eq!(it.meta.name, name);
    }
    for name in ["", ".", ".."] {
        let error = client.get::<Network>(name).await.expect_err("refused here");
        assert!(matches!(error, ClientError::Local { .. }), "{name:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("api.sock");
    let client = Client::local(&socket).expect("a client");
    let error = client.version().await.expect_err("nobody is there");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&socket.display().to_string()), "{error}");
    assert!(error.to_string().contains("No such file"), "{error}");
    assert!(error.advice().contains("basin serve"), "{}", error.advice());
}

#[tokio::test]
async fn settings_that_are_wrong() {
    for url in ["server:7443", "ftp://server", "https://", "nonsense"] {
        let error = Client::remote(url, None, None).expect_err("refused");
        assert!(matches!(error, ClientError::Local { .. }), "{url}: {error:?}");
    }
    let bad_token = Client::remote("https://server:7443", Some("a\nb"), None);
    assert!(matches!(bad_token, Err(ClientError::Local { .. })));
    let bad_ca = Client::remote("https://server:7443", None, Some(b"not a certificate"));
    assert!(matches!(bad_ca, Err(ClientError::Local { .. })), "{bad_ca:?}");
}

#[tokio::test]
async fn vm_calls_use_the_paths_and_queries_agreed() {
    let echo = |Path(vm): Path<String>, RawQuery(query): RawQuery| async move {
        let mut answer = task("running", 0);
        answer["subject"] = json!(format!("{vm} {}", query.unwrap_or_default()));
        (StatusCode::ACCEPTED, Json(answer))
    };
    let listed = |RawQuery(query): RawQuery| async move {
        assert_eq!(query.as_deref(), Some("label=tier%3Dgold"));
        Json(json!({"items": [], "revision": 1}))
    };
    let log = |RawQuery(query): RawQuery| async move { query.unwrap_or_default() };
    let router = Router::new()
        .route("/v1/vms", get(listed))
        .route("/v1/vms/{vm}", delete(echo))
        .route("/v1/vms/{vm}/power-off", post(echo))
        .route("/v1/vms/{vm}/console/log", get(log));
    let server = Server::start(router);
    let client = server.client();
    let gold = [("tier".to_owned(), "gold".to_owned())].into();
    client.list_where::<Vm>(&gold).await.expect("a list");
    let off = client.vm_action("web", VmAction::PowerOff).await.expect("a task");
    assert_eq!(off.subject, "web ");
    let how = DeleteVm { force: true, keep_disks: true };
    let gone = client.delete_vm("web", how).await.expect("a task");
    assert_eq!(gone.subject, "web force=true&keep_disks=true");
    assert_eq!(client.console_log("web", Some(99)).await.expect("text"), "bytes=99");
    assert_eq!(client.console_log("web", None).await.expect("text"), "");
}

#[tokio::test]
async fn a_wait_outlives_a_restart_of_the_server() {
    let before = Router::new().route("/v1/tasks/{t}", get(|| async { Json(task("running", 40)) }));
    let mut server = Server::start(before);
    let client = server.client();
    let (tell, mut hear) = tokio::sync::mpsc::unbounded_channel();
    let wait = tokio::spawn(async move {
        client
            .wait_task("t1", |progress| {
                let _ = tell.send(match progress {
                    Progress::Task(task) => Some(task.percent),
                    Progress::Reconnecting(_) => None,
                });
            })
            .await
    });
    assert_eq!(hear.recv().await, Some(Some(40)));
    server.stop().await;
    assert_eq!(hear.recv().await, Some(None));
    // It answers, but it is not ready yet.
    let unready = json!({"type": "", "title": "", "status": 503, "code": "starting", "detail": ""});
    let answers = Arc::new(AtomicU32::new(0));
    let after = Router::new()
        .route(
            "/v1/tasks/{t}",
            get(|State(answers): State<Arc<AtomicU32>>| async move {
                match answers.fetch_add(1, Ordering::SeqCst) {
                    0 => (StatusCode::SERVICE_UNAVAILABLE, Json(unready)),
                    _ => (StatusCode::OK, Json(task("done", 100))),
                }
            }),
        )
        .with_state(answers);
    server.restart(after).await;
    let done = wait.await.expect("no panic").expect("a task");
    assert_eq!(done.state, TaskState::Done);
}

#[tokio::test]
async fn a_wait_ends_when_patience_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let client = Client::local(&dir.path().join("none.sock"))
        .expect("a client")
        .with_patience(Duration::from_millis(100));
    let error = client.wait_task("t1", |_| {}).await.expect_err("nobody is there");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_file_is_uploaded_as_it_is() {
    let content: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
    let expect = content.clone();
    let take = move |headers: HeaderMap, RawQuery(query): RawQuery, body: Bytes| async move {
        assert_eq!(query.as_deref(), Some("datastore=fast"));
        assert_eq!(headers["content-length"], "1000000");
        assert_eq!(headers["content-type"], "application/octet-stream");
        assert_eq!(body, expect);
        Json(json!({"id": "u1", "size_bytes": body.len()}))
    };
    let router = Router::new()
        .route("/v1/uploads", post(take))
        .layer(axum::extract::DefaultBodyLimit::disable());
    let server = Server::start(router);
    let file = server.dir.path().join("disk.raw");
    std::fs::write(&file, &content).expect("a file");
    let (tell, mut hear) = tokio::sync::mpsc::unbounded_channel();
    let upload = server
        .client()
        .upload(&file, Some("fast"), move |sent, total| {
            let _ = tell.send((sent, total));
        })
        .await
        .expect("uploaded");
    assert_eq!((upload.id.as_str(), upload.size_bytes), ("u1", 1_000_000));
    let mut last = None;
    while let Ok(progress) = hear.try_recv() {
        last = Some(progress);
    }
    assert_eq!(last, Some((1_000_000, 1_000_000)));

    let error = server.client().upload(server.dir.path(), None, |_, _| {}).await;
    assert!(matches!(error, Err(ClientError::Local { .. })), "a directory: {error:?}");
}

#[tokio::test]
async fn a_patch_without_a_condition_has_no_if_match() {
    let change = |headers: HeaderMap| async move {
        assert!(!headers.contains_key("if-match"));
        Json(network("x"))
    };
    let server = Server::start(Router::new().route("/v1/networks/{n}", patch(change)));
    server.client().patch::<Network>("x", &MetaPatch::default()).await.expect("changed");
}
