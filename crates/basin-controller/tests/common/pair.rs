//! Two servers of one cluster in one process: one store, two nodes, and between their fake
//! machines a link that a test can spoil.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::{Extension, response::Response};
use basin_api::task::{Task, TaskState};
use basin_blockd::control::Fabric as NbdFabric;
use basin_controller::app::auth::Administrators;
use basin_controller::app::inventory::Inventory;
use basin_controller::app::nodes::Nodes;
use basin_controller::app::{App, Services, bootstrap};
use basin_controller::http::auth::FromLocalRoot;
use basin_controller::http::{Context, router};
use basin_controller::workflow::Workflows;
use basin_controller::workflows;
use basin_model::cluster::Alive;
use basin_model::host::{Host, HostCapacity, KvmVerdict, QemuInfo};
use basin_model::{HostId, Vcpus, VmId, keys};
use basin_net::fake::FakeFabric;
use basin_node::{BlockdMode, Disks as _, FakeDisks, LocalNode, NodeApi, NodeConfig, Peers};
use basin_qemu::MachineState;
use basin_qemu::fake::{FakeLink, FakeWorld};
use basin_store::records::{self, TxnBuilder};
use basin_store::{MemStore, Store};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

use super::{CPUS, MEMORY};

/// What outlives a server's daemon.
#[derive(Clone)]
pub struct Remains {
    pub host: HostId,
    pub dir: PathBuf,
    pub machines: FakeWorld,
    pub disks: FakeDisks,
    pub fabric: Arc<FakeFabric>,
}

/// See the module.
pub struct Pair {
    pub app: Arc<App>,
    pub store: Arc<dyn Store>,
    pub link: FakeLink,
    pub servers: [Remains; 2],
    pub nodes: [Arc<LocalNode>; 2],
    pub known: Known,
    pub dir: TempDir,
    router: Router,
}

/// How the nodes find each other.
#[derive(Clone, Default)]
pub struct Known(Arc<Mutex<BTreeMap<HostId, Node>>>);

#[derive(Default)]
struct Node {
    node: Weak<LocalNode>,
    silent: bool,
}

impl Peers for Known {
    fn get(&self, host: HostId) -> Option<Arc<dyn NodeApi>> {
        let known = self.0.lock().unwrap();
        let node = known.get(&host).filter(|node| !node.silent)?.node.upgrade()?;
        Some(node)
    }
}

impl Known {
    /// Whether nobody reaches the server.
    pub fn silence(&self, host: HostId, silent: bool) {
        self.0.lock().unwrap().entry(host).or_default().silent = silent;
    }

    fn set(&self, host: HostId, node: &Arc<LocalNode>) {
        self.0.lock().unwrap().entry(host).or_default().node = Arc::downgrade(node);
    }
}

impl Remains {
    fn new(n: u128, root: &Path, link: &FakeLink) -> Remains {
        Remains {
            host: HostId::from_uuid(uuid::Uuid::from_u128(n)),
            dir: root.join(format!("srv{n}")),
            machines: FakeWorld::on_link(link, None),
            disks: FakeDisks::new(),
            fabric: Arc::new(FakeFabric::new()),
        }
    }

    pub async fn start(&self, store: Arc<dyn Store>, known: &Known) -> Arc<LocalNode> {
        let config = NodeConfig {
            host: self.host,
            state_dir: self.dir.join("s"),
            run_dir: self.dir.join("r"),
            slice: Some(HostCapacity { cpus: Vcpus(CPUS), memory: MEMORY }),
            blockd: BlockdMode::Given(Arc::new(self.disks.clone())),
            qemu: QemuInfo::Usable { path: "fake".into(), version: "0".into() },
            kvm: KvmVerdict { usable: false, reason: "fake".into() },
            peers: Arc::new(known.clone()),
            image_cache: None,
            hardware: Some(basin_qemu::fake::hardware_facts()),
        };
        let engine = Arc::new(self.machines.engine());
        let node = LocalNode::start(config, store, engine, self.fabric.clone()).await.unwrap();
        let listen = SocketAddr::from(([127, 0, 0, 1], 10809));
        let nothing = PathBuf::new;
        let fabric = NbdFabric { listen, ca: nothing(), cert: nothing(), key: nothing() };
        self.disks.fabric(Some(&fabric)).await.unwrap();
        known.set(self.host, &node);
        node
    }

