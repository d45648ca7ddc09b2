//! Two servers, and a machine on its way between them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use basin_qemu::migrate::{
    AlwaysOpen, Channel, Drive, DriveError, Gate, Incoming, Limits, MigrationKey, MigrationPhase,
    Moved, Outgoing, Policy, Progress, Throttle,
};
use basin_qemu::qemu::QemuEngine;
use basin_qemu::{ConsoleStream, Engine, Machine, MachineSpec, MachineState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::guest::DIRTY;
use super::{PATIENCE, Server, booted, launch};

pub const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A source with a guest that runs, and an engine for its target.
pub struct Pair {
    pub from: Server,
    pub to: Server,
    pub source: QemuEngine,
    pub target: QemuEngine,
    pub spec: MachineSpec,
    pub machine: Arc<dyn Machine>,
    pub console: ConsoleStream,
    pub key: MigrationKey,
    pub channel: Channel,
}

impl Pair {
    pub async fn new(spec: impl FnOnce(&Server) -> MachineSpec) -> Pair {
        let (from, to) = (Server::new(), Server::new());
        let spec = spec(&from);
        let (source, target) = (from.engine().await, to.engine().await);
        let (machine, console) = launch(&source, &spec).await;
        let (key, channel) = (MigrationKey::fresh(), Channel::default());
        Pair { from, to, source, target, spec, machine, console, key, channel }
    }

    /// With the small guest, which runs.
    pub async fn small(machine: basin_model::vm::Machine) -> Pair {
        let pair = Pair::new(|server| server.spec(machine)).await;
        booted(&*pair.machine).await;
        pair
    }

    /// With the small guest, which writes as fast as it can, and nobody listens.
    pub async fn dirty(machine: basin_model::vm::Machine) -> Pair {
        let mut pair = Pair::small(machine).await;
        make_dirty(&mut pair.console).await;
        pair.hang_up();
        pair
    }

    pub fn incoming(&self) -> Incoming {
        let hardware = self.machine.hardware();
        Incoming { hardware, key: self.key.clone(), channel: self.channel }
    }

    /// A target that listens.
    pub async fn expect(&self) -> (Arc<dyn Machine>, SocketAddr) {
        let incoming = self.incoming();
        let waits = self.target.launch_incoming(&self.spec, vec![], &incoming).await.unwrap();
        assert_eq!(waits.state().await.unwrap(), MachineState::Incoming);
        let address = waits.listen(HERE).await.unwrap();
        assert_eq!(waits.listen(HERE).await.unwrap(), address);
        (waits, address)
    }

    pub fn outgoing(&self, to: SocketAddr) -> Outgoing {
        Outgoing {
            to,
            key: self.key.clone(),
            channel: self.channel,
            limits: limits(None),
            hold: true,
            may_throttle: true,
        }
    }

    /// Nobody listens any more: the next one can.
    pub fn hang_up(&mut self) {
        self.console = Box::new(tokio::io::duplex(1).0);
    }

    /// Moves the guest to a new target.
    pub async fn go(&self, policy: Policy) -> (Arc<dyn Machine>, Moved) {
        let (target, address) = self.expect().await;
        self.machine.migrate(&self.outgoing(address)).await.unwrap();
        let moved = drive(&*self.machine, self.channel, policy).await.unwrap();
        (target, moved)
    }
}

/// Slow enough to do something meanwhile, or to the switch as fast as it goes.
pub fn limits(mib: Option<u64>) -> Limits {
    Limits {
        bandwidth: mib.map(basin_model::BytesPerSecond::mib),
        downtime: Duration::from_millis(if mib.is_some() { 1 } else { 20_000 }),
        throttle: Throttle::default(),
    }
}

pub async fn drive(
    machine: &dyn Machine,
    channel: Channel,
    policy: Policy,
) -> Result<Moved, DriveError> {
    drive_through(machine, channel, policy, &AlwaysOpen, &CancellationToken::new()).await
}

pub async fn drive_through(
    machine: &dyn Machine,
    channel: Channel,
    policy: Policy,
    gate: &dyn Gate,
    cancel: &CancellationToken,
) -> Result<Moved, DriveError> {
    let progress = watch::Sender::new(Progress::default());
    let drive = Drive { machine, channel, policy, gate, progress: &progress, cancel };
    tokio::time::timeout(2 * PATIENCE, drive.run()).await.expect("a migration does not end")
}

/// Waits for a phase.
pub async fn phase(machine: &dyn Machine, is: impl Fn(&MigrationPhase) -> bool) -> MigrationPhase {
    let mut seen = MigrationPhase::None;
    let waiting = async {
        loop {
            seen = machine.migration().await.unwrap().phase;
            if is(&seen) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let came = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(came.is_ok(), "it stays {seen:?}");
    seen
}

/// The guest answers, on this machine.
pub async fn answers(machine: &dyn Machine) {
    let mut console = machine.open_console().await.unwrap();
    console.write_all(b"?").await.unwrap();
    super::hear(&mut console, b"?").await;
}

/// The guest begins to write as fast as it can, and is at it.
pub async fn make_dirty(console: &mut ConsoleStream) {
    console.write_all(DIRTY).await.unwrap();
    super::hear(console, b"dd").await;
}

/// The guest goes on writing, and finds what it wrote.
pub async fn still_right(machine: &dyn Machine) {
    let mut console = machine.open_console().await.unwrap();
    let mut heard = Vec::new();
    let hearing = async {
        while heard.iter().filter(|byte| **byte == b'd').count() < 4 {
            heard.push(console.read_u8().await.unwrap());
            assert!(!heard.contains(&b'!'), "the guest's memory is not what it wrote");
        }
    };
    tokio::time::timeout(PATIENCE, hearing).await.expect("the guest stands still");
}
