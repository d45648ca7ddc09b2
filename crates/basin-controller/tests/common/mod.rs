//! A data centre of one server: real store, datastore, node and workflows over
//! the fake engine, network and disks; asked through the API's own router.

#![allow(dead_code, reason = "each test uses its part")]

pub mod pair;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use axum::response::Response;
use axum::{Extension, Router};
use basin_api::task::{Task, TaskState};
use basin_controller::app::auth::{Administrators, SharedAuthorizer};
use basin_controller::app::inventory::Inventory;
use basin_controller::app::nodes::Nodes;
use basin_controller::app::{App, Services, bootstrap};
use basin_controller::http::auth::FromLocalRoot;
use basin_controller::http::{Context, router};
use basin_controller::workflow::Workflows;
use basin_controller::workflows;
use basin_model::host::{HostCapacity, HostStatus, KvmVerdict, QemuInfo};
use basin_model::{Bytes, HostId, Vcpus};
use basin_net::fake::FakeFabric;
use basin_node::{Alone, BlockdMode, FakeDisks, LocalNode, NodeApi, NodeConfig};
use basin_qemu::fake::FakeWorld;
use basin_store::{MemStore, Store};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

/// The server's size in these tests.
pub const CPUS: u32 = 8;
pub const MEMORY: Bytes = Bytes::gib(16);

pub struct DataCentre {
    pub app: Arc<App>,
    pub machines: FakeWorld,
    pub fabric: Arc<FakeFabric>,
    pub disks: FakeDisks,
    pub node: Arc<LocalNode>,
    pub store: Arc<dyn Store>,
    pub dir: TempDir,
    router: Router,
}

/// An answer, read whole.
pub struct Answer {
    pub status: StatusCode,
    pub etag: Option<String>,
    pub text: String,
}

impl Answer {
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub fn value(&self) -> Value {
        self.json()
    }
}

impl DataCentre {
    pub async fn open() -> DataCentre {
        DataCentre::with(Arc::new(Administrators)).await
    }

    pub async fn with(authorizer: SharedAuthorizer) -> DataCentre {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(MemStore::new());
        let host = HostId::from_uuid(uuid::Uuid::now_v7());
        let name = "srv1".parse().unwrap();
        bootstrap::ensure_host(&*store, host, &name).await.unwrap();
        let (machines, disks) = (FakeWorld::new(), FakeDisks::new());
        let fabric = Arc::new(FakeFabric::new());
        let state_dir = dir.path().join("s");
        let config = NodeConfig {
            host,
            state_dir: state_dir.clone(),
            run_dir: dir.path().join("r"),
            slice: Some(HostCapacity { cpus: Vcpus(CPUS), memory: MEMORY }),
            blockd: BlockdMode::Given(Arc::new(disks.clone())),
            qemu: QemuInfo::Usable { path: "fake".into(), version: "0".into() },
            kvm: KvmVerdict { usable: false, reason: "fake".into() },
            peers: Arc::new(Alone),
            image_cache: None,
            hardware: Some(basin_qemu::fake::hardware_facts()),
        };
        let engine = Arc::new(machines.engine());
        let node = LocalNode::start(config, store.clone(), engine, fabric.clone()).await.unwrap();
        bootstrap::ensure_defaults(&*store, host, &state_dir, &*node).await.unwrap();
        let inventory = Inventory::open(store.clone()).await.unwrap();
        let nodes = Nodes::single(host, node.clone());
        let services = Arc::new(Services { store: store.clone(), inventory, nodes });
        let flows = Workflows::new(store.clone(), services.clone(), workflows::registry());
        let app = Arc::new(App::new(services, flows));
        let router = router(Context::new(app.clone(), authorizer));
        let centre = DataCentre { app, machines, fabric, disks, node, store, dir, router };
        centre.settled().await;
        centre
    }

    /// Once the server has reported and the datastore is open.
    async fn settled(&self) {
        let mut changes = self.app.inventory().changes();
        while self.app.inventory().read().host_statuses.is_empty() {
            changes.changed().await.unwrap();
        }
        while self.app.capacities().await.is_empty() {
            tokio::task::yield_now().await;
        }
    }

