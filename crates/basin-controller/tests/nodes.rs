//! A cluster's servers as one of them sees them: one that answers, one that is down,
//! one that froze, one whose address is not known.

mod common;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use axum::{Extension, Router};
use basin_controller::app::auth::Administrators;
use basin_controller::app::inventory::Inventory;
use basin_controller::app::nodes::Nodes;
use basin_controller::app::{App, Services};
use basin_controller::http::auth::FromLocalRoot;
use basin_controller::http::{Context, router};
use basin_controller::workflow::Workflows;
use basin_controller::workflows;
use basin_model::host::Host;
use basin_model::keys::{self, Kind};
use basin_model::{HostId, Meta};
use basin_node::pki::{ClusterCa, Credentials, Material, Subject, request};
use basin_node::remote::{self, Peers, Tls, serve};
use basin_store::records::TxnBuilder;
use common::{DataCentre, vm};
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

fn credentials(ca: &ClusterCa, host: HostId) -> Credentials {
    let addresses = vec!["127.0.0.1".parse().unwrap()];
    let subject = Subject { host, name: "srv".parse().unwrap(), addresses };
    let (key, csr) = request(&subject).unwrap();
    let chain = ca.sign(&csr, &subject, Timestamp::now()).unwrap();
    let material = Material::parse(&chain, &key, &ca.certificate_pem()).unwrap();
    Credentials::new(material, Arc::new(|_| true)).unwrap()
}

async fn record(centre: &DataCentre, id: HostId, name: &str, at: Option<SocketAddr>) {
    let (description, labels) = Default::default();
    let created_at = Timestamp::now();
    let meta = Meta { name: name.parse().unwrap(), description, labels, created_at };
    let (address, api_port) = (at.map(|a| a.ip()), at.map(|a| a.port()));
    let host = Host { id, meta, address, api_port, drain: None, trunks: Vec::new() };
    let txn = TxnBuilder::new()
        .create(keys::host(id), &host)
        .create(Kind::Host.name(&host.meta.name), &id);
    txn.commit(&*centre.store).await.unwrap();
    if at.is_some() {
        // As its daemon reported when it was there last.
        let mut status = centre.node_status().await;
        status.host = id;
        let txn = TxnBuilder::new().put(keys::host_status(id), &status);
        txn.commit(&*centre.store).await.unwrap();
    }
}

fn new_host() -> HostId {
    HostId::from_uuid(Uuid::now_v7())
}

struct Seen {
    nodes: Nodes,
    router: Router,
}

impl Seen {
    async fn get(&self, path: &str) -> String {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let router = self.router.clone().layer(Extension(FromLocalRoot));
        let answer = router.oneshot(request).await.unwrap();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path).await).unwrap()
    }
}

/// The same records, asked of another server: it has no VMs itself.
async fn from_another(
    centre: &DataCentre,
    ca: &ClusterCa,
    local: HostId,
    other: &DataCentre,
) -> Seen {
    let inventory = Inventory::open(centre.store.clone()).await.unwrap();
    let peers = Peers::new(credentials(ca, local));
    let nodes = Nodes::cluster(local, other.node.clone(), peers, inventory.clone());
    let store = centre.store.clone();
    let services = Arc::new(Services { store: store.clone(), inventory, nodes: nodes.clone() });
    let flows = Workflows::new(store, services.clone(), workflows::registry());
    let app = Arc::new(App::new(services, flows));
    Seen { nodes, router: router(Context::new(app, Arc::new(Administrators))) }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_reached_where_their_records_say_and_shown_as_gone_otherwise() {
    let (centre, other) = (DataCentre::open().await, DataCentre::open().await);
    let mut spec = vm("web-1");
    spec["start"] = json!(true);
    centre.must("POST", "/v1/vms", Some(spec)).await;
    let ca = ClusterCa::create("test", Timestamp::now()).unwrap();

    // The server that has the VMs gets an address; this one is another.
    let busy = centre.app.nodes().local();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let (tls, routes) = (Tls::Cluster(credentials(&ca, busy)), remote::router(centre.node.clone()));
    let served = tokio::spawn(serve(listener, tls, routes, stop.clone(), Duration::ZERO));
    basin_controller::app::update::<Host, _>(&*centre.store, &keys::host(busy), |host| {
        Ok(Host { address: Some(at.ip()), api_port: Some(at.port()), ..host })
    })
    .await
    .unwrap();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = free.local_addr().unwrap();
    drop(free);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (here, down, frozen, lost) = (new_host(), new_host(), new_host(), new_host());
    record(&centre, here, "here", Some(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 1))).await;
    record(&centre, down, "down", Some(nobody)).await;
    record(&centre, frozen, "frozen", Some(silent.local_addr().unwrap())).await;
    record(&centre, lost, "lost", None).await;
    let seen = from_another(&centre, &ca, here, &other).await;

    let usages = seen.nodes.usages().await;
    assert_eq!(usages.len(), 5);
    let code = |host| usages[&host].as_ref().map(|_| "").unwrap_or_else(|p| p.code.as_str());
    assert_eq!(code(here), "");
    assert_eq!(usages[&busy].as_ref().unwrap().vms.len(), 1);
    assert_eq!((code(down), code(frozen)), ("host-unreachable", "host-unreachable"));
    assert_eq!(code(lost), "host-no-address");
    assert_eq!(seen.nodes.get(new_host()).err().unwrap().code, "not-found");

    // The VM's figures come from the server that has it.
    let shown = seen.json("/v1/vms/web-1").await;
    assert!(shown["status"]["usage"].is_object(), "{shown}");
    let list = seen.json("/v1/hosts").await;
    for host in list["items"].as_array().unwrap() {
        let name = host["name"].as_str().unwrap();
        let status = &host["status"];
        let why = status["conditions"][0]["detail"].as_str().unwrap_or_default();
        match name {
            "srv1" | "here" => assert!(status["usage"].is_object() && why.is_empty(), "{host}"),
            "down" | "frozen" => {
                assert!(status["usage"].is_null() && why.contains(name), "{host}");
                assert_eq!(status["conditions"][0]["subject"], "connection");
            }
            _ => assert!(status.is_null(), "{host}"),
        }
    }
    let metrics = seen.get("/metrics").await;
    for (host, up) in [("srv1", 1), ("here", 1), ("down", 0), ("frozen", 0), ("lost", 0)] {
        let line = format!("basin_host_up{{host=\"{host}\"}} {up}\n");
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
    assert!(metrics.contains("basin_vm_resident_memory_bytes{vm=\"web-1\""), "{metrics}");

    stop.cancel();
    served.await.unwrap();
    centre.close().await;
    other.close().await;
}
