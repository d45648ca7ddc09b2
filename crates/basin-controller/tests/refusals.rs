//! What is refused, with which status and code, and that nothing stays of it.

mod common;

use common::{DataCentre, vm};
use serde_json::{Value, json};

async fn check(
    centre: &DataCentre,
    (method, path): (&str, &str),
    body: Value,
    expect: (u16, &str, &str),
) {
    let keys = centre.keys().await;
    let answer = centre.ask(method, path, Some(body.clone())).await;
    let (status, code, names) = expect;
    let problem = answer.value();
    let got = (answer.status.as_u16(), problem["code"].as_str().unwrap_or_default());
    assert_eq!(got, (status, code), "{method} {path} {body}: {}", answer.text);
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(names), "'{detail}' does not name '{names}'");
    assert!(!problem["advice"].as_str().unwrap_or_default().is_empty(), "{}", answer.text);
    assert_eq!(centre.keys().await, keys, "something stays of {method} {path} {body}");
}

fn with(mut base: Value, field: &str, value: Value) -> Value {
    base[field] = value;
    base
}

#[tokio::test(flavor = "multi_thread")]
async fn vms() {
    let centre = DataCentre::open().await;
    let mut first = vm("taken");
    first["nics"] =
        json!([{"network": "default", "mac": "52:54:00:00:00:01", "address": "10.86.0.9"}]);
    centre.must("POST", "/v1/vms", Some(first)).await;
    let post = ("POST", "/v1/vms");
    let a = || vm("a");
    let nic = |nic: Value| with(a(), "nics", json!([nic]));
    let disk = |disk: Value| with(a(), "disks", json!([{"disk": disk}]));
    for (body, expect) in [
        (vm("taken"), (409, "name-taken", "taken")),
        (vm("Bad Name"), (422, "invalid", "Bad Name")),
        (with(a(), "vcpus", json!(0)), (422, "invalid", "vcpus")),
        (with(a(), "vcpus", json!(9)), (409, "no-host", "9 vCPUs")),
        (with(a(), "memory_bytes", json!(1_u64 << 40)), (409, "no-host", "1.0 TiB")),
        (with(a(), "memory_bytes", json!(1)), (422, "invalid", "memory_bytes")),
        (with(a(), "memory_bytes", json!(-1)), (400, "malformed", "body")),
        (with(a(), "colour", json!("red")), (400, "malformed", "colour")),
        (with(a(), "machine", json!("microvm")), (422, "invalid", "microvm")),
        (with(a(), "cpu_model", json!("host,+evil")), (422, "invalid", "cpu_model")),
        (with(a(), "cdroms", json!(["none"])), (404, "not-found", "none")),
        (with(a(), "labels", json!({"": "x"})), (422, "invalid", "labels")),
        (nic(json!({"network": "none"})), (404, "not-found", "none")),
        (
            nic(json!({"network": "default", "mac": "52:54:00:00:00:01"})),
            (409, "mac-taken", "52:54:00:00:00:01"),
        ),
        (nic(json!({"network": "default", "mac": "53:54:00:00:00:01"})), (422, "invalid", "mac")),
        (
            nic(json!({"network": "default", "address": "10.86.0.9"})),
            (409, "address-taken", "10.86.0.9"),
        ),
        (nic(json!({"network": "default", "address": "10.86.0.1"})), (422, "invalid", "10.86.0.1")),
        (nic(json!({"network": "default", "address": "192.0.2.1"})), (422, "invalid", "192.0.2.1")),
        (disk(json!({"is": "existing", "volume": "none"})), (404, "not-found", "none")),
        (disk(json!({"is": "existing", "volume": "taken-disk0"})), (409, "in-use", "vm taken")),
        (
            disk(json!({"is": "new", "source": {"from": "blank", "size_bytes": 1000}})),
            (422, "invalid", "512"),
        ),
        (
            disk(json!({"is": "new", "source": {"from": "blank", "size_bytes": 1_u64 << 62}})),
            (422, "invalid", "size_bytes"),
        ),
        (
            disk(json!({"is": "new", "source": {"from": "blank", "size_bytes": 60_u64 << 40}})),
            (507, "no-space", "default"),
        ),
        (
            disk(json!({"is": "new", "source": {"from": "image", "image": "none"}})),
            (404, "not-found", "none"),
        ),
        (with(a(), "cloud_init", json!({"ssh_keys": ["not a key"]})), (422, "invalid", "ssh key")),
    ] {
        check(&centre, post, body, expect).await;
    }
    let vm_path = |action: &str| format!("/v1/vms/taken/{action}");
    for action in ["pause", "resume", "reset", "power-off", "shutdown"] {
        let path = vm_path(action);
        check(&centre, ("POST", &path), json!({}), (409, "wrong-state", "taken")).await;
    }
    centre.must("POST", "/v1/vms/taken/start", None).await;
    check(&centre, ("POST", &vm_path("start")), json!({}), (409, "wrong-state", "taken")).await;
    let patch = ("PATCH", "/v1/vms/taken");
    check(&centre, patch, json!({"vcpus": 2}), (409, "wrong-state", "not stopped")).await;
    check(&centre, patch, json!({"name": "x".repeat(64)}), (422, "invalid", "name")).await;
    check(&centre, ("POST", "/v1/vms/none/start"), json!({}), (404, "not-found", "none")).await;
    check(&centre, ("DELETE", "/v1/volumes/taken-disk0"), json!({}), (409, "in-use", "vm taken"))
        .await;
    check(&centre, ("DELETE", "/v1/networks/default"), json!({}), (409, "in-use", "vm taken"))
        .await;
    check(
        &centre,
        ("DELETE", "/v1/datastores/default"),
        json!({}),
        (409, "in-use", "volume taken-disk0"),
    )
    .await;
    centre.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_promised_once() {
    let centre = DataCentre::open().await;
    let sized = |name: &str, gib: u64| json!({"name": name, "vcpus": 1, "memory_bytes": gib << 30, "start": true});
    centre.must("POST", "/v1/vms", Some(sized("a", 10))).await;
    check(&centre, ("POST", "/v1/vms"), sized("b", 10), (409, "no-host", "srv1")).await;
    centre.must("POST", "/v1/vms/a/power-off", None).await;
    centre.must("POST", "/v1/vms", Some(sized("b", 10))).await;
    centre.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_datastores_images_tokens() {
    let centre = DataCentre::open().await;
    for (name, subnet, expect) in [
        ("n", "10.86.0.0/16", (409, "subnet-overlap", "10.86.0.0/16")),
        ("n", "10.90.0.1/24", (422, "invalid", "10.90.0.0/24")),
        ("n", "10.90.0.0/31", (422, "invalid", "/8 to /29")),
        ("n", "pond", (422, "invalid", "subnet")),
        ("default", "10.90.0.0/24", (409, "name-taken", "default")),
    ] {
        let body = json!({"name": name, "subnet": subnet});
        check(&centre, ("POST", "/v1/networks"), body, expect).await;
    }
    let elsewhere = centre.dir.path().join("s/datastores/default/sub");
    for (path, expect) in [
        (json!("relative"), (422, "invalid", "relative")),
        (json!("/a/../b"), (422, "invalid", "/a/../b")),
        (json!(elsewhere), (422, "invalid", "default")),
        (json!("/proc/none"), (500, "storage-io", "/proc/none")),
    ] {
        let body = json!({"name": "d", "path": path});
        let answer = centre.ask("POST", "/v1/datastores", Some(body.clone())).await;
        assert!(answer.status.is_client_error() || answer.status.is_server_error());
        assert!(answer.text.contains(expect.2), "{}", answer.text);
        assert!(centre.keys().await.iter().filter(|k| k.contains("/datastore/")).count() <= 2);
    }
    for (source, expect) in [
        (json!({"from": "path", "path": "x"}), (422, "invalid", "'x'")),
        (json!({"from": "url", "url": "ftp://x"}), (422, "invalid", "ftp://x")),
        (json!({"from": "upload", "upload": "x"}), (422, "invalid", "source")),
    ] {
        check(&centre, ("POST", "/v1/images"), json!({"name": "i", "source": source}), expect)
            .await;
    }
    let absent = json!({"name": "i", "source": {"from": "path", "path": "/nonexistent"}});
    let task = centre.run("POST", "/v1/images", Some(absent)).await;
    assert!(task.problem.unwrap().detail.contains("/nonexistent"));
    let path = centre.file("junk", b"QFI\xfb and then nothing that a qcow2 has");
    let corrupt = json!({"name": "i", "source": {"from": "path", "path": path}});
    let task = centre.run("POST", "/v1/images", Some(corrupt)).await;
    assert_eq!(task.problem.unwrap().code, "content-corrupt");
    assert_eq!(centre.files(), Vec::<String>::new());
    check(
        &centre,
        ("POST", "/v1/tokens"),
        json!({"name": "t", "expires_in_seconds": 0}),
        (422, "invalid", "expires"),
    )
    .await;
    check(&centre, ("GET", "/v1/nowhere"), json!({}), (404, "not-found", "/v1/nowhere")).await;
    check(&centre, ("PUT", "/v1/vms"), json!({}), (405, "malformed", "PUT")).await;
    check(&centre, ("GET", "/v1/vms?lable=x"), json!({}), (400, "malformed", "lable")).await;
    centre.close().await;
}