    /// What the server reports of itself.
    pub async fn node_status(&self) -> HostStatus {
        self.node.status().await.unwrap()
    }

    /// The API, to be served.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    pub async fn close(self) {
        self.app.workflows.stop().await;
        self.node.shutdown().await;
    }

    pub async fn raw(&self, request: Request<Body>, root: bool) -> Response {
        let router = self.router.clone();
        let router = if root { router.layer(Extension(FromLocalRoot)) } else { router };
        router.oneshot(request).await.unwrap()
    }

    async fn send(&self, request: Request<Body>, root: bool) -> Answer {
        let response = self.raw(request, root).await;
        let status = response.status();
        let etag = response.headers().get(header::ETAG);
        let etag = etag.map(|v| v.to_str().unwrap().to_owned());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        Answer { status, etag, text: String::from_utf8_lossy(&bytes).into_owned() }
    }

    pub async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let body = body.map_or_else(Body::empty, |b| Body::from(b.to_string()));
        self.send(Request::builder().method(method).uri(path).body(body).unwrap(), true).await
    }

    pub async fn ask_if(&self, method: &str, path: &str, tag: &str, body: Value) -> Answer {
        let request = Request::builder().method(method).uri(path).header(header::IF_MATCH, tag);
        self.send(request.body(Body::from(body.to_string())).unwrap(), true).await
    }

    pub async fn ask_as(&self, secret: Option<&str>, method: &str, path: &str) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(secret) = secret {
            request = request.header(header::AUTHORIZATION, format!("Bearer {secret}"));
        }
        self.send(request.body(Body::empty()).unwrap(), false).await
    }

    pub async fn get(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, None).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
        answer.value()
    }

    /// Asks for something that takes a task, and waits for its end.
    pub async fn run(&self, method: &str, path: &str, body: Option<Value>) -> Task {
        let answer = self.ask(method, path, body).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{method} {path}: {}", answer.text);
        let task: Task = answer.json();
        self.ask("GET", &format!("/v1/tasks/{}?wait=60", task.id), None).await.json()
    }

    /// As [`DataCentre::run`], and it has to succeed.
    pub async fn must(&self, method: &str, path: &str, body: Option<Value>) -> Task {
        let task = self.run(method, path, body).await;
        assert_eq!(task.state, TaskState::Done, "{method} {path}: {:?}", task.problem);
        task
    }

    /// A file for an image; raw formats need a whole number of sectors.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Imports a raw disk image of so many bytes.
    pub async fn image(&self, name: &str, size: usize) {
        let path = self.file(&format!("{name}.raw"), &vec![7; size]);
        let source = json!({"from": "path", "path": path});
        let body = json!({"name": name, "source": source, "format": "raw"});
        self.must("POST", "/v1/images", Some(body)).await;
    }

    /// All keys of the store but those of tasks, workflows and guards.
    pub async fn keys(&self) -> Vec<String> {
        let entries = self.store.list("/basin/").await.unwrap().entries;
        let noise = ["/task/", "/workflow/", "/guard/"];
        let keys = entries.into_iter().map(|e| e.key);
        keys.filter(|k| !noise.iter().any(|n| k.contains(n))).collect()
    }

    /// The files of volumes and images.
    pub fn files(&self) -> Vec<String> {
        let root = self.dir.path().join("s/datastores/default");
        let mut names = Vec::new();
        for part in ["images", "volumes", "incoming"] {
            for entry in std::fs::read_dir(root.join(part)).unwrap() {
                names.push(format!("{part}/{}", entry.unwrap().file_name().to_string_lossy()));
            }
        }
        names.sort();
        names
    }
}

/// The smallest VM: one blank disk, one interface.
pub fn vm(name: &str) -> Value {
    json!({
        "name": name, "vcpus": 1, "memory_bytes": 64 << 20,
        "disks": [{"disk": {"is": "new", "source": {"from": "blank", "size_bytes": 1 << 20}}}],
    })
}

/// The files of volumes in a datastore.
pub fn volume_files(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root.join("volumes")).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
