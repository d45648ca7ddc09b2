//! The records of a cluster that has run for a while: servers, a network, VMs that run.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context;
use basin_model::host::{Host, HostCapacity, HostStatus, KvmVerdict, QemuInfo};
use basin_model::keys::{self, Kind};
use basin_model::network::{Network, NetworkKind, Vni};
use basin_model::vm::{
    FailurePolicy, Nic, Phase, Placement, Power, QemuProcess, Run, Vm, VmSpec, VmStatus,
};
use basin_model::{
    Bytes, Generation, HostId, Labels, MacAddr, Meta, Name, NetworkId, NicId, Vcpus, VmId,
};
use basin_store::records::{self, TxnBuilder};
use basin_store::{Store, StoreError, Txn};
use ipnet::Ipv4Net;
use jiff::Timestamp;
use uuid::Uuid;

/// How often a machine may be too busy to take some records.
const TRIES: usize = 20;

/// What a server offers.
pub const CAPACITY: HostCapacity = HostCapacity { cpus: Vcpus(128), memory: Bytes::gib(1024) };

/// Ids of one kind do not meet those of another.
fn uuid(kind: u128, number: usize) -> Uuid {
    Uuid::from_u128((kind << 64) | (7 << 76) | (2 << 62) | number as u128)
}

pub fn host(number: usize) -> HostId {
    HostId::from_uuid(uuid(1, number))
}

fn meta(name: &str) -> anyhow::Result<Meta> {
    let name: Name = name.parse()?;
    let (description, labels) = (String::new(), Labels::default());
    Ok(Meta { name, description, labels, created_at: Timestamp::now() })
}

/// Every VM is on one of the servers, in turn, and is to run.
pub async fn load(store: &dyn Store, servers: usize, vms: usize) -> anyhow::Result<()> {
    records::check_schema(store).await?;
    let network = network()?;
    let first = TxnBuilder::new()
        .create(keys::bootstrapped(), &())
        .create(keys::network(network.id), &network)
        .create(Kind::Network.name(&network.meta.name), &network.id);
    first.commit(store).await?;
    let mut batch = Batch::new(store);
    for number in 0..servers {
        let it = server(number)?;
        let name = Kind::Host.name(&it.meta.name);
        batch.add(TxnBuilder::new().put(keys::host(it.id), &it).put(name, &it.id)).await?;
    }
    for number in 0..vms {
        let it = vm(number, servers, &network)?;
        let nic = it.spec.nics.first().context("an interface")?;
        let txn = TxnBuilder::new()
            .put(keys::vm(it.id), &it)
            .put(Kind::Vm.name(&it.meta.name), &it.id)
            .put(keys::mac(nic.mac), &it.id)
            .put(keys::address(network.id, nic.address), &it.id)
            .put(keys::vm_status(it.id), &status(&it)?);
        batch.add(txn).await?;
    }
    batch.flush().await
}

fn network() -> anyhow::Result<Network> {
    let id = NetworkId::from_uuid(uuid(2, 0));
    let kind = NetworkKind::Nat {
        subnet: Ipv4Net::new(Ipv4Addr::new(10, 128, 0, 0), 12)?,
        domain: "basin.internal".to_owned(),
    };
    Ok(Network { id, meta: meta("default")?, kind, vni: Some(Vni::likely(id)), mtu: None })
}

fn server(number: usize) -> anyhow::Result<Host> {
    let [.., high, low] = u32::try_from(number)?.to_be_bytes();
    Ok(Host {
        id: host(number),
        meta: meta(&format!("server-{number:04}"))?,
        address: Some(IpAddr::V4(Ipv4Addr::new(198, 18, high, low))),
        api_port: None,
        drain: None,
        trunks: Vec::new(),
    })
}

fn vm(number: usize, servers: usize, network: &Network) -> anyhow::Result<Vm> {
    let n = u32::try_from(number)?;
    let [_, high, middle, low] = n.to_be_bytes();
    let nic = Nic {
        id: NicId::from_uuid(uuid(4, number)),
        network: network.id,
        mac: MacAddr::from_random([high, middle, low]),
        address: Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 1, 0).to_bits() + n),
    };
    Ok(Vm {
        id: VmId::from_uuid(uuid(3, number)),
        meta: meta(&format!("vm-{number:05}"))?,
        spec: VmSpec {
            vcpus: Vcpus(2),
            memory: Bytes::gib(4),
            cpu_model: Default::default(),
            machine: Default::default(),
            boot: Default::default(),
            disks: Vec::new(),
            cdroms: Vec::new(),
            nics: vec![nic],
            cloud_init: None,
            policy: FailurePolicy::default(),
        },
        run: Run { power: Power::Running, epoch: 1, resets: 0 },
        placement: Some(Placement { host: host(number % servers), generation: Generation(1) }),
        hardware: None,
        migration: None,
    })
}

/// As its server left it. One whose server is simulated whole is found dead and
/// started again.
fn status(vm: &Vm) -> anyhow::Result<VmStatus> {
    let placement = vm.placement.context("a placement")?;
    let now = Timestamp::now();
    Ok(VmStatus {
        vm: vm.id,
        host: placement.host,
        generation: placement.generation,
        phase: Phase::Running,
        since: now,
        started_epoch: 1,
        ended_epoch: 0,
        resets_seen: 0,
        failures: 0,
        last_failure: None,
        qemu: Some(QemuProcess {
            pid: 4711,
            version: "7.2.22".to_owned(),
            accelerator: "kvm".to_owned(),
            started_at: now,
        }),
    })
}

/// What a server says of itself.
pub fn host_status(host: HostId) -> HostStatus {
    HostStatus {
        host,
        daemon_version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: Uuid::nil().to_string(),
        started_at: Timestamp::now(),
        kernel: "6.1.0".to_owned(),
        cpu_model: "simulated".to_owned(),
        capacity: CAPACITY,
        qemu: QemuInfo::Usable { path: "simulated".to_owned(), version: "7.2.22".to_owned() },
        kvm: KvmVerdict { usable: true, reason: "simulated".to_owned() },
        hardware: None,
        cgroups: "v2".to_owned(),
        overlay_mtu: Some(Network::OVERLAY_MTU),
        trunks: Vec::new(),
        conditions: Vec::new(),
        shared_datastores: Default::default(),
    }
}

/// Many small transactions in few large ones.
struct Batch<'a> {
    store: &'a dyn Store,
    txn: Txn,
}

impl<'a> Batch<'a> {
    fn new(store: &'a dyn Store) -> Batch<'a> {
        Batch { store, txn: Txn::default() }
    }

    async fn add(&mut self, more: TxnBuilder) -> anyhow::Result<()> {
        let more = more.build()?;
        if self.txn.then.len() + more.then.len() > Txn::MAX_OPS {
            self.flush().await?;
        }
        self.txn.then.extend(more.then);
        Ok(())
    }

    /// Twice is the same as once, so it is tried until it is done.
    async fn flush(&mut self) -> anyhow::Result<()> {
        let txn = std::mem::take(&mut self.txn);
        let mut tries = 0;
        loop {
            match self.store.commit(txn.clone()).await {
                Err(StoreError::Unavailable(_)) if tries < TRIES => tries += 1,
                other => return other.map(drop).context("cannot write the records"),
            }
        }
    }
}
