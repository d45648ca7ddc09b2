//! Pure. What is known of a VM, of servers and of datastores when a move is judged.

use std::collections::BTreeMap;

use basin_model::hardware::{GuestHardware, HardwareFacts};
use basin_model::host::HostCapacity;
use basin_model::vm::Machine;
use basin_model::{Bytes, DatastoreId, HostId, NetworkId, Vcpus, VmId, VolumeId};

use crate::place::{Candidate, overhead};

/// A VM that is to move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovingVm {
    pub vm: VmId,
    pub name: String,
    /// The server that has it.
    pub on: HostId,
    pub vcpus: Vcpus,
    pub memory: Bytes,
    pub machine: Machine,
    /// What its guest sees, as the start fixed it.
    pub hardware: Option<GuestHardware>,
    pub activity: Activity,
    /// The version of the QEMU that runs it: `7.2.22`.
    pub qemu: Option<String>,
    pub disks: Vec<MovingDisk>,
    /// With their names.
    pub networks: Vec<(NetworkId, String)>,
    /// Devices of the server itself that the guest drives.
    pub passthrough: Vec<String>,
    /// What works on the VM now: `task 0190… (vm-disk-add)`.
    pub held_by: Option<String>,
}

/// What the VM does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Activity {
    /// Nothing of it is on its server but its record.
    Off,
    Running,
    Paused,
    /// On the way from one to another: `starting`, `shutting down`.
    Changing(String),
    /// The guest crashed and was left as it is.
    Crashed,
}

impl Activity {
    /// It has a process, or is about to.
    pub fn is_active(&self) -> bool {
        *self != Activity::Off
    }
}

/// A disk, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovingDisk {
    pub volume: VolumeId,
    pub name: String,
    pub datastore: DatastoreId,
    /// Where what it is a linked clone of is, if elsewhere.
    pub reads_through: Vec<DatastoreId>,
    /// The space a copy of it takes.
    pub needs: Bytes,
    /// Why its content cannot be copied elsewhere while the VM runs, if so.
    pub fixed: Option<String>,
    /// Why its requests wait, when they do.
    pub stalled: Option<String>,
}

/// A datastore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    pub name: String,
    /// The only server that can reach it; none: it is shared.
    pub local_to: Option<HostId>,
    /// None: nobody could say.
    pub free: Option<Bytes>,
}

pub type Stores = BTreeMap<DatastoreId, Store>;

/// A server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    pub host: HostId,
    pub name: String,
    /// Why it cannot be asked for anything: `it has not answered for 40 s`.
    pub silent: Option<String>,
    /// Why VMs cannot run there: QEMU, blockd or the network is not in order.
    pub unusable: Option<String>,
    pub draining: bool,
    pub capacity: HostCapacity,
    /// Memory of the VMs that have it for their server, overheads included.
    pub committed: Bytes,
    /// Its VMs are emulated.
    pub emulated: bool,
    pub hardware: Option<HardwareFacts>,
    /// The version of its QEMU.
    pub qemu: Option<String>,
    /// The version of its daemon.
    pub daemon: String,
    /// Datastores that it does not reach, and why.
    pub without_datastores: BTreeMap<DatastoreId, String>,
    /// Networks that are not there, and why.
    pub without_networks: BTreeMap<NetworkId, String>,
}

impl Site {
    pub(crate) fn free(&self) -> Bytes {
        self.capacity.memory.saturating_sub(self.committed)
    }

    /// What a VM takes of its memory.
    pub(crate) fn takes(&self, memory: Bytes) -> Bytes {
        memory + overhead(memory, self.emulated)
    }

    pub(crate) fn candidate(&self) -> Candidate {
        Candidate {
            host: self.host,
            name: self.name.clone(),
            capacity: self.capacity,
            emulated: self.emulated,
            committed: self.committed,
            unusable: self.silent.clone().or_else(|| self.unusable.clone()),
            draining: self.draining,
        }
    }
}

/// Where the disks go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Storage {
    /// They stay where they are.
    #[default]
    Stay,
    /// All of them to one datastore.
    All(DatastoreId),
    /// These; the others stay.
    Each(BTreeMap<VolumeId, DatastoreId>),
}

impl Storage {
    /// The datastore that a disk moves to; none: it stays.
    pub fn moves(&self, disk: &MovingDisk) -> Option<DatastoreId> {
        let to = match self {
            Storage::Stay => None,
            Storage::All(to) => Some(*to),
            Storage::Each(each) => each.get(&disk.volume).copied(),
        };
        to.filter(|to| *to != disk.datastore)
    }
}

/// A move that has begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    pub vm: VmId,
    pub from: HostId,
    pub to: HostId,
    /// The guest's; none when the VM is off and takes none.
    pub memory: Option<Bytes>,
    /// What its disks will take, and where.
    pub space: Vec<(DatastoreId, Bytes)>,
}

/// Takes what moves under way will take from where they go. The source counts by its
/// placement until the end.
pub fn count_in_flight(sites: &mut [Site], stores: &mut Stores, in_flight: &[InFlight]) {
    for flight in in_flight {
        if let Some(site) = sites.iter_mut().find(|site| site.host == flight.to)
            && flight.from != flight.to
            && let Some(memory) = flight.memory
        {
            site.committed += site.takes(memory);
        }
        for (datastore, needs) in &flight.space {
            if let Some(free) = stores.get_mut(datastore).and_then(|store| store.free.as_mut()) {
                *free = free.saturating_sub(*needs);
            }
        }
    }
}
