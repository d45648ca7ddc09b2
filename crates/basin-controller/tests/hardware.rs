//! What a guest sees is fixed when its VM is started; where VMs are placed and
//! where they could move.

mod common;

use std::collections::BTreeMap;

use basin_controller::app::moves::View;
use basin_model::hardware::{CpuClass, CpuModels, GuestHardware, HardwareFacts, MachineVersion};
use basin_model::host::{Drain, Host, HostStatus};
use basin_model::keys::{self, Kind};
use basin_model::vm::{CpuModel, Vm};
use basin_model::{Bytes, HostId, VmId};
use basin_sched::movable::{Activity, Obstacle, Storage, check};
use basin_store::records::{self, TxnBuilder};
use common::{DataCentre, vm};
use jiff::Timestamp;

async fn record(centre: &DataCentre, name: &str) -> Vm {
    let id: VmId =
        centre.get(&format!("/v1/vms/{name}")).await["id"].as_str().unwrap().parse().unwrap();
    records::get(&*centre.store, &keys::vm(id)).await.unwrap().unwrap().value
}

async fn commit(centre: &DataCentre, txn: TxnBuilder) {
    let revision = txn.commit(&*centre.store).await.unwrap();
    centre.app.inventory().at_least(revision).await;
}

async fn start(centre: &DataCentre, name: &str) -> GuestHardware {
    centre.must("POST", &format!("/v1/vms/{name}/start"), None).await;
    record(centre, name).await.hardware.unwrap()
}

/// Server `srv2`, whose QEMU can give less than that of the first.
async fn a_lesser_server_joins(centre: &DataCentre) -> HostId {
    let id = HostId::from_uuid(uuid::Uuid::now_v7());
    let first = centre.app.inventory().read().hosts.values().next().unwrap().value.clone();
    let status = {
        let snapshot = centre.app.inventory().read();
        snapshot.host_statuses.values().next().unwrap().value.clone()
    };
    let mut host = Host { id, ..first };
    host.meta.name = "srv2".parse().unwrap();
    let lacks = |model: &str, missing: &[&str]| {
        (model.to_owned(), missing.iter().map(|f| (*f).to_owned()).collect())
    };
    let models = [lacks("qemu64-v1", &[]), lacks("Nehalem-v1", &["sse4.2"])];
    let hardware = HardwareFacts {
        class: CpuClass::Tcg,
        cpus: CpuModels::new(models, BTreeMap::new()),
        q35: vec![MachineVersion::new(7, 2)],
    };
    let status = HostStatus { host: id, hardware: Some(hardware), ..status };
    let txn = TxnBuilder::new()
        .create(keys::host(id), &host)
        .create(Kind::Host.name(&host.meta.name), &id)
        .create(keys::host_status(id), &status);
    commit(centre, txn).await;
    id
}

fn sees(cpu: &str) -> GuestHardware {
    let machine_version = Some(MachineVersion::new(7, 2));
    GuestHardware { class: CpuClass::Tcg, cpu: cpu.to_owned(), machine_version }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_fixes_what_the_guest_sees() {
    let centre = DataCentre::open().await;
    centre.must("POST", "/v1/vms", Some(vm("a"))).await;
    assert_eq!(record(&centre, "a").await.hardware, None);
    assert_eq!(start(&centre, "a").await, sees("Nehalem-v1"));
    let spec = centre.machines.guest(record(&centre, "a").await.id).unwrap().spec().clone();
    assert_eq!(spec.cpu_model, CpuModel::Named("Nehalem-v1".to_owned()));
    assert_eq!(spec.machine_version, Some(MachineVersion::new(7, 2)));

    // A server with less joins: what runs is not touched, and it is told what it costs.
    a_lesser_server_joins(&centre).await;
    assert_eq!(record(&centre, "a").await.hardware, Some(sees("Nehalem-v1")));
    let hosts = centre.get("/v1/hosts").await;
    let notes = |n: usize| hosts["items"][n]["status"]["conditions"].as_array().unwrap().clone();
    assert_eq!(notes(0).len(), 0, "{hosts}");
    assert_eq!(notes(1)[0]["subject"], "cpu-baseline");
    let detail = notes(1)[0]["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("qemu64-v1 instead of Nehalem-v1"), "{detail}");
    assert!(detail.contains("it lacks sse4.2"), "{detail}");

    // What starts from now on gets what both have.
    centre.must("POST", "/v1/vms/a/power-off", None).await;
    assert_eq!(start(&centre, "a").await, sees("qemu64-v1"));
    // A wish is kept.
    let mut wish = vm("b");
    wish["cpu_model"] = "Nehalem".into();
    centre.must("POST", "/v1/vms", Some(wish)).await;
    assert_eq!(start(&centre, "b").await, sees("Nehalem-v1"));
    centre.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_drained_takes_no_vm() {
    let centre = DataCentre::open().await;
    centre.must("POST", "/v1/vms", Some(vm("a"))).await;
    let host = centre.app.inventory().read().hosts.values().next().unwrap().clone();
    let mut drained = host.value.clone();
    drained.drain = Some(Drain { since: Timestamp::now(), move_local_disks: false });
    commit(&centre, TxnBuilder::new().replace(&host, &drained)).await;
    let answer = centre.ask("POST", "/v1/vms/a/start", None).await;
    assert_eq!(answer.status, 409, "{}", answer.text);
    assert!(answer.text.contains("srv1: it is being drained"), "{}", answer.text);
    // It can be made: the maintenance ends some day.
    centre.must("POST", "/v1/vms", Some(vm("b"))).await;
    let host = centre.app.inventory().read().hosts.values().next().unwrap().clone();
    commit(&centre, TxnBuilder::new().replace(&host, &Host { drain: None, ..drained })).await;
    start(&centre, "a").await;
    centre.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_is_judged_by_what_the_inventory_knows() {
    let centre = DataCentre::open().await;
    centre.must("POST", "/v1/vms", Some(vm("a"))).await;
    start(&centre, "a").await;
    let other = a_lesser_server_joins(&centre).await;
    let id = record(&centre, "a").await.id;

    judged(&centre, id, other);
    centre.close().await;
}

/// Not across an await: the snapshot is held.
fn judged(centre: &DataCentre, id: VmId, other: HostId) {
    let snapshot = centre.app.inventory().read();
    let free: BTreeMap<_, _> = snapshot.datastores.keys().map(|d| (*d, Bytes::gib(1))).collect();
    let view = View {
        snapshot: &snapshot,
        silent: &BTreeMap::new(),
        free: &free,
        stalled: &BTreeMap::new(),
    };
    let (moving, sites, stores) = (view.vm(id).unwrap(), view.sites(), view.stores());
    assert_eq!(moving.activity, Activity::Running);
    assert_eq!((moving.disks.len(), &moving.held_by), (1, &None));
    let source = sites.iter().find(|s| s.host == moving.on).unwrap();
    let target = sites.iter().find(|s| s.host == other).unwrap();
    assert!(source.committed > Bytes::mib(64) && target.committed == Bytes::ZERO);
    let found = check(&moving, source, target, &stores, &Storage::Stay);
    let server = || "srv2".to_owned();
    let disk = moving.disks[0].name.clone();
    assert_eq!(
        found,
        [
            Obstacle::CpuFeatures {
                model: "Nehalem-v1".to_owned(),
                server: server(),
                missing: vec!["sse4.2".to_owned()],
            },
            Obstacle::LocalDisk { disk, datastore: "default".to_owned() },
        ]
    );
}
