//! Pure. Who has a VM for itself.
//!
//! The lock in the store decides; this says it before, and by name.

use basin_model::VmId;
use basin_model::task::{Problem, Task};
use basin_model::vm::Vm;

use super::inventory::Snapshot;
use super::problems;
use crate::workflow::Workflow as _;
use crate::workflows::vm_delete::VmDelete;
use crate::workflows::vm_migrate::VmMigrate;

/// The task that has the lock of the VM.
pub fn holder(vm: VmId, snapshot: &Snapshot) -> Option<&Task> {
    let subject = format!("vm/{vm}");
    let locks = |task: &&Task| [VmDelete::KIND, VmMigrate::KIND].contains(&task.kind.as_str());
    let tasks = snapshot.tasks.values().map(|t| &t.value);
    tasks.filter(locks).find(|t| t.subject == subject && !t.state.is_over())
}

/// Refuses while a task has the VM for itself.
pub fn free(vm: &Vm, snapshot: &Snapshot) -> Result<(), Problem> {
    match holder(vm.id, snapshot) {
        None => Ok(()),
        Some(task) => Err(problems::held("vm", &vm.meta.name, task)),
    }
}
