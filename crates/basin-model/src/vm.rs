//! Virtual machines: what is wanted ([`Vm`]) and what is ([`VmStatus`]).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::hardware::GuestHardware;
use crate::ids::{DatastoreId, HostId, ImageId, NetworkId, NicId, TaskId, VmId, VolumeId};
use crate::meta::Meta;
use crate::units::{Bytes, BytesPerSecond, Generation, MacAddr, Vcpus};
use crate::volume::VolumeFormat;

/// A virtual machine as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    pub id: VmId,
    pub meta: Meta,
    pub spec: VmSpec,
    pub run: Run,
    /// The server that owns the VM, once one does.
    pub placement: Option<Placement>,
    /// What the guest sees, fixed by the last start. None: never started, or by a
    /// server that could not say; then its QEMU decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<GuestHardware>,
    /// A live migration under way. While it is there, nobody but the migration itself
    /// starts, stops or resumes the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<Migration>,
}

/// A VM on its way to another server, while it runs.
///
/// Set by the workflow, on the condition that nobody else has the VM for itself. Taken
/// away by the target, in the transaction that makes it the owner; or by the workflow,
/// once the target has said that its machine is dead and never ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    pub task: TaskId,
    pub to: HostId,
    /// What the target will own the VM by: the next after the placement's.
    pub generation: Generation,
    /// Disks whose content moves along. The others are reached from both servers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub disks: BTreeMap<VolumeId, MovedDisk>,
}

/// Where a disk's content goes. It is whole by itself there: nothing lies below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedDisk {
    pub datastore: DatastoreId,
    pub format: VolumeFormat,
}

/// How a live migration goes about it. What is absent is chosen by Basin, from the
/// guest's dirty rate and the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MigrationPolicy {
    /// Memory and disks together take no more of the link than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<BytesPerSecond>,
    /// How long the guest may stand still without anybody minding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime: Option<Duration>,
    /// How long it may stand still where less cannot be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_downtime: Option<Duration>,
    /// A guest that writes faster than the link is never slowed down.
    #[serde(default)]
    pub no_throttle: bool,
    #[serde(default)]
    pub postcopy: PostcopyPolicy,
    /// A guest that cannot be moved within all that stays where it is; else it stands
    /// still for as long as it takes.
    #[serde(default)]
    pub or_stay: bool,
}

/// Whether a guest may go before all of its memory. If the link breaks then, it stands
/// still until it is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PostcopyPolicy {
    #[default]
    Never,
    /// Where the guest writes too fast otherwise.
    Fallback,
    /// As soon as all of its memory was copied once.
    AtOnce,
}

/// Which server owns a VM, and by which hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub host: HostId,
    pub generation: Generation,
}

/// What the VM should be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub power: Power,
    /// Counts requests to start. A guest that shuts itself down ends the epoch it
    /// ran in; it runs again when somebody asks for a later one, not by itself.
    pub epoch: u64,
    /// Counts requests to reset; the owner resets once for each it has not seen.
    pub resets: u64,
}

/// The wanted power state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Power {
    Running,
    /// vCPUs halted, memory kept.
    Paused,
    Off {
        how: PowerOff,
    },
}

/// How a VM is brought down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub enum PowerOff {
    /// Press the ACPI power button; pull the plug if the guest has not gone by the deadline.
    Graceful { deadline: Timestamp },
    /// Pull the plug.
    Now,
}

/// The virtual hardware and the policies of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    pub vcpus: Vcpus,
    pub memory: Bytes,
    #[serde(default)]
    pub cpu_model: CpuModel,
    #[serde(default)]
    pub machine: Machine,
    #[serde(default)]
    pub boot: Boot,
    #[serde(default)]
    pub disks: Vec<Disk>,
    #[serde(default)]
    pub cdroms: Vec<Cdrom>,
    #[serde(default)]
    pub nics: Vec<Nic>,
    #[serde(default)]
    pub cloud_init: Option<CloudInit>,
    #[serde(default)]
    pub policy: FailurePolicy,
}

/// The CPU that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "name")]
pub enum CpuModel {
    /// What Basin finds best: the server's own CPU, or in a cluster the best that
    /// every server has. Resolved when the VM is started ([`Vm::hardware`]).
    #[default]
    Auto,
    /// A QEMU model by name, such as `EPYC` or `qemu64`.
    Named(String),
}

