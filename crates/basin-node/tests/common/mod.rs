//! A server of fakes, with a real datastore: what outlives a daemon is kept here.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use basin_model::datastore::{Datastore, DatastoreKind, DatastoreState, Sharing};
use basin_model::host::{HostCapacity, KvmVerdict, QemuInfo};
use basin_model::network::{Network, NetworkKind};
use basin_model::vm::{
    Boot, CpuModel, Disk, FailurePolicy, Machine, Nic, Placement, Power, PowerOff, Run, Vm, VmSpec,
    VmStatus,
};
use basin_model::volume::{Volume, VolumeFormat, VolumeSource, VolumeState};
use basin_model::{
    Bytes, DatastoreId, Generation, HostId, MacAddr, Meta, NetworkId, NicId, Vcpus, VmId, VolumeId,
    keys,
};
use basin_net::fake::FakeFabric;
use basin_node::{Alone, BlockdMode, Chain, FakeDisks, LocalNode, NodeApi, NodeConfig};
use basin_qemu::fake::FakeWorld;
use basin_storage::DirDatastore;
use basin_store::records::{self, RecordEvent, TxnBuilder, watch_records};
use basin_store::{MemStore, Store};
use futures::StreamExt;
use jiff::Timestamp;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Long enough for any machine; nothing is expected to take it.
pub const AT_MOST: Duration = Duration::from_secs(60);

pub struct Server {
    pub dir: TempDir,
    pub host: HostId,
    pub store: Arc<MemStore>,
    pub world: FakeWorld,
    pub fabric: Arc<FakeFabric>,
    pub disks: FakeDisks,
    pub datastore: DatastoreId,
    pub network: NetworkId,
}

pub fn meta(name: &str) -> Meta {
    let (description, labels) = Default::default();
    Meta { name: name.parse().unwrap(), description, labels, created_at: Timestamp::now() }
}

impl Server {
    pub async fn new() -> Server {
        let dir = tempfile::tempdir().unwrap();
        let server = Server {
            host: HostId::from_uuid(Uuid::new_v4()),
            store: Arc::new(MemStore::new()),
            world: FakeWorld::with_dir(dir.path().to_owned()),
            fabric: Arc::new(FakeFabric::new()),
            disks: FakeDisks::new(),
            datastore: DatastoreId::from_uuid(Uuid::new_v4()),
            network: NetworkId::from_uuid(Uuid::new_v4()),
            dir,
        };
        let datastore = Datastore {
            id: server.datastore,
            meta: meta("default"),
            sharing: Sharing::Local(server.host),
            kind: DatastoreKind::Dir { path: server.dir.path().join("datastore") },
            quota: None,
            overcommit_percent: 200,
            state: DatastoreState::Ready,
        };
        DirDatastore::make(datastore.id, server.dir.path().join("datastore")).unwrap();
        let kind = NetworkKind::Nat {
            subnet: "10.80.0.0/16".parse().unwrap(),
            domain: "vm.test".to_owned(),
        };
        let network =
            Network { id: server.network, meta: meta("default"), kind, vni: None, mtu: None };
        server.put(&keys::datastore(datastore.id), &datastore).await;
        server.put(&keys::network(network.id), &network).await;
        server
    }

    pub fn config(&self) -> NodeConfig {
        NodeConfig {
            host: self.host,
            state_dir: self.dir.path().join("state"),
            run_dir: self.dir.path().join("run"),
            slice: Some(HostCapacity { cpus: Vcpus(4), memory: Bytes::gib(8) }),
            blockd: BlockdMode::Given(Arc::new(self.disks.clone())),
            qemu: QemuInfo::Usable { path: "fake".into(), version: "7.2.0".into() },
            kvm: KvmVerdict { usable: false, reason: "a fake has none".into() },
            peers: Arc::new(Alone),
            image_cache: None,
            hardware: None,
        }
    }

    /// A daemon starts.
    pub async fn start(&self) -> Arc<LocalNode> {
        let (store, engine) = (self.store.clone(), Arc::new(self.world.engine()));
        LocalNode::start(self.config(), store, engine, self.fabric.clone()).await.unwrap()
    }

    pub async fn put<T: serde::Serialize>(&self, key: &str, value: &T) {
        TxnBuilder::new().put(key, value).commit(&*self.store).await.unwrap();
    }

