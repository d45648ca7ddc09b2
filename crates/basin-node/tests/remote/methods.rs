use std::sync::{Arc, Mutex};

use basin_model::datastore::{Datastore, DatastoreKind, DatastoreState, Sharing};
use basin_model::image::{Image, ImageKind, ImageState, SourceFormat};
use basin_model::task::Problem;
use basin_model::vm::MigrationPolicy;
use basin_model::volume::{Volume, VolumeFormat, VolumeSource, VolumeState};
use basin_model::{Bytes, DatastoreId, HostId, ImageId, Meta, TaskId, VmId, VolumeId};
use basin_node::migration::types::{Begin, Prepare};
use basin_node::remote::{Peers, full};
use basin_node::{Chain, NodeApi, NodeError};
use basin_qemu::migrate::{Channel, MigrationKey};
use basin_storage::{ImportRequest, ImportSource, Proof, UploadId};
use hyper::Request;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::fake::{self, Fake};
use super::support::*;

pub fn meta(name: &str) -> Meta {
    let created_at = "2026-01-02T03:04:05.678901234Z".parse().unwrap();
    let labels = Default::default();
    Meta { name: name.parse().unwrap(), description: "ä \"quoted\"\n".into(), labels, created_at }
}

pub fn volume() -> Volume {
    Volume {
        id: VolumeId::from_uuid(Uuid::now_v7()),
        meta: meta("root"),
        datastore: DatastoreId::from_uuid(Uuid::now_v7()),
        format: VolumeFormat::Raw,
        size: Bytes::gib(20),
        source: VolumeSource::Blank,
        state: VolumeState::Creating,
    }
}

pub fn import() -> ImportRequest {
    ImportRequest {
        image: ImageId::from_uuid(Uuid::now_v7()),
        kind: ImageKind::Disk,
        source: ImportSource::Url { url: "https://example.net/a b?c=%20".into() },
        format: Some(SourceFormat::Vmdk),
        sha256: None,
    }
}

fn prepare(vm: VmId, key: MigrationKey, volume: Volume) -> Prepare {
    let vm = serde_json::from_value(json!({
        "id": vm,
        "meta": meta("web"),
        "spec": {
            "vcpus": 1, "memory": 1 << 28, "machine": "q35",
            "boot": {"firmware": "bios"}, "disks": [], "cdroms": [], "nics": [],
            "policy": {"guest_crash": "restart", "machine_death": "restart"},
        },
        "run": {"power": {"state": "running"}, "epoch": 1, "resets": 0},
        "placement": null,
    }));
    Prepare {
        vm: vm.unwrap(),
        hardware: fake::hardware(),
        key,
        channel: Channel { postcopy: true, ..Channel::default() },
        source: HostId::from_uuid(Uuid::now_v7()),
        volumes: vec![volume],
    }
}

fn datastore() -> Datastore {
    Datastore {
        id: DatastoreId::from_uuid(Uuid::now_v7()),
        meta: meta("fast"),
        sharing: Sharing::Local(HostId::from_uuid(Uuid::now_v7())),
        state: DatastoreState::Ready,
        kind: DatastoreKind::Dir { path: "/srv/fast".into() },
        quota: Some(Bytes::gib(100)),
        overcommit_percent: 150,
    }
}

