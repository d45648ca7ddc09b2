//! Storage of several servers: shared datastores, and images of another server.

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use basin_model::datastore::{Datastore, DatastoreKind, DatastoreState, Sharing};
use basin_model::host::{Host, HostCapacity, HostStatus, KvmVerdict, QemuInfo};
use basin_model::image::{Image, ImageKind, ImageState};
use basin_model::volume::{Volume, VolumeFormat, VolumeSource, VolumeState};
use basin_model::{Bytes, DatastoreId, HostId, ImageId, Vcpus, VolumeId, keys};
use basin_net::fake::FakeFabric;
use basin_node::{BlockdMode, Chain, FakeDisks, LocalNode, NodeApi, NodeConfig, Peers};
use basin_qemu::fake::FakeWorld;
use basin_storage::{ImportRequest, ImportSource};
use basin_store::MemStore;
use basin_store::records::{self, TxnBuilder};
use common::{AT_MOST, meta};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Who can be called by whom: whoever is in it.
#[derive(Default)]
struct Net(RwLock<BTreeMap<HostId, Arc<dyn NodeApi>>>);

impl Peers for Net {
    fn get(&self, host: HostId) -> Option<Arc<dyn NodeApi>> {
        self.0.read().unwrap().get(&host).cloned()
    }
}

struct Cluster {
    dir: TempDir,
    net: Arc<Net>,
}

/// A server of fakes with its node.
struct Member {
    host: HostId,
    store: Arc<MemStore>,
    node: Arc<LocalNode>,
    state: PathBuf,
}

fn host(n: u128) -> HostId {
    HostId::from_uuid(Uuid::from_u128(n))
}

async fn put<T: serde::Serialize>(store: &MemStore, key: &str, value: &T) {
    TxnBuilder::new().put(key, value).commit(store).await.unwrap();
}

