//! Pure. The devices of a machine.

use basin_model::vm::Machine;

use super::Inputs;
use super::args::{Args, Opts};
use super::place::{self, Device};
use crate::engine::{BootSpec, MachineSpec};

/// The monitor, the serial line and the guest agent: sockets that the daemon opened, so
/// that it can connect at once and again after its restart.
pub(super) fn control(args: &mut Args, inputs: &Inputs<'_>) {
    let fds = inputs.fds;
    let listen = |id: &str, fd: i32| {
        Opts::new("socket").kv("id", id).kv("fd", fd).kv("server", "on").kv("wait", "off")
    };
    args.opts("-chardev", listen("qmp", fds.qmp));
    args.opts("-mon", Opts::of("chardev", "qmp").kv("mode", "control"));
    let log = args.add_fd(fds.console_log);
    args.opts("-chardev", listen("serial0", fds.serial).kv("logfile", log).kv("logappend", "on"));
    args.raw("-serial", "chardev:serial0");
    args.opts("-chardev", listen("agent", fds.agent));
}

/// What every machine has.
pub(super) fn platform(args: &mut Args, inputs: &Inputs<'_>) {
    let spec = inputs.spec;
    let rng = Opts::new("rng-random").kv("id", "rng0");
    args.opts("-object", rng.kv("filename", "/dev/urandom"));
    args.device(place::virtio(spec, "virtio-rng", Device::Rng).kv("rng", "rng0"));
    let balloon = place::virtio(spec, "virtio-balloon", Device::Balloon).kv("id", "balloon0");
    // The guest takes memory back rather than kill a process, and hands back what it
    // frees without being asked.
    let balloon = balloon.kv("deflate-on-oom", "on").kv("free-page-reporting", "on");
    args.device(balloon.kv("guest-stats-polling-interval", 5));
    args.device(place::virtio(spec, "virtio-serial", Device::Serial).kv("id", "vserial0"));
    let agent = Opts::new("virtserialport").kv("bus", "vserial0.0").kv("chardev", "agent");
    args.device(agent.kv("name", "org.qemu.guest_agent.0"));
    match spec.machine {
        Machine::Q35 => {
            args.device(place::pci(spec, "pvpanic-pci", Device::Panic));
            args.device(place::pci(spec, "i6300esb", Device::Watchdog));
        }
        // Without PCI: the ISA relatives, at their fixed ports.
        Machine::Microvm => {
            args.device(Opts::new("pvpanic"));
            args.device(Opts::new("ib700"));
        }
    }
}

/// A drive's place in the order in which the firmware tries them. A kernel that QEMU
/// loads is the first, and no two may be.
fn boot_index(spec: &MachineSpec, drive: usize) -> usize {
    match spec.boot {
        BootSpec::Kernel { .. } => drive + 1,
        BootSpec::Bios | BootSpec::Uefi { .. } => drive,
    }
}

pub(super) fn disks(args: &mut Args, inputs: &Inputs<'_>) {
    for (n, disk) in inputs.spec.disks.iter().enumerate() {
        let id = format!("disk{n}");
        // blockd may go and come back; its front end waits and connects again.
        let socket = Opts::new("socket").kv("id", &id).kv("path", disk.socket.display());
        args.opts("-chardev", socket.kv("reconnect", 1));
        let device = place::virtio(inputs.spec, "vhost-user-blk", Device::Disk(n));
        let device = device.kv("chardev", &id).kv("num-queues", disk.queues);
        args.device(device.kv("bootindex", boot_index(inputs.spec, n)));
    }
}

/// Drives on virtio-scsi: Debian's cloud kernel has no AHCI, and both firmwares boot
/// from it.
pub(super) fn cdroms(args: &mut Args, inputs: &Inputs<'_>) {
    let spec = inputs.spec;
    if spec.cdroms.is_empty() {
        return;
    }
    args.device(place::virtio(spec, "virtio-scsi", Device::Scsi).kv("id", "scsi0"));
    for (n, fd) in inputs.fds.cdroms.iter().enumerate() {
        let file = args.add_fd(*fd);
        let node = format!("cdrom{n}");
        let drive = Opts::of("driver", "file").kv("node-name", &node).kv("filename", file);
        args.opts("-blockdev", drive.kv("read-only", "on"));
        let cd = Opts::new("scsi-cd").kv("bus", "scsi0.0").kv("scsi-id", n).kv("drive", node);
        args.device(cd.kv("bootindex", boot_index(spec, spec.disks.len() + n)));
    }
}

pub(super) fn nics(args: &mut Args, inputs: &Inputs<'_>) {
    let firmware_boot = inputs.spec.machine == Machine::Q35;
    for (n, (nic, fds)) in inputs.spec.nics.iter().zip(&inputs.fds.taps).enumerate() {
        let id = format!("net{n}");
        let tap = Opts::new("tap").kv("id", &id).kv("fd", fds.tap);
        args.opts(
            "-netdev",
            match fds.vhost {
                Some(fd) => tap.kv("vhost", "on").kv("vhostfd", fd),
                None => tap.kv("vhost", "off"),
            },
        );
        let device = place::virtio(inputs.spec, "virtio-net", Device::Nic(n));
        let device = device.kv("netdev", id).kv("mac", nic.mac);
        // No option ROM: it is a Debian package of its own, and network boot is not offered.
        args.device(device.kv_if(firmware_boot, "romfile", ""));
    }
}
