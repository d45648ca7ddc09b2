//! Pure. What a guest has in its hands from its power-on to its power-off.
//!
//! A guest that moves to another QEMU must find the same machine there: QEMU compares
//! names and sizes only, and a guest notices the rest by crashing. So everything that a
//! server chose by itself at the launch is written down here and goes along.

use basin_model::hardware::MachineVersion;
use basin_model::vm::{CpuModel, Machine as MachineType};
use basin_model::{Bytes, Vcpus};
use serde::{Deserialize, Serialize};

use crate::engine::{BootSpec, MachineSpec};

/// What the engine made of a specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// QEMU's name with the version in it: `pc-q35-7.2`.
    pub machine: String,
    /// QEMU's name of the CPU model.
    pub cpu: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// The guest's memory as QEMU has it.
    pub ram: Bytes,
    /// Vcpus there is room for.
    pub max_vcpus: Vcpus,
    /// With UEFI.
    pub flash: Option<Flash>,
    /// QEMU describes its devices at the end of a migration's stream, after the word that
    /// lets the target run the guest. Not where Basin chooses (decision 0123).
    #[serde(default)]
    pub described: bool,
    /// Which of Basin's placements of devices: see [`Hardware::LAYOUT`].
    pub layout: u32,
}

/// Sizes of the UEFI firmware and of its variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flash {
    pub code: Bytes,
    pub vars: Bytes,
}

/// QEMU looks for dirty memory 64 pages at a time where all of the memory divides by that.
const DIRTY_WORD: Bytes = Bytes::kib(256);
/// What is added so that it does not divide; firmware counts memory in these.
const ODD: Bytes = Bytes::kib(64);

impl Hardware {
    /// Where devices sit on their buses. A change of `cmdline/` that moves a device, or
    /// adds one, makes a new layout and keeps the old for who has it.
    pub const LAYOUT: u32 = 1;

    /// For a new start.
    pub fn choose(
        spec: &MachineSpec,
        accelerator: &str,
        newest: MachineVersion,
        flash: Option<Flash>,
    ) -> Hardware {
        let emulated = accelerator == "tcg";
        let machine = match spec.machine {
            MachineType::Q35 => format!("pc-q35-{}", spec.machine_version.unwrap_or(newest)),
            MachineType::Microvm => "microvm".to_owned(),
        };
        Hardware {
            machine,
            cpu: cpu_model(&spec.cpu_model, emulated).to_owned(),
            accelerator: accelerator.to_owned(),
            ram: if emulated { dirty_tracked(spec.memory) } else { spec.memory },
            max_vcpus: max_vcpus(spec.vcpus, emulated),
            flash: flash.filter(|_| matches!(spec.boot, BootSpec::Uefi { .. })),
            described: false,
            layout: Self::LAYOUT,
        }
    }

