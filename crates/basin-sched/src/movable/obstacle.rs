//! Pure. What prevents a move, for the person who wanted it.

use std::fmt;

use basin_model::Bytes;
use basin_model::Vcpus;
use basin_model::hardware::{CpuClass, MachineVersion};
use serde::Serialize;

/// One thing that prevents a move. [`Display`](fmt::Display) says what it is,
/// [`Obstacle::advice`] what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "obstacle")]
pub enum Obstacle {
    // Of the VM.
    AlreadyThere { server: String },
    HeldBy { what: String },
    Changing { what: String },
    Crashed,
    Passthrough { device: String },
    DiskStalled { disk: String, why: String },
    // Of what the guest sees.
    HardwareUnknown,
    HostCpu,
    ClassDiffers { guest: CpuClass, server: String, there: CpuClass },
    CpuUnknown { model: String, server: String },
    CpuFeatures { model: String, server: String, missing: Vec<String> },
    CpuFeaturesAppear { model: String, server: String, new: Vec<String> },
    MachineUnknown { machine: MachineVersion, server: String, there: Vec<MachineVersion> },
    MachineUnversioned { running: String, server: String, there: String },
    QemuOlder { running: String, server: String, there: String },
    // Of the servers.
    Silent { server: String, why: String },
    Unusable { server: String, why: String },
    HardwareNotReported { server: String },
    Draining { server: String },
    DaemonTooFar { server: String, there: String, here: String },
    TooFewCpus { server: String, needed: Vcpus, there: Vcpus },
    TooLittleMemory { server: String, needed: Bytes, free: Bytes, there: Bytes },
    // Of storage and networks.
    LocalDisk { disk: String, datastore: String },
    FixedDisk { disk: String, why: String },
    DatastoreNotReached { datastore: String, server: String, why: String },
    NoSuchDatastore { datastore: String },
    TooLittleSpace { datastore: String, needed: Bytes, free: Bytes },
    SpaceUnknown { datastore: String },
    NetworkMissing { network: String, server: String, why: String },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Obstacle::*;
        match self {
            AlreadyThere { server } => write!(f, "it is on {server} already"),
            HeldBy { what } => write!(f, "{what} works on it"),
            Changing { what } => write!(f, "it is {what}"),
            Crashed => f.write_str("its guest crashed and was left as it is"),
            Passthrough { device } => {
                write!(f, "its guest drives {device}, a device of the server itself")
            }
            DiskStalled { disk, why } => write!(f, "its disk '{disk}' stands still: {why}"),
            HardwareUnknown => {
                f.write_str("nobody noted which CPU and machine its guest sees when it was started")
            }
            HostCpu => f.write_str(
                "its guest sees its server's own CPU, which no other server is sure to have",
            ),
            ClassDiffers { guest, server, there } => {
                write!(f, "its guest runs by {guest}, and guests on {server} by {there}")
            }
            CpuUnknown { model, server } => {
                write!(f, "the QEMU of {server} does not know the CPU model {model}")
            }
            CpuFeatures { model, server, missing } => {
                let missing = missing.join(", ");
                write!(f, "{server} lacks features of its CPU model {model}: {missing}")
            }
            CpuFeaturesAppear { model, server, new } => {
                let new = new.join(", ");
                write!(
                    f,
                    "its CPU model {model} is only in part there where it runs, and would have \
                     more on {server}, under the running guest: {new}"
                )
            }
            MachineUnknown { machine, server, there } => {
                let there: Vec<String> = there.iter().map(ToString::to_string).collect();
                let there = there.join(", ");
                write!(f, "the QEMU of {server} has no machine pc-q35-{machine}, only {there}")
            }
            MachineUnversioned { running, server, there } => write!(
                f,
                "it is a microvm, which only the same release of QEMU can receive: it runs on \
                 {running}, and {server} has {there}"
            ),
            QemuOlder { running, server, there } => {
                write!(f, "it runs on QEMU {running}, and that of {server} is older: {there}")
            }
            Silent { server, why } => write!(f, "{server} does not answer: {why}"),
            Unusable { server, why } => write!(f, "{server} cannot run VMs: {why}"),
            HardwareNotReported { server } => {
                write!(f, "{server} has not said which CPUs and machines its QEMU can give")
            }
            Draining { server } => write!(f, "{server} is being drained"),
            DaemonTooFar { server, there, here } => write!(
                f,
                "{server} runs Basin {there}, more than one release away from {here} where the \
                 VM is"
            ),
            TooFewCpus { server, needed, there } => {
                write!(f, "its {needed} vCPUs are more than the {there} CPUs of {server}")
            }
            TooLittleMemory { server, needed, free, there } => write!(
                f,
                "it needs {needed} of memory (overhead included), and {free} of the {there} of \
                 {server} are free"
            ),
            LocalDisk { disk, datastore } => write!(
                f,
                "its disk '{disk}' is on datastore '{datastore}', which only its server reaches"
            ),
            FixedDisk { disk, why } => write!(f, "its disk '{disk}' cannot move along: {why}"),
            DatastoreNotReached { datastore, server, why } => {
                write!(f, "{server} does not reach datastore '{datastore}': {why}")
            }
            NoSuchDatastore { datastore } => write!(f, "there is no datastore '{datastore}'"),
            TooLittleSpace { datastore, needed, free } => write!(
                f,
                "its disks need {needed} on datastore '{datastore}', where {free} are free"
            ),
            SpaceUnknown { datastore } => {
                write!(f, "nobody can say how much space datastore '{datastore}' has")
            }
            NetworkMissing { network, server, why } => {
                write!(f, "network '{network}' is not on {server}: {why}")
            }
        }
    }
}

