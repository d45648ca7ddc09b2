//! Makes a VM.
//!
//! Reserved at the start: the VM's name, MAC and IP addresses, attachments, and
//! the records of the volumes that are made for it.
//!
//! | step    | does                                      | undone by                    |
//! |---------|-------------------------------------------|------------------------------|
//! | volumes | the files of its new volumes              | deleting the files           |
//! | publish | the VM's record; volumes become `ready`   | deleting the VM's record     |
//! | start   | wants it running, if asked to             | wanting it off               |
//! | watch   | waits until it runs                       |                              |
//! | end     | nothing; or all that was reserved goes    |                              |

use basin_model::keys;
use basin_model::task::Problem;
use basin_model::vm::{Power, PowerOff, Vm};
use basin_model::volume::Volume;
use basin_store::records::{self, CommitError, TxnBuilder};
use serde::{Deserialize, Serialize};

use super::observe::{commit, commit_all, must};
use super::{vm_delete, vm_power_on, volumes};
use crate::app::{Services, store_problem, vm_power};
use crate::workflow::{Step, StepContext, Workflow};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmCreate {
    vm: Vm,
    /// To make for it.
    volumes: Vec<Volume>,
    start: bool,
    /// The epoch that was started.
    epoch: Option<u64>,
}

impl VmCreate {
    pub fn new(vm: Vm, volumes: Vec<Volume>, start: bool) -> VmCreate {
        VmCreate { vm, volumes, start, epoch: None }
    }

    async fn make_volumes(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        for volume in &self.volumes {
            volumes::make(volume, cx).await?;
        }
        Ok(())
    }

    async fn remove_volumes(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        for volume in &self.volumes {
            volumes::remove(volume, cx).await?;
        }
        Ok(())
    }

    async fn publish(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        if self.current(cx).await?.is_some() {
            return Ok(());
        }
        let mut txn = TxnBuilder::new().create(keys::vm(self.vm.id), &self.vm);
        for volume in &self.volumes {
            txn = txn.and(volumes::publish(volume));
        }
        commit_all(txn, cx).await
    }

    async fn withdraw(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let id = self.vm.id;
        let txn = TxnBuilder::new().delete(keys::vm(id)).delete(keys::vm_status(id));
        commit_all(txn, cx).await?;
        vm_delete::forget_on_host(&self.vm, cx).await
    }

    async fn power_on(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        if !self.start || self.epoch.is_some() {
            return Ok(());
        }
        loop {
            let (wanted, txn) = {
                let snapshot = cx.services.inventory.read();
                let vm = snapshot.vm(&self.vm.id.to_string())?;
                if vm.value.run.epoch > 0 {
                    // Done before a crash, or somebody was quicker: either way it is to run.
                    self.epoch = Some(vm.value.run.epoch);
                    return Ok(());
                }
                vm_power::power_on(vm, &snapshot)?
            };
            match commit(txn, cx).await {
                Ok(_) => {
                    self.epoch = Some(wanted.run.epoch);
                    self.vm.placement = wanted.placement;
                    return Ok(());
                }
                Err(CommitError::Refused(_)) => {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
                Err(CommitError::Store(e)) => return Err(store_problem(&e)),
            }
        }
    }

    async fn power_off(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let Some(vm) = self.current(cx).await? else { return Ok(()) };
        let mut off = vm.value.clone();
        off.run.power = Power::Off { how: PowerOff::Now };
        self.vm.placement = off.placement;
        commit_all(TxnBuilder::new().put(keys::vm(off.id), &off), cx).await
    }

    async fn watch(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        match self.epoch {
            Some(epoch) => vm_power_on::running(self.vm.id, epoch, cx).await,
            None => Ok(()),
        }
    }

    async fn current(
        &self,
        cx: &StepContext<Services>,
    ) -> Result<Option<records::Versioned<Vm>>, Problem> {
        must(records::get(&*cx.services.store, &keys::vm(self.vm.id)).await)
    }
}

impl Workflow for VmCreate {
    type Services = Services;
    const KIND: &'static str = "vm-create";

    fn subject(&self) -> String {
        format!("vm/{}", self.vm.id)
    }

    fn steps() -> Vec<Step<Self>> {
        vec![
            Step::undoable("volumes", Self::make_volumes, Self::remove_volumes).weight(20),
            Step::undoable("publish", Self::publish, Self::withdraw),
            Step::undoable("start", Self::power_on, Self::power_off),
            Step::without_undo("watch", Self::watch).weight(5),
        ]
    }

    fn on_undone(&self) -> TxnBuilder {
        // The status once more: its server may have written it a last time.
        let txn = vm_delete::unreserve(&self.vm).delete(keys::vm_status(self.vm.id));
        self.volumes.iter().map(volumes::give_up).fold(txn, TxnBuilder::and)
    }
}
