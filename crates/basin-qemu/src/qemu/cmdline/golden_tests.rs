//! The command lines as they are, one file each. `BASIN_BLESS=1` writes them anew.

use std::path::{Path, PathBuf};

use basin_model::hardware::MachineVersion;
use basin_model::vm::{CpuModel, Machine};
use basin_model::{Bytes, Generation, Vcpus, VmId};

use super::{Accelerator, Fds, Inputs, TapFds, arguments};
use crate::engine::{BootSpec, CdromSpec, DiskSpec, MachineSpec, NicSpec};
use crate::hardware::{Flash, Hardware};

fn spec(machine: Machine, boot: BootSpec, disks: usize, nics: usize, cdroms: usize) -> MachineSpec {
    MachineSpec {
        vm: "0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d11".parse::<VmId>().unwrap(),
        generation: Generation(3),
        name: "web,1".to_owned(),
        vcpus: Vcpus(2),
        memory: Bytes::mib(512),
        cpu_model: CpuModel::Auto,
        machine,
        machine_version: None,
        boot,
        disks: (0..disks)
            .map(|n| DiskSpec { socket: format!("/run/b/{n}.sock").into(), queues: 2 })
            .collect(),
        cdroms: (0..cdroms).map(|n| CdromSpec { path: format!("/iso/{n}").into() }).collect(),
        nics: (0..nics)
            .map(|n| NicSpec { mac: format!("52:54:00:00:00:{n:02x}").parse().unwrap() })
            .collect(),
    }
}

fn kernel(command_line: &str) -> BootSpec {
    let initrd = Some("/images/i".into());
    BootSpec::Kernel { kernel: "/images/k".into(), initrd, command_line: command_line.to_owned() }
}

fn uefi() -> BootSpec {
    BootSpec::Uefi { vars: "/vms/x/nvram.fd".into() }
}

fn line(spec: &MachineSpec, accelerator: Accelerator, vhost: bool) -> Result<String, String> {
    let newest = MachineVersion { major: 7, minor: 2 };
    let flash = Some(Flash { code: Bytes::kib(3653), vars: Bytes::kib(528) });
    let hardware = Hardware::choose(spec, accelerator.as_str(), newest, flash);
    line_of(spec, &hardware, accelerator, vhost, false)
}

fn line_of(
    spec: &MachineSpec,
    hardware: &Hardware,
    accelerator: Accelerator,
    vhost: bool,
    incoming: bool,
) -> Result<String, String> {
    let has_kernel = matches!(spec.boot, BootSpec::Kernel { .. });
    let fds = Fds {
        qmp: 10,
        serial: 11,
        agent: 12,
        console_log: 13,
        nvram: matches!(spec.boot, BootSpec::Uefi { .. }).then_some(14),
        kernel: has_kernel.then_some(15),
        initrd: has_kernel.then_some(16),
        cdroms: (0..spec.cdroms.len()).map(|n| 20 + n as i32).collect(),
        taps: (0..spec.nics.len() as i32)
            .map(|n| TapFds { tap: 30 + n, vhost: vhost.then_some(40 + n) })
            .collect(),
    };
    let uefi_code = Some(PathBuf::from("/usr/share/OVMF/OVMF_CODE_4M.fd"));
    let tsc_khz = Some(2_600_000);
    let inputs = Inputs { spec, hardware, incoming, accelerator, tsc_khz, uefi_code, fds: &fds };
    let mut text = String::new();
    for arg in arguments(&inputs)? {
        text.push_str(if arg.starts_with('-') && !text.is_empty() { "\n" } else { " " });
        text.push_str(&arg);
    }
    Ok(text.trim_start().to_owned() + "\n")
}

fn check(name: &str, spec: &MachineSpec, accelerator: Accelerator, vhost: bool) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.args"));
    let actual = line(spec, accelerator, vhost).unwrap();
    if std::env::var_os("BASIN_BLESS").is_some() {
        std::fs::write(&path, &actual).unwrap();
    }
    let expect = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expect, "{name}: run with BASIN_BLESS=1 if this is meant");
}

