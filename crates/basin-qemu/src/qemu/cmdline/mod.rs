//! Pure. From a machine's specification to QEMU's command line.
//!
//! Each part of the machine has a function of its own that appends to the arguments, so
//! that what comes later (incoming migration, hot-plug ports, NBD disks) is one more
//! part. A place on the bus depends on a device's kind and position only: a disk added
//! later never renames a guest's network interfaces.

mod args;
mod devices;
mod place;

#[cfg(test)]
mod golden_tests;

use std::path::PathBuf;

use basin_model::vm::Machine;

use crate::engine::{BootSpec, MachineSpec};
use crate::hardware::Hardware;
use args::{Args, Opts};
pub use place::{MAX_DISKS, MAX_NICS};

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    Tcg,
}

impl Accelerator {
    pub const fn as_str(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

/// Open files the process inherits, by their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fds {
    /// Listening sockets.
    pub qmp: i32,
    pub serial: i32,
    pub agent: i32,
    /// Open for appending.
    pub console_log: i32,
    /// Open for reading and writing, with [`BootSpec::Uefi`].
    pub nvram: Option<i32>,
    pub kernel: Option<i32>,
    pub initrd: Option<i32>,
    pub cdroms: Vec<i32>,
    pub taps: Vec<TapFds>,
}

/// A tap and, where the kernel has one, the vhost worker for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapFds {
    pub tap: i32,
    pub vhost: Option<i32>,
}

/// Everything the command line depends on.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub spec: &'a MachineSpec,
    pub hardware: &'a Hardware,
    /// The guest comes from another QEMU.
    pub incoming: bool,
    pub accelerator: Accelerator,
    /// Ticks of the time stamp counter in a millisecond, for guests under emulation.
    pub tsc_khz: Option<u32>,
    /// OVMF's code, with [`BootSpec::Uefi`].
    pub uefi_code: Option<PathBuf>,
    pub fds: &'a Fds,
}

/// The arguments after the program's name, or why there is no such machine.
pub fn arguments(inputs: &Inputs<'_>) -> Result<Vec<String>, String> {
    refuse(inputs)?;
    let mut args = Args::default();
    process(&mut args, inputs);
    machine(&mut args, inputs);
    boot(&mut args, inputs);
    devices::control(&mut args, inputs);
    devices::platform(&mut args, inputs);
    devices::disks(&mut args, inputs);
    devices::cdroms(&mut args, inputs);
    devices::nics(&mut args, inputs);
    if inputs.incoming {
        // Listens when it is told to, with its key.
        args.raw("-incoming", "defer");
    }
    Ok(args.into_vec())
}

fn refuse(inputs: &Inputs<'_>) -> Result<(), String> {
    let spec = inputs.spec;
    if spec.machine == Machine::Microvm && !matches!(spec.boot, BootSpec::Kernel { .. }) {
        return Err("a microvm boots a kernel directly: give it one, or use q35".to_owned());
    }
    place::fits(spec)?;
    let name = &inputs.hardware.cpu;
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Err(format!("'{name}' is not the name of a CPU model"));
    }
    inputs.hardware.fits(spec)?;
    let (taps, nics) = (inputs.fds.taps.len(), spec.nics.len());
    if taps != nics {
        return Err(format!("{taps} taps were given for {nics} network interfaces"));
    }
    Ok(())
}

/// The process: what it may do, and how its guest's end is seen.
fn process(args: &mut Args, inputs: &Inputs<'_>) {
    let spec = inputs.spec;
    args.raw("-uuid", spec.vm);
    args.opts("-name", Opts::of("guest", &spec.name).kv("debug-threads", "on"));
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    args.raw("-display", "none");
    args.raw("-msg", "timestamp=on");
    let sandbox = Opts::new("on").kv("obsolete", "deny").kv("elevateprivileges", "deny");
    args.opts("-sandbox", sandbox.kv("spawn", "deny").kv("resourcecontrol", "deny"));
    // A guest's end stops the vCPUs and keeps the process: a daemon that was away finds
    // out how the guest ended when it is back.
    let action = Opts::of("reboot", "reset").kv("shutdown", "pause").kv("panic", "pause");
    args.opts("-action", action.kv("watchdog", "pause"));
}

