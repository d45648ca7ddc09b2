//! What the API does, asked as its users ask.

mod common;

use axum::http::StatusCode;
use basin_api::event::{Change, Event};
use basin_api::reference::List;
use basin_api::task::TaskState;
use basin_api::vm::{State, Vm};
use common::{DataCentre, vm};
use http_body_util::BodyExt;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_from_its_making_to_its_end() {
    let centre = DataCentre::open().await;
    let (keys, files) = (centre.keys().await, centre.files());

    let mut request = vm("web-1");
    request["start"] = json!(true);
    request["labels"] = json!({"tier": "gold"});
    centre.must("POST", "/v1/vms", Some(request)).await;
    let made: Vm = centre.ask("GET", "/v1/vms/web-1", None).await.json();
    assert_eq!(made.status.state, State::Running);
    assert_eq!(made.status.generation, 1);
    assert_eq!(made.disks[0].volume.name.as_deref(), Some("web-1-disk0"));
    assert_eq!(made.nics[0].address, "10.86.0.2");
    assert!(made.status.usage.is_some());
    let id = made.meta.id.clone();

    for (action, expect) in [
        ("pause", State::Paused),
        ("resume", State::Running),
        ("reset", State::Running),
        ("power-off", State::Stopped),
        ("start", State::Running),
        ("shutdown", State::Stopped),
    ] {
        centre.must("POST", &format!("/v1/vms/{id}/{action}"), None).await;
        let vm: Vm = centre.ask("GET", "/v1/vms/web-1", None).await.json();
        assert_eq!(vm.status.state, expect, "after {action}");
    }

    let gold: List<Vm> = centre.ask("GET", "/v1/vms?label=tier=gold", None).await.json();
    let lead: List<Vm> = centre.ask("GET", "/v1/vms?label=tier=lead", None).await.json();
    assert_eq!((gold.items.len(), lead.items.len()), (1, 0));

    centre.must("DELETE", "/v1/vms/web-1", None).await;
    assert_eq!(centre.ask("GET", "/v1/vms/web-1", None).await.status, StatusCode::NOT_FOUND);
    assert_eq!(centre.keys().await, keys, "nothing is left in the store");
    assert_eq!(centre.files(), files, "nothing is left on the datastore");
    centre.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_vm_is_deleted_only_by_force_and_its_disks_stay_when_asked() {
    let centre = DataCentre::open().await;
    let mut request = vm("a");
    request["start"] = json!(true);
    centre.must("POST", "/v1/vms", Some(request)).await;
    let refused = centre.ask("DELETE", "/v1/vms/a", None).await;
    assert_eq!(refused.value()["code"], "wrong-state");
    centre.must("DELETE", "/v1/vms/a?force=true&keep_disks=true", None).await;
    assert!(centre.machines.running().is_empty());
    let volume = centre.get("/v1/volumes/a-disk0").await;
    assert_eq!(volume["state"], "ready");
    assert!(volume.get("vm").is_none());
    centre.must("DELETE", "/v1/volumes/a-disk0", None).await;
    centre.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_takes_the_whole_vm_back() {
    let centre = DataCentre::open().await;
    let (keys, files) = (centre.keys().await, centre.files());
    centre.machines.fail_next_launches(100, "the test wants it");
    let mut request = vm("a");
    request["start"] = json!(true);
    let task = centre.run("POST", "/v1/vms", Some(request)).await;
    assert_eq!(task.state, TaskState::Failed);
    let problem = task.problem.unwrap();
    assert!(problem.detail.contains("the test wants it"), "{problem:?}");
    assert_eq!((centre.keys().await, centre.files()), (keys, files));
    centre.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_hold_what_they_are_made_of() {
    let centre = DataCentre::open().await;
    centre.image("base", 1 << 20).await;
    let clone = |name: &str, source: serde_json::Value| json!({"name": name, "source": source});
    let linked = clone("linked", json!({"from": "image", "image": "base", "clone": "linked"}));
    centre.must("POST", "/v1/volumes", Some(linked)).await;
    let full = clone("full", json!({"from": "image", "image": "base", "clone": "full"}));
    centre.must("POST", "/v1/volumes", Some(full)).await;
    let second = clone("second", json!({"from": "volume", "volume": "linked"}));
    centre.must("POST", "/v1/volumes", Some(second)).await;
    assert_eq!(centre.get("/v1/volumes/linked").await["backing"], "image/base");
    assert_eq!(centre.get("/v1/volumes/second").await["backing"], "volume/linked");
    for (path, holder) in
        [("/v1/images/base", "volume linked"), ("/v1/volumes/linked", "volume second")]
    {
        let refused = centre.ask("DELETE", path, None).await;
        assert_eq!(refused.value()["code"], "in-use");
        assert!(refused.text.contains(holder), "{}", refused.text);
    }
    // What others are linked to is not written to any more.
    let mut request = vm("a");
    request["disks"] = json!([{"disk": {"is": "existing", "volume": "linked"}}]);
    let refused = centre.ask("POST", "/v1/vms", Some(request)).await;
    assert_eq!(refused.value()["code"], "in-use", "{}", refused.text);
    for path in ["/v1/volumes/second", "/v1/volumes/linked", "/v1/volumes/full", "/v1/images/base"]
    {
        centre.must("DELETE", path, None).await;
    }
    assert_eq!(centre.files(), Vec::<String>::new());
    centre.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_are_added_grown_and_taken_off() {
    let centre = DataCentre::open().await;
    centre.must("POST", "/v1/vms", Some(vm("a"))).await;
    let disk = json!({"disk": {"is": "new", "source": {"from": "blank", "size_bytes": 1 << 20}}});
    centre.must("POST", "/v1/vms/a/disks", Some(disk)).await;
    let grow = json!({"size_bytes": 2 << 20});
    centre.must("POST", "/v1/volumes/a-disk1/grow", Some(grow)).await;
    let shown: Vm = centre.ask("GET", "/v1/vms/a", None).await.json();
    let sizes: Vec<u64> = shown.disks.iter().map(|d| d.size_bytes).collect();
    assert_eq!(sizes, [1 << 20, 2 << 20]);
    let shrink = json!({"size_bytes": 1 << 20});
    let refused = centre.ask("POST", "/v1/volumes/a-disk1/grow", Some(shrink)).await;
    assert_eq!(refused.value()["code"], "invalid");
    let off = centre.ask("DELETE", "/v1/vms/a/disks/a-disk1", None).await;
    assert_eq!(off.status, StatusCode::OK, "{}", off.text);
    assert_eq!(off.json::<Vm>().disks.len(), 1);
    centre.must("DELETE", "/v1/volumes/a-disk1", None).await;
    centre.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_refused_when_the_thing_is_no_longer_what_was_read() {
    let centre = DataCentre::open().await;
    centre.must("POST", "/v1/vms", Some(vm("a"))).await;
    let read = centre.ask("GET", "/v1/vms/a", None).await.etag.unwrap();
    let described = json!({"description": "first", "labels": {"x": "1"}});
    let first = centre.ask_if("PATCH", "/v1/vms/a", &read, described).await;
    assert_eq!(first.status, StatusCode::OK, "{}", first.text);
    let second = centre.ask_if("PATCH", "/v1/vms/a", &read, json!({"name": "b"})).await;
    assert_eq!(second.status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(second.value()["code"], "changed");
    let tag = first.etag.unwrap();
    let renamed = json!({"name": "b", "labels": {"x": null}});
    let third = centre.ask_if("PATCH", "/v1/vms/a", &tag, renamed).await;
    assert_eq!(third.value()["name"], "b");
    assert_eq!(third.value()["labels"], json!({}));
    // The old name is free again.
    centre
        .must("POST", "/v1/vms", Some(json!({"name": "a", "vcpus": 1, "memory_bytes": 64 << 20})))
        .await;
    centre.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_an_event_and_none_is_missed_by_who_comes_back() {
    let centre = DataCentre::open().await;
    let before = centre.get("/v1/vms").await["revision"].as_u64().unwrap();
    centre.must("POST", "/v1/vms", Some(vm("a"))).await;
    centre.must("DELETE", "/v1/vms/a", None).await;
    let all = events(&centre, &format!("/v1/events?kind=vm&after={before}"), 2).await;
    assert_eq!(all[0].change, Change::Created);
    assert_eq!(all.last().unwrap().change, Change::Deleted);
    let rest = events(&centre, &format!("/v1/events?kind=vm&after={}", all[0].revision), 1).await;
    assert_eq!(rest.last().unwrap().change, Change::Deleted);
    let refused = centre.ask("GET", "/v1/events?kind=cow", None).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    centre.close().await;
}

/// Reads events until at least so many have come and the last is a deletion.
async fn events(centre: &DataCentre, path: &str, at_least: usize) -> Vec<Event> {
    let request = axum::http::Request::builder().uri(path).body(axum::body::Body::empty()).unwrap();
    let mut body = centre.raw(request, true).await.into_body();
    let (mut text, mut found) = (String::new(), Vec::new());
    loop {
        let frame = body.frame().await.unwrap().unwrap();
        if let Ok(bytes) = frame.into_data() {
            text.push_str(&String::from_utf8_lossy(&bytes));
        }
        while let Some((one, rest)) = text.split_once("\n\n") {
            let data = one.lines().find_map(|l| l.strip_prefix("data: "));
            found.extend(data.map(|d| serde_json::from_str::<Event>(d).unwrap()));
            text = rest.to_owned();
        }
        let ended = found.last().is_some_and(|e| e.change == Change::Deleted);
        if found.len() >= at_least && ended {
            return found;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_addresses_and_macs_are_given_once_however_many_ask() {
    let centre = DataCentre::open().await;
    let bare = |n: usize| json!({"name": format!("v{n}"), "vcpus": 1, "memory_bytes": 64 << 20});
    let asks = (0..20).map(|n| centre.ask("POST", "/v1/vms", Some(bare(n % 10))));
    let answers = futures::future::join_all(asks).await;
    let taken = answers.iter().filter(|a| a.status == StatusCode::CONFLICT).count();
    assert_eq!(taken, 10, "each name once");
    for answer in answers.iter().filter(|a| a.status == StatusCode::ACCEPTED) {
        let id = answer.value()["id"].as_str().unwrap().to_owned();
        centre.ask("GET", &format!("/v1/tasks/{id}?wait=60"), None).await;
    }
    let vms: List<Vm> = centre.ask("GET", "/v1/vms", None).await.json();
    let mut addresses: Vec<_> = vms.items.iter().map(|v| v.nics[0].address.clone()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 10);
    centre.close().await;
}