    /// A VM that is off, with one interface and no disk.
    pub fn vm(&self, number: u32) -> Vm {
        Vm {
            id: VmId::from_uuid(Uuid::new_v4()),
            meta: meta(&format!("vm-{number}")),
            spec: VmSpec {
                vcpus: Vcpus(2),
                memory: Bytes::mib(64),
                cpu_model: CpuModel::Auto,
                machine: Machine::Q35,
                boot: Boot::Bios,
                disks: vec![],
                cdroms: vec![],
                nics: vec![Nic {
                    id: NicId::from_uuid(Uuid::new_v4()),
                    network: self.network,
                    mac: MacAddr([0x52, 0x54, 0, 1, (number >> 8) as u8, number as u8]),
                    address: Ipv4Addr::from_bits(0x0a50_0100 + number),
                }],
                cloud_init: None,
                policy: FailurePolicy::default(),
            },
            run: Run { power: OFF, epoch: 0, resets: 0 },
            placement: Some(Placement { host: self.host, generation: Generation(1) }),
            hardware: None,
            migration: None,
        }
    }

    /// A volume made for real, and a disk of it.
    pub async fn disk(&self, node: &LocalNode) -> Disk {
        let volume = Volume {
            id: VolumeId::from_uuid(Uuid::new_v4()),
            meta: meta("root"),
            datastore: self.datastore,
            format: VolumeFormat::Raw,
            size: Bytes::mib(1),
            source: VolumeSource::Blank,
            state: VolumeState::Ready,
        };
        let quiet = Arc::new(|_, _| {});
        let (chain, cancel) = (Chain::default(), CancellationToken::new());
        self.until(async || node.capacity(self.datastore).await.ok()).await;
        node.create_volume(&volume, &chain, quiet, cancel).await.unwrap();
        self.put(&keys::volume(volume.id), &volume).await;
        Disk { volume: volume.id, read_only: false, serial: "root".into(), delete_with_vm: true }
    }

    pub async fn write(&self, vm: &Vm) {
        self.put(&keys::vm(vm.id), vm).await;
    }

    /// Asks for the VM to start.
    pub async fn run(&self, vm: &mut Vm) {
        vm.run.power = Power::Running;
        vm.run.epoch += 1;
        self.write(vm).await;
    }

    pub async fn power(&self, vm: &mut Vm, power: Power) {
        vm.run.power = power;
        self.write(vm).await;
    }

    pub async fn status(&self, vm: VmId) -> Option<VmStatus> {
        records::get(&*self.store, &keys::vm_status(vm)).await.unwrap().map(|s| s.value)
    }

    /// Waits until the VM's status is as wanted.
    pub async fn wait(&self, vm: VmId, wanted: impl Fn(&VmStatus) -> bool) -> VmStatus {
        let mut last = None;
        let work = async {
            let key = keys::vm_status(vm);
            let mut events = watch_records::<VmStatus>(self.store.clone() as Arc<dyn Store>, key);
            while let Some(event) = events.next().await {
                let found = match event.unwrap() {
                    RecordEvent::Resync { records, .. } => records.into_iter().next(),
                    RecordEvent::Put(record) => Some(record),
                    RecordEvent::Deleted { .. } => None,
                };
                last = found.map(|r| r.value);
                if let Some(status) = last.as_ref().filter(|s| wanted(s)) {
                    return status.clone();
                }
            }
            unreachable!("the watch never ends")
        };
        match tokio::time::timeout(AT_MOST, work).await {
            Ok(status) => status,
            Err(_) => panic!("the VM did not get there; its last status: {last:?}"),
        }
    }

    /// Waits until something is there.
    pub async fn until<T>(&self, mut there: impl AsyncFnMut() -> Option<T>) -> T {
        let work = async {
            loop {
                if let Some(found) = there().await {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(AT_MOST, work).await.expect("it came about")
    }

    /// The store's latest moment.
    pub async fn revision(&self) -> basin_store::Revision {
        self.store.list(basin_model::keys::ROOT).await.unwrap().revision
    }

    /// Nothing of any VM is left: no machine, no export, no tap, no note.
    pub fn assert_empty(&self) {
        assert_eq!(self.world.running(), []);
        assert_eq!(self.disks.exports(), []);
        assert!(self.fabric.taps().is_empty());
        let notes = std::fs::read_dir(self.dir.path().join("run/parts")).unwrap();
        assert_eq!(notes.count(), 0);
    }
}

pub const OFF: Power = Power::Off { how: PowerOff::Now };

pub fn graceful(within: Duration) -> Power {
    Power::Off { how: PowerOff::Graceful { deadline: Timestamp::now() + within } }
}
