//! Deletes a VM, under a lock that keeps it from being started or changed. The
//! lock was taken at the start.
//!
//! | step   | does                                             | undone by         |
//! |--------|--------------------------------------------------|-------------------|
//! | stop   | wants it off, and waits until it is              | (it stays off)    |
//! | seal   | its own disks become `deleting`                  | `ready` again     |
//! | remove | its record goes: from here on it only goes forward                   |
//! | files  | what its server kept of it, and its disks' files |                   |
//! | end    | the records of its disks go; or the lock does    |                   |

use std::time::Duration;

use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_model::vm::{Phase, Power, PowerOff, Vm};
use basin_model::volume::{Volume, VolumeState};
use basin_store::records::{self, TxnBuilder, Versioned};
use serde::{Deserialize, Serialize};

use super::observe::{self, commit_all, must};
use super::volumes;
use crate::app::nodes::refused;
use crate::app::{Services, problems};
use crate::workflow::{Step, StepContext, Workflow};

/// How long a server has to end a machine whose plug is pulled.
const STOP_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmDelete {
    vm: Vm,
    keep_disks: bool,
    /// The volumes that go with it, once they are sealed.
    volumes: Vec<Volume>,
}

impl VmDelete {
    /// The workflow, and the transaction that takes the lock while the VM is as it was read.
    pub fn new(vm: &Versioned<Vm>, keep_disks: bool) -> (VmDelete, TxnBuilder) {
        let flow = VmDelete { vm: vm.value.clone(), keep_disks, volumes: Vec::new() };
        let lock = keys::lock(Kind::Vm, vm.value.id);
        (flow, TxnBuilder::new().require_unchanged(vm).create(lock, &()))
    }

    async fn stop(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let id = self.vm.id;
        let record = must(records::get::<Vm>(&*cx.services.store, &keys::vm(id)).await)?;
        let Some(record) = record else { return Ok(()) };
        let mut vm = record.value.clone();
        if !matches!(vm.run.power, Power::Off { how: PowerOff::Now }) {
            vm.run.power = Power::Off { how: PowerOff::Now };
            commit_all(TxnBuilder::new().replace(&record, &vm), cx).await?;
        }
        self.vm = vm;
        if self.vm.placement.is_none() {
            return Ok(());
        }
        observe::vm(id, "Stopping the VM", STOP_LIMIT, cx, |seen| match seen.status {
            None => Some(Ok(())),
            Some(s) if matches!(s.phase, Phase::Stopped | Phase::Failed) => Some(Ok(())),
            Some(_) => None,
        })
        .await
    }

    async fn seal(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let disks = self.vm.spec.disks.iter().filter(|d| d.delete_with_vm && !self.keep_disks);
        let mut txn = TxnBuilder::new();
        self.volumes.clear();
        for disk in disks {
            let key = keys::volume(disk.volume);
            let record = must(records::get::<Volume>(&*cx.services.store, &key).await)?;
            let Some(record) = record else { continue };
            let volume = Volume { state: VolumeState::Deleting, ..record.value.clone() };
            cx.services.inventory.at_least(record.revision).await;
            let clones = cx.services.inventory.read().linked_to_volume(volume.id);
            if !clones.is_empty() {
                return Err(problems::in_use("volume", &volume.meta.name, &clones));
            }
            txn = txn.require_absent(keys::lock(Kind::Volume, volume.id)).replace(&record, &volume);
            self.volumes.push(volume);
        }
        commit_all(txn, cx).await
    }

    async fn unseal(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        // Also those that a crash left sealed before they were noted.
        for disk in &self.vm.spec.disks {
            let key = keys::volume(disk.volume);
            let record = must(records::get::<Volume>(&*cx.services.store, &key).await)?;
            if let Some(record) = record.filter(|r| r.value.state == VolumeState::Deleting) {
                let ready = Volume { state: VolumeState::Ready, ..record.value.clone() };
                commit_all(TxnBuilder::new().replace(&record, &ready), cx).await?;
            }
        }
        Ok(())
    }

    async fn remove(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let id = self.vm.id;
        let txn = unreserve(&self.vm)
            .delete(keys::vm(id))
            .delete(keys::vm_status(id))
            .delete(keys::lock(Kind::Vm, id));
        commit_all(txn, cx).await
    }

    async fn remove_files(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        forget_on_host(&self.vm, cx).await?;
        for volume in &self.volumes {
            volumes::remove(volume, cx).await?;
        }
        Ok(())
    }
}

/// Lets go of what a VM's record reserves.
pub(super) fn unreserve(vm: &Vm) -> TxnBuilder {
    let mut txn = TxnBuilder::new().delete(Kind::Vm.name(&vm.meta.name));
    for nic in &vm.spec.nics {
        txn = txn.delete(keys::mac(nic.mac)).delete(keys::address(nic.network, nic.address));
    }
    for disk in &vm.spec.disks {
        txn = txn.delete(keys::attachment(disk.volume));
    }
    txn
}

/// Removes what the VM's server keeps of it beside its disks.
pub(super) async fn forget_on_host(vm: &Vm, cx: &StepContext<Services>) -> Result<(), Problem> {
    match vm.placement {
        Some(placement) => {
            let node = cx.services.nodes.get(placement.host)?;
            node.forget_vm(vm.id).await.map_err(refused)
        }
        None => Ok(()),
    }
}

impl Workflow for VmDelete {
    type Services = Services;
    const KIND: &'static str = "vm-delete";

    fn subject(&self) -> String {
        format!("vm/{}", self.vm.id)
    }

    fn steps() -> Vec<Step<Self>> {
        vec![
            Step::without_undo("stop", Self::stop),
            Step::undoable("seal", Self::seal, Self::unseal),
            Step::forward("remove", Self::remove),
            Step::forward("files", Self::remove_files),
        ]
    }

    fn on_done(&self) -> TxnBuilder {
        // The status once more: its server may have written it a last time.
        let txn = TxnBuilder::new().delete(keys::vm_status(self.vm.id));
        self.volumes.iter().map(volumes::forget).fold(txn, TxnBuilder::and)
    }

    fn on_undone(&self) -> TxnBuilder {
        TxnBuilder::new().delete(keys::lock(Kind::Vm, self.vm.id))
    }
}