/// The chipset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Machine {
    /// PCI Express, ACPI, any guest.
    #[default]
    Q35,
    /// virtio-mmio only, fastest start; needs [`Boot::Kernel`].
    Microvm,
}

/// How the guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "firmware")]
pub enum Boot {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF, with a variable store of the VM's own.
    Uefi,
    /// The kernel is loaded directly; images of kind kernel and initrd.
    Kernel { kernel: ImageId, initrd: Option<ImageId>, command_line: String },
}

/// A volume in the VM. The first in the list is the first the firmware tries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub volume: VolumeId,
    #[serde(default)]
    pub read_only: bool,
    /// What the guest reads as the disk's serial number, at most 20 of `a-zA-Z0-9._-`.
    pub serial: String,
    /// The volume was made for this VM and goes with it.
    #[serde(default)]
    pub delete_with_vm: bool,
}

/// An ISO image in a CD-ROM drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cdrom {
    pub image: ImageId,
}

/// A network interface and its lasting addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    pub id: NicId,
    pub network: NetworkId,
    pub mac: MacAddr,
    /// What DHCP answers this interface with, for the VM's whole life.
    pub address: Ipv4Addr,
}

/// What the guest's cloud-init finds on its NoCloud seed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CloudInit {
    /// Log-in name of the first user; the image's default when absent.
    pub user: Option<String>,
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// A password hash in crypt(5) form, for the console.
    pub password_hash: Option<String>,
    /// A whole user-data document (`#cloud-config`, a script, or MIME multipart),
    /// instead of the one made from the fields above.
    pub user_data: Option<String>,
    /// A network-config document (version 2), instead of DHCP on every interface.
    pub network_config: Option<String>,
}

/// What happens when the VM fails by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailurePolicy {
    /// The guest's kernel panicked (pvpanic) or its watchdog fired.
    pub guest_crash: OnFailure,
    /// The QEMU process ended unasked.
    pub machine_death: OnFailure,
}

impl Default for FailurePolicy {
    fn default() -> Self {
        FailurePolicy { guest_crash: OnFailure::Restart, machine_death: OnFailure::Restart }
    }
}

/// One choice of a [`FailurePolicy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Start it again, after a pause that doubles with every failure in a row.
    Restart,
    /// Power it off.
    Stop,
    /// Leave it as it is for somebody to look at.
    Leave,
}

/// A virtual machine as it is: written by its owner only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    pub vm: VmId,
    pub host: HostId,
    /// The hand-over under which this was observed.
    pub generation: Generation,
    pub phase: Phase,
    /// When `phase` last changed.
    pub since: Timestamp,
    /// The last epoch that was started.
    pub started_epoch: u64,
    /// The last epoch that is over: it ends by guest shutdown, stop, or policy.
    pub ended_epoch: u64,
    /// Reset requests carried out.
    pub resets_seen: u64,
    /// Failures in a row, for the back-off.
    pub failures: u32,
    /// The latest thing that went wrong, kept after it was mended.
    pub last_failure: Option<Failure>,
    pub qemu: Option<QemuProcess>,
}

/// What a VM is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Phase {
    Stopped,
    Starting,
    Running,
    Paused,
    /// The power button was pressed; the plug is pulled at the deadline.
    ShuttingDown {
        deadline: Timestamp,
    },
    /// The guest crashed and the policy is to leave it.
    Crashed,
    /// Failed; tried again at the given time.
    BackingOff {
        until: Timestamp,
    },
    /// Failed, and not tried again until somebody asks.
    Failed,
}

/// Something that went wrong with a VM, for the person who reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub at: Timestamp,
    pub kind: FailureKind,
    pub message: String,
}

/// Kinds of [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The guest's kernel panicked.
    GuestPanic,
    /// The guest did not feed its watchdog.
    Watchdog,
    /// QEMU ended unasked.
    MachineDied,
    /// The VM could not be started.
    StartFailed,
}

/// The process that is the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuProcess {
    pub pid: u32,
    pub version: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    pub started_at: Timestamp,
}

/// How long the pause before restart number `failures` in a row is: 1 s, doubled up to 5 min.
pub fn restart_backoff(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(9)).min(Duration::from_secs(300))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_five_minutes() {
        let secs: Vec<u64> = [1, 2, 3, 9, 10, 1000].map(|n| restart_backoff(n).as_secs()).into();
        assert_eq!(secs, [1, 2, 4, 256, 300, 300]);
    }
}