#[test]
fn command_lines() {
    use Accelerator::{Kvm, Tcg};
    use Machine::{Microvm, Q35};
    check("q35-bios-bare", &spec(Q35, BootSpec::Bios, 0, 0, 0), Tcg, false);
    check("q35-bios-full", &spec(Q35, BootSpec::Bios, 2, 2, 2), Kvm, true);
    check("q35-bios-crowded", &spec(Q35, BootSpec::Bios, 18, 9, 0), Kvm, false);
    check("q35-uefi", &spec(Q35, uefi(), 1, 1, 1), Kvm, true);
    check("q35-kernel", &spec(Q35, kernel("console=ttyS0"), 1, 1, 0), Tcg, false);
    check("microvm-tcg", &spec(Microvm, kernel("console=ttyS0"), 2, 2, 1), Tcg, false);
    check("microvm-kvm", &spec(Microvm, kernel(""), 1, 0, 0), Kvm, false);
    let mut named = spec(Q35, BootSpec::Bios, 0, 0, 0);
    named.cpu_model = CpuModel::Named("EPYC-v3".to_owned());
    check("q35-named-cpu", &named, Tcg, false);
    let mut fixed = spec(Q35, BootSpec::Bios, 1, 0, 0);
    fixed.cpu_model = CpuModel::Named("Skylake-Server-v5".to_owned());
    fixed.machine_version = Some(MachineVersion::new(7, 2));
    check("q35-fixed", &fixed, Kvm, false);
}

#[test]
fn machines_that_cannot_be_are_refused() {
    let check = |spec: MachineSpec, expect: &str| {
        let error = line(&spec, Accelerator::Tcg, false).unwrap_err();
        assert!(error.contains(expect), "{error}");
    };
    check(spec(Machine::Microvm, BootSpec::Bios, 0, 0, 0), "boots a kernel directly");
    check(spec(Machine::Microvm, uefi(), 0, 0, 0), "boots a kernel directly");
    check(spec(Machine::Microvm, kernel(""), 15, 6, 0), "microvm for 20 together");
    check(spec(Machine::Q35, BootSpec::Bios, 65, 0, 0), "65 disks");
    let mut bad = spec(Machine::Q35, BootSpec::Bios, 0, 0, 0);
    bad.cpu_model = CpuModel::Named("host,+vmx".to_owned());
    check(bad, "not the name of a CPU model");
}

#[test]
fn an_operator_knows_the_tsc_better() {
    let line =
        line(&spec(Machine::Microvm, kernel("tsc_early_khz=1"), 0, 0, 0), Accelerator::Tcg, false)
            .unwrap();
    assert!(line.contains("-append tsc_early_khz=1\n"), "{line}");
}

#[test]
fn emulation_never_thinks_that_it_is_alone() {
    let check = |vcpus, accelerator, expect: &str| {
        let mut spec = spec(Machine::Q35, BootSpec::Bios, 0, 0, 0);
        spec.vcpus = basin_model::Vcpus(vcpus);
        let line = line(&spec, accelerator, false).unwrap();
        assert!(line.contains(&format!("-smp {expect}\n")), "{line}");
    };
    check(1, Accelerator::Tcg, "cpus=1,maxcpus=2");
    check(4, Accelerator::Tcg, "cpus=4,maxcpus=4");
    check(1, Accelerator::Kvm, "cpus=1,maxcpus=1");
}

#[test]
fn no_two_devices_share_a_place() {
    for (machine, disks, nics) in
        [(Machine::Q35, 64, 32), (Machine::Q35, 17, 8), (Machine::Microvm, 10, 10)]
    {
        let text = line(&spec(machine, kernel(""), disks, nics, 1), Accelerator::Kvm, false);
        let mut seen = std::collections::HashSet::new();
        for line in text.unwrap().lines().filter(|l| l.starts_with("-device")) {
            let addr = |key: &str| line.split(',').find(|part| part.starts_with(key));
            let place = addr("addr=").or(addr("bus=virtio-mmio"));
            assert!(place.is_none_or(|place| seen.insert(place.to_owned())), "{line}");
        }
    }
}

#[test]
fn a_target_is_its_source_and_waits() {
    let spec = spec(Machine::Q35, uefi(), 1, 1, 1);
    let older = MachineVersion { major: 7, minor: 2 };
    let flash = Some(Flash { code: Bytes::kib(3653), vars: Bytes::kib(528) });
    let mut hardware = Hardware::choose(&spec, "tcg", older, flash);
    let line =
        |hardware: &Hardware, incoming| line_of(&spec, hardware, Accelerator::Tcg, true, incoming);
    let source = line(&hardware, false).unwrap();
    let target = line(&hardware, true).unwrap();
    assert_eq!(target, source + "-incoming defer\n");
    // Of an older Basin, which did not choose the memory's size.
    (hardware.ram, hardware.described) = (spec.memory, true);
    let target = line(&hardware, true).unwrap();
    assert!(target.contains("-m size=536870912B") && !target.contains("vmdesc"), "{target}");
    hardware.machine = "pc-q35-7.2,kernel-irqchip=off".to_owned();
    assert!(line(&hardware, true).unwrap_err().contains("no names"));
}
