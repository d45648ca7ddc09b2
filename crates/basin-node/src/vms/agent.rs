//! Follows the store's VMs and gives each one that is here a task of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use basin_model::keys::{self, Kind};
use basin_model::vm::{Phase, Vm, VmStatus};
use basin_model::{HostId, VmId};
use basin_qemu::Adopted;
use basin_store::records::{self, RecordEvent, Versioned, watch_records};
use basin_store::{Store, StoreError};
use futures::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::actor::Actor;
use super::hold::Hold;
use super::parts::Parts;
use super::{Machines, Vms};
use crate::migration::Migrations;

/// How long VMs' tasks have to finish what they are doing when the daemon stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// How long a VM is left alone whose task has failed: a defect must not spin.
const AFTER_PANIC: Duration = Duration::from_secs(10);

/// See the module.
pub struct Agent {
    host: HostId,
    parts: Arc<Parts>,
    machines: Machines,
    vms: Vms,
    actors: BTreeMap<VmId, watch::Sender<Option<Arc<Vm>>>>,
    tasks: JoinSet<VmId>,
    migrations: Option<Migrations>,
}

/// What an agent finds when it starts.
pub struct Found {
    pub adopted: Vec<Adopted>,
    pub rebooted: bool,
    /// VMs that something is known of, beside their records: statuses, parts.
    pub traces: BTreeSet<VmId>,
}

/// VMs of which this server's last daemon left a status that is not at rest, or
/// whose record is gone.
pub async fn traces(store: &dyn Store, host: HostId) -> Result<BTreeSet<VmId>, StoreError> {
    let (statuses, _) = records::list::<VmStatus>(store, &Kind::VmStatus.prefix()).await?;
    let mut traces = BTreeSet::new();
    for status in statuses.into_iter().map(|s| s.value).filter(|s| s.host == host) {
        if status.phase != Phase::Stopped || store.get(&keys::vm(status.vm)).await?.is_none() {
            traces.insert(status.vm);
        }
    }
    Ok(traces)
}

impl Agent {
    pub fn new(host: HostId, parts: Arc<Parts>, machines: Machines, vms: Vms) -> Agent {
        let (actors, tasks) = Default::default();
        Agent { host, parts, machines, vms, actors, tasks, migrations: None }
    }

    /// VMs on their way to this server are not the agent's until they are its own.
    pub fn receiving(self, migrations: Migrations) -> Agent {
        Agent { migrations: Some(migrations), ..self }
    }