    /// Whether the guest runs here.
    pub fn runs(&self, vm: VmId) -> bool {
        self.machines.guest(vm).is_some_and(|guest| guest.state() == MachineState::Running)
    }

    /// The files of volumes in this server's own datastore.
    pub fn volumes(&self) -> Vec<String> {
        super::volume_files(&self.dir.join("s/datastores").join(self.own()))
    }

    fn own(&self) -> &'static str {
        if self.dir.ends_with("srv1") { "default" } else { "local2" }
    }
}

impl Pair {
    /// Servers `srv1` and `srv2`; datastores `default` on the one, `local2` on the other, and
    /// `shared`.
    pub async fn open() -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(MemStore::new());
        let (link, known) = (FakeLink::default(), Known::default());
        let servers = [1, 2].map(|n| Remains::new(n, dir.path(), &link));
        for (n, server) in servers.iter().enumerate() {
            let name = format!("srv{}", n + 1).parse().unwrap();
            bootstrap::ensure_host(&*store, server.host, &name).await.unwrap();
            let address = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
            let add = |host: Host| Ok::<_, ()>(Host { address, ..host });
            records::update(&*store, &keys::host(server.host), add).await.unwrap();
            let alive = Alive { host: server.host, since: jiff::Timestamp::now() };
            let txn = TxnBuilder::new().put(keys::alive(server.host), &alive);
            txn.commit(&*store).await.unwrap();
        }
        let first = servers[0].start(store.clone(), &known).await;
        let second = servers[1].start(store.clone(), &known).await;
        let state_dir = servers[0].dir.join("s");
        bootstrap::ensure_defaults(&*store, servers[0].host, &state_dir, &*first).await.unwrap();
        let inventory = Inventory::open(store.clone()).await.unwrap();
        let hosts = servers.iter().map(|server| server.host).collect();
        let nodes = Nodes::together(servers[0].host, first.clone(), hosts, Arc::new(known.clone()));
        let services = Arc::new(Services { store: store.clone(), inventory, nodes });
        let flows = Workflows::new(store.clone(), services.clone(), workflows::registry());
        let app = Arc::new(App::new(services, flows));
        let router = router(Context::new(app.clone(), Arc::new(Administrators)));
        let router = router.layer(Extension(FromLocalRoot));
        let pair = Pair { app, store, link, servers, nodes: [first, second], known, dir, router };
        pair.add_datastores().await;
        pair
    }

    async fn add_datastores(&self) {
        let mut changes = self.app.inventory().changes();
        while self.app.inventory().read().host_statuses.len() < 2 {
            changes.changed().await.unwrap();
        }
        let path = self.servers[1].dir.join("s/datastores/local2");
        let local = json!({"name": "local2", "path": path, "host": "srv2"});
        self.made("/v1/datastores", local).await;
        let path = self.dir.path().join("shared");
        let shared = json!({"name": "shared", "path": path, "shared": true});
        self.made("/v1/datastores", shared).await;
        let proven = || {
            let snapshot = self.app.inventory().read();
            let proves = |s: &basin_model::host::HostStatus| s.shared_datastores.len() == 1;
            snapshot.host_statuses.values().all(|s| proves(&s.value))
        };
        while !proven() {
            changes.changed().await.unwrap();
        }
    }

    /// A running VM with a disk in this datastore.
    pub async fn vm(&self, name: &str, datastore: &str) -> VmId {
        let source = json!({"from": "blank", "size_bytes": 1 << 20});
        let disk = json!({"is": "new", "source": source, "datastore": datastore});
        let mut request = super::vm(name);
        request["disks"] = json!([{"disk": disk}]);
        request["start"] = json!(true);
        self.must("POST", "/v1/vms", Some(request)).await;
        self.app.inventory().read().vm(name).unwrap().value.id
    }

    /// The server that has the VM, by its record: 0 or 1.
    pub fn owner(&self, vm: VmId) -> usize {
        let snapshot = self.app.inventory().read();
        let host = snapshot.vms[&vm].value.placement.unwrap().host;
        self.servers.iter().position(|server| server.host == host).unwrap()
    }

    pub fn runs(&self, vm: VmId) -> [bool; 2] {
        [0, 1].map(|n| self.servers[n].runs(vm))
    }

    /// Until the VM runs at its owner and nothing of it is left elsewhere.
    pub async fn settled(&self, vm: VmId) {
        // A VM that failed is started again by the wall's clock, whatever the test's is.
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            let current = self.store.list("/basin/").await.unwrap().revision;
            self.app.inventory().at_least(current).await;
            let there = {
                let snapshot = self.app.inventory().read();
                let host = snapshot.vm_statuses.get(&vm).map(|s| s.value.host);
                let moves = snapshot.vms[&vm].value.migration.is_some();
                !moves && host == Some(self.servers[self.owner(vm)].host)
            };
            let other = &self.servers[1 - self.owner(vm)];
            let spec = self.app.inventory().read().vms[&vm].value.spec.clone();
            let its = |volume| spec.disks.iter().any(|disk| disk.volume == volume);
            let grants = other.disks.grants().await.unwrap();
            let empty = other.machines.guest(vm).is_none()
                && !other.disks.exports().iter().any(|export| its(export.volume))
                && !grants.iter().any(|grant| its(grant.grant.volume))
                && !spec.nics.iter().any(|nic| other.fabric.taps().contains_key(&nic.id));
            if there && empty && self.servers[self.owner(vm)].runs(vm) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let snapshot = self.app.inventory().read();
        let (record, status) = (&snapshot.vms[&vm].value, snapshot.vm_statuses.get(&vm));
        panic!("it does not settle: {:?} {record:?} {status:?}", self.runs(vm));
    }

    pub async fn raw(&self, method: &str, path: &str, body: Option<Value>) -> Response {
        let body = body.map_or_else(Body::empty, |b| Body::from(b.to_string()));
        let request = Request::builder().method(method).uri(path).body(body).unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// The answer's status and body.
    pub async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let response = self.raw(method, path, body).await;
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    async fn made(&self, path: &str, what: Value) {
        let (status, answer) = self.ask("POST", path, Some(what)).await;
        assert_eq!(status, StatusCode::CREATED, "{path}: {answer}");
    }

    pub async fn begin(&self, method: &str, path: &str, body: Option<Value>) -> Task {
        let (status, answer) = self.ask(method, path, body).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{method} {path}: {answer}");
        serde_json::from_value(answer).unwrap()
    }

    pub async fn end(&self, task: &Task) -> Task {
        loop {
            let (_, answer) =
                self.ask("GET", &format!("/v1/tasks/{}?wait=60", task.id), None).await;
            let task: Task = serde_json::from_value(answer).unwrap();
            if !matches!(task.state, TaskState::Running | TaskState::Undoing) {
                return task;
            }
        }
    }

    pub async fn must(&self, method: &str, path: &str, body: Option<Value>) -> Task {
        let task = self.begin(method, path, body).await;
        let task = self.end(&task).await;
        assert_eq!(task.state, TaskState::Done, "{method} {path}: {:?}", task.problem);
        task
    }

    /// The server's daemon dies, and the next one begins.
    pub async fn restart(&mut self, which: usize) {
        self.nodes[which].shutdown().await;
        let server = self.servers[which].clone();
        self.nodes[which] = server.start(self.store.clone(), &self.known).await;
    }

    pub async fn close(self) {
        self.app.workflows.stop().await;
        for node in self.nodes {
            node.shutdown().await;
        }
    }
}