/// CPU, memory and chipset.
fn machine(args: &mut Args, inputs: &Inputs<'_>) {
    let spec = inputs.spec;
    let hardware = inputs.hardware;
    let machine = Opts::new(&hardware.machine);
    let machine = match spec.machine {
        // graphics=off brings the firmware's output to the serial line.
        Machine::Q35 => machine.kv("vmport", "off").kv("graphics", "off"),
        // acpi: virtio-mmio devices are found without a kernel parameter, and the guest
        // can be powered off. pit and pic are legacy no ACPI kernel needs.
        Machine::Microvm => machine
            .kv("acpi", "on")
            .kv("rtc", "on")
            .kv("pit", "off")
            .kv("pic", "off")
            .kv("ioapic2", "on")
            .kv("isa-serial", "on")
            .kv("auto-kernel-cmdline", "on"),
    };
    let machine = machine.kv("memory-backend", "ram").kv("dump-guest-core", "off");
    // The last byte of a migration is then the one that lets the target run the guest: a
    // source that fails before it has sent that byte knows that the guest is its own.
    let machine = if hardware.described { machine } else { machine.kv("suppress-vmdesc", "on") };
    args.opts("-machine", machine);
    args.raw("-accel", accelerator(inputs.accelerator));
    args.raw("-cpu", &hardware.cpu);
    args.raw("-smp", format!("cpus={},maxcpus={}", spec.vcpus, hardware.max_vcpus));
    let size = format!("{}B", hardware.ram.get());
    args.opts("-m", Opts::of("size", &size));
    // Shared: blockd maps the guest's memory to serve its disks.
    let ram = Opts::new("memory-backend-memfd").kv("id", "ram").kv("size", &size);
    args.opts("-object", ram.kv("share", "on"));
    args.raw("-rtc", "base=utc");
    if spec.machine == Machine::Microvm {
        // virtio 1, as on PCI, not its draft.
        args.raw("-global", "virtio-mmio.force-legacy=false");
    }
    if spec.machine == Machine::Q35 {
        let smbios = Opts::of("type", 1).kv("manufacturer", "Basin").kv("product", "Basin VM");
        args.opts("-smbios", smbios.kv("serial", spec.vm).kv("uuid", spec.vm));
        // A suspended guest looks dead to everything around it.
        args.raw("-global", "ICH9-LPC.disable_s3=1");
        args.raw("-global", "ICH9-LPC.disable_s4=1");
    }
}

/// Translated code is kept in at most 256 MiB: QEMU's own default is 1 GiB beside the
/// guest's memory, and a guest boots no faster with it (placement counts on this).
fn accelerator(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg,tb-size=256",
    }
}

fn boot(args: &mut Args, inputs: &Inputs<'_>) {
    match &inputs.spec.boot {
        BootSpec::Bios => args.raw("-boot", "strict=on"),
        BootSpec::Uefi { .. } => {
            args.raw("-boot", "strict=on");
            if let (Some(code), Some(fd)) = (&inputs.uefi_code, inputs.fds.nvram) {
                let vars = args.add_fd(fd);
                let code = Opts::of("driver", "file").kv("filename", code.display());
                args.opts("-blockdev", code.kv("node-name", "uefi-code").kv("read-only", "on"));
                let vars = Opts::of("driver", "file").kv("filename", vars);
                args.opts("-blockdev", vars.kv("node-name", "uefi-vars"));
                let flash = Opts::of("pflash0", "uefi-code").kv("pflash1", "uefi-vars");
                args.opts("-machine", flash);
            }
        }
        BootSpec::Kernel { command_line, .. } => {
            let fd_path = |fd: i32| format!("/proc/self/fd/{fd}");
            if let Some(fd) = inputs.fds.kernel {
                args.raw("-kernel", fd_path(fd));
            }
            if let Some(fd) = inputs.fds.initrd {
                args.raw("-initrd", fd_path(fd));
            }
            let command_line = kernel_command_line(command_line, inputs);
            if !command_line.is_empty() {
                args.raw("-append", command_line);
            }
        }
    }
}

/// A microvm has no timer to measure the time stamp counter against; under emulation
/// Linux at times waits for ever. Told the frequency, it does not measure.
fn kernel_command_line(wanted: &str, inputs: &Inputs<'_>) -> String {
    let microvm = inputs.spec.machine == Machine::Microvm;
    match inputs.tsc_khz {
        Some(khz)
            if microvm
                && inputs.accelerator == Accelerator::Tcg
                && !wanted.contains("tsc_early_khz=") =>
        {
            format!("{wanted} tsc_early_khz={khz}").trim_start().to_owned()
        }
        _ => wanted.to_owned(),
    }
}
