//! Every workflow, with every step repeated, failed, cancelled and cut off by a
//! death of the engine: it finishes, or leaves the world as it was.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use basin_api::vm::VmCreate as VmRequest;
use basin_api::volume::VolumeCreate as VolumeRequest;
use basin_controller::app::inventory::Snapshot;
use basin_controller::app::{Services, vm_migrate, vm_power};
use basin_controller::intake::{self, Mint};
use basin_controller::workflow::Workflow;
use basin_controller::workflow::testing::{World, check};
use basin_controller::workflows::{
    datastore_create::DatastoreCreate, image_delete::ImageDelete, image_import::ImageImport,
    vm_create::VmCreate, vm_delete::VmDelete, vm_disk_add::VmDiskAdd, vm_power_change::Change,
    vm_power_change::VmPowerChange, vm_power_on::VmPowerOn, volume_create::VolumeCreate,
    volume_delete::VolumeDelete, volume_grow::VolumeGrow,
};
use basin_model::datastore::DatastoreKind;
use basin_model::image::{Image, ImageState};
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_model::vm::{Phase, Power, PowerOff};
use basin_model::volume::{Volume, VolumeState};
use basin_model::{Bytes, VmId};
use basin_store::records::TxnBuilder;
use common::pair::Pair;
use common::{DataCentre, vm};
use serde_json::{Value, json};

/// A fresh data centre that has the image `base` and the VM `a` on a clone of it.
async fn centre() -> DataCentre {
    let centre = DataCentre::open().await;
    centre.image("base", 64 << 10).await;
    let mut request = vm("a");
    let source = json!({"from": "image", "image": "base"});
    request["disks"] = json!([{"disk": {"is": "new", "source": source}}]);
    centre.must("POST", "/v1/vms", Some(request)).await;
    let source = json!({"from": "blank", "size_bytes": 4096});
    centre.must("POST", "/v1/volumes", Some(json!({"name": "free", "source": source}))).await;
    centre
}

