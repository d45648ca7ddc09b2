//! What runs machines, networks and disks on this server: the real things, or fakes.

use std::sync::Arc;

use anyhow::Context as _;
use basin_model::hardware::{CpuModels, HardwareFacts, MachineVersion};
use basin_model::host::{HostCapacity, KvmVerdict, QemuInfo};
use basin_model::{Bytes, HostId, Vcpus};
use basin_net::{Fabric, Instance, LinuxFabric, NetConfig};
use basin_node::{BlockdLauncher, BlockdMode, FakeDisks, NodeConfig, Peers};
use basin_qemu::Engine;
use basin_qemu::fake::FakeWorld;
use basin_qemu::qemu::{AcceleratorChoice, QemuConfig, QemuEngine};

use super::args::{AcceleratorArg, EngineArg, ServeArgs};

/// What a node is made of.
pub struct Parts {
    pub node: NodeConfig,
    pub engine: Arc<dyn Engine>,
    pub fabric: Arc<dyn Fabric>,
}

pub async fn open(args: &ServeArgs, host: HostId, peers: Arc<dyn Peers>) -> anyhow::Result<Parts> {
    match args.engine {
        EngineArg::Qemu => real(args, host, peers).await,
        EngineArg::Fake => fake(args, host, peers, "7.2", basin_qemu::fake::hardware_facts()),
        EngineArg::FakeOlder => fake(args, host, peers, "7.1", older()),
    }
}

async fn real(args: &ServeArgs, host: HostId, peers: Arc<dyn Peers>) -> anyhow::Result<Parts> {
    let mut config = QemuConfig::new(args.state_dir.clone(), args.run_dir.clone(), &args.cgroup);
    config.binary = args.qemu.clone();
    config.accelerator = match args.accelerator {
        AcceleratorArg::Auto => AcceleratorChoice::Auto,
        AcceleratorArg::Kvm => AcceleratorChoice::Kvm,
        AcceleratorArg::Tcg => AcceleratorChoice::Tcg,
    };
    let engine = QemuEngine::new(config).await?;
    let fabric = LinuxFabric::new(NetConfig {
        run_dir: args.run_dir.clone(),
        state_dir: args.state_dir.clone(),
        instance: Instance::of_host(host),
    })?;
    for obstacle in fabric.obstacles().await {
        tracing::warn!("{obstacle}");
    }
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let launcher = BlockdLauncher { program, args: vec!["blockd".to_owned()] };
    let (qemu, kvm) = (engine.info().clone(), engine.kvm().clone());
    let hardware = engine.hardware_facts().cloned();
    if let QemuInfo::Unusable { reason } = &qemu {
        tracing::warn!("this server cannot run VMs: {reason}");
    }
    let node = node(args, host, peers, BlockdMode::Process(launcher), qemu, kvm, hardware);
    Ok(Parts { node, engine: Arc::new(engine), fabric: Arc::new(fabric) })
}

fn older() -> HardwareFacts {
    let missing = vec!["sse4.2".to_owned()];
    let models = [("Nehalem-v1".to_owned(), missing), ("qemu64-v1".to_owned(), Vec::new())];
    let facts = basin_qemu::fake::hardware_facts();
    let aliases = [("Nehalem".to_owned(), "Nehalem-v1".to_owned())].into();
    HardwareFacts {
        cpus: CpuModels::new(models, aliases),
        q35: vec![MachineVersion::new(7, 1)],
        ..facts
    }
}

fn fake(
    args: &ServeArgs,
    host: HostId,
    peers: Arc<dyn Peers>,
    version: &str,
    hardware: HardwareFacts,
) -> anyhow::Result<Parts> {
    let disks = BlockdMode::Given(Arc::new(FakeDisks::default()));
    let qemu = QemuInfo::Usable { path: "fake".to_owned(), version: version.to_owned() };
    let kvm = KvmVerdict { usable: false, reason: "the fake engine needs none".to_owned() };
    let node = node(args, host, peers, disks, qemu, kvm, Some(hardware));
    let engine = FakeWorld::with_dir(args.state_dir.join("fake")).engine();
    Ok(Parts {
        node,
        engine: Arc::new(engine),
        fabric: Arc::new(basin_net::fake::FakeFabric::new()),
    })
}

fn node(
    args: &ServeArgs,
    host: HostId,
    peers: Arc<dyn Peers>,
    blockd: BlockdMode,
    qemu: QemuInfo,
    kvm: KvmVerdict,
    hardware: Option<HardwareFacts>,
) -> NodeConfig {
    NodeConfig {
        host,
        state_dir: args.state_dir.clone(),
        run_dir: args.run_dir.clone(),
        slice: slice(args),
        blockd,
        qemu,
        kvm,
        peers,
        image_cache: None,
        hardware,
    }
}

/// The part of the server that is offered, when not the whole.
fn slice(args: &ServeArgs) -> Option<HostCapacity> {
    if args.cpus.is_none() && args.memory.is_none() {
        return None;
    }
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    Some(HostCapacity {
        cpus: Vcpus(args.cpus.unwrap_or(cpus)),
        memory: args.memory.unwrap_or_else(whole_memory),
    })
}

fn whole_memory() -> Bytes {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse().ok());
    Bytes::kib(kib.unwrap_or(0))
}