/// Asks every method once; what came back, as values.
async fn ask_all(node: &dyn NodeApi, fake: &Fake) -> Vec<Result<Value, NodeError>> {
    fn value<T: serde::Serialize>(answer: Result<T, NodeError>) -> Result<Value, NodeError> {
        answer.map(|a| serde_json::to_value(a).unwrap())
    }
    let (store, volume, import) = (datastore(), volume(), import());
    let image = Image {
        id: import.image,
        meta: meta("base"),
        datastore: store.id,
        kind: ImageKind::Disk,
        state: ImageState::Ready { content: fake::content() },
    };
    let chain = Chain { volumes: vec![volume.clone(), volume.clone()], image: Some(image) };
    let upload = UploadId(Uuid::now_v7());
    let vm = VmId::from_uuid(Uuid::now_v7());
    let quiet = || Arc::new(|_, _| {});
    let go = CancellationToken::new;
    let mut all = Vec::new();
    let mut check = |method: &str, arguments: Value, answer: Result<Value, NodeError>| {
        assert_eq!(fake.last(), (fake.last().0, arguments), "{method}");
        assert_eq!(fake.last().0, method);
        all.push(answer);
    };
    check("status", json!({}), value(node.status().await));
    check("usage", json!({}), value(node.usage().await));
    check("open_datastore", json!([store]), value(node.open_datastore(&store).await));
    check("close_datastore", json!([store.id]), value(node.close_datastore(store.id).await));
    check("discard_datastore", json!([store]), value(node.discard_datastore(&store).await));
    let (from, proof) = (HostId::from_uuid(Uuid::now_v7()), Proof(Uuid::now_v7()));
    let answer = node.witness_datastore(store.id, from, proof).await;
    check("witness_datastore", json!([store.id, from, proof]), value(answer));
    check("capacity", json!([store.id]), value(node.capacity(store.id).await));
    let subnet = "10.1.2.0/24".parse().unwrap();
    check("check_subnet", json!(["10.1.2.0/24"]), value(node.check_subnet(subnet).await));
    let answer = node.import_image(store.id, &import, quiet(), go()).await;
    check("import_image", json!([store.id, import]), value(answer));
    let answer = node.receive_upload(store.id, upload, &mut &b"bytes"[..]).await;
    check("receive_upload", json!([store.id, upload]), value(answer));
    let answer = node.discard_upload(store.id, upload).await;
    check("discard_upload", json!([store.id, upload]), value(answer));
    let answer = match node.read_image(store.id, import.image, Bytes(7)).await {
        Ok(mut read) => {
            let mut bytes = Vec::new();
            read.bytes.read_to_end(&mut bytes).await.unwrap();
            assert!(bytes == fake::image_file()[7..]);
            Ok((read.size, read.sha256, bytes.len()))
        }
        Err(error) => Err(error),
    };
    check("read_image", json!([store.id, import.image, 7]), value(answer));
    let answer = node.delete_image(store.id, import.image).await;
    check("delete_image", json!([store.id, import.image]), value(answer));
    let answer = node.create_volume(&volume, &chain, quiet(), go()).await;
    check("create_volume", json!([volume, chain]), value(answer));
    let answer = node.grow_volume(&volume, Bytes(u64::MAX)).await;
    check("grow_volume", json!([volume, u64::MAX]), value(answer));
    check("delete_volume", json!([volume, 0]), value(node.delete_volume(&volume).await));
    check("allocated", json!([volume]), value(node.allocated(&volume).await));
    check("forget_vm", json!([vm]), value(node.forget_vm(vm).await));
    let task = TaskId::from_uuid(Uuid::now_v7());
    check("migration_support", json!([]), value(node.migration_support().await));
    check("guest_hardware", json!([vm]), value(node.guest_hardware(vm).await));
    let key = MigrationKey::fresh();
    let prepare = prepare(vm, key.clone(), volume.clone());
    check("migrate_prepare", json!([prepare]), value(node.migrate_prepare(&prepare).await));
    let begin = Begin {
        vm,
        task,
        to: from,
        prepared: fake::prepared(),
        key,
        channel: Channel::default(),
        policy: MigrationPolicy { or_stay: true, ..Default::default() },
    };
    check("migrate_begin", json!([begin]), value(node.migrate_begin(&begin).await));
    check("migrate_report", json!([vm, task]), value(node.migrate_report(vm, task).await));
    check("migrate_cancel", json!([vm, task]), value(node.migrate_cancel(vm, task).await));
    check("migrate_abort", json!([vm, task]), value(node.migrate_abort(vm, task).await));
    let answer = node.migrate_listen_again(vm, task).await;
    check("migrate_listen_again", json!([vm, task]), value(answer));
    let to = "10.0.0.1:5".parse().unwrap();
    let answer = node.migrate_reconnect(vm, task, to).await;
    check("migrate_reconnect", json!([vm, task, to]), value(answer));
    let answer = node.console(vm).await.map(|link| link.history);
    check("console", json!([vm]), value(answer));
    check("console_log", json!([vm, 100_000]), value(node.console_log(vm, 100_000).await));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_does_over_the_network_what_it_does_in_the_process() {
    let cluster = Cluster::new();
    let node = Arc::new(Fake::default());
    let server = Server::start(cluster.credentials("b"), node.clone()).await;
    let peers = Peers::new(cluster.credentials("a"));
    let remote = super::support::node(&peers, &server);
    let here = within(ask_all(&*node, &node)).await;
    let there = within(ask_all(&remote, &node)).await;
    for (here, there) in here.into_iter().zip(there) {
        assert_eq!(here.unwrap(), there.unwrap());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_arrives_as_it_was() {
    let cluster = Cluster::new();
    let node = Arc::new(Fake::default());
    let problem = Problem {
        code: "datastore-full".into(),
        detail: "not enough \"space\" in ü".into(),
        advice: "delete\nthings".into(),
    };
    *node.refusal.lock().unwrap() = Some(problem.clone());
    let server = Server::start(cluster.credentials("b"), node.clone()).await;
    let peers = Peers::new(cluster.credentials("a"));
    let remote = super::support::node(&peers, &server);
    for answer in within(ask_all(&remote, &node)).await {
        assert_eq!(answer.unwrap_err().0, problem);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_a_newer_release_are_passed_over() {
    let cluster = Cluster::new();
    let node = Arc::new(Fake::default());
    let server = Server::start(cluster.credentials("b"), node.clone()).await;
    let peers = Peers::new(cluster.credentials("a"));
    let vm = VmId::from_uuid(Uuid::now_v7());
    let body = json!({"vm": vm, "new_field": [1, 2], "urgency": {"level": 3}}).to_string();
    let request = Request::post("/internal/v1/node/forget_vm").body(full(body)).unwrap();
    let answer = within(peers.peer(&server.at()).send(request)).await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    assert_eq!(node.last(), ("forget_vm", json!([vm])));
    server.stop().await;
}

/// What an asker of another release may send.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_refused_in_words_and_reaches_no_node() {
    let cluster = Cluster::new();
    let node = Arc::new(Fake::default());
    let server = Server::start(cluster.credentials("b"), node.clone()).await;
    let peers = Peers::new(cluster.credentials("a"));
    let peer = peers.peer(&server.at());
    let ask = async |method: &str, body: String| {
        use http_body_util::BodyExt;
        let path = format!("/internal/v1/node/{method}");
        let request = Request::post(path).body(full(body)).unwrap();
        let answer = within(peer.send(request)).await.unwrap();
        let status = answer.status().as_u16();
        let bytes = within(answer.into_body().collect()).await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&bytes).into_owned())
    };
    let (status, text) = ask("forget_vm", "{}".into()).await;
    assert!(status == 400 && text.contains("missing field"), "{status} {text}");
    let (status, text) = ask("import_image", "{}\n".into()).await;
    assert!(status == 400 && text.contains("missing field"), "{status} {text}");
    let (status, text) = ask("teleport_vm", "{}".into()).await;
    assert!(status == 404 && text.contains("unknown-method"), "{status} {text}");
    assert!(text.contains("teleport_vm") && text.contains(env!("CARGO_PKG_VERSION")), "{text}");
    let (status, _) = ask("forget_vm", " ".repeat(5 << 20)).await;
    assert_eq!(status, 413);
    let (status, _) = ask("import_image", " ".repeat(5 << 20)).await;
    assert_eq!(status, 400);
    assert!(node.calls.lock().unwrap().is_empty());
    server.stop().await;
}

/// A server of the release before, which lacks the method.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_too_old_is_named() {
    let cluster = Cluster::new();
    let credentials = cluster.credentials("b");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = credentials.host();
    let tls = basin_node::remote::Tls::Cluster(credentials);
    let server = Server::with(listener, host, tls, axum::Router::new());
    let peers = Peers::new(cluster.credentials("a"));
    let remote = super::support::node(&peers, &server);
    let problem = within(remote.usage()).await.unwrap_err().0;
    assert_eq!(problem.code, "host-too-old");
    assert!(problem.detail.contains("srv2") && problem.detail.contains("usage"), "{problem:?}");
    let told = Arc::new(Mutex::new(0));
    let (count, volume) = (told.clone(), volume());
    let progress = Arc::new(move |_, _| *count.lock().unwrap() += 1);
    let (chain, cancel) = (Chain::default(), CancellationToken::new());
    let answer = remote.create_volume(&volume, &chain, progress, cancel);
    assert_eq!(within(answer).await.unwrap_err().0.code, "host-too-old");
    assert_eq!(*told.lock().unwrap(), 0);
    server.stop().await;
}
