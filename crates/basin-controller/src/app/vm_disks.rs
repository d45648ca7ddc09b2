//! Disks of a VM that exists. While it is stopped, so far.

use basin_api::vm::NewDisk;
use basin_model::VmId;
use basin_model::keys::{self, Kind};
use basin_model::task::{Problem, Task};
use basin_store::Revision;
use basin_store::records::Versioned;

use super::inventory::Snapshot;
use super::{App, holds, problems, space_check, unchanged};
use crate::intake;
use crate::intake::vm_patch::is_stopped;
use crate::workflows::vm_disk_add::VmDiskAdd;

impl App {
    /// Attaches a volume, or makes one and attaches it.
    pub async fn add_disk(&self, reference: &str, disk: &NewDisk) -> Result<Task, Problem> {
        let capacities = self.capacities().await;
        self.start(|snapshot, mint| {
            let vm = stopped(reference, snapshot)?;
            let draft = intake::vm_disk::add(&vm.value, disk, snapshot, mint)?;
            space_check(&draft.made, &capacities, snapshot)?;
            let unlocked = keys::lock(Kind::Vm, vm.value.id);
            let txn = draft.txn.require_unchanged(vm).require_absent(unlocked);
            Ok((VmDiskAdd::new(vm.value.id, draft.disk, draft.made), txn))
        })
        .await
    }

    /// Takes a volume off a VM; the volume stays.
    pub async fn remove_disk(
        &self,
        reference: &str,
        volume: &str,
        expected: Option<Revision>,
    ) -> Result<VmId, Problem> {
        self.commit(|snapshot, _| {
            let vm = stopped(reference, snapshot)?;
            unchanged(vm, expected)?;
            let id = snapshot.volume(volume)?.value.id;
            let mut new = vm.value.clone();
            new.spec.disks.retain(|d| d.volume != id);
            if new.spec.disks.len() == vm.value.spec.disks.len() {
                let what = format!("volume '{volume}' is not attached to vm '{reference}'");
                return Err(problems::invalid(what));
            }
            let txn = basin_store::records::TxnBuilder::new()
                .require_absent(keys::lock(Kind::Vm, new.id))
                .replace(vm, &new)
                .delete(keys::attachment(id));
            Ok((new.id, txn))
        })
        .await
    }
}

fn stopped<'a>(
    reference: &str,
    snapshot: &'a Snapshot,
) -> Result<&'a Versioned<basin_model::vm::Vm>, Problem> {
    let vm = snapshot.vm(reference)?;
    holds::free(&vm.value, snapshot)?;
    if is_stopped(&vm.value, snapshot) {
        return Ok(vm);
    }
    let advice = "Shut it down first.";
    Err(problems::wrong_state("vm", &vm.value.meta.name, "not stopped", advice))
}
