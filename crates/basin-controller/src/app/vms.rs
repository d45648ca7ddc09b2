//! Virtual machines.

use basin_api::vm::{VmCreate, VmPatch};
use basin_model::keys::{self, Kind};
use basin_model::task::{Problem, Task};
use basin_model::vm::Vm;
use basin_sched::place::{overhead, place};
use basin_store::Revision;

use super::inventory::Snapshot;
use super::{App, holds, problems, space_check, unchanged, vm_power};
use crate::intake;
use crate::intake::reach::When;
use crate::intake::vm_patch::is_stopped;
use crate::workflows::vm_create::VmCreate as CreateFlow;
use crate::workflows::vm_delete::VmDelete;

impl App {
    /// Makes a VM and the volumes that are to be made for it, and starts it if asked.
    pub async fn create_vm(&self, request: &VmCreate) -> Result<Task, Problem> {
        let capacities = self.capacities().await;
        self.start(|snapshot, mint| {
            let draft = intake::vm::create(request, snapshot, mint)?;
            fits(&draft.vm, request.start, snapshot)?;
            space_check(&draft.volumes, &capacities, snapshot)?;
            Ok((CreateFlow::new(draft.vm, draft.volumes, request.start), draft.txn))
        })
        .await
    }

    /// Changes a VM. `expected` is the revision that the caller read.
    pub async fn patch_vm(
        &self,
        reference: &str,
        patch: &VmPatch,
        expected: Option<Revision>,
    ) -> Result<Vm, Problem> {
        self.commit(|snapshot, _| {
            let old = snapshot.vm(reference)?;
            unchanged(old, expected)?;
            holds::free(&old.value, snapshot)?;
            let (vm, txn) = intake::vm_patch::patch(old, patch, snapshot)?;
            fits(&vm, false, snapshot)?;
            Ok((vm, txn.require_absent(keys::lock(Kind::Vm, old.value.id))))
        })
        .await
    }

    /// Deletes a VM with the volumes that were made for it, unless they are to stay.
    pub async fn delete_vm(
        &self,
        reference: &str,
        force: bool,
        keep_disks: bool,
        expected: Option<Revision>,
    ) -> Result<Task, Problem> {
        self.start(|snapshot, _| {
            let vm = snapshot.vm(reference)?;
            unchanged(vm, expected)?;
            holds::free(&vm.value, snapshot)?;
            if !force && !is_stopped(&vm.value, snapshot) {
                let advice = "Shut it down first, or delete it with force.";
                return Err(problems::wrong_state(
                    "vm",
                    &vm.value.meta.name,
                    "not stopped",
                    advice,
                ));
            }
            Ok(VmDelete::new(vm, keep_disks))
        })
        .await
    }
}

/// Refuses a VM that no server has room for: now, or if it were empty.
fn fits(vm: &Vm, now: bool, snapshot: &Snapshot) -> Result<(), Problem> {
    let mut candidates = vm_power::candidates(snapshot, |_| !now);
    if !now {
        // A server that is not in order today may be so tomorrow.
        for candidate in &mut candidates {
            (candidate.unusable, candidate.draining) = (None, false);
        }
    }
    if candidates.is_empty() {
        return Ok(());
    }
    let when = if now { When::Now } else { When::Ever };
    let verdict = place(&vm_power::demand(vm, when, snapshot), &candidates);
    if verdict.chosen.is_some() {
        return Ok(());
    }
    Err(problems::no_host(&vm.meta.name, &vm_power::reasons(&verdict)))
}

/// What a VM takes of a server's memory while it runs.
pub fn committed_memory(vm: &Vm, emulated: bool) -> basin_model::Bytes {
    vm.spec.memory + overhead(vm.spec.memory, emulated)
}
