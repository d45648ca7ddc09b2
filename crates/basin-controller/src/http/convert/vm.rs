//! Virtual machines.

use basin_api::reference::Reference;
use basin_api::vm::{
    Boot, Disk, Failure, FailurePolicy, Hardware, Machine, MigratingDisk, Migration, Nic,
    OnFailure, Qemu, State, Status, Vm, Wanted,
};
use basin_api::volume::VolumeFormat;
use basin_model::vm as model;
use basin_model::{ImageId, VmId, VolumeId};
use basin_store::records::Versioned;

use super::{meta, reference, volume};
use crate::app::inventory::Snapshot;
use crate::intake::vm_patch::cpu_model_word;

pub fn vm(record: &Versioned<model::Vm>, snapshot: &Snapshot) -> Vm {
    let vm = &record.value;
    let seen = snapshot.vm_statuses.get(&vm.id);
    Vm {
        // Of what is wanted only: a status that changes must not refuse an edit.
        meta: meta(vm.id, &vm.meta, record.revision),
        hardware: hardware(&vm.spec, snapshot),
        disks: vm.spec.disks.iter().map(|d| disk(d, snapshot)).collect(),
        cdroms: vm.spec.cdroms.iter().map(|c| image(c.image, snapshot)).collect(),
        nics: vm.spec.nics.iter().map(|n| nic(n, snapshot)).collect(),
        policy: FailurePolicy {
            guest_crash: on_failure(vm.spec.policy.guest_crash),
            machine_death: on_failure(vm.spec.policy.machine_death),
        },
        cloud_init: vm.spec.cloud_init.is_some(),
        wanted: match vm.run.power {
            model::Power::Running => Wanted::Running,
            model::Power::Paused => Wanted::Paused,
            model::Power::Off { .. } => Wanted::Off,
        },
        status: status(vm, seen.map(|s| &s.value), snapshot),
        migration: vm.migration.as_ref().map(|m| migration(m, snapshot)),
    }
}

fn migration(migration: &model::Migration, snapshot: &Snapshot) -> Migration {
    let disk = |(volume, moved): (&VolumeId, &model::MovedDisk)| {
        let datastore = snapshot.datastores.get(&moved.datastore);
        MigratingDisk {
            volume: reference(*volume, snapshot.volumes.get(volume).map(|v| &v.value.meta.name)),
            datastore: reference(moved.datastore, datastore.map(|d| &d.value.meta.name)),
        }
    };
    let to = snapshot.hosts.get(&migration.to).map(|h| &h.value.meta.name);
    Migration {
        to: reference(migration.to, to),
        task: migration.task.to_string(),
        disks: migration.disks.iter().map(disk).collect(),
    }
}

fn hardware(spec: &model::VmSpec, snapshot: &Snapshot) -> Hardware {
    Hardware {
        vcpus: spec.vcpus.0,
        memory_bytes: spec.memory.get(),
        cpu_model: cpu_model_word(&spec.cpu_model),
        machine: match spec.machine {
            model::Machine::Q35 => Machine::Q35,
            model::Machine::Microvm => Machine::Microvm,
        },
        boot: match &spec.boot {
            model::Boot::Bios => Boot::Bios,
            model::Boot::Uefi => Boot::Uefi,
            model::Boot::Kernel { kernel, initrd, command_line } => Boot::Kernel {
                kernel: name_or_id(*kernel, snapshot),
                initrd: initrd.map(|i| name_or_id(i, snapshot)),
                command_line: command_line.clone(),
            },
        },
    }
}

fn image(id: ImageId, snapshot: &Snapshot) -> Reference {
    reference(id, snapshot.images.get(&id).map(|i| &i.value.meta.name))
}

fn name_or_id(id: ImageId, snapshot: &Snapshot) -> String {
    image(id, snapshot).name.unwrap_or_else(|| id.to_string())
}

fn disk(disk: &model::Disk, snapshot: &Snapshot) -> Disk {
    let found = snapshot.volumes.get(&disk.volume).map(|v| &v.value);
    Disk {
        volume: reference(disk.volume, found.map(|v| &v.meta.name)),
        size_bytes: found.map_or(0, |v| v.size.get()),
        format: found.map_or(VolumeFormat::Raw, |v| volume::format(v.format)),
        read_only: disk.read_only,
        serial: disk.serial.clone(),
        delete_with_vm: disk.delete_with_vm,
    }
}

fn nic(nic: &model::Nic, snapshot: &Snapshot) -> Nic {
    Nic {
        id: nic.id.to_string(),
        network: reference(
            nic.network,
            snapshot.networks.get(&nic.network).map(|n| &n.value.meta.name),
        ),
        mac: nic.mac.to_string(),
        address: nic.address.to_string(),
    }
}

fn on_failure(choice: model::OnFailure) -> OnFailure {
    match choice {
        model::OnFailure::Restart => OnFailure::Restart,
        model::OnFailure::Stop => OnFailure::Stop,
        model::OnFailure::Leave => OnFailure::Leave,
    }
}

/// What the VM is doing, as far as its server has said.
pub fn state(id: VmId, snapshot: &Snapshot) -> State {
    let moves = snapshot.vms.get(&id).is_some_and(|vm| vm.value.migration.is_some());
    match snapshot.vm_statuses.get(&id).map(|s| &s.value.phase) {
        None => State::Stopped,
        Some(phase) => match phase {
            model::Phase::Stopped => State::Stopped,
            model::Phase::Starting => State::Starting,
            model::Phase::Running | model::Phase::Paused if moves => State::Migrating,
            model::Phase::Running => State::Running,
            model::Phase::Paused => State::Paused,
            model::Phase::ShuttingDown { .. } => State::ShuttingDown,
            model::Phase::Crashed => State::Crashed,
            model::Phase::BackingOff { .. } => State::BackingOff,
            model::Phase::Failed => State::Failed,
        },
    }
}

/// The state as the API spells it.
pub const fn state_word(state: State) -> &'static str {
    match state {
        State::Stopped => "stopped",
        State::Starting => "starting",
        State::Running => "running",
        State::Migrating => "migrating",
        State::Paused => "paused",
        State::ShuttingDown => "shutting_down",
        State::Crashed => "crashed",
        State::BackingOff => "backing_off",
        State::Failed => "failed",
    }
}

fn status(vm: &model::Vm, seen: Option<&model::VmStatus>, snapshot: &Snapshot) -> Status {
    let host = vm.placement.map(|p| p.host);
    Status {
        state: state(vm.id, snapshot),
        since: seen.map(|s| s.since.to_string()),
        host: host.map(|id| reference(id, snapshot.hosts.get(&id).map(|h| &h.value.meta.name))),
        generation: vm.placement.map_or(0, |p| p.generation.0),
        failures: seen.map_or(0, |s| s.failures),
        last_failure: seen.and_then(|s| s.last_failure.as_ref()).map(failure),
        qemu: seen.and_then(|s| s.qemu.as_ref()).map(|q| Qemu {
            pid: q.pid,
            version: q.version.clone(),
            accelerator: q.accelerator.clone(),
            started_at: q.started_at.to_string(),
        }),
        usage: None,
    }
}

fn failure(failure: &model::Failure) -> Failure {
    let kind = match failure.kind {
        model::FailureKind::GuestPanic => "guest_panic",
        model::FailureKind::Watchdog => "watchdog",
        model::FailureKind::MachineDied => "machine_died",
        model::FailureKind::StartFailed => "start_failed",
    };
    Failure { at: failure.at.to_string(), kind: kind.to_owned(), message: failure.message.clone() }
}
