//! Pure. Where each device sits on its bus, for the life of the VM.

use basin_model::vm::Machine;

use super::args::Opts;
use crate::engine::MachineSpec;

/// At most so many disks, whatever the machine type.
pub const MAX_DISKS: usize = 64;
/// At most so many network interfaces.
pub const MAX_NICS: usize = 32;

/// What has a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Device {
    Rng,
    Balloon,
    Serial,
    Scsi,
    Panic,
    Watchdog,
    Disk(usize),
    Nic(usize),
}

/// PCI slots of the root bus. 1: what every machine has; 0x1a to 0x1e are left for
/// hot-plug ports; 0x1f is the chipset's.
const NIC_SLOTS: (usize, usize) = (0x02, 8);
const DISK_SLOTS: (usize, usize) = (0x0a, 16);

/// virtio-mmio transports of a microvm with two I/O APICs.
const MMIO_TRANSPORTS: usize = 24;
const MMIO_FIRST_DISK: usize = 4;

pub(super) fn fits(spec: &MachineSpec) -> Result<(), String> {
    let (disks, nics) = (spec.disks.len(), spec.nics.len());
    let (max_disks, max_nics) = match spec.machine {
        Machine::Q35 => (MAX_DISKS, MAX_NICS),
        Machine::Microvm => {
            let room = MMIO_TRANSPORTS - MMIO_FIRST_DISK;
            (room.saturating_sub(nics), room)
        }
    };
    if disks > max_disks || nics > max_nics {
        return Err(format!(
            "{disks} disks and {nics} network interfaces are more than this machine type holds: \
             q35 has room for {MAX_DISKS} and {MAX_NICS}, microvm for {} together",
            MMIO_TRANSPORTS - MMIO_FIRST_DISK
        ));
    }
    Ok(())
}

/// A virtio device of this kind, in its place.
pub(super) fn virtio(spec: &MachineSpec, kind: &str, device: Device) -> Opts {
    match spec.machine {
        Machine::Q35 => pci(spec, &format!("{kind}-pci"), device),
        Machine::Microvm => {
            let bus = match device {
                Device::Rng => 0,
                Device::Balloon => 1,
                Device::Serial => 2,
                Device::Scsi => 3,
                Device::Disk(n) => MMIO_FIRST_DISK + n,
                Device::Nic(n) => MMIO_TRANSPORTS.saturating_sub(1 + n),
                Device::Panic | Device::Watchdog => 0,
            };
            // vhost-user-blk is the one virtio device without the suffix.
            let suffix = if kind == "vhost-user-blk" { "" } else { "-device" };
            Opts::new(format!("{kind}{suffix}")).kv("bus", format!("virtio-mmio-bus.{bus}"))
        }
    }
}

/// A PCI device in its place. Devices share a slot only beyond the number of slots of
/// their kind.
pub(super) fn pci(spec: &MachineSpec, driver: &str, device: Device) -> Opts {
    let spread = |(first, slots): (usize, usize), n: usize, total: usize| {
        (first + n % slots, n / slots, total > slots && n < slots)
    };
    let (slot, function, multifunction) = match device {
        Device::Rng => (1, 0, true),
        Device::Balloon => (1, 1, false),
        Device::Serial => (1, 2, false),
        Device::Panic => (1, 3, false),
        Device::Watchdog => (1, 4, false),
        Device::Scsi => (1, 5, false),
        Device::Nic(n) => spread(NIC_SLOTS, n, spec.nics.len()),
        Device::Disk(n) => spread(DISK_SLOTS, n, spec.disks.len()),
    };
    Opts::new(driver).kv("bus", "pcie.0").kv("addr", format!("{slot:02x}.{function:x}")).kv_if(
        multifunction,
        "multifunction",
        "on",
    )
}