/// The workflow that `draft` makes in a data centre.
fn world<W: Workflow<Services = Services>>(
    centre: DataCentre,
    draft: impl Fn(&Snapshot, &mut Mint<'_>) -> Result<(W, TxnBuilder), Problem>,
) -> World<W> {
    let mut uuid = uuid::Uuid::now_v7;
    let now = jiff::Timestamp::now();
    let (workflow, reserve) =
        draft(&centre.app.inventory().read(), &mut Mint::new(now, &mut uuid)).unwrap();
    World {
        store: centre.store.clone(),
        services: centre.app.services.clone(),
        workflow,
        reserve,
        keep: Box::new(centre),
    }
}

/// What a workflow may change: keys, states, files and what runs.
#[derive(Debug, PartialEq)]
struct Fingerprint {
    keys: Vec<String>,
    states: Vec<String>,
    files: Vec<String>,
}

async fn fingerprint(services: &Services) -> Fingerprint {
    settle(services).await;
    let entries = services.store.list("/basin/").await.unwrap().entries;
    // Guards are touched and tasks are history; what a server says of itself is its own.
    let noise = ["/guard/", "/task/", "/workflow/", "/host-status/"];
    let mut keys: Vec<String> = entries
        .iter()
        .filter(|e| !noise.iter().any(|n| e.key.contains(n)))
        .map(|e| masked(&e.key))
        .collect();
    keys.sort();
    let snapshot = services.inventory.read();
    let mut states = Vec::new();
    for volume in snapshot.volumes.values().map(|v| &v.value) {
        states.push(format!("volume {} {:?} {}", volume.meta.name, volume.state, volume.size));
    }
    for image in snapshot.images.values().map(|i| &i.value) {
        states.push(format!("image {} {:?}", image.meta.name, image.state));
    }
    for vm in snapshot.vms.values().map(|vm| &vm.value) {
        let status = snapshot.vm_statuses.get(&vm.id).map(|s| s.value.phase.clone());
        let off = matches!(vm.run.power, Power::Off { .. });
        let disks = vm.spec.disks.len();
        let phase = status.unwrap_or(Phase::Stopped);
        states.push(format!("vm {} off={off} {phase:?} disks={disks}", vm.meta.name));
    }
    states.sort();
    let DatastoreKind::Dir { path } =
        snapshot.datastores.values().next().unwrap().value.kind.clone();
    Fingerprint { keys, states, files: files(&path) }
}

/// Until every VM is as it is wanted: servers follow the store in their own time.
async fn settle(services: &Services) {
    for _ in 0..500 {
        let current = services.store.list("/basin/").await.unwrap().revision;
        services.inventory.at_least(current).await;
        let settled = {
            let snapshot = services.inventory.read();
            snapshot.vms.values().filter(|vm| vm.value.placement.is_some()).all(|vm| {
                let phase = snapshot.vm_statuses.get(&vm.value.id).map(|s| &s.value.phase);
                match vm.value.run.power {
                    Power::Off { .. } => matches!(phase, Some(Phase::Stopped)),
                    Power::Running => matches!(phase, Some(Phase::Running)),
                    Power::Paused => matches!(phase, Some(Phase::Paused)),
                }
            })
        };
        if settled {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the VMs do not become what is wanted");
}

/// Ids, made-up MAC addresses and network identifiers differ between two worlds.
fn masked(key: &str) -> String {
    let mask = |part: &str| match part {
        part if part.parse::<uuid::Uuid>().is_ok() => "ID".to_owned(),
        part if part.starts_with("52:54:00:") => "MAC".to_owned(),
        part if part.parse::<u32>().is_ok() => "VNI".to_owned(),
        part => part.to_owned(),
    };
    key.split('/').map(mask).collect::<Vec<_>>().join("/")
}

fn files(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for part in ["images", "volumes", "incoming"] {
        for entry in std::fs::read_dir(root.join(part)).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            let (id, suffix) = name.split_once('.').unwrap_or((&name, ""));
            names.push(format!("{part}/{}.{suffix}", masked(id)));
        }
    }
    names.sort();
    names
}

fn volume_request(source: Value) -> VolumeRequest {
    serde_json::from_value(json!({"name": "new", "source": source})).unwrap()
}

async fn check_volume_create(source: Value) {
    let request = volume_request(source);
    let fresh = async || {
        world(centre().await, |snapshot, mint| {
            let draft = intake::volume::create(&request, snapshot, mint)?;
            Ok((VolumeCreate::new(draft.volume), draft.txn))
        })
    };
    check(fresh, fingerprint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_create_blank() {
    check_volume_create(json!({"from": "blank", "size_bytes": 4096})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_create_copy_of_a_volume() {
    check_volume_create(json!({"from": "volume", "volume": "free", "clone": "full"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_create_linked_to_an_image() {
    check_volume_create(json!({"from": "image", "image": "base", "clone": "linked"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_delete() {
    let fresh = async || {
        world(centre().await, |snapshot, _| {
            let record = snapshot.volume("free")?;
            let deleting = Volume { state: VolumeState::Deleting, ..record.value.clone() };
            let txn = TxnBuilder::new().replace(record, &deleting);
            Ok((VolumeDelete::new(deleting), txn))
        })
    };
    check(fresh, fingerprint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_grow() {
    let fresh = async || {
        world(centre().await, |snapshot, _| {
            let record = snapshot.volume("free")?;
            let lock = keys::lock(Kind::Volume, record.value.id);
            let txn = TxnBuilder::new().require_unchanged(record).create(lock, &());
            Ok((VolumeGrow::new(record.value.clone(), Bytes(8192)), txn))
        })
    };
    check(fresh, fingerprint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn image_import() {
    let fresh = async || {
        let centre = centre().await;
        let path = centre.file("new.raw", &[3; 4096]);
        let source = json!({"from": "path", "path": path});
        let request =
            serde_json::from_value(json!({"name": "new", "source": source, "format": "raw"}));
        let request = request.unwrap();
        let asked = centre.app.nodes().local();
        world(centre, |snapshot, mint| {
            let draft = intake::image::create(&request, snapshot, mint)?;
            Ok((ImageImport::new(draft.image, draft.import, asked), draft.txn))
        })
    };
    check(fresh, fingerprint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn image_delete() {
    let fresh = async || {
        let centre = centre().await;
        centre.image("loose", 4096).await;
        world(centre, |snapshot, _| {
            let record = snapshot.image("loose")?;
            let deleting = Image { state: ImageState::Deleting, ..record.value.clone() };
            let txn = TxnBuilder::new().replace(record, &deleting);
            Ok((ImageDelete::new(deleting), txn))
        })
    };
    check(fresh, fingerprint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn datastore_create() {
    let fresh = async || {
        let centre = centre().await;
        let path = centre.dir.path().join("another");
        let request = serde_json::from_value(json!({"name": "another", "path": path})).unwrap();
        let asked = centre.app.nodes().local();
        world(centre, |snapshot, mint| {
            let draft = intake::datastore::create(&request, asked, snapshot, mint)?;
            Ok((DatastoreCreate::new(draft.datastore), draft.txn))
        })
    };
    check(fresh, fingerprint).await;
}

async fn check_vm_create(start: bool) {
    let request: VmRequest = serde_json::from_value(vm("new")).unwrap();
    let fresh = async || {
        world(centre().await, |snapshot, mint| {
            let draft = intake::vm::create(&request, snapshot, mint)?;
            Ok((VmCreate::new(draft.vm, draft.volumes, start), draft.txn))
        })
    };
    check(fresh, fingerprint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_create() {
    check_vm_create(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_create_and_start() {
    check_vm_create(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_delete() {
    let fresh =
        async || world(centre().await, |snapshot, _| Ok(VmDelete::new(snapshot.vm("a")?, false)));
    check(fresh, fingerprint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_disk_add() {
    let disk = json!({"disk": {"is": "new", "source": {"from": "blank", "size_bytes": 4096}}});
    let disk = serde_json::from_value(disk).unwrap();
    let fresh = async || {
        world(centre().await, |snapshot, mint| {
            let vm = snapshot.vm("a")?;
            let draft = intake::vm_disk::add(&vm.value, &disk, snapshot, mint)?;
            let txn = draft.txn.require_unchanged(vm);
            Ok((VmDiskAdd::new(vm.value.id, draft.disk, draft.made), txn))
        })
    };
    check(fresh, fingerprint).await;
}

/// A data centre whose VM `a` has run and is off, so that its server knows it.
async fn ran() -> DataCentre {
    let centre = centre().await;
    centre.must("POST", "/v1/vms/a/start", None).await;
    centre.must("POST", "/v1/vms/a/power-off", None).await;
    centre
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_power_on() {
    let fresh = async || {
        world(ran().await, |snapshot, _| {
            let (wanted, txn) = vm_power::power_on(snapshot.vm("a")?, snapshot)?;
            Ok((VmPowerOn::new(&wanted), txn))
        })
    };
    check(fresh, fingerprint).await;
}

/// Cannot be undone: only what repeats and resumes is tried, by hand.
#[tokio::test(flavor = "multi_thread")]
async fn vm_power_change_is_seen_through_by_the_next_engine() {
    let centre = centre().await;
    centre.must("POST", "/v1/vms/a/start", None).await;
    let (flow, txn) = {
        let snapshot = centre.app.inventory().read();
        let vm = snapshot.vm("a").unwrap();
        let mut off = vm.value.clone();
        off.run.power = Power::Off { how: PowerOff::Now };
        (VmPowerChange::new(&off, Change::Off), TxnBuilder::new().replace(vm, &off))
    };
    let task = centre.app.workflows.start(flow, txn).await.unwrap();
    centre.app.workflows.stop().await;
    centre.app.workflows.resume_all().await.unwrap();
    let task = centre.app.workflows.wait(task.id).await.unwrap().unwrap();
    assert_eq!(task.state, basin_model::task::TaskState::Done);
    assert!(centre.machines.running().is_empty());
    centre.close().await;
}

/// What a move may change: keys, where everything is, and what is left of it anywhere.
async fn moved(pair: &Pair, vm: VmId) -> impl PartialEq + std::fmt::Debug + use<> {
    pair.settled(vm).await;
    let entries = pair.store.list("/basin/").await.unwrap().entries;
    let noise = ["/guard/", "/task/", "/workflow/", "/host-status/"];
    let keys = entries.iter().filter(|e| !noise.iter().any(|n| e.key.contains(n)));
    let keys: Vec<String> = keys.map(|e| masked(&e.key)).collect();
    let (record, places) = {
        let snapshot = pair.app.inventory().read();
        let vm = &snapshot.vms[&vm].value;
        let volumes = snapshot.volumes.values().map(|v| &v.value);
        let datastore = |v: &Volume| snapshot.datastores[&v.datastore].value.meta.name.to_string();
        let places: Vec<_> = volumes.map(|v| (datastore(v), v.format, v.source)).collect();
        ((vm.placement, vm.migration.is_some(), vm.run.epoch), places)
    };
    let launches = [0, 1].map(|n| pair.servers[n].machines.running().len());
    let files = [0, 1].map(|n| pair.servers[n].volumes().len());
    let shared = common::volume_files(&pair.dir.path().join("shared")).len();
    (keys, record, places, launches, files, shared, pair.runs(vm))
}

async fn check_vm_migrate(datastore: &str, to: Option<&str>) {
    let pairs = std::sync::Mutex::new(std::collections::HashMap::new());
    let fresh = async || {
        let pair = Arc::new(Pair::open().await);
        let vm = pair.vm("a", datastore).await;
        let request = json!({"host": "srv2", "datastore": to});
        let request = serde_json::from_value(request).unwrap();
        let facts = pair.app.facts().await;
        let (workflow, reserve) = {
            let snapshot = pair.app.inventory().read();
            vm_migrate::draft_of("a", &request, &facts, &snapshot).unwrap()
        };
        let services = pair.app.services.clone();
        pairs.lock().unwrap().insert(Arc::as_ptr(&services), (Arc::downgrade(&pair), vm));
        World { store: pair.store.clone(), services, workflow, reserve, keep: Box::new(pair) }
    };
    let fingerprint = async |services: &Services| {
        let (pair, vm) = pairs.lock().unwrap()[&std::ptr::from_ref(services)].clone();
        let pair = pair.upgrade().unwrap();
        moved(&pair, vm).await
    };
    check(fresh, fingerprint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_migrate_with_storage_that_both_reach() {
    check_vm_migrate("shared", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_migrate_with_its_disks() {
    check_vm_migrate("default", Some("local2")).await;
}

/// A new workflow needs a test here.
#[test]
fn every_workflow_is_tried() {
    let here = include_str!("workflows.rs");
    for (kind, _) in basin_controller::workflows::registry().kinds() {
        let name = kind.replace('-', "_");
        assert!(here.contains(&format!("async fn {name}")), "no test tries {kind}");
    }
}