    /// Of a machine that an older Basin started, from the arguments of its process.
    pub fn of_process(
        spec: &MachineSpec,
        accelerator: &str,
        version: MachineVersion,
        flash: Option<Flash>,
        arguments: &[String],
    ) -> Hardware {
        let mut hardware = Hardware::choose(spec, accelerator, version, flash);
        let after = |flag: &str| {
            let mut words = arguments.iter().skip_while(|word| *word != flag);
            words.nth(1).map(String::as_str)
        };
        let option = |flag: &str, key: &str| {
            let mut parts = after(flag)?.split(',');
            parts.find_map(|part| part.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
        };
        if let Some(ram) =
            option("-m", "size").and_then(|size| size.trim_end_matches('B').parse().ok().map(Bytes))
        {
            hardware.ram = ram;
        }
        let most = option("-smp", "maxcpus").and_then(|most| most.parse().ok().map(Vcpus));
        hardware.max_vcpus = most.unwrap_or(spec.vcpus);
        hardware.described = option("-machine", "suppress-vmdesc").is_none_or(|off| off != "on");
        hardware
    }

    /// Whether a machine with this specification can be this hardware, for a target.
    pub fn fits(&self, spec: &MachineSpec) -> Result<(), String> {
        let q35 = self.machine.starts_with("pc-q35-");
        let plain =
            |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !plain(&self.machine) || !plain(&self.cpu) {
            return Err("the names in the guest's hardware are no names".to_owned());
        }
        if q35 != (spec.machine == MachineType::Q35) {
            return Err(format!("the guest runs on {}, not on {:?}", self.machine, spec.machine));
        }
        if self.ram < spec.memory || self.ram > spec.memory + DIRTY_WORD {
            return Err(format!("the guest has {} and not {}", self.ram, spec.memory));
        }
        if self.max_vcpus < spec.vcpus {
            return Err(format!("the guest has {} vCPUs at most", self.max_vcpus.0));
        }
        if self.flash.is_some() != matches!(spec.boot, BootSpec::Uefi { .. }) {
            return Err("the guest has another firmware than its specification".to_owned());
        }
        if self.layout > Self::LAYOUT {
            return Err("the guest was started by a newer Basin".to_owned());
        }
        Ok(())
    }
}

/// The CPU the guest sees (decision 0022).
fn cpu_model(wanted: &CpuModel, emulated: bool) -> &str {
    match wanted {
        CpuModel::Named(name) => name,
        CpuModel::Auto if emulated => "Nehalem",
        CpuModel::Auto => "host",
    }
}

/// Room for a second vCPU under emulation: QEMU 7.2 leaves out a guest's memory barriers
/// where there can never be more than one, although its own threads and blockd run beside
/// that one. Then virtio notifications get lost, and a device stands still for ever.
fn max_vcpus(Vcpus(vcpus): Vcpus, emulated: bool) -> Vcpus {
    Vcpus(if emulated { vcpus.max(2) } else { vcpus })
}

/// Memory in which no write is missed by a migration (decision 0120): emulation in QEMU
/// before 8.2.2 loses writes where the size divides by [`DIRTY_WORD`].
fn dirty_tracked(memory: Bytes) -> Bytes {
    if memory.is_multiple_of(DIRTY_WORD) { memory + ODD } else { memory }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basin_model::{Generation, VmId};

    fn spec() -> MachineSpec {
        MachineSpec {
            vm: "0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d11".parse::<VmId>().unwrap(),
            generation: Generation(3),
            name: "x".to_owned(),
            vcpus: Vcpus(1),
            memory: Bytes::mib(512),
            cpu_model: CpuModel::Auto,
            machine: MachineType::Q35,
            machine_version: None,
            boot: BootSpec::Bios,
            disks: vec![],
            cdroms: vec![],
            nics: vec![],
        }
    }

    const NEWEST: MachineVersion = MachineVersion { major: 9, minor: 1 };

    #[test]
    fn what_a_server_chooses_is_written_down() {
        let hardware = Hardware::choose(&spec(), "tcg", NEWEST, None);
        assert_eq!(hardware.machine, "pc-q35-9.1");
        assert_eq!((hardware.cpu.as_str(), hardware.max_vcpus), ("Nehalem", Vcpus(2)));
        assert_eq!(hardware.ram, Bytes::mib(512) + Bytes::kib(64));
        hardware.fits(&spec()).unwrap();
        let older = MachineSpec { machine_version: Some("7.2".parse().unwrap()), ..spec() };
        let hardware = Hardware::choose(&older, "kvm", NEWEST, None);
        assert_eq!(hardware.machine, "pc-q35-7.2");
        assert_eq!((hardware.ram, hardware.max_vcpus), (Bytes::mib(512), Vcpus(1)));
        hardware.fits(&older).unwrap();
        let named = "host,+vmx".to_owned();
        assert!(Hardware { cpu: named, ..hardware.clone() }.fits(&older).is_err());
        assert!(Hardware { layout: 99, ..hardware.clone() }.fits(&older).is_err());
        assert!(Hardware { ram: Bytes::mib(256), ..hardware }.fits(&older).is_err());
    }

    #[test]
    fn an_older_process_tells_what_it_has() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let check = |text: &str, ram: Bytes, most: u32| {
            let hardware = Hardware::of_process(&spec(), "tcg", NEWEST, None, &words(text));
            assert_eq!((hardware.ram, hardware.max_vcpus.0), (ram, most), "{text}");
            assert_eq!(hardware.described, !text.contains("suppress-vmdesc=on"), "{text}");
            hardware.fits(&spec()).unwrap();
        };
        check("-smp cpus=1,maxcpus=2 -m size=536870912B", Bytes::mib(512), 2);
        check("-machine q35,suppress-vmdesc=on -m size=536936448B -smp 1", Bytes(536936448), 1);
    }
}
