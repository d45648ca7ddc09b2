//! Pure. The guest: whether it can move at all, and whether it finds there what it sees here.

use basin_model::hardware::{GuestHardware, HardwareFacts, MachineVersion};
use basin_model::vm::Machine;

use super::{Activity, How, MovingVm, Obstacle, Site};

/// What prevents any move.
pub fn itself(vm: &MovingVm) -> Vec<Obstacle> {
    let mut found = Vec::new();
    if let Some(what) = &vm.held_by {
        found.push(Obstacle::HeldBy { what: what.clone() });
    }
    match &vm.activity {
        Activity::Changing(what) => found.push(Obstacle::Changing { what: what.clone() }),
        Activity::Crashed => found.push(Obstacle::Crashed),
        Activity::Off | Activity::Running | Activity::Paused => {}
    }
    let devices = vm.passthrough.iter();
    found.extend(devices.map(|device| Obstacle::Passthrough { device: device.clone() }));
    if vm.how() == How::Live {
        found.extend(vm.disks.iter().filter_map(|disk| {
            let why = disk.stalled.clone()?;
            Some(Obstacle::DiskStalled { disk: disk.name.clone(), why })
        }));
    }
    found
}

/// Whether the target can give what the guest sees.
pub fn hardware(vm: &MovingVm, source: &Site, target: &Site, found: &mut Vec<Obstacle>) {
    match (&vm.hardware, &target.hardware) {
        (None, _) => found.push(Obstacle::HardwareUnknown),
        (Some(_), None) => {
            found.push(Obstacle::HardwareNotReported { server: target.name.clone() });
        }
        (Some(sees), Some(there)) if sees.class != there.class => {
            let (guest, there) = (sees.class.clone(), there.class.clone());
            found.push(Obstacle::ClassDiffers { guest, server: target.name.clone(), there });
        }
        (Some(sees), Some(there)) => {
            cpu(sees, source.hardware.as_ref(), target, there, found);
            q35(sees, target, there, found);
        }
    }
    qemu(vm, target, found);
}

fn cpu(
    sees: &GuestHardware,
    here: Option<&HardwareFacts>,
    target: &Site,
    there: &HardwareFacts,
    found: &mut Vec<Obstacle>,
) {
    if matches!(sees.cpu.as_str(), GuestHardware::HOST_CPU | "max") {
        found.push(Obstacle::HostCpu);
        return;
    }
    let (model, server) = (sees.cpu.clone(), target.name.clone());
    let Some(lacks) = there.cpus.missing(&model) else {
        found.push(Obstacle::CpuUnknown { model, server });
        return;
    };
    // A model that somebody named may be whole nowhere: QEMU then leaves out what it
    // cannot give, and it must leave out the same.
    let left_out = here.and_then(|here| here.cpus.missing(&model)).unwrap_or_default();
    let only_in = |these: &[&str], those: &[&str]| -> Vec<String> {
        these.iter().filter(|f| !those.contains(f)).map(|f| (*f).to_owned()).collect()
    };
    let (missing, new) = (only_in(&lacks, &left_out), only_in(&left_out, &lacks));
    if !missing.is_empty() {
        let (model, server) = (model.clone(), server.clone());
        found.push(Obstacle::CpuFeatures { model, server, missing });
    }
    if !new.is_empty() {
        found.push(Obstacle::CpuFeaturesAppear { model, server, new });
    }
}

fn q35(sees: &GuestHardware, target: &Site, there: &HardwareFacts, found: &mut Vec<Obstacle>) {
    if let Some(machine) = sees.machine_version
        && !there.q35.contains(&machine)
    {
        let (server, there) = (target.name.clone(), there.q35.clone());
        found.push(Obstacle::MachineUnknown { machine, server, there });
    }
}

/// A running machine's state is written by one release of QEMU and read by another.
fn qemu(vm: &MovingVm, target: &Site, found: &mut Vec<Obstacle>) {
    let (Some(running), Some(there)) = (&vm.qemu, &target.qemu) else { return };
    let series = |version: &str| version.parse::<MachineVersion>().ok();
    let (Some(runs), Some(receives)) = (series(running), series(there)) else { return };
    let (running, server, there) = (running.clone(), target.name.clone(), there.clone());
    let unversioned = vm.machine == Machine::Microvm
        || vm.hardware.as_ref().is_some_and(|sees| sees.machine_version.is_none());
    if unversioned && runs != receives {
        found.push(Obstacle::MachineUnversioned { running, server, there });
    } else if receives < runs {
        found.push(Obstacle::QemuOlder { running, server, there });
    }
}
