//! Datastores through the API: made, shown, used, refused, and given back.

mod common;

use basin_api::datastore::Datastore;
use common::{DataCentre, vm};
use serde_json::{Value, json};

async fn make(centre: &DataCentre, body: Value) -> Datastore {
    let answer = centre.ask("POST", "/v1/datastores", Some(body)).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_one_is_used_like_any_other_and_its_directory_given_back() {
    let centre = DataCentre::open().await;
    let path = centre.dir.path().join("nfs");
    let body = json!({"name": "nfs", "path": path, "shared": true});
    let made = make(&centre, body.clone()).await;
    assert!(made.shared && made.host.is_none(), "{made:?}");
    // Whoever has made it can use it.
    let shown = made;
    assert_eq!(shown.servers.len(), 1);
    assert!(shown.servers[0].reaches);
    assert_eq!(shown.servers[0].host.name.as_deref(), Some("srv1"));
    assert!(shown.space.is_some() && shown.problem.is_none(), "{shown:?}");

    let mut request = vm("a");
    let source = json!({"from": "blank", "size_bytes": 1 << 20});
    let disk = json!({"is": "new", "source": source, "datastore": "nfs"});
    request["disks"] = json!([{ "disk": disk }]);
    request["start"] = json!(true);
    centre.must("POST", "/v1/vms", Some(request)).await;
    let refused = centre.ask("DELETE", "/v1/datastores/nfs", None).await;
    assert_eq!(refused.status, 409, "{}", refused.text);
    centre.must("DELETE", "/v1/vms/a?force=true", None).await;
    let gone = centre.ask("DELETE", "/v1/datastores/nfs", None).await;
    assert_eq!(gone.status, 204, "{}", gone.text);
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0, "it is as it was before");
    make(&centre, body).await;
    centre.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linked_clone_may_be_in_another_datastore_than_its_image() {
    let centre = DataCentre::open().await;
    centre.image("base", 64 << 10).await;
    let path = centre.dir.path().join("fast");
    let local = make(&centre, json!({"name": "fast", "path": path, "host": "srv1"})).await;
    assert_eq!(local.host.unwrap().name.as_deref(), Some("srv1"));
    assert!(!local.shared && local.servers.len() == 1);
    let source = json!({"from": "image", "image": "base"});
    let body = json!({"name": "v", "source": source, "datastore": "fast"});
    centre.must("POST", "/v1/volumes", Some(body)).await;
    let source = json!({"from": "volume", "volume": "v"});
    let body = json!({"name": "w", "source": source, "datastore": "default"});
    let refused = centre.ask("POST", "/v1/volumes", Some(body)).await;
    assert_eq!(refused.status, 422, "{}", refused.text);
    centre.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_made_leaves_nothing() {
    let centre = DataCentre::open().await;
    let before = centre.keys().await;
    let full = centre.dir.path().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("mine"), "x").unwrap();
    let default = centre.dir.path().join("s/datastores/default");
    for (body, status, words) in [
        (json!({"name": "d", "path": full}), 422, "mine"),
        (json!({"name": "d", "path": "/srv/x", "host": "nobody"}), 404, "nobody"),
        // A shared one is at that path on every server, also where another one is.
        (json!({"name": "d", "path": default, "shared": true}), 422, "default"),
        (json!({"name": "default", "path": "/srv/x"}), 409, "default"),
        (json!({"name": "d", "path": "/srv/x", "shared": "yes"}), 400, "boolean"),
    ] {
        let answer = centre.ask("POST", "/v1/datastores", Some(body.clone())).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        assert!(answer.text.contains(words), "{body}: {}", answer.text);
    }
    assert_eq!(centre.keys().await, before);
    assert_eq!(std::fs::read_dir(&full).unwrap().count(), 1, "nor in the directory");
    centre.close().await;
}