impl Obstacle {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        use Obstacle::*;
        match self {
            AlreadyThere { .. } => "Nothing is to be done; or name another server or a datastore.",
            HeldBy { .. } => "Wait until it is done, or cancel it.",
            Changing { .. } => "Wait until it runs or is off.",
            Crashed => "Reset it or power it off; then it can move.",
            Passthrough { .. } => "Shut it down and take the device out of the VM.",
            DiskStalled { .. } => {
                "Make space on the disk's datastore; the guest goes on by itself."
            }
            HardwareUnknown | HostCpu => {
                "Shut it down and start it again: it then gets the CPU that all servers have. Set \
                 its CPU model to 'auto' if it is 'host'."
            }
            ClassDiffers { .. } => "Move it to a server of the same kind, or shut it down first.",
            CpuUnknown { .. } | CpuFeatures { .. } | CpuFeaturesAppear { .. } => {
                "Move it elsewhere; or shut it down, set its CPU model to 'auto' and start it \
                 again: it then gets what all servers have."
            }
            MachineUnknown { .. } | MachineUnversioned { .. } | QemuOlder { .. } => {
                "Upgrade that server's QEMU; or shut the VM down and start it there."
            }
            Silent { .. } => "See whether that server is up and reached ('basin host list').",
            Unusable { .. } => "'basin doctor' on that server says more.",
            HardwareNotReported { .. } => {
                "Restart Basin there; its log says why QEMU did not answer."
            }
            Draining { .. } => "Name another server, or end the maintenance: 'basin host undrain'.",
            DaemonTooFar { .. } => "Upgrade the older of the two first.",
            TooFewCpus { .. } => "Name a larger server.",
            TooLittleMemory { .. } => "Name another server, or make room on that one.",
            LocalDisk { .. } => {
                "Move the disk along: --storage DATASTORE, one that the server reaches."
            }
            FixedDisk { .. } => "Shut it down, and take the disk off or copy it.",
            DatastoreNotReached { .. } => {
                "Name a datastore that the server reaches, or mount it there."
            }
            NoSuchDatastore { .. } => "'basin datastore list' shows those there are.",
            TooLittleSpace { .. } => "Name another datastore, or make space on that one.",
            SpaceUnknown { .. } => "See what is wrong with it: 'basin datastore list'.",
            NetworkMissing { .. } => "'basin host show' on that server says what is wrong there.",
        }
    }

    /// It goes away by itself: worth trying again later.
    pub fn passes(&self) -> bool {
        use Obstacle::*;
        matches!(self, HeldBy { .. } | Changing { .. } | Silent { .. } | DiskStalled { .. })
    }
}
