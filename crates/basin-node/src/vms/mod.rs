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

use basin_model::vm::{Nic, Vm};
use basin_model::{Generation, HostId, Name, VmId};
use basin_qemu::Machine;
use tokio::sync::watch;

type Records = BTreeMap<VmId, Arc<Vm>>;

/// Every VM's record, as the agent last read it, for who else needs them.
#[derive(Clone)]
pub struct Vms {
    all: Arc<RwLock<Option<Records>>>,
    changed: watch::Sender<()>,
    /// What networks are made of.
    replugged: watch::Sender<()>,
}

impl Default for Vms {
    fn default() -> Vms {
        let (changed, replugged) = Default::default();
        Vms { all: Arc::default(), changed, replugged }
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

    /// Woken when a VM's interfaces, its name or its place change. Of all that changes
    /// about VMs in a data centre that is little, and every server hears of all of it.
    pub fn replugged(&self) -> watch::Receiver<()> {
        self.replugged.subscribe()
    }

    fn replace(&self, all: Records) {
        *self.all.write().unwrap_or_else(PoisonError::into_inner) = Some(all);
        self.changed.send_replace(());
        self.replugged.send_replace(());
    }

    fn set(&self, id: VmId, vm: Option<Arc<Vm>>) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let all = all.get_or_insert_default();
        let old = match vm.clone() {
            Some(vm) => all.insert(id, vm),
            None => all.remove(&id),
        };
        self.changed.send_replace(());
        if old.as_deref().map(plug) != vm.as_deref().map(plug) {
            self.replugged.send_replace(());
        }
    }
}

/// All that a network has to do with a VM.
fn plug(vm: &Vm) -> (&Name, &[Nic], Option<HostId>, Option<HostId>) {
    let (at, to) = (vm.placement.map(|p| p.host), vm.migration.as_ref().map(|m| m.to));
    (&vm.meta.name, &vm.spec.nics, at, to)
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

#[cfg(test)]
mod tests {
    use basin_model::vm::{Placement, Power};
    use serde_json::json;

    use super::*;

    fn vm() -> Vm {
        let id = uuid::Uuid::from_u128(7);
        let value = json!({
            "id": id,
            "meta": {"name": "a", "created_at": "2026-01-01T00:00:00Z"},
            "spec": {"vcpus": 1, "memory": 1 << 30},
            "run": {"power": {"state": "running"}, "epoch": 1, "resets": 0},
            "placement": {"host": id, "generation": 1},
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn networks_are_woken_only_by_what_they_are_made_of() {
        let (vms, before) = (Vms::default(), vm());
        let mut replugged = vms.replugged();
        let mut check = |now: Option<Vm>, expect: bool| {
            vms.set(before.id, now.map(Arc::new));
            assert_eq!(replugged.has_changed().unwrap(), expect);
            replugged.borrow_and_update();
        };
        check(Some(before.clone()), true);
        let mut paused = before.clone();
        paused.run.power = Power::Paused;
        check(Some(paused.clone()), false);
        let elsewhere = HostId::from_uuid(uuid::Uuid::from_u128(8));
        let moved = before.placement.map(|p| Placement { host: elsewhere, ..p });
        check(Some(Vm { placement: moved, ..paused }), true);
        check(None, true);
        check(None, false);
    }
}