    /// Runs until stopped. `settled` is told when every VM that was there at the
    /// start has been brought to where it should be, or failed to be.
    pub async fn run(
        mut self,
        found: Found,
        settled: tokio::sync::oneshot::Sender<()>,
        stop: CancellationToken,
    ) {
        let mut found = Some(found);
        let mut settled = Some(settled);
        let (first, mut first_done) = mpsc::channel::<()>(1);
        let mut first = Some(first);
        let mut events = watch_records::<Vm>(self.parts.store.clone(), Kind::Vm.prefix());
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                event = events.next() => match event {
                    Some(Ok(event)) => {
                        self.take_in(event, &mut found, &mut first);
                    }
                    Some(Err(error)) => tracing::warn!(%error, "cannot watch VMs"),
                    None => break,
                },
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(vm) => self.ended(vm),
                    Err(error) => tracing::error!(%error, "a VM's task failed"),
                },
                None = first_done.recv(), if settled.is_some() => {
                    settled.take().map(|settled| settled.send(()));
                }
            }
        }
        // Each ends when it comes to rest. What takes too long is cut off, and is
        // the next daemon's to go on with, as after a crash.
        self.actors.clear();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_WITHIN, all).await.is_err() {
            self.tasks.shutdown().await;
        }
    }

    fn take_in(
        &mut self,
        event: RecordEvent<Vm>,
        found: &mut Option<Found>,
        first: &mut Option<mpsc::Sender<()>>,
    ) {
        match event {
            RecordEvent::Resync { records, .. } => {
                let record = |r: Versioned<Vm>| (r.value.id, Arc::new(r.value));
                let all: BTreeMap<_, _> = records.into_iter().map(record).collect();
                let gone: Vec<VmId> =
                    self.actors.keys().filter(|id| !all.contains_key(id)).copied().collect();
                self.vms.replace(all.clone());
                match found.take() {
                    Some(found) => self.begin(&all, found, first.take()),
                    None => {
                        gone.into_iter().for_each(|id| self.tell(id, None));
                        all.into_iter().for_each(|(id, vm)| self.tell(id, Some(vm)));
                    }
                }
            }
            RecordEvent::Put(record) => {
                let (id, vm) = (record.value.id, Arc::new(record.value));
                self.vms.set(id, Some(vm.clone()));
                self.tell(id, Some(vm));
            }
            RecordEvent::Deleted { key, .. } => {
                if let Some(id) = Kind::parse(&key).and_then(|(_, id)| id.parse().ok()) {
                    self.vms.set(id, None);
                    self.tell(id, None);
                }
            }
        }
    }

    /// The first reading: everything that is here, or should be, gets its task.
    fn begin(
        &mut self,
        all: &BTreeMap<VmId, Arc<Vm>>,
        found: Found,
        first: Option<mpsc::Sender<()>>,
    ) {
        let mut machines: BTreeMap<VmId, Adopted> =
            found.adopted.into_iter().map(|a| (a.vm, a)).collect();
        let here = all.values().filter(|vm| self.is_here(vm)).map(|vm| vm.id);
        let ids: BTreeSet<VmId> =
            here.chain(machines.keys().copied()).chain(found.traces).collect();
        for id in ids {
            if let (Some(vm), Some(migrations)) = (all.get(&id), &self.migrations)
                && self.is_coming(vm)
            {
                let machine = machines.remove(&id).map(|a| a.machine);
                migrations.adopt(vm, machine);
                continue;
            }
            // Resets asked for while no daemon ran are still to be carried out.
            let hold = machines.remove(&id).map(|a| Hold::new(a.machine, a.generation, 0));
            self.spawn(id, all.get(&id).cloned(), hold, found.rebooted, first.clone());
        }
        if let Some(migrations) = &self.migrations {
            migrations.all_adopted();
        }
    }

    fn is_here(&self, vm: &Vm) -> bool {
        vm.placement.is_some_and(|p| p.host == self.host)
    }

    /// On its way here: until it has arrived it is another server's.
    fn is_coming(&self, vm: &Vm) -> bool {
        !self.is_here(vm) && vm.migration.as_ref().is_some_and(|m| m.to == self.host)
    }

    fn tell(&mut self, id: VmId, vm: Option<Arc<Vm>>) {
        match self.actors.get(&id) {
            Some(actor) => {
                actor.send_if_modified(|old| {
                    let new = *old != vm;
                    *old = vm;
                    new
                });
            }
            None if vm.as_ref().is_some_and(|vm| self.is_here(vm)) => {
                // A guest that has arrived brings its machine along.
                let held = self.machines.get_held(id);
                let hold = held.map(|(machine, generation)| {
                    Hold::new(machine, generation, vm.as_ref().map_or(0, |vm| vm.run.resets))
                });
                self.spawn(id, vm, hold, false, None);
            }
            None => {}
        }
    }

    fn spawn(
        &mut self,
        id: VmId,
        vm: Option<Arc<Vm>>,
        hold: Option<Hold>,
        rebooted: bool,
        first: Option<mpsc::Sender<()>>,
    ) {
        if let Some(hold) = &hold {
            self.machines.set(id, Some((hold.machine.clone(), hold.generation)));
        }
        let (sender, desired) = watch::channel(vm);
        let (parts, machines) = (self.parts.clone(), self.machines.clone());
        let actor =
            Actor { vm: id, host: self.host, parts, machines, desired, hold, rebooted, first };
        self.actors.insert(id, sender);
        self.tasks.spawn(async move {
            if AssertUnwindSafe(actor.run()).catch_unwind().await.is_err() {
                tracing::error!(vm = %id, "the VM's task panicked, and is started anew");
                tokio::time::sleep(AFTER_PANIC).await;
            }
            id
        });
    }

    /// Its task has let go of the VM; it may have been placed here again meanwhile.
    fn ended(&mut self, id: VmId) {
        self.actors.remove(&id);
        // Still in hand only if the task panicked.
        let machine = self.machines.get_held(id);
        let vm = self.vms.get(id);
        if machine.is_some() || vm.as_ref().is_some_and(|vm| self.is_here(vm)) {
            let hold = machine.map(|(machine, generation)| Hold::new(machine, generation, 0));
            self.spawn(id, vm, hold, false, None);
        }
    }
}
