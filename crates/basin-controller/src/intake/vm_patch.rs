//! Pure. Changes to a virtual machine.

use basin_api::vm::{self as api, VmPatch};
use basin_model::keys::Kind;
use basin_model::task::Problem;
use basin_model::vm::{Boot, CpuModel, Machine, Phase, Power, Vm};
use basin_store::records::{TxnBuilder, Versioned};

use super::{Uses, meta, vm};
use crate::app::inventory::Snapshot;
use crate::app::problems;

/// The VM after the change, and the transaction that makes it so.
pub fn patch(
    old: &Versioned<Vm>,
    patch: &VmPatch,
    snapshot: &Snapshot,
) -> Result<(Vm, TxnBuilder), Problem> {
    let mut new = old.value.clone();
    let change = meta::Change {
        name: patch.name.as_deref(),
        description: patch.description.as_deref(),
        labels: &patch.labels,
    };
    let (meta, mut txn) = meta::change((Kind::Vm, new.id), &snapshot.vms, &old.value.meta, change)?;
    new.meta = meta;
    if let Some(policy) = patch.policy {
        new.spec.policy = vm::policy(policy);
    }
    let mut uses = Uses::default();
    hardware(&mut new, patch, snapshot, &mut uses)?;
    if new.spec != old.value.spec {
        let hardware_changed = {
            let mut same_policy = new.spec.clone();
            same_policy.policy = old.value.spec.policy;
            same_policy != old.value.spec
        };
        if hardware_changed && !is_stopped(&old.value, snapshot) {
            let advice = "Shut it down, change it, start it again.";
            return Err(problems::wrong_state("vm", &new.meta.name, "not stopped", advice));
        }
    }
    txn = txn.and(uses.into_txn()).replace(old, &new);
    Ok((new, txn))
}

fn hardware(
    new: &mut Vm,
    patch: &VmPatch,
    snapshot: &Snapshot,
    uses: &mut Uses,
) -> Result<(), Problem> {
    if let Some(n) = patch.vcpus {
        new.spec.vcpus = vm::vcpus(n)?;
    }
    if let Some(bytes) = patch.memory_bytes {
        new.spec.memory = vm::memory(bytes)?;
    }
    if let Some(model) = &patch.cpu_model {
        new.spec.cpu_model = vm::cpu_model(Some(model))?;
    }
    let machine = match new.spec.machine {
        Machine::Q35 => api::Machine::Q35,
        Machine::Microvm => api::Machine::Microvm,
    };
    if let Some(boot) = &patch.boot {
        new.spec.boot = vm::boot(boot, machine, snapshot, uses)?;
    }
    if let Some(cdroms) = &patch.cdroms {
        new.spec.cdroms = vm::cdroms(cdroms, snapshot, uses)?;
        if machine == api::Machine::Microvm && !cdroms.is_empty() {
            return Err(problems::invalid("cdroms: a microvm has no CD-ROM drive"));
        }
    }
    Ok(())
}

/// Neither wanted nor seen to be anything but off.
pub fn is_stopped(vm: &Vm, snapshot: &Snapshot) -> bool {
    let off = match vm.run.power {
        Power::Off { .. } => true,
        // A guest that shut itself down ended the epoch; it is off until asked again.
        Power::Running | Power::Paused => {
            snapshot.vm_statuses.get(&vm.id).is_some_and(|s| s.value.ended_epoch >= vm.run.epoch)
        }
    };
    let quiet = |phase: &Phase| matches!(phase, Phase::Stopped | Phase::Failed);
    off && snapshot.vm_statuses.get(&vm.id).is_none_or(|s| quiet(&s.value.phase))
}

/// What the API shows for a model.
pub fn cpu_model_word(model: &CpuModel) -> String {
    match model {
        CpuModel::Auto => "auto".to_owned(),
        CpuModel::Named(name) => name.clone(),
    }
}

/// The images that a VM boots from or has in its drives.
pub fn images_of(vm: &Vm) -> impl Iterator<Item = basin_model::ImageId> {
    let boot = match &vm.spec.boot {
        Boot::Kernel { kernel, initrd, .. } => [Some(*kernel), *initrd],
        Boot::Bios | Boot::Uefi => [None, None],
    };
    let cdroms: Vec<_> = vm.spec.cdroms.iter().map(|c| c.image).collect();
    boot.into_iter().flatten().chain(cdroms)
}
