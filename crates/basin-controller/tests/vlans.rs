//! Networks that are VLANs: what is refused, and that only a server with a trunk gets
//! their VMs.

mod common;

use common::{DataCentre, vm};
use serde_json::{Value, json};

fn vlan(name: &str, change: Value) -> Value {
    let mut body = json!({
        "name": name, "vlan": 100, "subnet": "10.20.0.0/24", "gateway": "10.20.0.1",
    });
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

async fn done(centre: &DataCentre, method: &str, path: &str, body: Option<Value>) {
    let answer = centre.ask(method, path, body).await;
    assert!(answer.status.is_success(), "{method} {path}: {}", answer.text);
}

async fn refused(centre: &DataCentre, (method, path): (&str, &str), body: Value, says: &str) {
    let keys = centre.keys().await;
    let answer = centre.ask(method, path, Some(body.clone())).await;
    assert!(answer.status.is_client_error(), "{method} {path} {body}: {}", answer.text);
    let detail = answer.value()["detail"].as_str().unwrap_or_default().to_owned();
    assert!(detail.contains(says), "'{detail}' does not say '{says}'");
    assert_eq!(centre.keys().await, keys, "something stays of {method} {path} {body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vlan_is_one_network() {
    let centre = DataCentre::open().await;
    let post = ("POST", "/v1/networks");
    done(&centre, "POST", "/v1/networks", Some(vlan("office", json!({})))).await;
    let other = json!({"subnet": "10.30.0.0/24", "gateway": "10.30.0.1"});
    refused(&centre, post, vlan("b", other), "'office' is VLAN 100 already").await;
    refused(&centre, post, vlan("b", json!({"vlan": 200})), "10.20.0.0/24 of network 'office'")
        .await;
    let nat = json!({"name": "b", "subnet": "10.40.0.0/24", "gateway": "10.40.0.9"});
    refused(&centre, post, nat, "gateway: only a network that is a VLAN").await;
    let shown = centre.ask("GET", "/v1/networks/office", None).await.value();
    assert_eq!(shown["kind"], "vlan");
    assert_eq!((&shown["vlan"], &shown["mtu"]), (&json!(100), &json!(1500)));
    assert_eq!(shown["service"], "10.20.0.254");
    assert_eq!(shown["range"], "10.20.0.1-10.20.0.254");
    assert_eq!(shown["vni"], Value::Null);
    // What it held is free again.
    done(&centre, "DELETE", "/v1/networks/office", None).await;
    done(&centre, "POST", "/v1/networks", Some(vlan("again", json!({})))).await;
    centre.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_server_with_a_trunk_gets_its_vms() {
    let centre = DataCentre::open().await;
    let range = json!({"range": "10.20.0.50-10.20.0.51"});
    done(&centre, "POST", "/v1/networks", Some(vlan("office", range))).await;
    let on_vlan = |name: &str| {
        let mut body = vm(name);
        body["nics"] = json!([{"network": "office"}]);
        body["start"] = json!(true);
        body
    };
    let post = ("POST", "/v1/vms");
    refused(&centre, post, on_vlan("a"), "it has no trunk").await;
    let put = ("PUT", "/v1/hosts/srv1/trunk");
    refused(&centre, put, json!({"interface": "a b"}), "interface: 'a b'").await;
    refused(&centre, put, json!({"interface": "eth1", "untagged": 0}), "untagged: 0").await;
    // One that is not there: the server says so, and gets none either.
    let trunk = |name: &str| Some(json!({"interface": name}));
    done(&centre, "PUT", "/v1/hosts/srv1/trunk", trunk("eth7")).await;
    until(&centre, |host| host["trunks"][0]["problem"].is_string()).await;
    let host = centre.ask("GET", "/v1/hosts/srv1", None).await.value();
    assert!(host["status"]["conditions"].to_string().contains("eth7"), "{host}");
    refused(&centre, post, on_vlan("a"), "eth7: there is no such interface").await;

    centre.fabric.add_trunk("eth1".parse().unwrap(), 1500);
    done(&centre, "PUT", "/v1/hosts/srv1/trunk", trunk("eth1")).await;
    until(&centre, |host| host["trunks"][0]["mtu"] == 1500).await;
    centre.must("POST", "/v1/vms", Some(on_vlan("a"))).await;
    let shown = centre.ask("GET", "/v1/vms/a", None).await.value();
    assert_eq!(shown["nics"][0]["address"], "10.20.0.50");
    let spec = centre.fabric.networks().into_iter().find(|n| n.trunk.is_some()).unwrap();
    assert_eq!(spec.gateway.to_string(), "10.20.0.254");
    assert_eq!(spec.trunk.unwrap().router.to_string(), "10.20.0.1");

    let unset = ("DELETE", "/v1/hosts/srv1/trunk");
    refused(&centre, unset, json!({}), "vm 'a'").await;
    let mut chosen = on_vlan("b");
    chosen["nics"][0]["address"] = json!("10.20.0.99");
    refused(&centre, post, chosen, "10.20.0.99").await;
    centre.must("POST", "/v1/vms", Some(on_vlan("b"))).await;
    refused(&centre, post, on_vlan("c"), "office").await;
    for name in ["a", "b"] {
        centre.must("POST", &format!("/v1/vms/{name}/power-off"), None).await;
    }
    done(&centre, "DELETE", "/v1/hosts/srv1/trunk", None).await;
    assert_eq!(centre.ask("GET", "/v1/hosts/srv1", None).await.value()["trunks"], Value::Null);
    centre.close().await;
}

/// Waits until the server shows this.
async fn until(centre: &DataCentre, shown: impl Fn(&Value) -> bool) {
    let mut changes = centre.app.inventory().changes();
    while !shown(&centre.ask("GET", "/v1/hosts/srv1", None).await.value()) {
        changes.changed().await.unwrap();
    }
}
