//! The client and the server speak of the same API: every call of the client is in the
//! OpenAPI document, and every operation of the document has a call.

mod support;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use basin_api::client::{Client, Creatable, Deletable, DeleteVm, Patchable, Readable, VmAction};
use basin_api::datastore::Datastore;
use basin_api::host::Host;
use basin_api::image::Image;
use basin_api::network::Network;
use basin_api::reference::MetaPatch;
use basin_api::task::Task;
use basin_api::token::Token;
use basin_api::vm::{Shutdown, Vm, VmMigrate};
use basin_api::volume::{Volume, VolumeGrow};
use serde_json::{Value, json};
use support::Server;

/// What is read by other programs, not by this client.
const FOR_OTHERS: [&str; 2] = ["GET /v1/openapi.json", "GET /metrics"];

/// The operations of the document, as `GET /v1/vms/{vm}`.
fn documented() -> BTreeSet<String> {
    let document = serde_json::to_value(basin_controller::http::openapi()).expect("JSON");
    let Value::Object(paths) = &document["paths"] else { panic!("no paths") };
    let mut all = BTreeSet::new();
    for (path, methods) in paths {
        for method in ["get", "post", "patch", "delete", "put"] {
            if methods.get(method).is_some() {
                all.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    all
}

fn fits(call: &str, operation: &str) -> bool {
    let (call, operation): (Vec<_>, Vec<_>) =
        (call.split('/').collect(), operation.split('/').collect());
    call.len() == operation.len()
        && call.iter().zip(&operation).all(|(c, o)| c == o || (o.starts_with('{') && *c == "x"))
}

async fn read<R: Readable>(client: &Client) {
    let _ = client.list::<R>().await;
    let _ = client.get::<R>("x").await;
}

async fn make<R: Creatable>(client: &Client, it: Value)
where
    R::Create: serde::de::DeserializeOwned,
{
    let it = serde_json::from_value(it).expect("a request");
    let _ = client.create::<R>(&it).await;
}

async fn change<R: Patchable>(client: &Client) {
    let _ = client.patch::<R>("x", &MetaPatch::default().into()).await;
}

async fn delete<R: Deletable>(client: &Client) {
    let _ = client.delete::<R>("x").await;
}

async fn every_call(client: &Client, file: &std::path::Path) {
    let _ = client.version().await;
    read::<Vm>(client).await;
    make::<Vm>(client, json!({"name": "x", "vcpus": 1, "memory_bytes": 1})).await;
    change::<Vm>(client).await;
    let _ = client.delete_vm("x", DeleteVm::default()).await;
    for action in
        [VmAction::Start, VmAction::PowerOff, VmAction::Reset, VmAction::Pause, VmAction::Resume]
    {
        let _ = client.vm_action("x", action).await;
    }
    let _ = client.shutdown_vm("x", &Shutdown::default()).await;
    let _ = client.migrate_vm("x", &VmMigrate::default()).await;
    let disk = json!({"disk": {"is": "existing", "volume": "x"}});
    let _ = client.attach_disk("x", &serde_json::from_value(disk).expect("a disk")).await;
    let _ = client.detach_disk("x", "x").await;
    let _ = client.console("x").await;
    let _ = client.console_log("x", None).await;

    read::<Image>(client).await;
    let source = json!({"from": "url", "url": "x"});
    make::<Image>(client, json!({"name": "x", "source": source})).await;
    change::<Image>(client).await;
    delete::<Image>(client).await;
    let _ = client.upload(file, None, |_, _| {}).await;

    read::<Volume>(client).await;
    let source = json!({"from": "blank", "size_bytes": 1});
    make::<Volume>(client, json!({"name": "x", "source": source})).await;
    change::<Volume>(client).await;
    delete::<Volume>(client).await;
    let _ = client.grow_volume("x", VolumeGrow { size_bytes: 1 }).await;

    read::<Datastore>(client).await;
    make::<Datastore>(client, json!({"name": "x", "path": "/x"})).await;
    change::<Datastore>(client).await;
    delete::<Datastore>(client).await;

    read::<Network>(client).await;
    make::<Network>(client, json!({"name": "x", "subnet": "x"})).await;
    change::<Network>(client).await;
    delete::<Network>(client).await;

    read::<Host>(client).await;
    change::<Host>(client).await;
    let _ = client.drain_host("x", &serde_json::from_value(json!({})).expect("a drain")).await;
    let _ = client.undrain_host("x").await;
    let trunk = json!({"interface": "eth1"});
    let _ = client.set_trunk("x", &serde_json::from_value(trunk).expect("a trunk")).await;
    let _ = client.unset_trunk("x", None).await;
    let _ = client.remove_host("x", false).await;

    let _ = client.cluster().await;
    let form = json!({"advertise": "192.0.2.1"});
    let _ = client.form_cluster(&serde_json::from_value(form).expect("a cluster")).await;
    let join = json!({"url": "x", "token": "x", "advertise": "192.0.2.2"});
    let _ = client.join_cluster(&serde_json::from_value(join).expect("a join")).await;
    let _ = client.create_join_token(&serde_json::from_value(json!({})).expect("a token")).await;
    let _ = client.backup(&file.with_extension("backup")).await;

    read::<Task>(client).await;
    let _ = client.cancel_task("x").await;

    let _ = client.list::<Token>().await;
    make::<Token>(client, json!({"name": "x"})).await;
    delete::<Token>(client).await;

    let _ = client.events(&[], Some(0)).await;
}

#[tokio::test]
async fn client_and_document_agree() {
    let calls = Arc::new(Mutex::new(BTreeSet::new()));
    let note = {
        let calls = calls.clone();
        async move |request: Request| {
            let call = format!("{} {}", request.method(), request.uri().path());
            calls.lock().expect("no panic").insert(call);
            StatusCode::NOT_FOUND
        }
    };
    let server = Server::start(Router::new().fallback(note));
    let client = Client::local(&server.dir.path().join("api.sock")).expect("a client");
    let file = server.dir.path().join("file");
    std::fs::write(&file, "x").expect("a file");
    every_call(&client, &file).await;

    let calls = calls.lock().expect("no panic").clone();
    let documented = documented();
    let unknown: Vec<_> = calls.iter().filter(|c| !documented.iter().any(|o| fits(c, o))).collect();
    assert!(unknown.is_empty(), "the server knows nothing of {unknown:?}");
    let uncalled: Vec<_> = documented
        .iter()
        .filter(|o| !FOR_OTHERS.contains(&o.as_str()) && !calls.iter().any(|c| fits(c, o)))
        .collect();
    assert!(uncalled.is_empty(), "the client cannot call {uncalled:?}");
}