async fn until<T>(what: &str, mut there: impl AsyncFnMut() -> Option<T>) -> T {
    let work = async {
        loop {
            if let Some(found) = there().await {
                return found;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(AT_MOST, work).await.unwrap_or_else(|_| panic!("never: {what}"))
}

fn host_record(id: HostId, name: &str) -> Host {
    Host { id, meta: meta(name), address: None, api_port: None, drain: None, trunks: Vec::new() }
}

impl Cluster {
    fn new() -> Cluster {
        Cluster { dir: tempfile::tempdir().unwrap(), net: Arc::default() }
    }

    /// Starts a server that is not to be called by others yet.
    async fn start(&self, n: u128, store: &Arc<MemStore>) -> Member {
        let record = host_record(host(n), &format!("srv{n}"));
        put(store, &keys::host(record.id), &record).await;
        let state = self.dir.path().join(format!("state{n}"));
        let config = NodeConfig {
            host: record.id,
            state_dir: state.clone(),
            run_dir: self.dir.path().join(format!("run{n}")),
            slice: Some(HostCapacity { cpus: Vcpus(4), memory: Bytes::gib(8) }),
            blockd: BlockdMode::Given(Arc::new(FakeDisks::new())),
            qemu: QemuInfo::Usable { path: "fake".into(), version: "7.2.0".into() },
            kvm: KvmVerdict { usable: false, reason: "a fake has none".into() },
            peers: self.net.clone(),
            image_cache: None,
            hardware: None,
        };
        let engine = Arc::new(FakeWorld::with_dir(state.join("fake")).engine());
        let fabric = Arc::new(FakeFabric::new());
        let node = LocalNode::start(config, store.clone(), engine, fabric).await.unwrap();
        Member { host: record.id, store: store.clone(), node, state }
    }

    fn connect(&self, member: &Member) {
        self.net.0.write().unwrap().insert(member.host, member.node.clone());
    }
}

impl Member {
    async fn status(&self) -> HostStatus {
        let key = keys::host_status(self.host);
        until("its status", async || {
            records::get::<HostStatus>(&*self.store, &key).await.unwrap().map(|s| s.value)
        })
        .await
    }

    async fn proves(&self, id: DatastoreId) {
        until("the datastore is proven", async || {
            self.status().await.shared_datastores.contains(&id).then_some(())
        })
        .await;
        // A daemon that has just started says what the last one knew, and looks itself.
        until("it is usable", async || self.node.capacity(id).await.ok()).await;
    }

    async fn complains(&self, id: DatastoreId, code: &str) -> String {
        let subject = format!("datastore/{id}");
        let detail = until(code, async || {
            let conditions = self.status().await.conditions;
            let found = conditions.into_iter().find(|c| c.subject == subject);
            found.filter(|c| c.problem.code == code).map(|c| c.problem.detail)
        })
        .await;
        assert_eq!(self.node.capacity(id).await.unwrap_err().0.code, code);
        detail
    }
}

fn datastore(n: u128, sharing: Sharing, path: &Path, state: DatastoreState) -> Datastore {
    Datastore {
        id: DatastoreId::from_uuid(Uuid::from_u128(n)),
        meta: meta(&format!("place{n}")),
        sharing,
        kind: DatastoreKind::Dir { path: path.to_owned() },
        quota: None,
        overcommit_percent: 200,
        state,
    }
}

/// As the controller does it: prepared by its maker, then ready.
async fn make(maker: &Member, record: Datastore) -> Datastore {
    put(&maker.store, &keys::datastore(record.id), &record).await;
    maker.node.open_datastore(&record).await.unwrap();
    let ready = Datastore { state: DatastoreState::Ready, ..record };
    put(&maker.store, &keys::datastore(ready.id), &ready).await;
    ready
}

fn shared_by(maker: HostId, path: &Path) -> Datastore {
    datastore(7, Sharing::Shared { maker }, path, DatastoreState::Preparing)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_datastore_is_proven_to_one_after_the_other() {
    let cluster = Cluster::new();
    let store = Arc::new(MemStore::new());
    let (a, b) = (cluster.start(1, &store).await, cluster.start(2, &store).await);
    let record = shared_by(a.host, &cluster.dir.path().join("nfs"));
    let id = make(&a, record).await.id;
    a.proves(id).await;
    // Nobody can tell yet.
    let why = b.complains(id, "datastore-unproven").await;
    assert!(why.contains("srv1"), "{why}");
    cluster.connect(&a);
    b.proves(id).await;
    assert_eq!(b.status().await.conditions, []);

    // The daemon starts again, and the other server is away.
    b.node.shutdown().await;
    cluster.net.0.write().unwrap().clear();
    let b = cluster.start(2, &store).await;
    b.proves(id).await;
    // A third one has never proven it, and cannot now.
    let c = cluster.start(3, &store).await;
    c.complains(id, "datastore-unproven").await;
    for member in [a, b, c] {
        member.node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_at_the_same_place_is_refused_and_the_right_one_found_again() {
    let cluster = Cluster::new();
    // Each has a view of its own, as if other storage were mounted at one path.
    let (left, right) = (Arc::new(MemStore::new()), Arc::new(MemStore::new()));
    let (a, b) = (cluster.start(1, &left).await, cluster.start(2, &right).await);
    let (original, copied) = (cluster.dir.path().join("one"), cluster.dir.path().join("two"));
    let record = make(&a, shared_by(a.host, &original)).await;
    a.proves(record.id).await;
    cluster.connect(&a);
    let copy = std::process::Command::new("cp").arg("-a").args([&original, &copied]).status();
    assert!(copy.unwrap().success());
    let host = host_record(a.host, "srv1");
    put(&right, &keys::host(a.host), &host).await;
    put(&right, &keys::host_status(a.host), &a.status().await).await;
    let kind = DatastoreKind::Dir { path: copied };
    let seen_by_b = Datastore { kind, ..record.clone() };
    put(&right, &keys::datastore(record.id), &seen_by_b).await;
    let why = b.complains(record.id, "datastore-not-shared").await;
    assert!(why.contains("compared with server srv1"), "{why}");
    assert!(!b.status().await.shared_datastores.contains(&record.id));
    // Its mount is put right.
    put(&right, &keys::datastore(record.id), &record).await;
    b.proves(record.id).await;
    for member in [a, b] {
        member.node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_was_never_made_is_not_taken_for_the_datastore() {
    let cluster = Cluster::new();
    let store = Arc::new(MemStore::new());
    let a = cluster.start(1, &store).await;
    let path = cluster.dir.path().join("unmounted");
    std::fs::create_dir(&path).unwrap();
    let record = datastore(8, Sharing::Local(a.host), &path, DatastoreState::Ready);
    put(&store, &keys::datastore(record.id), &record).await;
    a.complains(record.id, "datastore-not-mounted").await;
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    // It is mounted.
    basin_storage::DirDatastore::make(record.id, &path).unwrap();
    until("it is open", async || a.node.capacity(record.id).await.ok()).await;
    a.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_one_server_serves_another() {
    let cluster = Cluster::new();
    let store = Arc::new(MemStore::new());
    let (a, b) = (cluster.start(1, &store).await, cluster.start(2, &store).await);
    let local = |n, member: &Member| {
        let path = cluster.dir.path().join(format!("local{n}"));
        datastore(n, Sharing::Local(member.host), &path, DatastoreState::Preparing)
    };
    let here = make(&a, local(1, &a)).await;
    let there = make(&b, local(2, &b)).await;
    let source = cluster.dir.path().join("disk.raw");
    let bytes: Vec<u8> = (0..5 << 20).map(|i: u32| (i / 3) as u8).collect();
    std::fs::write(&source, &bytes).unwrap();
    let request = ImportRequest {
        image: ImageId::from_uuid(Uuid::new_v4()),
        kind: ImageKind::Disk,
        source: ImportSource::Path { path: source },
        format: None,
        sha256: None,
    };
    let (quiet, cancel) = (Arc::new(|_, _| {}), CancellationToken::new());
    let content =
        a.node.import_image(here.id, &request, quiet.clone(), cancel.clone()).await.unwrap();
    let image = Image {
        id: request.image,
        meta: meta("base"),
        datastore: here.id,
        kind: ImageKind::Disk,
        state: ImageState::Ready { content },
    };
    put(&store, &keys::image(image.id), &image).await;
    let volume = |source| Volume {
        id: VolumeId::from_uuid(Uuid::new_v4()),
        meta: meta("root"),
        datastore: there.id,
        format: VolumeFormat::Qcow2,
        size: Bytes::mib(8),
        source,
        state: VolumeState::Creating,
    };
    let chain = Chain { volumes: vec![], image: Some(image.clone()) };
    let linked = volume(VolumeSource::LinkedImage { image: image.id });
    let refused = b.node.create_volume(&linked, &chain, quiet.clone(), cancel.clone()).await;
    let refused = refused.unwrap_err().0;
    assert_eq!(refused.code, "image-elsewhere");
    assert!(refused.detail.contains("srv1"), "{}", refused.detail);

    cluster.connect(&a);
    // Both at once fetch it once.
    let copied = volume(VolumeSource::Image { image: image.id });
    let make = |v| b.node.create_volume(v, &chain, quiet.clone(), cancel.clone());
    let (one, two) = tokio::join!(make(&linked), make(&copied));
    one.unwrap();
    two.unwrap();
    let cached = b.state.join(format!("images-cache/{}.qcow2", image.id));
    let mode = std::fs::metadata(&cached).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o440);
    let files: Vec<_> = std::fs::read_dir(b.state.join("images-cache")).unwrap().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    for volume in [&linked, &copied] {
        let file = cluster.dir.path().join(format!("local2/volumes/{}.qcow2", volume.id));
        let plain = cluster.dir.path().join("plain");
        let mut convert = std::process::Command::new("qemu-img");
        convert.args(["convert", "-f", "qcow2", "-O", "raw"]).args([&file, &plain]);
        assert!(convert.status().unwrap().success());
        let read = std::fs::read(&plain).unwrap();
        assert!(read[..bytes.len()] == bytes && read.len() == 8 << 20);
    }
    // The image goes, and its copy with it.
    TxnBuilder::new().delete(keys::image(image.id)).commit(&*store).await.unwrap();
    until("the copy goes", async || (!cached.exists()).then_some(())).await;
    for member in [a, b] {
        member.node.shutdown().await;
    }
}
