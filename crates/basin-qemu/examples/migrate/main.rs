//! Measures live migration on the real engine against QEMU driven by hand, as root:
//! `migrate KERNEL INITRD MIB RATE ROUNDS`. RATE is what the guest writes in MiB/s, `idle`
//! or `max`. The guest sends a heartbeat every 5 ms; the gap is its longest silence. The
//! ways take turns, so that a busy host is the same for all. `SHOW=1` shows the engine's
//! progress, `ONLY=Engine` leaves out the other ways.

mod hand;
mod net;

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use basin_model::vm::{CpuModel, Machine as MachineType};
use basin_model::{Bytes, Generation, Vcpus, VmId};
use basin_qemu::migrate::{
    AlwaysOpen, Channel, Drive, Incoming, MigrationKey, Outgoing, Pilot, Policy, Progress,
};
use basin_qemu::qemu::{QemuConfig, QemuEngine};
use basin_qemu::{BootSpec, Engine, Machine, MachineSpec, NicSpec};
use hand::By;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub type Any = Box<dyn std::error::Error + Send + Sync>;

const MAC: &str = "52:54:00:12:34:56";

/// What is moved.
#[derive(Clone)]
pub struct Guest {
    kernel: PathBuf,
    initrd: PathBuf,
    memory: Bytes,
    command_line: String,
}

/// One move, as seen from outside.
pub struct Measured {
    pub total: Duration,
    pub gap: Duration,
    /// It did not end by itself in time and was forced to.
    pub forced: bool,
}

/// A way to move a guest.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// No move: the longest silence that the host makes by itself.
    Still,
    /// By hand, QEMU's own limits.
    Defaults,
    /// By hand, the best that is known for most guests.
    Unlimited30,
    /// By hand, for guests that write faster than the link.
    Postcopy,
    /// The engine with its pilot, encrypted, held before the switch.
    Engine,
    /// The same over two connections beside the first.
    Streams { compress: bool },
}

#[tokio::main]
async fn main() -> Result<(), Any> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, mib, rate, rounds] = arguments.as_slice() else {
        return Err("migrate KERNEL INITRD MIB RATE|idle|max ROUNDS".into());
    };
    let net = net::Net::new()?;
    let mib: u64 = mib.parse()?;
    let dirty = match rate.as_str() {
        "idle" => String::new(),
        "max" => " micro.run=dirty,rate=1000000,mib=40".to_owned(),
        rate => format!(" micro.run=dirty,rate={},mib=40", rate.parse::<u32>()?),
    };
    let guest = Guest {
        kernel: kernel.into(),
        initrd: initrd.into(),
        memory: Bytes::mib(mib),
        command_line: format!(
            "console=ttyS0 quiet micro.ip={}/24 micro.run=heartbeat,to={}:{},ms=5{dirty}",
            net.guest, net.host, net.port
        ),
    };
    let ways = match rate.as_str() {
        "idle" | "60" => vec![Way::Still, Way::Defaults, Way::Unlimited30, Way::Engine],
        "max" => vec![
            Way::Still,
            Way::Unlimited30,
            Way::Postcopy,
            Way::Engine,
            Way::Streams { compress: false },
            Way::Streams { compress: true },
        ],
        _ => vec![Way::Still, Way::Unlimited30, Way::Engine],
    };
    let only = std::env::var("ONLY").ok();
    let ways: Vec<Way> = ways
        .into_iter()
        .filter(|way| only.as_ref().is_none_or(|only| format!("{way:?}").starts_with(only)))
        .collect();
    let mut figures: Vec<Vec<Measured>> = ways.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds.parse::<u32>()? {
        for (way, figures) in ways.iter().zip(&mut figures) {
            let measured = match way {
                Way::Still => hand::run(&guest, &net, By::Nothing).await?,
                Way::Defaults => hand::run(&guest, &net, By::Defaults).await?,
                Way::Unlimited30 => hand::run(&guest, &net, By::Downtime { ms: 30 }).await?,
                Way::Postcopy => hand::run(&guest, &net, By::Postcopy).await?,
                Way::Engine => engine(&guest, &net, Channel::default()).await?,
                Way::Streams { compress } => {
                    let (streams, compress) = (NonZeroU8::new(2), *compress);
                    let channel = Channel { streams, compress, ..Channel::default() };
                    engine(&guest, &net, channel).await?
                }
            };
            let Measured { total, gap, forced } = &measured;
            let forced = if *forced { ", forced" } else { "" };
            println!("{round} {way:?}: total {total:.0?}, gap {gap:.1?}{forced}");
            figures.push(measured);
        }
    }
    for (way, figures) in ways.iter().zip(&figures) {
        let median = |of: &dyn Fn(&Measured) -> Duration| {
            let mut all: Vec<Duration> = figures.iter().map(of).collect();
            all.sort();
            all.get(all.len() / 2).copied().unwrap_or_default()
        };
        let forced = figures.iter().filter(|measured| measured.forced).count();
        let (total, gap) = (median(&|m| m.total), median(&|m| m.gap));
        println!("{way:?}: median total {total:.0?}, gap {gap:.1?}, forced {forced}");
    }
    Ok(())
}

