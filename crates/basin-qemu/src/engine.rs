//! The seam between Basin and what runs machines.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use basin_model::hardware::MachineVersion;
use basin_model::vm::{CpuModel, Machine as MachineType, QemuProcess};
use basin_model::{Bytes, Generation, MacAddr, Vcpus, VmId};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast;

use crate::migrate::{Incoming, Migrate, MigrationPhase, MigrationSupport};

/// One machine to run, with every resource it needs already prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    pub vm: VmId,
    pub generation: Generation,
    /// For the process list and the guest's SMBIOS tables.
    pub name: String,
    pub vcpus: Vcpus,
    pub memory: Bytes,
    pub cpu_model: CpuModel,
    pub machine: MachineType,
    /// Such as `7.2` for `pc-q35-7.2`, so that the guest may move to another QEMU. None:
    /// the newest that QEMU has, and for a microvm always, which has no versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_version: Option<MachineVersion>,
    pub boot: BootSpec,
    /// In boot order.
    pub disks: Vec<DiskSpec>,
    pub cdroms: Vec<CdromSpec>,
    pub nics: Vec<NicSpec>,
}

/// How the guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "firmware")]
pub enum BootSpec {
    Bios,
    /// `vars` is the VM's own variable store; the engine makes it from OVMF's
    /// template when it is not there yet.
    Uefi {
        vars: PathBuf,
    },
    Kernel {
        kernel: PathBuf,
        initrd: Option<PathBuf>,
        command_line: String,
    },
}

/// A vhost-user-blk device that somebody serves at `socket`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    pub socket: PathBuf,
    pub queues: u16,
}

/// An ISO file in a drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CdromSpec {
    pub path: PathBuf,
}

/// A network interface; its tap is handed over open, in the same order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    pub mac: MacAddr,
}

/// What a machine is doing, as its engine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineState {
    Running,
    Paused,
    /// The guest's kernel panicked, or the watchdog stopped it.
    Crashed,
    /// The guest is off; the process may still be there.
    Shutdown,
    /// It waits for a guest to come, or the guest is coming. Not a pause.
    Incoming,
    /// Its guest is on the way to another engine and stopped for that. Not a pause: it must
    /// not be resumed.
    Switching,
    /// Its guest has gone to another engine, all of its memory too. Must not be resumed, and
    /// can be killed once the target is known to run it.
    Migrated,
    /// The process is gone.
    Gone,
}

/// Something a machine did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest turned itself off (`by_guest`), or was told to.
    Shutdown {
        by_guest: bool,
    },
    /// The guest rebooted itself (`by_guest`), or was reset.
    Reset {
        by_guest: bool,
    },
    /// The guest's kernel panicked.
    Panicked,
    /// The guest did not feed its watchdog.
    Watchdog,
    Paused,
    Resumed,
    /// The guest was stopped for the last part of its migration: no pause.
    Switching,
    /// A migration, outgoing or incoming, has come this far.
    Migration(MigrationPhase),
    /// The process ended; `detail` has its status or last words where known.
    Exited {
        detail: String,
    },
}

/// What the balloon device tells about the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BalloonStats {
    /// What the guest has now.
    pub actual: Bytes,
    /// Free, in the guest's eyes; absent until its driver reports.
    pub free: Option<Bytes>,
    pub available: Option<Bytes>,
    pub total: Option<Bytes>,
}

/// What the guest agent tells.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestInfo {
    pub hostname: Option<String>,
    pub os: Option<String>,
    pub addresses: Vec<IpAddr>,
}

/// The two ends of a serial line.
pub trait ConsoleIo: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ConsoleIo for T {}
pub type ConsoleStream = Box<dyn ConsoleIo>;

/// A machine that outlived the daemon.
pub struct Adopted {
    pub vm: VmId,
    pub generation: Generation,
    pub machine: Arc<dyn Machine>,
}

/// Why an engine did not do as asked. Written for the operator.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no QEMU, or it is too old.
    #[error("QEMU cannot be used: {0}")]
    Unusable(String),
    /// It did not start; with its own words.
    #[error("the machine did not start: {0}")]
    Start(String),
    /// It ran, and is no more.
    #[error("the machine is gone")]
    Gone,
    /// It answered a request with an error, or not in time.
    #[error("the machine did not {what}: {why}")]
    Refused { what: &'static str, why: String },
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
}

/// Runs machines.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Starts the machine and returns once its vCPUs run. On an error nothing is
    /// left of it. At most one machine a VM: a second launch is refused.
    /// `taps` belong to `spec.nics`, one each, in order.
    async fn launch(
        &self,
        spec: &MachineSpec,
        taps: Vec<OwnedFd>,
    ) -> Result<Arc<dyn Machine>, EngineError>;

    /// As [`Engine::launch`], for a guest that comes from another engine: returns once it
    /// can [`Migrate::listen`]. The guest runs by itself when it is all there; until then
    /// the machine is [`MachineState::Incoming`], and ends when its source goes away.
    async fn launch_incoming(
        &self,
        spec: &MachineSpec,
        taps: Vec<OwnedFd>,
        incoming: &Incoming,
    ) -> Result<Arc<dyn Machine>, EngineError>;

    /// What guests may come here, and how.
    async fn migration_support(&self) -> Result<MigrationSupport, EngineError>;

    /// Every machine of this engine that still runs, after a daemon's restart.
    /// What cannot be controlled any more is killed, and not reported.
    async fn adopt(&self) -> Result<Vec<Adopted>, EngineError>;

    /// The user id the VM's process runs under, for whoever serves it a socket. The
    /// same for every launch until [`Engine::forget`].
    async fn uid(&self, vm: VmId) -> Result<u32, EngineError>;

    /// Removes what a VM that does not run left behind, its UEFI variables included.
    async fn forget(&self, vm: VmId) -> Result<(), EngineError>;
}

/// A machine that was launched or adopted.
#[async_trait]
pub trait Machine: Migrate {
    fn process(&self) -> QemuProcess;

    async fn state(&self) -> Result<MachineState, EngineError>;

    /// Events from now on. A receiver that lags asks [`Machine::state`] instead.
    fn events(&self) -> broadcast::Receiver<MachineEvent>;

    async fn pause(&self) -> Result<(), EngineError>;
    async fn resume(&self) -> Result<(), EngineError>;
    async fn reset(&self) -> Result<(), EngineError>;

    /// Presses the ACPI power button. Nothing says the guest listens.
    async fn press_power_button(&self) -> Result<(), EngineError>;

    /// Ends the process, however it is, and returns when it is gone. Idempotent.
    async fn kill(&self) -> Result<(), EngineError>;

    async fn balloon(&self) -> Result<BalloonStats, EngineError>;
    async fn set_balloon(&self, target: Bytes) -> Result<(), EngineError>;

    /// `None` when no guest agent answers.
    async fn guest_info(&self) -> Option<GuestInfo>;

    /// CPU time the process has used since its start.
    fn cpu_time(&self) -> Option<std::time::Duration>;

    /// Its resident memory.
    fn resident(&self) -> Option<Bytes>;

    /// Connects to the first serial line. One at a time; the node multiplexes.
    async fn open_console(&self) -> Result<ConsoleStream, EngineError>;

    /// Where the engine writes what the serial line said, also while no daemon runs.
    fn console_log(&self) -> PathBuf;
}
