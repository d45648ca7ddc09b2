//! The guest runs here: this server becomes the VM's owner, in one transaction. Until it
//! is written the guest runs all the same, and nobody else may run it: the store being
//! away is no reason to stop it.

use std::sync::Arc;
use std::time::Duration;

use basin_model::vm::{Placement, Vm};
use basin_model::volume::{Volume, VolumeSource};
use basin_model::{Generation, TaskId, VmId, keys};
use basin_qemu::Machine;
use basin_store::StoreError;
use basin_store::records::{self, CommitError, TxnBuilder};

use super::Migrations;

const TRY_AGAIN: Duration = Duration::from_millis(200);

/// A move whose guest has arrived.
pub struct Claim {
    pub vm: VmId,
    pub task: TaskId,
    pub generation: Generation,
}

/// What the record says of the move.
enum Standing {
    Claimed,
    /// The VM is another server's: this one was given up for dead, or it is deleted.
    Lost,
}

impl Claim {
    pub async fn take_over(&self, migrations: &Migrations, machine: Option<Arc<dyn Machine>>) {
        // Whoever sees the record first finds the machine beside it.
        if let Some(machine) = &machine {
            migrations.0.machines.set(self.vm, Some((machine.clone(), self.generation)));
        }
        let standing = loop {
            match self.commit(migrations).await {
                Ok(Some(standing)) => break standing,
                // Somebody changed a record meanwhile: from what it is now.
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(vm = %self.vm, %error, "a guest has arrived, and the store does not know yet");
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        };
        match standing {
            Standing::Claimed => {
                tracing::info!(vm = %self.vm, generation = %self.generation.0, "the guest has arrived, and is this server's");
                self.settle(migrations, machine.as_deref()).await;
            }
            Standing::Lost => {
                tracing::warn!(vm = %self.vm, "a guest has arrived that is another server's by now");
                migrations.0.machines.set(self.vm, None);
                if let Some(machine) = machine
                    && let Err(error) = machine.kill().await
                {
                    tracing::error!(vm = %self.vm, %error, "it cannot be stopped");
                }
                if let Err(error) = migrations.0.parts.dismantle(self.vm).await {
                    tracing::warn!(vm = %self.vm, why = error.problem.detail, "its parts stay");
                }
            }
        }
    }

    /// None: a record has changed meanwhile.
    async fn commit(&self, migrations: &Migrations) -> Result<Option<Standing>, StoreError> {
        let store = &*migrations.0.parts.store;
        let Some(old) = records::get::<Vm>(store, &keys::vm(self.vm)).await? else {
            return Ok(Some(Standing::Lost));
        };
        let ours = Placement { host: migrations.0.host, generation: self.generation };
        if old.value.placement == Some(ours) {
            return Ok(Some(Standing::Claimed));
        }
        let Some(migration) = old.value.migration.clone().filter(|m| m.task == self.task) else {
            return Ok(Some(Standing::Lost));
        };
        let new = Vm { placement: Some(ours), migration: None, ..old.value.clone() };
        let mut txn = TxnBuilder::new().replace(&old, &new);
        for (id, to) in &migration.disks {
            let Some(volume) = records::get::<Volume>(store, &keys::volume(*id)).await? else {
                continue;
            };
            let (datastore, format) = (to.datastore, to.format);
            let source = VolumeSource::Blank;
            let moved = Volume { datastore, format, source, ..volume.value.clone() };
            txn = txn.replace(&volume, &moved);
        }
        match txn.commit(store).await {
            Ok(_) => Ok(Some(Standing::Claimed)),
            Err(CommitError::Refused(_)) => Ok(None),
            Err(CommitError::Store(error)) => Err(error),
        }
    }

    /// Its disks are held for good, and its peers learn where it is.
    async fn settle(&self, migrations: &Migrations, machine: Option<&dyn Machine>) {
        let parts = &migrations.0.parts;
        if let Err(error) = parts.settle(self.vm).await {
            tracing::warn!(vm = %self.vm, why = error.problem.detail, "its disks are not held for good yet");
        }
        if let Some(machine) = machine
            && let Err(error) = machine.announce().await
        {
            tracing::debug!(vm = %self.vm, %error, "its network cards are not announced again");
        }
    }
}