fn spec(guest: &Guest) -> Result<MachineSpec, Any> {
    Ok(MachineSpec {
        vm: VmId::from_uuid(uuid::Uuid::new_v4()),
        generation: Generation(1),
        name: "example".to_owned(),
        vcpus: Vcpus(1),
        memory: guest.memory,
        cpu_model: CpuModel::Auto,
        machine: MachineType::Q35,
        machine_version: None,
        boot: BootSpec::Kernel {
            kernel: guest.kernel.clone(),
            initrd: Some(guest.initrd.clone()),
            command_line: guest.command_line.clone(),
        },
        disks: vec![],
        cdroms: vec![],
        nics: vec![NicSpec { mac: MAC.parse()? }],
    })
}

/// A server of its own.
struct Server {
    dir: tempfile::TempDir,
    engine: QemuEngine,
}

impl Server {
    async fn new(name: &str) -> Result<Server, Any> {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir()?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
        let cgroup = format!("example-{}-{name}", std::process::id());
        let (state, run) = (dir.path().join("state"), dir.path().join("run"));
        let engine = QemuEngine::new(QemuConfig::new(state, run, &cgroup)).await?;
        Ok(Server { dir, engine })
    }

    fn end(self) -> Result<(), Any> {
        self.engine.cgroups().remove()?;
        drop(self.dir);
        Ok(())
    }
}

async fn engine(guest: &Guest, net: &net::Net, channel: Channel) -> Result<Measured, Any> {
    let (from, to) = (Server::new("from").await?, Server::new("to").await?);
    let spec = spec(guest)?;
    let source = from.engine.launch(&spec, vec![net.tap(0)?]).await?;
    let measured = engine_move(&to, &spec, source.clone(), net, channel).await;
    source.kill().await?;
    for machine in to.engine.adopt().await? {
        machine.machine.kill().await?;
    }
    from.end()?;
    to.end()?;
    measured
}

async fn engine_move(
    to: &Server,
    spec: &MachineSpec,
    source: Arc<dyn Machine>,
    net: &net::Net,
    channel: Channel,
) -> Result<Measured, Any> {
    let heart = net.listen()?;
    heart.settled()?;
    let key = MigrationKey::fresh();
    let incoming = Incoming { hardware: source.hardware(), key: key.clone(), channel };
    let target = to.engine.launch_incoming(spec, vec![net.tap(1)?], &incoming).await?;
    let address = target.listen(IpAddr::V4(Ipv4Addr::LOCALHOST)).await?;
    let policy = Policy::default();
    let limits = Pilot::new(policy.clone()).limits();
    let started = Instant::now();
    let outgoing = Outgoing { to: address, key, channel, limits, hold: true, may_throttle: true };
    source.migrate(&outgoing).await?;
    let begun = started.elapsed();
    let progress = watch::Sender::new(Progress::default());
    let cancel = CancellationToken::new();
    let mut watched = progress.subscribe();
    let show = std::env::var_os("SHOW").is_some();
    let _watching = show.then(|| {
        tokio::spawn(async move {
            while watched.changed().await.is_ok() {
                println!("{:?}", *watched.borrow_and_update());
            }
        })
    });
    let drive = Drive {
        machine: &*source,
        channel,
        policy,
        gate: &AlwaysOpen,
        progress: &progress,
        cancel: &cancel,
    };
    let moved = drive.run().await?;
    if show {
        println!("begun after {begun:.1?}, {moved:?}");
    }
    let total = started.elapsed();
    let gap = heart.gap_after_beats()?;
    target.kill().await?;
    Ok(Measured { total, gap, forced: false })
}
