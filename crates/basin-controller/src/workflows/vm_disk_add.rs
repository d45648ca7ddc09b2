//! Attaches a disk to a stopped VM, making the volume first if it is a new one.
//!
//! Reserved at the start: the attachment, and the new volume's record and name.

use basin_model::VmId;
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_model::vm::{Disk, Vm};
use basin_model::volume::Volume;
use basin_store::records::{self, CommitError, TxnBuilder, Versioned};
use serde::{Deserialize, Serialize};

use super::observe::{commit, must};
use super::volumes;
use crate::app::{Services, problems, store_problem};
use crate::intake::vm_patch::is_stopped;
use crate::workflow::{Step, StepContext, Workflow};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmDiskAdd {
    vm: VmId,
    disk: Disk,
    /// The volume to make for it, if one is.
    volumes: Vec<Volume>,
}

impl VmDiskAdd {
    pub fn new(vm: VmId, disk: Disk, volumes: Vec<Volume>) -> VmDiskAdd {
        VmDiskAdd { vm, disk, volumes }
    }

    async fn make(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        for volume in &self.volumes {
            volumes::make(volume, cx).await?;
        }
        Ok(())
    }

    async fn unmake(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        for volume in &self.volumes {
            volumes::remove(volume, cx).await?;
        }
        Ok(())
    }

    /// Refused when the VM was started while the volume was being made.
    async fn attach(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        loop {
            let Some(record) = self.current(cx).await? else {
                return Err(problems::not_found("vm", &self.vm.to_string()));
            };
            if record.value.spec.disks.contains(&self.disk) {
                return Ok(());
            }
            cx.services.inventory.at_least(record.revision).await;
            if !is_stopped(&record.value, &cx.services.inventory.read()) {
                let (name, advice) = (&record.value.meta.name, "Shut it down first.");
                return Err(problems::wrong_state("vm", name, "not stopped any more", advice));
            }
            let mut vm = record.value.clone();
            vm.spec.disks.push(self.disk.clone());
            if self.replace(&record, &vm, cx).await? {
                return Ok(());
            }
            cx.check_cancel()?;
        }
    }

    async fn detach(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        while let Some(record) = self.current(cx).await? {
            let mut vm = record.value.clone();
            vm.spec.disks.retain(|d| *d != self.disk);
            if vm == record.value || self.replace(&record, &vm, cx).await? {
                break;
            }
        }
        Ok(())
    }

    /// Whether the VM was still as read, and is now as wanted.
    async fn replace(
        &self,
        read: &Versioned<Vm>,
        vm: &Vm,
        cx: &StepContext<Services>,
    ) -> Result<bool, Problem> {
        let unlocked = TxnBuilder::new().require_absent(keys::lock(Kind::Vm, self.vm));
        match commit(unlocked.replace(read, vm), cx).await {
            Ok(_) => Ok(true),
            Err(CommitError::Refused(_)) => Ok(false),
            Err(CommitError::Store(e)) => Err(store_problem(&e)),
        }
    }

    async fn current(&self, cx: &StepContext<Services>) -> Result<Option<Versioned<Vm>>, Problem> {
        must(records::get(&*cx.services.store, &keys::vm(self.vm)).await)
    }
}

impl Workflow for VmDiskAdd {
    type Services = Services;
    const KIND: &'static str = "vm-disk-add";

    fn subject(&self) -> String {
        format!("vm/{}", self.vm)
    }

    fn steps() -> Vec<Step<Self>> {
        vec![
            Step::undoable("make", Self::make, Self::unmake).weight(20),
            Step::undoable("attach", Self::attach, Self::detach),
        ]
    }

    fn on_done(&self) -> TxnBuilder {
        self.volumes.iter().map(volumes::publish).fold(TxnBuilder::new(), TxnBuilder::and)
    }

    fn on_undone(&self) -> TxnBuilder {
        let txn = TxnBuilder::new().delete(keys::attachment(self.disk.volume));
        self.volumes.iter().map(volumes::give_up).fold(txn, TxnBuilder::and)
    }
}
