//! Virtual machines.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::reference::{Labels, Meta, Reference};
use crate::volume::{VolumeFormat, VolumeSource};

/// A virtual machine: what is wanted of it, and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    #[serde(flatten)]
    pub meta: Meta,
    pub hardware: Hardware,
    pub disks: Vec<Disk>,
    pub cdroms: Vec<Reference>,
    pub nics: Vec<Nic>,
    pub policy: FailurePolicy,
    /// Whether it has a cloud-init seed (whose secrets are not shown).
    pub cloud_init: bool,
    /// What somebody asked for last.
    pub wanted: Wanted,
    pub status: Status,
    /// It is on its way to another server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<Migration>,
}

/// A move to another server that is under way. How far it is, its task tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Migration {
    pub to: Reference,
    /// The id of the task that moves it.
    pub task: String,
    /// The disks that move along.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<MigratingDisk>,
}

/// A disk whose content moves along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigratingDisk {
    pub volume: Reference,
    /// Where it goes.
    pub datastore: Reference,
}

/// CPU, memory, chipset and firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hardware {
    pub vcpus: u32,
    pub memory_bytes: u64,
    /// A QEMU CPU model; `auto` is the best for the server.
    pub cpu_model: String,
    pub machine: Machine,
    pub boot: Boot,
}

/// The chipset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Machine {
    /// PCI Express and ACPI; for any guest.
    #[default]
    Q35,
    /// virtio only and the fastest to start; boots a kernel directly.
    Microvm,
}

/// How the guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "firmware", deny_unknown_fields)]
pub enum Boot {
    #[default]
    Bios,
    Uefi,
    /// Images of kind kernel and initrd.
    Kernel {
        kernel: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        initrd: Option<String>,
        #[serde(default)]
        command_line: String,
    },
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    pub volume: Reference,
    pub size_bytes: u64,
    pub format: VolumeFormat,
    pub read_only: bool,
    pub serial: String,
    /// Whether deleting the VM deletes the volume.
    pub delete_with_vm: bool,
}

/// A network interface of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Nic {
    pub id: String,
    pub network: Reference,
    pub mac: String,
    /// What DHCP answers it with.
    pub address: String,
}

/// What happens when the VM fails by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailurePolicy {
    /// The guest's kernel panicked or its watchdog fired.
    #[serde(default)]
    pub guest_crash: OnFailure,
    /// The QEMU process ended unasked.
    #[serde(default)]
    pub machine_death: OnFailure,
}

/// A choice of [`FailurePolicy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Start it again, after a pause that doubles with every failure in a row.
    #[default]
    Restart,
    Stop,
    /// Leave it as it is for somebody to look at.
    Leave,
}

/// What somebody asked for last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    Running,
    Paused,
    Off,
}

/// How the VM is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub state: State,
    /// When the state last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// The server that runs it or ran it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Reference>,
    pub generation: u64,
    /// Failures in a row.
    pub failures: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Failure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<Qemu>,
    /// Figures of the moment; absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What a VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Stopped,
    Starting,
    Running,
    /// It runs, or is paused, and moves to another server.
    Migrating,
    Paused,
    ShuttingDown,
    /// The guest crashed and the policy is to leave it.
    Crashed,
    /// Failed; it will be tried again.
    BackingOff,
    /// Failed, and not tried again until somebody asks.
    Failed,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    pub at: String,
    /// `guest_panic`, `watchdog`, `machine_died` or `start_failed`.
    pub kind: String,
    pub message: String,
}

/// The process that is the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Qemu {
    pub pid: u32,
    pub version: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    pub started_at: String,
}

/// Figures of a running VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// CPU time since QEMU started.
    pub cpu_milliseconds: u64,
    pub resident_bytes: u64,
    /// Free memory in the guest's eyes, once its balloon driver reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_free_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_available_bytes: Option<u64>,
    pub disk_read_bytes: u64,
    pub disk_written_bytes: u64,
    pub network_received_bytes: u64,
    pub network_sent_bytes: u64,
    /// Why disk requests wait, when they do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stalled: Vec<String>,
    /// What the guest agent tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<Guest>,
}

/// What the guest agent tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Guest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    pub addresses: Vec<String>,
}

/// A VM to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmCreate {
    pub name: String,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub labels: Labels,
    pub vcpus: u32,
    pub memory_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    #[serde(default)]
    pub machine: Machine,
    #[serde(default)]
    pub boot: Boot,
    /// In boot order.
    #[serde(default)]
    pub disks: Vec<NewDisk>,
    /// ISO images.
    #[serde(default)]
    pub cdroms: Vec<String>,
    /// One on network `default` when absent; none when empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<NewNic>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    #[serde(default)]
    pub policy: FailurePolicy,
    /// Start it once it is made.
    #[serde(default)]
    pub start: bool,
}

/// A disk for a VM: a volume that exists, or one to make for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDisk {
    pub disk: DiskChoice,
    #[serde(default)]
    pub read_only: bool,
    /// At most 20 of `a-zA-Z0-9._-`; made from the volume's id when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// Which volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "is", deny_unknown_fields)]
pub enum DiskChoice {
    /// One that exists and is attached to no VM; it stays when the VM is deleted.
    Existing { volume: String },
    /// One to make for the VM, named `VM-diskN`; it is deleted with the VM.
    New {
        source: VolumeSource,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        format: Option<VolumeFormat>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        datastore: Option<String>,
    },
}

/// A network interface for a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewNic {
    pub network: String,
    /// Made up when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The first free one of the network when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// What the guest's cloud-init finds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloudInit {
    /// Log-in name; the image's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// A crypt(5) hash, for the console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_hash: Option<String>,
    /// A whole user-data document, instead of the one made from the fields above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// A network-config document (version 2), instead of DHCP on every interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_config: Option<String>,
}

/// A change to a VM; what is absent stays. Hardware changes while it is stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmPatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Merged into the labels; a null value removes the label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cdroms: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<FailurePolicy>,
}

/// How to move a running VM to another server. What is absent is chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmMigrate {
    /// Where to; the server with the most room when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// All its disks move to this datastore, except those that are there. When absent, they
    /// stay, and both servers have to reach them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastore: Option<String>,
    /// Memory and disks together take no more of the link; no limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes_per_second: Option<u64>,
    /// How long the guest may stand still without anybody minding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u64>,
    /// How long it may stand still where less cannot be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_downtime_ms: Option<u64>,
    /// A guest that writes faster than the link is not slowed down.
    #[serde(default)]
    pub no_throttle: bool,
    #[serde(default)]
    pub postcopy: Postcopy,
    /// A guest that cannot be moved within these limits stays where it is; otherwise it
    /// stands still for as long as it takes.
    #[serde(default)]
    pub or_stay: bool,
}

/// Whether a guest may go before all of its memory. If the link breaks then, it stands
/// still until the link is mended; if the source dies, the guest is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Postcopy {
    #[default]
    Never,
    /// Where the guest writes too fast otherwise.
    Fallback,
    /// As soon as all of its memory was copied once.
    AtOnce,
}

/// How to shut down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    /// How long the guest has before the plug is pulled; 90 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}
