//! The VMs of this server: what to do ([`decide`]) and doing it ([`actor`]).

mod actor;
pub mod agent;
mod arriving;
mod chain;
mod decide;
mod hold;
pub mod parts;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use basin_model::vm::Vm;
use basin_model::{Generation, VmId};
use basin_qemu::Machine;
use tokio::sync::watch;

type Records = BTreeMap<VmId, Arc<Vm>>;

/// Every VM's record, as the agent last read it, for who else needs them.
#[derive(Clone)]
pub struct Vms {
    all: Arc<RwLock<Option<Records>>>,
    changed: watch::Sender<()>,
}

impl Default for Vms {
    fn default() -> Vms {
        Vms { all: Arc::default(), changed: watch::channel(()).0 }
    }
}

impl Vms {
    /// None until all have been read once.
    pub fn all(&self) -> Option<Records> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn get(&self, vm: VmId) -> Option<Arc<Vm>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).as_ref()?.get(&vm).cloned()
    }

    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn replace(&self, all: Records) {
        *self.all.write().unwrap_or_else(PoisonError::into_inner) = Some(all);
        self.changed.send_replace(());
    }

    fn set(&self, id: VmId, vm: Option<Arc<Vm>>) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let all = all.get_or_insert_default();
        match vm {
            Some(vm) => drop(all.insert(id, vm)),
            None => drop(all.remove(&id)),
        }
        self.changed.send_replace(());
    }
}

/// The machines that run here now, for consoles and figures.
#[derive(Clone, Default)]
pub struct Machines(Arc<RwLock<BTreeMap<VmId, Held>>>);

type Held = (Arc<dyn Machine>, Generation);

impl Machines {
    pub fn get(&self, vm: VmId) -> Option<Arc<dyn Machine>> {
        self.get_held(vm).map(|(machine, _)| machine)
    }

    fn get_held(&self, vm: VmId) -> Option<Held> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&vm).cloned()
    }

    pub fn all(&self) -> Vec<(VmId, Arc<dyn Machine>)> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(id, (machine, _))| (*id, machine.clone())).collect()
    }

    pub fn set(&self, vm: VmId, machine: Option<Held>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match machine {
            Some(machine) => drop(all.insert(vm, machine)),
            None => drop(all.remove(&vm)),
        }
    }
}
